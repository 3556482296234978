"""Running a learner's Triton kernel on a CPU, in a memory that is watched.

Triton's interpreter runs kernels as Python. Here it runs without TRITON_INTERPRET, which would have to be set
before anything imports Triton, and on addresses of our own, so that no kernel can hurt this process: what
leaves its buffers is noted, and every load and store is counted.
"""

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normtutor.exercises.observe import Broken, kind

try:
    import triton
    import triton.language as tl

    _MISSING = ""
except ImportError as error:
    # No Triton for this system: a kernel can be written here, and not run.
    triton = types.SimpleNamespace(jit=lambda kernel: kernel)
    tl = types.SimpleNamespace(constexpr=None)
    _MISSING = f"Triton cannot be imported ({error}). On Linux, `pip install 'normtutor[fused]'` brings it"

__all__ = ["Buffer", "Fault", "is_constant", "launch", "missing", "python_of", "tl", "triton"]

_SPAN = 44  # each buffer has 2^44 addresses for itself, and begins in their middle


class Buffer:
    """A matrix in a kernel's memory: rows of adjacent elements, ``step`` elements apart.

    No memory lies between the rows, so ``step`` may be as large as on a GPU that is full.

    Attributes:
        name: as the kernel's parameter is called.
        values: what it holds, of shape (rows, length).
        dtype: of the elements, as a tensor that Triton takes has it.
        reads, writes: how often each element was loaded and stored.
        readers, writers: how many programs did that.
        stored_by: the program that last stored each element, or −1.
    """

    def __init__(self, name: str, values: Tensor, step: int | None = None) -> None:
        if values.dim() != 2 or values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name}: expected a matrix of float32, bfloat16 or float16, got {values.dtype} of shape "
                f"{tuple(values.shape)}"
            )
        self.name = name
        self.values = values.detach().cpu().contiguous().clone()
        self.dtype = values.dtype
        self.step = values.shape[1] if step is None else step
        self.reads = np.zeros(self.values.shape, dtype=np.int64)
        self.writes = np.zeros(self.values.shape, dtype=np.int64)
        self.readers, self.writers = np.zeros_like(self.reads), np.zeros_like(self.writes)
        self.stored_by, self._loaded_by = np.full_like(self.reads, -1), np.full_like(self.reads, -1)
        self.place = 0
        half = self.dtype == torch.bfloat16  # which NumPy does not have: the interpreter holds its bits
        self.bits: Any = (
            self.values.view(torch.int16).numpy().view(np.uint16) if half else self.values.numpy()
        )

    def data_ptr(self) -> int:
        """The address of the first element."""
        return (self.place << _SPAN) + (1 << (_SPAN - 1))

    def note(self, rows: Any, columns: Any, program: int, store: bool) -> None:
        """Count an access by one of the programs, which run one after the other."""
        counts, programs, last = (
            (self.writes, self.writers, self.stored_by)
            if store
            else (self.reads, self.readers, self._loaded_by)
        )
        np.add.at(counts, (rows, columns), 1)
        programs[rows, columns] += last[rows, columns] != program  # once, however often it is named here
        last[rows, columns] = program

    def find(self, addresses: Any) -> tuple[Any, Any, Any]:
        """Rows and columns of ``addresses``, and which of them lie inside."""
        offsets = addresses.astype(np.int64) - self.data_ptr()
        rows, columns = np.divmod(offsets // self.values.element_size(), self.step)
        inside = (rows >= 0) & (rows < len(self.values)) & (columns < self.values.shape[1])
        return rows, columns, inside


@dataclass(frozen=True)
class Fault:
    """An access outside of the buffers.

    Attributes:
        buffer: the name of the one that it left; "" if it belongs to none.
        store: whether it is a store.
        text: what happened, in words.
    """

    buffer: str
    store: bool
    text: str


class _Memory:
    """The buffers of one launch, behind the interpreter's loads and stores; ``faults`` in their order."""

    def __init__(self, buffers: list[Buffer]) -> None:
        self.buffers = dict(enumerate(buffers, start=1))
        for place, buffer in self.buffers.items():
            buffer.place = place
        self.faults: list[Fault] = []
        self.program = 0

    def load(self, pointers: Any, mask: Any, other: Any, *_: object) -> Any:
        # Lanes that are masked, without `other`, hold whatever they like; and so does what lies outside.
        unset = np.array(_nan_of(pointers), dtype=_np_dtype(pointers))
        values = np.broadcast_to(unset if other is None else other.data, pointers.data.shape).copy()
        for buffer, rows, columns, lanes in self._reached(pointers.data, mask.data, False):
            buffer.note(rows, columns, self.program, store=False)
            values[lanes] = buffer.bits[rows, columns]
        values[self._lost] = unset
        return _interpreter().TensorHandle(values, pointers.get_element_ty())

    def store(self, pointers: Any, value: Any, mask: Any, *_: object) -> None:
        values = np.broadcast_to(value.data, pointers.data.shape)
        for buffer, rows, columns, lanes in self._reached(pointers.data, mask.data, True):
            buffer.note(rows, columns, self.program, store=True)
            buffer.bits[rows, columns] = values[lanes]

    def atomic(self, *_: object) -> None:
        raise Broken("Your kernel uses an atomic operation. No two programs need to meet here.")

    def _reached(self, addresses: Any, mask: Any, store: bool) -> Iterator[tuple[Buffer, Any, Any, Any]]:
        """Buffer by buffer: rows, columns and lanes of an access; notes the lanes that reach none."""
        active = np.broadcast_to(mask, addresses.shape).astype(bool)
        places = (addresses >> np.uint64(_SPAN)).astype(np.int64)
        self._lost = active & ~np.isin(places, list(self.buffers))
        for place in np.unique(places[active & ~self._lost]).tolist():
            buffer = self.buffers[place]
            lanes = np.nonzero(active & (places == place))
            rows, columns, inside = buffer.find(addresses[lanes])
            if not inside.all():
                out = int(np.argmin(inside))
                self._note(store, buffer, int(rows[out]), int(columns[out]))
                self._lost[tuple(axis[~inside] for axis in lanes)] = True
            yield buffer, rows[inside], columns[inside], tuple(axis[inside] for axis in lanes)
        if (self._lost & ~np.isin(places, list(self.buffers))).any():
            self._say("", store, "an address that belongs to no tensor")

    def _note(self, store: bool, buffer: Buffer, row: int, column: int) -> None:
        rows, length = buffer.values.shape
        where = f"{buffer.name} has {rows} row{'s' * (rows > 1)} of {length}"
        what = "in front of the first row" if row < 0 else f"row {row}, element {column}"
        self._say(buffer.name, store, f"{buffer.name} outside: {what}, where {where}")

    def _say(self, buffer: str, store: bool, what: str) -> None:
        verb = "stores" if store else "loads"
        self.faults.append(Fault(buffer, store, f"program {self.program} {verb} {what}"))


def launch(kernel: Any, programs: int, *arguments: object, **constants: object) -> list[Fault]:
    """Run ``programs`` programs of a kernel, one after the other, and return what left its buffers.

    Args:
        kernel: a function under ``@triton.jit``.
        programs: the size of the grid, of one axis.
        arguments: buffers, and numbers; a float becomes a float32, as in a compiled kernel.
        constants: the kernel's ``tl.constexpr`` parameters.

    Returns:
        The accesses outside of the buffers, in their order. A load gets NaN there, a store is dropped.

    Raises:
        Broken: the kernel is no function, uses atomic operations, or does not declare its constants.
        Exception: whatever the kernel's own code raises.
    """
    function = python_of(kernel)
    memory = _Memory([argument for argument in arguments if isinstance(argument, Buffer)])
    signature = inspect.signature(function)
    found = signature.bind(*arguments, **constants).arguments
    for name in constants:
        if name in signature.parameters and not is_constant(signature.parameters[name]):
            raise Broken(f"`{name}` must be known when the kernel is compiled: write `{name}: tl.constexpr`.")
    with _interpreting(memory) as interpreter:
        values = {k: v if k in constants else _converted(v) for k, v in found.items()}
        run = _rewritten(function)
        interpreter.interpreter_builder.set_grid_dim(programs, 1, 1)
        for program in range(programs):
            memory.program = program
            interpreter.interpreter_builder.set_grid_idx(program, 0, 0)
            run(**values)
    return memory.faults


def is_constant(parameter: inspect.Parameter) -> bool:
    """Whether a kernel's parameter is declared as ``tl.constexpr``."""
    return "constexpr" in str(parameter.annotation)


def python_of(kernel: Any) -> Any:
    """The Python function under ``@triton.jit``.

    Raises:
        Broken: there is none.
    """
    if isinstance(kernel, types.FunctionType):
        raise Broken(
            f"`{kernel.__name__}` is Python's. Put `@triton.jit` above its `def`: that makes it a kernel."
        )
    function = kernel
    while hasattr(function, "fn"):
        function = function.fn
    if not isinstance(function, types.FunctionType):
        raise Broken(f"Expected a kernel, a function under `@triton.jit`; got {kind(kernel)}.")
    return function


@cache
def missing() -> str:
    """Why no kernel can be run here: "" if one can."""
    if _MISSING:
        return f"{_MISSING}."
    try:
        x, y = Buffer("x", torch.arange(6.0).view(2, 3)), Buffer("y", torch.zeros(2, 3))
        faults = launch(_trial, 2, x, y, 3, BLOCK=4)
        if faults or not torch.equal(y.values, torch.tensor([[9.0] * 3, [36.0] * 3])):
            raise RuntimeError(f"a kernel whose result is known gave {y.values.tolist()} {faults}")
    except Exception as error:
        why = f"the interpreter of Triton {triton.__version__} does not run with NumPy {np.__version__} here"
        return f"Kernels cannot be run: {why} ({type(error).__name__}: {error})."
    return ""


@triton.jit  # type: ignore[untyped-decorator]
def _trial(x, y, length, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each row's sum, three times over: a load, a loop, a reduction and a store."""
    at = tl.program_id(0).to(tl.int64) * length + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < length
    value = tl.load(x + at, mask=inside, other=0.0)
    found = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, length):
        found += value
    tl.store(y + at, tl.sum(found, axis=0), mask=inside)


def _interpreter() -> Any:
    import triton.runtime.interpreter as interpreter

    return interpreter


@contextmanager
def _interpreting(memory: _Memory) -> Iterator[Any]:
    """Triton's language interpreted, on ``memory``; afterwards the compiler finds everything as it was."""
    from triton.runtime.jit import JITFunction

    interpreter = _interpreter()
    builder = interpreter.interpreter_builder
    parts = [part for part in vars(tl.core).values() if isinstance(part, type)]
    touched = [tl, tl.core, tl.math, *(part for part in parts if part.__module__ == tl.core.__name__)]
    touched += [JITFunction, interpreter.InterpretedFunction, builder]
    # Set as an attribute it would set the environment's TRITON_INTERPRET too, for good.
    knobs = vars(triton.knobs.runtime) if hasattr(triton, "knobs") else {}
    knobs_before = dict(knobs)
    before = [dict(vars(part)) for part in touched]
    try:
        # What a kernel calls, the language's own functions included, whoever imported Triton how.
        for function in (JITFunction, interpreter.InterpretedFunction):
            function.__call__ = _call
        builder.create_masked_load, builder.create_masked_store = memory.load, memory.store
        builder.create_atomic_cas = builder.create_atomic_rmw = memory.atomic
        builder.cast_impl = partial(_cast, builder.cast_impl)
        knobs["interpret"] = True
        interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        tl.range = _range
        # Triton below 3.7 asks NumPy for a conversion that NumPy 2.4 has no more.
        tl.core.tensor.__index__ = lambda number: int(number.handle.data.item())
        with np.errstate(all="ignore"):
            yield interpreter
    finally:
        for part, kept in zip(touched, before, strict=True):
            _restore(part, kept)
        knobs.clear()
        knobs.update(knobs_before)


def _restore(part: Any, kept: dict[str, Any]) -> None:
    now = dict(vars(part))
    for name in now.keys() - kept.keys():
        delattr(part, name)
    for name, value in kept.items():
        if name not in now or now[name] is not value:
            setattr(part, name, value)


def _call(function: Any, *arguments: object, **named: object) -> Any:
    """One function of Triton's language calls another."""
    return _language(function.fn)(*arguments, **named)


def _rewritten(function: Any) -> Any:
    """``function`` in the interpreter's form, with what its names mean now."""
    names = vars(_interpreter()) | function.__globals__ | inspect.getclosurevars(function).nonlocals
    if not function.__module__.startswith("triton."):
        names["range"] = _range
    return types.FunctionType(_code(function), names, function.__name__, function.__defaults__)


@lru_cache(maxsize=64)
def _code(function: Any) -> types.CodeType:
    """The rewritten code. Triton would add names to the function's globals: it gets others."""
    copy = types.FunctionType(
        function.__code__,
        dict(function.__globals__),
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__annotations__, copy.__module__ = function.__annotations__, function.__module__
    interpreted = _interpreter().InterpretedFunction(copy)
    try:
        code: types.CodeType = interpreted.rewrite().__code__
        return code
    finally:
        interpreted.rewritten_fn.pop(copy, None)


_language = cache(_rewritten)


def _range(*bounds: Any, **_: object) -> Iterator[Any]:
    """A loop's variable is a number of the kernel's, as in a compiled kernel; Python's would lack ``.to``."""
    yield from map(_converted, range(*bounds))


def _converted(value: Any) -> Any:
    """An argument as the kernel sees it."""
    interpreter = _interpreter()
    if isinstance(value, float):
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
    return interpreter._implicit_cvt(value)


def _cast(theirs: Any, source: Any, kind: Any) -> Any:
    """A conversion as a GPU does it. Triton's interpreter cuts a bfloat16's last digits off: no rounding."""
    old, new = source.dtype.scalar, kind.scalar
    if old == new or tl.bfloat16 not in (old, new):
        return theirs(source, kind)
    data = np.array(source.data)  # a copy of its own, in one piece, as torch wants it
    if old == tl.bfloat16:
        wide = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).float().numpy()
        return _interpreter().TensorHandle(wide.astype(_interpreter()._get_np_dtype(kind)), new)
    bits = torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return _interpreter().TensorHandle(bits, new)


def _np_dtype(pointers: Any) -> Any:
    return _interpreter()._get_np_dtype(pointers.get_element_ty())


def _nan_of(pointers: Any) -> float | int:
    """NaN, as bits where the interpreter holds a bfloat16 by them."""
    return 0x7FC0 if _np_dtype(pointers) == np.uint16 else float("nan")
