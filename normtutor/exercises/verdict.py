"""Grading: an answer's observations beside the reference's and each mistake's, put into words."""

import dis
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any, Literal

import torch
from torch import nn

from normtutor.exercises.exercise import Exercise, Mistake
from normtutor.exercises.observe import (
    Complaint,
    Holds,
    Raised,
    Unfinished,
    describe,
    kind,
    observe,
    outcome,
    same,
)
from normtutor.exercises.registry import find

SEED = 0
Status = Literal["passed", "wrong", "error", "unattempted"]
NOT_IN_FILE = "The file has no answer to this exercise."
NOT_HERE = "cannot be graded here"
Observation = tuple[str, object]
SIGNS: dict[Status, str] = {"passed": "✓", "wrong": "✗", "error": "!", "unattempted": "○"}
WORDS: dict[Status, str] = {
    "passed": "passed",
    "wrong": "not right yet",
    "error": "error in your code",
    "unattempted": "not attempted yet",
}


@dataclass(frozen=True)
class Verdict:
    """What the grader says about an answer.

    Attributes:
        id: the exercise.
        status: how the answer fared.
        mistake: name of the registered mistake that behaves like the answer in every observation.
        text: the verdict in words; the first line is a headline, the rest is Markdown.
    """

    id: str
    status: Status
    mistake: str | None
    text: str

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.status == "passed"

    def __bool__(self) -> bool:
        return self.passed


def grade(id: str, answer: object, seed: int = SEED, device: str = "cpu") -> Verdict:
    """Compare the behaviour of ``answer`` with the reference on random inputs.

    Nothing that the answer raises leaves this function, except KeyboardInterrupt. The global random
    state, the default dtype and the grad mode stay as they are.

    Args:
        id: the exercise.
        answer: the learner's object.
        seed: of the inputs.
        device: where the inputs live.

    Raises:
        ValueError: no exercise has that id.
    """
    exercise = find(id)
    if exercise.unavailable():
        return _not_gradable(exercise)
    if answer is None or answer is ...:
        return _unattempted(exercise, [])
    complaint = _wrong_kind(exercise, answer)
    if complaint:
        return _verdict(exercise, "wrong", None, complaint)
    library = _library(answer)
    if library:
        return _unattempted(
            exercise, [], f"This is {library}'s own code. Write your own `{exercise.answer}`."
        )
    with _isolated(seed, device):
        came = list(observe(exercise.probe, answer, seed, device))
    with _isolated(seed, device):  # anew: the answer may have thrown a global switch
        return _compare(exercise, answer, came, seed, device)


def failed_to_run(id: str, error: BaseException) -> Verdict:
    """The verdict on an answer whose own code raised ``error`` before it could be graded.

    Raises:
        ValueError: no exercise has that id.
    """
    exercise, observed = find(id), outcome(error)
    if exercise.unavailable():
        return _not_gradable(exercise)
    if isinstance(observed, Unfinished):
        return _unattempted(exercise, [])
    return _verdict(exercise, "error", None, f"Your code stops with {observed}.")


def not_in_file(id: str) -> Verdict:
    """The verdict on an exercise that a file does not contain.

    Raises:
        ValueError: no exercise has that id.
    """
    return _unattempted(find(id), [], NOT_IN_FILE)


def too_slow(id: str, seconds: float) -> Verdict:
    """The verdict on an answer that was stopped.

    Raises:
        ValueError: no exercise has that id.
    """
    return _verdict(find(id), "error", None, f"Your code did not finish in {seconds:g} s.")


def unknown(id: str, why: str) -> Verdict:
    """The verdict on an answer to an exercise that does not exist."""
    return Verdict(id, "error", None, f"{SIGNS['error']} {id}: unknown exercise\n\n{why}")


def _compare(exercise: Exercise, answer: object, came: list[Observation], seed: int, device: str) -> Verdict:
    reference = _known(exercise, exercise.reference, seed, device)
    first = _first_difference(reference, came)
    right = [name for i, (name, value) in enumerate(came) if _agrees(reference[i], value)]
    progress = _score(right, len(reference)) if right else []
    if came and isinstance(came[-1][1], Unfinished):
        following = reference[len(came) - 1]
        if progress and following:
            progress.append(f"The next check is: {following[0]}.")
        return _unattempted(exercise, progress)
    if first is None and came and isinstance(came[-1][1], Raised):  # reference and answer fail alike
        why = f"The exercise itself stops with {came[-1][1]}, so nothing can be said about your answer."
        return _verdict(exercise, "error", None, why)
    refusal = exercise.refusal(answer) if first is None and exercise.refusal else ""
    if refusal:
        return _verdict(exercise, "wrong", None, refusal)
    if first is None:
        text = f"All {len(came)} checks agree with the reference (seed {seed})."
        return _verdict(exercise, "passed", None, text)
    if exercise.spot_the_bug:
        given = _known(exercise, exercise.starter, seed, device)
        if _first_difference(given, came) is None:
            return _bug_left(exercise, answer)

    name, expected = reference[first] or ("", None)
    _, got = came[first] if first < len(came) else ("", None)
    exact, likely = _explain(exercise, came, first, seed, device)
    status: Status = "wrong"
    lines = []
    # A statement that fails can be just what the mistake says; anything else has other causes too.
    certain = likely is not None and isinstance(got, Holds) and got.mistake == likely.name
    if exact:
        lines.append(exact.sentence)
    elif likely:
        lines.append(likely.sentence if certain else f"Possibly: {likely.sentence}")
    if isinstance(got, Raised):
        status = "wrong" if exact else "error"
        lines.append(f"At {name}, your code stops with {got}.")
        if got.type == "TypeError" and "argument" in got.message and not got.line:
            lines.append(f"The exercise asks for `{signature(exercise)}`.")
    elif isinstance(got, Complaint):
        lines += [got.text] * (got.text not in lines)
    else:
        if isinstance(got, Holds):
            lines.append(f"Not as asked: {got.otherwise}.")
        else:
            lines.append(f"First difference, {name}: {describe(expected, got)}.")
        others = [name for i, (name, value) in enumerate(came) if i > first and _differs(reference[i], value)]
        known = exact or certain  # and what follows from it need not be listed
        if others and not known:
            lines.append(f"Also different: {_some(others)}.")
        if isinstance(came[-1][1], Raised) and not known:
            lines.append(f"Later your code stops with {came[-1][1]}.")
    lines += progress
    lines.append(f"Inputs: seed {seed}.")
    return _verdict(exercise, status, exact.name if exact else None, *lines)


def _agrees(wanted: Observation | None, value: object) -> bool:
    return wanted is not None and same(wanted[1], value)


def _differs(wanted: Observation | None, value: object) -> bool:
    return wanted is not None and not isinstance(value, Raised | Complaint) and not same(wanted[1], value)


def _score(right: list[str], of: int) -> list[str]:
    names = f": {_some(right)}" if len(right) <= 6 else ""
    return [f"{len(right)} of {of} checks are right{names}."]


def _some(names: list[str]) -> str:
    """At most six names."""
    more = [f"and {len(names) - 6} more"] * (len(names) > 6)
    return ", ".join([*names[:6], *more])


def _explain(
    exercise: Exercise, came: list[Observation], first: int, seed: int, device: str
) -> tuple[Mistake | None, Mistake | None]:
    """The mistake that behaves like the answer throughout, or else one that does up to the first difference.

    Among several of the second kind, the one that the first difference names, or the one that agrees longest;
    none if the first difference names something that is no mistake on the list.
    """
    likely, agreed = None, first
    _, got = came[first] if first < len(came) else ("", None)
    stated = got.mistake if isinstance(got, Holds) else ""
    elsewhere = stated and stated not in {mistake.name for mistake in exercise.mistakes}
    for mistake in exercise.mistakes:
        until = _first_difference(_known(exercise, exercise.mistaken(mistake), seed, device), came)
        if until is None:
            return mistake, None
        if until > agreed and (likely is None or likely.name != stated or mistake.name == stated):
            likely, agreed = mistake, until
        elif until > first and mistake.name == stated:
            likely = mistake
    return None, None if elsewhere else likely


def _bug_left(exercise: Exercise, answer: object) -> Verdict:
    """The verdict on an answer that behaves like the faulty code that the exercise begins with."""
    mine, given = _does(answer), _does(exercise.build(exercise.starter))
    if mine and mine != given:
        why = "You changed the code, but nothing that the checker looks at changed: the bug is still in it."
        return _verdict(exercise, "wrong", None, why)
    return _unattempted(exercise, [], "This is the given code: the bug is still in it.")


def _does(value: object) -> list[object]:
    """What the functions in ``value`` do, comments and layout aside; empty where they are not Python's."""
    if isinstance(value, type):
        return [(name, done) for name, part in vars(value).items() if (done := _does(part))]
    if isinstance(value, FunctionType):
        return [*_does(value.__code__), repr(value.__defaults__)]
    if isinstance(value, CodeType):
        return [step for instruction in dis.get_instructions(value) if (step := _step(instruction))]
    return []


def _step(instruction: dis.Instruction) -> object:
    """An instruction as it reads in any file: a call through a name compiles differently where that name is
    imported, which moves the targets of jumps too."""
    if instruction.opname in ("PUSH_NULL", "PRECALL", "CACHE", "NOP", "EXTENDED_ARG"):
        return None
    if instruction.opname in ("LOAD_METHOD", "LOAD_ATTR"):
        return ("LOAD_ATTR", instruction.argval)
    if isinstance(instruction.argval, CodeType):
        return _does(instruction.argval)
    jumps = instruction.opcode in (*dis.hasjrel, *dis.hasjabs)
    return (instruction.opname, None if jumps else repr(instruction.argval))


class _Run:
    """The observations of known code, made when they are first asked for, and kept."""

    def __init__(self, observations: Iterator[Observation]) -> None:
        self._observations = observations
        self._made: list[Observation] = []

    def __getitem__(self, index: int) -> Observation | None:
        """The observation at ``index``, or None past the last one."""
        while len(self._made) <= index:
            try:
                self._made.append(next(self._observations))
            except StopIteration:
                return None
            except BaseException:  # interrupted: what is cut short must not pass for a whole run
                _known.cache_clear()
                raise
        return self._made[index]

    def __len__(self) -> int:
        while self[len(self._made)] is not None:
            pass
        return len(self._made)


@cache
def _known(exercise: Exercise, source: str, seed: int, device: str) -> _Run:
    return _Run(observe(exercise.probe, exercise.build(source), seed, device))


def _first_difference(known: _Run, came: list[Observation]) -> int | None:
    """Index of the first observation in which ``came`` differs, or None."""
    for index, (_, value) in enumerate(came):
        wanted = known[index]
        if wanted is None or not same(wanted[1], value):
            return index
    return None if known[len(came)] is None else len(came)


@contextmanager
def _isolated(seed: int, device: str) -> Iterator[None]:
    """A known state of torch's global switches while an answer runs; what they were before comes back."""
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(cuda),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_num_threads(1)  # the tensors are tiny: waking a second thread costs more than it saves
            yield
        finally:
            torch.set_default_dtype(default)
            torch.set_num_threads(threads)


@cache
def _reference(exercise: Exercise) -> Any:
    return exercise.build(exercise.reference)


def _wrong_kind(exercise: Exercise, answer: object) -> str | None:
    """What is wrong with the kind of object that was passed, if anything."""
    wanted, name, passed = _reference(exercise), exercise.answer, kind(answer)
    if isinstance(wanted, type):
        if isinstance(answer, nn.Module):
            return f"You passed an object, {passed}. Pass the class itself: `{name}`, without `()`."
        if not isinstance(answer, type):
            return f"You passed {passed}. Pass the class `{name}` itself."
        if not issubclass(answer, nn.Module):
            return f"Derive your class from `nn.Module`: `class {answer.__name__}(nn.Module):`."
    elif isinstance(wanted, dict):
        if not isinstance(answer, dict):
            return f"You passed {passed}. Pass the dict `{name}` with your numbers."
    elif isinstance(answer, type):
        return f"You passed the class {answer.__name__}. Pass a function, `{signature(exercise)}`."
    elif not callable(answer):
        return f"You passed {passed}. Pass the function `{name}` itself, without calling it."
    return None


def _library(answer: object) -> str | None:
    """The library that ``answer`` comes from: torch or normtutor, if it is not the learner's own."""
    while isinstance(answer, partial):
        answer = answer.func
    parts = [answer, getattr(answer, "forward", None)]
    if type(answer).__module__ == "torch._ops":
        parts.append(type(answer))
    for part in parts:
        library = str(getattr(part, "__module__", None)).partition(".")[0]
        if library in ("torch", "normtutor") and getattr(part, "__name__", "") != "_forward_unimplemented":
            return library
    return None


def signature(exercise: Exercise) -> str:
    """How the learner's function or class is called."""
    reference = _reference(exercise)
    function = getattr(reference, "fn", reference)  # under `@triton.jit`
    written = str(inspect.signature(function)).replace("triton.language.core.constexpr", "tl.constexpr")
    return f"{exercise.answer}{written}"


def _unattempted(exercise: Exercise, progress: list[str], why: str | None = None) -> Verdict:
    """``progress`` says what is right in an answer that is begun."""
    why = why or f"Complete `{exercise.answer}` and run the cell again."
    hint = f'`hint("{exercise.id}")` shows a hint.'
    words = "unfinished" if progress else WORDS["unattempted"]
    return _verdict(exercise, "unattempted", None, f"{why} {hint}", *progress, words=words)


def _not_gradable(exercise: Exercise) -> Verdict:
    why = f"{exercise.unavailable()} That says nothing about your answer."
    return _verdict(exercise, "unattempted", None, why, words=NOT_HERE)


def _verdict(
    exercise: Exercise, status: Status, mistake: str | None, *lines: str, words: str | None = None
) -> Verdict:
    headline = f"{SIGNS[status]} {exercise.id}: {words or WORDS[status]}"
    return Verdict(exercise.id, status, mistake, "\n\n".join([headline, *lines]))
