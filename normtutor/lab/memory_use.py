"""Memory: what a layer holds, and what autograd keeps of a forward pass until the backward pass."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from normtutor.lab.text import size, table


@dataclass(frozen=True, repr=False)
class MemoryUse:
    """What one module holds and keeps, in bytes.

    Attributes:
        parameters, buffers: how many numbers; ``parameter_bytes`` and ``buffer_bytes`` their size.
        saved_bytes: new memory that autograd keeps for the backward pass; each storage counts once, whole.
        saved_input_bytes: the input's size if autograd keeps it too, else 0. It costs nothing where
            something else holds the input anyway.
        peak_bytes: most memory in use during forward and backward, over that in use before; None outside
            CUDA.
    """

    parameters: int
    parameter_bytes: int
    buffers: int
    buffer_bytes: int
    saved_bytes: int
    saved_input_bytes: int
    peak_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        return memory_table({"": self})


def memory(module: nn.Module, input: Tensor) -> MemoryUse:
    """Measure what ``module`` holds, and what autograd keeps of ``module(input)``.

    The saved tensors are those that :class:`torch.autograd.graph.saved_tensors_hooks` sees, for a forward
    pass in the module's present mode with gradients for the input and every parameter. The
    module's buffers are put back afterwards, and no ``.grad`` is touched.

    Args:
        module: eager, from ``torch.nn``, or compiled; it must return one tensor.
        input: any floating-point tensor it takes; it is not changed.
    """
    before = {name: value.clone() for name, value in module.named_buffers()}
    x = input.detach().requires_grad_()
    try:
        module(x)  # a compiled module compiles here, outside the hooks
        own = {_storage(t) for t in chain(module.parameters(), module.buffers())}
        saved: dict[int, int] = {}
        held = []  # keeps every saved tensor alive, so that no two share an address

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor)
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(x)
        kept_input = saved.pop(_storage(x), 0)
        saved_bytes = sum(count for address, count in saved.items() if address not in own)
        del output
        held.clear()
        peak = _peak(module, x) if x.is_cuda else None
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(before[name])
    return MemoryUse(
        *_count(module.parameters()), *_count(module.buffers()), saved_bytes, kept_input, peak_bytes=peak
    )


def memory_table(uses: Mapping[str, MemoryUse]) -> str:
    """Aligned text, one line per candidate: ``memory_table({"ours": memory(ours, x), …})``."""
    return table(*memory_cells(uses))


def memory_cells(uses: Mapping[str, MemoryUse]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of :func:`memory_table`."""
    head = ["candidate", "parameters", "buffers", "kept for backward", "input kept too"]
    with_peak = any(use.peak_bytes is not None for use in uses.values())
    lines = []
    for name, use in uses.items():
        line = [
            name,
            f"{use.parameters} ({size(use.parameter_bytes)})",
            f"{use.buffers} ({size(use.buffer_bytes)})",
        ]
        line += [size(use.saved_bytes), size(use.saved_input_bytes) if use.saved_input_bytes else "no"]
        lines.append(line + ([size(use.peak_bytes or 0)] if with_peak else []))
    return head + (["peak"] if with_peak else []), lines


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _count(tensors: Any) -> tuple[int, int]:
    found = list(tensors)
    return sum(t.numel() for t in found), sum(t.numel() * t.element_size() for t in found)


def _peak(module: nn.Module, x: Tensor) -> int:
    torch.cuda.synchronize(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    start = torch.cuda.memory_allocated(x.device)
    output = module(x)
    torch.autograd.grad(output, [x, *module.parameters()], torch.ones_like(output))
    torch.cuda.synchronize(x.device)
    return torch.cuda.max_memory_allocated(x.device) - start
