"""What a page loads: one style sheet with only the rules that some page uses, deferred scripts, sized images.

The theme and its extensions link a dozen style sheets and scripts on every page, most of which no page
needs. Nothing of theirs is changed: what they ship is taken from ``_static`` when the pages are written.
"""

import base64
import hashlib
import io
import logging
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config

BUNDLE = "site.css"
ICONS = "vendor/fontawesome/*"
# The theme's own come first, as in its webpack-macros.html (theme.css only imports basic.css).
FIRST = ["basic.css", "styles/bootstrap.css", "styles/pydata-sphinx-theme.css", f"{ICONS}/css/all.min.css"]
# Loaded by extensions that Jupyter Book switches on, and used by no page: kernels in the page (Thebe),
# which would run code on somebody's server, and the page's name for a menu of versions.
UNUSED = re.compile(r"thebe|THEBE|DOCUMENTATION_OPTIONS\.pagename")
# The theme's sidebar is no landmark, so its logo and search field would stand outside of all.
SIDEBAR = r'(<div class="bd-sidebar-primary bd-sidebar[^"]*")>'
# Sphinx, docutils and the theme each write this tag.
VIEWPORT = r'<meta name="viewport"[^>]*>'
# Script -> what a page must hold to need it.
NEEDED_BY = {
    "togglebutton": r'class="[^"]*\b(?:toggle|dropdown)\b',
    "toggleHint|toggleOpen": r'class="[^"]*\b(?:toggle|dropdown)\b',
    "design-tabs": r'class="[^"]*\bsd-tab',
    "clipboard|copybutton": r'<div class="highlight',
}


def sources(app: Sphinx, config: Config) -> None:
    """Let Sphinx write the pages again when what makes them changed: it looks at the settings alone."""
    digest = hashlib.sha256()
    for folder in ("book/tools", "book/static", "book/templates"):
        for file in sorted((Path(app.srcdir) / folder).rglob("*.*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.read_bytes())
    config.site_sources = digest.hexdigest()


def lighten(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Link the one style sheet, drop the scripts that the page does not need, defer the others."""
    builder: Any = app.builder
    body = context.get("body", "")
    context["css_files"] = [f"_static/{BUNDLE}"]
    context["has_formulas"] = "<math" in body
    kept: dict[str, Any] = {}
    for script in context["script_files"]:
        name = str(script.filename or "") or str(script.attributes.get("body", ""))
        needs = [mark for names, mark in NEEDED_BY.items() if re.search(names, name)]
        if UNUSED.search(name) or (needs and not re.search(needs[0], body)):
            continue
        # The search page runs its own scripts at once, and they call these.
        if script.filename and page != "search":
            script = type(script)(
                script.filename,
                priority=script.priority,
                **{k: v for k, v in script.attributes.items() if k != "async"} | {"defer": "defer"},
            )
        kept.setdefault(name, script)
    context["script_files"] = list(kept.values())
    if body:
        names = {file: uri for uri, file in builder.images.items()}
        first = iter([True])

        def sized(found: re.Match[str]) -> str:
            return size_image(found[0], Path(app.srcdir), names, lazy=not next(first, False))

        context["body"] = re.sub(r"<img\b[^>]*>", sized, body)


def size_image(tag: str, root: Path, names: dict[str, str], lazy: bool) -> str:
    """Tell the browser an image's size before it has come, and to fetch it when it is scrolled to."""
    source = re.search(r'src="[^"]*_images/([^"]+)"', tag)
    if source is None or source[1] not in names or re.search(r"\bwidth=", tag):
        return tag
    size = natural_size(root / names[source[1]])
    added = f' width="{size[0]}" height="{size[1]}" decoding="async"' + ' loading="lazy"' * lazy
    return tag.replace("<img", "<img" + added, 1)


def natural_size(path: Path) -> tuple[int, int]:
    """The size in CSS pixels at which a browser shows the image."""
    if path.suffix != ".svg":
        with Image.open(path) as image:
            return image.size
    attributes = ElementTree.parse(path).getroot().attrib
    if "width" not in attributes:
        _, _, wide, high = map(float, attributes["viewBox"].split())
        return round(wide), round(high)
    sides = []
    for side in (attributes["width"], attributes["height"]):
        number, unit = re.fullmatch(r"([\d.]+)(\w*)", side).groups()  # type: ignore[union-attr]
        sides.append(round(float(number) * {"pt": 4 / 3, "": 1, "px": 1}[unit]))
    return sides[0], sides[1]


def rules(css: str) -> Iterator[tuple[str, str | None]]:
    """The rules of a style sheet without comments, as head and body; a statement such as @import has none."""
    start = place = 0
    while place < len(css):
        if css[place] == ";":
            yield css[start:place].strip(), None
            start = place + 1
        elif css[place] == "{":
            head, depth, inside = css[start:place].strip(), 1, place + 1
            while depth:
                place += 1
                depth += {"{": 1, "}": -1}.get(css[place], 0)
            yield head, css[inside:place].strip()
            start = place + 1
        place += 1


def can_match(selector: str, words: set[str]) -> bool:
    """Whether some page can hold what the selector asks for: every class and id that it names is in use."""
    plain = re.sub(r":(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\]", "", selector)
    return all(name in words for name in re.findall(r"[.#](-?[A-Za-z_][\w-]*)", plain))


def purged(css: str, words: set[str]) -> str:
    """The style sheet without the rules that no page can use, and without the space between them."""
    kept = []
    for head, body in rules(css):
        if body is None or head.startswith("@font-face"):
            continue
        if head.startswith(("@media", "@supports", "@layer")):
            inside = purged(body, words)
            kept += [f"{head}{{{inside}}}"] if inside else []
        elif head.startswith("@"):
            kept.append(f"{head}{{{body}}}")
        else:
            selectors = re.split(r",(?![^(\[]*[)\]])", head)
            useful = [one.strip() for one in selectors if can_match(one, words)]
            kept += [f"{','.join(useful)}{{{body}}}"] if useful else []
    return re.sub(r"\s+", " ", "\n".join(kept))


def used_words(html: Path) -> set[str]:
    """Every class and id on a page, and every word of a script, since scripts add classes."""
    words: set[str] = set()
    for page in html.rglob("*.html"):
        for value in re.findall(r'\b(?:class|id)="([^"]*)"', page.read_text("utf8")):
            words.update(value.split())
    for script in (html / "_static").rglob("*.js"):
        if "vendor" in script.parts:
            continue
        words.update(re.findall(r"[\w-]+", script.read_text("utf8")))
    return words


def icon_fonts(folder: Path, css: str) -> str:
    """The icons that the style sheet names, cut out of FontAwesome's fonts: a few kilobytes in the sheet."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    points = {int(code, 16) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', css)}
    faces = []
    for family, weight, file in (
        ("Font Awesome 6 Free", 900, "fa-solid-900"),
        ("Font Awesome 6 Free", 400, "fa-regular-400"),
        ("Font Awesome 6 Brands", 400, "fa-brands-400"),
    ):
        font = TTFont(next(folder.glob(f"{ICONS}/webfonts/{file}.ttf")), recalcTimestamp=False)
        if file == "fa-regular-400" and "fa-regular" not in css:
            continue
        small = subset.Subsetter(subset.Options(hinting=False, layout_features=[], name_IDs=[]))
        small.populate(unicodes=points)
        small.subset(font)
        font.flavor, data = "woff", io.BytesIO()
        font.save(data)
        address = "data:font/woff;base64," + base64.b64encode(data.getvalue()).decode()
        faces.append(
            f'@font-face{{font-family:"{family}";font-weight:{weight};src:url({address}) format("woff")}}'
        )
    return "".join(faces)


def once(pattern: str, text: str) -> str:
    """The text with the first match only."""
    found = re.search(pattern, text)
    return text[: found.end()] + re.sub(pattern, "", text[found.end() :]) if found else text


def bundle(app: Sphinx, error: Exception | None) -> None:
    """Write the one style sheet, and its digest into the pages, so that no browser keeps an old one."""
    if error or app.builder.format != "html":
        return
    builder: Any = app.builder
    html = Path(app.outdir)
    static = html / "_static"
    sheets = [next(static.glob(name)) for name in FIRST]
    for sheet in builder._css_files:
        path = html / str(sheet.filename)
        if path.name not in (BUNDLE, "theme.css") and path not in sheets and path.is_file():
            sheets.append(path)
    # All of ours, which nobody needs to ask for: a few kilobytes, less than what a request costs.
    own = [static / sheet.name for sheet in sorted((Path(app.srcdir) / "book" / "static").glob("*.css"))]
    sheets += [sheet for sheet in own if sheet not in sheets]
    for template in static.rglob("*.html"):  # the theme's, which are no pages
        template.unlink()
    words, parts, faces = used_words(html), [], []
    for sheet in sheets:
        css = re.sub(r"/\*.*?\*/", "", sheet.read_text("utf8"), flags=re.DOTALL)
        folder = sheet.parent.relative_to(static).as_posix()

        def moved(found: re.Match[str], folder: str = folder) -> str:
            return f"url({found[1]}{posixpath.normpath(posixpath.join(folder, found[2]))}{found[1]})"

        css = re.sub(r"""url\((["']?)(?!data:|#|https?:)([^"')]+)\1\)""", moved, css)
        parts.append(purged(css, words))
        if "fontawesome" not in str(sheet):
            faces += [f"{head}{{{body}}}" for head, body in rules(css) if head.startswith("@font-face")]
    css = "\n".join(parts)
    css = icon_fonts(static, css) + "".join(faces) + css
    (static / BUNDLE).write_text(css, "utf8")
    digest = hashlib.sha256(css.encode()).hexdigest()[:8]
    for page in html.rglob("*.html"):
        text = page.read_text("utf8")
        fresh = re.sub(rf"(_static/{BUNDLE})(?:\?v=\w*)?", rf"\1?v={digest}", text)
        fresh = once(VIEWPORT, fresh)
        fresh = re.sub(SIDEBAR, r'\1 role="region" aria-label="Sidebar">', fresh)
        if fresh != text:
            page.write_text(fresh, "utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("site_sources", "", "html")
    app.connect("config-inited", sources)
    app.connect("html-page-context", lighten, priority=900)  # after everybody has added what they need
    app.connect("build-finished", bundle, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
