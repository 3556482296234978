"""The front page: the ways in, and a card per chapter. Nothing here lists chapters by hand."""

import html
import re
from functools import cache
from pathlib import Path

import nbformat
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import address
from chapter_lines import LINES
from index_sets import INTRODUCTION

WORDS_A_MINUTE = 200
NOTE = (
    f"To read: the prose, at {WORDS_A_MINUTE} words a minute; code and exercises come on top. "
    "To run: all cells, measured when the notebooks were executed for this site."
)
NEUTRAL = "var(--pst-color-text-muted)"


def prose(notebook: Path) -> list[str]:
    """The Markdown cells of a chapter."""
    return [c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "markdown"]


def formula(notebook: Path) -> str:
    """The formula that a chapter begins with; empty if it begins with none."""
    found = re.search(r"\$\$(.+?)\$\$", prose(notebook)[0], re.DOTALL)
    return found[1].strip() if found else ""


def reading_minutes(notebook: Path) -> int:
    """How long the prose takes; code, displayed formulas and exercises come on top."""
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$|<[^>]+>|\]\([^)]*\)", " ", "\n".join(prose(notebook)))
    return max(1, round(len(re.findall(r"[\w$]\S*", text)) / WORDS_A_MINUTE))


def run_time(seconds: float | None) -> str:
    """In words; empty where nothing was measured."""
    if not seconds:
        return ""
    return f"runs in {seconds:.0f} s" if seconds < 90 else f"runs in {seconds / 60:.0f} min"


@cache
def exercise_counts() -> dict[str, int]:
    from normtutor.catalog import CHAPTERS  # here, because they import torch
    from normtutor.exercises.registry import exercises

    return {name: sum(id.startswith(f"{name}.") for id in exercises()) for name in CHAPTERS}


@cache
def colours() -> dict[str, str]:
    """Chapter → its technique's colour."""
    from normtutor.catalog import TECHNIQUES
    from normtutor.lab.figures import TECHNIQUE_COLOURS

    # Weight Normalization has no row in the catalog.
    return {"weight_norm": TECHNIQUE_COLOURS["weight"]} | {
        row.notebook: TECHNIQUE_COLOURS[row.name] for row in reversed(TECHNIQUES.values())
    }


def colab(chapter: str) -> str:
    return address.on_colab(address.repository(), f"notebooks/{chapter}.ipynb")


class Start(SphinxDirective):
    """``{start}``: read, run, practise."""

    def run(self) -> list[nodes.Node]:
        app, here = self.env.app, self.env.docname
        first = next(iter(LINES))
        uri = app.builder.get_relative_uri
        links = {
            "Read the first chapter": uri(here, f"notebooks/{first}"),
            "Run it on Colab": colab(first),
            "Practise": uri(here, f"book/generated/exercises/{first}"),
        }
        text = "".join(f'<a href="{to}">{label}</a>' for label, to in links.items())
        return [nodes.raw("", f'<p class="start">{text}</p>', format="html")]


class chapter_facts(nodes.General, nodes.Element):
    """Where the run time of a chapter will stand: it is known once the chapter was read."""


class Chapters(SphinxDirective):
    """``{chapters}``: a card per chapter."""

    def run(self) -> list[nodes.Node]:
        from normtutor.catalog import CHAPTERS

        app, here = self.env.app, self.env.docname
        uri = app.builder.get_relative_uri
        found: list[nodes.Node] = [raw('<div class="chapters">')]
        for number, (name, title) in enumerate(CHAPTERS.items(), start=1):
            notebook = Path(app.srcdir) / "notebooks" / f"{name}.ipynb"
            self.env.note_dependency(str(notebook))
            line = LINES[name]
            found += [
                raw(
                    f'<article style="--set:{colours().get(name, NEUTRAL)}">'
                    f'<p class="chapter-number">{number}</p>'
                    f'<h3><a href="{uri(here, f"notebooks/{name}")}">{html.escape(title)}</a></h3>'
                ),
                *display(formula(notebook)),
                raw(f"<p>{html.escape(line[0].upper() + line[1:])}.</p>"),
                chapter_facts(
                    name=name,
                    title=title,
                    minutes=reading_minutes(notebook),
                    exercises=exercise_counts()[name],
                ),
                raw("</article>"),
            ]
        return [*found, raw(f'</div><p class="chapters-note">{NOTE}</p>')]


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def display(latex: str) -> list[nodes.Node]:
    """As a displayed formula of the page, so that whatever renders those renders this."""
    return [nodes.math_block(latex, latex, nowrap=False, label=None, number=None)] if latex else []


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """What a chapter takes: to read, to run (as the executed notebook says), to solve."""
    for place in list(doctree.findall(chapter_facts)):
        name = place["name"]
        run = NbMetadataCollector.get_exec_data(app.env, f"notebooks/{name}") or {}
        exercises = app.builder.get_relative_uri(docname, f"book/generated/exercises/{name}")
        facts = [
            f"{place['minutes']} min to read",
            run_time(run.get("runtime")),
            f'<a href="{exercises}">{place["exercises"]} exercises</a>',
            f'<a href="{colab(name)}" aria-label="Colab: {html.escape(place["title"])}">Colab</a>',
        ]
        items = "".join(f"<li>{fact}</li>" for fact in facts if fact)
        place.replace_self(raw(f'<ul class="chapter-facts">{items}</ul>'))


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    return [INTRODUCTION]  # its cards tell the run times of other pages


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(chapter_facts)
    app.add_directive("start", Start)
    app.add_directive("chapters", Chapters)
    app.connect("doctree-resolved", fill)
    app.connect("env-updated", write_again)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
