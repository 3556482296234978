"""All exercises, from one module per chapter."""

from difflib import get_close_matches
from functools import cache
from importlib import import_module

from normtutor.catalog import CHAPTERS
from normtutor.exercises.exercise import Exercise


@cache
def exercises() -> dict[str, Exercise]:
    """Every exercise by its id, in the order of the chapters and from easy to hard."""
    modules = [import_module(f"normtutor.exercises.{chapter}") for chapter in CHAPTERS]
    return {exercise.id: exercise for module in modules for exercise in module.EXERCISES}


def find(id: str) -> Exercise:
    """The exercise called ``id``.

    Raises:
        ValueError: there is none; the message suggests the nearest, or lists the chapter's or the chapters.
    """
    known = exercises()
    if not isinstance(id, str):
        raise ValueError(
            f"the exercise's id comes first, such as {next(iter(known))!r}; got {type(id).__name__}"
        )
    if id not in known:
        near = get_close_matches(id.casefold(), known, n=1, cutoff=0.7)
        # "forward" or "layer" alone is near enough too.
        near = near or [one for one in known if id and one.rpartition(".")[2] == id.casefold()]
        mine = [one for one in known if one.partition(".")[0] == id.partition(".")[0]]
        if id in CHAPTERS:
            help = f"That is a chapter; its exercises are {', '.join(o for o in known if o.startswith(id))}."
        elif near:
            help = f"Did you mean {near[0]!r}?"
        elif mine:
            help = f"The chapter's exercises are {', '.join(mine)}."
        else:
            help = f"The chapters are {', '.join(CHAPTERS)}; progress() lists their exercises."
        raise ValueError(f"no exercise is called {id!r}. {help}")
    return known[id]
