"""The fused layers on a CUDA device at real sizes: ``make test-gpu``, with the tests beside this one."""

from collections.abc import Callable

import pytest
import torch
from test_fused_parity import LAYERS
from torch import Tensor, nn

from normtutor import functional, fused
from normtutor.catalog import TECHNIQUES, Shape
from normtutor.lab import memory, parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = [
    (4096, 256),
    (2048, 1000),
    (1000, 4096),
    (500, 8192),
    (257, 16384),
    (257, 32768),
    (133, 65536),
    (7, 1 << 18),
]


def needs(gibibytes: float) -> None:
    if torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_parity_at_the_catalogs_shapes(name: str) -> None:
    row = TECHNIQUES[name]
    report = parity(row, ["cuda"], ["float32", "bfloat16", "float16"], layer=LAYERS[name])
    assert report.ok, report.table(status="failed")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_parity_over_many_programs(name: str) -> None:
    row = TECHNIQUES[name]
    shapes = row.bench_shapes[:1]
    report = parity(row, ["cuda"], ["float32", "bfloat16"], [0, 1e4], layer=LAYERS[name], shapes=shapes)
    assert report.ok, report.table(status="failed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows_of_every_width(shape: tuple[int, int], offset: float, dtype: torch.dtype) -> None:
    """LayerNorm and RMSNorm from 256 to 262,144 wide, on every path, against the same in float64."""
    for layer in (fused.LayerNorm(shape[1]), fused.RMSNorm(shape[1], eps=1e-6)):
        _judge(layer.cuda(), shape, offset, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(32, 64, 56, 56), (64, 128, 14, 14), (128, 512, 7, 7), (2, 32, 257, 255), (1, 16, 1024, 1024)],
    ids=str,
)
def test_images(shape: Shape, last: bool, dtype: torch.dtype) -> None:
    for layer in (
        fused.BatchNorm2d(shape[1]),
        fused.GroupNorm(8, shape[1]),
        fused.InstanceNorm2d(shape[1], affine=True),
        fused.BatchNorm2d(shape[1]).eval(),
    ):
        _judge(layer.cuda(), shape, 1e2, dtype, last)


def _judge(layer: nn.Module, shape: Shape, offset: float, dtype: torch.dtype, last: bool = False) -> None:
    """Output and gradients: no further from float64 than 2 × torch's layer plus 4 units in the last place."""
    random = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(generator=random)
    layer = layer.to(dtype)
    x = (torch.randn(shape, device="cuda", generator=random) + offset).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    upstream = torch.randn(shape, device="cuda", generator=random).to(dtype)
    assert fused.why(layer, x) == ""
    theirs = next(c for c in type(layer).__mro__ if c.__module__.startswith("torch.nn"))
    twin = theirs(*_arguments(layer)).to("cuda", dtype).train(layer.training)
    twin.load_state_dict(layer.state_dict())
    wide = theirs(*_arguments(layer)).to("cuda", torch.float64).train(layer.training)
    wide.load_state_dict(layer.state_dict())
    results = []
    for module, kind in ((layer, dtype), (twin, dtype), (wide, torch.float64)):
        input = x.to(kind).requires_grad_()
        y = module(input)
        results.append([y, *torch.autograd.grad(y, [input, *module.parameters()], upstream.to(kind))])
    for ours, its, truth in zip(*results, strict=True):
        size = truth.abs().max()
        error, allowed = ((v.double() - truth).abs().max() / size for v in (ours, its))
        assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps, (type(layer).__name__, ours.shape)


def _arguments(layer: nn.Module) -> tuple[object, ...]:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups, layer.num_channels, layer.eps
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return layer.normalized_shape, layer.eps
    return layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same_every_time(name: str) -> None:
    shape = TECHNIQUES[name].bench_shapes[0]
    layer = LAYERS[name](shape).cuda()
    x, g = torch.randn(shape, device="cuda", requires_grad=True), torch.randn(shape, device="cuda")
    first, *others = [torch.autograd.grad(layer(x), [x, *layer.parameters()], g) for _ in range(5)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_cuda_graph(name: str) -> None:
    """A captured training step gives, on new input, what the layer gives."""
    shape = TECHNIQUES[name].bench_shapes[0]
    layer = LAYERS[name](shape).cuda()
    x, g = torch.randn(shape, device="cuda", requires_grad=True), torch.randn(shape, device="cuda")

    def step() -> tuple[Tensor, ...]:
        y = layer(x)
        return (y, *torch.autograd.grad(y, [x, *layer.parameters()], g))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x) * 3 + 1)
    graph.replay()
    found = [t.clone() for t in captured]
    assert all(torch.equal(a, b) for a, b in zip(found, step(), strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_compile_fullgraph_with_inductor(name: str) -> None:
    torch.compiler.reset()
    shape = TECHNIQUES[name].bench_shapes[0]
    layer = LAYERS[name](shape).cuda()
    compiled: Callable[[Tensor], Tensor] = torch.compile(layer, fullgraph=True)
    x = torch.randn(shape, device="cuda", requires_grad=True)
    for training in (True, False):
        layer.train(training)
        found = torch.autograd.grad(compiled(x).square().sum(), [x, *layer.parameters()])
        expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_more_elements_than_32_bits_count() -> None:
    """Offsets beyond 2³¹: the last row and the last channel are as right as the first."""
    needs(40)
    n = 2**31 // 4096 + 3
    x = torch.zeros(n, 4096, device="cuda", dtype=torch.bfloat16)
    x[-3:].normal_()
    layer = fused.LayerNorm(4096, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(layer(x)[-3:], layer(x[-3:].clone()))
    x.requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, y.detach())
    tail = x.detach()[-3:].clone().requires_grad_()
    z = layer(tail)
    torch.testing.assert_close(dx[-3:], torch.autograd.grad(z, tail, z.detach())[0])
    del dx, y
    for last in (False, True):
        images = x.detach().view(-1, 64, 8, 8)
        if last:
            images = x.detach().view(-1, 8, 8, 64).permute(0, 3, 1, 2)
        for norm in (fused.GroupNorm(8, 64), fused.InstanceNorm2d(64)):
            found = norm.cuda().to(torch.bfloat16)(images)[-1]
            torch.testing.assert_close(found, norm(images[-1:].clone())[0])
            del found
        batch = fused.BatchNorm2d(64, affine=False, track_running_stats=False).cuda()
        found = batch(images)[-1].float()
        flat = images.transpose(0, 1).reshape(64, -1)
        mean, var = flat.float().mean(1), flat.float().var(1, correction=0)
        del flat
        truth = (images[-1].float() - mean[:, None, None]) * torch.rsqrt(var + 1e-5)[:, None, None]
        torch.testing.assert_close(found, truth, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_peak_memory_is_not_above_torchs(name: str) -> None:
    """But for scratch of a size that does not grow with the input: at most a tenth of it here."""
    row = TECHNIQUES[name]
    shape = (row.bench_shapes[0][0] * 64, *row.bench_shapes[0][1:])
    x = torch.randn(shape, device="cuda")
    ours, theirs = (memory(make(shape).cuda(), x) for make in (LAYERS[name], row.twin))
    assert ours.saved_bytes <= theirs.saved_bytes
    assert ours.peak_bytes is not None
    assert theirs.peak_bytes is not None
    assert ours.peak_bytes <= theirs.peak_bytes + x.nbytes // 10


def test_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(8, 64, device="cuda:1")
    torch.testing.assert_close(fused.LayerNorm(64, device="cuda:1")(x), functional.layer_norm(x, (64,)))
