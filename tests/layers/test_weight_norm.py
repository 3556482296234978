"""The weight-normalized layers: torch's parametrization by other means, and what it lacks."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from normtutor.layers import (
    WeightNormConv1d,
    WeightNormConv2d,
    WeightNormConvTranspose1d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
)

# Layer, arguments, options, input
LAYERS = [
    (WeightNormLinear, (3, 4), {}, (5, 3)),
    (WeightNormLinear, (3, 4), {"bias": False}, (2, 5, 3)),
    (WeightNormConv1d, (4, 6, 3), {"padding": "same", "groups": 2}, (2, 4, 9)),
    (WeightNormConv2d, (4, 6, 3), {"stride": 2, "padding": 1, "padding_mode": "reflect"}, (2, 4, 7, 9)),
    (WeightNormConv2d, (4, 6, 3), {"dilation": 2, "bias": False}, (4, 7, 9)),
    (WeightNormConvTranspose1d, (4, 6, 3), {"stride": 2, "output_padding": 1}, (2, 4, 7)),
    (WeightNormConvTranspose2d, (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 5, 6)),
]
every = pytest.mark.parametrize(("kind", "arguments", "options", "shape"), LAYERS)
DIMS = [0, 1, -2, None, -1]


def twins(
    kind: type, arguments: tuple[int, ...], options: dict[str, object], dim: int | None = 0
) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's parametrized layer in float64, with different parameters."""
    ours = kind(*arguments, **options, dim=dim, dtype=torch.float64)
    return ours, weight_norm(kind.plain(*arguments, **options, dtype=torch.float64), dim=dim)


def randomize(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()


@pytest.mark.parametrize("dim", DIMS)
@every
def test_output_gradients_and_state_are_torchs(
    kind: type,
    arguments: tuple[int, ...],
    options: dict[str, object],
    shape: tuple[int, ...],
    dim: int | None,
) -> None:
    a, b = twins(kind, arguments, options, dim)
    randomize(b)
    a.load_state_dict(b.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(a(x), b(x))
    torch.testing.assert_close(a.weight, b.weight)
    a(x).pow(2).sum().backward()
    b(x).pow(2).sum().backward()
    theirs = b.parametrizations.weight
    torch.testing.assert_close(a.weight_g.grad, theirs.original0.grad)
    torch.testing.assert_close(a.weight_v.grad, theirs.original1.grad)
    randomize(a)
    b.load_state_dict(a.state_dict())  # torch's layer takes our names
    torch.testing.assert_close(a(x), b(x))


@every
def test_a_new_layer_is_the_plain_one_with_g_the_length_of_v(
    kind: type, arguments: tuple[int, ...], options: dict[str, object], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    plain = kind.plain(*arguments, **options)
    torch.manual_seed(0)
    layer = kind(*arguments, **options)
    assert set(dict(layer.named_parameters())) == {"weight_g", "weight_v"} | (
        {"bias"} if options.get("bias", True) else set()
    )
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), plain(x))
    assert repr(layer) == f"WeightNorm{repr(plain)[:-1]}, dim=0)"
    randomize(layer)
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), plain(x))


@every
def test_plain_layer_for_inference(
    kind: type, arguments: tuple[int, ...], options: dict[str, object], shape: tuple[int, ...]
) -> None:
    layer = kind(*arguments, **options, dtype=torch.float64).eval()
    randomize(layer)
    before, random_state = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    plain = layer.to_plain()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert type(plain) is kind.plain
    assert not plain.training
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(plain(x), layer(x))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@every
def test_data_dependent_initialization(
    kind: type, arguments: tuple[int, ...], options: dict[str, object], shape: tuple[int, ...]
) -> None:
    ungrouped = {**options, "groups": 1} if kind.output_axis else options
    layer = kind(*arguments, **ungrouped, dim=kind.output_axis)
    x = torch.randn(shape) * 3 + 5
    v = layer.weight_v.clone()
    y = layer.initialize(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, layer(x).detach())
    channel = -1 if kind is WeightNormLinear else y.dim() - layer.weight_v.dim() + 1
    values = y.movedim(channel, 0).flatten(1)
    torch.testing.assert_close(values.var(1, correction=0), torch.ones(len(values)))
    if options.get("bias", True):
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values)), atol=1e-5, rtol=0)
    assert torch.equal(layer.weight_v, v)


def test_a_deep_network_initialized_layer_by_layer_has_unit_outputs() -> None:
    network = [WeightNormLinear(32, 32) for _ in range(6)]
    x = torch.randn(256, 32)
    for layer in network:
        y = layer.initialize(x)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(32))
        x = torch.relu(y)


def test_initialization_needs_one_g_per_output_and_outputs_that_vary() -> None:
    for layer, x in (
        (WeightNormLinear(3, 3, dim=1), torch.randn(8, 3)),
        (WeightNormLinear(3, 4, dim=None), torch.randn(8, 3)),
        (WeightNormConvTranspose2d(4, 4, 2), torch.randn(2, 4, 5, 5)),
        (WeightNormConvTranspose2d(4, 6, 2, groups=2, dim=1), torch.randn(2, 4, 5, 5)),
    ):
        with pytest.raises(ValueError, match=r"expected one g for each of the \d outputs"):
            layer.initialize(x)
    layer = WeightNormLinear(3, 4)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"vary over the input, but \[0, 1, 2, 3\] do not"):
        layer.initialize(torch.randn(1, 3))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("dim", [0, None])
def test_a_zero_direction_is_an_error_instead_of_nan(dim: int | None) -> None:
    layer = WeightNormLinear(3, 4, dim=dim)
    state = copy.deepcopy(layer.state_dict())
    state["weight_v"][1 if dim == 0 else slice(None)] = 0
    before = layer.weight_v.clone()
    with pytest.raises(ValueError, match=r"v = 0: 1 of (4|1) directions of a v of shape \(4, 3\)"):
        layer.load_state_dict(state)
    assert torch.equal(layer.weight_v, before)
    network = nn.Sequential(WeightNormLinear(3, 4, dim=dim))
    theirs = weight_norm(nn.Linear(3, 4), dim=dim)
    theirs.load_state_dict(state)
    with pytest.raises(ValueError, match="v = 0"):
        network.load_state_dict(nn.Sequential(theirs).state_dict())
    with torch.no_grad():
        layer.weight_v.zero_()
    for action in (layer.to_plain, lambda: layer.initialize(torch.randn(5, 3))):
        with pytest.raises(ValueError, match="v = 0"):
            action()

    class Zero(WeightNormLinear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self._parameters["weight"])

    with pytest.raises(ValueError, match="v = 0: 4 of 4"):
        Zero(3, 4)


def test_bad_dim_as_torchs() -> None:
    for dim in (2, -3):
        with pytest.raises(IndexError):
            weight_norm(nn.Linear(3, 4), dim=dim)
        with pytest.raises(IndexError, match=f"between -2 and 1 .* got {dim}"):
            WeightNormLinear(3, 4, dim=dim)


def test_pickle_deepcopy_and_torch_save() -> None:
    """torch's parametrized layers cannot be pickled."""
    layer = WeightNormConv2d(2, 3, 2, dim=1)
    x = torch.randn(1, 2, 4, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = WeightNormConv2d(2, 3, 2, dim=1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), layer(x))


def test_inside_a_network_and_the_callers_state_dict_stays_whole() -> None:
    theirs = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.ReLU(), weight_norm(nn.Linear(4, 2)))
    ours = nn.Sequential(WeightNormLinear(3, 4), nn.ReLU(), WeightNormLinear(4, 2))
    state = theirs.state_dict()
    keys = list(state)
    ours.load_state_dict(state)
    assert list(state) == keys
    x = torch.randn(5, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    del state["2.parametrizations.weight.original0"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "2.weight_g"'):
        ours.load_state_dict(state)


@every
def test_compile_and_export(
    kind: type, arguments: tuple[int, ...], options: dict[str, object], shape: tuple[int, ...]
) -> None:
    torch.compiler.reset()
    layer = kind(*arguments, **options, dtype=torch.float64)
    plain = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).pow(2).sum().backward()
    plain(x).pow(2).sum().backward()
    torch.testing.assert_close(layer.weight_v.grad, plain.weight_v.grad)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_torch_func_and_double_backward() -> None:
    layer, theirs = twins(WeightNormLinear, (3, 4), {})
    layer.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, values, (x,)).pow(3).sum()

    found = torch.func.grad(loss)(parameters)
    layer(x).pow(3).sum().backward()
    for name, value in found.items():
        torch.testing.assert_close(value, parameters[name].grad)
    vs = torch.randn(2, 4, 3, dtype=torch.float64)
    outputs = torch.func.vmap(lambda v: torch.func.functional_call(layer, {"weight_v": v}, (x,)))(vs)
    assert outputs.shape == (2, 5, 4)

    def of_v(v: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight_v": v}, (x,))

    v = layer.weight_v.detach().requires_grad_()
    assert torch.autograd.gradcheck(of_v, (v,))
    assert torch.autograd.gradgradcheck(of_v, (v,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_autocast_and_meta(dtype: torch.dtype) -> None:
    layer = WeightNormLinear(3, 4, dtype=dtype)
    assert layer.weight.dtype == layer(torch.randn(5, 3, dtype=dtype)).dtype == dtype
    layer.initialize(torch.randn(64, 3, dtype=dtype))
    layer.reset_parameters()
    assert layer.to_plain().weight.dtype == dtype
    with torch.autocast("cpu", dtype):
        assert WeightNormLinear(3, 4)(torch.randn(5, 3)).dtype == dtype
    on_meta = WeightNormConv2d(3, 4, 2, device="meta")
    on_meta.load_state_dict(WeightNormConv2d(3, 4, 2).state_dict(), assign=True)
    assert on_meta(torch.randn(1, 3, 4, 4)).isfinite().all()
