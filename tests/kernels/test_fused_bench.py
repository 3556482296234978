"""The benchmark takes the fused layers as one candidate more, and says where they step back."""

import pytest
import torch
from test_fused_parity import SHAPE

from normtutor import fused
from normtutor.catalog import TECHNIQUES
from normtutor.lab import bench

# Where there is a GPU these are its tests too, and run on it.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


@pytest.mark.parametrize("name", SHAPE)
def test_it_is_timed_and_keeps_no_more_than_torch_does(name: str, device: str) -> None:
    row, shape = TECHNIQUES[name], SHAPE[name]
    factories = {"fused": lambda shape: fused.like(row.layer(shape)), "torch.nn": row.twin}
    found = bench(row, device=device, shapes=[shape], candidates=factories, seconds=0, rounds=2)
    assert not [timing.reason for timing in found.rows if timing.reason]
    uses = found.select(direction="forward+backward", captured=False)
    kept = {timing.candidate: timing.kept or 0 for timing in uses}
    assert 0 < kept["fused"] <= kept["torch.nn"], kept


def test_where_it_takes_the_plain_path_the_row_says_why(device: str) -> None:
    row = TECHNIQUES["layer"]
    factories = {"fused": lambda shape: fused.like(row.layer(shape))}
    found = bench(row, device=device, dtypes=["float64"], shapes=[(2, 4)], candidates=factories, seconds=0)
    reasons = {timing.reason for timing in found.select(candidate="fused")}
    assert reasons == {
        "plain path: the input is torch.float64: the kernels take float32, bfloat16 and float16"
    }
