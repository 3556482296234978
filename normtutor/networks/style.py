"""The seed's feed-forward style-transfer network, in the spirit of Johnson, Alahi & Fei-Fei 2016
(https://arxiv.org/abs/1603.08155) and Ulyanov, Vedaldi & Lempitsky 2016 (https://arxiv.org/abs/1607.08022)."""

from torch import Tensor, nn

from normtutor.networks.norm import Norm, build_norm


class StyleTransferBlock(nn.Module):
    """3×3 convolution – norm – ReLU; height and width stay.

    The seed's ReLU works in place; this one does not. In place it overwrites what the norm returned, so
    whoever looks at that (a hook, a figure of the activations) sees the ReLU's output instead; and what
    training keeps for the backward pass is the ReLU's output either way.

    Args:
        in_channels, out_channels: of the convolution.
        norm: the normalization, see :func:`normtutor.networks.build_norm`.
        image_size: height and width that a norm is built for which has parameters at every position.

    Shape: (N, in_channels, H, W) → (N, out_channels, H, W).

    Raises:
        ValueError: an unknown ``norm``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norm = "instance", image_size: int = 256
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = build_norm(norm, (1, out_channels, image_size, image_size))
        self.relu = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.relu(self.norm(self.conv(input)))
        return y


class StyleTransferNetwork(nn.Module):
    """Five blocks of 64, 128, 256, 128 and 64 channels, a 3×3 convolution to RGB, and Tanh.

    Args:
        norm: the normalization, see :func:`normtutor.networks.build_norm`.
        width: channels of the first block; the others follow in the ratio 1 : 2 : 4 : 2 : 1. The seed's
            network has 64; 8 trains on a CPU in seconds.
        image_size: height and width that a norm is built for which has parameters at every position
            ("layer", "rms"); with any other norm the network takes images of every size.

    Shape: images (N, 3, H, W), −1 black and 1 white → the same.

    Raises:
        ValueError: ``width`` is no positive integer; an unknown ``norm``; in ``forward``, an input that is no
            batch of RGB images.
    """

    def __init__(self, norm: Norm = "instance", width: int = 64, image_size: int = 256) -> None:
        super().__init__()
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ValueError(f"width must be a positive number of channels, got {width!r}")
        self.encoder = nn.Sequential(
            StyleTransferBlock(3, width, norm, image_size),
            StyleTransferBlock(width, 2 * width, norm, image_size),
            StyleTransferBlock(2 * width, 4 * width, norm, image_size),
        )
        self.decoder = nn.Sequential(
            StyleTransferBlock(4 * width, 2 * width, norm, image_size),
            StyleTransferBlock(2 * width, width, norm, image_size),
            nn.Conv2d(width, 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.size(1) != 3:
            raise ValueError(f"expected RGB images (N, 3, H, W), got shape {tuple(input.shape)}")
        y: Tensor = self.decoder(self.encoder(input))
        return y
