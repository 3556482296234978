"""The book's own Sphinx extension: what _config.yml cannot say, because it stands elsewhere."""

import pydoc
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.console import nocolor

import address
import executed
import seed


def configure(app: Sphinx, config: Config) -> None:
    """Take the public address from pyproject.toml, the cache from the package's hash, and write the pages."""
    root = Path(app.srcdir)
    url = address.repository(root)
    # One by one: setting the whole of html_theme_options would drop what Jupyter Book put there.
    config.html_theme_options |= {"repository_url": url, "repository_branch": address.BRANCH}
    config.html_theme_options |= {"use_repository_button": True, "use_issues_button": True}
    config.html_baseurl = address.forms(url)[2] + "/"
    cache = executed.cache_path(root)
    config.nb_execution_cache_path = str(cache)
    write_pages(root / "book" / "generated", package=cache.name)


def write_pages(folder: Path, package: str) -> None:
    """Write the pages that the package generates, if it changed since; remove those that are no more."""
    made_from = folder / "made_from"
    if made_from.exists() and made_from.read_text() == package:
        return
    from normtutor import exercises  # here, because it costs seconds that most builds do not need
    from normtutor.lab import claims, evidence

    pages = {"gpu.md": evidence.page(), "claims.md": claims.page(), "seed.md": seed.page()}
    pages |= {f"exercises/{name}.md": text for name, text in exercises.pages().items()}
    for old in folder.rglob("*.md"):
        if old.relative_to(folder).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text("utf8") != text:  # Sphinx reads again what was written again
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf8")
    made_from.write_text(package)


def escape(app: Sphinx, what: str, name: str, obj: object, options: dict[str, Any], lines: list[str]) -> None:
    """Docstrings are written for readers of the source: the signs in "(N, C, *)" and "|v|" are no markup."""
    special = re.compile(r"(``.*?``)|(?<![\w.])(\*)(?=[)\],\s]|$)|(\|)")
    lines[:] = [special.sub(lambda found: found[1] or "\\" + found[0], line) for line in lines]


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Element | None:
    """Let a docstring name an object by where it is imported from; pages know it by where it is written."""
    target = node["reftarget"]
    if node.get("refdomain") != "py" or not target.startswith("normtutor."):
        return None
    found = pydoc.locate(target)
    if not hasattr(found, "__qualname__"):
        return None
    written = f"{found.__module__}.{found.__qualname__}"
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], written, node, text)


def setup(app: Sphinx) -> dict[str, bool]:
    if not sys.stdout.isatty():
        nocolor()  # Jupyter Book leaves the colours in a log
    for part in ("bibliography", "crossings", "quizzes", "status"):
        app.setup_extension(part)
    app.connect("config-inited", configure, priority=100)  # before the table of contents looks for pages
    app.connect("autodoc-process-docstring", escape)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
