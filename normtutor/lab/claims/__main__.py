"""``python -m normtutor.lab.claims``: run every experiment in full and record it."""

import argparse
import json
from pathlib import Path

from normtutor.lab.claims import RECORD, claims, run
from normtutor.lab.machine import provenance


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m normtutor.lab.claims", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("normtutor/results") / RECORD)
    out = parser.parse_args().out
    record: dict[str, object] = {}
    for name in claims():
        outcome = run(name, full=True)
        print(f"{name} ({outcome.seconds:.0f} s)\n{outcome}\n", flush=True)
        record[name] = {
            "holds": outcome.holds,
            "tells": outcome.claim.tells(outcome.measured),
            "measured": outcome.measured,
            "seconds": round(outcome.seconds, 1),
        }
    text = json.dumps({"provenance": provenance("make claims", device="cpu"), "claims": record}, indent=1)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"recorded in {out}")


if __name__ == "__main__":
    main()
