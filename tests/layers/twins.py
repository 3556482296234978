"""A layer of ours beside torch's: what "drop-in" asks of every technique."""

import torch
from torch import nn


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], msg=lambda m, key=key: f"{key}: {m}")


def assert_trains_and_evaluates_alike(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> None:
    """Three steps of training and one evaluation, float64: outputs, gradients, buffers; no input changed."""
    for step in range(4):
        if step == 3:
            a.eval(), b.eval()
        x = (torch.randn(shape, dtype=torch.float64) * 3 + 2).requires_grad_()
        z = x.detach().clone().requires_grad_()
        upstream = torch.randn(shape, dtype=torch.float64)
        before = x.detach().clone()
        y, expected = a(x), b(z)
        y.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(x.grad, z.grad)
        assert torch.equal(x, before)
        assert_same_state(a, b)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
