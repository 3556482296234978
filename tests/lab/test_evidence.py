"""GPU evidence: what is recorded is shown, what is not recorded is never shown."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from normtutor.catalog import TECHNIQUES, technique
from normtutor.lab import evidence
from normtutor.lab.timing import Timing, Timings

ROW = dataclasses.replace(
    technique("batch"), parity_shapes=((8, 4),), bench_shapes=((2, 4, 8, 8), (8, 4, 8, 8))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record made the way the GPU's is, on the CPU and small."""
    out: Path = tmp_path_factory.mktemp("results") / "new"
    evidence.collect("cpu", 60, out=out, techniques=[ROW], compiled=False, with_tests=False)
    return out


def _record(folder: Path) -> dict[str, Any]:
    (path,) = folder.iterdir()
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_status_2_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.main(["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert "no CUDA device" in error
    assert error.count("\n") == 1


def test_a_run_records_everything_with_its_provenance(folder: Path) -> None:
    record = _record(folder)
    assert record["complete"] is True
    assert record["provenance"]["command"] == "make gpu-evidence"
    entry = record["techniques"]["batch"]
    assert len(entry["parity"]) == 2
    assert all(report["compared"] > 0 for report in entry["parity"])
    assert [timing["rows"][0]["dtype"] for timing in entry["timings"]] == ["float32", "bfloat16", "float16"]
    sizes = {tuple(row["shape"]) for row in entry["timings"][0]["rows"]}
    assert sizes == set(ROW.bench_shapes)  # the large ones are for a GPU
    assert set(entry["memory"]) == {"eager", "torch.nn"}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_large_shapes_fill_64_mib_in_half_precision_and_small_batches_follow(name: str) -> None:
    sizes = [2 * math.prod(shape) for shape in technique(name).large_shapes]
    assert all(64 << 20 <= size < 96 << 20 for size in sizes[:-2])
    assert all(size < 16 << 20 for size in sizes[-2:])


def test_the_plain_layer_is_faster_below() -> None:
    """Fused wins at 4 KiB by chance, loses at 8, wins from 16 on: from 16 KiB on it is nowhere slower."""
    shapes = [(1, 1024), (2, 1024), (4, 1024), (8, 1024)]

    def timing(candidate: str, shape: tuple[int, ...], milliseconds: float) -> Timing:
        return Timing(candidate, shape, "float32", "forward+backward", milliseconds, 1, 1, 10, 1, 1, 1)

    rows = [timing("eager", shape, 1.0) for shape in shapes]
    rows += [timing("fused", shape, t) for shape, t in zip(shapes, (0.9, 1.1, 1.0, 0.5), strict=True)]
    record = Timings("layer", 1.0, 1, 1, "", {}, tuple(rows))
    assert evidence.faster_from(record) == 4 * 1024 * 4
    assert evidence.faster_from(dataclasses.replace(record, rows=tuple(rows[:-1]))) == 4 * 1024 * 4
    slow = tuple(
        dataclasses.replace(row, milliseconds=2.0) if row.candidate == "fused" else row for row in rows
    )
    assert evidence.faster_from(dataclasses.replace(record, rows=slow)) is None


def test_a_spent_budget_leaves_a_record_that_says_so(tmp_path: Path) -> None:
    record = evidence.collect("cpu", 0, out=tmp_path, techniques=[ROW], compiled=False, with_tests=False)
    assert record["complete"] is False
    rows = [row for timing in record["techniques"]["batch"]["timings"] for row in timing["rows"]]
    assert rows
    assert {row["reason"] for row in rows} == {"not run: out of time"}
    assert "This record is **partial**" in evidence.page(tmp_path)


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "bench", cut_off)
    with pytest.raises(KeyboardInterrupt):
        evidence.collect("cpu", 60, out=tmp_path, techniques=[ROW], compiled=False, with_tests=False)
    record = _record(tmp_path)
    assert record["complete"] is False
    assert record["techniques"]["batch"]["parity"]
    assert "Timing: not measured on a GPU yet." in evidence.page(tmp_path)


def test_no_record_no_number(tmp_path: Path) -> None:
    assert evidence.recorded("batch", tmp_path) == "Not measured on a GPU yet."
    assert evidence.recorded_timings("batch", tmp_path / "absent") == []
    page = evidence.page(tmp_path)
    assert "Not measured on a GPU yet." in page
    assert not re.search(r"\d", page)
    assert "(../../notebooks/fused_kernels.ipynb)" in page, "somewhere to go from here"


def test_a_technique_without_record_says_so_beside_one_that_has(folder: Path) -> None:
    assert evidence.recorded("layer", folder) == "Not measured on a GPU yet."


def test_every_shown_number_moves_with_the_record(folder: Path, tmp_path: Path) -> None:
    """Replace every measured number by one that nothing else contains: the page must show only those."""

    def forge(value: object) -> object:
        if isinstance(value, dict):
            return {key: forge(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [forge(inner) for inner in value]
        return 77.0 if isinstance(value, float) else value

    record = _record(folder)
    record["techniques"]["batch"]["timings"] = forge(record["techniques"]["batch"]["timings"])
    (tmp_path / "gpu_forged.json").write_text(json.dumps(record))
    directions = ("| forward |", "| fwd+bwd |")
    lines = [line for line in evidence.page(tmp_path).splitlines() if any(d in line for d in directions)]
    assert len(lines) == 3 * 2 * 2 * 2
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[4:6] == ["77", "77–77"]
        assert cells[8:] == ["77.00", "1"]
    text = evidence.recorded("batch", tmp_path)
    assert "77–77" in text
    assert "0.0" not in text.split("copy bandwidth")[0]


def test_page_and_text_carry_the_provenance(folder: Path) -> None:
    by = _record(folder)["provenance"]
    for text in (evidence.page(folder), evidence.recorded("batch", folder)):
        for part in (
            by["device"],
            by["date"][:10],
            by["commit"][:12],
            by["versions"]["torch"],
            by["command"],
        ):
            assert part in text
    assert evidence.page(folder).startswith("# GPU results\n\n## ")
    assert [timings.technique for timings in evidence.recorded_timings("batch", folder)] == ["batch"] * 3


def test_the_newest_record_comes_first_and_others_are_ignored(folder: Path, tmp_path: Path) -> None:
    record = _record(folder)
    for year, name in ((2030, "gpu_a.json"), (2031, "gpu_b.json")):
        record["provenance"]["date"] = f"{year}-01-01T00:00:00+00:00"
        (tmp_path / name).write_text(json.dumps(record))
    (tmp_path / "claims.json").write_text("{}")
    assert [found["provenance"]["date"][:4] for found in evidence.records(tmp_path)] == ["2031", "2030"]


def test_the_package_holds_only_records_that_can_be_shown() -> None:
    for record in evidence.records():
        assert record["provenance"]["kind"] == "cuda"
    assert evidence.page()


def test_counts_of_the_gpu_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\nmarkers = gpu\n")
    (tmp_path / "tests" / "test_a.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\ndef test_1(): pass\ndef test_2(): assert 0\n"
        "def test_3(): pytest.skip()\n"
    )
    (tmp_path / "tests" / "test_b.py").write_text("import what_a_gpu_machine_lacks\n")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    found = evidence.gpu_tests(timeout=60)
    assert (found["outcome"], found["passed"], found["failed"], found["skipped"]) == ("failed", 1, 1, 1)
    assert found["failures"] == ["tests.test_a.test_2"]
    monkeypatch.setattr(evidence, "ROOT", tmp_path / "nowhere")
    assert evidence.gpu_tests(timeout=60)["outcome"] == "not run"
