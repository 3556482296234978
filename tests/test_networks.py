"""The course's networks: shapes, the choice of the normalization, and that they learn real digits."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from normtutor.catalog import TECHNIQUES, groups, technique
from normtutor.lab import digits
from normtutor.lab.training import accuracy, train
from normtutor.networks import (
    MLP,
    CNNWithBatchNorm,
    Norm,
    StyleTransferBlock,
    StyleTransferNetwork,
    build_norm,
)


@pytest.mark.parametrize("image_size", [28, 8])
@pytest.mark.parametrize("norm", ["none", *TECHNIQUES])
def test_shapes(image_size: int, norm: str) -> None:
    network = CNNWithBatchNorm(image_size=image_size, norm=norm)
    assert network(torch.randn(4, 1, image_size, image_size)).shape == (4, 10)


def test_default_is_the_seeds_network() -> None:
    network = CNNWithBatchNorm()
    assert network.fc1.in_features == 64 * 7 * 7
    norms = [network.norm1, network.norm2, network.norm3]
    assert [type(n).__name__ for n in norms] == ["BatchNorm2d", "BatchNorm2d", "BatchNorm1d"]


def test_a_technique_undefined_on_vectors_is_left_out() -> None:
    seen: list[tuple[int, ...]] = []

    def group_norm(shape: tuple[int, ...]) -> nn.Module:
        seen.append(shape)
        return nn.GroupNorm(8, shape[1])

    network = CNNWithBatchNorm(norm=group_norm, image_size=8)
    assert seen == [(1, 32, 8, 8), (1, 64, 4, 4), (1, 128)]  # a factory decides by itself
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    row = technique("batch")
    assert isinstance(build_norm("none", (1, 4)), nn.Identity)
    assert isinstance(build_norm("batch", (1, 4, *[2] * max(row.ranks))), nn.Identity)


def test_which_layers_a_technique_puts_in_the_network() -> None:
    def kinds(norm: str) -> list[str]:
        network = CNNWithBatchNorm(norm=norm)
        return [repr(layer).split(",")[0] for layer in (network.norm1, network.norm2, network.norm3)]

    assert kinds("group") == ["GroupNorm(8", "GroupNorm(8", "Identity()"]  # as the seed's CNNWithGroupNorm
    assert kinds("instance") == ["InstanceNorm2d(32", "InstanceNorm2d(64", "Identity()"]
    assert kinds("layer") == ["LayerNorm((32", "LayerNorm((64", "LayerNorm((128"]
    assert kinds("rms") == ["RMSNorm((32", "RMSNorm((64", "RMSNorm((128"]
    assert CNNWithBatchNorm(norm="layer").norm1.weight.shape == (32, 28, 28)
    assert CNNWithBatchNorm(norm="instance").norm1.weight.shape == (32,)


def test_the_number_of_groups() -> None:
    assert [groups(c) for c in (1, 2, 7, 8, 9, 12, 13, 32, 100)] == [1, 2, 7, 8, 3, 6, 1, 8, 5]


@pytest.mark.parametrize("image_size", [0, 3, 10])
def test_bad_image_size(image_size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4.*got {image_size}"):
        CNNWithBatchNorm(image_size=image_size)


def test_bad_norm_and_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown normalization 'bach': expected one of none, batch"):
        CNNWithBatchNorm(norm="bach")
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*got \(2, 1, 28, 28\)"):
        CNNWithBatchNorm(image_size=8)(torch.randn(2, 1, 28, 28))
    with pytest.raises(ValueError, match="input and an output size"):
        MLP([3])
    with pytest.raises(ValueError, match="unknown technique 'x': expected one of batch"):
        technique("x")


def test_the_cnn_learns_digits() -> None:
    data = digits()
    torch.manual_seed(0)
    network = CNNWithBatchNorm(image_size=8)
    train(network, data.train_images, data.train_labels, steps=80, lr=0.1)
    assert accuracy(network, data.test_images, data.test_labels) > 0.9  # chance is 0.1
    assert network.training


def test_training_is_repeatable() -> None:
    data = digits()

    def losses() -> list[float]:
        torch.manual_seed(1)
        model = MLP([64, 16, 10])
        return train(model, data.train_images.flatten(1), data.train_labels, steps=5, lr=0.1, seed=3)

    assert losses() == losses()


def test_the_style_network_is_the_seeds_at_full_width() -> None:
    network = StyleTransferNetwork()
    blocks = [m for m in network.modules() if isinstance(m, StyleTransferBlock)]
    assert [b.conv.out_channels for b in blocks] == [64, 128, 256, 128, 64]
    assert {(type(b.norm).__name__, b.norm.affine) for b in blocks} == {("InstanceNorm2d", True)}
    # The seed's 3×3 convolutions with their biases; and γ and β, which its InstanceNorm2d did not learn.
    convolutions = sum(9 * a * b + b for a, b in pairwise((3, 64, 128, 256, 128, 64, 3)))
    affine = 2 * (64 + 128 + 256 + 128 + 64)
    assert sum(p.numel() for p in network.parameters()) == convolutions + affine


@pytest.mark.parametrize("norm", ["none", *TECHNIQUES, lambda shape: nn.GroupNorm(1, shape[1])])
def test_a_stylized_picture_has_the_photographs_shape_and_a_pictures_range(norm: Norm) -> None:
    network = StyleTransferNetwork(norm, width=2, image_size=12)
    y = network(3 * torch.randn(2, 3, 12, 12))
    assert y.shape == (2, 3, 12, 12)
    assert y.abs().max() <= 1
    if norm not in ("layer", "rms"):  # those have parameters at every position
        assert network(torch.randn(1, 3, 7, 9)).shape == (1, 3, 7, 9)


def test_a_style_block_does_not_overwrite_what_the_norm_returned() -> None:
    block = StyleTransferBlock(3, 4)
    seen: list[torch.Tensor] = []
    block.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    y = block(torch.randn(2, 3, 8, 8))
    assert seen[0].min() < 0 <= y.min()


def test_bad_style_network_and_bad_photographs() -> None:
    for width in (0, 1.5):
        with pytest.raises(ValueError, match=f"width must be a positive.*got {width}"):
            StyleTransferNetwork(width=width)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown normalization 'instant'"):
        StyleTransferNetwork("instant", width=2)
    network = StyleTransferNetwork(width=2)
    for shape in ((3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"RGB images \(N, 3, H, W\), got shape \(" + str(shape[0])):
            network(torch.zeros(shape))
