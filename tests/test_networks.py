"""The course's networks: shapes, the choice of the normalization, and that they learn real digits."""

import pytest
import torch
from torch import nn

from normtutor.catalog import TECHNIQUES, groups, technique
from normtutor.lab import digits
from normtutor.lab.training import accuracy, train
from normtutor.networks import MLP, CNNWithBatchNorm, CNNWithGroupNorm, build_norm


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


def test_the_group_norm_network_is_the_seeds() -> None:
    network = CNNWithGroupNorm()
    layers = [repr(layer).split(", eps")[0] for layer in (network.norm1, network.norm2, network.norm3)]
    assert layers == ["GroupNorm(8, 32", "GroupNorm(8, 64", "Identity()"]
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert [CNNWithGroupNorm(num_groups=4).norm1.num_groups, network.fc2.out_features] == [4, 10]
    with pytest.raises(ValueError, match=r"must divide num_channels \(32\), got 5"):
        CNNWithGroupNorm(num_groups=5)


def test_with_group_norm_company_changes_nothing_even_in_training() -> None:
    torch.manual_seed(0)
    network = CNNWithGroupNorm(image_size=8, in_channels=3).double()
    images = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    together = network(images)
    for size in (1, 4, 8):  # the seed's batch sizes
        apart = torch.cat([network(part) for part in images.split(size)])
        torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 800), (4, 300)])
def test_the_group_norm_network_learns_digits_from_tiny_batches(batch_size: int, steps: int) -> None:
    data = digits()
    torch.manual_seed(0)
    network = CNNWithGroupNorm(image_size=8)
    options = {"steps": steps, "lr": 0.005 * batch_size, "batch_size": batch_size}
    train(network, data.train_images, data.train_labels, **options)
    assert accuracy(network, data.test_images, data.test_labels) > 0.7  # chance is 0.1
