"""Running an answer: the inputs it gets, what is observed, and how two observations are compared."""

import dis
import linecache
import math
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Largest difference that counts as rounding, relative to the largest value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2**-9, torch.bfloat16: 2**-7}

T = TypeVar("T")

_OURS = str(Path(__file__).resolve().parent.parent)
_NOT_THE_LEARNERS = (_OURS, str(Path(torch.__file__).parent), sysconfig.get_paths()["stdlib"], "<frozen")


class Unfinished(Exception):
    """The answer still holds a part of its starter."""


class Broken(Exception):
    """The answer cannot be observed further; the message tells the learner why."""


class Forbidden(Broken):
    """The answer asks torch for what the exercise asks of the learner."""


class TimeUp(BaseException):
    """The answer takes too long; not an Exception, so that the learner's own handlers let it through."""


NORMALIZATION = "You call torch's own normalization. Write the formula: that is the exercise."
AUTOGRAD = "Use no autograd: derive the three terms. Autograd is how to check them afterwards."


class _ByHand(TorchFunctionMode):
    """Refuses torch's normalization and forward-mode differentiation, whatever they are called through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", ""))
        if re.search("(batch|layer|group|instance|rms|weight)_norm", name):
            raise Forbidden(NORMALIZATION)
        if name == "_make_dual":
            raise Forbidden(AUTOGRAD)
        return func(*args, **(kwargs or {}))


Probe = Callable[[Any, "Draw"], Iterator[tuple[str, object]]]


def by_hand(probe: Probe) -> Probe:
    """``probe``, for an exercise in which torch's own normalization is no answer."""

    def watched(answer: Any, draw: "Draw") -> Iterator[tuple[str, object]]:
        observations = probe(answer, draw)
        while True:
            with _ByHand():  # only while the probe runs: several are read by turns
                observation = next(observations, None)
            if observation is None:
                return
            yield observation

    return watched


def without_autograd(call: Callable[..., T], *arguments: object) -> T:
    """What ``call`` returns, unless it records a graph.

    Raises:
        Forbidden: it does.
    """

    def refuse(_: Any) -> Tensor:
        raise Forbidden(AUTOGRAD)

    try:
        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
            return call(*arguments)
    except RuntimeError as error:
        # torch.func.vjp and the like do not run under the hooks, and without a graph backward() finds none.
        if re.search("saved tensor hooks|does not require grad", str(error)):
            raise Forbidden(AUTOGRAD) from None
        raise


class Draw:
    """The random inputs of one trial: the same for everyone who draws in the same order."""

    def __init__(self, seed: int, device: str) -> None:
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``."""
        return low + (high - low) * torch.rand((), generator=self._generator).item()

    def values(self, *shape: int, low: float = -2.0, high: float = 2.0) -> Tensor:
        """Numbers between ``low`` and ``high``."""
        drawn = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(self.device, self.dtype)

    def batch(self, n: int, c: int, *rest: int) -> Tensor:
        """(n, c, *rest) whose samples and channels each have their own scale and shift."""
        ones = [1] * len(rest)
        drawn = torch.randn(n, c, *rest, generator=self._generator, dtype=torch.float64)
        x = drawn.to(self.device, self.dtype)
        x = x * self.values(1, c, *ones, low=0.5, high=2) + self.values(1, c, *ones, low=-3, high=3)
        return x * self.values(n, 1, *ones, low=0.5, high=2) + self.values(n, 1, *ones)


Module = TypeVar("Module", bound=nn.Module)


def settle(module: Module, draw: Draw, dtype: torch.dtype | None = None) -> Module:
    """``module`` on the trial's device, in ``dtype`` or the trial's own."""
    return module.to(draw.device, dtype or draw.dtype)


def returned(value: object, call: object, *wanted: str) -> Any:
    """What ``call`` (a function, or a class with ``forward``) returned, if it can be observed.

    ``wanted`` names the parts of a tuple; without it a single tensor is expected.

    Raises:
        Unfinished: ``call`` does nothing yet, or returned ``...``.
        Broken: it is not a tensor, or not a tuple of them.
    """
    where = f"`{call.__name__}.forward`" if isinstance(call, type) else f"`{getattr(call, '__name__', 'it')}`"
    if value is None:
        if does_nothing(call):
            raise Unfinished
        raise Broken(f"{where} returns None: a `return` is missing.")
    parts = value if isinstance(value, tuple) else (value,)
    if any(part is ... for part in parts):
        raise Unfinished
    if not wanted:
        if not isinstance(value, Tensor):
            raise Broken(f"{where} returns {kind(value)}, expected a tensor.")
    elif not isinstance(value, tuple | list) or len(value) != len(wanted):
        got = f"{kind(value)} of {len(value)}" if isinstance(value, tuple | list) else kind(value)
        raise Broken(f"{where} returns {got}, expected a tuple of {len(wanted)}: ({', '.join(wanted)}).")
    return value


def attempted(call: Callable[[], object], answer: object) -> None:
    """Raise Unfinished if ``call``, which runs ``answer``, reaches an unfinished part; ignore the rest."""
    try:
        returned(call(), answer)
    except (Unfinished, Forbidden):
        raise
    except Exception as error:
        if is_unfinished(error):
            raise Unfinished from None


def does_nothing(call: object) -> bool:
    """Whether ``call``, a function or a class with ``forward``, has no body yet."""
    code = getattr(getattr(call, "forward", call), "__code__", None)
    # `pass`, `...` and a docstring use no names and no variables but the arguments.
    return code is not None and not code.co_names and code.co_nlocals == code.co_argcount


def is_unfinished(error: BaseException) -> bool:
    """Whether ``error`` comes from an untouched part: ``raise NotImplementedError``, or a ``...`` in use."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    if isinstance(error, NotImplementedError):
        # An operator that lacks a dtype raises the same type, but not by a `raise` statement.
        raised_here = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
        return raised_here and (_is_learners(code.co_filename) or code.co_name == "_forward_unimplemented")
    learners = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if _is_learners_frame(frame)]
    dots = bool(learners) and any(value is ... for value in learners[-1].f_locals.values())
    return dots or "ellipsis" in _message(error)


def _is_learners(filename: str) -> bool:
    return not filename.startswith(_NOT_THE_LEARNERS) and "site-packages" not in filename


def _is_learners_frame(frame: Any) -> bool:
    return _is_learners(frame.f_code.co_filename)


@dataclass(frozen=True)
class Approx:
    """A number or tensor to be compared with a tolerance of its own."""

    value: object
    tolerance: float


@dataclass(frozen=True)
class Holds:
    """Whether something is as asked; ``otherwise`` says what is the case if it is not.

    ``mistake`` names the mistake that says just this, if one does.
    """

    value: bool
    otherwise: str
    mistake: str = ""


@dataclass(frozen=True)
class Secret:
    """Something to compare whose right value no verdict may show."""

    value: object


@dataclass(frozen=True)
class Snapshot:
    """A tensor (or number) as it was when it was observed; differences up to ``limit`` are rounding."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    device: str
    values: tuple[float, ...]
    limit: float


@dataclass(frozen=True)
class Complaint:
    """Why an answer could not be observed further."""

    text: str


@dataclass(frozen=True)
class Raised:
    """An exception that left the learner's code; ``line`` is 0 where no line of theirs took part."""

    type: str
    message: str
    line: int
    code: str

    @classmethod
    def of(cls, error: BaseException) -> "Raised":
        """``error``, with the last line of the learner's that it went through."""
        line, code = _learners_line(error.__traceback__)
        return cls(type(error).__name__, _message(error), line, code)

    def __str__(self) -> str:
        where = f" (line {self.line}{f': `{self.code}`' if self.code else ''})" if self.line else ""
        return f"{self.type}{f': {self.message}' if self.message else ''}{where}"


def _learners_line(trace: TracebackType | None) -> tuple[int, str]:
    for frame, line in reversed(list(traceback.walk_tb(trace))):
        if _is_learners_frame(frame):
            return line, linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()
    return 0, ""


def _message(error: BaseException) -> str:
    """The first line of an exception's text, shortened."""
    try:
        first = str(error).strip().partition("\n")[0]
    except Exception:  # an exception of the learner's own, with a faulty __str__
        return ""
    return first if len(first) <= 200 else first[:197] + "..."


def observe(
    probe: Callable[[Any, Draw], Iterator[tuple[str, object]]], answer: object, seed: int, device: str
) -> Iterator[tuple[str, object]]:
    """The probe's observations of ``answer``, each frozen; an exception becomes the last one.

    Raises:
        KeyboardInterrupt: the learner stopped it.
    """
    observations = probe(answer, Draw(seed, device))
    while True:
        try:
            name, value = next(observations)
            observation = name, freeze(value)
        except StopIteration:
            return
        except (KeyboardInterrupt, TimeUp):
            raise
        except BaseException as error:  # SystemExit too: no answer may end the session
            yield "", outcome(error)
            return
        yield observation


def outcome(error: BaseException) -> Complaint | Unfinished | Raised:
    """The observation that ``error`` is."""
    if isinstance(error, Broken):
        return Complaint(str(error))
    return Unfinished() if isinstance(error, Unfinished) or is_unfinished(error) else Raised.of(error)


def freeze(value: object, tolerance: float | None = None) -> object:
    """A copy of ``value`` that later steps cannot change and that is cheap to compare."""
    if value is ...:
        raise Unfinished
    if isinstance(value, Approx):
        return freeze(value.value, value.tolerance)
    if isinstance(value, Secret):
        return Secret(freeze(value.value))
    if isinstance(value, Holds):
        return value
    if isinstance(value, Tensor):
        tolerance = TOLERANCE.get(value.dtype, 0.0) if tolerance is None else tolerance
        numbers = value.detach().flatten().tolist() if value.numel() <= 4096 else []
        limit = tolerance * _scale(numbers)
        return Snapshot(value.dtype, tuple(value.shape), value.device.type, tuple(numbers), limit)
    if tolerance is not None and isinstance(value, int | float):
        return Snapshot(None, (), "", (float(value),), tolerance * _scale([value]))
    if isinstance(value, list | tuple):
        return tuple(freeze(part) for part in value)
    if isinstance(value, dict):
        return {str(key): freeze(part) for key, part in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else kind(value)


def same(a: object, b: object) -> bool:
    """Whether two frozen observations agree, up to rounding."""
    if isinstance(a, Snapshot) and isinstance(b, Snapshot):
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            return False
        return a.values == b.values or max(differences(a, b)) <= min(a.limit, b.limit)
    if isinstance(a, Raised) and isinstance(b, Raised):
        # The order of the words aside: `a * b` and `b * a` complain about the same two shapes.
        return a.type == b.type and sorted(a.message.split()) == sorted(b.message.split())
    if isinstance(a, Holds) and isinstance(b, Holds):
        return a.value == b.value
    if isinstance(a, Secret) and isinstance(b, Secret):
        return same(a.value, b.value)
    return type(a) is type(b) and a == b


def _scale(values: Sequence[float]) -> float:
    """The largest finite magnitude, at least 1."""
    return max([1.0, *(size for size in map(abs, values) if size < math.inf)])


def differences(a: Snapshot, b: Snapshot) -> list[float]:
    """Element by element; infinite where only one of the two is a number."""
    return [_difference(x, y) for x, y in zip(a.values, b.values, strict=True)]


def _difference(x: float, y: float) -> float:
    if x == y or (x != x and y != y):
        return 0.0
    difference = abs(x - y)
    return difference if math.isfinite(difference) else math.inf


def describe(expected: object, got: object) -> str:
    """What was expected and what came, in one line."""
    if isinstance(expected, Secret):
        return "not the right value"
    if isinstance(expected, Snapshot) and isinstance(got, Snapshot):
        return _describe_tensors(expected, got)
    if isinstance(expected, tuple | dict) and isinstance(got, tuple | dict):
        missing = [str(name) for name in expected if name not in got]
        extra = [str(name) for name in got if name not in expected]
        parts = [f"missing {', '.join(missing)}"] * bool(missing)
        parts += [f"not expected {', '.join(extra)}"] * bool(extra)
        if parts:
            return "; ".join(parts)
        if isinstance(expected, dict) and isinstance(got, dict):
            name = next(name for name in expected if not same(expected[name], got[name]))
            return f"{name}: {describe(expected[name], got[name])}"
    return f"expected {_brief(expected)}, got {_brief(got)}"


def _describe_tensors(expected: Snapshot, got: Snapshot) -> str:
    for what in ("shape", "dtype", "device"):
        wanted, came = getattr(expected, what), getattr(got, what)
        if wanted != came:
            return f"expected {what} {wanted}, got {came}"
    if not expected.shape:
        return _numbers(expected.values[0], got.values[0])
    each = differences(expected, got)
    largest = max(each)
    at = each.index(largest)
    off = sum(d > expected.limit for d in each)
    text = f"{_numbers(expected.values[at], got.values[at])} at index {_index(at, expected.shape)}; "
    text += f"{off} of {len(each)} values differ, by at most {largest:.3g}"
    if expected.dtype == torch.float64 and largest < 1e-6 * _scale(expected.values):
        text += " (rounding of float32's size: does something turn float64 into float32?)"
    return text


def _numbers(expected: float, got: float) -> str:
    """Both numbers, with more digits where few would look alike."""
    digits = 6 if f"{expected:.4g}" != f"{got:.4g}" else 12
    return f"expected {expected:.{digits}g}, got {got:.{digits}g}"


def _index(flat: int, shape: tuple[int, ...]) -> list[int]:
    index: list[int] = []
    for size in reversed(shape):
        flat, at = divmod(flat, size)
        index.insert(0, at)
    return index


def _brief(value: object) -> str:
    if value is None:
        return "nothing (None)"
    if isinstance(value, Snapshot):
        kind = "a number" if value.dtype is None else f"a {value.dtype} tensor of shape {value.shape}"
        return f"{value.values[0]:.6g}" if value.dtype is None else kind
    return str(value)


def kind(value: object) -> str:
    """The type of ``value``, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
