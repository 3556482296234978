"""The kernels that torch's compiler generates are found, and can still be built afterwards."""

import subprocess
import sys

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
def test_a_formula_becomes_one_kernel() -> None:
    """In a process of its own: the compiler imports Triton, and tests/kernels wants to be first."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a notebook that shows this may print no warning
