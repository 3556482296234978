"""The instruments and every technique on a CUDA device: ``make test-gpu``."""

import pytest
import torch

from normtutor.catalog import TECHNIQUES, technique
from normtutor.lab import bench, machine, memory, parity, provenance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_parity(name: str) -> None:
    report = parity(name, devices=["cuda"])
    assert report.ok, report.table(status="failed")
    assert {row.device for row in report.rows} == {"cuda"}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_parity_over_many_blocks(name: str) -> None:
    row = technique(name)
    report = parity(row, ["cuda"], ["float32", "bfloat16"], [0, 1e3], shapes=row.bench_shapes[:1])
    assert report.ok, report.table(status="failed")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_candidate_is_timed(name: str) -> None:
    shape = technique(name).bench_shapes[0]
    timings = bench(name, device="cuda", shapes=[shape], compiled=True, seconds=0.1)
    candidates = {row.candidate for row in timings.rows}
    assert candidates >= {"eager", "fused", "torch.nn", "compiled", "torch.nn compiled"}
    ours = [row for row in timings.rows if row.candidate in ("eager", "fused", "torch.nn")]
    assert not [row.reason for row in ours if row.reason]
    # Faster than any memory would mean that the clock missed the work.
    assert all(0 < row.fraction < 2 for row in timings.rows if row.bytes > 64 << 20)


def test_the_cache_is_overwritten_between_repeats() -> None:
    from normtutor.lab.timing import _Stopwatch

    stopwatch = _Stopwatch(torch.device("cuda"))
    assert stopwatch._flush is not None
    assert stopwatch._flush.numel() >= 2 * machine.last_level_cache(torch.device("cuda"))[0]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_peak_memory_holds_the_output_at_least(name: str) -> None:
    row = technique(name)
    x = torch.randn(row.bench_shapes[0], device="cuda")
    use = memory(row.layer(row.bench_shapes[0]).to("cuda"), x)
    assert use.peak_bytes is not None
    assert use.peak_bytes >= x.nbytes


def test_provenance_names_the_gpu() -> None:
    found = provenance("make test-gpu")
    assert found["kind"] == "cuda"
    assert found["device"] == torch.cuda.get_device_name()
    assert found["driver"]
