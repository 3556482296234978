"""The built book: complete, without warnings, and without anything loaded from elsewhere.

`make test` runs these after the build; on its own, run `make book` first.
"""

import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from bs4 import BeautifulSoup, Tag

import address
import chapters

ROOT = address.ROOT
HTML = ROOT / "_build" / "html"
PAGES = sorted([*HTML.glob("book/**/*.html"), *HTML.glob("notebooks/*.html")])
NOTEBOOKS = [script.stem for script in chapters.scripts()]

pytestmark = pytest.mark.site


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf8"), "html.parser")


def relative(path: Path) -> str:
    return path.relative_to(HTML).as_posix()


@pytest.fixture(params=PAGES, ids=relative)
def page(request: pytest.FixtureRequest) -> BeautifulSoup:
    return soup(request.param)


@pytest.fixture(params=NOTEBOOKS)
def chapter(request: pytest.FixtureRequest) -> tuple[str, BeautifulSoup]:
    return request.param, soup(HTML / "notebooks" / f"{request.param}.html")


def test_every_page_is_there() -> None:
    expected = {f"notebooks/{name}.html" for name in NOTEBOOKS}
    expected |= {
        f"book/{name}.html"
        for name in (
            "introduction",
            "guide",
            "api",
            "references",
            "generated/claims",
            "generated/gpu",
            "generated/seed",
        )
    }
    assert expected <= set(map(relative, PAGES))
    assert soup(HTML / "index.html").find("meta", attrs={"http-equiv": "Refresh"})


def test_no_warnings() -> None:
    log = (ROOT / "_build" / "book.log").read_text("utf8")
    assert re.search(r"^build succeeded\.$", log, re.MULTILINE), "it says how many warnings, if any"


@pytest.mark.skipif(
    "NORMTUTOR_AFTER_NBVAL" not in os.environ, reason="`make book` alone executes: proven in `make test`"
)
def test_the_build_executed_nothing() -> None:
    assert "Executing notebook" not in (ROOT / "_build" / "book.log").read_text("utf8")


def test_nothing_is_loaded_from_elsewhere(page: BeautifulSoup) -> None:
    loaded = [tag["src"] for tag in page.find_all(src=True)]
    loaded += [
        tag["href"] for tag in page.find_all("link", rel=["stylesheet", "preload", "icon", "modulepreload"])
    ]
    assert loaded
    assert [url for url in loaded if urlparse(str(url)).netloc] == []
    assert not re.search(r"url\(['\"]?(https?:)?//", str(page.find_all("style")))


def test_mathematics_is_in_the_page(chapter: tuple[str, BeautifulSoup]) -> None:
    """Formulas need no script: they are MathML already, each one of them."""
    _, page = chapter
    assert page.select("article .math")
    assert all(formula.find("math") for formula in page.select("article .math"))
    scripts = [str(tag.get("src", "")) or tag.get_text()[:200] for tag in page.find_all("script")]
    assert [text for text in scripts if re.search("mathjax|katex|thebe", text, re.IGNORECASE)] == []


def test_a_wide_formula_scrolls_by_itself(page: BeautifulSoup) -> None:
    assert page.select('link[href*="_static/site.css"]')
    assert "overflow-x: auto" in (HTML / "_static" / "course.css").read_text("utf8")


def test_every_image_says_what_it_shows(page: BeautifulSoup) -> None:
    images = [tag for tag in page.select("article img") if isinstance(tag, Tag)]
    silent = [
        str(tag["src"]) for tag in images if not tag.get("alt") or str(tag["alt"]).endswith((".png", ".svg"))
    ]
    assert silent == [], 'give the cell mystnb={"image": {"alt": "…"}}'


def test_every_page_describes_itself(page: BeautifulSoup) -> None:
    description = page.find("meta", attrs={"name": "description"})
    assert isinstance(description, Tag)
    assert len(str(description["content"])) > 40
    assert len(page.find_all("meta", attrs={"name": "description"})) == 1


def test_the_theme_follows_the_reader(page: BeautifulSoup) -> None:
    html = page.find("html")
    assert isinstance(html, Tag)
    assert "auto" in {html.get("data-default-mode"), html.get("data-mode"), html.get("data-theme")} or (
        "auto" in str(page.find("script"))
    )


def test_buttons_lead_to_the_notebook(chapter: tuple[str, BeautifulSoup]) -> None:
    name, page = chapter
    links = [str(tag["href"]) for tag in page.select("a[href]")]
    _, colab, _ = address.forms(address.repository())
    assert f"https://colab.research.google.com{colab}blob/main/notebooks/{name}.ipynb" in links
    assert address.repository() in links
    downloads = [str(tag["href"]) for tag in page.select("a.btn-download-source-button")]
    assert downloads == [f"../_sources/notebooks/{name}.ipynb"]
    assert (HTML / "_sources" / "notebooks" / f"{name}.ipynb").is_file()


def test_links_inside_the_site_lead_somewhere(page: BeautifulSoup, request: pytest.FixtureRequest) -> None:
    """The page is there, and so is the place on it."""
    here = HTML / request.node.callspec.id
    lost = []
    for tag in page.select("a[href]"):
        url = urlparse(str(tag["href"]))
        if url.scheme or url.netloc:
            continue
        target = (here.parent / unquote(url.path)).resolve() if url.path else here
        if "=" in url.fragment:  # a situation for the guide, which test_guide_page.py follows
            continue
        known = anchors(target) if target.suffix == ".html" and target.exists() else set()
        if not target.exists() or (known and url.fragment and unquote(url.fragment) not in known):
            lost.append(str(tag["href"]))
    assert lost == []


@cache
def anchors(path: Path) -> set[str]:
    return {str(tag["id"]) for tag in soup(path).find_all(id=True)}
