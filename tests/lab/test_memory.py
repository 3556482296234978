"""Memory counts each kept storage once, leaves out what exists anyway, and leaves the module as it was."""

import torch
from torch import Tensor, nn

from normtutor.lab import memory, memory_table
from normtutor.layers import BatchNorm2d

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
BYTES = X.numel() * 4


def test_torchs_batch_norm_keeps_its_input_and_two_statistics() -> None:
    use = memory(nn.BatchNorm2d(8), X)
    assert (use.parameters, use.parameter_bytes) == (16, 64)
    assert (use.buffers, use.buffer_bytes) == (17, 72)  # two float32 per channel, one int64 counter
    assert use.saved_bytes == 2 * 8 * 4
    assert use.saved_input_bytes == BYTES
    assert use.peak_bytes is None


def test_readable_code_keeps_more() -> None:
    use = memory(BatchNorm2d(8), X)
    assert use.saved_bytes >= BYTES  # x̂, for the gradient of γ
    assert use.parameters == 16


def test_a_storage_counts_once_and_whole() -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y, z = x + 1, x + 2
            return y * y.view(-1).view_as(y) + (z[:1] * z[:1]).sum()  # y, a view of y, and a quarter of z

    use = memory(Products(), X)
    assert use.saved_bytes == 2 * BYTES  # the quarter keeps all of z in memory
    assert use.saved_input_bytes == 0


def test_the_module_and_the_input_stay_as_they_were() -> None:
    layer, x = BatchNorm2d(8).train(), X.clone()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    memory(layer, x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert torch.equal(x, X)
    assert not x.requires_grad


def test_the_table_names_the_candidates() -> None:
    text = memory_table({"ours": memory(BatchNorm2d(8), X), "torch.nn": memory(nn.BatchNorm2d(8), X)})
    assert [line.split()[0] for line in text.splitlines()] == ["candidate", "ours", "torch.nn"]
    assert "16 (64 B)" in text
