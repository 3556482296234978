"""Sphinx extension: what search engines, link previews, home screens and lost visitors get of the site."""

import hashlib
import html
import textwrap
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

import executed

BACKGROUND = {"light": "#ffffff", "dark": "#121212"}  # the theme's own
WIDTH, HEIGHT = 1200, 630


def tagline(root: Path) -> str:
    """What the course is, in a few words: the package's description up to its colon."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    return str(project["description"]).partition(":")[0]


def configure(app: Sphinx, config: Config) -> None:
    """Have the previews drawn, and name the icon."""
    root = Path(app.srcdir)
    static = root / "book" / "generated" / "static"
    drawn_by = Path(__file__).with_name("cards.py").read_bytes() + (root / "pyproject.toml").read_bytes()
    made_from = f"{executed.cache_path(root).name} {hashlib.sha256(drawn_by).hexdigest()[:16]}"
    note = root / "book" / "generated" / "cards_made_from"
    if not note.exists() or note.read_text() != made_from:
        import cards  # here, because it costs seconds that most builds do not need

        cards.write_all(static / "previews", tagline(root))
        note.write_text(made_from)
    config.html_static_path.append("book/generated/static")
    config.html_favicon = "book/static/favicon.svg"


def description(doctree: nodes.document | None, otherwise: str) -> str:
    """A page's first paragraph of plain words, shortened."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    texts = (node.astext() for node in paragraphs if not node.next_node(nodes.math))
    text = next((text for text in texts if len(text) > 40), otherwise)
    return textwrap.shorten(text, 160, placeholder=" …")


def picture(app: Sphinx, page: str) -> dict[str, str]:
    """A page's preview: its chapter's card where it belongs to one, otherwise the course's."""
    chapter = page.rpartition("/")[2]
    drawn = Path(app.srcdir) / "book" / "generated" / "static" / "previews" / f"{chapter}.png"
    name = chapter if drawn.exists() else "course"
    whose = app.env.titles[page].astext() if name == chapter else app.config.html_title
    return {
        "og:image": f"{app.config.html_baseurl}_static/previews/{name}.png",
        "og:image:width": str(WIDTH),
        "og:image:height": str(HEIGHT),
        "og:image:alt": f"{whose}: title and drawing",
    }


def tags(**content: str) -> str:
    """<meta> elements: those of Open Graph are properties, the others names."""
    return "\n".join(
        f'<meta {"property" if key.startswith("og:") else "name"}="{key}" content="{html.escape(value)}" />'
        for key, value in content.items()
    )


def describe(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give each page what a search result, a shared link and a browser's frame show of it."""
    head = "".join(
        f'\n<meta name="theme-color" content="{colour}" media="(prefers-color-scheme: {scheme})" />'
        for scheme, colour in BACKGROUND.items()
    )
    touch = context["pathto"]("_static/previews/touch.png", resource=True)
    head += f'\n<link rel="apple-touch-icon" href="{touch}" />'
    if not doctree:  # the search page and the index are for those who are here already
        context["metatags"] = (
            context.get("metatags", "") + head + '\n<meta name="robots" content="noindex" />'
        )
        return
    front = page == app.config.root_doc
    title = app.env.titles[page].astext()
    if front:  # a name says nothing to those who never heard it
        context["title"] = title = tagline(Path(app.srcdir))
    content = {
        "description": description(doctree, otherwise=tagline(Path(app.srcdir))),
        "og:type": "website" if front else "article",
        "og:site_name": app.config.html_title,
        "og:title": title,
        "og:url": context["pageurl"],
        "twitter:card": "summary_large_image",
    }
    content["og:description"] = content["description"]
    shared = tags(**content, **picture(app, page))
    context["metatags"] += "\n" + shared + head
    if front:
        write_redirect(app, context["pageurl"], title, shared)


def write_redirect(app: Sphinx, url: str, title: str, shared: str) -> None:
    """The site's bare address, the one that is shared most, leads to the front page.

    Jupyter Book would write one line; programs that show previews do not follow it.
    """
    target = app.builder.get_target_uri(app.config.root_doc)
    if target == "index.html":
        return
    (Path(app.outdir) / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="{app.config.language}">\n<head>\n<meta charset="utf-8" />\n'
        f'<meta http-equiv="Refresh" content="0; url={target}" />\n<title>{html.escape(title)}</title>\n'
        f'<link rel="canonical" href="{url}" />\n{shared}\n</head>\n'
        f'<body><p><a href="{target}">{html.escape(title)}</a></p></body>\n</html>\n',
        "utf8",
    )


def finish(app: Sphinx, failure: Exception | None) -> None:
    """Write the pages that no reader navigates to."""
    if failure or app.builder.format != "html":
        return
    out, base = Path(app.outdir), app.config.html_baseurl
    addresses = {page: base + app.builder.get_target_uri(page) for page in sorted(app.env.all_docs)}
    entries = "".join(f"  <url><loc>{html.escape(url)}</loc></url>\n" for url in addresses.values())
    (out / "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}</urlset>\n',
        "utf8",
    )
    # Crawlers read it at the root of a host: it counts where the site has a domain of its own.
    (out / "robots.txt").write_text(f"User-agent: *\nAllow: /\n\nSitemap: {base}sitemap.xml\n", "utf8")
    chapters = "".join(
        f'<li><a href="{url}">{html.escape(app.env.titles[page].astext())}</a></li>\n'
        for page, url in in_order(app, addresses)
        if page.startswith("notebooks/")
    )
    template = (Path(__file__).with_name("404.html")).read_text("utf8")
    filled = {"FRONT": addresses[app.config.root_doc], "BASE": base, "CHAPTERS": chapters}
    exercises = next(url for page, url in in_order(app, addresses) if "/exercises/" in page)
    filled |= {"EXERCISES": exercises, "GUIDE": addresses["book/guide"]}
    icon = Path(app.srcdir, app.config.html_favicon).read_text("utf8")
    filled["ICON"] = quote(icon)  # written into the page: a browser would ask the host's root for one
    filled |= {scheme.upper(): colour for scheme, colour in BACKGROUND.items()}
    for key, value in filled.items():
        template = template.replace(f"{{{key}}}", value)
    (out / "404.html").write_text(template, "utf8")


def in_order(app: Sphinx, addresses: dict[str, str]) -> list[tuple[str, str]]:
    """The pages as the table of contents has them."""
    contents = app.env.toctree_includes.get(app.config.root_doc, [])
    return [(page, addresses[page]) for page in contents if page in addresses]


def setup(app: Sphinx) -> dict[str, bool]:
    # A page is written again when a setting changes, not when an extension does: so the extension is one.
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    app.add_config_value("sharing_digest", digest, "html")
    app.connect("config-inited", configure, priority=110)  # after course_site, which knows the address
    app.connect("html-page-context", describe)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
