"""Folding: one linear map does what linear and BatchNorm do in evaluation."""

import pytest
import torch
from torch import nn

from normtutor.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, LearnableBatchNorm, fold_batch_norm


def trained(norm: nn.Module) -> nn.Module:
    """Random parameters and running statistics, in evaluation mode, float64."""
    norm.double()
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
    return norm.eval()


@pytest.mark.parametrize(
    ("linear", "norm", "shape"),
    [
        (nn.Linear(5, 6), BatchNorm1d(6), (3, 5)),
        (nn.Linear(5, 6, bias=False), BatchNorm1d(6, affine=False), (3, 5)),
        (nn.Conv1d(4, 6, 3), BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), BatchNorm2d(6), (2, 4, 7, 9)),
        (nn.Conv2d(4, 6, 3, dilation=2, bias=False), nn.BatchNorm2d(6), (2, 4, 7, 9)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), BatchNorm2d(6, bias=False), (2, 4, 7, 9)),
        (nn.Conv3d(2, 6, 2), BatchNorm3d(6), (2, 2, 4, 4, 4)),
    ],
)
def test_same_function(linear: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    linear.double()
    before = {k: v.clone() for k, v in linear.state_dict().items()}
    norm = trained(norm)
    x = torch.randn(shape, dtype=torch.float64)
    folded = fold_batch_norm(linear, norm)
    torch.testing.assert_close(folded(x), norm(linear(x)), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[k], v) for k, v in linear.state_dict().items())
    assert (linear.bias is None) == ("bias" not in before)


def test_half_precision_keeps_its_dtype() -> None:
    conv = nn.Conv2d(3, 4, 1).bfloat16()
    folded = fold_batch_norm(conv, BatchNorm2d(4))
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16


def test_what_was_frozen_stays_frozen() -> None:
    folded = fold_batch_norm(nn.Conv2d(3, 4, 1).requires_grad_(False), BatchNorm2d(4))
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_bad_input() -> None:
    conv = nn.Conv2d(3, 4, 1)
    with pytest.raises(TypeError, match="got ReLU"):
        fold_batch_norm(nn.ReLU(), BatchNorm2d(4))
    for other in (nn.GroupNorm(2, 4), LearnableBatchNorm(4), None):
        with pytest.raises(TypeError, match=f"expected a BatchNorm.*got {type(other).__name__}"):
            fold_batch_norm(conv, other)
    with pytest.raises(ValueError, match="running statistics"):
        fold_batch_norm(conv, BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="of 4 channels, got 5"):
        fold_batch_norm(conv, BatchNorm2d(5))
