"""Sphinx extension: a link at the top of each chapter that opens its notebook on Colab."""

from docutils import nodes
from sphinx.application import Sphinx

import address

# A picture from this file, because a badge from elsewhere would tell that host who reads what.
PLAY = (
    '<svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">'
    '<path fill="currentColor" '
    'd="M3 1.7v12.6a.7.7 0 0 0 1 .6l10.5-6.3a.7.7 0 0 0 0-1.2L4 1.1a.7.7 0 0 0-1 .6z"/></svg>'
)


def add_link(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the link under the chapter's title; only into the page, so that the notebook stays portable."""
    title = doctree.next_node(nodes.title)
    if not page.startswith("notebooks/") or title is None or app.builder.format != "html":
        return
    url = address.on_colab(address.repository(), f"{page}.ipynb")
    link = f'<p class="open-in-colab"><a href="{url}">{PLAY}<span>Open in Colab</span></a></p>'
    title.parent.insert(title.parent.index(title) + 1, nodes.raw("", link, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("open_in_colab_link", PLAY, "html")  # pages are written again when it changes
    app.connect("doctree-resolved", add_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
