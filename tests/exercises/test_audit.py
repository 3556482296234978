"""The audit: every exercise tells right from wrong, and names what is wrong."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from html import unescape
from itertools import combinations, zip_longest

import pytest
import torch

from normtutor.catalog import CHAPTERS
from normtutor.exercises import grade, hint, pages, solution, statement
from normtutor.exercises.exercise import Exercise, Mistake, patched
from normtutor.exercises.observe import observe, same
from normtutor.exercises.registry import exercises
from normtutor.exercises.show import plain
from normtutor.exercises.verdict import SEED

SEEDS = (SEED, 1, 2, 3, 4)
ALL = list(exercises().values())
# Some need what not every system has.
GRADED = [exercise for exercise in ALL if not exercise.unavailable()]
each_exercise = pytest.mark.parametrize("exercise", GRADED, ids=lambda exercise: exercise.id)
each_mistake = pytest.mark.parametrize(
    ("exercise", "mistake"),
    [pytest.param(e, m, id=f"{e.id}-{m.name}") for e in GRADED for m in e.mistakes],
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeds(exercise: Exercise) -> tuple[int, ...]:
    """Fewer for a challenge, which trains a network."""
    return SEEDS[:3] if exercise.challenge else SEEDS


def run(exercise: Exercise, source: str, seed: int = SEED) -> Iterator[tuple[str, object]]:
    """What is observed of ``source``, as far as it is asked for."""
    return observe(exercise.probe, exercise.build(source), seed, "cpu")


def alike(a: Iterable[tuple[str, object]], b: Iterable[tuple[str, object]]) -> bool:
    """Whether two runs agree; they go no further than their first difference."""
    return all(x and y and same(x[1], y[1]) for x, y in zip_longest(a, b))


@cache
def right(exercise: Exercise) -> list[tuple[str, object]]:
    """What is observed of the reference."""
    return list(run(exercise, exercise.reference))


def both(exercise: Exercise, a: Mistake, b: Mistake) -> str | None:
    """The source with both mistakes, if they combine."""
    for pair in ((a, b), (b, a)):
        try:
            return exercise.mistaken(*pair)
        except ValueError:
            continue
    return None


@each_exercise
def test_right_answers_pass(exercise: Exercise) -> None:
    assert len(exercise.alternatives) >= 2
    for source in (exercise.reference, *exercise.alternatives):
        for seed in seeds(exercise):
            verdict = grade(exercise.id, exercise.build(source), seed=seed)
            assert (verdict.status, verdict.mistake) == ("passed", None), f"{verdict.text}\n{source}"


@each_exercise
def test_the_starter_is_not_attempted(exercise: Exercise) -> None:
    verdict = grade(exercise.id, exercise.build(exercise.starter))
    assert verdict.status == "unattempted", verdict.text
    assert verdict.text == grade(exercise.id, exercise.build(exercise.starter)).text


@pytest.mark.parametrize("exercise", [e for e in ALL if e.spot_the_bug], ids=lambda exercise: exercise.id)
def test_the_starter_of_a_bug_runs(exercise: Exercise) -> None:
    observed = list(run(exercise, exercise.starter))
    assert not alike(observed, right(exercise))
    assert [name for name, _ in observed] == [name for name, _ in right(exercise)]  # it stops nowhere


@each_mistake
def test_a_mistake_is_rejected_and_named(exercise: Exercise, mistake: Mistake) -> None:
    for seed in seeds(exercise):
        verdict = grade(exercise.id, exercise.build(exercise.mistaken(mistake)), seed=seed)
        assert (verdict.status, verdict.mistake) == ("wrong", mistake.name), verdict.text
        assert mistake.sentence in verdict.text
        assert f"seed {seed}" in verdict.text


@each_exercise
def test_no_two_mistakes_are_indistinguishable(exercise: Exercise) -> None:
    for seed in SEEDS[:2]:
        runs = {m.name: list(run(exercise, exercise.mistaken(m), seed)) for m in exercise.mistakes}
        for a, b in combinations(runs, 2):
            assert not alike(runs[a], runs[b]), f"{a} and {b} behave alike at seed {seed}"


@each_exercise
def test_two_mistakes_together_are_not_accepted(exercise: Exercise) -> None:
    accepted = set()
    for a, b in combinations(exercise.mistakes, 2):
        source = both(exercise, a, b)
        if source is not None and alike(run(exercise, source), right(exercise)):
            accepted.add(frozenset((a.name, b.name)))
    assert accepted == set(exercise.cancels)
    assert all(proof.strip() for proof in exercise.cancels.values())


@each_exercise
def test_the_texts_are_complete(exercise: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(exercise.hints) >= 2
    assert exercise.answer in exercise.statement
    names = [mistake.name for mistake in exercise.mistakes]
    sentences = [mistake.sentence for mistake in exercise.mistakes]
    assert len(set(names)) == len(names) == len(set(sentences)) >= (3 if exercise.challenge else 6)
    assert all(sentence.endswith(".") and "  " not in sentence for sentence in sentences)
    statement(exercise.id)
    said = capsys.readouterr().out
    assert plain(exercise.statement.strip()) in said
    assert "\\" not in said
    assert "$" not in said
    solution(exercise.id)
    assert capsys.readouterr().out.strip() == exercise.reference.strip()
    # The statement gives no line of the answer away.
    lines = {line.strip() for line in exercise.reference.splitlines()} - {""}
    given = {line.strip() for line in exercise.starter.splitlines()}
    assert not [line for line in lines - given if line in exercise.statement and len(line) > 20]
    shown = []
    for _ in range(len(exercise.hints) + 2):
        hint(exercise.id)
        shown.append(capsys.readouterr().out)
    assert all(text in said for text, said in zip(exercise.hints, shown, strict=False))
    assert "No more hints" in shown[-2]
    assert shown[-1] == shown[0]


def test_the_layer_knows_at_least_twenty_mistakes() -> None:
    assert len(exercises()["batch_norm.layer"].mistakes) >= 20


def test_every_chapter_has_at_least_six_exercises_and_ends_with_a_challenge() -> None:
    for chapter in CHAPTERS:
        mine = [exercise for exercise in ALL if exercise.id.startswith(chapter + ".")]
        assert len(mine) >= 6, chapter
        assert [exercise.challenge for exercise in mine] == [False] * (len(mine) - 1) + [True], chapter


def _wrong_answers(section: str) -> list[str]:
    """What the checker says of each: first the fold's heading, the rest within the fold."""
    fold = r'<details class="fold mistake">\n<summary>(.+)</summary>\n\n'
    fold += r"<pre (?s:.*?)</pre>\n\n(?:> (.+)\n\n)?</details>"
    found = []
    for heading, rest in re.findall(fold, section):
        markdown = re.sub("</?em>", "*", re.sub("</?code>", "`", heading))
        found.append(f"{unescape(markdown)} {rest}".strip())
    return found


def test_the_book_shows_every_exercise_in_full() -> None:
    text = "\n".join(pages().values())
    for exercise in ALL:
        section = text.partition(f"\n`{exercise.id}`\n")[2].partition("\n## ")[0]
        parts = [exercise.statement, exercise.starter, exercise.reference, *exercise.hints]
        assert _wrong_answers(section) == [mistake.sentence for mistake in exercise.mistakes]
        assert [part for part in parts if part.strip() not in section] == [], exercise.id
        wrong = section.index("typical wrong answers</summary>")
        hints = [section.index(f"Hint {n} of ") for n in range(1, len(exercise.hints) + 1)]
        assert [section.find("</details>", hint) for hint in hints] == [
            section.find("</details>", hints[-1])
        ] * len(hints), "each hint holds the next"
        mistakes = section.index('<details class="fold mistake">')
        assert section.index(exercise.reference.strip()) < wrong < mistakes
    # The sentence, and no part of a verdict.
    assert not [
        words
        for words in ("First difference", "Also different", "checks are right", "Inputs: seed")
        if words in text
    ]
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("<summary>"):  # Markdown inside needs the blank line
            assert lines[number - 1].startswith("<details ")
            assert lines[number + 1] == ""
        if line == "</details>":
            assert lines[number - 1] == ""
    folds = sum(len(e.hints) + 2 + len(e.mistakes) for e in ALL)
    assert text.count("<details ") == text.count("</details>") == folds


def test_a_patch_whose_text_is_missing_or_ambiguous_is_an_error() -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        patched("a = 1", {"b": "c"})
    with pytest.raises(ValueError, match="occurs 2 times"):
        patched("a = a", {"a": "c"})
