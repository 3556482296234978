"""The status page: when each notebook last ran and for how long, and the versions that built the book."""

import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PAGE = "book/status"
# What a reader asks for first; the fold has the rest.
FIRST = (
    *("torch", "numpy", "matplotlib", "scikit-learn", "scikit-image"),
    *("jupyter-book", "Sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme"),
)

Cell = str | nodes.Node


def commit(root: Path) -> str:
    """The commit that is checked out, with a word if the tree differs from it; "" outside of git."""
    try:
        said = ["git", "-C", str(root), "describe", "--always", "--abbrev=10", "--dirty=, with changes"]
        return subprocess.run(said, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def pinned(root: Path) -> list[str]:
    """The packages that constraints.txt names."""
    text = (root / "constraints.txt").read_text("utf8")
    return re.findall(r"^([\w.-]+)==", text, re.MULTILINE)


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> nodes.table:
    def entry(cell: Cell) -> nodes.entry:
        return nodes.entry("", nodes.paragraph("", "", nodes.Text(cell) if isinstance(cell, str) else cell))

    def row(cells: Sequence[Cell]) -> nodes.row:
        return nodes.row("", *map(entry, cells))

    columns = [nodes.colspec(colwidth=1) for _ in head]
    parts = [nodes.thead("", row(head)), nodes.tbody("", *map(row, rows))]
    return nodes.table("", nodes.tgroup("", *columns, *parts, cols=len(head)))


def runs(app: Sphinx) -> list[tuple[str, str, float | None, str]]:
    """Page, title, seconds and date of each notebook's last run."""
    found = []
    for page, title in app.env.titles.items():
        data = page.startswith("notebooks/") and NbMetadataCollector.get_exec_data(app.env, page)
        if data:
            day = datetime.fromtimestamp(data["mtime"], UTC).date().isoformat()
            found.append((page, title.astext(), data["runtime"], day))
    order = app.env.toctree_includes.get(str(app.config.root_doc), [])
    return sorted(found, key=lambda run: order.index(run[0]) if run[0] in order else len(order))


def tell(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Fill the page in, once all notebooks have been read."""
    if page != PAGE:
        return
    root, done = Path(app.srcdir), runs(app)
    sections = {section["ids"][0]: section for section in doctree.findall(nodes.section)}

    today = datetime.now(UTC).date().isoformat()
    verified = min((day for _, _, _, day in done), default="never")
    told = f": every notebook has run since then, and the site was built {today}"
    told += f" from commit {commit(root)}." if commit(root) else "."
    paragraph = nodes.paragraph("", "", nodes.strong("", f"Last verified {verified}"), nodes.Text(told))
    sections["status"].insert(1, paragraph)

    sections["the-notebooks"] += table(
        ("Chapter", "Seconds", "Ran on"),
        [
            [
                nodes.reference("", title, internal=True, refuri=app.builder.get_relative_uri(PAGE, name)),
                "not timed" if seconds is None else f"{seconds:.0f}",
                day,
            ]
            for name, title, seconds, day in done
        ],
    )
    first = [("Python", platform.python_version()), *((name, installed(name)) for name in FIRST)]
    sections["the-versions"] += table(("Package", "Version"), [list(row) for row in first if row[1]])
    rest = [(name, installed(name)) for name in pinned(root)]
    fold = nodes.container()
    fold += nodes.raw("", f"<details><summary>All {len(rest)} pinned packages</summary>", format="html")
    fold += nodes.paragraph("", ", ".join(f"{name} {number or '(not installed)'}" for name, number in rest))
    fold += nodes.raw("", "</details>", format="html")
    sections["the-versions"] += fold


def always(app: Sphinx, env: BuildEnvironment, *_: Any) -> list[str]:
    """The page changes with every build."""
    return [PAGE] if PAGE in env.found_docs else []


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-get-outdated", always)
    app.connect("doctree-resolved", tell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
