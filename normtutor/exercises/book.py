"""The exercises as pages of the static book."""

from difflib import unified_diff

from normtutor.catalog import CHAPTERS
from normtutor.exercises.exercise import Exercise
from normtutor.exercises.registry import exercises
from normtutor.exercises.show import code


def pages() -> dict[str, str]:
    """One page of Markdown per chapter: every exercise with folded hints, wrong answers and solution."""
    found: dict[str, str] = {}
    for chapter, title in CHAPTERS.items():
        mine = [e for e in exercises().values() if e.id.startswith(chapter + ".")]
        found[chapter] = "\n\n".join([f"# {title}: exercises", *map(_section, mine)]) + "\n"
    return found


def _section(exercise: Exercise) -> str:
    folds = [_fold(f"Hint {number}", hint) for number, hint in enumerate(exercise.hints, start=1)]
    folds.append(_fold("Solution", code(exercise.reference)))
    # After the solution: each is a change of it.
    wrong = "\n\n".join(_wrong_answer(exercise, number) for number in range(len(exercise.mistakes)))
    folds.append(_fold(f"{len(exercise.mistakes)} typical wrong answers", wrong))
    parts = [f"## {exercise.title}", f"`{exercise.id}`", exercise.statement, code(exercise.starter)]
    return "\n\n".join(part.strip() for part in [*parts, *folds])


def _wrong_answer(exercise: Exercise, number: int) -> str:
    mistake = exercise.mistakes[number]
    source = exercise.mistaken(mistake)
    changes = list(unified_diff(exercise.reference.splitlines(), source.splitlines(), lineterm="", n=0))
    diff = "\n".join(line for line in changes[2:] if not line.startswith("@@"))
    title = f"**{number + 1}. {mistake.name.replace('_', ' ')}**"
    return f"{title}\n\n{code(diff, 'diff')}\n\n> {mistake.sentence}"


def _fold(summary: str, body: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{body.strip()}\n\n</details>"
