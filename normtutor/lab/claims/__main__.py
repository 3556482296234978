"""``python -m normtutor.lab.claims [CHAPTER …]``: run the experiments in full and record them."""

import argparse
import json
from pathlib import Path

from normtutor.catalog import CHAPTERS
from normtutor.lab.claims import RECORD, claims, run
from normtutor.lab.machine import provenance


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m normtutor.lab.claims", description=__doc__)
    parser.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="only these; what is on record of the others stays"
    )
    parser.add_argument("--out", type=Path, default=Path("normtutor/results") / RECORD)
    arguments = parser.parse_args()
    unknown = [chapter for chapter in arguments.chapters if chapter not in CHAPTERS]
    if unknown:
        parser.error(f"unknown chapter {unknown[0]!r}: expected one of {', '.join(CHAPTERS)}")
    out = arguments.out
    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    record = {name: before[name] for name in claims() if name in before}  # claims that are no more go
    for name in claims():
        if arguments.chapters and name.partition(".")[0] not in arguments.chapters:
            continue
        outcome = run(name, full=True)
        print(f"{name} ({outcome.seconds:.0f} s)\n{outcome}\n", flush=True)
        record[name] = {
            "holds": outcome.holds,
            "tells": outcome.claim.tells(outcome.measured),
            "measured": outcome.measured,
            "seconds": round(outcome.seconds, 1),
            "provenance": provenance("make claims", device="cpu"),
        }
    ordered = {name: record[name] for name in claims() if name in record}
    out.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    print(f"recorded in {out}")


if __name__ == "__main__":
    main()
