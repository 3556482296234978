"""What an exercise is: text, code as text, and a probe that observes how an answer behaves."""

import linecache
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from normtutor.exercises.observe import Draw


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer: the reference with ``patches`` applied, and one sentence about it.

    A patch is a text that occurs once in the reference, and what stands there instead.
    """

    name: str
    sentence: str
    patches: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Exercise:
    """An exercise as data.

    Attributes:
        id: ``notebook.name``.
        title: a few words.
        answer: the name that the learner defines: a function, a class or a dict of values.
        statement: Markdown; says exactly what is asked and checked.
        starter: the code that the learner begins with; it sees ``torch`` and ``nn``.
        hints: each tells more than the one before.
        reference: source of a right answer.
        alternatives: sources of other right answers, which the audit runs.
        mistakes: the typical wrong answers.
        probe: a generator of (name, value) pairs that runs an answer on drawn inputs.
        spot_the_bug: the starter runs, wrongly; an answer that still behaves like it is "not attempted".
        triton: the answer is a Triton kernel; its code sees ``triton`` and ``tl`` too.
        refusal: what speaks against an answer in which all is as in the reference, "" if nothing. It may take
            seconds, so it is asked for such an answer alone.
        challenge: an open task with a measured target, the chapter's last; any way that reaches it is right.
        cancels: pairs of mistakes that undo each other, each with its proof.
    """

    id: str
    title: str
    answer: str
    statement: str
    starter: str
    hints: tuple[str, ...]
    reference: str
    alternatives: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    probe: Callable[[Any, Draw], Iterator[tuple[str, object]]]
    spot_the_bug: bool = False
    challenge: bool = False
    triton: bool = False
    refusal: Callable[[Any], str] | None = None
    cancels: Mapping[frozenset[str], str] = field(default_factory=dict)

    def build(self, source: str) -> Any:
        """The learner's object as ``source`` defines it, new each time."""
        filename = f"<{self.id} {hash(source):x}>"
        # So that tracebacks and inspect.getsource see the text.
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        namespace: dict[str, Any] = {"__name__": self.id, "torch": torch, "nn": nn, "F": F}
        if self.triton:
            from normtutor.exercises import interpreter  # Triton is imported only when it is asked for

            namespace |= {"triton": interpreter.triton, "tl": interpreter.tl}
        exec(compile(source, filename, "exec"), namespace)
        return namespace[self.answer]

    def unavailable(self) -> str:
        """Why no answer can be graded on this machine: "" if one can."""
        if not self.triton:
            return ""
        from normtutor.exercises import interpreter

        return interpreter.missing()

    def mistaken(self, *mistakes: Mistake) -> str:
        """Source of the reference with the patches of ``mistakes`` applied in turn.

        Raises:
            ValueError: a patch's text does not occur exactly once.
        """
        source = self.reference
        for mistake in mistakes:
            source = patched(source, mistake.patches)
        return source


def patched(source: str, patches: Mapping[str, str]) -> str:
    """``source`` with each patch's old text replaced by its new one.

    Raises:
        ValueError: an old text does not occur exactly once.
    """
    for old, new in patches.items():
        if source.count(old) != 1:
            raise ValueError(f"{old!r} occurs {source.count(old)} times in the source, expected once")
        source = source.replace(old, new)
    return source
