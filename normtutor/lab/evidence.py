"""GPU evidence: ``python -m normtutor.lab.evidence`` records tests, parity, memory and timing of every
technique, and style transfer at full size.

The record is one JSON file per kind of device in ``normtutor/results``. Pages and notebooks show these
records and nothing else; where there is none they say so.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import nn

from normtutor.catalog import CHAPTERS, TECHNIQUES, Shape, Technique
from normtutor.lab import style
from normtutor.lab.machine import ROOT, provenance
from normtutor.lab.memory_use import MemoryUse, memory, memory_cells
from normtutor.lab.parity_report import ParityReport, parity
from normtutor.lab.text import markdown_table, number, size, table
from normtutor.lab.timing import BOTH, LAYOUTS, Timings, bench

COMMAND = "make gpu-evidence"
NOT_MEASURED = "Not measured on a GPU yet."
DTYPES = ("float32", "bfloat16", "float16")

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what this machine's GPU does; returns the exit status.

    0: recorded, and everything held. 1: recorded, and a test or a parity comparison failed. 2: no CUDA
    device; nothing was written.
    """
    parser = argparse.ArgumentParser(prog="python -m normtutor.lab.evidence", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "normtutor" / "results", help="folder of the records"
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=450.0, help="stop starting new work after this"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            "gpu-evidence: torch sees no CUDA device here; nothing was measured or written", file=sys.stderr
        )
        return 2
    record = collect("cuda", options.budget_seconds, out=options.out, stylize=style.FULL)
    failed = record["tests"]["outcome"] == "failed" or not all(
        entry["ok"] for row in record["techniques"].values() for entry in row["parity"]
    )
    return 1 if failed else 0


def collect(
    device: str,
    budget_seconds: float,
    *,
    out: Path,
    techniques: Iterable[Technique] | None = None,
    compiled: bool = True,
    with_tests: bool = True,
    stylize: Mapping[str, Any] | None = None,
) -> Record:
    """Measure every technique on ``device`` and write the record, anew after each part.

    What the budget leaves out is marked: ``complete`` is False, and each row that was not timed says why.

    Args:
        device: of torch.
        budget_seconds: after it nothing more is started.
        out: the folder; created if absent.
        techniques: catalog rows; default: all.
        compiled: time the compiled layers too.
        with_tests: run the tests that are marked ``gpu`` first.
        stylize: settings of :func:`normtutor.lab.style.compare`; with them the style-transfer networks are
            trained too, in at most an eighth of the budget.

    Returns:
        The record as written.
    """
    start = time.monotonic()
    deadline = start + budget_seconds
    rows = list(TECHNIQUES.values() if techniques is None else techniques)
    by = provenance(COMMAND, device)
    path = out / f"gpu_{re.sub('[^a-z0-9]+', '_', by['device'].lower()).strip('_')}.json"
    record: Record = {
        "kind": "gpu",
        "provenance": by,
        "budget_seconds": budget_seconds,
        "complete": False,
        "tests": {"outcome": "not run"},
        "techniques": {row.name: {"parity": [], "memory": {}, "timings": []} for row in rows},
        "style": None,
        "crossover": None,
    }

    def keep(step: str) -> None:
        record["seconds"] = round(time.monotonic() - start, 1)
        _write(path, record)
        print(f"{record['seconds']:6.0f} s  {step}", flush=True)

    if with_tests:
        record["tests"] = gpu_tests(timeout=0.35 * budget_seconds)
        keep(f"tests: {_tests_text(record['tests'])}")
    measured, on_gpu = True, torch.device(device).type == "cuda"
    for row in rows:
        if time.monotonic() > deadline:
            measured = False
            break
        entry = record["techniques"][row.name]
        # The row's own shapes, and one that a GPU spreads over many blocks.
        for shapes, dtypes, offsets in (
            (row.parity_shapes, (*DTYPES, "float64"), (0.0, 1e2, 1e3, 1e4)),
            (row.bench_shapes[:1], DTYPES[:2], (0.0, 1e3)),
        ):
            report = parity(row, [device], dtypes, offsets, shapes=shapes)
            entry["parity"].append(_parity_entry("eager", report, shapes))
            keep(f"parity of {row.name}: " + report.summary())
        layers = {"eager": row.layer, "torch.nn": row.twin}
        if on_gpu:
            layers["fused"] = partial(_fused, row)
            report = parity(row, [device], DTYPES, (0.0, 1e2, 1e4), layer=layers["fused"])
            entry["parity"].append(_parity_entry("fused", report, row.parity_shapes))
            keep(f"parity of fused {row.name}: " + report.summary())
        x = torch.randn(row.bench_shapes[0], device=device)
        for name, layer in layers.items():
            entry["memory"][name] = memory(layer(row.bench_shapes[0]).to(device), x).to_dict()
        entry["memory_shape"] = list(row.bench_shapes[0])
        del x
    if stylize is not None:
        until = min(deadline, time.monotonic() + budget_seconds / 8)
        norms = {"instance": "instance", "batch": "batch"}
        record["style"] = style.compare(norms, **stylize, device=device, deadline=until)
        measured = measured and record["style"]["steps"] > 0
        keep(f"style transfer: {record['style']['steps']} steps")
    if on_gpu:
        record["crossover"] = crossover(device, deadline)
        keep(f"fused from {record['crossover']['bytes']} bytes on")
    todo = [(dtype, row) for dtype in DTYPES for row in rows]  # float32 of everything before any bfloat16
    for i, (dtype, row) in enumerate(todo):
        now = time.monotonic()
        fair = now + (deadline - now) / (len(todo) - i)
        # The compiler takes seconds for every shape: one small and one large, and not for both halves.
        at = [row.bench_shapes[0], *row.large_shapes[2:3]] if compiled and dtype != "float16" else []
        timings = bench(
            row,
            device=device,
            dtypes=(dtype,),
            shapes=row.bench_shapes + (row.large_shapes if on_gpu else ()),
            compiled=at if on_gpu else at[:1],
            layouts=LAYOUTS if on_gpu else LAYOUTS[:1],
            seconds=2.0 if on_gpu else 0.5,
            rounds=10,
            deadline=fair,
            command=COMMAND,
        )
        record["techniques"][row.name]["timings"].append(timings.to_dict())
        untimed = [timing for timing in timings.rows if timing.reason.startswith("not run: out of time")]
        measured = measured and not untimed
        keep(f"timing of {row.name} in {dtype}" + (f": {len(untimed)} rows left out" if untimed else ""))
    record["complete"] = measured and record["tests"]["outcome"] != "timed out"
    keep(f"recorded in {path.name}" + ("" if record["complete"] else " (partial: the time was up)"))
    return record


def _fused(row: Technique, shape: Shape) -> nn.Module:
    from normtutor import fused  # here, since it imports Triton

    return fused.like(row.layer(shape))


def _parity_entry(candidate: str, report: ParityReport, shapes: Iterable[Shape]) -> Record:
    return {"candidate": candidate} | report.to_dict() | {"shapes": [list(shape) for shape in shapes]}


def crossover(device: str, deadline: float | None = None) -> Record:
    """From which size on the fused LayerNorm is faster than the plain one, for ``fused.SMALL_BYTES``.

    Rows of 1024 float32 elements, 4 KiB to 16 MiB of them, forward and backward, nothing handed over.

    Returns:
        ``bytes``, None where the plain layer is faster to the end, and the ``timings``.
    """
    from normtutor import fused

    handed_over, fused.SMALL_BYTES = fused.SMALL_BYTES, 0
    try:
        timings = bench(
            "layer",
            device=device,
            shapes=[(2**k, 1024) for k in range(13)],
            candidates={"eager": TECHNIQUES["layer"].layer, "fused": partial(_fused, TECHNIQUES["layer"])},
            directions=(BOTH,),
            rounds=10,
            deadline=deadline,
            command=COMMAND,
        )
    finally:
        fused.SMALL_BYTES = handed_over
    return {"bytes": faster_from(timings), "timings": timings.to_dict()}


def faster_from(timings: Timings) -> int | None:
    """The smallest input, in bytes, from which on "fused" is nowhere slower than "eager"."""
    found = None
    rows = timings.select(candidate="fused", captured=False)
    for row in sorted(rows, key=lambda row: math.prod(row.shape), reverse=True):
        (plain,) = timings.select(candidate="eager", captured=False, shape=row.shape)
        if not row.milliseconds <= plain.milliseconds:
            break
        found = math.prod(row.shape) * getattr(torch, row.dtype).itemsize
    return found


def gpu_tests(timeout: float) -> Record:
    """Run the tests that are marked ``gpu``; counts, and the outcome in one word."""
    # Only the files that have one: the others may import what a GPU machine lacks.
    files = [
        p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text(encoding="utf-8")
    ]
    if not files:
        return {"outcome": "not run", "reason": "no tests here: run from the repository's root"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
        ]
        command += [f"--junitxml={report}", *map(str, files)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, timeout=timeout, check=False, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            return {"outcome": "timed out", "timeout_seconds": timeout}
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        names: list[str] = []
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else []
        for case in cases:
            broken = case.find("failure") is not None or case.find("error") is not None
            word = "failed" if broken else "skipped" if case.find("skipped") is not None else "passed"
            counts[word] += 1
            names += [f"{case.get('classname')}.{case.get('name')}"] if broken else []
    if done.returncode not in (0, 1, 5):
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    outcomes = {0: "passed" if counts["passed"] else "not run", 5: "not run"}
    return {"outcome": outcomes.get(done.returncode, "failed"), **counts, "failures": names}


def records(folder: Path | None = None) -> list[Record]:
    """The recorded GPU runs, newest first; an unreadable file is an error, not an absent record."""
    place = resources.files("normtutor") / "results" if folder is None else folder
    found = []
    for entry in place.iterdir() if place.is_dir() else ():
        if entry.name.startswith("gpu_") and entry.name.endswith(".json"):
            found.append(json.loads(entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda record: str(record["provenance"]["date"]), reverse=True)


def recorded_timings(technique: str, folder: Path | None = None) -> list[Timings]:
    """The recorded timings of a technique, newest device first, one :class:`Timings` per dtype."""
    rows = [record["techniques"].get(technique, {"timings": []}) for record in records(folder)]
    return [Timings.from_dict(timing) for row in rows for timing in row["timings"]]


def recorded(technique: str, folder: Path | None = None) -> str:
    """The recorded GPU timings of a technique as text with their provenance, or that there are none."""
    parts = []
    for record in records(folder):
        for entry in record["techniques"].get(technique, {"timings": []})["timings"]:
            parts.append(str(Timings.from_dict(entry)))
        if parts:
            parts.append(_provenance_line(record))
    return "\n\n".join(parts) or NOT_MEASURED


def recorded_style(folder: Path | None = None) -> str:
    """The recorded style transfer at full size as text with its provenance, or that there is none."""
    parts = []
    for record in records(folder):
        measured = record.get("style")
        if measured and measured["steps"]:
            parts += [
                _style_line(measured),
                table(*style.comparison_table(measured)),
                _provenance_line(record),
            ]
    return "\n\n".join(parts) or NOT_MEASURED


def page(folder: Path | None = None) -> str:
    """The book's page of GPU results in Markdown: every record with its provenance, or that there is none."""
    found = records(folder)
    parts = ["# GPU results"]
    if not found:
        parts.append(
            f"{NOT_MEASURED} On a machine with a CUDA device, `{COMMAND}` measures parity, timing and memory "
            "of every technique and records them; this page then shows the record with device and date."
        )
        parts.append(
            "For each technique will stand here: how often our layer agrees with torch's in each dtype, the "
            "times of the plain, the compiled and the fused layer, and the memory each needs. Then from "
            "which size on a fused kernel pays, and style transfer at full size."
        )
        parts.append(
            "Predictions, and what can be checked without a GPU, are in the chapter "
            f"[{CHAPTERS['fused_kernels']}](../../notebooks/fused_kernels.ipynb). CPU timings "
            "are in each technique's chapter, under *Timing*."
        )
    for record in found:
        by = record["provenance"]
        parts += [f"## {by['device']}", _provenance_line(record)]
        if not record["complete"]:
            parts.append("This record is **partial**: the run's time was up before everything was measured.")
        parts.append(f"GPU tests: {_tests_text(record['tests'])}.")
        for name, entry in record["techniques"].items():
            parts.append(f"### {TECHNIQUES[name].title if name in TECHNIQUES else name} on {by['device']}")
            parts += _parity_markdown(entry["parity"]) or [
                f"Parity: {NOT_MEASURED[0].lower()}{NOT_MEASURED[1:]}"
            ]
            parts += _timing_markdown(entry["timings"]) or [
                f"Timing: {NOT_MEASURED[0].lower()}{NOT_MEASURED[1:]}"
            ]
            if entry["memory"]:
                uses = {candidate: MemoryUse(**use) for candidate, use in entry["memory"].items()}
                parts.append(f"Memory, float32 input {number(entry['memory_shape'])}:")
                parts.append(markdown_table(*memory_cells(uses)))
        parts += _crossover_markdown(record.get("crossover"))
        parts.append(f"### Style transfer on {by['device']}")
        measured = record.get("style")
        if measured and measured["steps"]:
            parts += [_style_line(measured), markdown_table(*style.comparison_table(measured))]
        else:
            parts.append(NOT_MEASURED)
    return "\n\n".join(parts) + "\n"


def _crossover_markdown(measured: Record | None) -> list[str]:
    if not measured:
        return []
    found = f"from {size(measured['bytes'])} on" if measured["bytes"] else "at no size that was tried"
    timings = Timings.from_dict(measured["timings"])
    return [
        "### Small tensors",
        f"Launched one by one, forward and backward, the fused LayerNorm beats the plain one {found}.",
        markdown_table(*timings.cells(captured=False)),
    ]


def _style_line(measured: Record) -> str:
    with_ = measured["settings"]
    crop = f"{with_['crop']}×{with_['crop']}"
    return (
        f"Networks of width {with_['width']} on {with_['batch_size']} crops of {crop} per step: "
        f"{measured['steps']} steps of all of them in {measured['seconds']:.0f} s."
    )


def _provenance_line(record: Record) -> str:
    by, versions = record["provenance"], record["provenance"]["versions"]
    named = [
        f"{name} {versions[name]}" for name in ("torch", "cuda", "triton", "python") if versions.get(name)
    ]
    details = [f"driver {by['driver']}"] if by.get("driver") else []
    details += [f"compute capability {by['compute_capability']}"] if by.get("compute_capability") else []
    state = " with uncommitted changes" if by["dirty"] else ""
    return (
        f"Recorded {by['date'][:10]} by `{by['command']}` on {', '.join([by['device'], *details])}; "
        f"{', '.join(named)}; commit {by['commit'][:12]}{state}."
    )


def _tests_text(tests: Record) -> str:
    counts = [f"{tests[word]} {word}" for word in ("passed", "failed", "skipped") if tests.get(word)]
    return ", ".join(counts) if counts else tests["outcome"]


def _parity_markdown(reports: Sequence[Record]) -> list[str]:
    head = ["dtype", "mode", "layout", "offset", "ok", "worst quantity", "ours", "torch", "allowed"]
    parts = []
    for report in reports:
        ok = sum(group["ok"] for group in report["groups"])
        shapes = ", ".join(map(number, report["shapes"]))
        layer = " of the fused layer" if report.get("candidate") == "fused" else ""
        parts.append(
            f"Parity{layer}: {ok} of {report['compared']} comparisons ok, shapes {shapes} (error ≤ "
            f"{report['factor']:g} × torch's + {report['ulps']:g} units in the last place)."
        )
        lines = [
            [number(group[key]) for key in head[:4]]
            + [f"{group['ok']}/{group['compared']}"]
            + [number(group.get(key)) for key in ("quantity", "ours", "torch", "allowed")]
            for group in report["groups"]
        ]
        table = markdown_table(head, lines)
        parts.append(
            f"<details>\n<summary>The comparisons, {len(lines)} lines</summary>\n\n{table}\n\n</details>"
        )
    return parts


def _timing_markdown(entries: Sequence[Record]) -> list[str]:
    parts = []
    for timings in map(Timings.from_dict, entries):
        parts += [f"Timing: {'; '.join(timings.notes())}.", markdown_table(*timings.cells())]
    return parts


def _write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
