"""The fused layers stand in for the plain ones: state, errors, compilation, memory, when they step back."""

import copy
import inspect
import pickle

import pytest
import torch
from test_drop_in import BAD, BOTH, CASES, Case
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from normtutor import fused, layers
from normtutor.kernels import ops
from normtutor.lab import memory

# Where there is a GPU these are its tests too, and run on it.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

BATCH = [
    Case("BatchNorm1d", (6,), (5, 6)),
    Case("BatchNorm2d", (3,), (4, 3, 2, 5)),
    Case("BatchNorm2d", (3,), (4, 3, 2, 5), (("momentum", None), ("eps", 0.3))),
    Case("BatchNorm2d", (3,), (4, 3, 2, 5), (("affine", False), ("track_running_stats", False))),
    Case("BatchNorm3d", (3,), (2, 3, 2, 2, 3), (("bias", False),)),
]
EVERY = CASES + BATCH
ONE_EACH = [
    Case("LayerNorm", (6,), (2, 4, 6)),
    Case("RMSNorm", (6,), (2, 4, 6), (("eps", 1e-6),)),
    Case("GroupNorm", (3, 6), (2, 6, 4, 5)),
    Case("InstanceNorm2d", (3,), (2, 3, 4, 5), BOTH),
    BATCH[1],
]
each = pytest.mark.parametrize("case", ONE_EACH, ids=str)


def twins(case: Case, device: str, **more: object) -> tuple[nn.Module, nn.Module]:
    """The fused and the plain layer with the same random parameters, float32."""
    a = getattr(fused, case.name)(*case.arguments, **dict(case.options), device=device, **more)
    b = getattr(layers, case.name)(*case.arguments, **dict(case.options), device=device, **more)
    with torch.no_grad():
        for p in b.parameters():
            p.normal_()
    a.load_state_dict(b.state_dict())
    return a, b


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_training_then_evaluation_equals_the_plain_layer(case: Case, device: str) -> None:
    torch.manual_seed(0)
    a, b = twins(case, device)
    for training in (True, True, False):
        a.train(training), b.train(training)
        x = (torch.randn(case.shape, device=device) * 3 + 2).requires_grad_()
        z, upstream = x.detach().clone().requires_grad_(), torch.randn(case.shape, device=device)
        assert fused.why(a, x) == ""
        before = x.detach().clone()
        y, expected = a(x), b(z)
        y.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(x.grad, z.grad)
        assert torch.equal(x, before)
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")
        for (name, p), q in zip(a.named_buffers(), b.buffers(), strict=True):
            torch.testing.assert_close(p, q, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_constructor_state_and_representation(case: Case, device: str) -> None:
    a, b = twins(case, device)
    assert inspect.signature(type(a)) == inspect.signature(type(b))
    assert repr(a) == repr(b)
    assert list(a.state_dict()) == list(b.state_dict())
    assert isinstance(a, (type(b), getattr(nn, case.name)))
    for other in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        for key, value in a.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)
    b.load_state_dict(a.state_dict())


@pytest.mark.filterwarnings("ignore:expected 5 channels")
@pytest.mark.parametrize(("case", "options", "x"), BAD, ids=lambda value: str(value)[:40])
def test_errors_are_the_plain_layers(case: Case, options: dict[str, object], x: Tensor, device: str) -> None:
    arguments = dict(case.options) | {"device": device} | options
    with pytest.raises(Exception) as plain:  # noqa: PT011
        getattr(layers, case.name)(*case.arguments, **arguments)(x.to(device))
    with pytest.raises(plain.type) as ours:
        getattr(fused, case.name)(*case.arguments, **arguments)(x.to(device))
    assert str(ours.value) == str(plain.value)


@pytest.mark.parametrize(
    ("residual", "words"),
    [
        (torch.randn(3, 6), r"residual of the input's shape \(2, 6\), got \(3, 6\)"),
        (torch.randn(2, 6).double(), "residual of the input's dtype torch.float32, got torch.float64"),
        (torch.randn(2, 6, device="meta"), "residual of the input's device .*, got meta"),
    ],
)
def test_a_residual_unlike_the_input(residual: Tensor, words: str, device: str) -> None:
    place = residual if residual.is_meta else residual.to(device)
    for layer in (fused.LayerNorm(6, device=device), fused.RMSNorm(6, device=device)):
        with pytest.raises(RuntimeError, match=words):
            layer(torch.randn(2, 6, device=device), place)


def test_why(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fused.LayerNorm(6, device=device), torch.randn(2, 6, device=device)
    assert fused.why(layer, x) == ""
    assert "float64" in fused.why(layer, x.double())
    assert "float64" in fused.why(fused.RMSNorm(6, dtype=torch.float64, device=device), x)
    assert "empty" in fused.why(layer, x[:0])
    assert vmap(lambda v: v if "torch.func" in fused.why(layer, v) else v * torch.nan)(x).isfinite().all()
    monkeypatch.setattr(fused, "SMALL_BYTES", 1000)
    assert "smaller than 1000 bytes" in fused.why(layer, x)
    monkeypatch.setattr(ops, "INTERPRETED", False)
    assert "the kernels run on CUDA devices" in fused.why(layer, x.cpu())
    monkeypatch.setattr(fused, "MISSING", "Triton cannot be imported")
    assert fused.why(layer, x) == "Triton cannot be imported"
    with pytest.raises(TypeError, match=r"expected a layer of normtutor\.fused, got LayerNorm"):
        fused.why(layers.LayerNorm(6), x)


def test_what_is_no_tensor_is_refused_by_name(device: str) -> None:
    layer, x = fused.LayerNorm(6, device=device), torch.randn(2, 6, device=device)
    for wrong in ([1.0, 2.0], None):
        with pytest.raises(TypeError, match=f"expected a tensor, got {type(wrong).__name__}"):
            fused.why(layer, wrong)
        with pytest.raises(TypeError, match=f"expected a tensor, got {type(wrong).__name__}"):
            layer(wrong)
    for function in (fused.LayerNorm(6, device=device), fused.RMSNorm(6, device=device)):
        with pytest.raises(TypeError, match="norm: expected a tensor, got str"):
            function(x, "abc")


@each
def test_the_plain_path_gives_the_plain_layers_numbers(
    case: Case, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = twins(case, device)
    monkeypatch.setattr(fused, "MISSING", "no Triton")
    x = torch.randn(case.shape, device=device)
    assert torch.equal(a(x), b(x))
    a.double(), b.double()
    assert torch.equal(a(x.double()), b(x.double()))
    if case.name in ("LayerNorm", "RMSNorm"):
        y, total = a(x.double(), x.double())
        assert torch.equal(total, 2 * x.double())
        assert torch.equal(y, b(total))


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_a_fused_layer_like_another(case: Case, device: str) -> None:
    torch.manual_seed(0)
    _, plain = twins(case, device)
    theirs = getattr(nn, case.name)(*case.arguments, **dict(case.options), device=device)
    theirs.load_state_dict(plain.state_dict())
    x = torch.randn(case.shape, device=device)
    for layer in (plain, theirs, fused.like(plain)):
        kind, swapped = type(layer), fused.like(layer)
        assert type(swapped) is getattr(fused, case.name)
        assert type(layer) is kind
        for training in (True, False):
            expected = layer.train(training)(x)
            torch.testing.assert_close(swapped.train(training)(x), expected)
        for what in ("named_parameters", "named_buffers"):
            kept, taken = dict(getattr(layer, what)()), dict(getattr(swapped, what)())
            assert list(taken) == list(kept)
            assert all(taken[name] is kept[name] for name in kept)


def test_after_a_swap_the_optimizer_still_trains_the_model(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), layers.LayerNorm(6)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model[0], model[1] = fused.like(model[0]), fused.like(model[1])
    before = [p.detach().clone() for p in model.parameters()]
    (model(torch.randn(5, 6, device=device)) * torch.randn(5, 6, device=device)).sum().backward()
    optimizer.step()
    assert all((p != old).any() for p, old in zip(model.parameters(), before, strict=True))


def test_what_is_set_on_a_layer_is_not_set_on_the_one_it_was_made_from(device: str) -> None:
    plain = layers.LayerNorm(6, device=device)
    swapped = fused.like(plain)
    swapped.weight = None
    swapped.register_forward_hook(lambda *_: None)
    assert plain.weight is not None
    assert not plain._forward_hooks


def test_no_fused_layer_is_like_some() -> None:
    for layer in (nn.Linear(2, 2), layers.AdaptiveBatchNorm(3), nn.SyncBatchNorm(3)):
        with pytest.raises(TypeError, match="no fused layer is like"):
            fused.like(layer)


@each
def test_empty_input(case: Case, device: str) -> None:
    a, _ = twins(case, device)
    x = torch.randn((0, *case.shape[1:]), device=device, requires_grad=True)
    y = a(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in a.parameters())


@each
def test_torch_func_takes_the_plain_path(case: Case, device: str) -> None:
    a, b = (layer.eval() for layer in twins(case, device))
    x = torch.randn(3, *case.shape, device=device)
    torch.testing.assert_close(vmap(a)(x), vmap(b)(x))

    def loss(module: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(module, parameters, (x[0],))
        return output.pow(3).sum()

    found, expected = (grad(lambda p, m=m: loss(m, p))(dict(m.named_parameters())) for m in (a, b))
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key])


@each
def test_a_second_derivative_is_refused_in_words(case: Case, device: str) -> None:
    a, _ = twins(case, device)
    for layer in (a, a.eval()):
        x = torch.randn(case.shape, device=device, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(
            NotImplementedError, match="no second derivative: use the same layer of normtutor"
        ):
            first.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        *(
            Case(kind, (sizes,), (2, 6, 4, 5))
            for kind in ("LayerNorm", "RMSNorm")
            for sizes in (5, (6, 4, 5))
        ),
        Case("GroupNorm", (2, 6), (2, 6, 4, 5)),
        Case("InstanceNorm2d", (6,), (2, 6, 4, 5), BOTH),
        Case("BatchNorm2d", (6,), (2, 6, 4, 5)),
    ],
    ids=str,
)
def test_channels_last_stays(case: Case, training: bool, device: str) -> None:
    a, b = (layer.train(training) for layer in twins(case, device))
    x = torch.randn(case.shape, device=device).contiguous(memory_format=torch.channels_last)
    y = a(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, b(x))
    if case.name == "LayerNorm":
        for result in a(x, x):
            assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@each
def test_compile_fullgraph(case: Case, training: bool, device: str) -> None:
    torch.compiler.reset()
    a, _ = twins(case, device)
    a.train(training)
    plain = copy.deepcopy(a)
    compiled = torch.compile(a, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    for _ in range(2):
        x = torch.randn(case.shape, device=device, requires_grad=True)
        z = x.detach().clone().requires_grad_()
        compiled(x).pow(3).sum().backward()
        plain(z).pow(3).sum().backward()
        torch.testing.assert_close(x.grad, z.grad)
        for p, q in zip(a.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    for p, q in zip(a.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_operators_keep_torchs_rules(device: str) -> None:
    """Schema, fake implementation and autograd registration, as torch.library checks them."""
    x, w = torch.randn(2, 6, 3, device=device), torch.randn(6, device=device)
    wide, last = torch.randn(4, 6, device=device), x.transpose(1, 2).contiguous().transpose(1, 2)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, arguments in (
        (ops.layer_norm, (wide, wide.clone(), w, w.clone(), 1, 1e-5, True)),
        (ops.layer_norm, (wide[:, ::2], None, None, None, 1, 1e-5, False)),
        (ops.channel_norm, (x, w, w.clone(), 2, 1e-5)),
        (ops.channel_norm, (last, w.half(), None, 0, 1e-5)),
        (ops.channel_norm_by, (x[..., ::2], w, w.square(), w.clone(), w.clone(), 1e-5)),
    ):
        arguments = [a.requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
        if op is ops.channel_norm_by:
            arguments[1:3] = (a.detach() for a in arguments[1:3])
        torch.library.opcheck(op, tuple(arguments), test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each
def test_no_more_is_kept_than_by_torch(case: Case, dtype: torch.dtype, device: str) -> None:
    a, _ = twins(case, device, dtype=dtype)
    kind = dtype if device == "cuda" else torch.float32  # on a CPU torch keeps bfloat16 statistics
    theirs = getattr(nn, case.name)(*case.arguments, **dict(case.options), device=device, dtype=kind)
    x = torch.randn(case.shape, device=device, dtype=dtype)
    ours = memory(a, x)
    assert ours.saved_input_bytes == x.nbytes  # the input itself, and no copy of it
    assert ours.saved_bytes <= memory(theirs, x.to(kind)).saved_bytes
