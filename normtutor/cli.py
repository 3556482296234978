"""The command line: ``normtutor list | choose | parity | bench | check | progress``."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from normtutor import __version__, guide

EXAMPLES = """examples:
  normtutor list                          the techniques of the course
  normtutor choose --architecture cnn --batch-size 2
                                          which normalization to use, with the reasons
  normtutor parity batch                  our layer and torch's, judged by a float64 computation
  normtutor bench batch --out bench.json  time and memory, as a table and as JSON
  normtutor check batch_norm.ipynb        grade the exercises in a notebook; exit 0 only if all pass
  normtutor progress                      which exercises check() in a notebook has seen pass
"""


class Bad(Exception):
    """Bad input; the message is one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 1 where something that was checked failed, or 2 for bad input.
    """
    arguments = _parser().parse_args([_dashed(word) for word in (sys.argv[1:] if argv is None else argv)])
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except Bad as bad:
        print(f"normtutor: {bad}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has gone, as `head` does; python would complain again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dashed(word: str) -> str:
    """``--batch_size`` is meant for ``--batch-size``."""
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if word.startswith("--") else word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="normtutor",
        description="Neural-network normalization: measure the layers, grade your exercises.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"normtutor {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, run: Any, help: str, more: str = "") -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}")
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print JSON")
        return command

    verb("list", _list, "list the techniques")
    choose = verb(
        "choose",
        _choose,
        "recommend a normalization for a situation",
        "Describe the situation by any of the options; each rule that applies is shown with its reason and "
        "its source.",
    )
    guide.add_arguments(choose)
    parity = verb("parity", _parity, "compare our layers and torch's with a float64 computation")
    bench = verb(
        "bench",
        _bench,
        "time our layers and torch's",
        "On a CUDA device the fused layers too, those of Liger-Kernel, quack and apex where they are "
        "installed, large tensors and channels_last.",
    )
    for command in (parity, bench):
        command.add_argument("technique", nargs="?", help="a name from `normtutor list`; default: all")
        command.add_argument("--device", help="for example cpu or cuda")
    bench.add_argument("--compiled", action="store_true", help="time torch.compile too (takes a minute)")
    bench.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    bench.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw them, forward and backward together, one figure a technique: .svg, .png or .pdf",
    )
    check = verb(
        "check",
        _check,
        "grade the exercises in a notebook or script",
        "Runs only what the answers need. Exit status 0 only if every exercise of the chapter passes, "
        "or with --present every one in FILE. Nothing is noted for `normtutor progress`: check() does "
        "that when you run the file yourself.",
    )
    check.add_argument("file", type=Path, metavar="FILE", help="a .py or .ipynb file")
    check.add_argument("--present", action="store_true", help="judge only the exercises that FILE contains")
    check.add_argument(
        "--timeout", type=_seconds, default=20.0, metavar="SECONDS", help="for one exercise; default: 20"
    )
    progress = verb(
        "progress",
        _progress,
        "show which exercises are passed in this folder",
        "Reads what check() in a notebook or script has noted (`normtutor check FILE` notes nothing): "
        "normtutor_progress.json in this folder, or the file that the environment variable "
        "NORMTUTOR_PROGRESS names.",
    )
    progress.add_argument("chapter", nargs="?", help="for example batch_norm; default: all")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("expected a number of seconds above 0")
    return seconds


def _list(arguments: argparse.Namespace) -> int:
    from normtutor.catalog import TECHNIQUES
    from normtutor.lab.text import table

    columns = ("name", "title", "paper", "index_set", "notebook", "url")
    rows = [{column: getattr(row, column) for column in columns} for row in TECHNIQUES.values()]
    if arguments.json:
        _print_json(rows)
    else:
        print(table(columns[:-1], [[row[column] or "" for column in columns[:-1]] for row in rows]))
    return 0


def _choose(arguments: argparse.Namespace) -> int:
    told = {name: getattr(arguments, name) for name in guide.FIELDS}
    if all(answer is None for answer in told.values()):
        raise Bad("describe the situation, for example --architecture cnn --batch-size 2 (see choose --help)")
    try:
        advice = guide.recommend(told)
    except ValueError as error:
        raise Bad(str(error)) from None
    if arguments.json:
        _print_json(advice.to_dict())
    else:
        print(advice)
    return 0


def _parity(arguments: argparse.Namespace) -> int:
    from normtutor import lab

    names, device = _techniques(arguments.technique), _device(arguments.device)
    reports = [lab.parity(name, devices=device and [device]) for name in names]
    _report(reports, arguments.json)
    return 0 if all(report.ok for report in reports) else 1


def _bench(arguments: argparse.Namespace) -> int:
    import torch

    from normtutor import lab
    from normtutor.catalog import TECHNIQUES
    from normtutor.lab.machine import default_device

    names, device = _techniques(arguments.technique), _device(arguments.device)
    out: Path | None = arguments.out
    figures = _figures(arguments.plot, names)
    for path in filter(None, (out, *figures.values())):  # said before the minutes of measuring
        if path.is_dir() or not path.resolve().parent.is_dir():
            raise Bad(f"{path}: expected the name of a file in an existing folder")
    more: dict[str, Any] = {"device": device, "compiled": arguments.compiled}
    on_gpu = torch.device(device or default_device()).type == "cuda"
    reports = []
    for name in names:
        row = TECHNIQUES[name]
        if on_gpu:
            more |= {
                "shapes": row.bench_shapes + row.large_shapes,
                "layouts": ("contiguous", "channels_last"),
            }
        reports.append(lab.bench(name, **more))
    _report(reports, arguments.json)
    try:
        if out:
            out.write_text(_json([report.to_dict() for report in reports]) + "\n", encoding="utf-8")
        for report in reports:
            if report.technique in figures:
                report.plot().savefig(figures[report.technique])
    except OSError as error:
        raise Bad(f"{error.filename}: cannot be written: {error.strerror}") from None
    return 0


def _figures(path: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """Technique → file: the one that was named, or with several techniques one named after each."""
    if path is None:
        return {}
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise Bad(f"{path}: expected a name that ends in .svg, .png or .pdf")
    if len(names) == 1:
        return {names[0]: path}
    return {name: path.with_stem(f"{path.stem}_{name}") for name in names}


def _check(arguments: argparse.Namespace) -> int:
    from normtutor.exercises.answers import BadFile, grade_file

    try:
        ids, graded = grade_file(arguments.file, arguments.present, arguments.timeout)
    except BadFile as bad:
        raise Bad(str(bad)) from None
    if arguments.json:
        keys = ("id", "status", "mistake", "text")
        verdicts = list(graded)
        _print_json([{key: getattr(verdict, key) for key in keys} for verdict in verdicts])
    else:
        verdicts = _print_as_they_come(ids, graded)
    return 0 if all(verdicts) else 1


def _print_as_they_come(ids: Sequence[str], graded: Iterator[Any]) -> list[Any]:
    """Print the table row by row, then what is wrong."""
    from normtutor.exercises.registry import exercises
    from normtutor.exercises.verdict import NOT_HERE, NOT_IN_FILE

    width = max(map(len, ids))
    print(f"{'exercise':{width}}  status")
    verdicts = []
    for verdict in graded:
        verdicts.append(verdict)
        print(f"{verdict.id:{width}}  {verdict.status}", flush=True)
    for verdict in verdicts:
        if verdict.status in ("wrong", "error") or NOT_HERE in verdict.text:
            print(f"\n{verdict.text}")
    known = [verdict for verdict in verdicts if verdict.id in exercises()]
    print(f"\n{sum(map(bool, known))} of {len(known)} exercises passed.")
    there = sum(NOT_IN_FILE not in verdict.text for verdict in known)
    if there < len(known):
        print(
            f"Exit status 0 needs all {len(known)} exercises of the chapter; {there} of them "
            f"{'is' if there == 1 else 'are'} in this file (--present judges only those)."
        )
    return verdicts


def _progress(arguments: argparse.Namespace) -> int:
    from normtutor import exercises

    try:
        rows = exercises.progress_rows(arguments.chapter)
    except ValueError as unknown:
        raise Bad(str(unknown)) from None
    if arguments.json:
        keys = ("id", "status", "title")
        _print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        exercises.progress(arguments.chapter)
    return 0


def _techniques(name: str | None) -> list[str]:
    """The techniques that were asked for: one or all."""
    from normtutor.catalog import TECHNIQUES

    if name is None:
        return list(TECHNIQUES)
    if name not in TECHNIQUES:
        near = get_close_matches(name, TECHNIQUES, n=1)
        help = f"Did you mean {near[0]!r}?" if near else f"Expected one of {', '.join(TECHNIQUES)}."
        raise Bad(f"unknown technique {name!r}. {help}")
    return [name]


def _device(name: str | None) -> str | None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a build without CUDA
        sentence, *_ = str(error).splitlines()[0].split(". ")  # torch goes on to name forty backends
        raise Bad(f"device {name!r} cannot be used: {sentence}") from None
    return name


def _report(reports: Sequence[Any], as_json: bool) -> None:
    if as_json:
        _print_json([report.to_dict() for report in reports])
    else:
        print("\n\n".join(str(report) for report in reports))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _print_json(value: object) -> None:
    print(_json(value))


if __name__ == "__main__":
    sys.exit(main())
