"""What the compiler makes of every kernel, as launched at sizes that matter, for GPUs that are not here."""

from collections.abc import Iterator
from functools import cache

import pytest

from normtutor.lab import compiled
from normtutor.lab.compiled import ARCHITECTURES, Case, Resources, Source

pytestmark = pytest.mark.skipif(bool(compiled.missing()), reason=compiled.missing())

LITTLE = 16  # bytes of a thread, written and read: one kernel has 12; a row that does not fit has hundreds
CONV, LARGE = (256, 64, 56, 56), (16, 64, 256, 256)


def cases(arch: int) -> Iterator[Case]:
    """What is launched; every size fills 64 MiB at least. Most of it for Hopper alone."""
    kinds = {75: {"float32": 4, "float16": 2}, 80: {"bfloat16": 2}}
    widths = (256, 1024, 4096, 8192, 16384, 32768, 65536) if arch == 90 else (1024, 8192, 65536)
    for kind, itemsize in kinds.get(arch, {"float32": 4, "bfloat16": 2, "float16": 2}).items():
        half = kind == "float16"  # differs from bfloat16 by its conversions alone: one width
        for length in (4096,) if half else widths:
            rows = (64 << 20) // (length * itemsize)
            yield Case(f"LN {kind} {length}", (rows, length), dtype=kind)
        yield Case(f"RMS+residual {kind} 4096", (8192, 4096), "rms", kind, residual=True)
        if half:
            continue
        for last in (False, True):
            name = f"{kind}{' last' if last else ''}"
            yield Case(f"BN {name}", CONV, "channel", kind, last=last)
            yield Case(f"BN eval {name}", CONV, "given", kind, last=last)
            yield Case(f"GN {name}", CONV, "channel", kind, groups=8, last=last)
            yield Case(f"IN {name}", CONV, "channel", kind, groups=64, last=last)
            yield Case(f"IN large {name}", LARGE, "channel", kind, groups=64, last=last)
        yield Case(f"GN small {kind}", (256, 256, 16, 16), "channel", kind, groups=32)
        yield Case(f"GN few {kind}", (4, 64, 512, 512), "channel", kind, groups=2)
        yield Case(f"LN few {kind}", (16, 1 << 21), dtype=kind)
        yield Case(f"BN rows {kind}", (65536, 512), "channel", kind)


@cache
def found(arch: int) -> list[Resources]:
    return compiled.resources(list(cases(arch)), arch)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_every_kernel_compiles_and_stays_in_registers(arch: int) -> None:
    rows = found(arch)
    assert {row.kernel for row in rows} == {
        *("forward", "forward_long", "backward", "backward_long"),
        *("partial_statistics", "combine", "apply", "partial_sums", "apply_backward"),
    }
    assert [row for row in rows if row.spilled > LITTLE] == []


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_memory_is_read_and_written_16_bytes_at_a_time(arch: int) -> None:
    large = [row for row in found(arch) if row.kernel != "combine"]  # that one reads what is small
    assert [row for row in large if row.ld < 16] == []
    writers = [row for row in large if not row.kernel.startswith("partial")]  # a chunk's sums are small
    assert [row for row in writers if row.st < 16] == []


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=ARCHITECTURES.get)
def test_enough_threads_fit_a_multiprocessor(arch: int) -> None:
    """65,536 registers: at least 256 threads at once, so that loads can wait for memory side by side."""
    for row in found(arch):
        assert row.threads >= 256, row


def test_a_row_that_is_kept_in_registers_at_any_length_spills() -> None:
    """What the gate above would say of a plan that knew no limit."""
    case = Case("LN 131072", (128, 131072), settings={"FORWARD_TILE": 1 << 20})
    forward, *_ = compiled.resources([case])
    assert forward.kernel == "forward"
    assert forward.spilled > 100


def test_spills_are_the_bytes_that_travel_and_not_the_frame() -> None:
    """Slots of the frame are used again: two values, three times written, are not two times written."""
    code = """
        /*0010*/                   STL [R1+0x14], R4 ;
        /*0020*/              @!P0 STL.64 [R1+0x8], R2 ;
        /*0030*/                   STL.64 [R1+0x8], R6 ;
        /*0040*/                   LDL.LU.128 R8, [R1] ;
        /*0050*/                   LDL.LU R3, [R1+0x14] ;
        /*0060*/                   LDL.U8 R3, [R1+0x14] ;
        /*0070*/                   LDS.128 R8, [R1] ;
    """
    assert compiled._local_bytes("STL", code) == 4 + 8 + 8
    assert compiled._local_bytes("LDL", code) == 16 + 4 + 1


COPY = """
@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)
"""


def test_a_kernel_given_as_text() -> None:
    source = Source("copy", COPY, "copy", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": 1024}, 4)
    (row,) = compiled.resources([source])
    assert (row.case, row.kernel, row.warps, row.spilled) == ("copy", "copy", 4, 0)
    assert 0 < row.registers < 64


def test_a_size_that_is_a_multiple_of_16_allows_wide_loads() -> None:
    pointers = {"x": "*fp32", "y": "*fp32"}
    sizes = [Source(n, COPY, "copy", {**pointers, "n": n}, {"BLOCK": 1024}) for n in ("i32", "i32:16")]
    assert [row.ld for row in compiled.resources(sizes)] == [4, 16]


def test_a_kernel_that_does_not_compile_is_an_error() -> None:
    source = Source("bad", COPY.replace("at < n", "at < m"), "copy", {"x": "*fp32"}, {"BLOCK": 1024})
    with pytest.raises(RuntimeError, match="sm_90 failed"):
        compiled.resources([source])


def test_threads_at_once() -> None:
    def threads(registers: int, warps: int) -> int:
        return Resources("", "", 0, warps, registers, 0, 0, 16, 16).threads

    assert threads(32, 4) == 2048
    assert threads(33, 4) == 1536  # 40 registers each, as they are given out: 51 warps, 48 in whole programs
    assert threads(255, 8) == 256
    assert threads(128, 32) == 0  # 1024 threads of 128 registers: the launch would fail
