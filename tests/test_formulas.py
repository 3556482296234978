"""Formulas become MathML: what is written, and what fails the build."""

from xml.etree import ElementTree

import pytest

from formulas import FormulaError, mathml


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("x", "<mi>x</mi>"),
        ("x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
        (r"\frac{1}{m}", "<mfrac><mn>1</mn><mi>m</mi></mfrac>"),
        (r"\sqrt{v}", "<msqrt><mi>v</mi></msqrt>"),
        (r"\text{if } x", "<mtext>if\u00a0</mtext><mi>x</mi>"),
        ("1{,}000.5", '<mn>1</mn><mo separator="true">,</mo><mn>000.5</mn>'),
    ],
)
def test_it_writes(latex: str, expected: str) -> None:
    assert mathml(latex) == f"<math><mrow>{expected}</mrow></math>"


@pytest.mark.parametrize(
    ("latex", "binary"),
    [
        ("a - b", True),
        ("-b", False),
        ("(a) - b", True),
        ("= -b", False),
        (r"\hat{a} - b", True),
        (r"\begin{aligned} a &= b \\ &- c \end{aligned}", True),
    ],
)
def test_a_sign_between_two_operands_has_space(latex: str, binary: bool) -> None:
    minus = next(sign for sign in ElementTree.fromstring(mathml(latex)).iter("mo") if sign.text == "−")
    assert (minus.get("lspace") != "0") == binary


def test_environments_are_tables() -> None:
    table = ElementTree.fromstring(mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", True))
    assert [len(row) for row in table.iter("mtr")] == [2, 2]
    cases = ElementTree.fromstring(mathml(r"\begin{cases} 0 & x < 0 \\ x & \text{else} \end{cases}", True))
    assert next(cases.iter("mo")).text == "{"


@pytest.mark.parametrize(
    "latex",
    [r"\unknown", r"\frac{1}", "{x", "x}", r"\begin{aligned} a", r"\begin{tikz}\end{tikz}", r"\left( x"],
)
def test_what_is_not_understood_is_an_error(latex: str) -> None:
    with pytest.raises(FormulaError):
        mathml(latex)
