"""The package's source, shown as it is."""

import ast
from inspect import getsource

import pytest

from normtutor.functional import affine, standardize
from normtutor.lab import show_source
from normtutor.layers import BatchNorm2d, LearnableBatchNorm


def test_a_script_prints_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    show_source(standardize, affine)
    text = capsys.readouterr().out
    assert text.startswith("# normtutor.functional.standardize\ndef standardize(")
    assert getsource(affine).rstrip() in text


def test_a_method_is_dedented_and_a_class_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show_source(BatchNorm2d.forward)
    text = capsys.readouterr().out
    assert "\ndef forward(self, input: Tensor) -> Tensor:\n    self" in text
    compile(text, "shown", "exec")
    show_source(LearnableBatchNorm)
    text = capsys.readouterr().out
    assert "\nclass LearnableBatchNorm(nn.Module):\n" in text
    assert getsource(LearnableBatchNorm.extra_repr).rstrip() in text


@pytest.mark.parametrize("thing", [BatchNorm2d(3), "affine", len, int])
def test_what_has_no_source_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match=r"expected a function, class or method|has no Python source"):
        show_source(thing)


def test_a_docstring_is_cut_to_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_source(standardize, LearnableBatchNorm)
    shown = capsys.readouterr().out
    assert '"""Shift and scale ``input`` to mean 0 and variance 1 over the axes ``dim``."""\n    x =' in shown
    assert "Args:" not in shown
    ast.parse(shown)  # still Python
