"""The claims about Layer Normalization, RMSNorm and their places in a network that this course tests."""

import time
from collections.abc import Sequence
from itertools import product
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normtutor.catalog import TECHNIQUES, technique
from normtutor.lab.claims import Claim, Measured
from normtutor.lab.data import digits
from normtutor.lab.text import seeds_of
from normtutor.lab.training import accuracy
from normtutor.networks import RNN, Norm, Transformer

GIVEN_UP = 99.0  # stands for a loss that is no longer a number


def xavier(network: nn.Module) -> None:
    """The initialization of Xiong et al. 2020, section 3.2: Xavier's for every weight, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_normal_(module.in_proj_weight)


def last_gradient(placement: str, norm: Norm, depth: int, seed: int, width: int = 32) -> float:
    """‖∂L/∂W‖ for the last weight of the last block at initialization, L the loss of one token.

    The mean over 16 tokens, each of its own sequence of 8 random ones; Theorem 1 bounds it for each token.
    """
    torch.manual_seed(seed)
    network, head = Transformer(width, 4, depth, 0.0, placement, norm), nn.Linear(width, 10)
    xavier(network)
    xavier(head)
    logits = head(network(torch.randn(16, 8, width))[:, 0])
    labels = torch.randint(10, (16,))
    weight = network.blocks[-1].ffn[3].weight  # type: ignore[index,union-attr]
    losses = cross_entropy(logits, labels, reduction="none")
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    return mean(float(gradient.norm()) for gradient in gradients)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the power law y ∝ x^p that fits best: the slope through the logarithms."""
    log_x, log_y = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    centred = log_x - log_x.mean()
    return ((centred @ log_y) / (centred @ centred)).item()


def gradient_depth(norm: Norm, full: bool) -> Measured:
    """The last weight's gradient against depth, for both placements."""
    depths, seeds = [2, 4, 8, 16, 32], 10 if full else 3
    return {
        placement: {
            str(depth): mean(last_gradient(placement, norm, depth, seed) for seed in range(seeds))
            for depth in depths
        }
        for placement in ("post", "pre")
    }


def _power(measured: Measured, placement: str) -> float:
    norms = measured[placement]
    return slope([float(depth) for depth in norms], list(norms.values()))


def _as_the_theorem_says(measured: Measured) -> bool:
    """‖∇‖ ∝ depth^p with p between −0.15 and 0.15 for Post-LN, between −0.65 and −0.3 for Pre-LN."""
    return abs(_power(measured, "post")) <= 0.15 and -0.65 <= _power(measured, "pre") <= -0.3


def _tell_gradient_depth(measured: Measured) -> str:
    depths = list(measured["post"])
    parts = ", ".join(f"{name.title()}-LN p = {_power(measured, name):.2f}" for name in ("post", "pre"))
    return f"{parts} (theory: 0 and −0.5), over depths {depths[0]} to {depths[-1]}"


def sorting_loss(
    placement: str, norm: Norm, lr: float, warm_up: int, steps: int, seed: int, depth: int = 8
) -> float:
    """Cross-entropy of a Transformer that learns to sort 8 numbers out of 10, mean of its last 10 steps.

    Adam; over the first ``warm_up`` steps the learning rate rises linearly to ``lr``. Guessing costs
    ln 10 = 2.30.
    """
    torch.manual_seed(seed)
    numbers, length, width = 10, 8, 32
    network = Transformer(width, 4, depth, 0.0, placement, norm)
    xavier(network)
    tokens, head = nn.Embedding(numbers, width), nn.Linear(width, numbers)
    places = nn.Parameter(0.5 * torch.randn(length, width))
    parameters = [places, *network.parameters(), *tokens.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    generator, losses = torch.Generator().manual_seed(seed), []
    for step in range(1, steps + 1):
        x = torch.randint(numbers, (16, length), generator=generator)
        logits = head(network(tokens(x) + places))
        loss = cross_entropy(logits.flatten(0, 1), x.sort(dim=1).values.flatten())
        if not loss.isfinite():
            return GIVEN_UP
        optimizer.param_groups[0]["lr"] = lr * min(1.0, step / warm_up) if warm_up else lr
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return min(GIVEN_UP, mean(losses[-10:]))


def warm_up(norm: Norm, full: bool) -> Measured:
    """Loss with and without warm-up, for both placements, at a high learning rate (in full a low one too)."""
    runs = [("post", False), ("post", True), ("pre", False), *([("pre", True)] * full)]
    steps, seeds = (250, 3) if full else (70, 1)

    def losses(lr: float, seeds: int) -> dict[str, list[float]]:
        return {
            f"{placement}{', warm-up' * warm}": [
                sorting_loss(placement, norm, lr, steps // 2 * warm, steps, seed) for seed in range(seeds)
            ]
            for placement, warm in runs
        }

    return {
        "steps": steps,
        "lr 0.01": losses(0.01, seeds),
        **({"lr 0.001": losses(0.001, 1)} if full else {}),
    }


def _post_needs_it(measured: Measured) -> bool:
    """at lr 0.01, Post-LN's loss is above 2.1 without warm-up, below 1.9 with; Pre-LN's below 1.9 without."""
    loss = {name: median(runs) for name, runs in measured["lr 0.01"].items()}
    return bool(loss["post"] > 2.1 and loss["post, warm-up"] < 1.9 and loss["pre"] < 1.9)


def _tell_warm_up(measured: Measured) -> str:
    def line(lr: str) -> str:
        losses = ", ".join(f"{name.capitalize()} {median(runs):.2f}" for name, runs in measured[lr].items())
        return f"{losses} ({seeds_of(measured[lr]['post'])})"

    rates = [key for key in measured if key.startswith("lr")]
    return f"loss after {measured['steps']} steps, " + "; ".join(f"{lr}: {line(lr)}" for lr in rates)


def read_digits(cell: str, norm: Norm, pixels: int, steps: int, seed: int) -> float:
    """Test accuracy of a recurrent network of 64 units that reads a digit ``pixels`` pixels at a time.

    Adam, learning rate 0.003, batches of 64, gradients clipped to length 1.
    """
    data = digits()
    torch.manual_seed(seed)
    model = RNN(pixels, 64, cell=cell, norm=norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    inputs, test_inputs = (
        images.view(len(images), -1, pixels) for images in (data.train_images, data.test_images)
    )
    for _ in range(steps):
        batch = torch.randint(len(inputs), (64,), generator=generator)
        loss = cross_entropy(model(inputs[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        model.eval()
        return float((model(test_inputs).argmax(1) == data.test_labels).float().mean())


def recurrent(norm: Norm, full: bool) -> Measured:
    """Accuracy with and without normalization, read row by row (and pixel by pixel, in full)."""

    def accuracies(pixels: int, steps: int, seeds: int) -> dict[str, list[float]]:
        return {
            f"{cell}, {kind}": [read_digits(cell, net, pixels, steps, seed) for seed in range(seeds)]
            for cell, (kind, net) in product(("tanh", "lstm"), (("plain", "none"), ("normalized", norm)))
        }

    rows = accuracies(8, 50, 5 if full else 1)
    return {"rows, 50 steps": rows} | ({"pixels, 100 steps": accuracies(1, 100, 3)} if full else {})


def _recurrent_gain(measured: Measured) -> bool:
    """read row by row, both cells gain at least 4 points of test accuracy (medians over the seeds)."""
    accuracy = {name: median(runs) for name, runs in measured["rows, 50 steps"].items()}
    return all(
        accuracy[f"{cell}, normalized"] >= accuracy[f"{cell}, plain"] + 0.04 for cell in ("tanh", "lstm")
    )


def _tell_recurrent(measured: Measured) -> str:
    def gain(runs: dict[str, list[float]], cell: str) -> str:
        plain, normalized = (median(runs[f"{cell}, {kind}"]) for kind in ("plain", "normalized"))
        return f"{cell} {plain:.1%} → {normalized:.1%}"

    return "test accuracy, plain → normalized, " + "; ".join(
        f"{reading}: {gain(runs, 'tanh')}, {gain(runs, 'lstm')} ({seeds_of(runs['tanh, plain'])})"
        for reading, runs in measured.items()
    )


def step_times(models: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of one forward and backward pass of each model, all in turns on the same input."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 2):
        for name, model in models.items():
            start = time.perf_counter()
            model(x).square().mean().backward()
            if turn >= 2:  # the first two rounds warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


def torchs(norm: Norm) -> Norm:
    """The same normalization by torch's own layer."""
    return technique(norm).twin if isinstance(norm, str) and norm in TECHNIQUES else norm


def rms_speed(norm: Norm, full: bool) -> Measured:
    """Share of a recurrent network's training step that ``norm`` saves against LayerNorm."""
    widths, rounds = ([32, 64, 128, 256], 41) if full else ([32, 64], 21)
    saved: dict[str, dict[str, float]] = {}
    for width in widths:
        norms: dict[str, Norm] = {
            "LayerNorm, by hand": "layer",
            "by hand": norm,
            "LayerNorm, torch.nn": torchs("layer"),
            "torch.nn": torchs(norm),
        }
        models: dict[str, nn.Module] = {name: RNN(8, width, norm=which) for name, which in norms.items()}
        times = step_times(models, torch.randn(32, 16, 8), rounds)
        for name in ("by hand", "torch.nn"):
            saved.setdefault(name, {})[str(width)] = 1 - times[name] / times[f"LayerNorm, {name}"]
    return {"saved": saved}


def _saves_everywhere(measured: Measured) -> bool:
    """the model's step gets at least 7 % shorter at every width, by hand and with torch.nn's layers."""
    return bool(min(min(by_width.values()) for by_width in measured["saved"].values()) >= 0.07)


def _tell_rms_speed(measured: Measured) -> str:
    def line(by_width: dict[str, float]) -> str:
        return ", ".join(f"{width} units {share:+.0%}" for width, share in by_width.items())

    def verdict(by_width: dict[str, float]) -> str:
        return f"{line(by_width)}, at least 7 %: {'yes' if min(by_width.values()) >= 0.07 else 'no'}"

    return "time saved against LayerNorm, " + "; ".join(
        f"{name}: {verdict(by_width)}" for name, by_width in measured["saved"].items()
    )


class DyT(nn.Module):
    """Dynamic Tanh, γ tanh(α x) + β with a learned number α (Zhu et al. 2025, equation 1): no statistics."""

    def __init__(self, features: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


class TinyViT(nn.Module):
    """A Vision Transformer for 8×8 images: 16 patches of 2×2 pixels, Pre-LN blocks, mean over the tokens."""

    def __init__(self, norm: Norm, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.body = Transformer(width, 4, depth, 0.0, "pre", norm)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.body(tokens).mean(dim=1))
        return logits


def vit_accuracy(norm: Norm, lr: float, steps: int, seed: int) -> float:
    """Test accuracy of the tiny ViT after ``steps`` steps of Adam on batches of 32 digits."""
    data = digits()
    torch.manual_seed(seed)
    model = TinyViT(norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(data.train_images), (32,), generator=generator)
        loss = cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return accuracy(model, data.test_images, data.test_labels)


def dyt(norm: Norm, full: bool) -> Measured:
    """Accuracy with ``norm`` and with DyT in its place, same settings; in full also with others for DyT."""
    steps, seeds = (1260, 2) if full else (200, 1)

    def runs(which: Norm, lr: float) -> list[float]:
        return [vit_accuracy(which, lr, steps, seed) for seed in range(seeds)]

    measured: Measured = {
        "epochs": round(steps * 32 / 1347),
        "normalized": runs(norm, 1e-3),
        "DyT": runs(as_norm(0.5), 1e-3),
    }
    if full:
        measured |= {"normalized, lr 0.003": runs(norm, 3e-3), "DyT, lr 0.003, α 2": runs(as_norm(2.0), 3e-3)}
    return measured


def as_norm(alpha: float) -> Norm:
    """DyT as a network's ``norm``."""
    return lambda shape: DyT(shape[1], alpha)


def _matches(measured: Measured) -> bool:
    """with LayerNorm's settings, DyT's median accuracy after 5 epochs (in full: 30) is at most 2 points below
    LayerNorm's.
    """
    return bool(median(measured["DyT"]) >= median(measured["normalized"]) - 0.02)


def _tell_dyt(measured: Measured) -> str:
    runs = ", ".join(f"{name} {median(runs):.1%}" for name, runs in measured.items() if name != "epochs")
    return f"test accuracy after {measured['epochs']} epochs ({seeds_of(measured['DyT'])}): {runs}"


CLAIMS = (
    Claim(
        name="layer_norm.recurrent",
        technique="layer",
        paper="Ba, Kiros & Hinton 2016",
        url="https://arxiv.org/abs/1607.06450",
        where="section 6",
        says="Layer Normalization makes recurrent networks train in fewer steps.",
        measure=recurrent,
        holds=_recurrent_gain,
        tells=_tell_recurrent,
        caveat="digits read row by row, 8 steps; read pixel by pixel, 64 steps, both are still far from done",
    ),
    Claim(
        name="layer_norm.gradient_depth",
        technique="layer",
        paper="Xiong et al. 2020",
        url="https://arxiv.org/abs/2002.04745",
        where="section 3, Theorem 1",
        says=(
            "At initialization the gradient of the last layer does not depend on the depth L in a Post-LN "
            "Transformer, and falls as 1/√L in a Pre-LN one."
        ),
        measure=gradient_depth,
        holds=_as_the_theorem_says,
        tells=_tell_gradient_depth,
        caveat="the theorem bounds the loss of one token; averaged over tokens, gradients partly cancel",
    ),
    Claim(
        name="layer_norm.warm_up",
        technique="layer",
        paper="Xiong et al. 2020",
        url="https://arxiv.org/abs/2002.04745",
        where="section 4",
        says="Post-LN Transformers need a warm-up of the learning rate; Pre-LN ones train without.",
        measure=warm_up,
        holds=_post_needs_it,
        tells=_tell_warm_up,
        caveat="one high learning rate; the full run adds 0.001, where the need for a warm-up may be gone",
    ),
    Claim(
        name="layer_norm.rms_speed",
        technique="rms",
        paper="Zhang & Sennrich 2019",
        url="https://arxiv.org/abs/1910.07467",
        where="abstract and section 5",
        says="RMSNorm reduces a model's running time by 7 to 64 % against LayerNorm.",
        measure=rms_speed,
        holds=_saves_everywhere,
        tells=_tell_rms_speed,
        caveat="a CPU, where torch fuses LayerNorm but not RMSNorm; ratios within one run, a small network",
        reproduces=False,
        control=None,
    ),
    Claim(
        name="layer_norm.dyt",
        technique="layer",
        paper="Zhu et al. 2025",
        url="https://arxiv.org/abs/2503.10622",
        where="abstract and section 5",
        says="DyT in the place of a normalization matches it, mostly without tuning hyperparameters.",
        measure=dyt,
        holds=_matches,
        tells=_tell_dyt,
        caveat=(
            "two blocks and 1347 images; the gap narrows from 5 epochs to 30, and the full run also "
            "tries α = 2 at "
            "the start with three times the learning rate, but that is tuning"
        ),
        reproduces=False,
        control=as_norm(0.5),
    ),
)
