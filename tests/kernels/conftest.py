"""Where there is no GPU the kernels run in Triton's interpreter, chosen before Triton is imported.

`make test` sets TRITON_INTERPRET for these tests and runs them in a process of their own: torch's compiler
imports Triton too. Among other tests they skip if that has happened already.
"""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton", reason="needs Triton: pip install 'normtutor[fused]'")

from normtutor.kernels import ops, plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _runs() -> None:
    if not torch.cuda.is_available() and not ops.INTERPRETED:
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: run tests/kernels by itself")


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(params=["registers", "loop", "shared"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small shapes take the path of large ones: sets that a program holds, finds again in L2, or shares."""
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 1 if request.param != "shared" else 256)
    if request.param != "registers":
        for name in ("FORWARD_TILE", "JOINT_TILE", "BACKWARD_TILE", "SUMMING_TILE"):
            monkeypatch.setattr(plan, name, 4)
        monkeypatch.setattr(plan, "SMALL_TILE", 4)
        monkeypatch.setattr(plan, "BLOCK_TILE", 16)
    return str(request.param)
