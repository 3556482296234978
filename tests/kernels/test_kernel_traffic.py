"""What the kernels load and store, counted in the interpreter: the passes that the catalog promises."""

from functools import partial

import pytest
import torch

from normtutor import fused
from normtutor.kernels import ops, plan
from normtutor.lab import traffic

pytestmark = pytest.mark.skipif(not ops.INTERPRETED, reason="loads are counted in the interpreter only")

X = torch.randn(16, 512)


def test_a_row_is_read_once_and_written_once() -> None:
    counted = traffic(lambda: fused.layer_norm(X, (512,)))
    (move,) = counted.moves
    assert (move.name, move.programs) == ("forward", 4)
    assert move.written == X.numel() * 4 + 2 * 16 * 4  # and mean and rstd of each row
    assert move.read == X.numel() * 4 + 16 * 4  # and the first element again


def test_half_precision_moves_half() -> None:
    full, half = (traffic(partial(fused.rms_norm, x, (512,), None, 1e-6)) for x in (X, X.bfloat16()))
    assert half.read == full.read / 2
    assert half.written - 16 * 4 == (full.written - 16 * 4) / 2


def test_masked_lanes_do_not_count() -> None:
    x = torch.randn(4, 300)
    counted = traffic(lambda: fused.rms_norm(x, (300,), None, 1e-6))
    assert counted.read == x.numel() * 4


def test_a_backward_pass_reads_two_tensors_and_writes_one() -> None:
    x = X.clone().requires_grad_()
    y = fused.layer_norm(x, (512,))
    counted = traffic(lambda: torch.autograd.grad(y, x, X))
    assert [move.name for move in counted.moves] == ["backward"]
    assert counted.passes(x) == pytest.approx(3, abs=0.05)


def test_the_residual_saves_a_pass() -> None:
    apart = traffic(lambda: fused.rms_norm(X + X, (512,), None, 1e-6))
    together = traffic(lambda: fused.add_rms_norm(X, X, (512,), None, 1e-6))
    assert apart.passes(X) == pytest.approx(5, abs=0.05)
    assert together.passes(X) == pytest.approx(4, abs=0.05)


def test_shared_sets_are_read_twice_and_the_torch_code_between_kernels_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(plan, "BLOCK_TILE", 128)
    x = torch.randn(4, 2, 32, 32, requires_grad=True)
    y = fused.batch_norm(x, None, None, training=True)
    forward = traffic(lambda: fused.batch_norm(x.detach(), None, None, training=True))
    assert [move.name for move in forward.moves] == ["partial_statistics", "combine", "apply"]
    assert forward.passes(x) == pytest.approx(3, abs=0.2)
    backward = traffic(lambda: torch.autograd.grad(y, x, torch.ones_like(x)))
    names = [move.name for move in backward.moves]
    assert {"partial_sums", "sum", "apply_backward"} <= set(names)
    assert backward.passes(x) == pytest.approx(6, abs=0.5)  # 5, and the ones
