"""Grading: an answer's observations beside the reference's and each mistake's, put into words."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from normtutor.exercises.exercise import Exercise, Mistake
from normtutor.exercises.observe import Complaint, Raised, Unfinished, describe, observe, outcome, same
from normtutor.exercises.registry import find

SEED = 0
Status = Literal["passed", "wrong", "error", "unattempted"]
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
    if answer is None or answer is ...:
        return _unattempted(exercise, [])
    complaint = _wrong_kind(exercise, answer)
    if complaint:
        return _verdict(exercise, "wrong", None, complaint)
    with _isolated(seed, device):
        came = list(observe(exercise.probe, answer, seed, device))
    with _isolated(seed, device):  # anew: the answer may have thrown a global switch
        return _compare(exercise, came, seed, device)


def failed_to_run(id: str, error: BaseException) -> Verdict:
    """The verdict on an answer whose own code raised ``error`` before it could be graded.

    Raises:
        ValueError: no exercise has that id.
    """
    exercise, observed = find(id), outcome(error)
    if isinstance(observed, Unfinished):
        return _unattempted(exercise, [])
    return _verdict(exercise, "error", None, f"Your code stops with {observed}.")


def not_in_file(id: str) -> Verdict:
    """The verdict on an exercise that a file does not contain.

    Raises:
        ValueError: no exercise has that id.
    """
    return _unattempted(find(id), [], "The file has no answer to this exercise.")


def unknown(id: str, why: str) -> Verdict:
    """The verdict on an answer to an exercise that does not exist."""
    return Verdict(id, "error", None, f"{SIGNS['error']} {id}: unknown exercise\n\n{why}")


def _compare(exercise: Exercise, came: list[Observation], seed: int, device: str) -> Verdict:
    reference = _known(exercise, exercise.reference, seed, device)
    first = _first_difference(reference, came)
    right = [name for name, _ in came[:first]]
    if came and isinstance(came[-1][1], Unfinished):
        return _unattempted(exercise, right)
    if first is None:
        text = f"All {len(came)} observations agree with the reference (seed {seed})."
        return _verdict(exercise, "passed", None, text)
    if exercise.spot_the_bug:
        given = _known(exercise, exercise.starter, seed, device)
        if _first_difference(given, came) is None:
            why = "Your code behaves exactly like the given one: the bug is still in it."
            return _unattempted(exercise, right, why)

    name, expected = reference[first] or ("", None)
    _, got = came[first] if first < len(came) else ("", None)
    exact, likely = _explain(exercise, came, first, seed, device)
    lines = [exact.sentence] if exact else [f"Possibly: {likely.sentence}"] if likely else []
    if isinstance(got, Raised):
        lines.append(f"While observing {name}, your code stops with {got}.")
        if not got.line:
            lines.append(f"The exercise asks for `{signature(exercise)}`.")
    elif isinstance(got, Complaint):
        lines.append(got.text)
    else:
        what = "this does not hold" if got is False else describe(expected, got)
        lines.append(f"First difference, {name}: {what}.")
        others = [name for i, (name, value) in enumerate(came) if i > first and _differs(reference[i], value)]
        if others:
            lines.append(f"Also different: {_some(others)}.")
        if isinstance(came[-1][1], Raised):
            lines.append(f"Later your code stops with {came[-1][1]}.")
    lines += _already_right(right)
    status: Status = "error" if isinstance(got, Raised) and not exact else "wrong"
    lines.append(f"Inputs: seed {seed}.")
    return _verdict(exercise, status, exact.name if exact else None, *lines)


def _differs(wanted: Observation | None, value: object) -> bool:
    return wanted is not None and not isinstance(value, Raised | Complaint) and not same(wanted[1], value)


def _some(names: list[str]) -> str:
    more = [f"and {len(names) - 5} more"] * (len(names) > 5)
    return ", ".join([*names[:5], *more])


def _explain(
    exercise: Exercise, came: list[Observation], first: int, seed: int, device: str
) -> tuple[Mistake | None, Mistake | None]:
    """The mistake that behaves like the answer throughout, or else one that does up to the first difference.

    Among several of the second kind, the one that agrees longest.
    """
    likely, agreed = None, first
    for mistake in exercise.mistakes:
        until = _first_difference(_known(exercise, exercise.mistaken(mistake), seed, device), came)
        if until is None:
            return mistake, None
        if until > agreed:
            likely, agreed = mistake, until
    return None, likely


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
    wanted, name, kind = _reference(exercise), exercise.answer, type(answer).__name__
    if isinstance(wanted, type):
        if isinstance(answer, nn.Module):
            return f"You passed an object of the class {kind}. Pass the class itself: `{name}`, without `()`."
        if not isinstance(answer, type):
            return f"Pass the class `{name}` itself; what came is of type {kind}."
        if not issubclass(answer, nn.Module):
            return f"Derive your class from `nn.Module`: `class {answer.__name__}(nn.Module):`."
    elif isinstance(wanted, dict):
        if not isinstance(answer, dict):
            return f"Pass the dict `{name}` with your numbers; what came is of type {kind}."
    elif isinstance(answer, type):
        return f"Pass a function, `{signature(exercise)}`; what came is the class {answer.__name__}."
    elif not callable(answer):
        return f"Pass the function `{name}` itself, without calling it; what came is of type {kind}."
    return None


def signature(exercise: Exercise) -> str:
    """How the learner's function or class is called."""
    return f"{exercise.answer}{inspect.signature(_reference(exercise))}"


def _unattempted(exercise: Exercise, right: list[str], why: str | None = None) -> Verdict:
    why = why or f"Complete `{exercise.answer}` and run the cell again."
    hint = f'`hint("{exercise.id}")` shows a hint.'
    return _verdict(exercise, "unattempted", None, f"{why} {hint}", *_already_right(right))


def _already_right(names: list[str]) -> list[str]:
    return [f"Already right: {', '.join(names)}."] if names else []


def _verdict(exercise: Exercise, status: Status, mistake: str | None, *lines: str) -> Verdict:
    headline = f"{SIGNS[status]} {exercise.id}: {WORDS[status]}"
    return Verdict(exercise.id, status, mistake, "\n\n".join([headline, *lines]))
