"""Exercises that grade themselves: ``check("batch_norm.forward", batch_norm)``.

Local and offline; progress is one small JSON file beside your work.
"""

from typing import Any

from normtutor.catalog import CHAPTERS
from normtutor.exercises import store
from normtutor.exercises.book import pages
from normtutor.exercises.registry import exercises, find
from normtutor.exercises.show import code, plain, show
from normtutor.exercises.verdict import SIGNS, WORDS, Verdict, failed_to_run, grade
from normtutor.lab.text import markdown_table, table

__all__ = ["Verdict", "check", "grade", "hint", "pages", "progress", "solution", "statement", "use"]

_hints_shown: dict[str, int] = {}


def check(id: str, answer: object) -> None:
    """Show the verdict on ``answer`` and note it in the progress file. Never raises.

    One more line says, once, that the progress cannot be saved, or that a damaged file was set aside.
    """
    try:
        find(id)
    except ValueError as unknown:
        show(str(unknown))
        return
    try:
        verdict = grade(id, answer)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an object can fail even where it is only looked at
        verdict = failed_to_run(id, error)
    note = store.record(verdict)
    _show_headed("\n\n".join([verdict.text, *([note] if note else [])]))


def hint(id: str) -> None:
    """Show the next hint; after the last one, start again.

    Raises:
        ValueError: no exercise has that id.
    """
    hints = find(id).hints
    shown = _hints_shown.get(id, 0)
    _hints_shown[id] = (shown + 1) % (len(hints) + 1)
    if shown < len(hints):
        show(f"Hint {shown + 1} of {len(hints)}: {hints[shown]}")
    else:
        show(f'No more hints. `solution("{id}")` shows a solution; the next call starts again.')


def solution(id: str) -> None:
    """Show the source of the reference.

    Raises:
        ValueError: no exercise has that id.
    """
    source = find(id).reference.strip()
    show(source, code(source))


def statement(id: str) -> None:
    """Show what the exercise asks.

    Raises:
        ValueError: no exercise has that id.
    """
    exercise = find(id)
    headline, text = f"{exercise.title} ({id})", exercise.statement.strip()
    show(f"{headline}\n\n{plain(text)}", f"**{headline}**\n\n{text}")


def use(id: str, answer: Any) -> Any:
    """``answer`` if it passes, else the reference, so that the rest of a notebook works; says which.

    Raises:
        ValueError: no exercise has that id.
    """
    verdict = grade(id, answer)
    exercise = find(id)
    if verdict.status == "passed":
        show(f"{SIGNS['passed']} {id}: from here on the notebook uses your `{exercise.answer}`.")
        return answer
    headline = verdict.text.partition("\n")[0]
    show(f"{headline}; from here on the notebook uses the reference.")
    return exercise.build(exercise.reference)


def progress(chapter: str | None = None) -> None:
    """Show a table of the exercises, those of one ``chapter`` or all, and how far you are.

    ``check`` notes it in ``normtutor_progress.json`` in the current folder, or in the file that the
    environment variable ``NORMTUTOR_PROGRESS`` names; ``normtutor check FILE`` notes nothing.

    Raises:
        ValueError: no chapter has that name.
    """
    rows = progress_rows(chapter)
    done = sum(status == "passed" for _, status, _ in rows)
    header = ("exercise", "status", "title")
    cells = [(id, WORDS.get(status, status), title) for id, status, title in rows]  # type: ignore[call-overload]
    summary = f"{done} of {len(rows)} exercises passed."
    if all(status == "unattempted" for _, status, _ in rows):
        summary += " `check` in a notebook or script notes what you do; `normtutor check FILE` notes nothing."
    show(f"{table(header, cells)}\n\n{summary}", f"{markdown_table(header, cells)}\n\n{summary}")


def progress_rows(chapter: str | None = None) -> list[tuple[str, str, str]]:
    """Id, status and title of every exercise, or of one chapter's.

    Raises:
        ValueError: no chapter has that name.
    """
    if chapter is not None and chapter not in CHAPTERS:
        raise ValueError(f"no chapter is called {chapter!r}: expected one of {', '.join(CHAPTERS)}")
    statuses = store.load()
    return [
        (id, statuses.get(id, "unattempted"), exercise.title)
        for id, exercise in exercises().items()
        if chapter is None or id.startswith(f"{chapter}.")
    ]


def _show_headed(text: str) -> None:
    """Show ``text``; Markdown sets its first line in bold."""
    headline, _, rest = text.partition("\n\n")
    show(text, f"**{headline}**\n\n{rest}")
