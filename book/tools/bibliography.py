"""The page of references: what each paper is cited for, and in which chapters."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting import FormattedEntry
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.template import field, sentence
from sphinx.application import Sphinx

PAGE = "book/references"


class AuthorYear(BaseLabelStyle):
    """Labels as the chapters cite: Wu & He 2018."""

    def format_labels(self, entries: Iterable[Entry]) -> Iterator[str]:
        for entry in entries:
            people = entry.persons["author"]
            names = [" ".join(person.last_names) for person in people]
            if len(names) > 2 or names[-1] == "others":
                names = [names[0], "others"]
            who = " & ".join(names) if names[-1] != "others" else f"{names[0]} et al."
            yield f"{who} {entry.fields['year']}"


class Style(Unsorted):
    """pybtex's plain style with titles as they are, and what a paper is cited for."""

    default_label_style = "course"
    default_sorting_style = "author_year_title"

    def format_title(self, entry: Entry, which: str, as_sentence: bool = True) -> Any:
        title = field(which)
        return sentence[title] if as_sentence else title

    def format_entry(self, label: str, entry: Entry, bib_data: Any = None) -> FormattedEntry:
        formatted = super().format_entry(label, entry, bib_data)
        formatted.text = Text(formatted.text, f" Cited for: {entry.fields['annotation']}.")
        return formatted


@cache
def citing(root: Path) -> dict[str, list[str]]:
    """For each arXiv number, the chapters that cite it, in the book's order."""
    found: dict[str, list[str]] = {}
    order = re.findall(r"notebooks/(\w+)$", (root / "_toc.yml").read_text("utf8"), re.MULTILINE)
    for script in (root / "notebooks" / f"{name}.py" for name in order):
        for number in set(re.findall(r"arxiv\.org/abs/(\d+\.\d+)", script.read_text("utf8"))):
            found.setdefault(number, []).append(script.stem)
    return found


def tell_where(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Behind each entry of the list: links to the chapters that cite it."""
    if page != PAGE:
        return
    for citation in doctree.findall(nodes.citation):
        paragraph = citation.next_node(nodes.paragraph)
        number = re.search(r"arXiv:(\d+\.\d+)", citation.astext())
        chapters = citing(Path(app.srcdir)).get(number[1], []) if number else []
        for count, chapter in enumerate(c for c in chapters if f"notebooks/{c}" in app.env.titles):
            assert paragraph is not None
            paragraph += nodes.Text(", " if count else " In: ")
            title = app.env.titles[f"notebooks/{chapter}"].astext()
            where = app.builder.get_relative_uri(page, f"notebooks/{chapter}")
            paragraph += nodes.reference("", title, internal=True, refuri=where)


def mend_roles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """docutils gives the entries a role that is deprecated, and that a list may not hold."""
    if page == PAGE:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, bool]:
    register_plugin("pybtex.style.formatting", "course", Style)
    register_plugin("pybtex.style.labels", "course", AuthorYear)
    app.connect("doctree-resolved", tell_where)
    app.connect("html-page-context", mend_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
