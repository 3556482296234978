"""Weight Standardization: what the convolution computes with, what learns, and what a checkpoint holds."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normtutor.layers import GroupNorm, WeightStandardization, standardize_weights


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 5), (6, 2, 1, 3, 3)])
def test_each_output_channel_has_mean_0_and_variance_1(shape: tuple[int, ...]) -> None:
    weight = 3 + 0.1 * torch.randn(shape, dtype=torch.float64)
    standardized = WeightStandardization(eps=0.0)(weight).flatten(1)
    torch.testing.assert_close(standardized.mean(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(standardized.var(1, correction=0), torch.ones(6, dtype=torch.float64))


def test_half_precision_weights_stay_half_precision() -> None:
    conv = standardize_weights(nn.Conv2d(3, 4, 3).bfloat16())
    assert conv.weight.dtype == conv(torch.randn(1, 3, 5, 5).bfloat16()).dtype == torch.bfloat16


def test_the_raw_weight_learns_and_the_gradient_cannot_shift_or_stretch_it() -> None:
    """The gradient is orthogonal to the constant and, without ε, to the weight itself (section 3)."""
    torch.manual_seed(0)
    conv = standardize_weights(nn.Conv2d(3, 4, 3).double(), eps=0.0)
    conv(torch.randn(2, 3, 6, 6, dtype=torch.float64)).pow(3).sum().backward()
    raw = conv.parametrizations.weight.original
    gradient, weight = raw.grad.flatten(1), raw.detach().flatten(1)
    size = gradient.norm(dim=1)
    assert (size > 1e-3).all()
    assert (gradient.sum(1).abs() < 1e-10 * size).all()
    assert ((gradient * weight).sum(1).abs() < 1e-10 * size).all()


def test_every_convolution_and_nothing_else() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), GroupNorm(2, 8), nn.Sequential(nn.Conv2d(8, 8, 1)), nn.Linear(4, 2)
    )
    assert standardize_weights(network) is network
    changed = [name for name, part in network.named_modules() if parametrize.is_parametrized(part)]
    assert changed == ["0", "2.0"]
    again = standardize_weights(
        nn.Sequential(nn.Conv2d(1, 8, 3), GroupNorm(2, 8), nn.Sequential(nn.Conv2d(8, 8, 1)), nn.Linear(4, 2))
    )
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again[0].weight, network[0].weight)


def test_twice_is_once_and_linear_layers_and_transposed_convolutions_stay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Linear(4, 2))
    twice = standardize_weights(standardize_weights(network))
    assert len(twice[0].parametrizations.weight) == 1
    assert [parametrize.is_parametrized(part) for part in twice] == [True, False, False]


def test_a_convolution_with_one_weight_per_channel_is_refused_before_anything_changes() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)))
    with pytest.raises(ValueError, match=r"got 1\.0 with a weight of shape \(4, 1, 1, 1\)"):
        standardize_weights(network)
    assert not parametrize.is_parametrized(network[0])
