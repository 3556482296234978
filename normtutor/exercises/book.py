"""The exercises as pages of the static book, in MyST Markdown: for who reads without a kernel."""

import re
from difflib import SequenceMatcher
from html import escape

from normtutor.catalog import CHAPTERS
from normtutor.exercises.exercise import Exercise, Mistake
from normtutor.exercises.registry import exercises
from normtutor.exercises.show import code

_INTRO = """# {title}: exercises

The {count} exercises of the chapter [{title}](../../../notebooks/{chapter}.ipynb), for reading without
running: what each one asks, its hints one at a time, a solution, and the wrong answers that the checker
knows by name. Try first, then open. In the chapter's notebook the same exercises grade what you write."""

_WRONG = "In the words of the checker. Each is the solution with one change: − leaves, + takes its place."


def pages() -> dict[str, str]:
    """One page of Markdown per chapter: every exercise with folded hints, solution and wrong answers."""
    found: dict[str, str] = {}
    for chapter, title in CHAPTERS.items():
        mine = [e for e in exercises().values() if e.id.startswith(chapter + ".")]
        intro = _INTRO.format(title=title, count=len(mine), chapter=chapter)
        sections = [_section(exercise, number) for number, exercise in enumerate(mine, start=1)]
        found[chapter] = "\n\n".join([intro, *sections]) + "\n"
    return found


def _section(exercise: Exercise, number: int) -> str:
    # After the solution: each wrong answer is a change of it.
    wrong = "\n\n".join([_WRONG, *(_wrong_answer(exercise, mistake) for mistake in exercise.mistakes)])
    count = f"{len(exercise.mistakes)} typical wrong answers"
    return "\n\n".join(
        part.strip()
        for part in [
            f"(exercise-{exercise.id})=\n## {number}. {exercise.title}",
            f"`{exercise.id}`",
            exercise.statement,
            code(exercise.starter),
            # The book's Sphinx extension knows where the chapter asks it.
            f'Ask the checker with `check("{exercise.id}", {exercise.answer})`, as in the chapter: '
            f"{{ref}}`task-{exercise.id}`.",
            _hints(exercise),
            _fold("Solution", code(exercise.reference), "solution", f"exercise-{exercise.id}-solution"),
            _fold(count, wrong, "wrong", f"exercise-{exercise.id}-wrong"),
        ]
    )


def _hints(exercise: Exercise) -> str:
    """The hints as folds, each inside the one before: who opens one has read those that tell less."""
    text, count = "", len(exercise.hints)
    for number in range(count, 0, -1):
        id = f"exercise-{exercise.id}-hints" if number == 1 else ""
        text = _fold(f"Hint {number} of {count}", f"{exercise.hints[number - 1]}\n\n{text}", "hint", id)
    return text


def _wrong_answer(exercise: Exercise, mistake: Mistake) -> str:
    # The name is an identifier; what the checker says first is what a reader would call it.
    first, *rest = re.split(r"(?<=\.) ", mistake.sentence, maxsplit=1)
    body = "\n\n".join(
        [_change(exercise.reference, exercise.mistaken(mistake)), *(f"> {text}" for text in rest)]
    )
    return _fold(_inline(first), body, "mistake")


def _inline(text: str) -> str:
    """Markdown's code and emphasis as HTML: within ``<summary>`` Markdown is not read."""
    parts = re.split(r"`([^`]*)`", escape(text, quote=False))
    return "".join(
        f"<code>{part}</code>" if i % 2 else re.sub(r"\*([^*]+)\*", r"<em>\1</em>", part)
        for i, part in enumerate(parts)
    )


def _change(right: str, wrong: str) -> str:
    """The lines that differ, as plain HTML: a thousand of them, coloured word by word, would be heavy."""
    before, after = right.strip().splitlines(), wrong.strip().splitlines()
    parts = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            parts += [("del", "− ", before[i1:i2]), ("ins", "+ ", after[j1:j2])]
    lines = [line for _, _, some in parts for line in some if line]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    blocks = []
    for tag, sign, some in parts:
        text = "".join(f"{sign}{line[margin:]}\n" for line in some)
        if text:
            blocks.append(f"<{tag}>{escape(text, quote=False)}</{tag}>")
    return f'<pre class="change">{"".join(blocks)}</pre>'


def _fold(summary: str, body: str, kind: str, id: str = "") -> str:
    start = f'<details class="fold {kind}"' + (f' id="{id}">' if id else ">")
    return f"{start}\n<summary>{summary}</summary>\n\n{body.strip()}\n\n</details>"
