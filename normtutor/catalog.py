"""One row per technique: what it is called, where it comes from, and how to build it beside torch's own.

The parity tests, the benchmark, the networks, the site's index and the command line read these rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normtutor import functional, layers

Shape = tuple[int, ...]

# The chapters in reading order, with their titles: notebooks/NAME.py, and a module of exercises of that name.
CHAPTERS = {
    "one_formula": "One Formula, Four Index Sets",
    "batch_norm": "Batch Normalization",
    "layer_norm": "Layer Normalization",
    "instance_norm": "Instance Normalization",
    "group_norm": "Group Normalization",
    "weight_norm": "Weight Normalization",
    "choosing": "Choosing a Normalization",
    "fused_kernels": "Fused Kernels",
}


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
            the input's size once that no longer fits the last-level cache: 2 and 3 where one block holds all
            elements that share statistics (it reads x once), more where none does.
        notebook: the chapter that teaches it, one of ``CHAPTERS``.
        parity_shapes, bench_shapes: inputs that the parity table and the benchmark use.
        large_shapes: inputs that the benchmark adds on a GPU: 64 MiB and more in half precision, and small
            batches.
        sets: number of sets S_i, of elements that share statistics, in an input of a given shape.
        centred: the mean is subtracted; without it the mean of x² takes the variance's place.
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
    large_shapes: tuple[Shape, ...]
    sets: Callable[[Shape], int]
    centred: bool = True


# Rows of a transformer, 256 to 65,536 wide, 64 MiB each in half precision; then few of them.
ROWS: tuple[Shape, ...] = (
    *((131072, 256), (32768, 1024), (8192, 4096), (4096, 8192), (2048, 16384), (1024, 32768), (512, 65536)),
    *((32, 4096), (16, 65536)),
)
# Maps of a convolutional network, late to early, 64 MiB and more in half precision; then small batches.
MAPS: tuple[Shape, ...] = (
    *((336, 2048, 7, 7), (168, 1024, 14, 14), (84, 512, 28, 28), (42, 256, 56, 56), (42, 64, 112, 112)),
    *((11, 64, 224, 224), (2, 2048, 7, 7), (1, 64, 224, 224)),
)


def groups(channels: int, most: int = 8) -> int:
    """G for Group Normalization: the largest divisor of ``channels`` up to ``most`` (the seed's 8)."""
    return max(g for g in range(1, most + 1) if channels % g == 0)


def _per_rank(by_rank: dict[int, type[nn.Module]], **options: object) -> Callable[[Shape], nn.Module]:
    """A factory for layers that take the number of channels and come in one class per rank."""
    return lambda shape: by_rank[len(shape)](shape[1], **options)


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
    large_shapes=MAPS,
    sets=lambda shape: shape[1],
)

LAYER = Technique(
    name="layer",
    title="Layer Normalization",
    paper="Ba, Kiros & Hinton 2016",
    url="https://arxiv.org/abs/1607.06450",
    index_set="C, H, W",
    function=functional.layer_norm,
    layer=lambda shape: layers.LayerNorm(shape[1:]),
    twin=lambda shape: nn.LayerNorm(shape[1:]),
    ranks=(2, 3, 4, 5),
    modes=("train",),
    forward_passes=2,  # read x, write y
    backward_passes=3,  # read x and ∂y, write ∂x
    notebook="layer_norm",
    parity_shapes=((24, 64), (6, 8, 16), (3, 6, 8, 8), (2, 4, 4, 6, 6)),
    # The seed's transformer (16·20 tokens of 512 features), larger ones, and the seed's comparison.
    bench_shapes=((320, 512), (16, 64, 32, 32), (2560, 512), (2048, 4096)),
    large_shapes=ROWS,
    sets=lambda shape: shape[0],
)

RMS = Technique(
    name="rms",
    title="RMS Normalization",
    paper="Zhang & Sennrich 2019",
    url="https://arxiv.org/abs/1910.07467",
    index_set="C, H, W",
    function=functional.rms_norm,
    layer=lambda shape: layers.RMSNorm(shape[1:], eps=1e-6),  # ε said: torch's None changed its meaning
    twin=lambda shape: nn.RMSNorm(shape[1:], eps=1e-6),
    ranks=(2, 3, 4, 5),
    modes=("train",),
    forward_passes=2,
    backward_passes=3,
    notebook="layer_norm",
    parity_shapes=((24, 64), (6, 8, 16), (3, 6, 8, 8), (2, 4, 4, 6, 6)),
    bench_shapes=((320, 512), (2560, 512), (2048, 4096)),
    large_shapes=ROWS,
    sets=lambda shape: shape[0],
    centred=False,
)

INSTANCE = Technique(
    name="instance",
    title="Instance Normalization",
    paper="Ulyanov, Vedaldi & Lempitsky 2016",
    url="https://arxiv.org/abs/1607.08022",
    index_set="H, W",
    function=functional.instance_norm,
    # γ and β learned, as in the seed; torch's own default is without.
    layer=_per_rank(
        {3: layers.InstanceNorm1d, 4: layers.InstanceNorm2d, 5: layers.InstanceNorm3d}, affine=True
    ),
    twin=_per_rank({3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}, affine=True),
    ranks=(3, 4, 5),  # (N, C) has one value per sample and channel
    modes=("train",),
    forward_passes=2,
    backward_passes=3,
    notebook="instance_norm",
    parity_shapes=((8, 6, 16), (4, 6, 8, 8), (2, 4, 4, 6, 6)),
    bench_shapes=((16, 64, 32, 32), (4, 3, 64, 64), (1, 64, 256, 256), (32, 64, 56, 56)),
    large_shapes=MAPS,
    sets=lambda shape: shape[0] * shape[1],
)

GROUP = Technique(
    name="group",
    title="Group Normalization",
    paper="Wu & He 2018",
    url="https://arxiv.org/abs/1803.08494",
    index_set="C/G, H, W",
    function=functional.group_norm,
    layer=lambda shape: layers.GroupNorm(groups(shape[1]), shape[1]),
    twin=lambda shape: nn.GroupNorm(groups(shape[1]), shape[1]),
    ranks=(3, 4, 5),  # on (N, C) the seed leaves it out
    modes=("train",),
    forward_passes=2,
    backward_passes=3,
    notebook="group_norm",
    parity_shapes=((8, 16, 16), (4, 12, 8, 8), (2, 16, 3, 6, 6)),
    bench_shapes=((16, 64, 32, 32), (32, 128, 14, 14), (8, 64, 64, 64), (32, 64, 56, 56)),
    large_shapes=MAPS,
    sets=lambda shape: shape[0] * groups(shape[1]),
)

# Weight Normalization has no row: it normalizes no activation, so it has no index set and no place in a
# network beside the others; see normtutor.layers.WeightNormLinear and its siblings.
TECHNIQUES: dict[str, Technique] = {row.name: row for row in (BATCH, LAYER, RMS, INSTANCE, GROUP)}


def technique(name: str) -> Technique:
    """The row called ``name``.

    Raises:
        ValueError: no technique has that name; the message lists those that exist.
    """
    if name not in TECHNIQUES:
        raise ValueError(f"unknown technique {name!r}: expected one of {', '.join(TECHNIQUES)}")
    return TECHNIQUES[name]
