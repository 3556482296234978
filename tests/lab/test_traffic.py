"""Counted traffic: passes that a reader can count by hand. Kernels are counted in tests/kernels."""

import pytest
import torch
from torch import nn

from normtutor import functional
from normtutor.lab import traffic

X = torch.randn(64, 256)


@pytest.mark.parametrize(
    ("call", "passes"),
    [
        (lambda: X + X, 3),  # an operation reads each of its inputs
        (lambda: X.clone(), 2),
        (lambda: X.mul(2.0), 2),
        (lambda: X.sum(), 1),
        (lambda: torch.empty_like(X).copy_(X), 2),  # what is overwritten is not read
        (lambda: torch.zeros(64, 256), 1),
        (lambda: torch.empty(64, 256), 0),
        (lambda: torch.ones_like(X), 1),
        (lambda: X.new_zeros(64, 256), 1),
        (lambda: X.t().view(256, 64)[3:].unsqueeze(0), 0),
        (lambda: X[:1].expand(64, 256).sum(), 1 / 64),  # one row exists, however often it is seen
        (lambda: X.bfloat16(), 1.5),
    ],
)  # fmt: skip
def test_passes(call: object, passes: float) -> None:
    assert traffic(call).passes(X) == pytest.approx(passes, abs=1e-3)  # type: ignore[arg-type]


def test_in_place_reads_and_writes() -> None:
    y = X.clone()
    counted = traffic(lambda: y.add_(1.0))
    assert (counted.read, counted.written) == (y.numel() * 4, y.numel() * 4)


def test_a_backward_pass_is_counted_too() -> None:
    layer, x = nn.LayerNorm(256), X.clone().requires_grad_()
    forward = traffic(lambda: layer(x))
    both = traffic(lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), X))
    assert [move.name for move in forward.moves] == ["native_layer_norm"]
    assert forward.passes(x) == pytest.approx(2, abs=0.05)
    assert both.passes(x) == pytest.approx(5, abs=8 / 64)  # γ, β and their gradients are 1/64 each


def test_the_readable_layer_moves_several_times_what_it_must() -> None:
    counted = traffic(lambda: functional.layer_norm(X, (256,)))
    assert counted.passes(X) > 4 * 2
    assert str(counted).splitlines()[-1].startswith(f"{len(counted.moves)} together")


def test_nothing_is_counted_after_an_error() -> None:
    with pytest.raises(RuntimeError):
        traffic(lambda: X + torch.zeros(3))
    assert traffic(lambda: None).moves == ()
