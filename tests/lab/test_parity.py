"""Parity passes what is right, fails what is wrong, and says which quantity was."""

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from normtutor import functional, layers
from normtutor.catalog import TECHNIQUES, technique
from normtutor.lab import parity
from normtutor.lab.parity_report import index_axes

ROW = technique("batch")
SMALL = ((16, 4), (3, 4, 5, 5))


class Wrong(nn.BatchNorm2d):
    """A BatchNorm written out, one line of which each subclass gets wrong."""

    def _check_input_dim(self, input: Tensor) -> None: ...

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = [d for d in range(x.dim()) if d != 1]
        return x.mean(axes), (x - self.spread(x.mean(axes), x)).square().mean(axes)

    def spread(self, value: Tensor, x: Tensor) -> Tensor:
        return value.view(1, -1, *(1 for _ in x.shape[2:]))

    def factor(self, x: Tensor) -> float:
        n = x.numel() // x.shape[1]
        return n / (n - 1)

    def forward(self, input: Tensor) -> Tensor:
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        mean, var = self.statistics(x) if self.training else (self.running_mean, self.running_var)
        if self.training:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), 0.1)
                self.running_var.lerp_((var * self.factor(x)).to(self.running_var.dtype), 0.1)
        return self.map(x, mean, var).to(input.dtype)

    def map(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        x_hat = (x - self.spread(mean, x)) / (self.spread(var, x) + self.eps).sqrt()
        return self.spread(self.weight, x) * x_hat + self.spread(self.bias, x)


class OnePass(Wrong):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = [d for d in range(x.dim()) if d != 1]
        return x.mean(axes), (x.square().mean(axes) - x.mean(axes).square()).clamp_min(0)


class BiasedBuffer(Wrong):
    def factor(self, x: Tensor) -> float:
        return 1.0


class Detached(Wrong):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        return mean.detach(), var.detach()


class EpsOutside(Wrong):
    def map(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        x_hat = (x - self.spread(mean, x)) / (self.spread(var, x).sqrt() + self.eps)
        return self.spread(self.weight, x) * x_hat + self.spread(self.bias, x)


class Folded(Wrong):
    def map(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = self.weight / (var + self.eps).sqrt()
        return x * self.spread(scale, x) + self.spread(self.bias - mean * scale, x)


class NotCounting(Wrong):
    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        self.num_batches_tracked.zero_()
        return output


class NotANumber(Wrong):
    def map(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().map(x, mean, var) * torch.nan


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_on_the_cpu(name: str) -> None:
    report = parity(name, devices=["cpu"])
    assert report.ok, report.table(status="failed")
    # torch's own layer runs on all of it: a skipped row would mean that nothing was compared
    assert not report.skipped
    assert {row.offset for row in report.rows} == {0, 1e2, 1e3, 1e4}
    assert {row.mode for row in report.rows} == set(technique(name).modes)
    assert {"float64", "float32", "bfloat16", "bfloat16/float32", "float16"} < {
        row.dtype for row in report.rows
    }


def test_what_is_compared() -> None:
    report = parity("batch", ["cpu"], ["float32"], [0], shapes=[(3, 4, 5, 5)])
    quantities = {"output", "grad input", "grad weight", "grad bias"}
    quantities |= {"running_mean", "running_var", "num_batches_tracked"}
    assert all(set(row.ours) == quantities for row in report.rows)
    assert [row.layout for row in report.rows] == ["contiguous", "channels_last", "strided"] * 2


@pytest.mark.parametrize(
    ("layer", "quantity"),
    [
        (OnePass, "output"),
        (BiasedBuffer, "running_var"),
        (Detached, "grad input"),
        (EpsOutside, "output"),
        (Folded, "output"),
        (NotCounting, "num_batches_tracked"),
        (NotANumber, "output"),
    ],
)
def test_a_wrong_layer_fails_by_name(layer: type[nn.Module], quantity: str) -> None:
    report = parity("batch", ["cpu"], layer=lambda shape: layer(shape[1]), shapes=SMALL)
    assert not report.ok
    assert any(quantity in row.reason for row in report.failures)
    assert report.worst().share > 1


def test_the_layer_that_the_wrong_ones_are_made_from_is_right() -> None:
    # Plain two-pass arithmetic; at a large offset its mean is rounded once more than torch's.
    report = parity("batch", ["cpu"], offsets=[0], layer=lambda shape: Wrong(shape[1]), shapes=SMALL)
    assert report.ok, report


def test_a_one_pass_variance_shows_at_a_large_offset_only() -> None:
    def one_pass(shape: tuple[int, ...]) -> nn.Module:
        return OnePass(shape[1])

    assert parity("batch", ["cpu"], ["float32"], [0], layer=one_pass, shapes=SMALL).ok
    assert not parity("batch", ["cpu"], ["float32"], [1e3], layer=one_pass, shapes=SMALL).ok


def test_torch_is_judged_too() -> None:
    """torch's GroupNorm is wrong in channels_last at a large mean: it is a candidate, not the truth."""
    row = dataclasses.replace(
        ROW,
        name="group",
        index_set="C/G, H, W",
        layer=lambda shape: _Contiguous(shape[1], shape[1]),
        twin=lambda shape: nn.GroupNorm(shape[1], shape[1]),
        modes=("train",),
    )
    report = parity(row, ["cpu"], ["float32"], [1e3], shapes=[(4, 8, 16, 16)])
    assert report.ok, report
    errors = {row.layout: (row.ours["output"], row.torch["output"]) for row in report.rows}
    assert errors["channels_last"][0] < 1e-3
    assert errors["channels_last"][1] > 0.01


class _Contiguous(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input.contiguous())
        return y.contiguous(memory_format=torch.channels_last) if input.stride()[1] == 1 else y


@pytest.mark.parametrize(
    ("index_set", "twin"),
    [
        ("C, H, W", lambda shape: nn.LayerNorm(shape[1:])),
        ("H, W", lambda shape: nn.InstanceNorm2d(shape[1], affine=True)),
        ("H, W", lambda shape: nn.InstanceNorm2d(shape[1], track_running_stats=True)),
        ("N, H, W", lambda shape: nn.BatchNorm2d(shape[1], momentum=None)),
        ("N, H, W", lambda shape: nn.BatchNorm2d(shape[1], track_running_stats=False)),
        ("any", lambda shape: nn.LayerNorm(shape[-1:])),
        ("any", lambda shape: nn.LayerNorm(shape[2:], bias=False)),
        ("C/G, H, W", lambda shape: nn.GroupNorm(2, shape[1])),
    ],
)
def test_the_truth_covers_the_family(index_set: str, twin: object) -> None:
    row = dataclasses.replace(ROW, index_set=index_set, layer=twin, twin=twin)
    report = parity(row, ["cpu"], ["float64"], [0], shapes=[(3, 4, 5, 6)])
    assert report.ok
    assert report.worst().ours[report.worst().quantity] < 1e-14


def test_instance_norm_with_running_statistics() -> None:
    """The row's layer keeps none; with them there are buffers, and evaluation is something else."""

    def tracked(module: object) -> object:
        return lambda shape: module.InstanceNorm2d(shape[1], affine=True, track_running_stats=True)

    row = dataclasses.replace(
        technique("instance"),
        layer=tracked(layers),
        twin=tracked(nn),
        modes=("train", "eval"),
        parity_shapes=((4, 6, 8, 8),),
    )
    report = parity(row, ["cpu"])
    assert report.ok, report.table(status="failed")
    assert not report.skipped
    assert all("running_var" in row.ours and "num_batches_tracked" in row.ours for row in report.rows)


class MeanLeft(layers.LayerNorm):
    """RMSNorm where LayerNorm is meant, and the other way round."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.rms_norm(input, self.normalized_shape, self.weight, self.eps) + self.bias


class MeanTaken(layers.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight, eps=self.eps)


class LastAxisOnly(layers.LayerNorm):
    """The seed's: whatever ``normalized_shape`` says."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(input, input.shape[-1:]) * self.weight + self.bias


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer", lambda shape: MeanLeft(shape[1:])),
        ("rms", lambda shape: MeanTaken(shape[1:], eps=1e-6)),
        ("layer", lambda shape: LastAxisOnly(shape[1:])),
        ("group", lambda shape: layers.GroupNorm(2, shape[1])),
        ("group", lambda shape: layers.InstanceNorm2d(shape[1], affine=True)),
    ],
)
def test_the_wrong_index_set_or_a_wrong_mean_fails(name: str, layer: object) -> None:
    report = parity(name, ["cpu"], ["float32"], [0], layer=layer, shapes=[(3, 16, 5, 5)])
    assert len(report.failures) == len(report.rows) > 0
    assert all("output" in row.reason for row in report.failures)


@pytest.mark.parametrize("name", ["layer", "group", "instance"])
def test_the_offset_is_that_of_the_elements_that_share_statistics(name: str) -> None:
    """Not of the channels: means of both signs within a set would be its deviation, and test nothing."""

    class Naive(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.load_state_dict = inner.load_state_dict
            self.named_parameters = inner.named_parameters
            self.named_buffers = inner.named_buffers

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.half().float())  # as good as 11 bits: the deviation is gone at 10⁴

    def naive(shape: tuple[int, ...]) -> nn.Module:
        return Naive(technique(name).layer(shape))

    near, far = (
        parity(name, ["cpu"], ["float32"], [at], layer=naive, shapes=[(3, 16, 5, 5)]) for at in (0, 1e3)
    )
    assert max(row.ours["output"] for row in near.rows) < 1e-2
    assert min(row.ours["output"] for row in far.rows) > 1e-2


@pytest.mark.parametrize("name", ["group", "instance", "layer", "rms"])
def test_no_layout_is_less_exact_than_another(name: str) -> None:
    """torch's GroupNorm is, by orders of magnitude; parity alone would let ours be as wrong."""
    report = parity(name, ["cpu"], ["float32"], [1e3], shapes=[(4, 16, 16, 16)])
    assert {row.layout for row in report.rows} == {"contiguous", "channels_last", "strided"}
    assert max(row.ours["output"] for row in report.rows) < 1e-6


def test_a_layer_that_cannot_take_the_checkpoint_fails_with_the_reason() -> None:
    report = parity(
        "batch", ["cpu"], ["float32"], [0], layer=lambda shape: nn.Linear(shape[-1], 2), shapes=SMALL
    )
    assert not report.ok
    assert all(row.status == "failed" for row in report.rows)
    assert "Unexpected key(s)" in report.failures[0].reason


def test_a_wrong_output_dtype_fails() -> None:
    class Promoting(layers.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).float()

    report = parity(
        "batch", ["cpu"], ["bfloat16"], [0], layer=lambda shape: Promoting(shape[1]), shapes=[(3, 4, 5, 5)]
    )
    assert not report.ok
    assert "torch.float32" in report.failures[0].reason


def test_a_lost_memory_format_fails() -> None:
    class Flattening(layers.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).contiguous()

    report = parity(
        "batch", ["cpu"], ["float32"], [0], layer=lambda s: Flattening(s[1]), shapes=[(3, 4, 5, 5)]
    )
    assert {row.layout for row in report.failures} == {"channels_last"}


def test_where_torch_raises_the_row_is_skipped_and_nothing_is_ok() -> None:
    def refusing(shape: tuple[int, ...]) -> nn.Module:
        layer = nn.BatchNorm1d(shape[1])  # takes no 4D input
        return layer

    report = parity(dataclasses.replace(ROW, twin=refusing), ["cpu"], ["float32"], [0], shapes=[(3, 4, 5, 5)])
    assert len(report.skipped) == len(report.rows)
    assert "expected 2D or 3D input" in report.skipped[0].reason
    assert not report.ok


def test_the_table_filters_groups_and_hides_digits() -> None:
    report = parity("batch", ["cpu"], ["float32"], shapes=[(16, 4)])
    lines = report.table(offset=1e4, mode="train").splitlines()
    assert len(lines) == 1 + 2 + 2  # head, contiguous and strided, blank, verdict
    assert "10000" in lines[1]
    quiet = report.table(by=("dtype", "offset"), numbers=False)
    assert "allowed" not in quiet
    assert quiet.splitlines()[1].split() == ["float32", "0", "4/4"]


def test_the_record_is_json_and_names_the_failures() -> None:
    report = parity("batch", ["cpu"], ["float32"], [1e3], layer=lambda s: OnePass(s[1]), shapes=[(16, 4)])
    record = json.loads(json.dumps(report.to_dict()))
    assert record["ok"] is False
    assert "output" in record["failures"][0]["reason"]
    assert sum(group["compared"] for group in record["groups"]) == record["compared"] == len(report.rows)


def test_one_quantity_can_be_shown() -> None:
    """At a mean of 10⁴ deviations torch's float32 output has lost four digits; ours has not."""
    report = parity("batch", ["cpu"], ["float32"], [1e4], shapes=[(64, 8)])
    head, line, *_ = report.table(by=("dtype",), quantity="output", mode="train").splitlines()
    assert head.split() == ["dtype", "ok", "quantity", "ours", "torch", "allowed"]
    assert line.split()[2] == "output"
    largest = max(row.torch["output"] for row in report.rows if row.mode == "train")
    assert line.split()[4] == f"{largest:.3g}"
    assert float(line.split()[3]) < 1e-6 < 1e-5 < float(line.split()[4])


def test_a_record_of_infinite_errors_is_json() -> None:
    report = parity("batch", ["cpu"], ["float32"], [0], layer=lambda s: NotANumber(s[1]), shapes=[(16, 4)])
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["failures"][0]["ours"]["output"] == "inf"


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="unknown technique 'bach'"):
        parity("bach")
    with pytest.raises(ValueError, match="floating-point dtype, got 'int64'"):
        parity("batch", ["cpu"], ["int64"])
    with pytest.raises(RuntimeError, match=r"'mps:0' is not here|'xpu' is not here"):
        parity("batch", ["xpu" if torch.backends.mps.is_available() else "mps:0"])
    with pytest.raises(ValueError, match="got 'N, Q'"):
        index_axes("N, Q", (2, 3))
