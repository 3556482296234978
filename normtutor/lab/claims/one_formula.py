"""The claims about what normalization, of whatever index set, does to signals and gradients.

All on scikit-learn's handwritten digits, with Batch Normalization as the example.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from normtutor.lab.claims import Claim, Measured
from normtutor.lab.data import Digits, digits
from normtutor.lab.text import seeds_of
from normtutor.lab.training import train
from normtutor.networks import MLP, Norm, build_norm

Groups = tuple[list[nn.Parameter], list[nn.Parameter]]


def hidden_and_rest(model: MLP) -> Groups:
    """The weights and biases of the hidden linear layers, and all other parameters."""
    hidden = [p for layer in list(model)[:-1] if isinstance(layer, nn.Linear) for p in layer.parameters()]
    known = {id(p) for p in hidden}
    return hidden, [p for p in model.parameters() if id(p) not in known]


def scaled_run(norm: Norm, scale: float, seed: int, steps: int, lr: float = 0.1) -> list[float]:
    """The losses of a training run that starts at ``scale`` · w with the learning rate ``scale``² · lr.

    Both factors are for the hidden layers only. In float64 and with ε = 10⁻³⁰, so that what is left is
    rounding.
    """
    data = digits()
    torch.manual_seed(seed)
    model = MLP([64, 32, 32, 10], norm).double()
    for module in model.modules():
        if "eps" in vars(module):
            vars(module)["eps"] = 1e-30
    hidden, rest = hidden_and_rest(model)
    with torch.no_grad():
        for parameter in hidden:
            parameter.mul_(scale)
    groups: list[dict[str, Any]] = [{"params": hidden, "lr": lr * scale**2}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(data.train_images), (64,), generator=generator)
        loss = cross_entropy(model(data.train_images[batch].flatten(1).double()), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def scale_invariance(norm: Norm, full: bool) -> Measured:
    """Largest relative difference between the losses of (w, η) and (10 w, 100 η), per seed."""
    seeds, steps = (5, 500) if full else (1, 100)
    runs = [(scaled_run(norm, 1, s, steps), scaled_run(norm, 10, s, steps)) for s in range(seeds)]
    differences = [
        max(abs(a - b) / a if math.isfinite(b) else 1e9 for a, b in zip(*pair, strict=True)) for pair in runs
    ]
    return {
        "steps": steps,
        "first_loss": [a[0] for a, _ in runs],
        "last_loss": [a[-1] for a, _ in runs],
        "relative_difference": differences,
    }


def _equal_trajectories(measured: Measured) -> bool:
    """over all steps and seeds the two losses differ by at most 1e-6 of themselves, while the loss halves."""
    learned = all(
        2 * last <= first for first, last in zip(measured["first_loss"], measured["last_loss"], strict=True)
    )
    return learned and max(measured["relative_difference"]) <= 1e-6


def _tell_scale_invariance(measured: Measured) -> str:
    return (
        f"over {measured['steps']} steps the losses of (w, η) and (10 w, 100 η) differ by at most "
        f"{max(measured['relative_difference']):.1g} of themselves; the loss falls from "
        f"{median(measured['first_loss']):.2f} to {median(measured['last_loss']):.2f} "
        f"({seeds_of(measured['last_loss'])})"
    )


def settled_norm(norm: Norm, lr: float, decay: float, seed: int, steps: int) -> float:
    """‖w‖ of the hidden layers, averaged over the last quarter of a training run with weight decay.

    Half of the labels are drawn at random in every batch: a network that has learned everything has no
    gradient left to hold up its weights. The other parameters train at a learning rate of their own.
    """
    data = digits()
    inputs = data.train_images.flatten(1)
    torch.manual_seed(seed)
    model = MLP([64, 32, 32, 10], norm)
    hidden, rest = hidden_and_rest(model)
    optimizer = torch.optim.SGD(
        [{"params": hidden, "lr": lr, "weight_decay": decay}, {"params": rest, "lr": 0.01}], lr=lr
    )
    generator = torch.Generator().manual_seed(seed)
    lengths = []
    for step in range(steps):
        batch = torch.randint(len(inputs), (64,), generator=generator)
        random = torch.rand(64, generator=generator) < 0.5
        labels = torch.where(random, torch.randint(10, (64,), generator=generator), data.train_labels[batch])
        loss = cross_entropy(model(inputs[batch]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 3 * steps // 4:
            squares = [p.detach().square().sum() for p in hidden if p.dim() == 2]
            lengths.append(torch.stack(squares).sum().sqrt().item())
    return math.fsum(lengths) / len(lengths)


def weight_norm_equilibrium(norm: Norm, full: bool) -> Measured:
    """‖w‖ after training, over learning rates and weight decays, and its slope in η/λ, both logarithmic."""
    short = [(0.1, 0.1), (0.2, 0.05), (0.4, 0.025)]
    more = [(0.05, 0.1), (0.1, 0.05), (0.2, 0.025), (0.4, 0.0125), (0.2, 0.1), (0.4, 0.05)]
    seeds, steps = (3, 1000) if full else (1, 400)
    points: list[dict[str, Any]] = [
        {"lr": lr, "decay": decay, "norm": [settled_norm(norm, lr, decay, s, steps) for s in range(seeds)]}
        for lr, decay in short + more * full
    ]
    x = [math.log(point["lr"] / point["decay"]) for point in points]
    y = [math.log(max(median(point["norm"]), 1e-12)) for point in points]
    return {"points": points, "slope": _slope(x, y)}


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    centre = math.fsum(x) / len(x)
    return math.fsum((a - centre) * b for a, b in zip(x, y, strict=True)) / math.fsum(
        (a - centre) ** 2 for a in x
    )


def _quarter(measured: Measured) -> bool:
    """the slope of log ‖w‖ against log(η/λ) lies between 0.2 and 0.3."""
    return bool(0.2 <= measured["slope"] <= 0.3)


def _tell_equilibrium(measured: Measured) -> str:
    points = ", ".join(
        f"{point['lr'] / point['decay']:g}: {median(point['norm']):.3g}" for point in measured["points"]
    )
    seeds = seeds_of(measured["points"][0]["norm"])
    return f"‖w‖ at η/λ = {points} ({seeds}); slope {measured['slope']:.3f} (theory 0.25)"


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), the block of ResNet-V2, with He's initialization.

    A transition block changes the size: its shortcut is a 1×1 convolution of the *normalized* input.
    """

    def __init__(self, norm: Norm, channels: int, out: int, size: int, transition: bool) -> None:
        super().__init__()
        stride = out // channels
        self.norm1 = build_norm(norm, (1, channels, size, size))
        # Circular padding: no border where a part of the signal is missing.
        ring = {"padding": 1, "padding_mode": "circular", "bias": False}
        self.conv1 = nn.Conv2d(channels, out, 3, stride, **ring)  # type: ignore[arg-type]
        self.norm2 = build_norm(norm, (1, out, size // stride, size // stride))
        self.conv2 = nn.Conv2d(out, out, 3, **ring)  # type: ignore[arg-type]
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if transition else None
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.norm1(x))
        stream: Tensor = x if self.shortcut is None else self.shortcut(h)
        return stream + self.conv2(relu(self.norm2(self.conv1(h))))  # type: ignore[no-any-return]


@torch.no_grad()
def stream_variance(norm: Norm, seed: int, blocks: int, width: int = 32) -> list[list[float]]:
    """Variance per channel of the residual stream, averaged over channels, after each block of three stages.

    The network is new; its input is Gaussian noise (64, width, 8, 8).
    """
    torch.manual_seed(seed)
    x, size, channels = torch.randn(64, width, 8, 8), 8, width
    stages = []
    for stage in range(3):
        variances = []
        for number in range(blocks):
            out = width * 2**stage
            x = PreActivationBlock(norm, channels, out, size, transition=number == 0)(x)
            channels, size = out, x.size(-1)
            variances.append(x.var((0, 2, 3)).mean().item())
        stages.append(variances)
    return stages


def signal_propagation(norm: Norm, full: bool) -> Measured:
    """The stream's variance by stage and block, with the technique and without any."""
    seeds, blocks = (3, 6) if full else (1, 4)
    return {
        kind: [stream_variance(net, seed, blocks) for seed in range(seeds)]
        for kind, net in (("normalized", norm), ("plain", "none"))
    }


def _linear_and_reset(measured: Measured) -> bool:
    """within a stage every step of the variance is within 50 % of the stage's median step; each stage starts
    below 0.6 of where the last one ended; without normalization the last variance is at least 10 times the
    highest of these.
    """
    for stages in measured["normalized"]:
        for variances in stages:
            steps = [b - a for a, b in pairwise(variances)]
            if not all(0.5 * median(steps) <= step <= 1.5 * median(steps) for step in steps):
                return False
        if not all(after[0] < 0.6 * before[-1] for before, after in pairwise(stages)):
            return False
    highest = max(value for stages in measured["normalized"] for variances in stages for value in variances)
    return all(stages[-1][-1] >= 10 * highest for stages in measured["plain"])


def _tell_signal_propagation(measured: Measured) -> str:
    def line(stages: list[list[float]]) -> str:
        return ", ".join(f"{variances[0]:.2g} → {variances[-1]:.2g}" for variances in stages)

    return (
        f"variance of the stream in each stage: normalized {line(measured['normalized'][0])}; "
        f"plain {line(measured['plain'][0])} (the first of {seeds_of(measured['plain'])})"
    )


class Noisy(nn.Module):
    """A normalization, then in training noise whose distribution changes at every step.

    Each unit draws a mean from ±``shift`` and a scale from 1 to 1 + ``scale``; each sample scatters around
    them.
    """

    def __init__(self, norm: nn.Module, shift: float = 0.5, scale: float = 0.25) -> None:
        super().__init__()
        self.norm, self.shift, self.scale = norm, shift, scale

    def forward(self, input: Tensor) -> Tensor:
        x: Tensor = self.norm(input)
        if not self.training:
            return x
        mean = self.shift * (2 * torch.rand(x.shape[1:]) - 1)
        gain = 1 + self.scale * torch.rand(x.shape[1:])
        return (gain + 0.1 * torch.randn_like(x)) * x + mean + 0.1 * (2 * torch.rand_like(x) - 1)


def noise_run(norm: Norm, noisy: bool, lr: float, seed: int, steps: int) -> dict[str, float]:
    """Accuracy of a ten-layer network, and how far the inputs of its middle layer shift while it trains.

    Both in training mode, noise included: accuracy on the test digits at the end, and the change of a
    unit's mean over one fixed batch from one look to the next (ten steps), in its standard deviations; the
    mean over units, the median over training.
    """
    data = digits()
    torch.manual_seed(seed)
    model = MLP([64] + [64] * 10 + [10], (lambda shape: Noisy(build_norm(norm, shape))) if noisy else norm)
    middle = [layer for layer in model if isinstance(layer, nn.Linear)][5]
    seen: list[Tensor] = []
    middle.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    means: list[Tensor] = []
    shifts: list[float] = []

    def look(_: int) -> None:
        with torch.no_grad():
            model(data.train_images[:128].flatten(1))
        x = seen[-1]
        means.append(x.mean(0))
        seen.clear()
        if len(means) > 1:
            shifts.append(((means[-1] - means[-2]).abs() / (x.std(0) + 1e-6)).mean().item())

    inputs = data.train_images.flatten(1)
    train(model, inputs, data.train_labels, steps=steps, lr=lr, seed=seed, every=10, on_step=look)
    return {"accuracy": _accuracy_in_training_mode(model, data), "shift": median(shifts)}


@torch.no_grad()
def _accuracy_in_training_mode(model: nn.Module, data: Digits) -> float:
    model.train()
    guesses = model(data.test_images.flatten(1)).argmax(1)
    return float((guesses == data.test_labels).float().mean())


def noise(norm: Norm, full: bool) -> Measured:
    """Accuracy and shift of the plain, the normalized and the noisy normalized network, by learning rate."""
    seeds, lrs = (3, [0.1, 0.01]) if full else (1, [0.1])
    kinds: dict[str, tuple[Norm, bool]] = {
        "plain": ("none", False),
        "normalized": (norm, False),
        "noisy": (norm, True),
    }
    return {
        str(lr): {
            kind: [noise_run(net, noisy, lr, seed, 200) for seed in range(seeds)]
            for kind, (net, noisy) in kinds.items()
        }
        for lr in lrs
    }


def _typical(measured: Measured, kind: str, quantity: str, lr: str = "0.1") -> float:
    return float(median(run[quantity] for run in measured[lr][kind]))


def _noise_does_not_matter(measured: Measured) -> bool:
    """noisy inputs shift twice as much as quiet ones; accuracy within 5 points of quiet, 20 above plain."""
    accuracy = {kind: _typical(measured, kind, "accuracy") for kind in measured["0.1"]}
    unstable = _typical(measured, "noisy", "shift") >= 2 * _typical(measured, "normalized", "shift")
    as_good = accuracy["noisy"] >= accuracy["normalized"] - 0.05
    return unstable and as_good and accuracy["noisy"] >= accuracy["plain"] + 0.2


def _tell_noise(measured: Measured) -> str:
    by_lr = []
    for lr in measured:
        accuracies = ", ".join(f"{k} {_typical(measured, k, 'accuracy', lr):.3f}" for k in measured[lr])
        by_lr.append(f"accuracy at learning rate {lr}: {accuracies}")
    shift = [_typical(measured, kind, "shift") for kind in ("normalized", "noisy")]
    shifts = f"{shift[0]:.2f} σ normalized, {shift[1]:.2f} σ noisy"
    seeds = seeds_of(measured["0.1"]["noisy"])
    return f"{'; '.join(by_lr)}; shift of a layer's inputs in ten steps {shifts} ({seeds})"


VAN_LAARHOVEN = ("van Laarhoven 2017", "https://arxiv.org/abs/1706.05350")

CLAIMS = (
    Claim(
        name="one_formula.scale_invariance",
        technique="batch",
        paper=VAN_LAARHOVEN[0],
        url=VAN_LAARHOVEN[1],
        where="the section on the effective learning rate",
        says="Before a normalization only η/‖w‖² counts: (w, η) and (10 w, 100 η) train alike.",
        measure=scale_invariance,
        holds=_equal_trajectories,
        tells=_tell_scale_invariance,
        caveat="in float64 and with ε = 1e-30; an ordinary ε breaks the invariance where variances are small",
    ),
    Claim(
        name="one_formula.weight_norm_equilibrium",
        technique="batch",
        paper=VAN_LAARHOVEN[0],
        url=VAN_LAARHOVEN[1],
        where="the section on the effective learning rate",
        says="With weight decay λ the weights settle where ‖w‖ is proportional to (η/λ)^¼.",
        measure=weight_norm_equilibrium,
        holds=_quarter,
        tells=_tell_equilibrium,
        caveat="half of the labels are random, so that gradients do not die out; the law needs ηλ ≪ 1",
    ),
    Claim(
        name="one_formula.signal_propagation",
        technique="batch",
        paper="Brock, De & Smith 2021",
        url="https://arxiv.org/abs/2101.08692",
        where="the section on signal propagation plots",
        says=(
            "In a new ResNet with Batch Normalization the stream's variance grows linearly within a stage "
            "and is reset by each transition block; without normalization it explodes."
        ),
        measure=signal_propagation,
        holds=_linear_and_reset,
        tells=_tell_signal_propagation,
        caveat="small: 8×8 inputs, three stages of four to six blocks, circular padding",
    ),
    Claim(
        name="one_formula.noise",
        technique="batch",
        paper="Santurkar et al. 2018",
        url="https://arxiv.org/abs/1805.11604",
        where="section 2",
        says=(
            "Noise that shifts every layer's inputs at every step hardly hurts a network with Batch "
            "Normalization: that it steadies these inputs is not why it helps."
        ),
        measure=noise,
        holds=_noise_does_not_matter,
        tells=_tell_noise,
        caveat=(
            "judged at 0.1 only; at 0.01, in the full run, noise costs about ten points, more than the rule "
            "would allow. "
            "Accuracy is measured with the batch's own statistics. The plain network starts from "
            "PyTorch's initialization; with Kaiming's it would train too"
        ),
    ),
)
