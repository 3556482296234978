"""One row per technique: what it is called, where it comes from, and how to build it beside torch's own.

The parity tests, the benchmark, the networks, the site's index and the command line read these rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normtutor import functional, layers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Technique:
    """A normalization technique.

    Attributes:
        name: the short name used on the command line and as a network's ``norm``.
        title: the name in prose.
        paper: authors and year; ``url`` points at it.
        index_set: the axes of (N, C, H, W) whose elements share one mean and one variance.
        function: the pure function in :mod:`normtutor.functional`.
        layer: our layer for an input of a given shape.
        twin: torch's layer for the same.
        ranks: the input ranks for which the layer is defined; a network leaves it out elsewhere.
        modes: ``("train", "eval")`` where the two differ.
        forward_passes, backward_passes: how often an algorithm at its best reads or writes a tensor of
            the input's size once that no longer fits the last-level cache, and is reduced over
            elements that no single block holds.
        notebook: the chapter's name, and of its exercises' module.
        parity_shapes, bench_shapes: inputs that the parity table and the benchmark use.
    """

    name: str
    title: str
    paper: str
    url: str
    index_set: str
    function: Callable[..., object]
    layer: Callable[[Shape], nn.Module]
    twin: Callable[[Shape], nn.Module]
    ranks: tuple[int, ...]
    modes: tuple[str, ...]
    forward_passes: int
    backward_passes: int
    notebook: str
    parity_shapes: tuple[Shape, ...]
    bench_shapes: tuple[Shape, ...]


def _per_rank(by_rank: dict[int, type[nn.Module]]) -> Callable[[Shape], nn.Module]:
    """A factory for layers that take the number of channels and come in one class per rank."""
    return lambda shape: by_rank[len(shape)](shape[1])


BATCH = Technique(
    name="batch",
    title="Batch Normalization",
    paper="Ioffe & Szegedy 2015",
    url="https://arxiv.org/abs/1502.03167",
    index_set="N, H, W",
    function=functional.batch_norm,
    layer=_per_rank(
        {2: layers.BatchNorm1d, 3: layers.BatchNorm1d, 4: layers.BatchNorm2d, 5: layers.BatchNorm3d}
    ),
    twin=_per_rank({2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}),
    ranks=(2, 3, 4, 5),
    modes=("train", "eval"),
    forward_passes=3,  # read x for the statistics, read x again, write y
    backward_passes=5,  # read x and ∂y for two sums, read both again, write ∂x
    notebook="batch_norm",
    parity_shapes=((64, 8), (8, 6, 16), (4, 6, 8, 8), (2, 4, 4, 6, 6)),
    bench_shapes=((16, 64, 32, 32), (32, 128, 14, 14), (8, 64, 64, 64), (64, 64, 56, 56)),
)

TECHNIQUES: dict[str, Technique] = {row.name: row for row in (BATCH,)}


def technique(name: str) -> Technique:
    """The row called ``name``.

    Raises:
        ValueError: no technique has that name; the message lists those that exist.
    """
    if name not in TECHNIQUES:
        raise ValueError(f"unknown technique {name!r}: expected one of {', '.join(TECHNIQUES)}")
    return TECHNIQUES[name]
