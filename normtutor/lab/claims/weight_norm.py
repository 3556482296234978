"""The claims about Weight Normalization that this course tests, all on scikit-learn's handwritten digits."""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from normtutor.lab.claims import Claim, Measured
from normtutor.lab.data import digits
from normtutor.lab.training import accuracy, train
from normtutor.layers import WeightNormLinear
from normtutor.networks import MLP, Norm

SIZES = [64] + [64] * 8 + [10]


def network(norm: Norm, seed: int) -> MLP:
    """Eight hidden layers of 64 ReLU units for 8×8 digits.

    ``norm`` "weight" makes them of weight-normalized layers, initialized from 256 training images; any other
    is the network's normalization, see :func:`normtutor.networks.build_norm`.
    """
    torch.manual_seed(seed)
    if norm != "weight":
        return MLP(SIZES, norm)
    weight_normalized = MLP(SIZES, "none", linear=WeightNormLinear)
    weight_normalized.initialize(digits().train_images[:256].flatten(1))
    return weight_normalized


def without_normalization(model: MLP) -> nn.Sequential:
    """The plain network that computes the same function: every weight-normalized layer made a plain one."""
    return nn.Sequential(*(m.to_plain() if isinstance(m, WeightNormLinear) else m for m in model))


@torch.no_grad()
def pre_activation_deviations(model: nn.Sequential, images: Tensor) -> list[float]:
    """The mean over the units of their deviation over ``images``, for each hidden layer, before its ReLU."""
    deviations, x = [], images.flatten(1)
    for module in model:
        if isinstance(module, nn.ReLU):
            deviations.append(x.std(0, correction=0).mean().item())
        x = module(x)
    return deviations


def data_dependent_init(norm: Norm, full: bool) -> Measured:
    """Deviations at initialization, on the 256 images that initialized the network and on the test images."""
    data, seeds = digits(), 10 if full else 3
    on = {"initialized_from": data.train_images[:256], "test_images": data.test_images}
    return {
        name: [pre_activation_deviations(network(norm, seed), images) for seed in range(seeds)]
        for name, images in on.items()
    }


def _unit_deviations(measured: Measured) -> bool:
    """each hidden layer's deviation is 1, within 0.1 % on the images it started from and 20 % on others."""
    seen, unseen = (
        [deviation for run in measured[name] for deviation in run]
        for name in ("initialized_from", "test_images")
    )
    return all(abs(d - 1) < 0.001 for d in seen) and all(abs(d - 1) < 0.2 for d in unseen)


def _tell_init(measured: Measured) -> str:
    def line(name: str) -> str:
        by_layer = [median(layer) for layer in zip(*measured[name], strict=True)]
        return f"{by_layer[0]:.3f} in the first hidden layer, {by_layer[-1]:.3f} in the last"

    return (
        f"deviation of the pre-activations {line('initialized_from')}; on test images {line('test_images')}"
    )


def high_learning_rates(norm: Norm, full: bool) -> Measured:
    """Test accuracy after training at learning rates from 0.001 to 1: of the network, and of the plain one
    that starts as the same weight-normalized function."""
    data, seeds, steps = digits(), 5 if full else 1, 300 if full else 200
    lrs = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if full else (0.001, 0.01, 0.1, 1.0)
    inputs, tests = data.train_images.flatten(1), data.test_images.flatten(1)

    def trained(model: nn.Module, lr: float, seed: int) -> float:
        train(model, inputs, data.train_labels, steps=steps, lr=lr, seed=seed)
        return accuracy(model, tests, data.test_labels)

    def runs(build: Callable[[int], nn.Module]) -> dict[str, list[float]]:
        return {str(lr): [trained(build(seed), lr, seed) for seed in range(seeds)] for lr in lrs}

    return {
        "accuracy": runs(lambda seed: network(norm, seed)),
        "same start": runs(lambda seed: without_normalization(network("weight", seed))),
        "steps": steps,
    }


def _wide_range(measured: Measured) -> bool:
    """the network reads 80 % of the test digits at learning rates at least a factor of 100 apart."""
    good = [float(lr) for lr, runs in measured["accuracy"].items() if median(runs) >= 0.8]
    return bool(good) and max(good) >= 99 * min(good)  # 99: the quotient of two decimals is not exact


def _tell_rates(measured: Measured) -> str:
    def rates(kind: str) -> str:
        return ", ".join(f"lr {lr}: {median(runs):.3f}" for lr, runs in measured[kind].items())

    return (
        f"test accuracy after {measured['steps']} steps: {rates('accuracy')}; plain from the same start "
        f"{rates('same start')}"
    )


def steps_to_90_percent(model: nn.Module, lr: float, seed: int, steps: int) -> int:
    """Steps until ``model`` reads 90 % of the test digits; ``steps`` + 1 if it does not within ``steps``."""
    data = digits()
    reached: list[int] = []

    def look(step: int) -> None:
        if not reached and accuracy(model, data.test_images.flatten(1), data.test_labels) >= 0.9:
            reached.append(step)

    inputs = data.train_images.flatten(1)
    train(model, inputs, data.train_labels, steps=steps, lr=lr, seed=seed, every=10, on_step=look)
    return reached[0] if reached else steps + 1


def convergence(norm: Norm, full: bool) -> Measured:
    """Steps to 90 %, of a network and of the plain one that starts as the same function.

    Plain networks with PyTorch's own initialization are the third: what they lack is the initialization.
    """
    seeds, steps = (3, 300) if full else (1, 160)
    lrs = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if full else (0.005, 0.01, 0.1)

    def runs(build: Callable[[int], nn.Module]) -> dict[str, list[int]]:
        return {
            str(lr): [steps_to_90_percent(build(seed), lr, seed, steps) for seed in range(seeds)]
            for lr in lrs
        }

    return {
        "steps": steps,
        "steps_to_90_percent": {
            "normalized": runs(lambda seed: network(norm, seed)),
            "same start": runs(lambda seed: without_normalization(network("weight", seed))),
            "plain": runs(lambda seed: network("none", seed)),
        },
    }


def _best(measured: Measured, kind: str) -> float:
    """Median steps over the seeds, at the best learning rate."""
    return float(min(median(runs) for runs in measured["steps_to_90_percent"][kind].values()))


def _faster(measured: Measured) -> bool:
    """at its best rate, it needs at most 3/4 of the steps of the plain network from the same start."""
    return _best(measured, "normalized") <= 0.75 * _best(measured, "same start")


def _tell_convergence(measured: Measured) -> str:
    def best(kind: str) -> str:
        steps = _best(measured, kind)
        return f"{steps:.0f}" if steps <= measured["steps"] else f"never in {measured['steps']}"

    return (
        f"steps to 90 %, each at the best learning rate tried: normalized {best('normalized')}; plain from "
        f"the same start {best('same start')}; plain from PyTorch's initialization {best('plain')}"
    )


_PAPER, _URL = "Salimans & Kingma 2016", "https://arxiv.org/abs/1602.07868"
_SCALE = "A small MLP and gradient descent without momentum; the paper trains a convolutional network"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="weight_norm.data_dependent_init",
        technique="weight",
        paper=_PAPER,
        url=_URL,
        where="section 3",
        says="Initialized from one batch, every pre-activation has mean 0 and variance 1 on that batch.",
        measure=data_dependent_init,
        holds=_unit_deviations,
        tells=_tell_init,
        caveat="It says nothing about any moment after the first update: only the start is normalized.",
    ),
    Claim(
        name="weight_norm.high_learning_rates",
        technique="weight",
        paper=_PAPER,
        url=_URL,
        where="section 2.1",
        says="A network with weight normalization works with a much wider range of learning rates than with "
        "the normal parameterization, as one with batch normalization does.",
        measure=high_learning_rates,
        holds=_wide_range,
        tells=_tell_rates,
        caveat=f"{_SCALE} with Adam.",
        reproduces=False,
        control="batch",
    ),
    Claim(
        name="weight_norm.convergence",
        technique="weight",
        paper=_PAPER,
        url=_URL,
        where="section 5.1, Figure 1",
        says="Weight normalization speeds up convergence over the standard parameterization.",
        measure=convergence,
        holds=_faster,
        tells=_tell_convergence,
        caveat=f"{_SCALE} on CIFAR-10 with Adam.",
        reproduces=False,
        control="batch",
    ),
)
