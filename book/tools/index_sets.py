"""Which elements share statistics: the picture of the four index sets, and the figure to play with.

Both are made at build from the catalog's rows. The figure's numbers come from the package, so a reader
without JavaScript sees them too; book/static/index_sets.js computes them again for other choices.
"""

import html
import itertools
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

INTRODUCTION = "book/introduction"
EPS = 1e-5
MINUS, HYPHEN = "−", "-"
SHAPE = (3, 4, 2, 2)
# Channel 1 is channel 0 doubled; sample 1 is sample 0 with three times the contrast, sample 2 is 20 brighter:
# what a technique forgets is seen at a glance.
SAMPLE = ((1, 3, 5, 7), (2, 6, 10, 14), (4, 0, -2, 6), (9, 8, 9, 10))
EXAMPLE = tuple(
    scale * value + shift for scale, shift in ((1, 0), (3, 0), (1, 20)) for plane in SAMPLE for value in plane
)
SELECTED = (0, 1, 0, 1)


# ------------------------------------------------------------------------------------------ from the catalog
@cache
def techniques() -> list[dict[str, Any]]:
    """The catalog's rows, as far as a figure needs them."""
    from normtutor.catalog import TECHNIQUES  # here: it imports torch, which other builders do not need
    from normtutor.lab.figures import TECHNIQUE_COLOURS

    return [
        {
            "name": row.name,
            "title": row.title,
            "axes": row.index_set.split(", "),
            "centred": row.centred,
            "colour": TECHNIQUE_COLOURS[row.name],
            "ink": ink(TECHNIQUE_COLOURS[row.name]),
            "notebook": row.notebook,
        }
        for row in TECHNIQUES.values()
    ]


def ink(colour: str) -> str:
    """Black or white, whichever is read more easily on ``colour``."""
    linear = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#fff"


def short(title: str) -> str:
    return title.removesuffix(" Normalization")


def divisors(channels: int) -> list[int]:
    return [g for g in range(1, channels + 1) if channels % g == 0]


def key(axes: list[str], index: tuple[int, ...], channels: int, groups: int) -> tuple[int, ...]:
    """What all elements of one set have in common: the indices that its axes leave fixed."""
    n, c, h, w = index
    fixed = [] if "N" in axes else [n]
    fixed += [c // (channels // groups)] if "C/G" in axes else [] if "C" in axes else [c]
    return (*fixed, *([] if "H" in axes else [h]), *([] if "W" in axes else [w]))


def common(axes: list[str]) -> str:
    """The same in words."""
    fixed = [] if "N" in axes else ["sample"]
    fixed += ["group"] if "C/G" in axes else [] if "C" in axes else ["channel"]
    return "same " + " and ".join(fixed)


def preset(docname: str) -> dict[str, Any] | None:
    """The technique that a page's figure begins with; None for a page that gets no figure."""
    if docname in (INTRODUCTION, "notebooks/one_formula"):
        return techniques()[0]
    return next((row for row in techniques() if docname == f"notebooks/{row['notebook']}"), None)


# ---------------------------------------------------------------------------------------------- the picture
def picture(links: dict[str, str]) -> str:
    """The index sets side by side; techniques of one set share a cube. ``links``: notebook → its page."""
    panels = []
    by_set = {
        tuple(row["axes"]): row for row in reversed(techniques())
    }  # the first of several gives the colour
    for axes in dict.fromkeys(tuple(row["axes"]) for row in techniques()):
        row = by_set[axes]
        names = " and ".join(short(r["title"]) for r in techniques() if tuple(r["axes"]) == axes)
        said = f"{names}: a block of N samples, C channels and H·W positions; coloured: {common(list(axes))}."
        panels.append(
            f'<a href="{links[row["notebook"]]}" style="--set:{row["colour"]}">'
            f"{cube(list(axes), said)}<strong>{names}</strong>"
            f"<span>{common(list(axes))}</span><span>mean over {', '.join(axes)}</span></a>"
        )
    return f'<div class="index-picture">{"".join(panels)}</div>'


def cube(axes: list[str], said: str) -> str:
    """N to the right, C into the depth, H·W upwards; of all sets the one that touches the visible faces."""
    samples, channels, positions = 4, 6, 4
    right, depth, up = (1.0, 0.0), (0.42, -0.36), (0.0, -1.0)
    corner = (samples - 1, 0, 0, 0)  # positions are H of W = 1: their axes are always together in a set
    mine = key(axes, corner, channels, 2)
    paths: dict[str, list[str]] = {}

    def tile(
        face: str, n: int, c: int, p: int, first: tuple[float, float], second: tuple[float, float]
    ) -> None:
        inside = key(axes, (min(n, samples - 1), c, 0, 0), channels, 2) == mine
        x = n * right[0] + c * depth[0] + p * up[0]
        y = n * right[1] + c * depth[1] + p * up[1]
        around = [first, second, (-first[0], -first[1])]
        steps = "".join(f"l{dx:g} {dy:g}" for dx, dy in around)
        paths.setdefault(f"{'in' if inside else 'out'} {face}", []).append(f"M{x:.4g} {y:.4g}{steps}z")

    for n, p in itertools.product(range(samples), range(positions)):
        tile("front", n, 0, p, right, up)
    for n, c in itertools.product(range(samples), range(channels)):
        tile("top", n, c, positions, right, depth)
    for c, p in itertools.product(range(channels), range(positions)):
        tile("side", samples, c, p, depth, up)
    drawn = "".join(
        f'<path class="{kind}" d="{"".join(d)}"/>' for kind, d in sorted(paths.items(), reverse=True)
    )
    letters = "".join(
        f'<text x="{x}" y="{y}">{letter}</text>'
        for letter, x, y in (("N", 2, 0.95), ("C", 5.7, -0.3), ("H·W", -1.2, -1.75))
    )
    box = "-2.3 -6.3 9 7.6"
    return f'<svg viewBox="{box}" role="img" aria-label="{html.escape(said)}">{drawn}{letters}</svg>'


# ----------------------------------------------------------------------------------- the figure to play with
def statistics(row: dict[str, Any], groups: int) -> tuple[Any, Any, Any]:
    """x̂, μ and σ² of the example, each of its shape, by the package in float64."""
    import torch

    from normtutor.functional import standardize
    from normtutor.lab.parity_report import index_axes

    x = torch.tensor(EXAMPLE, dtype=torch.float64).view(SHAPE)
    shape, axes = index_axes(", ".join(row["axes"]), SHAPE, groups)
    view = x.view(shape)
    if row["centred"]:
        x_hat, mean, var = standardize(view, axes, EPS)
    else:
        mean, var = torch.zeros(()), view.square().mean(axes, keepdim=True)
        x_hat = view * torch.rsqrt(var + EPS)
    return tuple(t.expand(shape).reshape(SHAPE) for t in (x_hat, mean, var))  # type: ignore[return-value]


def number(value: float, digits: int = 4) -> str:
    """A statistic as the script writes it: four digits, and a minus that is one."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{float(f'{value:.{digits}g}'):g}"
    return text.replace(HYPHEN, MINUS)


def indices() -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, SHAPE))


def explorer(docname: str) -> str:
    """The figure, complete as it stands: the example, normalized with the page's technique."""
    row = preset(docname)
    assert row
    groups = next(g for g in divisors(SHAPE[1]) if g > 1)
    x_hat, mean, var = statistics(row, groups)
    mine = key(row["axes"], SELECTED, SHAPE[1], groups)
    inside = {i: key(row["axes"], i, SHAPE[1], groups) == mine for i in indices()}
    x = dict(zip(indices(), EXAMPLE, strict=True))
    value, normalized = x[SELECTED], float(x_hat[SELECTED])
    data = {
        "shape": SHAPE,
        "techniques": [
            {k: r[k] for k in ("name", "title", "axes", "centred", "colour", "ink")} for r in techniques()
        ],
    }
    choices = "".join(
        radio(
            "technique",
            r["name"],
            short(r["title"]),
            r is row,
            f' style="--set:{r["colour"]};--ink:{r["ink"]}"',
        )
        for r in techniques()
    )
    counts = "".join(radio("groups", str(g), str(g), g == groups) for g in divisors(SHAPE[1]))
    disabled = "" if "C/G" in row["axes"] else " disabled"
    return f"""
<figure class="index-sets" data-preset="{row["name"]}" style="--set:{row["colour"]};--ink:{row["ink"]}">
<figcaption><strong>Which elements share statistics?</strong>
<span class="is-help">Choose a technique. Tap an element, or move with the arrow keys, to see its set
<i>S</i>, and change its number below.</span></figcaption>
<form class="is-controls" autocomplete="off">
<fieldset><legend>Technique</legend>{choices}</fieldset>
<fieldset class="is-groups"{disabled}><legend>Groups <i>G</i></legend>{counts}</fieldset>
</form>
<div class="is-tensors">
<div><p><i>x</i>, shape (N, C, H, W) = {SHAPE}</p>
{tensor("grid", "x", {i: f"{x[i]:g}".replace(HYPHEN, MINUS) for i in x}, x, inside)}</div>
<div><p><i>x̂</i>, normalized</p>
{tensor("table", "x̂", {i: fixed(float(x_hat[i])) for i in x}, {i: float(x_hat[i]) for i in x}, inside)}</div>
</div>
<div class="is-below">
<form class="is-controls is-edit" autocomplete="off">
<label><span data-is="name">x[{
        ", ".join(map(str, SELECTED))
    }]</span> <input name="value" type="number" step="any"
 value="{value}"></label>
<label>ε <input name="eps" type="number" step="any" min="0" value="{
        number(EPS).replace(MINUS, HYPHEN)
    }"></label>
<span class="is-buttons"><button type="button" value="shift">+ 1000</button>
<button type="button" value="scale">× 10</button>
<button type="button" value="equal">All equal</button>
<button type="button" value="reset">Reset</button></span>
</form>
<div class="is-result">
<dl>
<div><dt><i>m</i></dt><dd data-is="m">{sum(inside.values())}</dd></div>
<div><dt>μ</dt><dd data-is="mu">{number(float(mean[SELECTED])) if row["centred"] else "–"}</dd></div>
<div><dt data-is="spread">{"σ²" if row["centred"] else "mean of x²"}</dt>
<dd data-is="var">{number(float(var[SELECTED]))}</dd></div>
</dl>
<math displaystyle="true"><mover accent="true"><mi>x</mi><mo stretchy="false">^</mo></mover><mo>=</mo>
<mfrac><mrow><mn data-is="x">{number(value)}</mn>
<mrow data-is="minus"{"" if row["centred"] else " hidden"}><mo>−</mo><mn data-is="mean">{
        bracketed(float(mean[SELECTED]))
    }</mn></mrow></mrow>
<msqrt><mrow><mn data-is="under">{number(float(var[SELECTED]))}</mn><mo>+</mo><mn data-is="eps">{
        number(EPS)
    }</mn></mrow></msqrt></mfrac><mo>=</mo><mn data-is="xhat">{number(normalized)}</mn></math>
</div>
<p class="is-said" aria-live="polite">{said(row, sum(inside.values()), groups)}</p>
</div>
<noscript><p>With JavaScript you can choose another technique, element or number here.</p></noscript>
<script type="application/json">{json.dumps(data, ensure_ascii=False)}</script>
</figure>
"""


def said(row: dict[str, Any], n: int, groups: int) -> str:
    """What the picture shows, in one sentence, for those who do not see it."""
    shared = "μ and σ²" if row["centred"] else "one mean of x²"
    of = f", G = {groups}" if "C/G" in row["axes"] else ""
    size = len(EXAMPLE)
    return f"{row['title']}{of}: {n} of {size} elements share {shared}: {common(row['axes'])}."


def fixed(value: float) -> str:
    """x̂ with two decimals, and no minus before a zero."""
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace(HYPHEN, MINUS)


def bracketed(value: float) -> str:
    return f"({number(value)})" if value < 0 else number(value)


def radio(name: str, value: str, label: str, checked: bool, style: str = "") -> str:
    """One choice of several: a button to the eye, a radio button to the keyboard."""
    chosen = " checked" if checked else ""
    button = f'<input type="radio" name="{name}" value="{value}"{chosen}>'
    return f"<label{style}>{button}<span>{label}</span></label>"


def tensor(
    role: str, name: str, texts: dict[Any, str], values: dict[Any, float], inside: dict[Any, bool]
) -> str:
    """(N, C, H, W) on paper: a block per plane, samples downwards, channels to the right."""
    samples, channels, height, width = SHAPE
    cell = "gridcell" if role == "grid" else "cell"
    heads = "".join(
        f'<span role="columnheader" aria-colspan="{width}"><i>c</i> {c}</span>' for c in range(channels)
    )
    rows = [f'<div role="row" class="is-head"><span role="{cell}"></span>{heads}</div>']
    for n, h in itertools.product(range(samples), range(height)):
        text = f"<i>n</i> {n}" if h == 0 else f'<span class="visually-hidden">n {n}, h {h}</span>'
        head = f'<span role="rowheader">{text}</span>'
        cells = []
        for c, w in itertools.product(range(channels), range(width)):
            i = (n, c, h, w)
            classes = " ".join(["in"] * inside[i] + ["me"] * (i == SELECTED) + ["new"] * (w == 0))
            more = ""
            if role == "grid":
                chosen = i == SELECTED
                more = f' tabindex="{-1 + chosen}" aria-selected="{str(chosen).lower()}"'
                more += f' aria-label="{label(i, texts[i], inside[i])}"'
            cells.append(
                f'<span role="{cell}" class="{classes}" data-value="{values[i]!r}"{more}>{texts[i]}</span>'
            )
        last = ' class="is-last"' if h == height - 1 else ""
        rows.append(f'<div role="row"{last}>{head}{"".join(cells)}</div>')
    return f'<div role="{role}" aria-label="{name}" class="is-tensor">{"".join(rows)}</div>'


def label(i: tuple[int, ...], text: str, inside: bool) -> str:
    n, c, h, w = i
    return f"{text}: n {n}, c {c}, h {h}, w {w}{', in the set' if inside else ''}"


# ------------------------------------------------------------------------------------------- into the pages
class figure_place(nodes.General, nodes.Element):
    """Where a figure will stand: it is made at writing, and never older than the package."""


class IndexSetPicture(SphinxDirective):
    """``{index-set-picture}``: all index sets in one picture."""

    def run(self) -> list[nodes.Node]:
        return [figure_place(part="picture")]


class IndexSetFigure(SphinxDirective):
    """``{index-set-figure}``: the interactive figure. A technique's chapter has it without asking."""

    def run(self) -> list[nodes.Node]:
        return [figure_place(part="figure")]


def insert(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the figures where a page asks for them, or below a chapter's introduction."""
    if preset(docname) is None:
        return
    uri = app.builder.get_relative_uri
    links = {row["notebook"]: uri(docname, f"notebooks/{row['notebook']}") for row in techniques()}
    for place in list(doctree.findall(figure_place)):
        made = picture(links) if place["part"] == "picture" else explorer(docname)
        place.replace_self(nodes.raw("", made, format="html"))
    if docname != INTRODUCTION:
        title = next(doctree.findall(nodes.section))
        first = title.first_child_matching_class(nodes.section)
        title.insert(len(title) if first is None else first, nodes.raw("", explorer(docname), format="html"))


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The figure comes from the package, not from the page's source: write its pages at every build."""
    return [name for name in env.found_docs if preset(name)]


def load(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """The figure's script, on the pages that have it."""
    if doctree and preset(page):
        app.add_js_file("index_sets.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(figure_place)
    app.add_directive("index-set-picture", IndexSetPicture)
    app.add_directive("index-set-figure", IndexSetFigure)
    app.connect("doctree-resolved", insert)
    app.connect("env-updated", write_again)
    app.connect("html-page-context", load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
