"""The questions at the end of the chapters' sections, as data; tests/site drives them in a browser."""

import re
from collections import Counter

import pytest
import yaml

import address
import chapters

QUIZZES = address.ROOT / "book" / "quizzes"
NAMES = [script.stem for script in chapters.scripts()]
# Sections that open a chapter, that are lists of tasks or papers, or one table.
WITHOUT = {"What it is for", "Exercises", "Quiz", "References", "All on one page"}


def load(name: str) -> dict[str, dict[str, object]]:
    path = QUIZZES / f"{name}.yml"
    assert path.exists(), f"{name} has no questions: write {path.relative_to(address.ROOT)}"
    return yaml.safe_load(path.read_text("utf8"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_every_section_asks_something(name: str) -> None:
    script = (address.ROOT / "notebooks" / f"{name}.py").read_text("utf8")
    sections = set(re.findall(r"^# ## (.+)$", script, re.MULTILINE))
    quizzes = load(name)
    assert sections - WITHOUT - set(quizzes) == set(), "sections without a question"
    assert set(quizzes) - sections == set(), "questions without a section"
    assert WITHOUT.isdisjoint(quizzes)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_has_a_reason_and_one_is_right(name: str) -> None:
    for heading, quiz in load(name).items():
        assert set(quiz) == {"question", "choices"}, heading
        choices = quiz["choices"]
        assert isinstance(choices, list)
        assert len(choices) >= 3, heading
        for choice in choices:
            assert set(choice) in ({"right", "because"}, {"wrong", "because"}), heading
            assert all(isinstance(text, str) and text.strip() for text in choice.values()), heading
            assert len(choice["because"]) > 20, heading
        assert sum("right" in choice for choice in choices) == 1, heading
        texts = [choice.get("right") or choice["wrong"] for choice in choices]
        assert len(set(texts)) == len(texts), heading
        # Whoever listens to the page hears nothing of a formula that is drawn later.
        assert [text for text in texts if re.fullmatch(r"\$[^$]*\$", text)] == [], heading


def test_length_does_not_tell_which_is_right() -> None:
    """A reader who always takes the longest choice is right hardly more often than one who guesses."""
    longest: Counter[bool] = Counter()
    for name in NAMES:
        for quiz in load(name).values():
            choices: list[dict[str, str]] = quiz["choices"]  # type: ignore[assignment]
            longest["right" in max(choices, key=lambda c: len(c.get("right") or c["wrong"]))] += 1
    assert longest[True] <= 0.6 * longest.total(), longest
