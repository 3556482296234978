"""The course's networks: shapes, the choice of the normalization, and that they learn real digits."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from normtutor.catalog import TECHNIQUES, groups, technique
from normtutor.lab import digits
from normtutor.lab.training import accuracy, train
from normtutor.layers import LayerNorm, WeightNormLinear
from normtutor.networks import (
    MLP,
    RNN,
    CNNWithBatchNorm,
    CNNWithGroupNorm,
    Norm,
    StyleTransferBlock,
    StyleTransferNetwork,
    Transformer,
    TransformerBlock,
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
    undefined = (1, 4, *[2] * max(row.ranks))
    assert isinstance(build_norm("batch", undefined, optional=True), nn.Identity)
    with pytest.raises(ValueError, match=r"'batch' is not defined on an activation of shape \(N, 4, 2, 2"):
        build_norm("batch", undefined)


@pytest.mark.parametrize("build", [lambda norm: MLP([4, 4, 2], norm), lambda norm: RNN(4, 8, norm=norm)])
def test_no_network_is_left_unnormalized_in_silence(build: Callable[[Any], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"'group' is not defined .* one of none, batch, layer, rms, or"):
        build("group")
    with pytest.raises(TypeError, match=r"the class LayerNorm: try lambda shape: LayerNorm\(shape\[1\]\)"):
        build(LayerNorm)
    with pytest.raises(TypeError, match="expected a name or a factory that takes the shape, got None"):
        build(None)


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


def test_a_weight_normalized_mlp_is_initialized_layer_by_layer() -> None:
    torch.manual_seed(0)
    network = MLP([8, 16, 16, 4], "none", linear=WeightNormLinear)
    x = torch.randn(64, 8) * 3 + 5
    logits = network.initialize(x)
    torch.testing.assert_close(logits, network(x).detach())
    seen = 0
    for module in network:
        x = module(x)
        if isinstance(module, WeightNormLinear):
            torch.testing.assert_close(x.std(0, correction=0), torch.ones(x.size(1)))
            torch.testing.assert_close(x.mean(0), torch.zeros(x.size(1)), atol=1e-4, rtol=0)
            seen += 1
    assert seen == 3  # the last layer too


def test_initializing_a_plain_mlp_changes_nothing() -> None:
    network = MLP([8, 16, 4], "layer")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(5, 8)
    torch.testing.assert_close(network.initialize(x), network(x))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def _as_torchs(block: TransformerBlock) -> nn.TransformerEncoderLayer:
    """torch's own encoder layer with the block's weights."""
    size = block.hidden_dim
    theirs = nn.TransformerEncoderLayer(
        size,
        block.attention.num_heads,
        4 * size,
        dropout=0.0,
        norm_first=block.placement == "pre",
        batch_first=block.batch_first,
    )
    names = {"self_attn": "attention", "linear1": "ffn.0", "linear2": "ffn.3"}
    ours = block.state_dict()
    parts = {key: key.partition(".") for key in theirs.state_dict()}
    theirs.load_state_dict({key: ours[f"{names.get(p, p)}.{rest}"] for key, (p, _, rest) in parts.items()})
    return theirs


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_a_transformer_block_is_torchs_in_value_gradient_and_masks(placement: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, dropout=0.0, placement=placement, batch_first=batch_first, causal=True)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # γ = 1 and β = 0 would hide much
    block, theirs = block.double(), _as_torchs(block).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    x = (x if batch_first else x.transpose(0, 1)).requires_grad_()
    ours = block(x, key_padding_mask=padding)
    other = theirs(x, src_mask=later, src_key_padding_mask=padding)
    torch.testing.assert_close(ours, other)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), x), torch.autograd.grad(other.square().sum(), x)
    )


def test_a_transformer_block_is_the_seeds_by_default() -> None:
    block = TransformerBlock(16, 4, batch_first=False)
    keys = {key.split(".")[0] for key in block.state_dict()}
    assert keys == {"attention", "norm1", "norm2", "ffn"}
    assert isinstance(block.norm1, LayerNorm)
    assert block.placement == "post"
    assert [m.p for m in block.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    assert block.attention.dropout == 0.1
    assert block(torch.randn(7, 2, 16)).shape == (7, 2, 16)


def test_sandwich_normalizes_both_ends_of_a_branch_and_not_the_residual_path() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, dropout=0.0, placement="sandwich").double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    middle = x + block.norm1_out(block.attention(*[block.norm1(x)] * 3)[0])
    torch.testing.assert_close(block(x), middle + block.norm2_out(block.ffn(block.norm2(middle))))


@pytest.mark.parametrize("placement", ["post", "pre", "sandwich"])
def test_what_a_token_sees(placement: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    changed = x.clone()
    changed[0, 3] += torch.randn(8)

    def moved(norm: str, causal: bool) -> list[list[bool]]:
        block = TransformerBlock(8, 2, 0.0, placement, norm, causal=causal)
        return ((block(x) - block(changed)).abs().amax(2) > 1e-6).tolist()

    for norm in ("layer", "rms"):
        assert moved(norm, causal=True) == [[False] * 3 + [True] * 2, [False] * 5]
        assert moved(norm, causal=False) == [[True] * 5, [False] * 5]
    assert moved("batch", causal=True)[1] == [True] * 5  # batch statistics pass every mask


def test_a_stack_ends_in_a_norm_unless_its_blocks_do() -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(2, 3, 8)
    for placement in ("pre", "sandwich", "post"):
        stack = Transformer(8, 2, 3, placement=placement).eval()
        torch.testing.assert_close(stack(x).var(2, correction=0), torch.ones(2, 3), atol=1e-3, rtol=0)
        norms = sum(isinstance(m, LayerNorm) for m in stack.modules())
        assert norms == {"post": 6, "pre": 7, "sandwich": 13}[placement]
    seen: list[tuple[int, ...]] = []

    def factory(shape: tuple[int, ...]) -> nn.Module:
        seen.append(shape)
        return nn.GroupNorm(2, shape[1])  # sees (tokens, hidden)

    assert Transformer(8, 2, 1, norm=factory)(x).shape == x.shape
    assert seen == [(1, 8)] * 3


def test_bad_transformers_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="divisor of hidden_dim, got 3 heads of 8"):
        TransformerBlock(8, 3)
    with pytest.raises(ValueError, match="unknown placement 'mid': expected one of post, pre, sandwich"):
        TransformerBlock(8, 2, placement="mid")
    with pytest.raises(ValueError, match=r"dropout between 0 and 1, got 1\.5"):
        TransformerBlock(8, 2, dropout=1.5)
    with pytest.raises(ValueError, match=r"'group' is not defined .*none, batch, layer, rms, or a fac"):
        TransformerBlock(8, 2, norm="group")
    with pytest.raises(ValueError, match=r"expected input \(N, T, 8\), got \(3, 8\)"):
        TransformerBlock(8, 2)(torch.randn(3, 8))
    with pytest.raises(
        ValueError, match=r"key_padding_mask \(2, 3\) of torch.bool, got \(3, 2\) of torch.bool"
    ):
        TransformerBlock(8, 2)(torch.randn(2, 3, 8), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(2, 3\) of torch.bool, got \(2, 3\) of torch.float32"):
        TransformerBlock(8, 2)(torch.randn(2, 3, 8), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one block, got depth 0"):
        Transformer(8, 2, 0)


def test_an_lstm_without_normalization_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = RNN(3, 5, 4, cell="lstm").double(), nn.LSTM(3, 5, batch_first=True).double()

    def gates(tensor: torch.Tensor) -> torch.Tensor:
        forget, write, output, new = tensor.chunk(4)
        return torch.cat([write, forget, new, output])  # torch's order

    state = ours.cell.state_dict()
    theirs.load_state_dict(
        {
            "weight_ih_l0": gates(state["from_input.weight"]),
            "weight_hh_l0": gates(state["from_state.weight"]),
            "bias_ih_l0": gates(state["from_input.bias"]),
            "bias_hh_l0": torch.zeros(20),
        }
    )
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), ours.head(theirs(x)[0][:, -1]))


def test_a_normalized_recurrent_step_is_the_papers() -> None:
    torch.manual_seed(0)
    network = RNN(3, 5, 4, norm="layer").double()
    cell, x = network.cell, torch.randn(2, 2, 3, dtype=torch.float64)
    h = torch.zeros(2, 5, dtype=torch.float64)
    for step in (0, 1):
        a = x[:, step] @ cell.from_input.weight.T + cell.from_input.bias + h @ cell.from_state.weight.T
        h = torch.tanh(nn.functional.layer_norm(a, (5,)))
    torch.testing.assert_close(network(x), network.head(h))
    lstm = RNN(3, 5, 4, cell="lstm", norm="layer")
    shapes = [tuple(m.normalized_shape) for m in lstm.modules() if isinstance(m, LayerNorm)]
    assert shapes == [(20,), (20,), (5,)]


def test_bad_recurrent_networks_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown cell 'gru': expected one of tanh, lstm"):
        RNN(3, 5, cell="gru")
    for shape in ((2, 4), (2, 0, 3), (2, 4, 1)):
        with pytest.raises(ValueError, match=r"\(N, T, 3\) of at least one step"):
            RNN(3, 5)(torch.randn(shape))


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
    for width in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"width must be a positive.*got {width}"):
            StyleTransferNetwork(width=width)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown normalization 'instant'"):
        StyleTransferNetwork("instant", width=2)
    network = StyleTransferNetwork(width=2)
    for shape in ((3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"RGB images \(N, 3, H, W\), got shape \(" + str(shape[0])):
            network(torch.zeros(shape))
