"""Which tile, how many warps, how many programs: plain functions of sizes, with no Triton in them.

No autotuning: it costs seconds at every new shape, and the choice would differ from run to run. The numbers
follow from the hardware (65,536 registers to a multiprocessor, 16-byte loads) and from what the compiler
makes of them (tests/kernels/test_compiled.py); they are not tuned by measurements yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

# Elements that a program keeps in registers, at most 1024 threads with 64 registers each.
FORWARD_TILE = 32768  # x
JOINT_TILE = 16384  # x, a set of several rows
BACKWARD_TILE = 16384  # x and ∂y
SUMMING_TILE = 8192  # x, ∂y and the terms of ∂γ and ∂β
SMALL_TILE = 2048  # for sets shorter than this a program takes several
BLOCK_TILE = 4096  # of the loops and of the elementwise kernels
MOST_CHUNKS = 1024  # partial results of one set, which one program combines
SPLIT_BYTES = 512 << 10  # a set above it is shared between programs; a guess, not measured yet
ASSUMED_MULTIPROCESSORS = 132  # where there is no CUDA device: an H100's


@cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return ASSUMED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def warps(tile: int, per_thread: int = 16) -> int:
    """Warps for a tile: ``per_thread`` elements to a thread, 1 to 32 warps."""
    return min(32, max(1, tile // (32 * per_thread)))


def width(length: int, most: int = 1024) -> int:
    """Tile width for rows of ``length``: the widest power of two that leaves at most a tenth of it idle."""
    candidates = [w for w in (2048, 1024, 512, 256, 128, 64) if w <= min(most, power_of_two(length))]
    share = {w: length / (cdiv(length, w) * w) for w in candidates or [power_of_two(length)]}
    return next((w for w, used in share.items() if used >= 0.9), max(share, key=lambda w: share[w]))


@dataclass(frozen=True)
class Tile:
    """A tile of :mod:`rows <normtutor.kernels.rows>`: ``tiles`` of them cover x."""

    rows: int
    block: int
    joint: bool
    tiles: int
    warps: int

    @property
    def constants(self) -> Mapping[str, int]:
        return {"ROWS": self.rows, "BLOCK": self.block, "JOINT": self.joint}


def in_registers(sets: int, per_set: int, length: int, most: int) -> Tile | None:
    """The tile for sets of ``per_set`` rows of ``length``; None where a set has more than ``most``."""
    block, joint = power_of_two(length), per_set > 1
    rows = power_of_two(per_set) if joint else max(1, min(power_of_two(sets), SMALL_TILE // block))
    if rows * block > most:
        return None
    return Tile(rows, block, joint, sets if joint else cdiv(sets, rows), warps(rows * block))


def shared(sets: int, count: int, itemsize: int, device: torch.device) -> bool:
    """Whether sets of ``count`` elements are better spread over several programs each."""
    few = 4 * sets <= multiprocessors(device) and count > BACKWARD_TILE
    return few or count * itemsize > SPLIT_BYTES


def loop(per_set: int, length: int) -> Mapping[str, int]:
    """Tile of a loop over the rows of a set."""
    w = width(length, BLOCK_TILE)
    return {"ROWS": min(power_of_two(per_set), max(1, BLOCK_TILE // w)), "WIDTH": w}


@dataclass(frozen=True)
class Reduction:
    """How a reduction in two stages is spread: arguments and constants of ``blocks.rectangle``.

    Attributes:
        blocks, chunks: the partial results are [blocks, chunks, columns or sets].
        across: programs side by side: tiles of columns, or sets.
    """

    blocks: int
    per_set: int
    step: int
    next_set: int
    length: int
    row_chunks: int
    row_chunk: int
    col_chunks: int
    col_chunk: int
    across: int
    rows: int
    width: int
    columns: bool

    @property
    def chunks(self) -> int:
        return self.row_chunks * self.col_chunks

    @property
    def programs(self) -> int:
        return self.blocks * self.chunks * self.across

    @property
    def results(self) -> int:
        """Partial results in one chunk."""
        return self.length if self.columns else self.across

    @property
    def arguments(self) -> tuple[int, ...]:
        sizes = (self.per_set, self.step, self.next_set, self.length)
        return (*sizes, self.row_chunks, self.row_chunk, self.col_chunks, self.col_chunk, self.across)

    @property
    def constants(self) -> Mapping[str, int]:
        return {"ROWS": self.rows, "WIDTH": self.width, "COLUMNS": self.columns}

    @property
    def warps(self) -> int:
        return warps(self.rows * self.width, 8)


def over_columns(blocks: int, rows: int, columns: int, device: torch.device) -> Reduction:
    """Each column over the ``rows`` rows of each of ``blocks`` blocks."""
    w = min(128, power_of_two(columns))
    tall = min(power_of_two(rows), max(1, BLOCK_TILE // w))
    across = cdiv(columns, w)
    chunks = _chunks(blocks * across, cdiv(rows, tall), 4, device)
    row_chunk = cdiv(cdiv(rows, chunks), tall) * tall
    return Reduction(
        blocks, rows, 1, 0, columns, cdiv(rows, row_chunk), row_chunk, 1, columns, across, tall, w, True
    )


def over_sets(
    sets: int, per_set: int, step: int, next_set: int, length: int, device: torch.device
) -> Reduction:
    """Each of ``sets`` sets over its ``per_set`` rows of ``length``, the rows ``step`` apart."""
    w = width(length, BLOCK_TILE // 2)
    tall = min(power_of_two(per_set), max(1, BLOCK_TILE // w))
    chunks = _chunks(sets, cdiv(per_set, tall) * cdiv(length, w), 2, device)
    row_chunk = cdiv(cdiv(per_set, chunks), tall) * tall
    row_chunks = cdiv(per_set, row_chunk)
    col_chunk = cdiv(cdiv(length, max(1, chunks // row_chunks)), w) * w
    col_chunks = cdiv(length, col_chunk)
    return Reduction(
        1, per_set, step, next_set, length, row_chunks, row_chunk, col_chunks, col_chunk, sets, tall, w, False
    )


def _chunks(programs: int, tiles: int, fewest: int, device: torch.device) -> int:
    """Chunks for each of ``programs``: enough to fill the device four times, of ``fewest`` to 64 tiles each.

    A chunk's deviations are taken from its first tile's mean, so 64 bounds what can cancel in their sum.
    """
    wanted = cdiv(4 * multiprocessors(device), programs)
    return max(1, min(max(min(wanted, tiles // fewest), tiles // 64), MOST_CHUNKS))


def elementwise(length: int) -> Mapping[str, int]:
    """Tile of the kernels that reduce nothing."""
    w = width(length)
    return {"ROWS": max(1, BLOCK_TILE // w), "WIDTH": w}
