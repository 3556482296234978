"""The guide's page answers as ``normtutor.guide.recommend`` does, by keyboard and by touch."""

import random
from typing import Any

import pytest
from bs4 import BeautifulSoup
from serving import HTML, Visit

import guide_page
from normtutor import guide

pytestmark = pytest.mark.site
PAGE = "book/guide.html"
# Answers many situations, each through the form, and says what the page then shows.
ASK = """(situations) => situations.map((situation) => {
  const form = document.querySelector(".guide form");
  for (const control of form.querySelectorAll("select, input")) control.value = situation[control.name] ?? "";
  form.dispatchEvent(new Event("input"));
  const all = (selector, tell) => [...document.querySelectorAll(`.guide-advice ${selector}`)].map(tell);
  return {
    advice: all("details", (one) => {
      const rules = (good) => [...one.querySelectorAll("li")]
        .filter((li) => (li.querySelector("[role=img]").ariaLabel === "for:") === good)
        .map((li) => li.dataset.rule);
      const { technique, score, verdict } = one.dataset;
      return [technique, Number(score), verdict, rules(true), rules(false), one.open];
    }),
    warnings: all("[data-warning]", (one) => one.textContent),
    open: all("[data-field]", (one) => one.dataset.field),
    summary: document.querySelector(".guide-summary").textContent,
  };
})"""


def situations(count: int) -> list[dict[str, Any]]:
    """Each answer alone, each rule's own situation, and random ones; the ends of ranges are common."""
    choose = random.Random(0)
    found: list[dict[str, Any]] = []
    answers: dict[str, list[Any]] = {}
    for name, field in guide.FIELDS.items():
        ends = [n + d for r in guide.RULES for n in _ends(r.when.get(name)) for d in (-1, 0, 1) if n + d > 0]
        answers[name] = sorted(set(ends)) if field.number else list(field.options) or [True, False]
        found += [{name: value} for value in answers[name]]
    for _ in range(count):
        names = choose.sample(list(answers), choose.randint(2, len(answers)))
        found.append({name: choose.choice(answers[name]) for name in guide.FIELDS if name in names})
    return [*found, *guide_page.EXAMPLES.values()]


def _ends(condition: Any) -> list[int]:
    return list(condition.values()) if isinstance(condition, dict) else []


def spoken(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def test_it_recommends_what_the_package_does(visit: Visit) -> None:
    page = visit(PAGE)
    asked = situations(300)
    shown = page.evaluate(ASK, [{name: spoken(value) for name, value in one.items()} for one in asked])
    for situation, found in zip(asked, shown, strict=True):
        expected = guide.recommend(situation)
        advice = [
            [one.technique, one.score, one.verdict, list(one.reasons_for), list(one.reasons_against)]
            for one in expected.advice
            if one.reasons_for or one.reasons_against
        ]
        assert [one[:5] for one in found["advice"]] == advice, situation
        assert [one[0] for one in found["advice"] if one[5]] == list(expected.best), "these lie open"
        assert found["warnings"] == list(expected.warnings), situation
        assert found["open"] == list(expected.open), situation
        assert found["summary"] == expected.headline, situation


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit(PAGE)
    page.locator("[name=architecture]").focus()
    page.keyboard.type("c")  # CNN
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    summary = page.locator(".guide-summary")
    assert summary.inner_text() == "First choice: Group."
    assert page.url.endswith("#architecture=cnn&batch_size=2"), "the address can be shared"
    batch = page.locator("[data-technique=batch]")
    assert batch.get_attribute("open") is None
    batch.locator("summary").focus()
    page.keyboard.press("Enter")
    assert batch.locator("[data-rule=cnn_small_batch]").is_visible()
    page.locator("[data-field=frozen]").focus()
    page.keyboard.press("Enter")  # the question that would change the answer
    assert page.evaluate("document.activeElement.name") == "frozen"
    page.keyboard.type("y")
    assert summary.inner_text() == "First choice: Batch."
    page.get_by_text("Start again").press("Enter")
    page.wait_for_function("document.querySelector('.guide-summary').textContent.startsWith('Answer')")
    assert page.locator(".guide-advice > *").count() == 0
    assert "#" not in page.url


def test_a_finger_is_enough(visit: Visit) -> None:
    page = visit(PAGE, width=390)
    page.get_by_role("link", name="A language model").tap()
    page.wait_for_url("**#architecture=transformer*")
    summary = page.locator(".guide-summary", has_text="First choice: Layer or RMS.")
    summary.wait_for()
    assert summary.evaluate("one => one.getBoundingClientRect().bottom <= innerHeight"), "seen at once"
    assert page.locator("[name=task]").input_value() == "language_modelling"
    page.locator("[data-technique=group] summary").tap()
    reason = page.locator("[data-technique=group] [data-rule=causal]")
    assert "later ones included" in reason.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_number_below_one_is_no_answer(visit: Visit) -> None:
    page = visit(PAGE)
    field = page.locator("[name=batch_size]")
    field.fill("-3")
    assert field.get_attribute("aria-invalid") == "true"
    assert page.locator(".guide-summary").inner_text() == "Answer at least one question."
    error = page.locator(f"#{field.get_attribute('aria-describedby')}")
    assert error.inner_text() == "A whole number of at least 1; not counted."
    field.fill("3")
    assert error.inner_text() == ""


def test_a_shared_address_answers(visit: Visit) -> None:
    page = visit(f"{PAGE}#architecture=cnn&batch_size=2&frozen=yes")
    assert page.locator(".guide-summary").inner_text() == "First choice: Batch."


def test_without_a_script_the_table_of_rules_is_there(visit: Visit) -> None:
    page = visit(PAGE, width=390, java_script_enabled=False)
    assert "the table below" in page.locator("article noscript").first.inner_text()
    for rule in guide.RULES:
        row = page.locator(f"#rule-{rule.name.replace('_', '-')}")
        assert rule.reason in row.inner_text().replace("\N{NO-BREAK SPACE}", " ")
        for technique, vote in rule.votes.items():
            word = "first choice" if vote == "first" else vote
            assert f"{guide.TITLES[technique].removesuffix(' Normalization')}: {word}" in row.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_every_reason_names_its_source_with_a_link() -> None:
    page = BeautifulSoup((HTML / PAGE).read_text("utf8"), "html.parser")
    pages: dict[str, BeautifulSoup] = {}
    for rule in guide.RULES:
        sources = page.select_one(f"#rule-{rule.name.replace('_', '-')} .guide-sources")
        assert sources
        links = [str(one["href"]) for one in sources.select("a")]
        assert len(links) == sum(one.kind != "untested" for one in rule.evidence), rule.name
        assert {one.url for one in rule.evidence if one.url} <= set(links)
        for href in links:
            name, _, anchor = href.partition("#")
            if not name.startswith("http"):
                text = (HTML / "book" / name).read_text("utf8")
                target = pages.setdefault(name, BeautifulSoup(text, "html.parser"))
                assert not anchor or target.find(id=anchor), href
