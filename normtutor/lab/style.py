"""Feed-forward style transfer, trained for real: ``python -m normtutor.lab.style`` compares normalizations.

The losses are those of Gatys, Ecker & Bethge 2015 (https://arxiv.org/abs/1508.06576): features for the
content, Gram matrices of features for the style. The features come from fixed random filters at several
scales. VGG's, which the papers use, are half a gigabyte of weights to download; random filters are enough to
describe a texture (Ustyuzhaninov et al. 2016, https://arxiv.org/abs/1606.00021; He, Wang & Hopcroft 2016,
https://arxiv.org/abs/1606.04801). They know edges and
colours, but no objects.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, relu

from normtutor.lab.data import photographs
from normtutor.networks import Norm, StyleTransferNetwork

# The four that are trained on, one that only tests, and the one whose style is learned.
TRAINING, HELD_OUT, STYLE = ("china", "coffee", "rocket", "chelsea"), "astronaut", "flower"


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
    """

    def __init__(self, style: Tensor, content_weight: float = 0.1) -> None:
        super().__init__()
        self.filters = RandomFilters().to(style.device)
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
        edges = slice(self.filters.edges)
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


def train_stylizer(
    norm: Norm,
    *,
    width: int,
    crop: int,
    steps: int,
    batch_size: int = 4,
    size: int = 128,
    lr: float = 0.01,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[StyleTransferNetwork, list[float]]:
    """Train a :class:`StyleTransferNetwork` with Adam on random crops; the loss of every step with it.

    Args:
        norm: the normalization, see :func:`normtutor.networks.build_norm`.
        width: of the network.
        crop: height and width of a training image.
        steps, batch_size, lr: of the optimization.
        size: of the photographs, see :func:`pictures`.
        seed: of the initialization and of the crops.
        device: what trains.
    """
    images = pictures(size, device)
    loss_of = PerceptualLoss(images[STYLE])
    torch.manual_seed(seed)
    network = StyleTransferNetwork(norm, width, crop).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        crops = random_crops([images[name] for name in TRAINING], batch_size, crop, generator)
        loss = loss_of(network(crops), crops)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return network, torch.stack(losses).tolist()
