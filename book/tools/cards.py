"""Pictures for other programs: a card per chapter, shown where a link is shared, and a touch icon."""

import math
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from address import ROOT
from normtutor.catalog import CHAPTERS, TECHNIQUES
from normtutor.lab.figures import GREY, INK, TECHNIQUE_COLOURS, _cube, _fixed, _index_set_of

FOUR = ("batch", "layer", "instance", "group")
SIZE = (1200, 630)  # what every service that shows previews asks for
FORMULA = r"$\hat{x}_i = \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \varepsilon}}$"
LENGTH = r"$w = g\,\frac{v}{\Vert v\Vert}$"


def write_all(folder: Path, subtitle: str) -> None:
    """A card per chapter, NAME.png, the course's own, course.png, and the touch icon."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, title in CHAPTERS.items():
        save(chapter_card(name, title), folder / f"{name}.png")
    save(course_card("normtutor", subtitle), folder / "course.png")
    save(touch_icon(ROOT / "book" / "static" / "favicon.svg"), folder / "touch.png")


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # matplotlib's name and version: nobody asked
    plt.close(figure)


def canvas() -> tuple[Figure, Axes]:
    """A card, and axes over all of it in pixels."""
    figure = plt.figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
    axes.axis("off")
    return figure, axes


def cube(figure: Figure, name: str, box: tuple[float, float, float, float]) -> None:
    """A technique's index set, in ``box`` (left, bottom, width, height in pixels)."""
    left, bottom, width, height = box
    axes = figure.add_axes((left / SIZE[0], bottom / SIZE[1], width / SIZE[0], height / SIZE[1]))
    _cube(axes, _index_set_of(name)[1], TECHNIQUE_COLOURS[name])
    for text in axes.texts:  # a preview is shown at a third of its size
        text.set_fontsize(22 if width > 400 else 15)


def chapter_card(name: str, title: str) -> Figure:
    taught = [row.name for row in TECHNIQUES.values() if row.notebook == name]
    if not taught and name != "weight_norm":
        return course_card(title, "normtutor")
    figure, axes = canvas()
    shade = TECHNIQUE_COLOURS[taught[0] if taught else "weight"]
    axes.add_patch(Rectangle((0, 0), 24, SIZE[1], color=shade, linewidth=0))
    lines = textwrap.fill(title, 14)
    axes.text(80, 560, lines, fontsize=50, weight="bold", color=INK, va="top", linespacing=1.15)
    axes.text(80, 280, FORMULA if taught else LENGTH, fontsize=46, color=INK, va="center")
    if taught:  # LayerNorm and RMSNorm share their set: one cube says it
        shared = f"One mean and variance\nper {_fixed(_index_set_of(taught[0])[1])}"
        cube(figure, taught[0], (650, 75, 520, 520))
    else:
        shared = "Length and direction,\nlearned apart"
        arrows(figure, shade)
    axes.text(80, 135, shared, fontsize=23, color=INK, va="center")
    axes.text(80, 50, "normtutor", fontsize=23, color=GREY, va="center")
    return figure


def course_card(title: str, subtitle: str) -> Figure:
    figure, axes = canvas()
    axes.text(60, 585, title, fontsize=46, weight="bold", color=INK, va="top")
    axes.text(60, 475, subtitle, fontsize=25, color=INK, va="center")
    for number, name in enumerate(FOUR):
        left, width = 30 + 285 * number, 285
        cube(figure, name, (left, 105, width, 310))
        axes.add_patch(Rectangle((left + 30, 40), width - 60, 8, color=TECHNIQUE_COLOURS[name], linewidth=0))
        axes.text(left + width / 2, 80, name.capitalize(), fontsize=25, color=INK, ha="center", va="center")
    return figure


def arrows(figure: Figure, shade: str) -> None:
    """Weight Normalization: vectors of every length, and the one length that is left of them."""
    axes = figure.add_axes((650 / SIZE[0], 75 / SIZE[1], 520 / SIZE[0], 520 / SIZE[1]))
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, linewidth=1.5, linestyle="--"))
    style = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 28}
    for x, y in [(1.25, 0.75), (-0.35, 0.45), (-1.3, -0.35), (0.25, -0.5), (0.3, 1.4)]:
        length = math.hypot(x, y)
        for scale, shown, width in [(1, "#bbbbbb", 3), (1 / length, shade, 5)]:
            arrow = style | {"color": shown, "linewidth": width}
            axes.annotate("", (x * scale, y * scale), (0, 0), arrowprops=arrow)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    axes.axis("off")


def touch_icon(svg: Path) -> Figure:
    """The favicon as phones want it on their home screen: 180 pixels, opaque."""
    figure = plt.figure(figsize=(1.8, 1.8), dpi=100, facecolor="white")
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    for square in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}rect"):
        x, y, width, height = (float(square.attrib[key]) for key in ("x", "y", "width", "height"))
        axes.add_patch(Rectangle((x, y), width, height, color=square.attrib["fill"], linewidth=0))
    axes.set(xlim=(0, 32), ylim=(32, 0))
    axes.axis("off")
    return figure
