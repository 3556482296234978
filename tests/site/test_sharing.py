"""What a link to the site shows elsewhere, and the one click to Colab."""

import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from PIL import Image
from serving import HTML, THEMES, WIDTHS, Visit

import address
import chapters
import sharing

pytestmark = pytest.mark.site
BASE = address.forms(address.repository())[2] + "/"
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for folder in ("book", "notebooks")
    for page in HTML.glob(f"{folder}/**/*.html")
)
CHAPTERS = [script.stem for script in chapters.scripts()]
FRONT = "book/introduction.html"


@cache
def soup(path: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / path).read_text("utf8"), "html.parser")


def meta(path: str) -> dict[str, str]:
    """The page's <meta> elements, each of which stands there once."""
    found = [
        (str(tag.get("property") or tag["name"]), str(tag["content"]))
        for tag in soup(path).find_all("meta", content=True)
        if tag.get("property") or tag.get("name") not in {None, "viewport", "theme-color"}
    ]
    assert len(found) == len(dict(found)), found
    return dict(found)


def canonical(path: str) -> str:
    (link,) = soup(path).find_all("link", rel="canonical")
    return str(link["href"])


@pytest.mark.parametrize("path", PAGES)
def test_a_shared_page_shows_its_title_description_and_picture(path: str) -> None:
    said, heading = meta(path), soup(path).select_one("article h1")
    assert heading
    title = re.sub(r"#$", "", heading.get_text()).strip()
    assert said["og:title"] == (sharing.tagline(address.ROOT) if path == FRONT else title)
    shown = soup(path).title
    assert shown
    assert shown.get_text().startswith(said["og:title"])
    assert said["og:description"] == said["description"]
    assert 40 < len(said["description"]) <= 160
    assert said["og:url"] == canonical(path) == BASE + path
    assert said["twitter:card"] == "summary_large_image"
    assert said["og:type"] in {"website", "article"}
    assert said["og:image:alt"]
    picture = HTML / said["og:image"].removeprefix(BASE)
    assert picture.stat().st_size <= 100_000
    with Image.open(picture) as image:
        assert image.size == (int(said["og:image:width"]), int(said["og:image:height"])) == (1200, 630)


def test_no_two_pages_describe_themselves_alike() -> None:
    assert len({meta(path)["description"] for path in PAGES}) == len(PAGES)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_a_picture_of_its_own(name: str) -> None:
    assert meta(f"notebooks/{name}.html")["og:image"] == f"{BASE}_static/previews/{name}.png"
    others = {(HTML / "_static" / "previews" / f"{other}.png").read_bytes() for other in CHAPTERS}
    assert len(others) == len(CHAPTERS)


def test_the_bare_address_shows_what_the_front_page_shows() -> None:
    assert meta("index.html") == {key: value for key, value in meta(FRONT).items() if "docsearch" not in key}
    assert canonical("index.html") == BASE + FRONT
    refresh = soup("index.html").find("meta", attrs={"http-equiv": "Refresh"})
    assert refresh
    assert str(refresh["content"]).endswith(f"url={FRONT}")


@pytest.mark.parametrize("path", [*PAGES, "index.html", "404.html", "search.html", "genindex.html"])
def test_a_page_says_its_language(path: str) -> None:
    html = soup(path).html
    assert html
    assert html["lang"] == "en"


@pytest.mark.parametrize("path", [*PAGES, "search.html"])
def test_a_page_has_its_icons(path: str) -> None:
    icons = soup(path).find_all("link", rel=["icon", "apple-touch-icon"])
    assert {tag["rel"][0] for tag in icons} == {"icon", "apple-touch-icon"}
    for tag in icons:
        assert ((HTML / path).parent / str(tag["href"])).is_file()


def test_the_site_map_lists_the_pages_and_the_robots_find_it() -> None:
    tree = ElementTree.parse(HTML / "sitemap.xml")
    found = [str(tag.text) for tag in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")]
    assert sorted(found) == [BASE + path for path in PAGES]
    lines = (HTML / "robots.txt").read_text("utf8").splitlines()
    assert f"Sitemap: {BASE}sitemap.xml" in lines
    assert not any(line.startswith("Disallow: /") for line in lines)


@pytest.mark.parametrize("path", ["search.html", "genindex.html", "404.html"])
def test_what_is_no_page_is_not_found_by_searching(path: str) -> None:
    assert meta(path)["robots"] == "noindex"


def test_the_page_for_lost_visitors_works_at_every_depth() -> None:
    page = soup("404.html")
    assert page.select("[src], script, img, link:not([href^='data:'])") == [], (
        "it loads something, from an address it cannot know"
    )
    links = [str(tag["href"]) for tag in page.select("a[href]")]
    form = page.find("form")
    assert form
    for url in [*links, str(form["action"])]:
        assert url.startswith(BASE)
        assert (HTML / url.removeprefix(BASE)).is_file()
    assert BASE + FRONT in links
    assert {f"{BASE}notebooks/{name}.html" for name in CHAPTERS} <= set(links)
    assert f"{BASE}book/guide.html" in links
    assert any("/exercises/" in url for url in links)
    assert "{" not in page.get_text(), "a placeholder was left"


@pytest.mark.parametrize("theme", THEMES)
def test_the_browsers_frame_and_the_lost_visitors_page_have_the_pages_colour(
    visit: Visit, theme: str
) -> None:
    page = visit("book/references.html", WIDTHS["phone"], theme)
    colour = "getComputedStyle(document.body).backgroundColor"
    said = page.evaluate(
        "[...document.querySelectorAll('meta[name=theme-color]')].filter(m => matchMedia(m.media).matches)"
        ".map(m => m.content)"
    )
    hexadecimal = sharing.BACKGROUND[theme]
    shown = "rgb({}, {}, {})".format(*bytes.fromhex(hexadecimal[1:]))
    assert (said, page.evaluate(colour)) == ([hexadecimal], shown)
    lost = visit("404.html", WIDTHS["phone"], theme)
    assert lost.evaluate(colour) == shown
    assert lost.problems == []
    assert lost.evaluate("document.documentElement.scrollWidth") <= WIDTHS["phone"]


def test_only_the_chapters_lead_to_colab() -> None:
    found = {
        path: [str(link["href"]) for link in soup(path).select(".open-in-colab a")]
        for path in PAGES
        if soup(path).select(".open-in-colab")
    }
    url = address.repository().replace("https://github.com", "https://colab.research.google.com/github")
    assert found == {
        f"notebooks/{name}.html": [f"{url}/blob/main/notebooks/{name}.ipynb"] for name in CHAPTERS
    }


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_colab_is_one_click_away(visit: Visit, width: int) -> None:
    page = visit("notebooks/weight_norm.html", width, "dark")
    link = page.get_by_role("link", name="Open in Colab", exact=True)
    box = link.bounding_box()
    assert link.is_visible()
    assert box["y"] + box["height"] < 450, "one has to look for it"
    assert min(box["width"], box["height"]) >= 24
    page.route("https://colab.research.google.com/**", lambda route: route.fulfill(body="Colab"))
    link.click()
    assert page.url.endswith("/blob/main/notebooks/weight_norm.ipynb")


def test_colab_stays_out_of_the_notebook() -> None:
    """The link is the page's: in Colab and on GitHub it would be noise."""
    for source in HTML.glob("_sources/notebooks/*.ipynb"):
        assert "open-in-colab" not in Path(source).read_text("utf8")


def test_the_readme_has_a_badge_for_every_chapter() -> None:
    text = (address.ROOT / "README.md").read_text("utf8")
    badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    for name in CHAPTERS:
        (row,) = (line for line in text.splitlines() if f"](notebooks/{name}.ipynb) |" in line)
        assert f"{badge}({address.on_colab(address.repository(), f'notebooks/{name}.ipynb')})" in row
