"""What the compiler makes of every kernel, as launched at sizes that matter, for GPUs that are not here."""

import importlib.metadata
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TRITON = tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))
# The kernels themselves compile with 3.2 too; the compiler's own interface, used here, was another then.
pytestmark = pytest.mark.skipif(TRITON < (3, 6), reason="needs the compiler's interface of Triton 3.6")

ARCHITECTURES = {75: "T4", 80: "A100", 90: "H100, H200"}
STACK = 16  # bytes: what ptxas uses at times without any need; a row that does not fit takes hundreds


@cache
def compiled(arch: int) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("ahead.py")), str(arch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_every_kernel_compiles_and_stays_in_registers(arch: int) -> None:
    rows = compiled(arch)
    assert {row["kernel"] for row in rows} == {
        *("forward", "forward_long", "backward", "backward_long"),
        *("partial_statistics", "combine", "apply", "partial_sums", "apply_backward"),
    }
    assert [row for row in rows if row["spilled"] > STACK] == []


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_memory_is_read_and_written_16_bytes_at_a_time(arch: int) -> None:
    large = [row for row in compiled(arch) if row["kernel"] != "combine"]  # that one reads what is small
    assert [row for row in large if row["ld"] < 16] == []
    writers = [row for row in large if not row["kernel"].startswith("partial")]  # a chunk's sums are small
    assert [row for row in writers if row["st"] < 16] == []


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_enough_threads_fit_a_multiprocessor(arch: int) -> None:
    """65,536 registers: at least 256 threads at once, so that loads can wait for memory side by side."""
    for row in compiled(arch):
        threads = 32 * row["warps"]
        at_once = 65536 // (row["registers"] * threads) * threads
        assert at_once >= 256, row
