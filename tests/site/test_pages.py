"""Every page as a reader meets it: at phone and desktop width, light and dark."""

import io
import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from PIL import Image
from serving import FRONT, HTML, PAGES, THEMES, WIDTHS, Visit

pytestmark = pytest.mark.site

CHAPTERS = [path for path in PAGES if path.startswith("notebooks/")]
FOLDED = [path for path in PAGES if "<details" in (HTML / path).read_text("utf8")]
FIGURES = [path for path in PAGES if re.search(r"<img[^>]*_images/", (HTML / path).read_text("utf8"))]

# What no reader should meet, as a list of sentences.
FAULTS = """() => {
  const faults = [];
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 0) faults.push(`the page scrolls sideways by ${wide} px`);
  for (const math of document.querySelectorAll("article math")) {
    const box = math.getBoundingClientRect();
    const hidden = !math.checkVisibility() || math.closest("details:not([open])");
    if (!hidden && Math.min(box.width, box.height) < 3) faults.push("formula of no size: " + math.outerHTML);
    if (math.querySelector("merror") || math.textContent.includes("\\\\"))
      faults.push("formula in error: " + math.textContent);
  }
  for (const math of document.querySelectorAll("article .math"))
    if (!math.querySelector("math")) faults.push("formula not rendered: " + math.textContent);
  const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (text.parentElement.closest("pre, code, script, style")) continue;
    if (/\\$[^$]*\\\\[a-zA-Z]+[^$]*\\$|\\\\\\(|\\\\\\[/.test(text.data))
      faults.push("formula left as text: " + text.data.trim());
  }
  for (const image of document.querySelectorAll("article img")) {
    if (!image.alt || /\\.(png|svg|webp)$/.test(image.alt)) faults.push("no alternative text: " + image.src);
    if (!image.getAttribute("width") && image.src.includes("_images"))
      faults.push("no size, so the page jumps: " + image.src);
  }
  return faults;
}"""

# A section is laid out when the reader comes near it: as if the reader had been everywhere.
ALL_LAID_OUT = ".bd-article section { content-visibility: visible !important }"

# Thousands of highlighted words take axe-core most of a minute: one of each kind is enough.
ONE_OF_EACH_KIND = """() => {
  const seen = new Set();
  for (const word of document.querySelectorAll(".highlight pre span, dl.py dt span, math *")) {
    const kind = word.closest("div[class*=highlight-], dt, math")?.className + word.tagName + word.className;
    if (seen.has(kind)) word.replaceWith(); else seen.add(kind);
  }
}"""


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", [*PAGES, "search.html", "genindex.html"])
def test_it_has_no_fault(visit: Visit, path: str, width: str, theme: str) -> None:
    page = visit(path, WIDTHS[width], theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.add_style_tag(content=ALL_LAID_OUT)
    faults = page.evaluate(FAULTS) if path in PAGES else []
    page.evaluate(ONE_OF_EACH_KIND)
    assert page.problems + faults + violations(page) == []


def violations(page: Any) -> list[str]:
    return [
        f"{found['id']}: {found['help']}: {node['html'][:200]}"
        for found in Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        for node in found["nodes"]
    ]


def test_every_sign_of_every_formula_is_in_the_font(visit: Visit) -> None:
    r"""A sign that math.woff2 lacks comes from another font, or not at all: a root without its √."""
    signs = {
        sign
        for path in PAGES
        for math in BeautifulSoup((HTML / path).read_text("utf8"), "html.parser").find_all("math")
        for sign in math.get_text() + ("√" if math.find("msqrt") else "")
    }
    assert {"μ", "√"} <= signs
    page = visit(FRONT)
    page.evaluate(
        """signs => {
          const line = document.createElement("p");
          line.innerHTML = signs.map(sign => `<math><mi>${sign}</mi></math>`).join(" ");
          document.querySelector("article").prepend(line);
        }""",
        [sign.replace("&", "&amp;").replace("<", "&lt;") for sign in sorted(signs) if sign.strip()],
    )
    page.wait_for_function("document.fonts.status === 'loaded'")
    devtools = page.context.new_cdp_session(page)
    devtools.send("DOM.enable")
    devtools.send("CSS.enable")
    root = devtools.send("DOM.getDocument", {"depth": 1})["root"]["nodeId"]
    select = {"nodeId": root, "selector": "article > p:first-child mi"}
    nodes = devtools.send("DOM.querySelectorAll", select)["nodeIds"]
    assert len(nodes) > 50
    for node in nodes:
        used = devtools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        assert {font["familyName"] for font in used} == {"Course Math"}, devtools.send(
            "DOM.getOuterHTML", {"nodeId": node}
        )


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("path", FIGURES)
def test_figures_are_legible(visit: Visit, path: str, theme: str) -> None:
    """On what the reader sees, the strongest ink differs from the paper by 7:1 at least."""
    page = visit(path, WIDTHS["desktop"], theme)
    page.add_style_tag(content=ALL_LAID_OUT)
    page.evaluate(
        """async () => {
          const images = [...document.querySelectorAll("article img")];
          images.forEach(image => image.loading = "eager");
          await Promise.all(images.map(image => image.decode()));
        }"""
    )
    faint = []
    for image in page.locator("article img:visible").all():
        shown = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
        colours = sorted(shown.getcolors(shown.width * shown.height), reverse=True)
        paper = luminance(colours[0][1])
        # A stroke that covers a thousandth of the figure counts, a single odd pixel does not.
        inks = [luminance(shade) for number, shade in colours if number > shown.width * shown.height / 20_000]
        best = max((max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) for ink in inks)
        if best < 7:
            faint.append(f"{image.get_attribute('alt')}: {best:.1f}")
    assert faint == []


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance as the Web Content Accessibility Guidelines define it."""
    parts = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("path", [FRONT, *CHAPTERS])
def test_the_first_load_is_light(visit: Visit, path: str) -> None:
    page = visit("search.html", WIDTHS["phone"])  # something else first, so that the listener is there
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[float] = []
    devtools.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(page.url.replace("search.html", path), wait_until="networkidle")
    blocking = page.evaluate(
        """performance.getEntriesByType("resource")
             .filter(one => one.renderBlockingStatus === "blocking").map(one => one.name)"""
    )
    assert sum(sizes) < 400_000, "bytes, compressed"
    assert len(sizes) <= 22, "requests"
    assert len(blocking) <= 2, blocking


def test_the_style_sheet_keeps_what_scripts_switch_on(visit: Visit) -> None:
    """The purge must not take what is on a page only while something is open."""
    page = visit(CHAPTERS[0], WIDTHS["phone"])
    page.locator("button.primary-toggle").click()
    page.wait_for_timeout(400)
    assert page.locator(".bd-sidebar-primary").bounding_box()["x"] >= 0
    assert page.locator(".bd-sidebar-primary a.nav-link, .bd-sidebar-primary a.reference").first.is_visible()
    page.keyboard.press("Escape")
    page = visit(CHAPTERS[0])
    page.keyboard.press("Control+k")
    assert page.locator(".search-button__wrapper input").is_visible()
    page.keyboard.press("Escape")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(3):  # it goes round: auto, light, dark
        if page.evaluate("document.documentElement.dataset.theme") != "dark":
            page.locator(".theme-switch-button:visible").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("path", CHAPTERS)
def test_what_scrolls_is_reached_by_keyboard(visit: Visit, path: str) -> None:
    page = visit(path, WIDTHS["phone"])
    page.add_style_tag(content=ALL_LAID_OUT)
    page.wait_for_timeout(300)
    boxes = page.evaluate(
        """[...document.querySelectorAll("article pre, article div.math, .pst-scrollable-table-container")]
             .filter(box => box.checkVisibility())
             .map(box => [box.scrollWidth > box.clientWidth + 1, box.tabIndex === 0, box.className])"""
    )
    assert any(scrolls for scrolls, *_ in boxes)
    assert [box for box in boxes if box[0] != box[1]] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_link_to_a_section_lands_there(visit: Visit, width: str) -> None:
    """Also in the last third of a chapter, of which nothing was laid out yet."""
    sections = re.findall(r'<section id="([^"]+)"', (HTML / CHAPTERS[0]).read_text("utf8"))
    target = sections[len(sections) * 2 // 3]
    page = visit(f"{CHAPTERS[0]}#{target}", WIDTHS[width])
    page.wait_for_timeout(300)
    assert 0 <= page.locator(f"#{target} > h2, #{target} > h3").first.bounding_box()["y"] < 300


@pytest.mark.parametrize("path", FOLDED)
def test_folds_open(visit: Visit, path: str) -> None:
    page = visit(path, WIDTHS["phone"])
    folds = page.locator("article details:visible")  # a question's reasons come without a script only
    first = folds.first.locator("> summary")
    if not folds.first.evaluate("fold => fold.open"):
        first.focus()
        page.keyboard.press("Enter")
        assert folds.first.evaluate("fold => fold.open")
    for fold in folds.all():
        if not fold.evaluate("fold => fold.open"):
            closed = fold.bounding_box()["height"]
            fold.locator("> summary").click()
            assert fold.bounding_box()["height"] > closed
    assert page.problems + page.evaluate(FAULTS) == []


@pytest.mark.parametrize("path", CHAPTERS)
def test_search_finds_the_chapter(visit: Visit, path: str) -> None:
    title = BeautifulSoup((HTML / path).read_text("utf8"), "html.parser").select_one("h1")
    assert title
    page = visit(FRONT)
    page.keyboard.press("Control+k")
    page.keyboard.type(re.sub(r"[^\w ]|#", "", title.get_text()))
    page.keyboard.press("Enter")
    page.locator(f'#search-results a[href*="{path}"]').first.wait_for(timeout=10_000)


def test_copy_buttons_copy(visit: Visit) -> None:
    page = visit(CHAPTERS[0], permissions=["clipboard-read", "clipboard-write"])
    code = page.locator("article div.highlight").first
    code.hover()
    code.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == code.locator("pre").inner_text().strip()
    assert page.problems == []


def test_it_prints(visit: Visit) -> None:
    """Paper shows the text alone: no bars, no buttons, folds open, and nothing that is cut off."""
    page = visit(FOLDED[0])
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})
    for chrome in (".bd-header-article", ".bd-sidebar-primary", ".bd-sidebar-secondary", ".prev-next-footer"):
        assert not page.locator(chrome).first.is_visible(), chrome
    assert not page.locator("button.copybtn:visible").count()
    assert page.locator("h1:visible").count() == 1
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not page.locator("article details:not([open])").count()
    cut = page.evaluate(
        """[...document.querySelectorAll("article pre, article .math")]
             .filter(box => box.checkVisibility() && box.scrollWidth > box.clientWidth + 1).length"""
    )
    assert cut == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("article details:not([open])").count()
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert colours[1] in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"), colours
