"""The page of references: what each paper is cited for, and in which chapters."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from pybtex.database import Entry, parse_file
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting import FormattedEntry
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.template import field, sentence
from sphinx.application import Sphinx

PAGE, GUIDE = "book/references", "book/guide"


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


def cites(text: str, entry: Entry, label: str) -> bool:
    """Whether the text has the paper's arXiv number, its label, or, where no number is, author and year."""
    if "eprint" in entry.fields:
        return entry.fields["eprint"] in text or label in text
    author = re.escape(" ".join(entry.persons["author"][0].last_names))
    return bool(re.search(rf"\b{author}\b.{{,200}}?\b{entry.fields['year']}\b", text, re.DOTALL))


@cache
def citing(root: Path) -> dict[str, list[str]]:
    """For each label, the pages that cite the paper: chapters in the book's order, then the guide."""
    order = re.findall(r"notebooks/\w+$", (root / "_toc.yml").read_text("utf8"), re.MULTILINE)
    texts = {page: (root / f"{page}.py").read_text("utf8") for page in order}
    texts[GUIDE] = (root / "normtutor" / "guide.py").read_text("utf8")
    entries = parse_file(str(root / "book" / "references.bib")).entries.values()
    return {
        label: [page for page, text in texts.items() if cites(text, entry, label)]
        for entry, label in zip(entries, AuthorYear().format_labels(entries), strict=True)
    }


def tell_where(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Behind each entry of the list: links to the chapters that cite it, and to the guide."""
    if page != PAGE:
        return
    for citation in doctree.findall(nodes.citation):
        paragraph = citation.next_node(nodes.paragraph)
        pages = citing(Path(app.srcdir))[citation[0].astext()]
        for count, cited in enumerate(one for one in pages if one in app.env.titles):
            assert paragraph is not None
            paragraph += nodes.Text(", " if count else " In: ")
            title = "the guide" if cited == GUIDE else app.env.titles[cited].astext()
            where = app.builder.get_relative_uri(page, cited)
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
