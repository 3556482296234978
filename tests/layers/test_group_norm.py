"""Group Normalization in channels_last: ours is right, and what the chapter tells of torch's is still so."""

import pytest
import torch
from torch import Tensor

from normtutor import functional

GROUPS = 8


def output_error(normalize: object, offset: float, memory_format: torch.memory_format) -> float:
    """Largest error of the output against float64, relative to the largest output."""
    torch.manual_seed(0)
    x = (torch.randn(4, 32, 14, 14) + offset).contiguous(memory_format=memory_format)
    rows = x.double().reshape(4, GROUPS, -1)
    centred = rows - rows.mean(2, keepdim=True)
    truth = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).view(x.shape)
    y: Tensor = normalize(x, GROUPS)  # type: ignore[operator]
    return ((y.double() - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("offset", [1.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_mean_does_no_harm_in_any_memory_format(
    memory_format: torch.memory_format, offset: float
) -> None:
    assert output_error(functional.group_norm, offset, memory_format) < 2e-6


def test_watch_torchs_own_still_cancels_in_channels_last() -> None:
    """Not about our code: the chapter's section "Numerics" tells this of torch's CPU kernel."""
    theirs = torch.nn.functional.group_norm
    assert output_error(theirs, 1e3, torch.contiguous_format) < 1e-3
    assert output_error(theirs, 1e3, torch.channels_last) > 1e-2, (
        f"torch {torch.__version__} has mended channels_last group_norm on the CPU: "
        "the notebook's watch cell prints 'mended' by itself. Put the prose around it (section Numerics of "
        "notebooks/group_norm.py) into the past tense, with the versions that had it, and delete this test."
    )
