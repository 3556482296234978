"""Feed-forward style transfer, trained for real: ``python -m normtutor.lab.style`` compares normalizations.

The losses are those of Gatys, Ecker & Bethge 2015 (https://arxiv.org/abs/1508.06576): features for the
content, Gram matrices of features for the style. The features come from fixed random filters at several
scales. VGG's, which the papers use, are half a gigabyte of weights to download; random filters are enough to
describe a texture (Ustyuzhaninov et al. 2016, https://arxiv.org/abs/1606.00021; He, Wang & Hopcroft 2016,
https://arxiv.org/abs/1606.04801). They know edges and colours, but no objects.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, relu

from normtutor.lab.data import photographs
from normtutor.lab.figures import use_style
from normtutor.lab.text import table
from normtutor.lab.training import one_thread
from normtutor.networks import Norm, StyleTransferNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The four that are trained on, one that only tests, and the one whose style is learned.
TRAINING, HELD_OUT, STYLE = ("china", "coffee", "rocket", "chelsea"), "astronaut", "flower"
SMALL = {"width": 8, "crop": 48, "steps": 60, "batch_size": 4, "size": 128}  # seconds on a CPU
FULL = {"width": 64, "crop": 256, "steps": 400, "batch_size": 4, "size": 512}  # the seed's network, for a GPU
SHOWN = ("width", "crop", "batch_size", "size", "device")

Comparison = dict[str, Any]


class RandomFilters(nn.Module):
    """ReLU of fixed random filters, at full, half and a quarter of the resolution.

    Every filter is drawn from a normal distribution and scaled to length 1. Two thirds sum to 0 in each
    colour, so that they answer to edges and not to brightness; the others see colours.

    Args:
        filters: F, at each scale.
        size: of a filter in pixels, odd.
        scales: how many; each halves the resolution.
        seed: of the draw.
    """

    weight: Tensor

    def __init__(self, filters: int = 24, size: int = 7, scales: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(filters, 3, size, size, generator=generator)
        self.scales, self.edges = scales, 2 * filters // 3
        weight[: self.edges] -= weight[: self.edges].mean(dim=(2, 3), keepdim=True)
        self.register_buffer("weight", weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) → one tensor (N, F, H', W') per scale; no padding, so that no border is seen.

        Raises:
            ValueError: the images are too small for the coarsest scale.
        """
        least = self.weight.size(-1) << (self.scales - 1)
        if min(images.shape[2:]) < least:
            raise ValueError(f"expected images of at least {least}×{least}, got {tuple(images.shape[2:])}")
        features = []
        for scale in range(self.scales):
            images = avg_pool2d(images, 2) if scale else images
            features.append(relu(conv2d(images, self.weight)))
        return features


def gram(features: Tensor) -> Tensor:
    """Which features occur together, wherever that is: (N, F, H, W) → (N, F, F), averaged over the positions.

    Gatys, Ecker & Bethge 2015, section Methods, there without the average.
    """
    rows = features.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.size(2)


class PerceptualLoss(nn.Module):
    """Style loss plus ``content_weight`` times content loss, each relative to what it compares with.

    Args:
        style: the picture (3, H, W), −1 black and 1 white, whose Gram matrices are the target.
        content_weight: more of it keeps more of the photograph.
        filters: what sees the pictures, images → features at several scales; default: random filters.
    """

    def __init__(self, style: Tensor, content_weight: float = 0.03, filters: nn.Module | None = None) -> None:
        super().__init__()
        self.filters = (RandomFilters() if filters is None else filters).to(style.device)
        self.content_weight = content_weight
        self.targets = [gram(features) for features in self.filters(style[None])]

    def style(self, features: Sequence[Tensor]) -> Tensor:
        """Squared distance of the Gram matrices, relative to the style's own: 0 in its style, 1 for grey."""
        pairs = zip(features, self.targets, strict=True)
        parts = [
            (gram(f) - target).square().sum((1, 2)).mean() / target.square().sum() for f, target in pairs
        ]
        return torch.stack(parts).mean()

    def content(self, features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Squared distance of the edges at half resolution, relative to their variance in the photographs."""
        edges = slice(getattr(self.filters, "edges", None))  # of other features, all
        f, target = features[1][:, edges], wanted[1][:, edges]
        return (f - target).square().mean() / target.var()

    def forward(self, output: Tensor, photograph: Tensor) -> Tensor:
        """The loss of ``output``, the stylized ``photograph``, both (N, 3, H, W)."""
        features = self.filters(output)
        with torch.no_grad():
            wanted = self.filters(photograph)
        return self.style(features) + self.content_weight * self.content(features, wanted)


def pictures(size: int = 128, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Every photograph that is used here, (3, H, W), −1 black and 1 white; the shorter side is ``size``.

    Of the style, only the petals: a square of ``7 / 8`` of ``size``.
    """
    images = photographs(*TRAINING, HELD_OUT, size=size) | photographs(STYLE, size=2 * size)
    top, left, side = 5 * size // 16, 35 * size // 32, 7 * size // 8
    images[STYLE] = images[STYLE][:, top : top + side, left : left + side]
    return {name: 2 * image.to(device) - 1 for name, image in images.items()}


def random_crops(images: Sequence[Tensor], count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, 3, size, size): squares cut out of ``images`` (3, H, W) at random."""

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    crops = []
    for _ in range(count):
        image = images[draw(len(images))]
        top, left = (draw(side - size + 1) for side in image.shape[1:])
        crops.append(image[:, top : top + size, left : left + size])
    return torch.stack(crops)


class Stylizer(NamedTuple):
    """A trained network, in evaluation mode, and its loss at every step."""

    network: StyleTransferNetwork
    losses: list[float]

    @torch.no_grad()
    def __call__(self, photograph: Tensor) -> Tensor:
        """The stylized ``photograph``, (3, H, W) → the same, −1 black and 1 white."""
        y: Tensor = self.network(photograph[None])[0]
        return y

    @property
    def final_loss(self) -> float:
        """Mean over the last fifth of the steps, since a single step sees a few random crops.

        Raises:
            ValueError: there was no step.
        """
        if not self.losses:
            raise ValueError("the network was not trained: there is no loss to average")
        last = self.losses[-max(len(self.losses) // 5, 1) :]
        return sum(last) / len(last)


@one_thread()  # of the CPU, where the networks are small; a GPU does not care
def train_stylizers(
    norms: Sequence[Norm],
    *,
    width: int = 8,
    crop: int = 48,
    steps: int = 60,
    batch_size: int = 4,
    size: int = 128,
    lr: float = 0.01,
    seed: int = 0,
    device: torch.device | str = "cpu",
    deadline: float = math.inf,
    filters: nn.Module | None = None,
) -> list[Stylizer]:
    """Train one :class:`StyleTransferNetwork` per norm with Adam, in lockstep on the same random crops.

    Args:
        norms: the normalizations, see :func:`normtutor.networks.build_norm`.
        width: of the networks.
        crop: height and width of a training image.
        steps, batch_size, lr: of the optimization.
        size: shorter side of the photographs, see :func:`pictures`.
        seed: of the initialization and of the crops.
        device: what trains.
        deadline: of ``time.monotonic()``; after it no further step is begun, for any of them.
        filters: of the loss, see :class:`PerceptualLoss`.

    Raises:
        ValueError: ``norms`` is a single name, ``steps`` is not positive, or ``crop`` does not fit into the
            photographs.
    """
    if isinstance(norms, str):
        raise ValueError(f"expected a list of normalizations, got {norms!r}: write [{norms!r}]")
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    if crop > size:
        raise ValueError(f"crop must be at most size, the photographs' shorter side ({size}), got {crop}")
    images = pictures(size, device)
    photographs_ = [images[name] for name in TRAINING]
    loss_of = PerceptualLoss(images[STYLE], filters=filters)
    networks, optimizers = [], []
    for norm in norms:
        torch.manual_seed(seed)
        networks.append(StyleTransferNetwork(norm, width, crop).to(device))
        optimizers.append(torch.optim.Adam(networks[-1].parameters(), lr=lr))
    generator = torch.Generator().manual_seed(seed)
    losses: list[list[Tensor]] = [[] for _ in norms]
    for _ in range(steps):
        if time.monotonic() > deadline:
            break
        crops = random_crops(photographs_, batch_size, crop, generator)
        for network, optimizer, seen in zip(networks, optimizers, losses, strict=True):
            loss = loss_of(network(crops), crops)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.detach())
        if crops.is_cuda:
            torch.cuda.synchronize()  # so that the deadline is that of the work, not of its launch
    return [
        Stylizer(network.eval(), [loss.item() for loss in seen])
        for network, seen in zip(networks, losses, strict=True)
    ]


@torch.no_grad()
@one_thread()
def held_out(stylizer: Stylizer, size: int = 128, contrast: float = 0.3) -> dict[str, float]:
    """What a network makes of the photograph that it was not trained on, and of a dimmed copy.

    Returns:
        ``loss`` on the photograph; ``loss_dimmed`` when the network sees ``contrast`` times the photograph,
        the loss still asking for the undimmed one's content; ``change``, the difference between the two
        outputs, root mean square relative to the standard deviation of the first; ``change_to_grey``, the
        same for an evenly grey photograph: near 0 if the network ignores what it sees.
    """
    device = next(stylizer.network.parameters()).device
    images = pictures(size, device)
    photograph, loss_of = images[HELD_OUT], PerceptualLoss(images[STYLE])
    y, dimmed, grey = (stylizer(factor * photograph) for factor in (1, contrast, 0))

    def change(other: Tensor) -> float:
        relative: float = ((other - y).square().mean().sqrt() / y.std()).item()
        return relative

    return {
        "loss": loss_of(y[None], photograph[None]).item(),
        "loss_dimmed": loss_of(dimmed[None], photograph[None]).item(),
        "change": change(dimmed),
        "change_to_grey": change(grey),
    }


def gallery(rows: Sequence[Mapping[str, Tensor]], size: int = 88) -> "Figure":
    """Pictures in rows, each under its name.

    Args:
        rows: name → picture (3, H, W), −1 black and 1 white; its middle square is shown.
        size: side of a picture in pixels: few, so that a page stays light.

    Raises:
        ValueError: there is no picture.
    """
    columns = max(map(len, rows), default=0)
    if not columns:
        raise ValueError("expected at least one row with a picture, got none")
    use_style()
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(len(rows), columns, figsize=(1.25 * columns, 1.5 * len(rows)), squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes in axes_row[len(row) :]:
            axes.remove()
        for axes, (name, picture) in zip(axes_row, row.items(), strict=False):
            side = min(picture.shape[1:])
            top, left = ((length - side) // 2 for length in picture.shape[1:])
            square = picture[None, :, top : top + side, left : left + side].float().cpu()
            small = interpolate(square, size=(size, size), mode="bilinear", antialias=True)[0]
            levels = ((small + 1) * 23.5).round().clamp(0, 47) / 47  # 48 of them compress well
            axes.imshow(levels.permute(1, 2, 0).numpy(), interpolation="none")
            axes.set_title(name, fontsize=9.5)
            axes.axis("off")
    plt.close(figure)
    return figure


def compare(norms: Mapping[str, Norm], **settings: Any) -> Comparison:
    """Train and measure: name → final training loss, and :func:`held_out`'s numbers.

    Args:
        norms: name → normalization.
        settings: of :func:`train_stylizers`.
    """
    start = time.monotonic()
    stylizers = train_stylizers(list(norms.values()), **settings)
    seconds = time.monotonic() - start
    steps = len(stylizers[0].losses)
    measured: Comparison = {
        "settings": {key: settings[key] for key in settings if key in SHOWN},
        "steps": steps,
    }
    if steps:
        size = settings.get("size", 128)
        rows = {
            name: {"training_loss": s.final_loss} | held_out(s, size)
            for name, s in zip(norms, stylizers, strict=True)
        }
        measured |= {"seconds": round(seconds, 2), "networks": rows}
    return measured


def comparison_table(measured: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of :func:`compare`'s numbers."""
    head = ["normalization", "training loss", "held out", "at contrast 0.3", "picture changes by"]
    rows = [
        [
            name,
            *(f"{row[key]:.3f}" for key in ("training_loss", "loss", "loss_dimmed")),
            f"{row['change']:.1%}",
        ]
        for name, row in measured.get("networks", {}).items()
    ]
    return head, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print the comparison; small by default, at the seed's full width with ``--full``."""
    parser = argparse.ArgumentParser(prog="python -m normtutor.lab.style", description=main.__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="width 64, 256×256 crops: for a GPU")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--norms", nargs="+", default=["instance", "batch"])
    options = parser.parse_args(arguments)
    settings = dict(FULL if options.full else SMALL, device=options.device)
    settings["steps"] = options.steps or settings["steps"]
    measured = compare({name: name for name in options.norms}, **settings)
    print(", ".join(f"{key} {value}" for key, value in measured["settings"].items()))
    print(table(*comparison_table(measured)))
    print(f"{measured['steps']} steps in {measured.get('seconds', 0)} s")


if __name__ == "__main__":
    main()
