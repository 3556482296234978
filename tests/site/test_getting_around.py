"""Keyboard, search, sidebar, and what a small screen cuts off."""

import re
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from serving import FRONT, HTML, PAGES, WIDTHS, Visit

pytestmark = pytest.mark.site

CHAPTERS = [path for path in PAGES if path.startswith("notebooks/")]
ALL_LAID_OUT = ".bd-article section { content-visibility: visible !important }"

# The element with the focus, if nothing shows that it has it; null behind the last one.
UNSEEN = """() => {
  const one = document.activeElement;
  if (one === document.body) return null;
  const styles = (at) => [getComputedStyle(at), getComputedStyle(at, "::after")];
  const drawn = [one, one.parentElement].flatMap(styles);
  const seen = drawn.some((style) =>
    (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) || style.boxShadow !== "none");
  return seen ? "" : one.outerHTML.slice(0, 150);
}"""

# Punctuation that stands on the line below the formula that it follows.
FALLEN = """() => [...document.querySelectorAll("article span.math")].filter((math) => {
  const next = math.nextSibling;
  if (next?.nodeType !== 3 || !/^[.,;:!?)]/.test(next.data)) return false;
  const sign = document.createRange();
  sign.setStart(next, 0);
  sign.setEnd(next, 1);
  const box = sign.getBoundingClientRect();  // of no height in a fold
  return box.height && box.top > math.getBoundingClientRect().bottom - 2;
}).map((math) => math.parentElement.textContent)"""


@pytest.mark.parametrize("path", ["notebooks/one_formula.html", "search.html", "book/guide.html"])
def test_the_focus_is_seen(visit: Visit, path: str) -> None:
    page = visit(path)
    unseen: list[str] = []
    stops = 0
    while stops < 90:
        page.keyboard.press("Tab")
        page.wait_for_timeout(20)
        found = page.evaluate(UNSEEN)
        if found is None:
            break
        stops += 1
        if found:
            unseen.append(found)
    assert stops > 30
    assert unseen == []


def test_search_quotes_the_text(visit: Visit) -> None:
    page = visit("search.html?q=momentum")
    page.locator("#search-results a[href*='batch_norm']").first.wait_for()
    page.wait_for_timeout(1000)
    quotes = page.locator("#search-results p.context").all_inner_texts()
    assert len(quotes) > 4
    for quote in quotes:
        assert not re.search(r"Repository|Open issue|Print to PDF|Colab|Contents", quote), quote
    [term] = [quote for quote in quotes if quote.startswith("momentum:")]
    assert "The weight of the newest batch" in term, "the glossary's term without what it means"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_search_field_is_free(visit: Visit, width: str) -> None:
    page = visit("search.html?q=momentum", WIDTHS[width])
    field = page.locator(".bd-search-container input")
    icon = page.locator(".bd-search-container .fa-magnifying-glass").bounding_box()
    padding = field.evaluate("field => parseFloat(getComputedStyle(field).paddingLeft)")
    assert field.bounding_box()["x"] + padding >= icon["x"] + icon["width"], "the icon covers what is typed"
    assert not page.locator(".bd-search-container kbd").first.is_visible()


@pytest.mark.parametrize("path", CHAPTERS)
def test_a_full_stop_stays_with_its_formula(visit: Visit, path: str) -> None:
    page = visit(path, WIDTHS["phone"])
    page.add_style_tag(content=ALL_LAID_OUT)
    page.wait_for_timeout(200)
    assert page.evaluate(FALLEN) == []


def test_a_table_that_is_cut_off_says_so(visit: Visit) -> None:
    page = visit("notebooks/one_formula.html", WIDTHS["phone"])
    table = page.locator("#four-index-sets .pst-scrollable-table-container").first
    table.scroll_into_view_if_needed()
    faded = "table => getComputedStyle(table).maskImage !== 'none'"
    page.wait_for_function("document.querySelector('#four-index-sets .has-more')")
    assert table.evaluate(faded)
    rows = [row.bounding_box()["height"] for row in table.locator("tbody tr").all()]
    assert max(rows) < 60, "rows as high as a column that is out of sight"
    table.evaluate("table => table.scrollTo(9999, 0)")
    page.wait_for_timeout(100)
    assert not table.evaluate(faded)


def test_the_sidebar_keeps_logo_and_search(visit: Visit) -> None:
    page = visit("book/status.html")
    sidebar = page.locator(".bd-sidebar-primary")
    sidebar.evaluate("bar => (bar.scrollTop = 9999)")
    assert sidebar.evaluate("bar => bar.scrollTop") > 50
    for selector in (".navbar-brand", ".search-button-field"):
        one = page.locator(f".bd-sidebar-primary {selector}")
        assert one.evaluate(
            """one => {
              const box = one.getBoundingClientRect();
              return one.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
            }"""
        ), f"{selector} is out of sight, or covered"


def test_a_wrong_address_is_answered(visit: Visit, site: str) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{site}/no/such/page.html")
    assert caught.value.code == 404
    caught.value.close()
    page = visit("no/such/page.html", WIDTHS["phone"])
    page.get_by_role("link", name="front page").click()
    assert page.url == f"{site}/{FRONT}"


def test_each_page_says_once_how_wide_it_is() -> None:
    for page in HTML.rglob("*.html"):
        if page.name != "index.html":  # only leads elsewhere
            assert page.read_text("utf8").count('name="viewport"') == 1, page
    assert list(HTML.glob("_static/**/*.html")) == [], "templates are no pages"
