"""The exercises without a kernel: folds that open one by one, and ways from the chapter and back."""

import gzip

import pytest
from bs4 import BeautifulSoup
from serving import HTML, WIDTHS, Visit

from normtutor.catalog import CHAPTERS
from normtutor.exercises.registry import exercises

pytestmark = pytest.mark.site
LAYER = "section:has(> #exercise-batch_norm\\.layer-hints)"
FOLDER = "book/generated/exercises"


def test_hints_open_one_by_one(visit: Visit) -> None:
    page = visit(f"{FOLDER}/batch_norm.html", WIDTHS["phone"])
    hints = exercises()["batch_norm.layer"].hints
    section = page.locator(LAYER)
    for number in range(1, len(hints) + 1):
        summary = section.get_by_text(f"Hint {number} of {len(hints)}", exact=True)
        later = section.get_by_text(f"Hint {number + 1} of {len(hints)}", exact=True)
        assert not later.is_visible()
        assert summary.bounding_box()["height"] >= 24
        summary.tap()
        assert later.is_visible() == (number < len(hints))
    assert section.get_by_text("For half precision: convert").is_visible()
    assert not section.locator(".fold.solution pre").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS["phone"]


def test_a_wrong_answer_shows_the_change_and_what_the_checker_says(visit: Visit) -> None:
    exercise = exercises()["batch_norm.forward"]
    page = visit(f"{FOLDER}/batch_norm.html#exercise-batch_norm.forward-wrong")
    wrong = page.locator("#exercise-batch_norm\\.forward-wrong")
    assert wrong.get_attribute("open") is not None, "the link opens its fold"
    assert wrong.locator("details.mistake").count() == len(exercise.mistakes)
    one = wrong.get_by_text("You add ε to the standard deviation.")
    one.focus()
    page.keyboard.press("Enter")
    fold = wrong.locator("details.mistake[open]")
    assert "torch.sqrt(var) + eps" in fold.locator("ins").inner_text()
    rest = fold.locator("blockquote").inner_text()
    (mistake,) = [m for m in exercise.mistakes if m.name == "eps_outside_root"]
    assert f"You add ε to the standard deviation. {rest}" == mistake.sentence
    code = wrong.locator("details.mistake > summary code").first
    assert "`" not in code.inner_text()


def test_from_the_chapter_to_the_fold_and_back(visit: Visit) -> None:
    page = visit("notebooks/batch_norm.html")
    page.locator("#the-whole-layer .exercise-folds").get_by_text("solution").click()
    page.wait_for_url("**/exercises/batch_norm.html#*")
    solution = page.locator("#exercise-batch_norm\\.layer-solution")
    assert solution.locator("pre").is_visible()
    in_sight = "() => { const box = document.querySelector('.fold.solution[open]').getBoundingClientRect();"
    page.wait_for_function(in_sight + " return box.top >= 0 && box.top < innerHeight; }")
    assert page.locator("details[open]").count() == 1
    page.locator(LAYER).get_by_role("link", name="6. The whole layer").click()
    page.wait_for_url("**/notebooks/batch_norm.html#the-whole-layer")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_can_be_reached_and_is_complete(chapter: str) -> None:
    raw = (HTML / FOLDER / f"{chapter}.html").read_bytes()
    page = BeautifulSoup(raw, "html.parser")
    lesson = BeautifulSoup((HTML / "notebooks" / f"{chapter}.html").read_bytes(), "html.parser")
    links = {a["href"] for a in lesson.select(".exercise-folds a")}
    for id, exercise in exercises().items():
        if id.startswith(f"{chapter}."):
            for part in ("hints", "solution", "wrong"):
                assert f"../{FOLDER}/{chapter}.html#exercise-{id}-{part}" in links
                assert page.find("details", id=f"exercise-{id}-{part}"), (id, part)
            wrong = page.find("details", id=f"exercise-{id}-wrong")
            assert len(wrong.select("details.mistake")) == len(exercise.mistakes)  # type: ignore[union-attr]
    assert not page.select(".mistake .highlight"), "a thousand coloured snippets are too heavy for a phone"
    # Words of the page itself, measured at 28 kB and 6,000 elements for the largest.
    assert len(gzip.compress(raw, 6)) < 40_000
    assert len(page.find_all(True)) < 8_000
