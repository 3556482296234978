"""A question at the end of a chapter's sections, from ``book/quizzes/CHAPTER.yml``: works without a kernel.

On the page it is a group of radio buttons; a small script shows what speaks for or against the one chosen.
Without the script the reasons stand in a fold. The text is Markdown, read by the book's own parser, so that
formulas look like all the others.
"""

import hashlib
from pathlib import Path
from typing import Any, cast

import yaml
from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

Choice = tuple[str, str, bool]


class element(nodes.General, nodes.Element):
    """An HTML element that docutils has no node for: ``tag``, and ``html`` with its attributes."""


def visit_element(self: HTML5Translator, node: element) -> None:
    self.body.append(self.starttag(node, node["tag"], "", **node["html"]))


def depart_element(self: HTML5Translator, node: element) -> None:
    if node["tag"] != "input":
        self.body.append(f"</{node['tag']}>\n")


def html(tag: str, *children: nodes.Node, classes: str = "", ids: str = "", **attributes: str) -> element:
    return element("", *children, tag=tag, html=attributes, classes=classes.split(), ids=ids.split())


def load(root: Path, chapter: str) -> dict[str, tuple[str, list[Choice]]]:
    """The chapter's questions by section heading; each choice with its reason, and whether it is right."""
    path = root / "book" / "quizzes" / f"{chapter}.yml"
    if not path.exists():
        return {}
    found = {}
    for heading, quiz in yaml.safe_load(path.read_text("utf8")).items():
        choices = [(c.get("right") or c["wrong"], c["because"], "right" in c) for c in quiz["choices"]]
        # So that an author's habit does not tell where the right one stands.
        choices.sort(key=lambda choice: hashlib.sha256(choice[0].encode()).digest())
        found[heading.replace("`", "")] = (quiz["question"], choices)  # as the page reads it
    return found


def inline(text: str, doctree: nodes.document) -> list[nodes.Node]:
    """One paragraph of Markdown as nodes."""
    part = new_document(str(doctree["source"]), doctree.settings)
    MystParser().parse(text, part)
    [paragraph] = part.children
    return cast(nodes.paragraph, paragraph).children


def quiz(name: str, question: str, choices: list[Choice], doctree: nodes.document) -> element:
    """The question as a group of choices, a place for the answer, and the reasons of all in a fold."""
    told = html("span", nodes.Text("Check yourself"), classes="quiz-label")
    # A page cannot answer without its script, reading.js, which takes "disabled" away.
    box = html("fieldset", classes="quiz")
    box += html("legend", told, nodes.Text(" "), *inline(question, doctree))
    reasons = html("ul")
    for number, (text, because, right) in enumerate(choices):
        id = f"{name}-{number}"
        button = html("input", ids=id, type="radio", name=name, value=str(number), disabled="disabled")
        words = html("label", *inline(text, doctree), **{"for": id})
        box += html("div", button, words, classes="quiz-choice")
        verdict = html("strong", nodes.Text("Right. " if right else "No. "))
        reason = html("span", verdict, *inline(because, doctree), classes="quiz-reason")
        said = html("span", *inline(text, doctree), nodes.Text(" "), classes="quiz-said")
        reasons += html("li", said, reason, classes="right" if right else "wrong")
    box += html("div", classes="quiz-answer", role="status")
    box += html("details", html("summary", nodes.Text("Answer")), reasons, classes="quiz-reasons")
    return box


def insert(app: Sphinx, doctree: nodes.document) -> None:
    """Put each question at the end of its section."""
    folder, _, chapter = app.env.docname.rpartition("/")
    if folder != "notebooks":
        return
    app.env.note_dependency(f"/book/quizzes/{chapter}.yml")
    quizzes = load(Path(app.srcdir), chapter)
    for section in list(doctree.findall(nodes.section)):
        heading = cast(nodes.title, section[0]).astext()
        if heading in quizzes:
            section += quiz(f"quiz-{section['ids'][0]}", *quizzes.pop(heading), doctree)
    for heading in quizzes:
        raise ValueError(f"book/quizzes/{chapter}.yml: no section is called {heading!r}")


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load the script where there is something for it to do."""
    if doctree and (page.startswith("notebooks/") or "/exercises/" in page):
        app.add_js_file("reading.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    nothing = (lambda self, node: None, lambda self, node: None)
    app.add_node(element, html=(visit_element, depart_element), latex=nothing, text=nothing)
    # Early: later handlers, of whoever looks at the doctree's formulas, see these too.
    app.connect("doctree-read", insert, priority=100)
    app.connect("html-page-context", add_script)
    # Pages are read again when this file changes.
    version = int(hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8], 16)
    return {"env_version": version, "parallel_read_safe": True, "parallel_write_safe": True}
