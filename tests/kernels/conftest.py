"""Where there is no GPU the kernels run in Triton's interpreter, chosen before Triton is imported.

`make test` sets TRITON_INTERPRET for these tests and runs them in a process of their own: torch's compiler
imports Triton too. Among other tests they skip if that has happened already.
"""

import importlib.metadata
import importlib.util
import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("triton") is None:  # pip install 'normtutor[fused]'
    collect_ignore_glob = ["*.py"]


def _version(package: str) -> tuple[int, ...]:
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


@pytest.fixture(autouse=True)
def _runs() -> None:
    from normtutor.kernels import ops

    if not torch.cuda.is_available() and not ops.INTERPRETED:
        pytest.skip("Triton was imported without TRITON_INTERPRET=1: run tests/kernels by itself")
    if ops.INTERPRETED and _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton below 3.7 cannot run loops with NumPy from 2.4 on")


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["registers", "loop", "shared"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small shapes take the path of large ones: sets that a program holds, finds again in L2, or shares."""
    from normtutor.kernels import plan

    monkeypatch.setattr(plan, "multiprocessors", lambda device: 32 if request.param == "shared" else 1)
    if request.param != "registers":
        for name in ("FORWARD_TILE", "JOINT_TILE", "BACKWARD_TILE", "SUMMING_TILE", "SMALL_TILE"):
            monkeypatch.setattr(plan, name, 4)
        monkeypatch.setattr(plan, "BLOCK_TILE", 32)
    return str(request.param)
