"""Memory traffic, counted: what each operation of torch, and each Triton kernel, reads and writes.

An operation of torch is taken to read every input once and to write every output once, which is the best that
an eager kernel can do. A Triton kernel's loads and stores are counted one by one, in Triton's interpreter
(TRITON_INTERPRET=1): what the kernel asks for, of which a cache may serve a part.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normtutor.lab.text import size, table

_ONLY_WRITES = {"copy_", "fill_", "zero_"}  # do not read what they overwrite


@dataclass(frozen=True)
class Move:
    """One operation or kernel: bytes read and written; ``programs`` of a kernel's launch, else 0."""

    name: str
    read: int
    written: int
    programs: int = 0


@dataclass(frozen=True, repr=False)
class Traffic:
    """What a call moved, operation by operation, in order."""

    moves: tuple[Move, ...]

    @property
    def read(self) -> int:
        return sum(move.read for move in self.moves)

    @property
    def written(self) -> int:
        return sum(move.written for move in self.moves)

    @property
    def total(self) -> int:
        return self.read + self.written

    def passes(self, x: Tensor) -> float:
        """The total in units of x's size: 2 is what a copy of x takes."""
        return self.total / (x.numel() * x.itemsize)

    def __repr__(self) -> str:
        lines = [
            [move.name, str(move.programs or ""), size(move.read), size(move.written)] for move in self.moves
        ]
        lines.append([f"{len(self.moves)} together", "", size(self.read), size(self.written)])
        return table(["operation", "programs", "read", "written"], lines)


def traffic(call: Callable[[], object]) -> Traffic:
    """Run ``call`` and count what it moves.

    torch's operations are seen on every device, those of a backward pass too where ``call`` runs it. Views
    and allocations move nothing. The package's fused operators are resolved into their kernels. Kernels are
    seen in Triton's interpreter only; compiled ones leave no trace here.
    """
    counter = _Counter()
    with ExitStack() as stack:
        stack.enter_context(_counting_kernels(counter))
        stack.enter_context(counter)
        call()
    return Traffic(tuple(counter.moves))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moves: list[Move] = []
        self.in_kernel = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "normtutor" and not self.in_kernel:
            from normtutor.kernels import ops

            operator = getattr(ops, func._schema.name.partition("::")[2])
            with self:  # inside of it, so that its own operations count
                return operator._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        if not self.in_kernel and not _moves_nothing(func):
            name = func._schema.name.partition("::")[2]
            inputs = list(_tensors((args, kwargs)))
            if name in _ONLY_WRITES:
                inputs = inputs[1:]
            elif name.endswith("_like") or name.startswith("new_"):  # of the input only its shape
                inputs = []
            self.moves.append(Move(name, sum(map(_bytes, inputs)), sum(map(_bytes, _tensors(out)))))
        return out


def _moves_nothing(func: Any) -> bool:
    """Whether it is a view or an allocation."""
    views = [r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns]
    return any(views) or "empty" in func._schema.name


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Of the elements that exist: an expanded axis is one."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, step in pairs if step) * tensor.itemsize if tensor.numel() else 0


@contextmanager
def _counting_kernels(counter: _Counter) -> Iterator[None]:
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:  # no kernel can run interpreted
        yield
        return
    run, builder = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    read = written = 0

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        nonlocal read
        read += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *rest)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        nonlocal written
        written += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *rest)

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal read, written
        read = written = 0
        counter.in_kernel = True
        try:
            return run(self, *args, **kwargs)
        finally:
            counter.in_kernel = False
            grid = self.grid(kwargs) if callable(self.grid) else self.grid
            counter.moves.append(Move(self.fn.__name__, read, written, math.prod(grid)))

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", counted_run),
        mock.patch.object(builder, "create_masked_load", counted_load),
        mock.patch.object(builder, "create_masked_store", counted_store),
    ):
        yield
