"""The front page: what it is, at a glance, and the ways on."""

import re
from typing import Any

import pytest
from bs4 import BeautifulSoup
from serving import HTML, THEMES, WIDTHS, Visit

import address
import front
from chapter_lines import LINES
from normtutor.catalog import CHAPTERS, TECHNIQUES
from normtutor.exercises.registry import exercises

pytestmark = pytest.mark.site
PAGE = "book/introduction.html"


@pytest.fixture(scope="module")
def page() -> BeautifulSoup:
    return BeautifulSoup((HTML / PAGE).read_text("utf8"), "html.parser")


def target(href: Any) -> str:
    return (HTML / "book" / str(href)).resolve().relative_to(HTML).as_posix()


def test_it_leads_on(page: BeautifulSoup) -> None:
    _, colab, _ = address.forms(address.repository())
    first = next(iter(CHAPTERS))
    read, run, practise = [str(one["href"]) for one in page.select(".start a")]
    assert target(read) == f"notebooks/{first}.html"
    assert run == f"https://colab.research.google.com{colab}blob/main/notebooks/{first}.ipynb"
    assert (HTML / target(practise)).is_file()


def test_each_chapter_has_a_card(page: BeautifulSoup) -> None:
    cards = page.select(".chapters article")
    for card, (name, title) in zip(cards, CHAPTERS.items(), strict=True):
        link = card.select_one("h3 a")
        assert link
        assert (link.get_text(), target(link["href"])) == (title, f"notebooks/{name}.html")
        assert LINES[name][1:] in card.get_text()
        assert bool(card.select(".math")) == bool(front.formula(address.ROOT / f"notebooks/{name}.ipynb"))
        facts = [fact.get_text() for fact in card.select(".chapter-facts li")]
        assert re.fullmatch(r"[1-9]\d* min to read", facts[0])
        assert re.fullmatch(r"runs in [1-9]\d* (s|min)", facts[1]), "the run was recorded"
        count = sum(id.startswith(f"{name}.") for id in exercises())
        assert facts[2] == f"{count} exercises"
        assert f"/notebooks/{name}.ipynb" in str(card)


def test_reading_takes_as_long_as_the_prose_is(tmp_path: Any) -> None:
    from nbformat import v4, write

    words = v4.new_markdown_cell(
        "# Title\n$$ x $$\n" + "word " * 599 + "```python\n" + "code " * 900 + "\n```"
    )
    notebook = v4.new_notebook(cells=[words, v4.new_code_cell("more " * 900)])
    write(notebook, tmp_path / "a.ipynb")
    assert front.reading_minutes(tmp_path / "a.ipynb") == 3
    assert front.formula(tmp_path / "a.ipynb") == "x"


@pytest.mark.parametrize(("seconds", "text"), [(57.2, "runs in 57 s"), (200, "runs in 3 min"), (None, "")])
def test_a_run_time_is_told_only_where_it_was_measured(seconds: float | None, text: str) -> None:
    assert front.run_time(seconds) == text


def test_the_picture_shows_each_index_set_once(page: BeautifulSoup) -> None:
    panels = page.select(".index-picture a")
    sets = {row.index_set for row in TECHNIQUES.values()}
    assert {str(one.select("span")[-1].get_text()) for one in panels} == {
        f"mean over {axes}" for axes in sets
    }
    for row in TECHNIQUES.values():
        short = row.title.removesuffix(" Normalization")
        mine = [one for one in panels if short in str(one.strong)]
        assert len(mine) == 1
        assert mine[0].select("svg[role=img]")[0]["aria-label"].startswith(mine[0].strong.get_text())
        assert mine[0].select("path.in"), "some of it is coloured"
        assert mine[0].select("path.out"), "but not all"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_the_first_screen_says_it(visit: Visit, width: int, theme: str) -> None:
    page = visit(PAGE, width, theme)
    for selector in (".start a >> nth=2", ".index-picture a >> nth=0"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 900, f"{selector} is on the first screen"
    # The figure's colours on the page's: what belongs to the set is told apart in both themes.
    colours = page.evaluate(
        """() => [".index-picture .in.front", ".index-picture .out.front"].map(
             (one) => getComputedStyle(document.querySelector(one)).fill)"""
    )
    assert contrast(*colours) >= 1.5
    assert (
        contrast(
            page.evaluate("getComputedStyle(document.querySelector('.index-picture strong')).color"),
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
        )
        >= 4.5
    )


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    return max(light(one), light(other)) / min(light(one), light(other))


def test_a_card_is_reached_and_followed_by_keyboard(visit: Visit) -> None:
    page = visit(PAGE)
    link = page.locator(".chapters h3 a").nth(1)
    link.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")  # as a reader comes to it
    outline = link.evaluate("one => getComputedStyle(one, '::after').outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/notebooks/batch_norm.html")
