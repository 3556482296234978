"""The page "Which normalization should I use?", from the same data as normtutor.guide.

The build writes the questions and the table of all rules; book/static/guide.js answers, with the logic of
``recommend`` and the reasons that stand in the table. Without JavaScript the table is the answer.
"""

import html
import json
from functools import cache
from typing import Any
from urllib.parse import urlencode

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from index_sets import short

PAGE = "book/guide"
CLAIMS = "book/generated/claims"
# Situations to begin with; a test asks the package about each.
EXAMPLES: dict[str, dict[str, Any]] = {
    "Detection, 2 images per GPU": {
        "architecture": "cnn",
        "task": "detection",
        "batch_size": 2,
        "devices": 8,
    },
    "A language model": {"architecture": "transformer", "task": "language_modelling", "data": "text"},
    "Style transfer": {"architecture": "generator", "task": "style_transfer", "data": "image"},
}
VERDICTS = {"first": "first choice", "works": "works", "weak": "weak", "avoid": "avoid"}


@cache
def data() -> dict[str, Any]:
    from normtutor import guide  # here, because it reads the catalog and so imports torch

    return guide.as_data()


@cache
def colours() -> dict[str, str]:
    from normtutor.lab.figures import TECHNIQUE_COLOURS

    return TECHNIQUE_COLOURS


def word(name: str) -> str:
    """An answer as it is spoken: "CNN", "language modelling"."""
    return name.upper() if len(name) == 3 else name.replace("_", " ")


def condition(name: str, wanted: Any) -> str:
    """One condition of a rule in words."""
    field = word(name)
    if isinstance(wanted, bool):
        return field if wanted else f"not {field}"
    if isinstance(wanted, list):
        return f"{field}: {' or '.join(map(word, wanted))}"
    low, high = wanted.get("min"), wanted.get("max")
    if low is None or high is None:
        return f"{field} ≥ {low}" if high is None else f"{field} ≤ {high}"
    return f"{field} {low}–{high}"


def form() -> str:
    """The questions, and the place for the answer."""
    asked = []
    for field in data()["fields"]:
        name, question = field["name"], html.escape(field["question"])
        named = f'name="{name}" id="guide-{name}"'
        if field["number"]:
            # Empty until guide.js finds fault with the number.
            error = f'<span class="guide-error" id="guide-{name}-error" aria-live="polite"></span>'
            control = (
                f'<input type="number" min="1" step="1" placeholder="not said" {named} '
                f'aria-describedby="guide-{name}-error">{error}'
            )
        else:
            words = {option: word(option) for option in field["options"]} or {"yes": "yes", "no": "no"}
            options = "".join(f'<option value="{value}">{text}</option>' for value, text in words.items())
            control = f'<select {named}><option value="">not said</option>{options}</select>'
        asked.append(f'<div><label for="guide-{name}">{question}</label>{control}</div>')
    examples = "".join(
        f'<a href="#{urlencode(situation)}">{html.escape(name)}</a>' for name, situation in EXAMPLES.items()
    )
    keys = ("fields", "votes", "enough", "techniques")
    exported = {key: data()[key] for key in keys} | {
        "rules": [
            {key: rule[key] for key in ("name", "when", "unless", "votes", "warning")}
            for rule in data()["rules"]
        ],
        "colours": {name: colours()[name] for name in data()["techniques"]},
    }
    text = json.dumps(exported, ensure_ascii=False).replace("<", r"\u003c")  # no tag ends the script
    return f"""
<noscript><p><strong>Without JavaScript the table below is the answer:</strong> take the rules whose
conditions your network meets, and add up their votes.</p></noscript>
<div class="guide">
<p class="guide-examples"><span>Try:</span>{examples}</p>
<form autocomplete="off">{"".join(asked)}
<p><button type="reset">Start again</button></p></form>
<p class="guide-summary" aria-live="polite">Answer at least one question.</p>
<div class="guide-advice" role="region" aria-label="Advice"></div>
<script type="application/json">{text}</script>
</div>
"""


def rules(app: Sphinx, docname: str) -> str:
    """All rules as a table; guide.js takes reasons and sources from it."""
    rows = []
    for rule in data()["rules"]:
        when = "".join(f"<li>{html.escape(condition(*item))}</li>" for item in rule["when"].items())
        unless = "".join(
            f"<li>unless {html.escape(condition(*item))}</li>" for item in rule["unless"].items()
        )
        votes = "".join(
            f"<li>{short(data()['techniques'][name])}: {VERDICTS[vote]}</li>"
            for name, vote in rule["votes"].items()
        )
        warning = f'<p class="guide-warning">Mind: {prose(rule["warning"])}</p>' if rule["warning"] else ""
        sources = "; ".join(source(app, docname, one) for one in rule["evidence"])
        name = rule["name"].replace("_", "-")
        rows.append(
            f'<tr id="rule-{name}"><td><ul>{when}{unless}</ul></td>'
            f"<td><ul>{votes or '<li>no vote</li>'}</ul></td>"
            f'<td><span class="guide-reason">{prose(rule["reason"])}</span> '
            f'<span class="guide-sources">[{sources}]</span>{warning}</td></tr>'
        )
    head = (
        '<thead><tr><th scope="col">If</th><th scope="col">then</th><th scope="col">because</th></tr></thead>'
    )
    return f'<table class="table guide-rules">{head}<tbody>{"".join(rows)}</tbody></table>'


def source(app: Sphinx, docname: str, evidence: dict[str, str]) -> str:
    """Where a reason comes from, as a link: to the paper, to our measurement, or to our derivation."""
    from normtutor.catalog import CHAPTERS

    kind, text, where = evidence["kind"], evidence["text"], evidence["where"]
    if kind == "untested":
        return f"untested here: {html.escape(text)}"
    if kind == "paper":
        return link(evidence["url"], f"{text}, {where}" if where else text)
    chapter = text.partition(".")[0]
    title = CHAPTERS[chapter]
    page = CLAIMS if kind == "claim" else f"notebooks/{chapter}"
    address = app.builder.get_relative_uri(docname, page) + anchor(
        app.env, page, title if kind == "claim" else where
    )
    if kind == "claim":
        return link(address, f"measured here: {text}")
    return link(address, title if where == title else f"{title}, “{where}”")


def prose(text: str) -> str:
    """As HTML, with each number kept together with its per cent."""
    return html.escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def link(address: str, text: str) -> str:
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'


def anchor(env: BuildEnvironment, page: str, heading: str) -> str:
    """``#id`` of a page's heading; empty for its title."""
    for entry in env.tocs[page].findall(nodes.reference):
        if entry.astext() == heading:
            return str(entry["anchorname"])
    raise LookupError(f"{page} has no heading {heading!r}, which a rule of the guide names")


class guide_place(nodes.General, nodes.Element):
    """Where the table of rules will stand: its links need the headings of all pages."""


class GuideForm(SphinxDirective):
    """``{guide-form}``: the questions and the answer."""

    def run(self) -> list[nodes.Node]:
        return [guide_place(part="form")]


class GuideRules(SphinxDirective):
    """``{guide-rules}``: all rules."""

    def run(self) -> list[nodes.Node]:
        return [guide_place(part="rules")]


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for place in list(doctree.findall(guide_place)):
        text = form() if place["part"] == "form" else rules(app, docname)
        place.replace_self(nodes.raw("", text, format="html"))


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    return [PAGE]  # it comes from the package, not from the page's source


def load(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if page == PAGE:
        app.add_js_file("guide.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(guide_place)
    app.add_directive("guide-form", GuideForm)
    app.add_directive("guide-rules", GuideRules)
    app.connect("doctree-resolved", fill)
    app.connect("env-updated", write_again)
    app.connect("html-page-context", load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
