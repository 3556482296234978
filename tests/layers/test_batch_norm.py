"""BatchNorm1d/2d/3d stand in for torch's wherever torch's own work; the variants do what their names say."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from twins import assert_same_state, assert_trains_and_evaluates_alike

from normtutor.layers import AdaptiveBatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, LearnableBatchNorm

PAIRS = [
    (BatchNorm1d, nn.BatchNorm1d, (6, 3)),
    (BatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    (BatchNorm2d, nn.BatchNorm2d, (2, 3, 4, 5)),
    (BatchNorm3d, nn.BatchNorm3d, (2, 3, 2, 3, 4)),
]
OPTIONS = [
    {},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"eps": 0.3},
    {"affine": False, "track_running_stats": False},
]


def twins(ours: type, theirs: type, **options: object) -> tuple[nn.Module, nn.Module]:
    """Both layers in float64, with the same random parameters."""
    a, b = ours(3, dtype=torch.float64, **options), theirs(3, dtype=torch.float64, **options)
    with torch.no_grad():
        for p in b.parameters():
            p.normal_()
    a.load_state_dict(b.state_dict())
    return a, b


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_training_then_evaluation_equals_torch(
    ours: type, theirs: type, shape: tuple[int, ...], options: dict[str, object]
) -> None:
    a, b = twins(ours, theirs, **options)
    assert_trains_and_evaluates_alike(a, b, shape)


def test_constructor_is_torchs() -> None:
    for ours, theirs, _ in PAIRS:
        a, b = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        assert [n for n in a if n in b] == list(b)  # older torch has no `bias`
        assert repr(ours(3, eps=0.1)).startswith(f"{theirs.__name__}(3, eps=0.1, momentum=0.1, affine=True")


def test_bias_alone_can_be_left_out() -> None:
    layer = BatchNorm2d(3, bias=False)
    assert list(layer.state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]
    assert layer(torch.randn(2, 3, 4, 4)).mean().abs() < 1e-6


def test_checkpoints_load_both_ways_old_ones_too() -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d)
    b(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    a.load_state_dict(b.state_dict())
    assert_same_state(a, b)
    a(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    b.load_state_dict(a.state_dict())
    assert_same_state(a, b)
    old = {k: v for k, v in b.state_dict().items() if k != "num_batches_tracked"}  # before version 2
    a.load_state_dict(old)
    assert a.num_batches_tracked == 2
    state = b.state_dict()
    del state["num_batches_tracked"]  # version 2 without its counter is a broken checkpoint
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        a.load_state_dict(state)


def test_pickle_deepcopy_and_torch_save() -> None:
    layer = BatchNorm2d(3)
    layer(torch.randn(2, 3, 4, 4))
    assert_same_state(copy.deepcopy(layer), layer)
    assert_same_state(pickle.loads(pickle.dumps(layer)), layer)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = BatchNorm2d(3)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(fresh, layer)


def test_toggling_statistics_after_construction_as_torch_does() -> None:
    a, b = twins(BatchNorm2d, nn.BatchNorm2d)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    a.track_running_stats = b.track_running_stats = False
    torch.testing.assert_close(a(x), b(x))
    assert_same_state(a, b)  # untouched
    a.eval(), b.eval()
    torch.testing.assert_close(a(x), b(x))  # in evaluation they still count
    a.running_mean = a.running_var = b.running_mean = b.running_var = None
    torch.testing.assert_close(a(x), b(x))  # now the batch's own


def test_torchs_tools_know_the_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), BatchNorm2d(3), AdaptiveBatchNorm(3))
    assert isinstance(network[1], nn.BatchNorm2d)
    data = [torch.randn(8, 1, 4, 4) for _ in range(3)]
    torch.optim.swa_utils.update_bn(data, network)
    assert network[1].num_batches_tracked == network[2].num_batches_tracked == 3
    torch.testing.assert_close(
        network[1].running_mean, torch.stack([network[0](x).mean((0, 2, 3)) for x in data]).mean(0)
    )
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert converted[1].running_mean is network[1].running_mean


def test_frozen_in_a_training_network() -> None:
    layer = BatchNorm2d(3).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(2, 3, 4, 4)).sum().backward()
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert layer.weight.grad is not None


def test_buffers_carry_no_graph() -> None:
    layer = BatchNorm2d(3)
    layer(torch.randn(2, 3, 4, 4, requires_grad=True))
    assert not any(buffer.requires_grad for buffer in layer.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["float32", "half"])
def test_half_precision(dtype: torch.dtype, parameters: str) -> None:
    layer = BatchNorm2d(3, dtype=dtype if parameters == "half" else torch.float32)
    y = layer(torch.randn(8, 3, 4, 4, dtype=dtype) * 50 + 100)
    assert y.dtype == dtype
    assert y.float().std().sub(1).abs() < 0.02
    assert layer.running_mean.dtype == layer.weight.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_torchs_dtype(dtype: torch.dtype) -> None:
    ours, theirs = BatchNorm2d(4), nn.BatchNorm2d(4)
    x = torch.randn(2, 4, 6, 6)
    conv = nn.Conv2d(4, 4, 3)
    with torch.autocast("cpu", dtype):
        after_conv = ours(conv(x)), theirs(conv(x))
        direct = ours(x), theirs(x)
    assert [y.dtype for y in after_conv] == [dtype, dtype]
    assert [y.dtype for y in direct] == [torch.float32, torch.float32]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape", "memory_format"),
    [
        (BatchNorm2d, (2, 3, 4, 5), torch.channels_last),
        (BatchNorm3d, (2, 3, 2, 4, 5), torch.channels_last_3d),
    ],
)
def test_channels_last_stays(
    layer: type, shape: tuple[int, ...], memory_format: torch.memory_format, training: bool
) -> None:
    module = layer(3).train(training)
    x = torch.randn(shape)
    y = module(x.to(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, copy.deepcopy(module)(x) if not training else layer(3)(x))


@pytest.mark.parametrize("training", [True, False])
def test_strided_input(training: bool) -> None:
    x = torch.randn(5, 4, 3, 2).transpose(1, 2)[:, :, ::2]
    layer = BatchNorm2d(3).train(training)
    torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x.contiguous()))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_input(shape: tuple[int, ...]) -> None:
    for layer in (BatchNorm2d(3), nn.BatchNorm2d(3)):
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == x.shape
        assert y is not x
        assert torch.equal(layer.weight.grad, torch.zeros(3))
        assert torch.equal(layer.running_mean, torch.zeros(3))
        assert torch.equal(layer.running_var, torch.ones(3))
        assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile_fullgraph(training: bool, momentum: float | None) -> None:
    """The graph is captured whole, also where torch's own layer breaks it (momentum=None)."""
    layer = BatchNorm2d(3, momentum=momentum, dtype=torch.float64).train(training)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        z = x.detach().clone().requires_grad_()
        compiled(x).square().sum().backward()
        plain(z).square().sum().backward()
        torch.testing.assert_close(x.grad, z.grad)
    assert_same_state(layer, plain)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_export(momentum: float | None) -> None:
    layer = BatchNorm2d(3, momentum=momentum).eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch.export.export(BatchNorm2d(3, momentum=momentum), (x,))  # training: buffers move


def test_torch_func() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    layer, theirs = twins(BatchNorm1d, nn.BatchNorm1d)

    def loss(module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(module, {**parameters, **buffers}, (x,))
        return output.pow(3).sum()

    grads = [
        grad(lambda p, b, m=module: loss(m, p, b))(
            dict(module.named_parameters()), dict(copy.deepcopy(module).named_buffers())
        )
        for module in (layer, theirs)
    ]
    for key, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][key])
    xs = torch.randn(5, 6, 3, dtype=torch.float64)
    free = BatchNorm1d(3, track_running_stats=False, dtype=torch.float64)
    torch.testing.assert_close(vmap(free)(xs), torch.stack([free(x) for x in xs]))
    layer.eval()
    torch.testing.assert_close(vmap(layer)(xs), torch.stack([layer(x) for x in xs]))
    tangent = torch.randn_like(x)
    _, forward = jvp(free, (x,), (tangent,))
    _, reverse = torch.autograd.functional.vjp(lambda x: free(x), x, forward)
    torch.testing.assert_close((reverse * tangent).sum(), forward.square().sum())


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_and_double_backward(training: bool) -> None:
    layer = BatchNorm2d(3, track_running_stats=not training, dtype=torch.float64).train(training)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(BatchNorm1d, (3,)), (BatchNorm1d, (2, 3, 4, 4)), (BatchNorm2d, (3, 4, 4)), (BatchNorm3d, (2, 3, 4, 4))],
)
def test_wrong_rank(layer: type, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected .*D input \(N, C.*got {len(shape)}D input of shape"):
        layer(3)(torch.randn(shape))


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_out_of_range_is_refused_at_once(momentum: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {momentum}"):
        BatchNorm2d(3, momentum=momentum)


def test_momentum_may_be_numpys() -> None:
    layer = BatchNorm1d(2, momentum=np.float32(0.5))
    layer(torch.tensor([[2.0, 4.0], [2.0, 4.0]]))
    assert layer.running_mean.tolist() == [1, 2]


def test_torch_raises_the_same_types() -> None:
    """Drop-in for code that catches: on the bad inputs that torch rejects, the exception type is torch's."""
    good = torch.randn(2, 3, 4, 4)
    cases = [
        ({}, good[0]),
        ({}, torch.randn(2, 4, 4, 4)),
        ({"track_running_stats": False}, torch.randn(2, 4, 4, 4)),
        ({}, torch.randn(1, 3, 1, 1)),
        ({}, torch.ones(2, 3, 4, 4, dtype=torch.long)),
        ({}, good.double()),
        ({"dtype": torch.bfloat16}, good),
        ({"device": "meta"}, good),
    ]
    for options, x in cases:
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            nn.BatchNorm2d(3, **options)(x)
        with pytest.raises(theirs.type):
            BatchNorm2d(3, **options)(x)


# The variants


def test_adaptive_is_the_plain_average_first_and_exponential_later() -> None:
    layer = AdaptiveBatchNorm(2, momentum=0.25)
    batches = [torch.randn(8, 2) + k for k in range(7)]
    means = [b.mean(0) for b in batches]
    variances = [b.var(0) for b in batches]  # unbiased
    for k, batch in enumerate(batches, start=1):
        layer(batch)
        if k <= 4:  # 1/k ≥ 0.25
            expected_mean, expected_var = torch.stack(means[:k]).mean(0), torch.stack(variances[:k]).mean(0)
        else:
            expected_mean = 0.75 * expected_mean + 0.25 * means[k - 1]
            expected_var = 0.75 * expected_var + 0.25 * variances[k - 1]
        torch.testing.assert_close(layer.running_mean, expected_mean)
        torch.testing.assert_close(layer.running_var, expected_var)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 4), (2, 3, 2, 2, 2)])
def test_adaptive_takes_every_rank_and_batchnorms_checkpoint(shape: tuple[int, ...]) -> None:
    layer = AdaptiveBatchNorm(3)
    layer.load_state_dict(BatchNorm2d(3).state_dict())
    assert layer(torch.randn(shape)).shape == shape
    with pytest.raises(ValueError, match="1D input"):
        layer(torch.randn(3))


def test_learnable_statistics_receive_a_gradient_in_training() -> None:
    layer = LearnableBatchNorm(3)
    layer(torch.randn(6, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in layer.parameters())


def test_learnable_statistics_are_learned() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 2) * torch.tensor([1.5, 0.5]) + torch.tensor([2.0, -1.0])
    layer = LearnableBatchNorm(2)
    optimizer = torch.optim.Adam([layer.running_mean, layer.running_var], lr=0.2)
    for _ in range(500):  # ask for output of mean 0 and variance 1
        y = layer(x)
        loss = y.mean(0).square().sum() + (y.var(0) - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(layer.running_mean, x.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(layer.running_var, x.var(0), atol=0, rtol=0.05)


def test_learnable_has_no_train_eval_gap_and_takes_a_batch_of_one() -> None:
    layer = LearnableBatchNorm(3)
    layer.set_statistics(torch.randn(16, 3, 4, 4) * 5 + 7)
    x = torch.randn(4, 3, 4, 4) * 5 + 7
    whole = layer.train()(x)
    torch.testing.assert_close(whole, layer.eval()(x))
    torch.testing.assert_close(whole, torch.cat([layer(part) for part in x.split(1)]))


def test_learnable_refuses_statistics_that_a_batch_does_not_have() -> None:
    layer = LearnableBatchNorm(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer.set_statistics(torch.randn(1, 3))
    with pytest.raises(RuntimeError, match=r"running_mean of shape \(1,\)"):
        layer.set_statistics(torch.randn(8, 1))


def test_learnable_takes_over_a_trained_batchnorm() -> None:
    trained = nn.BatchNorm2d(3)
    for _ in range(5):
        trained(torch.randn(4, 3, 4, 4) * 2 + 3)
    state = trained.state_dict()
    layer = LearnableBatchNorm(3)
    layer.load_state_dict(state)
    assert "num_batches_tracked" in state  # the caller's dict is whole
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), trained.eval()(x))
    network = nn.Sequential(LearnableBatchNorm(3))
    network.load_state_dict(nn.Sequential(trained).state_dict())


def test_learnable_stays_finite_when_a_step_takes_the_variance_below_zero() -> None:
    layer = LearnableBatchNorm(1)
    with torch.no_grad():
        layer.running_var.fill_(-0.5)
    y = layer(torch.randn(4, 1))
    y.sum().backward()
    assert y.isfinite().all()
    assert layer.running_var.grad.isfinite().all()
