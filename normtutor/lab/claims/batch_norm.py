"""The claims about Batch Normalization that this course tests, all on scikit-learn's handwritten digits."""

from functools import partial
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normtutor.lab.claims import Claim, Measured
from normtutor.lab.data import digits
from normtutor.lab.training import accuracy, train
from normtutor.networks import MLP, Norm, build_norm


def steps_to_90_percent(norm: Norm, lr: float, seed: int, steps: int) -> int | None:
    """Steps until a 3×100 sigmoid MLP reads 90 % of the test digits; None if it never does.

    The network and the batch of 60 are those of Ioffe & Szegedy 2015, section 4.1; Xavier's
    initialization gives the plain network its best chance.
    """
    data = digits()
    torch.manual_seed(seed)
    model = MLP([64, 100, 100, 100, 10], norm, nn.Sigmoid)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
    reached: list[int] = []

    def look(step: int) -> None:
        if not reached and accuracy(model, data.test_images.flatten(1), data.test_labels) >= 0.9:
            reached.append(step)

    inputs = data.train_images.flatten(1)
    train(
        model, inputs, data.train_labels, steps=steps, lr=lr, batch_size=60, seed=seed, every=20, on_step=look
    )
    return reached[0] if reached else None


def learning_rates(norm: Norm, full: bool) -> Measured:
    """Steps to 90 % with and without normalization, over learning rates (and seeds, in full)."""
    lrs, seeds, steps = ([0.3, 1, 3, 10, 30], 3, 1500) if full else ([3, 10], 1, 400)
    steps_to = {
        kind: {str(lr): [steps_to_90_percent(net, lr, seed, steps) for seed in range(seeds)] for lr in lrs}
        for kind, net in (("plain", "none"), ("normalized", norm))
    }
    return {"steps_to_90_percent": steps_to, "steps": steps}


def _typical(measured: Measured, kind: str) -> dict[str, float]:
    """Median steps per learning rate; a run that never arrived counts as one step past the end."""
    never = measured["steps"] + 1
    runs = measured["steps_to_90_percent"][kind]
    return {lr: median(never if s is None else s for s in seeds) for lr, seeds in runs.items()}


def _faster_and_higher(measured: Measured) -> bool:
    """normalized needs at most half of plain's steps, each at its best rate, and arrives at rates ≥ 10."""
    plain, normalized = _typical(measured, "plain"), _typical(measured, "normalized")
    at_high_rates = [steps for lr, steps in normalized.items() if float(lr) >= 10]
    return 2 * min(normalized.values()) <= min(plain.values()) and max(at_high_rates) <= measured["steps"]


def _tell_learning_rates(measured: Measured) -> str:
    def line(kind: str) -> str:
        steps = _typical(measured, kind)
        return ", ".join(
            f"lr {lr}: {'never' if n > measured['steps'] else f'{n:.0f}'}" for lr, n in steps.items()
        )

    return (
        f"steps to 90 % (within {measured['steps']}): plain {line('plain')}; normalized {line('normalized')}"
    )


class ConvNet(nn.Sequential):
    """3×3 convolutions of ``width`` channels on 8×8 images, each with its normalization and ReLU."""

    def __init__(self, norm: Norm, width: int = 16, depth: int = 4) -> None:
        steps: list[nn.Module] = []
        for channels in [1] + [width] * (depth - 1):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            steps += [conv, build_norm(norm, (1, width, 8, 8)), nn.ReLU()]
        super().__init__(*steps, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def landscape_along_gradient(norm: Norm, seed: int, steps: int, lr: float = 0.1) -> dict[str, float]:
    """How much loss and gradient vary along the gradient, met while training (Santurkar 2018, Fig. 4).

    Every tenth step, the weights are moved along the negative gradient by lr × {½, 1, 2, 4}; the range of
    the loss there and the largest ‖∇ − ∇'‖ are averaged over the training.
    """
    data = digits()
    torch.manual_seed(seed)
    model = ConvNet(norm)
    parameters = list(model.parameters())
    ranges, changes = [], []

    def gradient(x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
        loss = cross_entropy(model(x), y)
        return loss.item(), list(torch.autograd.grad(loss, parameters))

    @torch.no_grad()
    def place(start: list[Tensor], direction: list[Tensor], step: float) -> None:
        for parameter, at, along in zip(parameters, start, direction, strict=True):
            parameter.copy_(at - step * along)

    def look(step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(len(data.train_images), (64,), generator=generator)
        x, y = data.train_images[batch], data.train_labels[batch]
        start = [parameter.detach().clone() for parameter in parameters]
        _, here = gradient(x, y)
        losses, distances = [], []
        for scale in (0.5, 1, 2, 4):
            place(start, here, scale * lr)
            loss, there = gradient(x, y)
            losses.append(loss)
            squares = [(a - b).square().sum() for a, b in zip(here, there, strict=True)]
            distances.append(torch.stack(squares).sum().sqrt().item())
        place(start, here, 0)
        ranges.append(max(losses) - min(losses))
        changes.append(max(distances))

    train(model, data.train_images, data.train_labels, steps=steps, lr=lr, seed=seed, every=10, on_step=look)
    return {"loss_range": mean(ranges), "gradient_change": mean(changes)}


def landscape(norm: Norm, full: bool) -> Measured:
    """Loss range and gradient change along the gradient, with and without normalization."""
    seeds, steps = (5, 200) if full else (1, 100)
    return {
        kind: [landscape_along_gradient(net, seed, steps) for seed in range(seeds)]
        for kind, net in (("plain", "none"), ("normalized", norm))
    }


def _median_of(measured: Measured, kind: str, quantity: str) -> float:
    return float(median(run[quantity] for run in measured[kind]))


def _smoother(measured: Measured) -> bool:
    """both quantities are at least three times smaller with normalization."""
    return all(
        3 * _median_of(measured, "normalized", q) <= _median_of(measured, "plain", q)
        for q in ("loss_range", "gradient_change")
    )


def _tell_landscape(measured: Measured) -> str:
    at = partial(_median_of, measured)
    return (
        f"range of the loss along the gradient {at('plain', 'loss_range'):.2g} plain, "
        f"{at('normalized', 'loss_range'):.2g} normalized; change of the gradient "
        f"{at('plain', 'gradient_change'):.2g} plain, {at('normalized', 'gradient_change'):.2g} normalized"
    )


def whisper(norm: Norm, seed: int, steps: int) -> dict[str, float]:
    """Teach a network to read, from every other image, whether the batch's first image is a negative.

    Fifteen of the sixteen samples carry no trace of the answer: only a network whose samples
    communicate can give it. Returns the accuracy on those fifteen, on test images, in both modes.
    """
    data = digits()
    torch.manual_seed(seed)
    model = MLP([64, 64, 64, 2], norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def batch(images: Tensor) -> tuple[Tensor, Tensor]:
        x = images[torch.randint(len(images), (16,))].flatten(1)
        negative = torch.randint(2, ())
        x[0] = torch.where(negative == 1, 1 - x[0], x[0])
        return x, negative.expand(15)

    def score(training: bool) -> float:
        model.train(training)
        with torch.no_grad():
            pairs = [batch(data.test_images) for _ in range(200)]
            return float(mean((model(x)[1:].argmax(1) == y).float().mean().item() for x, y in pairs))

    for _ in range(steps):
        x, y = batch(data.train_images)
        loss = cross_entropy(model(x)[1:], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"training_mode": score(True), "evaluation_mode": score(False)}


def leak(norm: Norm, full: bool) -> Measured:
    """Accuracy on samples that hold no information, for the technique and for LayerNorm as contrast."""
    seeds, steps = (5, 600) if full else (1, 300)
    return {
        kind: [whisper(net, seed, steps) for seed in range(seeds)]
        for kind, net in (("normalized", norm), ("layer", "layer"))
    }


def _leaks(measured: Measured) -> bool:
    """above 0.9 in training mode, and below 0.65 in evaluation mode and with LayerNorm."""
    at = partial(_median_of, measured)
    chance = [
        at("normalized", "evaluation_mode"),
        at("layer", "training_mode"),
        at("layer", "evaluation_mode"),
    ]
    return at("normalized", "training_mode") > 0.9 and max(chance) < 0.65


def _tell_leak(measured: Measured) -> str:
    at = partial(_median_of, measured)
    return (
        f"accuracy on the 15 uninformed samples {at('normalized', 'training_mode'):.3f} in training mode, "
        f"{at('normalized', 'evaluation_mode'):.3f} in evaluation mode; "
        f"LayerNorm {at('layer', 'training_mode'):.3f}"
    )


class GhostNorm(nn.Module):
    """Normalize each run of ``size`` samples by itself in training, as ``size`` samples a device would."""

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, input: Tensor) -> Tensor:
        parts = input.split(self.size) if self.training else (input,)
        return torch.cat([self.norm(part) for part in parts])


def error_at_statistics_batch(norm: Norm, size: int, seed: int, steps: int) -> float:
    """Test error (0 to 1) of an MLP trained on batches of 32 whose statistics come from ``size`` samples."""
    data = digits()
    torch.manual_seed(seed)
    model = MLP([64, 100, 100, 10], lambda shape: GhostNorm(build_norm(norm, shape), size))
    inputs = data.train_images.flatten(1)
    train(model, inputs, data.train_labels, steps=steps, lr=0.1, momentum=0.9, batch_size=32, seed=seed)
    return 1 - accuracy(model, data.test_images.flatten(1), data.test_labels)


def statistics_batch(norm: Norm, full: bool) -> Measured:
    """Test error against the number of samples that the statistics come from."""
    sizes, seeds, steps = ([32, 16, 8, 4, 2], 5, 600) if full else ([32, 8, 2], 1, 200)

    def errors(net: Norm, size: int) -> list[float]:
        return [error_at_statistics_batch(net, size, seed, steps) for seed in range(seeds)]

    layer = errors("layer", sizes[0])
    return {"error": {str(size): errors(norm, size) for size in sizes}, "layer": layer}


def _error_rises(measured: Measured) -> bool:
    """the error at n = 2 is at least 10 points above that at n = 32, which is at most 10 %."""
    errors = {size: median(runs) for size, runs in measured["error"].items()}
    return bool(errors["2"] >= errors["32"] + 0.1 and errors["32"] <= 0.1)


def _tell_statistics_batch(measured: Measured) -> str:
    errors = ", ".join(f"n = {size}: {median(runs):.1%}" for size, runs in measured["error"].items())
    return f"test error {errors}; LayerNorm {median(measured['layer']):.1%}"


CLAIMS = (
    Claim(
        name="batch_norm.learning_rates",
        technique="batch",
        paper="Ioffe & Szegedy 2015",
        url="https://arxiv.org/abs/1502.03167",
        where="sections 3.3 and 4.1",
        says="Batch Normalization trains in fewer steps and tolerates higher learning rates.",
        measure=learning_rates,
        holds=_faster_and_higher,
        tells=_tell_learning_rates,
    ),
    Claim(
        name="batch_norm.landscape",
        technique="batch",
        paper="Santurkar et al. 2018",
        url="https://arxiv.org/abs/1805.11604",
        where="section 3 and Figure 4",
        says="Batch Normalization smooths the landscape: loss and gradient vary less along the gradient.",
        measure=landscape,
        holds=_smoother,
        tells=_tell_landscape,
        caveat=(
            "the networks are at different weights when they are probed, as in the paper; a plain network "
            "that stalls on its first plateau (eight layers: one seed of four) is the flatter one"
        ),
    ),
    Claim(
        name="batch_norm.leak",
        technique="batch",
        paper="He et al. 2020 (MoCo)",
        url="https://arxiv.org/abs/1911.05722",
        where="section 3.3, Shuffling BN",
        says="Batch statistics leak information between the samples of a batch.",
        measure=leak,
        holds=_leaks,
        tells=_tell_leak,
        caveat="the paper met the leak in contrastive learning; this experiment isolates it",
    ),
    Claim(
        name="batch_norm.statistics_batch",
        technique="batch",
        paper="Wu & He 2018",
        url="https://arxiv.org/abs/1803.08494",
        where="Figure 1",
        says="Batch Normalization's error rises as the batch that supplies its statistics shrinks.",
        measure=statistics_batch,
        holds=_error_rises,
        tells=_tell_statistics_batch,
    ),
)
