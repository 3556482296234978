"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm stand in for torch's wherever torch's own work."""

import copy
import inspect
import io
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from twins import assert_same_state, assert_trains_and_evaluates_alike

from normtutor import layers


@dataclass(frozen=True)
class Case:
    """A layer of ours and torch's, made with the same arguments, and an input that both take."""

    name: str
    arguments: tuple[object, ...]
    shape: tuple[int, ...] = ()
    options: tuple[tuple[str, object], ...] = ()

    def ours(self, **more: object) -> nn.Module:
        return getattr(layers, self.name)(*self.arguments, **dict(self.options), **more)

    def theirs(self, **more: object) -> nn.Module:
        return getattr(nn, self.name)(*self.arguments, **dict(self.options), **more)

    def twins(self, **more: object) -> tuple[nn.Module, nn.Module]:
        """Both in float64, with the same random parameters."""
        a, b = self.ours(dtype=torch.float64, **more), self.theirs(dtype=torch.float64, **more)
        with torch.no_grad():
            for p in b.parameters():
                p.normal_()
        a.load_state_dict(b.state_dict())
        return a, b

    def __str__(self) -> str:
        return f"{self.name}{self.arguments}{dict(self.options) or ''}{self.shape}"


AFFINE = (("affine", True),)
TRACKED = (("track_running_stats", True),)
BOTH = AFFINE + TRACKED
LAYER = [
    Case("LayerNorm", (6,), (4, 6)),
    Case("LayerNorm", ([4, 6],), (2, 3, 4, 6)),
    Case("LayerNorm", (torch.Size([6]),), (2, 4, 6)),
    Case("LayerNorm", (6,), (4, 6), (("bias", False),)),
    Case("LayerNorm", (6,), (6,), (("elementwise_affine", False),)),
    Case("LayerNorm", ((3, 4, 6),), (2, 3, 4, 6), (("eps", 0.3),)),
]
RMS = [
    Case("RMSNorm", (6,), (4, 6)),
    Case("RMSNorm", ((4, 6),), (2, 3, 4, 6), (("eps", 0.3),)),
    Case("RMSNorm", ([6],), (2, 4, 6), (("elementwise_affine", False),)),
]
GROUP = [
    Case("GroupNorm", (3, 6), (4, 6)),
    Case("GroupNorm", (2, 6), (2, 6, 5)),
    Case("GroupNorm", (6, 6), (2, 6, 4, 5)),
    Case("GroupNorm", (1, 6), (2, 6, 4, 5), (("affine", False),)),
    Case("GroupNorm", (2, 6), (2, 6, 4, 5), (("bias", False), ("eps", 0.3))),
    Case("GroupNorm", (3, 6), (2, 6, 2, 3, 4)),
]
INSTANCE = [
    Case("InstanceNorm1d", (3,), (4, 3, 5)),
    Case("InstanceNorm1d", (3,), (3, 5), BOTH),
    Case("InstanceNorm2d", (3,), (2, 3, 4, 5), AFFINE),
    Case("InstanceNorm2d", (3,), (2, 3, 4, 5), (*BOTH, ("bias", False))),
    Case("InstanceNorm2d", (3,), (2, 3, 4, 5), (*BOTH, ("momentum", 0.7), ("eps", 0.3))),
    Case("InstanceNorm2d", (3,), (2, 3, 4, 5), (*BOTH, ("momentum", None))),
    Case("InstanceNorm2d", (3,), (3, 4, 5), BOTH),
    Case("InstanceNorm3d", (3,), (2, 3, 2, 3, 4), TRACKED),
    Case("InstanceNorm3d", (3,), (3, 2, 3, 4), AFFINE),
]
CASES = LAYER + RMS + GROUP + INSTANCE
# One of each kind, with everything that it can learn and keep.
ONE_EACH = [LAYER[1], RMS[1], GROUP[1], Case("InstanceNorm2d", (3,), (2, 3, 4, 5), BOTH)]
each = pytest.mark.parametrize("case", ONE_EACH, ids=str)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_then_evaluation_equals_torch(case: Case) -> None:
    a, b = case.twins()
    assert_trains_and_evaluates_alike(a, b, case.shape)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_constructor_representation_and_a_new_layers_state_are_torchs(case: Case) -> None:
    ours, theirs = case.ours(), case.theirs()
    a, b = inspect.signature(type(ours)).parameters, inspect.signature(type(theirs)).parameters
    kept = [n for n in a if n in b]  # older torch has no `bias` on GroupNorm and InstanceNorm
    assert kept == list(b)
    assert [a[n].default for n in kept] == [b[n].default for n in kept]
    assert list(inspect.signature(ours.forward).parameters) == list(
        inspect.signature(theirs.forward).parameters
    )
    assert repr(ours) == repr(theirs)
    assert_same_state(ours, theirs)


@each
def test_checkpoints_load_both_ways(case: Case) -> None:
    a, b = case.twins()
    x = torch.randn(case.shape, dtype=torch.float64)
    b(x)
    a.load_state_dict(b.state_dict())
    assert_same_state(a, b)
    with torch.no_grad():
        for p in a.parameters():
            p.add_(1)
    a(x)
    b.load_state_dict(a.state_dict())
    assert_same_state(a, b)


@each
def test_pickle_deepcopy_and_torch_save(case: Case) -> None:
    layer = case.ours()
    layer(torch.randn(case.shape))
    with torch.no_grad():
        layer.weight.add_(1)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_state(other, layer)
        assert repr(other) == repr(layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = case.ours()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(fresh, layer)
    fresh.reset_parameters()
    assert_same_state(fresh, case.ours())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["float32", "half"])
@each
def test_half_precision(case: Case, parameters: str, dtype: torch.dtype) -> None:
    layer = case.ours(dtype=dtype if parameters == "half" else torch.float32)
    exact = case.ours(dtype=torch.float64)
    x = torch.randn(case.shape, dtype=dtype) * 300 + 1000  # squares beyond the range of float16
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact(x.double()).to(dtype))
    assert layer.weight.dtype == (dtype if parameters == "half" else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each
def test_autocast_gives_torchs_dtype(case: Case, dtype: torch.dtype) -> None:
    x = torch.randn(case.shape)
    with torch.autocast("cpu", dtype):
        for value in (x, x.to(dtype)):
            assert case.ours()(value).dtype == case.theirs()(value).dtype == value.dtype


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("case", "memory_format"),
    [
        (Case("GroupNorm", (2, 6), (2, 6, 4, 5)), torch.channels_last),
        (Case("GroupNorm", (6, 6), (2, 6, 4, 5)), torch.channels_last),
        (Case("GroupNorm", (1, 6), (2, 6, 4, 5)), torch.channels_last),
        (Case("GroupNorm", (2, 6), (2, 6, 2, 4, 5)), torch.channels_last_3d),
        (Case("InstanceNorm2d", (6,), (2, 6, 4, 5), BOTH), torch.channels_last),  # here torch loses it
        (Case("InstanceNorm3d", (6,), (2, 6, 2, 4, 5), BOTH), torch.channels_last_3d),
        (Case("LayerNorm", (5,), (2, 6, 4, 5)), torch.channels_last),
        (Case("RMSNorm", ((6, 4, 5),), (2, 6, 4, 5)), torch.channels_last),
    ],
    ids=str,
)
def test_channels_last_stays(case: Case, memory_format: torch.memory_format, training: bool) -> None:
    layer = case.ours().train(training)
    x = torch.randn(case.shape)
    y = layer(x.to(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, case.ours().train(training)(x))


@pytest.mark.parametrize("training", [True, False])
@each
def test_strided_input(case: Case, training: bool) -> None:
    x = torch.randn(*case.shape, 2)[..., 0].transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not x.is_contiguous()
    layer = case.ours().train(training)
    torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x.contiguous()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        (LAYER[0], (0, 6)),
        (Case("LayerNorm", (0,), (4, 0)), (4, 0)),
        (RMS[0], (0, 6)),
        (Case("RMSNorm", (0,), (4, 0)), (4, 0)),
        (GROUP[1], (0, 6, 5)),
        (GROUP[1], (2, 6, 0)),
        (Case("InstanceNorm2d", (3,), (0,), TRACKED), (0, 3, 4, 5)),
        (Case("InstanceNorm2d", (3,), (0,), BOTH), (0, 3, 4, 5)),
        (Case("InstanceNorm2d", (3,), (0,), BOTH), (2, 3, 0, 5)),
    ],
    ids=str,
)
def test_empty_input(case: Case, shape: tuple[int, ...], training: bool) -> None:
    """As an empty batch leaves every layer: no NaN, gradients 0, statistics untouched (torch's turn NaN)."""
    layer = case.ours().train(training)
    before = copy.deepcopy(layer)
    x = torch.randn(shape, requires_grad=True)
    with warnings.catch_warnings(action="error"):
        y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert y is not x  # as documented, a new tensor
    assert_same_state(layer, before)
    for p in layer.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))


@pytest.mark.parametrize("training", [True, False])
@each
def test_compile_fullgraph(case: Case, training: bool) -> None:
    torch.compiler.reset()
    layer = case.ours(dtype=torch.float64).train(training)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(case.shape, dtype=torch.float64, requires_grad=True)
        z = x.detach().clone().requires_grad_()
        compiled(x).pow(3).sum().backward()
        plain(z).pow(3).sum().backward()
        torch.testing.assert_close(x.grad, z.grad)
    assert_same_state(layer, plain)


@each
def test_export(case: Case) -> None:
    layer = case.ours().eval()
    x = torch.randn(case.shape)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch.export.export(case.ours(), (x,))  # training: InstanceNorm's buffers move


@each
def test_torch_func(case: Case) -> None:
    x = torch.randn(case.shape, dtype=torch.float64)
    layer, theirs = case.twins()

    def loss(module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(module, {**parameters, **buffers}, (x,))
        return output.pow(3).sum()

    grads = [
        grad(lambda p, b, m=module: loss(m, p, b))(
            dict(module.named_parameters()), dict(copy.deepcopy(module).named_buffers())
        )
        for module in (layer, theirs)
    ]
    assert grads[0].keys() == grads[1].keys() > set()
    for key, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][key])
    layer.eval()
    xs = torch.randn(5, *case.shape, dtype=torch.float64)
    torch.testing.assert_close(vmap(layer)(xs), torch.stack([layer(x) for x in xs]))
    tangent = torch.randn_like(x)
    _, forward = jvp(layer, (x,), (tangent,))
    _, reverse = torch.autograd.functional.vjp(lambda x: layer(x), x, forward)
    torch.testing.assert_close((reverse * tangent).sum(), forward.square().sum())


@pytest.mark.parametrize("case", [*ONE_EACH[:3], Case("InstanceNorm1d", (3,), (2, 3, 4))], ids=str)
def test_gradcheck_and_double_backward(case: Case) -> None:
    layer = case.twins()[0]
    x = torch.randn(case.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


X = torch.randn(2, 6, 4, 5)
BAD = [
    (Case("LayerNorm", (6,)), {}, X),
    (Case("LayerNorm", ((2, 6, 4, 5),)), {}, X[0]),
    (Case("LayerNorm", (5,)), {}, torch.ones(2, 5, dtype=torch.long)),
    (Case("LayerNorm", (5,)), {}, torch.ones(2, 5, dtype=torch.complex64)),
    (Case("LayerNorm", (5,)), {}, X.double()),
    (Case("LayerNorm", (5,)), {"dtype": torch.bfloat16}, X),
    (Case("LayerNorm", (5,)), {"device": "meta"}, X),
    (Case("LayerNorm", (5,)), {"eps": None}, X),
    (Case("RMSNorm", (6,)), {}, X),
    (Case("RMSNorm", ((2, 6, 4, 5),)), {}, X[0]),
    (Case("RMSNorm", (5,)), {}, torch.ones(2, 5, dtype=torch.long)),
    (Case("RMSNorm", (5,)), {"device": "meta"}, X),
    (Case("GroupNorm", (2, 6)), {}, X[0, 0, 0]),
    (Case("GroupNorm", (2, 8)), {}, X),
    (Case("GroupNorm", (4, 8)), {"affine": False}, X),
    (Case("GroupNorm", (6, 6)), {}, X[:1, :, :1, :1]),
    (Case("GroupNorm", (2, 6)), {}, torch.ones(2, 6, 4, dtype=torch.long)),
    (Case("GroupNorm", (2, 6)), {}, torch.ones(2, 6, 4, dtype=torch.complex64)),
    (Case("GroupNorm", (2, 6)), {}, X.double()),
    (Case("GroupNorm", (2, 6)), {"dtype": torch.bfloat16}, X),
    (Case("GroupNorm", (2, 6)), {"device": "meta"}, X),
    (Case("InstanceNorm2d", (6,)), {}, X[0, 0]),
    (Case("InstanceNorm2d", (6,)), {}, X[None]),
    (Case("InstanceNorm1d", (6,)), {}, X),
    (Case("InstanceNorm3d", (6,)), {}, X[0]),
    (Case("InstanceNorm2d", (5,), (), AFFINE), {}, X),
    (Case("InstanceNorm2d", (5,), (), AFFINE), {}, X[0]),
    (Case("InstanceNorm2d", (5,), (), TRACKED), {}, X),
    (Case("InstanceNorm2d", (6,)), {}, X[:, :, :1, :1]),
    (Case("InstanceNorm2d", (6,)), {}, X[0, :, :1, :1]),
    (Case("InstanceNorm2d", (6,)), {}, torch.ones(2, 6, 4, 5, dtype=torch.long)),
    (Case("InstanceNorm2d", (6,), (), AFFINE), {}, X.double()),
    (Case("InstanceNorm2d", (6,), (), AFFINE), {"dtype": torch.bfloat16}, X),
    (Case("InstanceNorm2d", (6,), (), AFFINE), {"device": "meta"}, X),
]


@pytest.mark.filterwarnings("ignore:input's size at dim", "ignore:expected 5 channels")
@pytest.mark.parametrize(("case", "options", "x"), BAD, ids=lambda value: str(value)[:40])
def test_torch_raises_the_same_types(case: Case, options: dict[str, object], x: Tensor) -> None:
    """Drop-in for code that catches: on the bad inputs that torch rejects, the exception type is torch's."""
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        case.theirs(**options)(x)
    with pytest.raises(theirs.type):
        case.ours(**options)(x)


def test_bad_arguments_of_constructors_as_torchs() -> None:
    for name in ("LayerNorm", "RMSNorm"):
        for sizes in (2.5, "6", None, (3, -1)):
            with pytest.raises(Exception) as theirs:  # noqa: PT011
                getattr(nn, name)(sizes)
            with pytest.raises(theirs.type):
                getattr(layers, name)(sizes)
    with pytest.raises(ValueError, match=r"num_groups must divide num_channels \(6\), got 4"):
        layers.GroupNorm(4, 6)
    for wrong in (0, -2):  # torch: ZeroDivisionError, and nothing until the first forward pass
        with pytest.raises(ValueError, match=f"got {wrong}"):
            layers.GroupNorm(wrong, 6)
    with pytest.raises(ValueError, match="InstanceNorm2d: momentum must be between 0 and 1, got 2"):
        layers.InstanceNorm2d(3, momentum=2.0)


# What only one of them has


def test_rms_norm_takes_any_floating_weight_as_torch_does() -> None:
    x = torch.randn(4, 6)
    for dtype in (torch.bfloat16, torch.float64):
        ours, theirs = layers.RMSNorm(6, eps=1e-6, dtype=dtype), nn.RMSNorm(6, eps=1e-6, dtype=dtype)
        with torch.no_grad():
            theirs.weight.normal_()
        ours.load_state_dict(theirs.state_dict())
        assert ours(x).dtype == torch.float32
        torch.testing.assert_close(ours(x), theirs(x))


def test_rms_norm_ignores_scale_and_feels_a_shift() -> None:
    layer = layers.RMSNorm(6, eps=1e-12)
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(7 * x), layer(x))
    assert not torch.allclose(layer(x + 1), layer(x))
    torch.testing.assert_close(layer(x).square().mean(-1), torch.ones(4))


def test_one_group_and_as_many_groups_as_channels() -> None:
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(layers.GroupNorm(1, 6)(x), layers.LayerNorm((6, 4, 5))(x))
    torch.testing.assert_close(layers.GroupNorm(6, 6)(x), layers.InstanceNorm2d(6)(x))


def test_instance_norm_keeps_its_counter_at_0_and_averages_over_the_batch() -> None:
    layer = layers.InstanceNorm2d(3, track_running_stats=True, momentum=1.0)
    x = torch.randn(5, 3, 4, 4, requires_grad=True) * 2 + 1
    layer(x)
    assert layer.num_batches_tracked == 0
    torch.testing.assert_close(layer.running_mean, x.mean((2, 3)).mean(0))
    torch.testing.assert_close(layer.running_var, x.var((2, 3)).mean(0))  # unbiased
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_instance_norm_in_evaluation_takes_one_value_per_channel() -> None:
    layer = layers.InstanceNorm2d(3, track_running_stats=True).eval()
    x = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(layer(x), nn.InstanceNorm2d(3, track_running_stats=True).eval()(x))


def test_instance_norm_toggled_after_construction_as_torchs() -> None:
    case = Case("InstanceNorm2d", (3,), (2, 3, 4, 5), BOTH)
    a, b = case.twins()
    x = torch.randn(case.shape, dtype=torch.float64)
    a.track_running_stats = b.track_running_stats = False
    for training in (True, False):
        a.train(training), b.train(training)
        torch.testing.assert_close(a(x), b(x))
        assert_same_state(a, b)


def test_instance_norm_keeps_statistics_of_another_dtype() -> None:
    """torch takes a float64 input with float32 statistics, since it has no parameter to quarrel with."""
    ours, theirs = (
        layers.InstanceNorm2d(3, track_running_stats=True),
        nn.InstanceNorm2d(3, track_running_stats=True),
    )
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    assert_same_state(ours, theirs)
    assert ours.running_mean.dtype == torch.float32


def test_code_that_asks_for_torchs_class_finds_ours() -> None:
    for case in CASES:
        assert isinstance(case.ours(), getattr(nn, case.name))


def test_another_number_of_channels_is_a_warning_where_nothing_is_kept() -> None:
    x = torch.randn(2, 5, 4, 4)
    for module in (layers, nn):
        with pytest.warns(UserWarning, match="num_features"):
            assert module.InstanceNorm2d(3)(x).shape == x.shape
    with pytest.raises(ValueError, match=r"expected 3 channels \(num_features\), got 5"):
        layers.InstanceNorm2d(3, affine=True)(x)


def test_checkpoints_from_before_torch_0_4() -> None:
    old = {"running_mean": torch.full((3,), 2.0), "running_var": torch.full((3,), 3.0)}
    for module in (layers, nn):
        with pytest.raises(RuntimeError, match=r"(?s)running_mean.*track_running_stats=False"):
            module.InstanceNorm2d(3).load_state_dict(old)
        tracked = module.InstanceNorm2d(3, track_running_stats=True)
        tracked.load_state_dict(old)
        assert tracked.running_mean[0] == 2
        assert tracked.num_batches_tracked == 0
    assert list(old) == ["running_mean", "running_var"]  # the caller's dict is whole
    recent = nn.InstanceNorm2d(3, track_running_stats=True).state_dict()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"running_mean"'):
        layers.InstanceNorm2d(3).load_state_dict(recent)
