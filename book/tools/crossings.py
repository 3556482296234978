"""Ways across the book: from an exercise to its folds and back, from a claim to the cell that runs it.

Notebooks must read alike in Colab and on GitHub, so they carry no labels. Their code names what it is about,
``check("batch_norm.layer", …)`` and ``claims.run("batch_norm.leak")``, and the labels are made from that.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, cast

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain

ASKED = re.compile(r'\bcheck\(\s*"(\w+\.\w+)"')
RUN = re.compile(r'\bclaims\.run\(\s*"(\w+\.\w+)"')


def section_of(node: nodes.Element) -> nodes.section:
    """The innermost section around ``node``."""
    while not isinstance(node, nodes.section):
        assert node.parent is not None
        node = node.parent
    return node


def name_place(standard: StandardDomain, name: str, page: str, anchor: str, title: str) -> None:
    """Make the place known under ``name``, to references with words of their own and without."""
    standard.labels[name] = (page, anchor, title)
    standard.anonlabels[name] = (page, anchor)


def label(app: Sphinx, doctree: nodes.document) -> None:
    """Name sections ``CHAPTER/HEADING``, exercises ``task-ID``, cells that run a claim ``claim-NAME``."""
    page = app.env.docname
    if not page.startswith("notebooks/"):
        return
    standard = cast(StandardDomain, app.env.get_domain("std"))
    chapter = app.env.titles[page].astext()
    for section in doctree.findall(nodes.section):
        title = cast(nodes.title, section[0]).astext()
        name = f"{page.removeprefix('notebooks/')}/{title.lower()}"
        name_place(standard, name, page, section["ids"][0], f"{chapter}: {title}")
    for block in doctree.findall(nodes.literal_block):
        section = section_of(block)
        title = cast(nodes.title, section[0]).astext()
        for id in ASKED.findall(block.astext()):
            section["exercise"] = id
            name_place(standard, f"task-{id}", page, section["ids"][0], title)
        for name in RUN.findall(block.astext()):
            if f"claim-{name}" not in standard.labels:
                anchor = nodes.make_id(f"claim-{name}")
                block.parent["ids"].append(anchor)
                name_place(standard, f"claim-{name}", page, anchor, title)


def lead_to_folds(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Below each exercise of a chapter: where its hints, its solution and the typical wrong answers stand."""
    standard = cast(StandardDomain, app.env.get_domain("std"))
    for section in list(doctree.findall(nodes.section)):
        id = section.get("exercise")
        target = standard.labels.get(f"exercise-{id}")
        if not target:  # no exercise, or a book without the pages of solutions
            continue
        where = app.builder.get_relative_uri(page, target[0])
        line = nodes.paragraph(classes=["exercise-folds"])
        line += nodes.inline("", "Without a kernel: ")
        for number, (part, words) in enumerate(
            [("hints", "hints"), ("solution", "solution"), ("wrong", "typical wrong answers")]
        ):
            line += nodes.Text(" · " if number else "")
            line += nodes.reference("", words, internal=True, refuri=f"{where}#exercise-{id}-{part}")
        section += line


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", label)
    app.connect("doctree-resolved", lead_to_folds)
    # Pages are read again when this file changes.
    version = int(hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8], 16)
    return {"env_version": version, "parallel_read_safe": True, "parallel_write_safe": True}
