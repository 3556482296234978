"""The claims about Group Normalization that this course tests, all on scikit-learn's handwritten digits."""

from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from normtutor.catalog import Shape, groups
from normtutor.lab.claims import Claim, Measured
from normtutor.lab.claims.batch_norm import ConvNet, GhostNorm, error_at_statistics_batch
from normtutor.lab.data import digits
from normtutor.lab.training import accuracy, train
from normtutor.layers import BatchNorm1d, GroupNorm, standardize_weights
from normtutor.networks import Norm, build_norm


def on_vectors(shape: Shape) -> nn.Module:
    """Group Normalization for (N, C) too, where the catalog, as the seed does, leaves it out."""
    return GroupNorm(groups(shape[1]), shape[1])


def statistics_batch(norm: Norm, full: bool) -> Measured:
    """Test error of an MLP against the number of samples that supply the statistics, beside Batch Norm's."""
    sizes, seeds, steps = ([32, 16, 8, 4, 2], 3, 600) if full else ([32, 2], 1, 150)

    def errors(net: Norm) -> dict[str, list[float]]:
        return {
            str(size): [error_at_statistics_batch(net, size, seed, steps) for seed in range(seeds)]
            for size in sizes
        }

    return {"error": errors(on_vectors if norm == "group" else norm), "batch": errors("batch")}


def _level(measured: Measured) -> bool:
    """the errors at all n lie within 3 points of each other, none is above 10 %, and Batch Normalization's
    at n = 2 is at least 10 points higher."""
    errors = [median(runs) for runs in measured["error"].values()]
    level = max(errors) - min(errors) <= 0.03 and max(errors) <= 0.1
    return bool(level and median(measured["batch"]["2"]) >= median(measured["error"]["2"]) + 0.1)


def _by_size(errors: dict[str, list[float]]) -> str:
    return ", ".join(f"n = {size}: {median(runs):.1%}" for size, runs in errors.items())


def _tell_statistics_batch(measured: Measured) -> str:
    return f"test error {_by_size(measured['error'])}; BatchNorm {_by_size(measured['batch'])}"


class PerPosition(nn.Module):
    """Batch Normalization of each position of each map by itself: n samples supply n values, not n·H·W."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = BatchNorm1d(shape[1] * shape[2] * shape[3])

    def forward(self, input: Tensor) -> Tensor:
        normalized: Tensor = self.norm(input.flatten(1)).view_as(input)
        return normalized


def conv_error_at_statistics_batch(norm: Norm, size: int, seed: int, steps: int) -> float:
    """Test error (0 to 1) of three convolutions over 8×8 maps; batches of 32, statistics of ``size``."""
    data = digits()
    torch.manual_seed(seed)
    model = ConvNet(lambda shape: GhostNorm(build_norm(norm, shape), size), width=8, depth=3)
    images, labels = data.train_images, data.train_labels
    train(model, images, labels, steps=steps, lr=0.05, momentum=0.9, batch_size=32, seed=seed)
    return 1 - accuracy(model, data.test_images, data.test_labels)


def convolutions(norm: Norm, full: bool) -> Measured:
    """Test error of a convolutional network against the number of samples that supply the statistics."""
    sizes, seeds, steps = ([32, 16, 8, 4, 2], 3, 400) if full else ([32, 2], 1, 150)
    return {
        "error": {
            str(size): [conv_error_at_statistics_batch(norm, size, seed, steps) for seed in range(seeds)]
            for size in sizes
        }
    }


def _rises(measured: Measured) -> bool:
    """the error at n = 2 is at least 10 points above that at n = 32, which is at most 30 %."""
    errors = {size: median(runs) for size, runs in measured["error"].items()}
    return bool(errors["2"] >= errors["32"] + 0.1 and errors["32"] <= 0.3)


def _tell_convolutions(measured: Measured) -> str:
    return f"test error {_by_size(measured['error'])}"


class Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), over 8×8 maps."""

    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = build_norm(norm, (1, width, 8, 8))
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = build_norm(norm, (1, width, 8, 8))

    def forward(self, input: Tensor) -> Tensor:
        x = relu(self.norm1(self.conv1(input)))
        return relu(input + self.norm2(self.conv2(x)))


class ResNet(nn.Sequential):
    """A convolution and three residual blocks of 16 channels on 8×8 images, each with its normalization."""

    def __init__(self, norm: Norm, width: int = 16, depth: int = 3) -> None:
        stem = [nn.Conv2d(1, width, 3, padding=1, bias=False), build_norm(norm, (1, width, 8, 8)), nn.ReLU()]
        blocks = [Block(norm, width) for _ in range(depth)]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def residual_error(norm: Norm, standardized: bool, lr: float, seed: int, steps: int) -> float:
    """Test error (0 to 1) of the residual network, its convolutions' weights standardized or not."""
    data = digits()
    torch.manual_seed(seed)
    model: nn.Module = ResNet(norm)
    if standardized:
        standardize_weights(model)
    images, labels = data.train_images, data.train_labels
    train(model, images, labels, steps=steps, lr=lr, momentum=0.9, batch_size=32, seed=seed)
    return 1 - accuracy(model, data.test_images, data.test_labels)


def weight_standardization(norm: Norm, full: bool) -> Measured:
    """Test error with and without standardized weights, over learning rates; in full beside Batch Norm's."""
    lrs, seeds, steps = ([0.05, 0.1, 0.2], 3, 400) if full else ([0.05, 0.1], 1, 150)
    arms: list[tuple[str, Norm, bool]] = [("raw", norm, False), ("standardized", norm, True)]
    if full:
        arms.append(("batch", "batch", False))
    return {
        "error": {
            arm: {str(lr): [residual_error(net, ws, lr, seed, steps) for seed in range(seeds)] for lr in lrs}
            for arm, net, ws in arms
        }
    }


def _best(measured: Measured, arm: str) -> tuple[float, str]:
    """The median error at the rate that suits ``arm`` best, and that rate."""
    return min((float(median(runs)), lr) for lr, runs in measured["error"][arm].items())


def _lifts(measured: Measured) -> bool:
    """each at its best learning rate, the error with standardized weights is at most two thirds of that
    without, and at most 20 %."""
    raw, standardized = (_best(measured, arm)[0] for arm in ("raw", "standardized"))
    return 3 * standardized <= 2 * raw and standardized <= 0.2


def _tell_weight_standardization(measured: Measured) -> str:
    names = {"raw": "without", "standardized": "with", "batch": "BatchNorm without"}
    told = (
        f"{name} {_best(measured, arm)[0]:.1%} (lr {_best(measured, arm)[1]})"
        for arm, name in names.items()
        if arm in measured["error"]
    )
    return f"test error at the best learning rate: {', '.join(told)} standardized weights"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="group_norm.statistics_batch",
        technique="group",
        paper="Wu & He 2018",
        url="https://arxiv.org/abs/1803.08494",
        where="Figure 1",
        says="Group Normalization's error does not depend on n, the samples per device; Batch Norm's rises.",
        measure=statistics_batch,
        holds=_level,
        tells=_tell_statistics_batch,
        caveat=(
            "the paper's optimizer batch is 8 n, with the learning rate in proportion; here it stays at 32, "
            "so that the statistics are all that changes; what is left of a difference is rounding, which "
            "hundreds of steps amplify"
        ),
        control="batch",
    ),
    Claim(
        name="group_norm.convolutions",
        technique="batch",
        paper="Wu & He 2018",
        url="https://arxiv.org/abs/1803.08494",
        where="Figure 1",
        says="In a convolutional network, Batch Normalization's error rises as n shrinks to 2.",
        measure=convolutions,
        holds=_rises,
        tells=_tell_convolutions,
        caveat="three layers on small images of one kind, against the paper's ResNet-50 on ImageNet",
        reproduces=False,
        control=PerPosition,
    ),
    Claim(
        name="group_norm.weight_standardization",
        technique="group",
        paper="Qiao et al. 2019",
        url="https://arxiv.org/abs/1903.10520",
        where="abstract and section 4",
        says="Weight Standardization lifts Group Normalization.",
        measure=weight_standardization,
        holds=_lifts,
        tells=_tell_weight_standardization,
        caveat="short training: part of the gain is speed, and the gap narrows with more steps",
    ),
)
