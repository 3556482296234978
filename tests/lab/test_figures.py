"""Figures: one colour per technique, labels that can be read, and no window or figure left behind."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from normtutor.catalog import TECHNIQUES
from normtutor.lab import bench, index_set, line_chart, recorded_roofline
from normtutor.lab.figures import CANDIDATE_COLOURS, TECHNIQUE_COLOURS, _dark, colour


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import sys, normtutor, normtutor.lab; from normtutor.lab import parity, bench, memory, show_source, "
        "provenance, digits, index_set, recorded; "
        "print(*[m for m in ('matplotlib', 'sklearn', 'IPython', 'rich', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_technique_has_its_own_colour() -> None:
    assert set(TECHNIQUES) <= set(TECHNIQUE_COLOURS)
    for palette in (TECHNIQUE_COLOURS, CANDIDATE_COLOURS):
        assert len(set(palette.values())) == len(palette)
    assert colour("batch") == TECHNIQUE_COLOURS["batch"]
    assert colour("compiled") == CANDIDATE_COLOURS["compiled"]


@pytest.mark.parametrize("shade", [*TECHNIQUE_COLOURS.values(), *CANDIDATE_COLOURS.values()])
def test_labels_can_be_read_on_white(shade: str) -> None:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(_dark(shade))]
    luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
    assert 1.05 / (luminance + 0.05) >= 4.5  # WCAG 2 AA


@pytest.mark.parametrize(
    ("name", "coloured", "title"),
    # of the visible faces of a 4 × 6 × (H·W = 4) cube: front 4·4, top 4·6, side 6·4
    [
        ("batch", 16 + 4 + 4, "same channel"),
        ("layer", 4 + 6 + 24, "same sample"),
        ("rms", 4 + 6 + 24, "RMS Normalization"),
        ("instance", 4 + 1 + 4, "same sample and channel"),
        ("group", 4 + 3 + 12, "same sample and group"),
        ("N, H, W", 16 + 4 + 4, "same channel"),
        ("C", 1 + 6 + 6, "same sample and position"),
    ],
)
def test_the_cube_colours_the_index_set(name: str, coloured: int, title: str) -> None:
    axes = index_set(name).axes[0]
    colours = axes.collections[0].get_facecolors()[:, :3]
    assert len(colours) == 16 + 24 + 24
    assert (np.ptp(colours, axis=1) > 0.02).sum() == coloured  # grey has no hue
    assert title in axes.get_title()
    assert {text.get_text() for text in axes.texts} == {"N", "C", "H·W"}


def test_cubes_side_by_side_and_unknown_names() -> None:
    assert len(index_set("batch", "layer", "group").axes) == 3
    with pytest.raises(ValueError, match="unknown technique 'bach'"):
        index_set("bach")


def test_line_labels_do_not_overlap_and_stay_inside() -> None:
    names = list(TECHNIQUE_COLOURS)
    figure = line_chart(
        {name: ([0, 1], [1, 0.001 * i]) for i, name in enumerate(names)}, xlabel="x", ylabel="y"
    )
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(names)
    boxes.sort(key=lambda box: box.y0)
    centres = [(box.y0 + box.y1) / 2 for box in boxes]
    assert min(np.diff(centres)) > 0.7 * max(box.height for box in boxes)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)


def test_figures_are_closed_small_and_legible() -> None:
    before = plt.get_fignums()
    figures = [index_set("batch", "layer"), line_chart({"batch": ([1, 2], [3, 4])}, xlabel="x", ylabel="y")]
    figures.append(bench("batch", device="cpu", shapes=[(2, 8, 4, 4), (4, 8, 4, 4)], seconds=0).plot())
    assert plt.get_fignums() == before
    for figure in figures:
        assert figure.get_size_inches()[0] <= 7
        texts = [text for axes in figure.axes for text in (*axes.texts, axes.title, axes.xaxis.label)]
        assert min(text.get_fontsize() for text in texts) >= 10
        assert figure.get_facecolor() == (1, 1, 1, 1)


def test_the_roofline_shows_each_candidate_under_the_copy_line() -> None:
    timings = bench("batch", device="cpu", shapes=[(2, 8, 4, 4), (4, 8, 4, 4)], seconds=0)
    axes = timings.plot("forward").axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert {"eager", "torch.nn"} < set(labels)
    assert any(label.startswith("copy: ") for label in labels)
    line = next(line for line in axes.get_lines() if line.get_label() == "eager")
    assert list(line.get_ydata()) == [
        row.fraction for row in timings.select(candidate="eager", direction="forward")
    ]
    with pytest.raises(ValueError, match="nothing was timed for forward in bfloat16"):
        timings.plot("forward", dtype="bfloat16")


def test_a_script_with_figures_ends() -> None:
    script = (
        "from normtutor.lab import use_style, index_set; use_style(); import matplotlib.pyplot as plt; "
        "plt.plot([1, 2]); index_set('batch'); print(plt.get_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().lower() == "agg"
    assert done.stderr == ""


def test_a_short_logarithmic_axis_has_plain_numbers() -> None:
    def labels(values: list[float]) -> list[str]:
        figure = line_chart({"batch": ([1, 2], values)}, xlabel="x", ylabel="y", yscale="log")
        figure.draw_without_rendering()
        axis = figure.axes[0].yaxis
        return [tick.get_text() for tick in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]]

    assert not [label for label in labels([0.3, 2.0]) if "times" in label or "10^" in label]
    assert {"0.4", "2"} & set(labels([0.3, 2.0]))
    assert [label for label in labels([1e-6, 1.0]) if "10^" in label]  # many decades: powers are shorter


def test_the_recorded_roofline_shows_the_record_or_says_that_there_is_none(tmp_path: Path) -> None:
    empty = recorded_roofline("layer", folder=tmp_path)
    assert "Not measured on a GPU yet." in [text.get_text() for text in empty.axes[0].texts]

    timings = bench("layer", shapes=[(8, 16), (32, 64)], seconds=0.0, rounds=1).to_dict()
    timings["provenance"]["device"] = "a GPU of the test"
    record = {"provenance": timings["provenance"], "techniques": {"layer": {"timings": [timings]}}}
    (tmp_path / "gpu_test.json").write_text(json.dumps(record))
    axes = recorded_roofline("layer", folder=tmp_path).axes[0]
    assert "a GPU of the test" in axes.get_title()
    assert {"eager", "torch.nn"} <= {line.get_label() for line in axes.get_lines()}
    for other in ({"dtype": "bfloat16"}, {"technique": "rms"}):  # recorded for neither
        axes = recorded_roofline(**{"technique": "layer", "folder": tmp_path, **other}).axes[0]
        assert "Not measured on a GPU yet." in [text.get_text() for text in axes.texts]
