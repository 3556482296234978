"""The fused layers against a wider computation, by the rule of every layer: no worse than torch's own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from normtutor import functional, fused
from normtutor.catalog import Shape, groups
from normtutor.kernels import ops, plan
from normtutor.lab import parity

# Where there is a GPU these are its tests too, and run on it.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

BATCH = {2: fused.BatchNorm1d, 3: fused.BatchNorm1d, 4: fused.BatchNorm2d, 5: fused.BatchNorm3d}
INSTANCE = {3: fused.InstanceNorm1d, 4: fused.InstanceNorm2d, 5: fused.InstanceNorm3d}
LAYERS: dict[str, Callable[[Shape], nn.Module]] = {
    "batch": lambda shape: BATCH[len(shape)](shape[1]),
    "layer": lambda shape: fused.LayerNorm(shape[1:]),
    "rms": lambda shape: fused.RMSNorm(shape[1:], eps=1e-6),
    "instance": lambda shape: INSTANCE[len(shape)](shape[1], affine=True),
    "group": lambda shape: fused.GroupNorm(groups(shape[1]), shape[1]),
}
SHAPE = {  # nothing even, nothing that fills a tile
    "batch": (3, 5, 3, 3),
    "layer": (3, 5, 7),
    "rms": (3, 5, 7),
    "instance": (2, 3, 3, 5),
    "group": (2, 9, 3, 3),  # three groups of three channels
}


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:Mismatch dtype")
@pytest.mark.parametrize(
    ("dtypes", "offsets"),
    [(["float32"], [0, 1e2, 1e4]), (["bfloat16", "float16"], [1e2])],
    ids=["single", "half"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_every_dtype_layout_and_offset(
    name: str, dtypes: list[str], offsets: list[float], device: str
) -> None:
    report = parity(name, [device], dtypes, offsets, layer=LAYERS[name], shapes=[SHAPE[name]], steps=1)
    assert report.ok, report.table(status="failed")


@pytest.mark.parametrize("name", LAYERS)
def test_every_path(name: str, path: str, device: str) -> None:
    """The same small shape as if it were larger than the registers, or than the caches."""
    report = parity(name, [device], ["float32"], [1e4], layer=LAYERS[name], shapes=[SHAPE[name]], steps=1)
    assert report.ok, report.table(status="failed")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("batch", (7, 5)),
        ("batch", (5, 3, 9)),
        ("batch", (2, 3, 2, 3, 3)),
        ("batch", (2, 1, 1, 1)),
        ("layer", (1, 1)),
        ("layer", (3, 1)),
        ("layer", (1, 300)),
        ("rms", (3, 1)),
        ("instance", (1, 1, 2)),
        ("instance", (1, 2, 2, 3, 3)),
        ("group", (2, 6, 1)),
        ("group", (1, 4, 17)),
        ("group", (1, 1, 2, 1, 3)),
    ],
    ids=str,
)
def test_tiny_shapes_and_every_rank(name: str, shape: Shape, device: str) -> None:
    report = parity(name, [device], ["float32"], [0], layer=LAYERS[name], shapes=[shape], steps=2)
    assert report.ok, report.table(status="failed")


def test_the_paths_take_different_kernels(path: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    launch = ops.launch

    def noted(kernel: object, *arguments: object, **constants: object) -> None:
        ran.append(kernel.__name__)  # type: ignore[attr-defined]
        launch(kernel, *arguments, **constants)  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "launch", noted)
    x = torch.randn(2, 4, 5, device=device, requires_grad=True)
    fused.GroupNorm(2, 4, device=device)(x).sum().backward()
    expected = {
        "registers": ["forward", "backward"],
        "loop": ["forward_long", "backward_long"],
        "shared": ["partial_statistics", "combine", "apply", "partial_sums", "apply_backward"],
    }
    assert ran == expected[path]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["batch", "layer", "instance", "group"])
def test_the_rounding_of_a_large_mean_does_no_harm(name: str, last: bool, path: str, device: str) -> None:
    """|mean| is 1e4 deviations, so its rounding is 3e-4 of one: no result is off by 1 % of that."""
    torch.manual_seed(0)
    shape = (2, 6, 5, 7)
    layer = fused.GroupNorm(2, 6) if name == "group" else LAYERS[name](shape)
    for p in layer.parameters():
        nn.init.normal_(p)
    truth = copy.deepcopy(layer).double()
    layer = layer.to(device)
    x = torch.randn(shape, device=device) + 1e4
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    upstream = torch.randn(shape, device=device)
    found = []
    for module, input in ((layer, x), (truth, x.double().cpu())):  # float64 takes the plain path
        y = module(input.requires_grad_())
        grads = torch.autograd.grad(y, [input, *module.parameters()], upstream.to(y))
        found.append([t.double().cpu() for t in (y, *grads)])
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() <= 3e-6 * exact.abs().max()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual(dtype: torch.dtype, centred: bool, path: str, device: str) -> None:
    """Output, sum, and every gradient are those of layer(x + residual), used twice."""
    torch.manual_seed(0)
    layer = (fused.LayerNorm if centred else fused.RMSNorm)(21, eps=1e-5, device=device, dtype=dtype)
    for p in layer.parameters():
        nn.init.normal_(p)
    x, r = (torch.randn(3, 21, device=device).to(dtype).requires_grad_() for _ in range(2))
    g, h = (torch.randn(3, 21, device=device).to(dtype) for _ in range(2))
    y, total = layer(x, r)
    found = torch.autograd.grad((y, total), [x, r, *layer.parameters()], (g, h))
    ulps = 0 if device == "cuda" or dtype == torch.float32 else 1  # Triton's interpreter cuts bfloat16 off
    torch.testing.assert_close(total, x + r, rtol=ulps * torch.finfo(dtype).eps, atol=0)
    if path != "shared":  # which does not add, so the bits may differ
        assert torch.equal(y, layer(total))
    wide = [t.detach().double().requires_grad_() for t in (total, *layer.parameters())]
    expected = (
        functional.layer_norm(wide[0], (21,), wide[1], wide[2], 1e-5)
        if centred
        else functional.rms_norm(wide[0], (21,), wide[1], 1e-5)
    )
    grads = torch.autograd.grad((expected, wide[0]), wide, (g.double(), h.double()))
    truth = [expected, grads[0], grads[0], *grads[1:]]
    for ours, theirs in zip([y, *found], truth, strict=True):
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error <= 4 * torch.finfo(dtype).eps, (error, dtype)


def test_only_the_sum_is_used(device: str) -> None:
    x, r = (torch.randn(3, 5, device=device, requires_grad=True) for _ in range(2))
    _, total = fused.LayerNorm(5, device=device)(x, r)
    total.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(r.grad, torch.ones_like(x))


def test_rows_in_another_order_are_not_copied(device: str) -> None:
    """(T, B, C) seen as (B, T, C): its rows are whole, so the output has the input's strides."""
    x = torch.randn(3, 2, 5, device=device).transpose(0, 1)
    layer = fused.LayerNorm(5, device=device)
    y = layer(x)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, functional.layer_norm(x, (5,)))
    x = x.detach().requires_grad_()
    z = x.detach().clone().requires_grad_()
    upstream = torch.randn(2, 3, 5, device=device)
    layer(x).backward(upstream)
    functional.layer_norm(z, (5,)).backward(upstream)
    torch.testing.assert_close(x.grad, z.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same_every_time(name: str, path: str, device: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](SHAPE[name]).to(device)
    x = torch.randn(SHAPE[name], device=device, requires_grad=True)
    g = torch.randn(SHAPE[name], device=device)
    runs = [torch.autograd.grad(layer(x), [x, *layer.parameters()], g) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", ["layer", "rms", "instance", "group"])
def test_a_bad_sample_stays_alone(name: str, path: str, device: str) -> None:
    """inf in one sample reaches no other, though tiles hold several and have lanes to spare."""
    layer = LAYERS[name](SHAPE[name]).to(device)
    x = torch.randn(SHAPE[name], device=device)
    clean = layer(x)
    x[0] = float("inf")
    y = layer(x)
    assert torch.equal(y[1:], clean[1:])
    assert y[0].isnan().any()


def test_a_constant_set_gives_the_bias(path: str, device: str) -> None:
    x = torch.full((2, 4, 5, 5), 1e4, device=device)
    for layer in (
        fused.GroupNorm(2, 4),
        fused.InstanceNorm2d(4),
        fused.BatchNorm2d(4),
        fused.LayerNorm((4, 5, 5)),
    ):
        assert torch.equal(layer.to(device)(x), torch.zeros_like(x))


def test_a_first_tile_unlike_the_rest(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pivot of the loops is the first tile's mean: its rest lies 1e4 deviations away, and is right."""
    monkeypatch.setattr(plan, "FORWARD_TILE", 4)
    monkeypatch.setattr(plan, "BLOCK_TILE", 16)
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 1)
    torch.manual_seed(0)
    x = torch.randn(2, 200, device=device)
    x[:, :16] += 1e4
    y = fused.LayerNorm(200, device=device)(x)
    truth = functional.layer_norm(x.double(), (200,))
    theirs = nn.functional.layer_norm(x, (200,))
    error, allowed = ((v.double() - truth).abs().max() / truth.abs().max() for v in (y, theirs))
    assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps
