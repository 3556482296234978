"""The yardstick: right by hand, right against plain formulas, exact where the mean is large."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from normtutor.lab import standardization

FAMILY = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3)}


def test_a_hand_computed_row() -> None:
    found = standardization(np.array([[1.0, 2.0, 3.0, 6.0]]), (1,), 0.5)
    assert found.mean.item() == 3
    assert found.var.item() == 3.5  # (4 + 1 + 0 + 9) / 4
    assert found.count == 4
    assert found.output.ravel().tolist() == [-1, -0.5, 0, 1.5]  # (x − 3) / √(3.5 + 0.5)


@pytest.mark.parametrize("axes", FAMILY.values(), ids=FAMILY)
def test_gradients_are_those_of_the_formula(axes: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(3, 4, 2, 5, generator=random, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(1, 4, 1, 1, generator=random, dtype=torch.float64) for _ in range(2))
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    centred = x - x.mean(axes, keepdim=True)
    y = weight * centred / (centred.square().mean(axes, keepdim=True) + 1e-3).sqrt() + bias
    y.backward(dy)
    found = standardization(*(t.detach().numpy() for t in (x,)), axes, 1e-3, *_numpy(weight, bias, dy))
    np.testing.assert_allclose(found.output.astype(float), y.detach().numpy(), rtol=0, atol=1e-14)
    for got, leaf in zip((found.grad_input, found.grad_weight, found.grad_bias), leaves, strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(np.asarray(got, float), leaf.grad.numpy(), rtol=0, atol=1e-13)


def test_without_the_mean_it_is_the_root_mean_square() -> None:
    x, weight, dy = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    x.add_(2)
    leaves = [tensor.requires_grad_() for tensor in (x, weight)]
    y = weight * x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt()
    y.backward(dy)
    arrays = _numpy(x, weight, dy)
    found = standardization(arrays[0], (1,), 1e-3, arrays[1], grad_output=arrays[2], centred=False)
    np.testing.assert_allclose(found.output.astype(float), y.detach().numpy(), rtol=0, atol=1e-14)
    for got, leaf in zip((found.grad_input, found.grad_weight), leaves, strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(np.asarray(got, float), leaf.grad.numpy(), rtol=0, atol=1e-13)
    assert not found.mean.any()


def test_given_statistics_are_constants() -> None:
    x, dy = np.array([[1.0, 5.0]]), np.array([[2.0, -1.0]])
    found = standardization(x, (1,), 0.0, grad_output=dy, statistics=(np.array(3.0), np.array(4.0)))
    assert found.output.ravel().tolist() == [-1, 1]
    assert found.grad_input is not None
    assert found.grad_input.ravel().tolist() == [1, -0.5]


def test_variance_survives_a_mean_a_billion_times_the_deviation() -> None:
    values = 1e9 + np.random.default_rng(0).standard_normal(50)
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / 50
    variance = sum((value - mean) ** 2 for value in exact) / 50
    found = standardization(values, (0,), 0.0)
    assert abs(Fraction(float(found.var.item())) / variance - 1) < Fraction(1, 10**15)


def _numpy(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]
