"""The seed's convolutional networks, for images of 28×28 (MNIST) or 8×8 (scikit-learn's digits)."""

from torch import Tensor, nn
from torch.nn.functional import relu

from normtutor.catalog import Shape
from normtutor.layers import GroupNorm
from normtutor.networks.norm import Norm, build_norm


class _CNN(nn.Module):
    """conv–norm–ReLU–pool twice, then two fully connected layers; what the seed's networks share."""

    def __init__(self, num_classes: int, image_size: int, norm: Norm, in_channels: int) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be a positive multiple of 4 (two poolings), got {image_size}")
        half, quarter = image_size // 2, image_size // 4
        self.input_shape = (in_channels, image_size, image_size)
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.norm1 = build_norm(norm, (1, 32, image_size, image_size))
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = build_norm(norm, (1, 64, half, half))
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * quarter * quarter, 128)
        self.norm3 = build_norm(norm, (1, 128), optional=True)  # as the seed leaves it out for groups
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        if tuple(input.shape[1:]) != self.input_shape:
            raise ValueError(f"expected input (N, {self.input_shape}), got {tuple(input.shape)}")
        x = self.pool(relu(self.norm1(self.conv1(input))))
        x = self.pool(relu(self.norm2(self.conv2(x))))
        x = relu(self.norm3(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc2(x)
        return logits


class CNNWithBatchNorm(_CNN):
    """conv–norm–ReLU–pool twice, then two fully connected layers, the first normalized too.

    Args:
        num_classes: K, size of the output.
        image_size: height and width of the input in pixels; a multiple of 4.
        norm: the normalization, see :func:`normtutor.networks.build_norm`.
        in_channels: channels of the input.

    Shape: (N, in_channels, image_size, image_size) → logits (N, K).

    Raises:
        ValueError: ``image_size`` is not a positive multiple of 4; an unknown ``norm``; in ``forward``,
            an input of another shape.
    """

    def __init__(
        self, num_classes: int = 10, image_size: int = 28, norm: Norm = "batch", in_channels: int = 1
    ) -> None:
        super().__init__(num_classes, image_size, norm, in_channels)


class CNNWithGroupNorm(_CNN):
    """The same network with Group Normalization after each convolution; no layer looks across the batch.

    The fully connected layer has no normalization, as in the seed.

    Args:
        num_classes: K, size of the output.
        image_size: height and width of the input in pixels; a multiple of 4.
        num_groups: G, a common divisor of 32 and 64, the numbers of channels.
        in_channels: channels of the input.

    Shape: (N, in_channels, image_size, image_size) → logits (N, K).

    Raises:
        ValueError: ``image_size`` is not a positive multiple of 4; ``num_groups`` does not divide the
            channels; in ``forward``, an input of another shape.
    """

    def __init__(
        self, num_classes: int = 10, image_size: int = 28, num_groups: int = 8, in_channels: int = 1
    ) -> None:
        def norm(shape: Shape) -> nn.Module:
            return GroupNorm(num_groups, shape[1]) if len(shape) > 2 else nn.Identity()

        super().__init__(num_classes, image_size, norm, in_channels)
