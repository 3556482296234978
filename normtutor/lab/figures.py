"""Figures with one look: a fixed colour per technique, labels at the lines, readable on a phone.

Every function that makes a figure returns it closed, so that a notebook shows it once, where it is the
last value of a cell, and a script neither opens a window nor keeps it in memory.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from normtutor.catalog import TECHNIQUES
from normtutor.lab.machine import in_notebook
from normtutor.lab.text import number

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from normtutor.lab.timing import Timing, Timings

INK = "#222222"
GREY = "#6e6e6e"

# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/: told apart with every common colour blindness.
TECHNIQUE_COLOURS = {
    "batch": "#0072B2",
    "layer": "#D55E00",
    "group": "#009E73",
    "instance": "#CC79A7",
    "rms": "#56B4E9",
    "weight": "#E69F00",
    "none": GREY,
}
# Tol's muted scheme, https://sronpersonalpages.nl/~pault/: implementations are not techniques.
CANDIDATE_COLOURS = {
    "torch.nn": "#332288",
    "eager": "#882255",
    "compiled": "#117733",
    "fused": "#CC6677",
    "torch.nn compiled": "#44AA99",
    "Liger-Kernel": "#999933",
    "quack": "#AA4499",
    "apex": "#88CCEE",
}
MARKERS = "osD^vPXd"


def colour(name: str) -> str:
    """The fixed colour of a technique or of a timed candidate; dark ink for any other name."""
    return TECHNIQUE_COLOURS.get(name) or CANDIDATE_COLOURS.get(name) or INK


def use_style() -> None:
    """Set matplotlib's look; in a notebook scalable inline figures, in a script none that opens a window."""
    if not in_notebook() and "MPLBACKEND" not in os.environ:
        import matplotlib

        matplotlib.use("Agg")  # a window would halt the script until somebody closes it
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "figure.figsize": (4.8, 3.1),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",  # opaque: the same on a light and on a dark page
            "savefig.facecolor": "white",
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": GREY,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e3e3e3",
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "axes.prop_cycle": cycler(color=list(TECHNIQUE_COLOURS.values())),
            "svg.hashsalt": "normtutor",  # the same figure gives the same file
        }
    )
    if in_notebook() and find_spec("matplotlib_inline"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats(  # type: ignore[no-untyped-call]
            "svg", bbox_inches="tight", metadata={"Date": None}
        )


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
    colours: Mapping[str, str] | None = None,
    markers: bool = False,
) -> "Figure":
    """One line per entry of ``lines`` (name → x, y), labelled at its end, in the name's fixed colour.

    Args:
        lines: a name that :func:`colour` does not know takes its colour from ``colours``.
        xlabel, ylabel: the quantity and its unit.
        title: the figure's message.
        xscale, yscale: "linear" or "log".
        markers: mark the points.
    """
    figure, axes = _subplots()
    for i, (name, (x, y)) in enumerate(lines.items()):
        shade = (colours or {}).get(name) or colour(name)
        axes.plot(x, y, color=shade, label=name, marker=MARKERS[i % len(MARKERS)] if markers else None)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale=xscale, yscale=yscale)
    if xscale == "log":
        _name_points(axes, {float(value) for x, _ in lines.values() for value in x})
    if yscale == "log":
        _plain_numbers(axes)
    label_lines(axes)
    return _closed(figure)


def _name_points(axes: "Axes", points: set[float]) -> None:
    """On a logarithmic x axis of less than two decades, name the points instead of powers of ten."""
    if max(points) < 100 * min(points):
        axes.set_xticks(sorted(points), [number(point) for point in sorted(points)])
        axes.set_xticks([], minor=True)


def _plain_numbers(axes: "Axes") -> None:
    """Write 0.5 instead of 5 × 10⁻¹ on a logarithmic y axis of less than three decades."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return number(float(x)) if super().__call__(x, pos) else ""  # it knows where labels fit

    low, high = axes.get_ylim()
    if high < 1000 * low:
        axes.yaxis.set_major_formatter(Plain())
        axes.yaxis.set_minor_formatter(Plain())


def label_lines(axes: "Axes", names: Iterable[str] | None = None) -> None:
    """Write each line's name beside its right end, in its colour, without overlap; no legend is needed.

    Args:
        axes: its lines have labels; those that matplotlib would leave out of a legend get none. Call this
            last, when limits and scales are set.
        names: only these.
    """
    wanted = None if names is None else set(names)
    figure: Any = axes.figure
    figure.draw_without_rendering()  # settles the layout, on which the labels' places depend
    ends = []
    for line in axes.get_lines():
        name = str(line.get_label())
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        shown = np.isfinite(x) & np.isfinite(y)
        if not name.startswith("_") and shown.any() and (wanted is None or name in wanted):
            at = (float(x[shown][-1]), float(y[shown][-1]))
            ends.append((axes.transData.transform(at)[1], at, name, line.get_color()))
    if not ends:
        return
    ends.sort(key=lambda end: end[0])
    points = 72 / figure.dpi
    low, high = axes.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    heights = _spread([end[0] for end in ends], low + 6 / points, high, gap=13.5 / points)
    right = max(axes.transData.transform(end[1])[0] for end in ends)
    for height, (y, at, name, shade) in zip(heights, ends, strict=True):
        here = axes.transData.transform(at)[0]
        axes.annotate(
            name,
            at,
            xytext=((right - here) * points + 7, (height - y) * points),
            textcoords="offset points",
            color=_dark(shade),
            va="center",
            fontsize=11.5,
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """The nearest heights from ``low`` to ``high`` that are ``gap`` apart: what collides moves as one."""
    blocks: list[list[float]] = []  # heights of each block, every one less the gaps below it
    for i, height in enumerate(heights):
        blocks.append([height - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [float(np.mean(block)) for block in blocks for _ in block]
    ceiling = max(high - gap * (len(heights) - 1), low)
    return [min(max(height, low), ceiling) + i * gap for i, height in enumerate(level)]


def index_set(*techniques: str) -> "Figure":
    """The cube (N, C, H·W) of an activation, with the elements that share one mean and variance coloured.

    Args:
        techniques: catalog names ("batch") or index sets ("N, H, W"), one cube each.

    Raises:
        ValueError: no technique, or an unknown one.
    """
    if not techniques:
        raise ValueError("expected at least one technique")
    sets = [_index_set_of(name) for name in techniques]
    columns = min(len(sets), 2)
    rows = -(-len(sets) // columns)
    figure, grid = _subplots(rows, columns, figsize=(3.2 * columns, 2.9 * rows), squeeze=False)
    for axes in grid.flat[len(sets) :]:
        axes.remove()
    for axes, name, (title, axis_names) in zip(grid.flat, techniques, sets, strict=False):
        _cube(axes, axis_names, TECHNIQUE_COLOURS.get(name, TECHNIQUE_COLOURS["batch"]))
        axes.set_title(f"{title}\nS: same {_fixed(axis_names)}", color=INK, fontsize=11)
    return _closed(figure)


def roofline(
    timings: "Timings",
    direction: str = "forward+backward",
    dtype: str | None = None,
    layout: str = "contiguous",
) -> "Figure":
    """How near each candidate comes to the memory's limit: fraction of the copy bandwidth against the
    tensor's size.

    Args:
        timings: of :func:`normtutor.lab.bench`, measured or recorded.
        direction: "forward" or "forward+backward".
        dtype: default: the first that was timed.
        layout: "contiguous" or "channels_last".

    Raises:
        ValueError: nothing was timed for that direction, dtype and layout.
    """
    timed = [
        row for row in timings.select(direction=direction, layout=layout, captured=False) if not row.reason
    ]
    kind = dtype or (timed[0].dtype if timed else "")
    timed = [row for row in timed if row.dtype == kind]
    if not timed:
        raise ValueError(f"nothing was timed for {direction} in {kind or 'any dtype'}, {layout}")
    figure, axes = _subplots()
    for i, name in enumerate(dict.fromkeys(row.candidate for row in timed)):
        rows = sorted((row for row in timed if row.candidate == name), key=_tensor_megabytes)
        x, y = [_tensor_megabytes(row) for row in rows], [row.fraction for row in rows]
        axes.plot(x, y, color=colour(name), marker=MARKERS[i % len(MARKERS)], label=name)
    axes.axhline(1, color=GREY, linewidth=1.2, linestyle="--")
    limit = f"copy: {number(timings.copy_bandwidth / 1e9)} GB/s"
    axes.annotate(
        limit,
        (0.01, 1),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=GREY,
    )
    sizes = [_tensor_megabytes(row) for row in timed]
    if min(sizes) < timings.cache_bytes / 2**20 < max(sizes):
        axes.axvline(timings.cache_bytes / 2**20, color=GREY, linewidth=1.2, linestyle=":")
        axes.annotate(
            "cache",
            (timings.cache_bytes / 2**20, 0.8),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            color=GREY,
            rotation=90,
            ha="right",
            va="top",
        )
    axes.set(
        xscale="log",
        xlabel="tensor size (MiB)",
        ylabel="fraction of copy bandwidth",
        ylim=(0, max(1.15, 1.08 * max(row.fraction for row in timed))),
        title=f"{timings.technique}, {direction}, {kind}",
    )
    _name_points(axes, {*map(_tensor_megabytes, timed)})
    label_lines(axes)
    return _closed(figure)


def recorded_roofline(
    technique: str,
    direction: str = "forward+backward",
    dtype: str | None = None,
    folder: "Path | None" = None,
) -> "Figure":
    """:func:`roofline` of a technique's newest recorded GPU run; empty axes that say so if there is none.

    Args:
        technique: a catalog row's name.
        direction: "forward" or "forward+backward".
        dtype: default: the first that was timed.
        folder: of the records; default: the package's.
    """
    from normtutor.lab.evidence import NOT_MEASURED, recorded_timings

    for timings in recorded_timings(technique, folder):
        timed = [row for row in timings.select(direction=direction) if not row.reason]
        if any(dtype in (None, row.dtype) for row in timed):
            figure = roofline(timings, direction, dtype)
            axes = figure.axes[0]
            axes.set_title(f"{axes.get_title()}\n{timings.provenance['device']}")
            return figure
    figure, axes = _subplots()
    axes.axhline(1, color=GREY, linewidth=1.2, linestyle="--")
    axes.annotate("copy", (0.01, 1), xycoords=("axes fraction", "data"), xytext=(0, 3),
                  textcoords="offset points", color=GREY)  # fmt: skip
    axes.text(0.5, 0.45, NOT_MEASURED, transform=axes.transAxes, ha="center", va="center", color=INK)
    axes.set(
        xscale="log",
        xlim=(1, 1000),
        ylim=(0, 1.15),
        xlabel="tensor size (MiB)",
        ylabel="fraction of copy bandwidth",
        title=f"{technique}, {direction}",
    )
    return _closed(figure)


def _tensor_megabytes(row: "Timing") -> float:
    import torch

    itemsize: int = getattr(torch, row.dtype).itemsize
    return math.prod(row.shape) * itemsize / 2**20


def _subplots(*args: int, **options: Any) -> "tuple[Figure, Any]":
    use_style()
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(*args, **options)
    return figure, axes


def _closed(figure: "Figure") -> "Figure":
    import matplotlib.pyplot as plt

    plt.close(figure)
    return figure


def _dark(shade: Any) -> "tuple[float, float, float]":
    """The shade, dark enough for text on white (contrast of 4.5 and more)."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(shade))
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    while linear @ (0.2126, 0.7152, 0.0722) > 1.05 / 4.6 - 0.05:
        rgb = rgb * 0.95
        linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return (float(rgb[0]), float(rgb[1]), float(rgb[2]))


def _index_set_of(name: str) -> tuple[str, set[str]]:
    """Title and axis names of a technique or of an index set written out."""
    row = TECHNIQUES.get(name)
    axes = row.index_set if row else name
    names = {axis.strip() for axis in axes.split(",")}
    if not names <= {"N", "C", "C/G", "H", "W"}:
        known = ", ".join(TECHNIQUES)
        raise ValueError(
            f'unknown technique {name!r}: expected one of {known}, or an index set like "N, H, W"'
        )
    return row.title if row else f"over {axes}", names


def _fixed(axes: set[str]) -> str:
    """What the elements of one set have in common: "channel", "sample and group" …"""
    common = [] if "N" in axes else ["sample"]
    common += ["group"] if "C/G" in axes else [] if "C" in axes else ["channel"]
    common += [] if axes & {"H", "W"} else ["position"]
    return " and ".join(common) or "tensor"


def _cube(axes: "Axes", names: set[str], shade: str) -> None:
    """N to the right, C into the depth, H·W upwards; the set that is coloured touches the visible faces."""
    from matplotlib.collections import PolyCollection

    samples, channels, positions = 4, 6, 4
    right, depth, up = np.array([1.0, 0.0]), np.array([0.42, 0.36]), np.array([0.0, 1.0])

    def coloured(n: int, c: int, p: int) -> bool:
        in_group = c < channels // 2 if "C/G" in names else "C" in names or c == 0
        return (
            ("N" in names or n == samples - 1)
            and in_group
            and (bool(names & {"H", "W"}) or p == positions - 1)
        )

    def tile(n: float, c: float, p: float, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
        corner = n * right + c * depth + p * up
        return [corner, corner + first, corner + first + second, corner + second]

    tiles, inside, tones = [], [], []
    for n in range(samples):
        for p in range(positions):
            tiles.append(tile(n, 0, p, right, up))  # the front: first channel
            inside.append(coloured(n, 0, p))
            tones.append(0.0)
        for c in range(channels):
            tiles.append(tile(n, c, positions, right, depth))  # the top: last position
            inside.append(coloured(n, c, positions - 1))
            tones.append(0.35)
    for c in range(channels):
        for p in range(positions):
            tiles.append(tile(samples, c, p, depth, up))  # the side: last sample
            inside.append(coloured(samples - 1, c, p))
            tones.append(0.18)
    from matplotlib.colors import to_rgb

    full, empty, white = np.array(to_rgb(shade)), np.array([0.93, 0.93, 0.93]), np.ones(3)
    faces = [
        full + (white - full) * tone if chosen else empty + (white - empty) * tone
        for chosen, tone in zip(inside, tones, strict=True)
    ]
    axes.add_collection(PolyCollection(tiles, facecolors=faces, edgecolors=GREY, linewidths=0.7))
    far = samples * right + channels * depth
    middle = samples * right + 0.5 * channels * depth
    axes.text(samples / 2, -0.2, "N", ha="center", va="top", fontsize=12)
    axes.text(-0.25, positions / 2, "H·W", ha="right", va="center", fontsize=12, rotation=90)
    axes.text(middle[0] + 0.3, middle[1] - 0.15, "C", ha="left", va="top", fontsize=12)
    axes.set(xlim=(-1.0, far[0] + 0.2), ylim=(-0.9, far[1] + positions + 0.2), aspect="equal")
    axes.axis("off")
