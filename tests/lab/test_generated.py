"""The kernels that torch's compiler generates are found, and none that was not built stays in a cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from normtutor.lab import generated_kernels

def layer_norm(x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + 1e-5)

def apart(x):
    return layer_norm(layer_norm(x) @ x.t())

x = torch.randn(16, 64)
(kernel,) = generated_kernels(layer_norm, x)
assert "rsqrt" in kernel.name and "mean" in kernel.name, kernel.name
assert kernel.reads("in_ptr0") == 3, kernel.source  # mean, variance, output
two = generated_kernels(apart, x)
assert len(two) == 2, two  # a matrix product is not fused with what is before it
"""


@pytest.mark.slow
def test_a_formula_becomes_one_kernel(tmp_path: Path) -> None:
    """In a process of its own: the compiler imports Triton, and tests/kernels wants to be first."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a notebook that shows this may print no warning
    assert not {"fxgraph", "aotautograd"} & {path.name for path in tmp_path.iterdir()}
