"""Rivals are compared where they can be, and named where they cannot."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from normtutor.catalog import TECHNIQUES
from normtutor.lab import bench, rivals


class QuackRMSNorm(nn.RMSNorm):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps)


@pytest.fixture
def quack(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("quack", "quack.rmsnorm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["quack.rmsnorm"].QuackRMSNorm = QuackRMSNorm  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_rival_is_compared_or_named(name: str) -> None:
    found, absent = rivals.layers(name)
    assert {*found, *absent} == set(rivals.NAMES)
    assert all(absent.values())


@pytest.mark.parametrize("shape", [(3, 8), (2, 4, 2, 3)])
def test_one_that_is_installed_gets_the_rows_of_the_input(quack: None, shape: tuple[int, ...]) -> None:
    found, absent = rivals.layers("rms")
    assert "quack" not in absent
    x = torch.randn(shape)
    torch.testing.assert_close(found["quack"](shape)(x), TECHNIQUES["rms"].twin(shape)(x))


def test_one_that_lacks_what_it_needs_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.MODULES, "quack", "normtutor.no_such_module")
    assert (
        rivals.layers("rms")[1]["quack"] == "cannot be imported: No module named 'normtutor.no_such_module'"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they are compared")
def test_on_a_cpu_the_table_names_them_in_one_line() -> None:
    found = bench("layer", shapes=[(2, 4)], seconds=0)
    assert "not compared: fused, Liger-Kernel, quack, apex (needs a CUDA device)" in str(found)
