"""The pure functions: the values of the formula, and clear errors."""

import inspect

import pytest
import torch
import torch.nn.functional as torch_functional

from normtutor import functional


def test_standardize_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    x_hat, mean, var = functional.standardize(x, dim=[0], eps=0.0)
    assert torch.equal(mean, torch.tensor([[3.0, 5.0]]))
    assert torch.equal(var, torch.tensor([[4.0, 4.0]]))  # biased: (2² + 2²) / 2
    assert torch.allclose(x_hat, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_half_precision_statistics_are_accumulated_in_float32() -> None:
    x = torch.full((4096, 1), 3.0, dtype=torch.float16)
    x[::2] = 1.0  # the sum, 8192, is beyond what float16 counts in ones
    _, mean, var = functional.standardize(x, dim=[0], eps=0.0)
    assert mean.dtype == var.dtype == torch.float32
    assert mean.item() == 2.0
    assert var.item() == 1.0


def test_signature_is_torch_functionals() -> None:
    ours = inspect.signature(functional.batch_norm).parameters
    theirs = inspect.signature(torch_functional.batch_norm).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_momentum_may_be_a_tensor() -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    by_number = torch.zeros(3).double(), torch.ones(3).double()
    by_tensor = torch.zeros(3).double(), torch.ones(3).double()
    functional.batch_norm(x, *by_number, training=True, momentum=0.25)
    functional.batch_norm(x, *by_tensor, training=True, momentum=torch.tensor(0.25))
    assert torch.equal(torch.stack(by_number), torch.stack(by_tensor))
    assert torch.allclose(by_tensor[0], 0.25 * x.mean(0))


X = torch.randn(4, 3)
ZERO, ONE = torch.zeros(3), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": torch.randn(3)}, IndexError, r"\(N, C, \*\), got shape \(3,\)"),
        ({"input": torch.ones(4, 3, dtype=torch.long)}, NotImplementedError, "floating-point.*int64"),
        ({"input": torch.ones(4, 3, dtype=torch.complex64)}, NotImplementedError, "complex64"),
        ({"running_mean": None, "running_var": None}, RuntimeError, "must be defined outside training"),
        ({"running_var": None}, RuntimeError, "must be defined outside training"),
        ({"running_var": None, "training": True}, ValueError, "both or neither"),
        ({"running_mean": torch.zeros(4)}, RuntimeError, r"running_mean of shape \(3,\).*got shape \(4,\)"),
        ({"weight": torch.ones(2)}, RuntimeError, r"weight of shape \(3,\).*got shape \(2,\)"),
        ({"bias": torch.ones(3, device="meta")}, RuntimeError, "bias on the input's device cpu, got meta"),
        ({"input": X.double()}, RuntimeError, "dtype torch.float64, got torch.float32"),
        ({"input": X.half(), "weight": ONE.bfloat16()}, RuntimeError, "weight of dtype torch.float16"),
        ({"training": True, "eps": 0.0}, ValueError, "positive in training, got 0"),
        ({"eps": -1e-3}, ValueError, "non-negative, got -0.001"),
        ({"momentum": -0.1}, ValueError, "between 0 and 1, got -0.1"),
        ({"momentum": 1.5}, ValueError, "between 0 and 1, got 1.5"),
        ({"momentum": None}, TypeError, "a number, got None"),
        ({"input": X[:1], "training": True}, ValueError, r"more than 1 value per channel.*\(1, 3\)"),
    ],
)
def test_bad_input(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.batch_norm(**{"input": X, "running_mean": ZERO, "running_var": ONE, **arguments})


def test_bad_input_leaves_the_buffers_alone() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        functional.batch_norm(X[:1], mean, var, training=True)
    assert torch.equal(mean, ZERO)
    assert torch.equal(var, ONE)


def test_no_torch_normalization_operator_is_called() -> None:
    """DESIGN: var_mean is fine; F.*_norm and native_*_norm are not. Seen in what runs, not in the text."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from normtutor.catalog import TECHNIQUES

    called: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.add(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        for row in TECHNIQUES.values():
            for shape in row.parity_shapes:
                x = torch.randn(shape, requires_grad=True)
                layer = row.layer(shape)
                layer(x).sum().backward()
                layer.eval()(x)
    assert "aten.var_mean.correction" in called  # the recorder sees the inside of the layers
    assert not [name for name in called if "norm" in name]
