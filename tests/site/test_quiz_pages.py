"""The questions at the end of the sections, answered by touch, by keyboard, and without scripts."""

from typing import Any

import pytest
from bs4 import BeautifulSoup
from serving import HTML, WIDTHS, Visit

import chapters
import quizzes
from address import ROOT

pytestmark = pytest.mark.site
NAMES = [script.stem for script in chapters.scripts()]
# Taps each choice and reads what the page says; one round trip for a whole chapter.
ANSWER_ALL = """async () => {
  const said = [];
  for (const quiz of document.querySelectorAll('fieldset.quiz')) {
    for (const choice of quiz.querySelectorAll('.quiz-choice')) {
      choice.querySelector('label').click();
      const answer = quiz.querySelector('[role=status]');
      said.push({
        height: choice.querySelector('label').getBoundingClientRect().height,
        shown: answer.getBoundingClientRect().height > 0,
        verdict: answer.querySelector('strong').textContent.trim(),
        reason: answer.textContent.length,
        marks: quiz.querySelectorAll('.quiz-choice.right, .quiz-choice.wrong').length,
        chosen: choice.querySelector('input').checked,
        quiz: quiz.querySelector('input').name,
      });
    }
  }
  return said;
}"""


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_gets_its_reason(visit: Visit, name: str) -> None:
    page = visit(f"notebooks/{name}.html", WIDTHS["phone"])
    said: list[dict[str, Any]] = page.evaluate(ANSWER_ALL)
    expected = quizzes.load(ROOT, name)
    assert len({one["quiz"] for one in said}) == len(expected)
    assert len(said) == sum(len(choices) for _, choices in expected.values())
    rights = [right for _, choices in expected.values() for _, _, right in choices]
    assert sorted(one["verdict"] for one in said) == sorted("Right." if right else "No." for right in rights)
    for one in said:
        assert one["shown"], one
        assert one["chosen"], one
        assert one["marks"] == 1, one
        assert one["reason"] > 20, one
        assert one["height"] >= 24, "too small for a finger"


def test_by_touch_and_by_keyboard(visit: Visit) -> None:
    page = visit("notebooks/batch_norm.html", WIDTHS["phone"])
    quiz = page.get_by_role("group", name="the second is always 10 times the first")
    answer = quiz.get_by_role("status")
    quiz.locator("label", has_text="The second is 10 times the first").tap()
    assert answer.inner_text().startswith("No. Each channel is divided by its own deviation")
    radios = quiz.get_by_role("radio")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
        if answer.inner_text().startswith("Right."):
            break
    assert "Shift and positive factor of a whole channel" in answer.inner_text()
    assert radios.count() == 3
    chosen = quiz.locator("input:checked")
    assert chosen.evaluate("button => button === document.activeElement && button.matches(':focus-visible')")
    assert quiz.get_by_text("Answer", exact=True).is_hidden(), "it would give the answer away"


def test_without_scripts_the_answer_is_in_a_fold(visit: Visit) -> None:
    page = visit("notebooks/batch_norm.html", java_script_enabled=False)
    quiz = page.locator("fieldset.quiz").first
    assert quiz.get_by_role("radio").first.is_disabled()
    reasons = quiz.locator("li")
    assert reasons.first.is_hidden()
    quiz.get_by_text("Answer", exact=True).click()
    assert reasons.first.is_visible()
    assert reasons.count() == quiz.get_by_role("radio").count()
    assert sum("Right." in reason for reason in reasons.all_inner_texts()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_formulas_in_questions_are_formulas(name: str) -> None:
    page = BeautifulSoup((HTML / "notebooks" / f"{name}.html").read_bytes(), "html.parser")
    questions = page.select("fieldset.quiz")
    assert [question.get_text() for question in questions if "$" in question.get_text()] == []
    assert [question for question in questions if question.select(".math, math")]
