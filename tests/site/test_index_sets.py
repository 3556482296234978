"""The figure "which elements share statistics", driven as a reader does, and compared with the package."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup
from serving import HTML, Visit
from torch import Tensor

import index_sets
from normtutor import functional
from normtutor.catalog import CHAPTERS, TECHNIQUES

pytestmark = pytest.mark.site
FRONT = "book/introduction.html"
GROUPS = index_sets.divisors(index_sets.SHAPE[1])
NORMALIZED: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    "batch": lambda x, g, eps: functional.batch_norm(x, None, None, training=True, eps=eps),
    "layer": lambda x, g, eps: functional.layer_norm(x, x.shape[1:], eps=eps),
    "rms": lambda x, g, eps: functional.rms_norm(x, x.shape[1:], eps=eps),
    "instance": lambda x, g, eps: functional.instance_norm(x, eps=eps),
    "group": lambda x, g, eps: functional.group_norm(x, g, eps=eps),
}
# Types a number into every element, as a reader would, and says what the figure then shows.
ENTER = """(figure, [values, eps, technique, groups, selected]) => {
  const type = (field, value) => {
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const cells = [...figure.querySelectorAll("[role=grid] [data-value]")];
  values?.forEach((value, k) => { cells[k].click(); type(figure.querySelector("[name=value]"), value); });
  if (eps !== null) type(figure.querySelector("[name=eps]"), eps);
  figure.querySelector(`[name=technique][value="${technique}"]`).click();
  figure.querySelector(`[name=groups][value="${groups}"]`).click(); // does nothing where G has no meaning
  cells[selected].click();
  const results = [...figure.querySelectorAll("[role=table] [data-value]")];
  return {
    x: cells.map((cell) => Number(cell.dataset.value)),
    hat: results.map((cell) => Number(cell.dataset.value)),
    inside: cells.map((cell) => cell.classList.contains("in")),
    said: cells.map((cell) => cell.ariaLabel.endsWith("in the set")),
    n: Number(figure.querySelector("[data-is=m]").textContent),
    mean: Number(figure.querySelector("[data-is=mu]").dataset.value),
    variance: Number(figure.querySelector("[data-is=var]").dataset.value),
  };
}"""


def as_shown(x: Tensor) -> list[float]:
    """(N, C, H, W) in the page's order: rows of a plane come before the next channel."""
    return x.permute(0, 2, 1, 3).flatten().tolist()


def from_page(values: list[Any]) -> Tensor:
    n, c, h, w = index_sets.SHAPE
    return torch.tensor(values, dtype=torch.float64).view(n, h, c, w).permute(0, 2, 1, 3).contiguous()


def shared(name: str, groups: int, place: int) -> Tensor:
    """By the package: the elements on which the normalized value at ``place`` depends."""
    x = torch.randn(index_sets.SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    NORMALIZED[name](x, groups, 1e-5).permute(0, 2, 1, 3).flatten()[place].backward()
    assert x.grad is not None
    return x.grad != 0


def tensors() -> dict[str, Tensor]:
    noise = torch.randn(index_sets.SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        "random": noise,
        "far from zero": noise + 1e8,
        "all equal": torch.full(index_sets.SHAPE, 7.25, dtype=torch.float64),
        "tiny": noise * 1e-9,
        "negative and large": -1e6 * noise.abs(),
    }


@pytest.mark.parametrize("kind", tensors())
def test_the_arithmetic_is_the_packages(visit: Visit, kind: str) -> None:
    figure = visit(FRONT).locator("figure.index-sets")
    x = tensors()[kind]
    values: list[float] | None = as_shown(x)
    for name, row in TECHNIQUES.items():
        for groups in GROUPS if "C/G" in row.index_set else GROUPS[:1]:
            for eps in (1e-5, 0.5):
                place = 11 * groups
                found = figure.evaluate(ENTER, [values, eps, name, groups, place])
                values = None  # they stay
                assert torch.equal(from_page(found["x"]), x)
                hat = NORMALIZED[name](x, groups, eps)
                torch.testing.assert_close(from_page(found["hat"]), hat, rtol=1e-10, atol=1e-10)
                inside = shared(name, groups, place)
                assert torch.equal(from_page(found["inside"]).bool(), inside), (name, groups)
                assert found["said"] == found["inside"], "what is coloured is said"
                mine = x[inside]
                assert found["n"] == len(mine)
                mean = mine.mean() if row.centred else torch.tensor(0.0)
                assert found["mean"] == pytest.approx(float(mean), rel=1e-12)
                assert found["variance"] == pytest.approx(float((mine - mean).square().mean()), rel=1e-6)


def test_every_technique_of_the_catalog_can_be_chosen(visit: Visit) -> None:
    page = visit(FRONT)
    names = page.eval_on_selector_all("[name=technique]", "all => all.map((one) => one.value)")
    assert names == list(TECHNIQUES) == list(NORMALIZED)
    counts = page.eval_on_selector_all("[name=groups]", "all => all.map((one) => Number(one.value))")
    assert counts == GROUPS


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit(FRONT)
    figure = page.locator("figure.index-sets")
    figure.locator("[name=technique][value=batch]").focus()
    page.keyboard.press("ArrowRight")
    assert "Layer Normalization: 16 of 48" in figure.locator(".is-said").inner_text()
    page.keyboard.press("Tab")  # past G, which layer normalization has not
    chosen = figure.locator("[aria-selected=true]")
    assert chosen.evaluate("cell => cell === document.activeElement")
    assert chosen.evaluate("cell => cell.matches(':focus-visible')")
    outline = chosen.evaluate("cell => getComputedStyle(cell).outlineWidth")
    assert outline == "3px"
    page.evaluate("addEventListener('keydown', (event) => { self.kept = event.defaultPrevented; })")
    for pressed, name in (
        ("ArrowDown", "x[0, 1, 1, 1]"),
        ("ArrowDown", "x[1, 1, 0, 1]"),
        ("ArrowRight", "x[1, 2, 0, 0]"),
        ("Home", "x[1, 0, 0, 0]"),
        ("ArrowLeft", "x[1, 0, 0, 0]"),
        ("End", "x[1, 3, 0, 1]"),
        ("ArrowRight", "x[1, 3, 0, 1]"),
    ):
        page.keyboard.press(pressed)
        assert figure.locator("[data-is=name]").inner_text() == name
        assert page.evaluate("kept"), "the key does not scroll the page as well"
    page.keyboard.type("-50.5")  # straight into the field
    page.keyboard.press("Enter")  # and back
    assert chosen.evaluate("cell => cell === document.activeElement")
    assert chosen.get_attribute("data-value") == "-50.5"
    assert chosen.get_attribute("aria-label") == "−50.5: n 1, c 3, h 0, w 1, in the set"
    assert figure.locator("[data-is=m]").inner_text() == "16"


def test_a_finger_is_enough(visit: Visit) -> None:
    page = visit("notebooks/group_norm.html", width=390)
    figure = page.locator("figure.index-sets")
    small = figure.evaluate(
        """figure => [...figure.querySelectorAll("label, button, [type=number], [role=gridcell][tabindex]")]
           .filter((one) => Math.min(one.clientWidth, one.clientHeight) < 24).length"""
    )
    assert small == 0
    figure.locator("[role=gridcell][tabindex]").nth(5).tap()  # n 0, c 2, h 0, w 1
    assert figure.locator("[data-is=name]").inner_text() == "x[0, 2, 0, 1]"
    said = figure.locator(".is-said")
    for groups, n, twin in ((1, 16, "Layer"), (4, 4, "Instance")):
        figure.locator(f"label:has([name=groups][value='{groups}'])").tap()
        assert f"G = {groups}: {n} of 48" in said.inner_text()
        assert f"The sets of {twin} Normalization." in said.inner_text()
    figure.locator("label:has([value=rms])").tap()
    assert figure.locator(".is-groups").evaluate("fieldset => fieldset.disabled")
    assert figure.locator("[data-is=spread]").inner_text() == "mean of x²"
    assert not figure.locator("[data-is=minus]").is_visible()
    before = figure.locator("[data-is=xhat]").text_content()
    figure.get_by_text("+ 1000").tap()
    assert figure.locator("[data-is=x]").text_content() == "1000"
    assert figure.locator("[data-is=xhat]").text_content() != before, "RMS feels a shift"
    figure.locator("label:has([value=layer])").tap()
    shifted = figure.locator("[data-is=xhat]").text_content()
    figure.get_by_text("Reset").tap()
    assert figure.locator("[data-is=xhat]").text_content() == shifted, "layer normalization does not"
    figure.get_by_text("All equal").tap()
    assert figure.locator("[data-is=var]").inner_text() == "0"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_half_a_number_changes_nothing(visit: Visit) -> None:
    figure = visit(FRONT).locator("figure.index-sets")
    before = figure.locator("[data-is=xhat]").text_content()
    for field, wrong in (("eps", "-1"), ("eps", ""), ("value", "")):
        figure.locator(f"[name={field}]").fill(wrong)
        assert figure.locator(f"[name={field}]").get_attribute("aria-invalid") == "true"
        assert figure.locator("[data-is=xhat]").text_content() == before


def test_each_technique_chapter_has_it_below_its_introduction() -> None:
    first: dict[str, str] = {"one_formula": next(iter(TECHNIQUES))}
    for row in TECHNIQUES.values():
        first.setdefault(row.notebook, row.name)
    for chapter in CHAPTERS:
        page = BeautifulSoup((HTML / "notebooks" / f"{chapter}.html").read_text("utf8"), "html.parser")
        figures = page.select("figure.index-sets")
        assert len(figures) == (chapter in first), chapter
        for figure in figures:
            assert [one["value"] for one in figure.select("[name=technique][checked]")] == [first[chapter]]
            beside = [one.name for one in (figure.find_previous_sibling(), figure.find_next_sibling()) if one]
            assert beside == ["p", "section"], "after the introduction, before the first section"


@pytest.mark.parametrize("width", [390, 1400])
def test_it_stands_there_without_a_script_and_stays_in_place(visit: Visit, width: int) -> None:
    still = visit("notebooks/group_norm.html", width, java_script_enabled=False).locator("figure.index-sets")
    page = visit("notebooks/group_norm.html", width)
    figure = page.locator("figure.index-sets")
    for part in (".is-tensors", ".is-result", ".is-said"):
        texts = [one.locator(part).text_content() for one in (still, figure)]
        assert texts[0] == texts[1], "the script writes what the build wrote"
    names = still.locator(".is-tensor").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert names == ["x", "x̂"]
    assert "JavaScript" in still.locator("noscript").inner_text()
    heights = set()
    for name in TECHNIQUES:
        figure.locator(f"label:has([value={name}])").click()
        for groups in GROUPS if name == "group" else []:
            figure.locator(f"label:has([name=groups][value='{groups}'])").click()
            heights.add(figure.bounding_box()["height"])
        heights.add(figure.bounding_box()["height"])
    assert len(heights) == 1, "the page below does not move"


def test_its_script_is_small_and_nothing_moves_by_itself() -> None:
    assert (HTML / "_static" / "index_sets.js").stat().st_size < 15_000
    for name in ("index_sets", "front", "guide"):
        style = (HTML / "_static" / f"{name}.css").read_text("utf8")
        assert "transition" not in style
        assert "animation" not in style
