"""The pure functions: the values of the formula, and clear errors."""

import inspect

import pytest
import torch
import torch.nn.functional as torch_functional

from normtutor import functional, layers
from normtutor.catalog import TECHNIQUES


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


@pytest.mark.parametrize("name", [row.function.__name__ for row in TECHNIQUES.values()])
def test_signature_is_torch_functionals(name: str) -> None:
    ours = inspect.signature(getattr(functional, name)).parameters
    theirs = inspect.signature(getattr(torch_functional, name)).parameters
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


IMAGE = torch.randn(2, 6, 4, 5)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("layer_norm", {}, TypeError, "missing"),
        ("layer_norm", {"normalized_shape": 5}, TypeError, "layer_norm: .* sequence of sizes, got 5"),
        ("layer_norm", {"normalized_shape": []}, RuntimeError, "at least one axis"),
        (
            "layer_norm",
            {"normalized_shape": [6]},
            RuntimeError,
            r"last sizes are \(6,\), got .*\(2, 6, 4, 5\)",
        ),
        (
            "layer_norm",
            {"normalized_shape": [1, 2, 6, 4, 5]},
            RuntimeError,
            r"last sizes are \(1, 2, 6, 4, 5\)",
        ),
        (
            "layer_norm",
            {"normalized_shape": [5], "weight": ONE},
            RuntimeError,
            r"weight of shape \(5,\).*\(3,\)",
        ),
        ("layer_norm", {"normalized_shape": [5], "bias": torch.ones(1, 5)}, RuntimeError, r"bias.*\(1, 5\)"),
        ("layer_norm", {"normalized_shape": [5], "eps": -1e-3}, ValueError, "non-negative, got -0.001"),
        ("layer_norm", {"normalized_shape": [5], "eps": None}, TypeError, "eps must be a number, got None"),
        ("layer_norm", {"normalized_shape": [5], "input": IMAGE.long()}, NotImplementedError, "int64"),
        ("rms_norm", {"normalized_shape": 5}, TypeError, "rms_norm: .* sequence of sizes, got 5"),
        ("rms_norm", {"normalized_shape": [6]}, RuntimeError, r"last sizes are \(6,\)"),
        ("rms_norm", {"normalized_shape": [1, 2, 6, 4, 5]}, ValueError, r"last sizes are \(1, 2, 6, 4, 5\)"),
        ("rms_norm", {"normalized_shape": [5], "weight": ONE}, RuntimeError, r"weight of shape \(5,\)"),
        (
            "rms_norm",
            {"normalized_shape": [5], "weight": torch.ones(5).long()},
            RuntimeError,
            "weight of dtype",
        ),
        ("rms_norm", {"normalized_shape": [5], "eps": -1e-3}, ValueError, "non-negative"),
        ("rms_norm", {"normalized_shape": [5], "input": IMAGE.cfloat()}, NotImplementedError, "complex64"),
        ("group_norm", {"num_groups": 4}, RuntimeError, r"divisor of the 6 channels .*\(2, 6, 4, 5\), got 4"),
        ("group_norm", {"num_groups": 0}, RuntimeError, "divisor of the 6 channels .* got 0"),
        ("group_norm", {"num_groups": -2}, RuntimeError, "got -2"),
        ("group_norm", {"num_groups": 2, "input": ONE}, RuntimeError, r"\(N, C, \*\), got shape \(3,\)"),
        ("group_norm", {"num_groups": 2, "weight": ONE}, RuntimeError, r"weight of shape \(6,\)"),
        ("group_norm", {"num_groups": 2, "eps": -1e-3}, ValueError, "non-negative"),
        (
            "group_norm",
            {"num_groups": 3, "input": X[:1]},
            ValueError,
            r"more than 1 value per group.*\(1, 3\)",
        ),
        ("group_norm", {"num_groups": 2, "input": IMAGE.long()}, NotImplementedError, "int64"),
        ("instance_norm", {"input": X}, ValueError, r"more than 1 value per sample and channel.*\(4, 3\)"),
        ("instance_norm", {"input": ONE, "use_input_stats": False}, IndexError, r"\(N, C, \*\)"),
        ("instance_norm", {"use_input_stats": False}, RuntimeError, "defined without use_input_stats"),
        ("instance_norm", {"use_input_stats": False, "running_mean": ONE}, RuntimeError, "defined without"),
        ("instance_norm", {"running_mean": torch.ones(6)}, ValueError, "both or neither"),
        (
            "instance_norm",
            {"running_mean": ONE, "running_var": ONE},
            RuntimeError,
            r"running_mean of .*\(6,\)",
        ),
        ("instance_norm", {"weight": ONE}, RuntimeError, r"weight of shape \(6,\)"),
        ("instance_norm", {"bias": torch.ones(6).double()}, RuntimeError, "bias of dtype torch.float32"),
        ("instance_norm", {"momentum": None}, TypeError, "instance_norm: momentum must be a number"),
        ("instance_norm", {"momentum": -0.1}, ValueError, "between 0 and 1"),
        ("instance_norm", {"eps": -1e-3}, ValueError, "non-negative"),
        ("instance_norm", {"input": IMAGE.long()}, NotImplementedError, "int64"),
        ("weight_norm", {"v": X, "g": ONE}, RuntimeError, r"g of shape \(4, 1\)"),
        ("weight_norm", {"v": X, "g": ONE.view(1, 3).double(), "dim": 1}, RuntimeError, "g of dtype"),
        ("weight_norm", {"v": X, "g": ONE, "dim": 2}, IndexError, r"between -2 and 1 .*\(4, 3\), got 2"),
        ("weight_norm", {"v": X.long(), "g": ONE}, NotImplementedError, "int64"),
    ],
)
def test_bad_input_of_the_others(
    name: str, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given = arguments if name == "weight_norm" else {"input": IMAGE, **arguments}
    with pytest.raises(error, match=message):
        getattr(functional, name)(**given)


def test_zero_is_a_fine_eps_without_running_statistics() -> None:
    """As in torch: var > 0 for what varies."""
    for y in (
        functional.layer_norm(IMAGE, [4, 5], eps=0.0),
        functional.group_norm(IMAGE, 2, eps=0.0),
        functional.instance_norm(IMAGE, eps=0),
    ):
        torch.testing.assert_close(y.var(dim=(1, 2, 3), correction=0), torch.ones(2))


def test_rms_norm_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # mean squares 12.5 and 2
    y = functional.rms_norm(x, [2], weight=torch.tensor([1.0, 10.0]), eps=0.0)
    expected = torch.tensor([[3 / 12.5**0.5, 40 / 12.5**0.5], [0.0, 20 / 2**0.5]])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(functional.rms_norm(x[1:], [2], eps=2.0), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rms_norms_default_eps_is_that_of_the_computation(dtype: torch.dtype) -> None:
    x = torch.full((1, 4), 1e-4, dtype=dtype)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    y = functional.rms_norm(x, [4])
    torch.testing.assert_close(y.double(), x.double() / (x.double() ** 2 + eps).sqrt(), rtol=8e-3, atol=0)
    if dtype in (torch.float32, torch.float64):  # in half precision older torch means another ε
        torch.testing.assert_close(y, torch_functional.rms_norm(x, [4]))


def test_group_norm_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0, 10.0, 30.0]])  # groups (1, 3) and (10, 30)
    y = functional.group_norm(x, 2, torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.ones(4), eps=0.0)
    torch.testing.assert_close(y, torch.tensor([[0.0, 2.0, -1.0, 3.0]]))


@pytest.mark.parametrize("dim", [0, 1, -2, 2, None, -1])
def test_weight_norm_is_torchs_and_its_gradient_orthogonal_to_v(dim: int | None) -> None:
    v = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    shape = [n if d == (dim or 0) % 3 else 1 for d, n in enumerate(v.shape)] if dim not in (None, -1) else []
    g = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    w = functional.weight_norm(v, g, dim)
    torch.testing.assert_close(w, torch._weight_norm(v, g, -1 if dim is None else dim))
    grad_w = torch.randn_like(w)
    grad_v, grad_g = torch.autograd.grad(w, (v, g), grad_w)
    length = functional.weight_length(v, dim)
    others = [d for d in range(3) if not shape or shape[d] == 1]
    torch.testing.assert_close(grad_g, (grad_w * v / length).sum(others, keepdim=bool(shape)))  # equation 3
    torch.testing.assert_close(grad_v, g / length * grad_w - g * grad_g / length**2 * v)
    assert (grad_v * v).sum(others).abs().max() < 1e-12


def test_weight_norm_of_half_precision_is_computed_in_float32() -> None:
    v = torch.full((1, 4096), 16.0, dtype=torch.float16)  # ‖v‖² is beyond the range of float16
    w = functional.weight_norm(v, torch.ones(1, 1, dtype=torch.float16))
    assert w.dtype == torch.float16
    torch.testing.assert_close(w, torch.full_like(w, 1 / 64))


def test_bad_input_leaves_the_buffers_alone() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        functional.batch_norm(X[:1], mean, var, training=True)
    assert torch.equal(mean, ZERO)
    assert torch.equal(var, ONE)


def test_no_torch_normalization_operator_is_called() -> None:
    """DESIGN: F.*_norm and native_*_norm are not for us. Seen in what runs, not in the text."""
    from torch.utils._python_dispatch import TorchDispatchMode

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
        layers.InstanceNorm1d(3, track_running_stats=True)(torch.randn(2, 3, 4))
        weight = layers.WeightNormConv2d(2, 3, 2)
        weight(weight_input := torch.randn(2, 2, 4, 4)).sum().backward()
        weight.initialize(weight_input)
        weight.to_plain()
    assert "aten.rsqrt.default" in called  # the recorder sees the inside of the layers
    assert not [name for name in called if "norm" in name]
