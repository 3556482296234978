"""The benchmark compares like with like, counts the right bytes, and says what it did not time."""

import json
import math
import time

import pytest
import torch
from torch import Tensor, nn

from normtutor.catalog import technique
from normtutor.lab import Timings, bench
from normtutor.lab.timing import compulsory_bytes

ROW = technique("batch")
SHAPE = (4, 8, 6, 6)


class Logged(nn.BatchNorm2d):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__(SHAPE[1])
        self.name, self.log = name, log

    def forward(self, input: Tensor) -> Tensor:
        self.log.append(self.name)
        return super().forward(input)


@pytest.fixture(scope="module")
def timings() -> Timings:
    return bench("batch", device="cpu", shapes=[SHAPE, (2, 8, 4, 4)], seconds=0.01)


def test_every_candidate_runs_forward_and_backward(timings: Timings) -> None:
    cases = {(row.candidate, row.direction, row.shape) for row in timings.rows}
    assert len(cases) == len(timings.rows) == 2 * 2 * 2
    assert all(row.rounds >= 3 and row.low <= row.milliseconds <= row.high for row in timings.rows)
    assert all(row.fraction == pytest.approx(row.bandwidth / timings.copy_bandwidth) for row in timings.rows)


def test_candidates_take_turns_on_the_same_tensor() -> None:
    log: list[str] = []
    bench(
        "batch",
        device="cpu",
        shapes=[SHAPE],
        candidates={name: (lambda shape, name=name: Logged(name, log)) for name in "abc"},
        directions=["forward"],
        seconds=0,
        rounds=4,
    )
    assert log[:2] == ["a", "a"]  # the warm-ups first
    assert log[-12:] == ["a", "b", "c"] * 4


def test_bytes_are_counted_by_pass() -> None:
    numbers = math.prod(SHAPE) * 4
    small, large = 10 * numbers, numbers - 1  # caches that hold the tensor, and that do not
    assert compulsory_bytes(ROW, SHAPE, 4, "forward", small) == 2 * numbers
    assert compulsory_bytes(ROW, SHAPE, 4, "forward+backward", small) == 5 * numbers
    assert compulsory_bytes(ROW, SHAPE, 4, "forward", large) == 3 * numbers
    assert compulsory_bytes(ROW, SHAPE, 4, "forward+backward", large) == 8 * numbers
    assert compulsory_bytes(ROW, SHAPE, 2, "forward", small) == numbers


def test_what_cannot_be_compiled_gets_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object, **__: object) -> nn.Module:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", no_compiler)
    found = bench("batch", device="cpu", shapes=[SHAPE, (2, 8, 4, 4)], compiled=[SHAPE], seconds=0)
    compiled = found.select(candidate="compiled")
    assert [row.shape for row in compiled] == [SHAPE, SHAPE]  # only where it was asked for
    compiled += found.select(candidate="torch.nn compiled")
    assert len(compiled) == 4
    assert all(row.reason == "RuntimeError: No working C++ compiler found" for row in compiled)
    assert all(math.isnan(row.milliseconds) for row in compiled)
    assert not any(row.reason for row in found.rows if "compiled" not in row.candidate)
    assert "No working C++ compiler found" in str(found)
    assert math.isnan(found.ratio("compiled"))


def test_a_tensor_that_does_not_fit_is_not_allocated() -> None:
    found = bench("batch", device="cpu", shapes=[(10**6, 1000, 100, 100)], seconds=0)
    assert all(row.reason.startswith("not run: needs") for row in found.rows)


def test_after_the_deadline_nothing_starts() -> None:
    found = bench("batch", device="cpu", shapes=[SHAPE], seconds=0, deadline=time.monotonic())
    assert {row.reason for row in found.rows} == {"not run: out of time"}


def test_ratio_is_of_medians_side_by_side(timings: Timings) -> None:
    ours, theirs = (
        timings.select(candidate=name, shape=SHAPE, direction="forward")[0] for name in ("eager", "torch.nn")
    )
    expected = ours.milliseconds / theirs.milliseconds
    assert timings.ratio("eager", shape=SHAPE, direction="forward") == pytest.approx(expected)
    assert timings.ratio("torch.nn") == 1


def test_the_record_brings_back_the_table(timings: Timings) -> None:
    record = json.loads(json.dumps(timings.to_dict(), allow_nan=False))
    assert str(Timings.from_dict(record)) == str(timings)
    assert record["provenance"]["device"] in str(timings)


def test_the_table_does_not_call_the_least_bytes_moved(timings: Timings) -> None:
    """Eager moves several times what is counted here: the column is a bound, and the note says so."""
    assert " least " in str(timings).splitlines()[0]
    assert "least: the bytes that any implementation must move" in str(timings)


def test_buffers_and_global_state_are_left_alone() -> None:
    state = torch.random.get_rng_state()
    bench("batch", device="cpu", shapes=[SHAPE], seconds=0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="unknown direction 'backward'"):
        bench("batch", device="cpu", directions=["backward"])
    with pytest.raises(ValueError, match="floating-point dtypes"):
        bench("batch", device="cpu", dtypes=["int8"])
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="device 'cuda' is not here: torch sees cpu"):
            bench("batch", device="cuda")
