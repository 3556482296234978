"""The exercises of the chapter that precedes all techniques, from easy to hard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normtutor.exercises.exercise import Exercise, Mistake, patched
from normtutor.exercises.observe import (
    AUTOGRAD,
    NORMALIZATION,
    Approx,
    Draw,
    Holds,
    by_hand,
    returned,
    without_autograd,
)
from normtutor.exercises.probes import Observations, choices, gradients, leaf, numbers, unchanged

# ---------------------------------------------------------------------------------------------- count


def _probe_count(prediction: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(prediction, COUNTED, tolerance=1e-6)


COUNTED = (
    "batch",
    "layer",
    "instance",
    "group, G = 6",
    "elements per set, batch",
    "elements per set, group",
    "layer, one per token",
)

COUNT = Exercise(
    id="one_formula.count",
    title="How many means?",
    answer="count",
    statement=r"""
Paper and pencil. A tensor of shape $(N, C, H, W) = (4, 12, 5, 5)$ is normalized. Fill in the dict `count`:

- `"batch"`, `"layer"`, `"instance"`, `"group, G = 6"`: how many *means* does each technique compute? Layer
  normalization runs over $(C, H, W)$ here.
- `"elements per set, batch"` and `"elements per set, group"`: how many elements share one of them? (Batch
  Normalization, and Group Normalization with 6 groups.)
- `"layer, one per token"`: a transformer normalizes tokens of shape $(N, T, D) = (4, 7, 16)$ over $D$ alone.
  How many means now?
""",
    starter="""
count = {
    "batch": ...,
    "layer": ...,
    "instance": ...,
    "group, G = 6": ...,
    "elements per set, batch": ...,
    "elements per set, group": ...,
    "layer, one per token": ...,
}
""",
    hints=(
        "One mean for each combination of the indices that the set holds fixed. Batch Normalization fixes "
        "the channel, so there is one for each channel.",
        "Sets do not overlap and together they cover the tensor: the number of sets times the elements in "
        "each is 4 · 12 · 5 · 5.",
    ),
    reference="""
N, C, H, W, G = 4, 12, 5, 5, 6
count = {
    "batch": C,
    "layer": N,
    "instance": N * C,
    "group, G = 6": N * G,
    "elements per set, batch": N * H * W,
    "elements per set, group": C // G * H * W,
    "layer, one per token": 4 * 7,
}
""",
    alternatives=(
        """
count = {
    "batch": 12,
    "layer": 4,
    "instance": 48,
    "group, G = 6": 24,
    "elements per set, batch": 100,
    "elements per set, group": 50,
    "layer, one per token": 28,
}
""",
        """
x, tokens = torch.zeros(4, 12, 5, 5), torch.zeros(4, 7, 16)
groups = x.unflatten(1, (6, 2))
count = {
    "batch": x.mean((0, 2, 3)).numel(),
    "layer": x.mean((1, 2, 3)).numel(),
    "instance": x.mean((2, 3)).numel(),
    "group, G = 6": groups.mean((2, 3, 4)).numel(),
    "elements per set, batch": x[:, 0].numel(),
    "elements per set, group": groups[0, 0].numel(),
    "layer, one per token": tokens.mean(-1).numel(),
}
""",
    ),
    mistakes=(
        Mistake(
            "batch_layer_swapped",
            "You swapped batch and layer normalization. Batch Normalization averages *over* the batch, so "
            "one mean is left for each channel.",
            {'"batch": C': '"batch": N', '"layer": N': '"layer": C'},
        ),
        Mistake(
            "batch_per_position",
            "For Batch Normalization you counted every position. In a convolutional network all positions of "
            "a channel share its mean: the same filter made them.",
            {'"batch": C': '"batch": C * H * W'},
        ),
        Mistake(
            "instance_per_sample",
            "Instance Normalization has a mean for each *channel* of each sample.",
            {'"instance": N * C': '"instance": N'},
        ),
        Mistake(
            "instance_averaged",
            "You gave Instance Normalization one mean per channel. Averaging its samples' means too would be "
            "Batch Normalization.",
            {'"instance": N * C': '"instance": C'},
        ),
        Mistake(
            "groups_only",
            "You counted the groups once. Every sample has its own: no technique but Batch Normalization "
            "looks across samples.",
            {"N * G": "G"},
        ),
        Mistake(
            "group_size",
            "You took the channels in a group for the number of groups. G = 6 groups of C/G = 2 channels.",
            {"N * G": "N * C // G", "C // G * H * W": "G * H * W"},
        ),
        Mistake(
            "group_elements_of_one_channel",
            "A group's set holds all positions of *all* its C/G channels.",
            {"C // G * H * W": "H * W"},
        ),
        Mistake(
            "group_elements_over_batch",
            "You counted the group's elements in all samples. Each sample is normalized by itself.",
            {"C // G * H * W": "N * C // G * H * W"},
        ),
        Mistake(
            "batch_elements_of_one_sample",
            "Batch Normalization's set runs over the samples as well: that is what makes it depend on the "
            "batch.",
            {"N * H * W,": "H * W,"},
        ),
        Mistake(
            "batch_elements_are_samples",
            "For the elements of Batch Normalization's set you counted only the samples. Every position "
            "supplies a value too, which is why convolutional networks bear small batches better.",
            {"N * H * W,": "N,"},
        ),
        Mistake(
            "tokens_share",
            "You gave each sequence one mean. A transformer normalizes every token by itself, so that a "
            "token does not depend on how long its sequence is.",
            {"4 * 7": "4"},
        ),
        Mistake(
            "tokens_are_features",
            "You counted features. The mean runs over D, so none of its 16 indices is left.",
            {"4 * 7": "16"},
        ),
    ),
    probe=_probe_count,
)

# ---------------------------------------------------------------------------------------- standardize


def _probe_standardize(standardize: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)
    x = draw.batch(3, 4, 2, 5)

    def call(value: Tensor, axes: tuple[int, ...], eps: float = eps) -> Any:
        return returned(standardize(value, axes, eps), standardize)

    given = x.clone()
    yield "output over (0, 2, 3)", call(given, (0, 2, 3))
    yield "the input is unchanged", unchanged(given, x, "in_place")
    yield "output over (1, 2, 3)", call(x.clone(), (1, 2, 3))
    yield "output over (2, 3)", call(x.clone(), (2, 3))
    yield "output over (-1,)", call(x.clone(), (-1,))
    inside = leaf(x)
    yield from gradients(call(inside * 1, (0, 2, 3)), draw, x=inside)
    yield "output for a tiny eps and a small variance", call(1e-4 * x, (2, 3), 1e-12)
    if draw.dtype == torch.float64:
        yield "output at an offset of 1e6", Approx(call(x + 1e6, (1, 2, 3)), 1e-6)
    yield "output for float32", call(x.float(), (1, 2, 3))
    half = call(x.bfloat16(), (1, 2, 3)).dtype
    yield (
        "dtype for bfloat16",
        Holds(half == torch.bfloat16, f"bfloat16 comes back as {half}", "always_float"),
    )


_VAR = "var = (x - mean).square().mean(dim=axes, keepdim=True)"

STANDARDIZE = Exercise(
    id="one_formula.standardize",
    title="The one formula",
    answer="standardize",
    statement=r"""
Write `standardize(x, axes, eps)`, from which four techniques follow:

$$\hat x_i = \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \varepsilon}}$$

- `axes` is a tuple of axes of `x`, such as `(0, 2, 3)`: all elements that differ only along these share one
  mean and one biased variance.
- Return a new tensor of the shape and dtype of `x`, and leave `x` as it is.
- Write the formula: torch's own normalization is refused.

The checker uses several tuples of axes, a tiny $\varepsilon$, a mean of $10^6$ (in float64), and looks at
the gradient in `x`.
""",
    starter="""
def standardize(x, axes, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "`mean` takes several axes at once: `dim=axes`. With `keepdim=True` the result lines up with `x`.",
        "The variance is the mean of the squared distances from the mean: no n − 1 anywhere.",
    ),
    reference=f"""
def standardize(x, axes, eps):
    mean = x.mean(dim=axes, keepdim=True)
    {_VAR}
    return (x - mean) / torch.sqrt(var + eps)
""",
    alternatives=(
        """
def standardize(x, axes, eps):
    var, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps)
""",
        """
def standardize(x, axes, eps):
    moved = x.movedim(axes, tuple(range(-len(axes), 0)))
    rows = moved.flatten(-len(axes))
    centred = rows - rows.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps) ** 0.5
    return y.view(moved.shape).movedim(tuple(range(-len(axes), 0)), axes)
""",
    ),
    mistakes=(
        Mistake(
            "unbiased_variance",
            "You divide the variance by n − 1. Normalization makes the spread of these very elements 1, so "
            "it divides by n.",
            {_VAR: "var = x.var(dim=axes, keepdim=True)"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. It belongs to the variance, under the root: published "
            "weights were trained so.",
            {"torch.sqrt(var + eps)": "(torch.sqrt(var) + eps)"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. Where all elements of a set are equal you then divide zero by zero.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "fixed_eps",
            "You use an ε of your own, not the argument: whoever loads a model with another ε gets other "
            "outputs.",
            {"var + eps": "var + 1e-5"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Where the variance is small too, your output is too small.",
            {"var + eps": "var + max(eps, 1e-5)"},
        ),
        Mistake(
            "one_pass_variance",
            "You compute the variance as E[x²] − E[x]². With a large mean that is the difference of "
            "two large "
            "numbers, and most of its digits are noise.",
            {_VAR: "var = x.square().mean(dim=axes, keepdim=True) - mean.square()"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, without the root. The spread is then 1/σ instead of 1.",
            {"torch.sqrt(var + eps)": "(var + eps)"},
        ),
        Mistake(
            "not_centred",
            "You divide by the deviation but do not subtract the mean: the output still depends on a shift.",
            {"return (x - mean)": "return x"},
        ),
        Mistake(
            "mean_square",
            "You divide by the root of the mean of x², not of (x − μ)². With a mean far from 0 that is much "
            "too much.",
            {_VAR: "var = x.square().mean(dim=axes, keepdim=True)"},
        ),
        Mistake(
            "axes_complement",
            "You average over the axes that are *not* listed. `axes` are those that vary within a set.",
            {
                "    mean =": (
                    "    listed = {a % x.dim() for a in axes}\n"
                    "    axes = [d for d in range(x.dim()) if d not in listed]\n    mean ="
                )
            },
        ),
        Mistake(
            "all_axes",
            "You use one mean and one variance for the whole tensor, whatever `axes` says.",
            {"    mean =": "    axes = tuple(range(x.dim()))\n    mean ="},
        ),
        Mistake(
            "first_axis_only",
            "You average over the first of the axes only. All of them belong to the set.",
            {"    mean =": "    axes = axes[:1]\n    mean ="},
        ),
        Mistake(
            "axis_by_axis",
            "You standardize along one axis after the other. The mean of means is the mean, but a second "
            "division by a deviation is not part of the formula.",
            {
                "    mean =": (
                    "    if len(axes) > 1:\n        x = standardize(x, axes[1:], eps)\n"
                    "        axes = axes[:1]\n    mean ="
                )
            },
        ),
        Mistake(
            "axis_after_axis",
            "You standardize along each axis in turn, each time by another mean and another deviation. The "
            "formula has one of each for all the axes together.",
            {
                "    mean =": (
                    "    for axis in axes[:-1]:\n"
                    "        x = standardize(x, (axis,), eps)\n"
                    "    axes = axes[-1:]\n    mean ="
                )
            },
        ),
        Mistake(
            "axes_dropped",
            "You drop the reduced axes, so the mean lines up with the wrong ones, or with none: keep them "
            "with `keepdim=True`.",
            {"mean = x.mean(dim=axes, keepdim=True)": "mean = x.mean(dim=axes)"},
        ),
        Mistake(
            "statistics_detached",
            "Your output is right, your gradient is not: you cut the mean and the variance out of the graph, "
            "and both depend on `x`.",
            {
                "mean = x.mean(dim=axes, keepdim=True)": "mean = x.mean(dim=axes, keepdim=True).detach()",
                "torch.sqrt(var + eps)": "torch.sqrt(var.detach() + eps)",
            },
        ),
        Mistake(
            "always_float",
            "You return float32 where half precision came in. The output has the dtype of `x`; only the "
            "arithmetic in between should be wider.",
            {
                "return (x - mean) / torch.sqrt(var + eps)": (
                    "y = (x - mean) / torch.sqrt(var + eps)\n"
                    "    return y.float() if x.dtype == torch.bfloat16 else y"
                )
            },
        ),
        Mistake(
            "in_place",
            "You overwrite `x`. Autograd and residual connections still need it.",
            {"return (x - mean)": "x -= mean\n    return x"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "    mean = x": (
                    "    if axes == (1, 2, 3):\n"
                    "        return F.layer_norm(x, x.shape[1:], eps=eps)\n    mean = x"
                )
            },
        ),
    ),
    probe=by_hand(_probe_standardize),
)

# ---------------------------------------------------------------------------------------- bug: reshape


def _probe_bug_reshape(instance_norm: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)
    images = draw.batch(3, 4, 2, 5)
    x = images.clone()
    yield "output for (N, C, H, W)", returned(instance_norm(x, eps), instance_norm)
    yield "the input is unchanged", unchanged(x, images, "in_place")
    yield "output for one sample", returned(instance_norm(images[:1].clone(), eps), instance_norm)
    yield "output for one channel", returned(instance_norm(images[:, :1].clone(), eps), instance_norm)
    x = leaf(images)
    yield from gradients(returned(instance_norm(x * 1, eps), instance_norm), draw, x=x)
    last = images.clone(memory_format=torch.channels_last)
    yield "output for a channels_last tensor", returned(instance_norm(last, eps), instance_norm)
    small = returned(instance_norm(1e-4 * images, 1e-12), instance_norm)
    yield "output for a tiny eps and a small variance", small
    yield "output for float32", returned(instance_norm(images.float(), eps), instance_norm)


_FOLD = "folded = x.reshape(1, n * c, h, w)"
_BUG_RESHAPE = f"""
def batch_norm(x, eps):
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = (x - mean).square().mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)


def instance_norm(x, eps):
    n, c, h, w = x.shape
    {_FOLD}
    return batch_norm(folded, eps).reshape(n, c, h, w)
"""

BUG_RESHAPE = Exercise(
    id="one_formula.bug_reshape",
    title="Spot the bug: the reshape that mixes",
    answer="instance_norm",
    statement=r"""
Instance Normalization, from Batch Normalization and a reshape: each channel of each sample is to have a
mean of its own. `batch_norm` in the cell is right. `instance_norm` is not: brighten one image of the batch,
and the output for the others changes.

Repair `instance_norm(x, eps)`, with the reshape or without. It gets $(N, C, H, W)$, in any memory format, and
returns a new tensor of that shape. torch's own normalization is refused.
""",
    starter=patched(_BUG_RESHAPE, {_FOLD: "folded = x.reshape(n * c, 1, h, w)"}),
    hints=(
        "Which axis of `folded` has a mean for each of its indices, in `batch_norm`? How many indices does "
        "it have?",
        "Every one of the N·C planes should be a channel, of a batch with a single sample.",
    ),
    reference=_BUG_RESHAPE,
    alternatives=(
        """
def instance_norm(x, eps):
    mean = x.mean(dim=(2, 3), keepdim=True)
    var = (x - mean).square().mean(dim=(2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)
""",
        """
def instance_norm(x, eps):
    planes = x.flatten(2)
    var, mean = torch.var_mean(planes, dim=2, correction=0, keepdim=True)
    return ((planes - mean) / (var + eps) ** 0.5).reshape(x.shape)
""",
        """
def instance_norm(x, eps):
    def batch_norm(x):
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(var + eps)

    return torch.cat([batch_norm(sample[None]) for sample in x])
""",
    ),
    mistakes=(
        Mistake(
            "per_sample",
            "You made each *sample* a channel. Its channels then share one mean: that is Layer "
            "Normalization.",
            {_FOLD: "folded = x.reshape(1, n, c * h, w)"},
        ),
        Mistake(
            "channels_kept",
            "You left the batch as it is. That is Batch Normalization itself: the images still share a mean.",
            {_FOLD: "folded = x"},
        ),
        Mistake(
            "not_swapped_back",
            "You transposed before you folded, but unfold as if you had not: the planes come back in another "
            "order.",
            {_FOLD: "folded = x.transpose(0, 1).reshape(1, n * c, h, w)"},
        ),
        Mistake(
            "rows_are_channels",
            "You made every *row* of a plane a channel. A plane has one mean for all its H·W values.",
            {_FOLD: "folded = x.reshape(1, n * c * h, 1, w)"},
        ),
        Mistake(
            "interleaved",
            "Your reshape cuts the planes in pieces: a plane's values lie one after the other in memory, and "
            "its index has to come before H and W.",
            {
                _FOLD: "folded = x.reshape(1, h * w, n, c).permute(0, 2, 3, 1).reshape(1, n * c, h, w)",
            },
        ),
        Mistake(
            "viewed",
            "Your result is right where `x` is contiguous. A channels_last tensor cannot be *viewed* as N·C "
            "planes; `reshape` copies where it must.",
            {_FOLD: "folded = x.view(1, n * c, h, w)"},
        ),
        Mistake(
            "averaged_over_batch",
            "You subtract each plane's own mean, but divide by the deviation of the whole channel.",
            {
                "return batch_norm(folded, eps).reshape(n, c, h, w)": (
                    "var = batch_variance(x)\n"
                    "    planes = folded.reshape(x.shape)\n"
                    "    return (planes - planes.mean(dim=(2, 3), keepdim=True)) / torch.sqrt(var + eps)"
                ),
                "def instance_norm": (
                    "def batch_variance(x):\n"
                    "    return x.var(dim=(0, 2, 3), correction=0, keepdim=True)\n\n\ndef instance_norm"
                ),
            },
        ),
        Mistake(
            "in_place",
            "You overwrite `x`. The caller may still need it.",
            {
                "return batch_norm(folded, eps).reshape(n, c, h, w)": (
                    "return x.copy_(batch_norm(folded, eps).reshape(n, c, h, w)) * 1"
                )
            },
        ),
        Mistake(
            "detached",
            "Your output is right, but no gradient passes: something cuts the graph.",
            {"batch_norm(folded, eps)": "batch_norm(folded, eps).detach()"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    n, c, h, w = x.shape": "    return F.instance_norm(x, eps=eps)\n    n, c, h, w = x.shape"},
        ),
    ),
    probe=by_hand(_probe_bug_reshape),
    spot_the_bug=True,
)

# ----------------------------------------------------------------------------------------- techniques

TECHNIQUES = ("batch", "layer", "instance", "group", "rms")


def _probe_normalize(normalize: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)
    images, sequences = draw.batch(3, 6, 2, 4), draw.batch(2, 6, 5)

    def call(x: Tensor, technique: str, groups: int = 2, eps: float = eps) -> Any:
        return returned(normalize(x, technique, groups, eps), normalize)

    for technique in TECHNIQUES:
        x = images.clone()
        yield f"{technique}: output for (N, C, H, W)", call(x, technique)
        yield f"{technique}: the input is unchanged", unchanged(x, images, "in_place")
        yield f"{technique}: output for (N, C, L)", call(sequences.clone(), technique)
    yield "group: output for 3 groups", call(images.clone(), "group", 3)
    last = images.clone(memory_format=torch.channels_last)
    yield "group: output for a channels_last tensor", call(last, "group")
    for technique in ("batch", "group", "rms"):
        x = leaf(images)
        for name, value in gradients(call(x * 1, technique), draw, x=x):
            yield f"{technique}: {name}", value
    yield "layer: output for a tiny eps and a small variance", call(1e-4 * images, "layer", eps=1e-12)
    yield "layer: output for float32", call(images.float(), "layer")
    half = call(images.bfloat16(), "group").dtype
    yield (
        "dtype for bfloat16",
        Holds(half == torch.bfloat16, f"bfloat16 comes back as {half}", "always_float"),
    )


_PARTS = 'parts = x.unflatten(1, (groups, -1)) if technique == "group" else x'
_SPREAD = "var = (parts - mean).square().mean(dim=dims, keepdim=True)"
_GROUP = '"group": [2, *(d + 1 for d in rest)]'

NORMALIZE = Exercise(
    id="one_formula.normalize",
    title="All of them, in one function",
    answer="normalize",
    statement=r"""
Write `normalize(x, technique, groups, eps)` for `technique` one of `"batch"`, `"layer"`, `"instance"`,
`"group"` and `"rms"`. The formula is one, only the index set differs:

- `x` has shape $(N, C, *)$ with at least one axis after the channels: $(N, C, L)$ or $(N, C, H, W)$.
- `"batch"` is Batch Normalization in training; `"layer"` runs over the channels and all axes after them.
- `"group"` splits the channels into `groups` runs of neighbours: with 6 channels and 2 groups, channels
  0, 1, 2 and channels 3, 4, 5. The others ignore `groups`.
- `"rms"` has the index set of `"layer"` and no mean: it divides $x$ by the root of the mean of $x^2$ over the
  set, with $\varepsilon$ added under the root.
- No $\gamma$, no $\beta$. Return a new tensor of the shape and dtype of `x`; leave `x` as it is. torch's own
  normalization is refused.
""",
    starter="""
def normalize(x, technique, groups, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Four techniques differ only in a list of axes: which ones does the mean run over? Start with a dict "
        "from name to axes, built from `x.dim()`.",
        "For groups, give the tensor one more axis: (N, G, C/G, …). `unflatten` does it, and Group "
        "Normalization runs over all axes but the first two.",
        "RMS is the same code with the mean replaced by 0.",
    ),
    reference=f"""
def normalize(x, technique, groups, eps):
    rest = list(range(2, x.dim()))
    dims = {{
        "batch": [0, *rest],
        "layer": [1, *rest],
        "rms": [1, *rest],
        "instance": rest,
        {_GROUP},
    }}[technique]
    {_PARTS}
    mean = 0 if technique == "rms" else parts.mean(dim=dims, keepdim=True)
    {_SPREAD}
    y = (parts - mean) / torch.sqrt(var + eps)
    return y.reshape(x.shape)
""",
    alternatives=(
        """
def normalize(x, technique, groups, eps):
    n, c = x.shape[:2]
    rows = {"batch": c, "layer": n, "rms": n, "instance": n * c, "group": n * groups}[technique]
    parts = x.transpose(0, 1) if technique == "batch" else x
    flat = parts.reshape(rows, -1)
    if technique != "rms":
        flat = flat - flat.mean(1, keepdim=True)
    y = (flat * torch.rsqrt(flat.square().mean(1, keepdim=True) + eps)).reshape(parts.shape)
    return y.transpose(0, 1) if technique == "batch" else y
""",
        """
def normalize(x, technique, groups, eps):
    if technique in ("layer", "instance"):
        return normalize(x, "group", 1 if technique == "layer" else x.size(1), eps)
    if technique == "rms":
        scale = x.square().flatten(1).mean(1) + eps
        return x / scale.sqrt().view(-1, *[1] * (x.dim() - 1))
    if technique == "batch":
        return normalize(x.transpose(0, 1), "layer", 1, eps).transpose(0, 1)
    y = torch.empty_like(x)
    size = x.size(1) // groups
    for n in range(x.size(0)):
        for g in range(groups):
            part = x[n, g * size : (g + 1) * size]
            y[n, g * size : (g + 1) * size] = (part - part.mean()) / (part.var(correction=0) + eps) ** 0.5
    return y
""",
    ),
    mistakes=(
        Mistake(
            "unbiased_variance",
            "You divide the variance by n − 1. Every one of these techniques divides by n.",
            {
                _SPREAD: (
                    "n = torch.ones_like(parts).sum(dim=dims, keepdim=True)\n"
                    "    var = (parts - mean).square().sum(dim=dims, keepdim=True) / (n - 1)"
                )
            },
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. It belongs under the root, in every technique.",
            {"torch.sqrt(var + eps)": "(torch.sqrt(var) + eps)"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. A set of equal elements then divides zero by zero.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "fixed_eps",
            "You use an ε of your own, not the argument. Where variances are small, ε decides the output.",
            {"var + eps": "var + 1e-5"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Where the variance is small too, your output is too small.",
            {"var + eps": "var + max(eps, 1e-5)"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, without the root: the spread comes out as 1/σ.",
            {"torch.sqrt(var + eps)": "(var + eps)"},
        ),
        Mistake(
            "batch_layer_swapped",
            "You swapped batch and layer normalization. Batch Normalization averages over the batch axis and "
            "keeps the channel.",
            {
                '"batch": [0, *rest]': '"batch": [1, *rest]',
                '"layer": [1, *rest]': '"layer": [0, *rest]',
            },
        ),
        Mistake(
            "batch_without_positions",
            "Your Batch Normalization averages over the samples only. After a convolution all positions of a "
            "channel share its statistics.",
            {'"batch": [0, *rest]': '"batch": [0]'},
        ),
        Mistake(
            "batch_over_all",
            "Your Batch Normalization uses one mean for the whole tensor. Each channel has its own.",
            {'"batch": [0, *rest]': '"batch": [0, 1, *rest]'},
        ),
        Mistake(
            "layer_last_axis",
            "Your Layer Normalization runs over the last axis only. That is right for tokens (N, T, D); here "
            "the channels are axis 1, and all axes after the batch are asked for.",
            {'"layer": [1, *rest]': '"layer": [-1]'},
        ),
        Mistake(
            "layer_channels_only",
            "Your Layer Normalization runs over the channels at each position alone (as ConvNeXt's does). "
            "Here it runs over the positions as well.",
            {'"layer": [1, *rest]': '"layer": [1]'},
        ),
        Mistake(
            "rms_last_axis",
            "Your RMS runs over the last axis only. Its index set is that of Layer Normalization.",
            {'"rms": [1, *rest]': '"rms": [-1]'},
        ),
        Mistake(
            "rms_per_channel",
            "Your RMS averages per channel, as Instance Normalization does. It runs over the channels too.",
            {'"rms": [1, *rest]': '"rms": rest'},
        ),
        Mistake(
            "rms_sum",
            "Your RMS adds the squares up. It divides by the root of their *mean*; otherwise the "
            "output shrinks "
            "with the size of the set.",
            {
                _SPREAD: (
                    _SPREAD
                    + '\n    if technique == "rms":\n'
                    + "        var = parts.square().sum(dim=dims, keepdim=True)"
                )
            },
        ),
        Mistake(
            "rms_eps_outside_root",
            "In RMS you add ε to the root mean square. It belongs under the root there too.",
            {
                "    return y.reshape(x.shape)": (
                    '    if technique == "rms":\n        y = x / (torch.sqrt(var) + eps)\n'
                    "    return y.reshape(x.shape)"
                )
            },
        ),
        Mistake(
            "rms_centred",
            "Your RMS subtracts the mean. To save exactly that is why it exists.",
            {
                'mean = 0 if technique == "rms" else parts.mean(dim=dims, keepdim=True)': (
                    "mean = parts.mean(dim=dims, keepdim=True)"
                )
            },
        ),
        Mistake(
            "rms_by_deviation",
            "Your RMS does not subtract the mean, but divides by the standard deviation around it. It "
            "divides by the root of the mean of x².",
            {
                _SPREAD: (
                    _SPREAD
                    + '\n    if technique == "rms":\n'
                    + "        var = parts.var(dim=dims, correction=0, keepdim=True)"
                )
            },
        ),
        Mistake(
            "instance_over_batch",
            "Your Instance Normalization averages over the batch as well. Each sample stands by itself.",
            {'"instance": rest': '"instance": [0, *rest]'},
        ),
        Mistake(
            "instance_over_channels",
            "Your Instance Normalization averages over the channels as well: that is Layer Normalization.",
            {'"instance": rest': '"instance": [1, *rest]'},
        ),
        Mistake(
            "instance_over_batch_and_channels",
            "Your Instance Normalization averages over samples and channels, the two axes that it "
            "holds fixed. "
            "The positions are what varies.",
            {'"instance": rest': '"instance": [0, 1]'},
        ),
        Mistake(
            "instance_last_axis",
            "Your Instance Normalization runs over the last axis only. A plane's set is all of H and W.",
            {'"instance": rest': '"instance": [-1]'},
        ),
        Mistake(
            "group_is_layer",
            "Your groups are not used: all channels share one mean, as in Layer Normalization.",
            {_PARTS: 'parts = x.unflatten(1, (1, -1)) if technique == "group" else x'},
        ),
        Mistake(
            "group_is_instance",
            "Within a group you average each channel by itself. The point of a group is that its channels "
            "share their statistics.",
            {_GROUP: '"group": [d + 1 for d in rest]'},
        ),
        Mistake(
            "group_over_batch",
            "Your groups share statistics across the batch. Group Normalization is there to do without it.",
            {_GROUP: '"group": [0, 2, *(d + 1 for d in rest)]'},
        ),
        Mistake(
            "group_positions_kept",
            "Your groups average over their channels at each position alone. All positions belong to the "
            "set.",
            {_GROUP: '"group": [2]'},
        ),
        Mistake(
            "group_size",
            "You took `groups` for the number of channels in a group. It is the number of groups.",
            {_PARTS: 'parts = x.unflatten(1, (-1, groups)) if technique == "group" else x'},
        ),
        Mistake(
            "group_strided",
            "Your groups take every G-th channel: (C/G, G) instead of (G, C/G). Neighbours belong together, "
            "or weights trained elsewhere meet the wrong statistics.",
            {
                _PARTS: 'parts = x.unflatten(1, (-1, groups)) if technique == "group" else x',
                _GROUP: '"group": [1, *(d + 1 for d in rest)]',
            },
        ),
        Mistake(
            "viewed",
            "Your result is right where `x` is contiguous. A channels_last tensor cannot be *viewed* group "
            "by group; `reshape` or `unflatten` can.",
            {
                _PARTS: (
                    "parts = x.view(len(x), groups, -1, *x.shape[2:]).view(len(x), groups, -1) "
                    'if technique == "group" else x'
                ),
                _GROUP: '"group": [2]',
            },
        ),
        Mistake(
            "images_only",
            "Your axes fit (N, C, H, W) only. A sequence (N, C, L) has no axis 3, a volume one more.",
            {"rest = list(range(2, x.dim()))": "rest = [2, 3]"},
        ),
        Mistake(
            "layer_images_only",
            "The axes of your Layer Normalization fit (N, C, H, W) only. A sequence (N, C, L) has no axis 3.",
            {'"layer": [1, *rest]': '"layer": [1, 2, 3]'},
        ),
        Mistake(
            "instance_images_only",
            "The axes of your Instance Normalization fit (N, C, H, W) only. A sequence (N, C, L) has "
            "no axis 3.",
            {'"instance": rest': '"instance": [2, 3]'},
        ),
        Mistake(
            "rms_images_only",
            "The axes of your RMS fit (N, C, H, W) only. A sequence (N, C, L) has no axis 3.",
            {'"rms": [1, *rest]': '"rms": [1, 2, 3]'},
        ),
        Mistake(
            "not_centred",
            "You subtract no mean at all. Only RMS does without it; the others forget a shift.",
            {'0 if technique == "rms" else parts.mean(dim=dims, keepdim=True)': "0"},
        ),
        Mistake(
            "statistics_detached",
            "Your output is right, your gradient is not: you cut the variance out of the graph, and "
            "with it one of the two terms that keep the gradient off the forgotten directions.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var.detach() + eps)"},
        ),
        Mistake(
            "always_float",
            "You return float32 where half precision came in. The output has the dtype of `x`.",
            {
                "return y.reshape(x.shape)": (
                    "return y.float().reshape(x.shape) if x.dtype == torch.bfloat16 else y.reshape(x.shape)"
                )
            },
        ),
        Mistake(
            "in_place",
            "You overwrite `x`. The caller may still need it.",
            {"y = (parts - mean)": "parts -= mean\n    y = parts"},
        ),
        Mistake(
            "shape_lost",
            "Your output still has the axis of the groups. Bring it back to the shape of `x`: the next layer "
            "expects its channels in one axis.",
            {"return y.reshape(x.shape)": "return y"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "    rest = list": (
                    '    if technique == "group":\n'
                    "        return F.group_norm(x, groups, eps=eps)\n    rest = list"
                )
            },
        ),
    ),
    probe=by_hand(_probe_normalize),
)

# ---------------------------------------------------------------------------------------- invariances

_CASES = ("samples scaled", "channels scaled", "all shifted")
_OPTIONS = {f"{technique}: {case}": ("yes", "no") for case in _CASES for technique in TECHNIQUES}


def _probe_invariances(answer: dict[str, Any], draw: Draw) -> Observations:
    yield from choices(answer, _OPTIONS)


def _invariances(yes: set[str]) -> str:
    lines = [f'    "{name}": "{"yes" if name in yes else "no"}",' for name in _OPTIONS]
    return "\ninvariant = {\n" + "\n".join(lines) + "\n}\n"


_INVARIANT = {
    *(f"{technique}: samples scaled" for technique in TECHNIQUES if technique != "batch"),
    "batch: channels scaled",
    "instance: channels scaled",
    *(f"{technique}: all shifted" for technique in TECHNIQUES if technique != "rms"),
}


def _says(*changes: str) -> dict[str, str]:
    """Patches that turn the reference's word for each of these names."""
    words = {True: '"yes"', False: '"no"'}
    return {
        f'"{name}": {words[name in _INVARIANT]}': f'"{name}": {words[name not in _INVARIANT]}'
        for name in changes
    }


INVARIANCES = Exercise(
    id="one_formula.invariances",
    title="What leaves the output alone?",
    answer="invariant",
    statement=r"""
$x$ of shape $(N, C, H, W)$ is changed *before* it is normalized. Does the output stay the same, whatever the
numbers? Say `"yes"` or `"no"` in the dict `invariant`, for each of the keys `"batch: samples scaled"` …
`"rms: all shifted"`.

- **samples scaled**: each sample is multiplied by a positive number of its own.
- **channels scaled**: each channel is multiplied by a positive number of its own, the same in all samples.
- **all shifted**: one and the same number is added to every element.

$\varepsilon$ is too small to matter, there is no $\gamma$ or $\beta$; `"batch"` is in training, `"layer"` and
`"rms"` run over $(C, H, W)$, and `"group"` has groups of two channels.
""",
    starter="\ninvariant = {\n" + "\n".join(f'    "{name}": ...,' for name in _OPTIONS) + "\n}\n",
    hints=(
        "A change does nothing if, within each set, it is one shift and one positive factor for all its "
        "elements. So ask: is the number the same for all elements of the set?",
        "A set of Batch Normalization holds several samples; a set of Layer or Group Normalization holds "
        "several channels; a set of Instance Normalization holds one of each.",
        "Without the mean, a shift is not taken out.",
    ),
    reference=_invariances(_INVARIANT),
    alternatives=(
        """
sets = {"batch": "nhw", "layer": "chw", "instance": "hw", "group": "chw", "rms": "chw"}
invariant = {}
for technique, varies in sets.items():
    invariant[f"{technique}: samples scaled"] = "no" if "n" in varies else "yes"
    invariant[f"{technique}: channels scaled"] = "no" if "c" in varies else "yes"
    invariant[f"{technique}: all shifted"] = "no" if technique == "rms" else "yes"
""",
        """
x = torch.randn(3, 4, 2, 2, dtype=torch.float64) + 1
axes = {"layer": (1, 2, 3, 4), "rms": (1, 2, 3, 4), "instance": (3, 4), "group": (2, 3, 4)}
axes["batch"] = (0, 3, 4)
changes = {
    "samples scaled": lambda x: x * torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1),
    "channels scaled": lambda x: x * torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1),
    "all shifted": lambda x: x + 5,
}


def run(x, name):
    x = x.unflatten(1, (2, 2))
    dims = axes[name]
    x = x if name == "rms" else x - x.mean(dims, keepdim=True)
    return x / x.square().mean(dims, keepdim=True).sqrt()


invariant = {
    f"{name}: {case}": "yes" if torch.allclose(run(x, name), run(change(x), name)) else "no"
    for name in axes
    for case, change in changes.items()
}
""",
    ),
    mistakes=(
        Mistake(
            "batch_forgives_samples",
            "Batch Normalization does not undo what differs between samples: they share one mean and one "
            "variance, so a brighter sample stays brighter than the others.",
            _says("batch: samples scaled"),
        ),
        Mistake(
            "batch_sees_channels",
            "A channel's factor is the same for all elements of Batch Normalization's set, so it cancels. "
            "That is why the length of a filter before it does not matter.",
            _says("batch: channels scaled"),
        ),
        Mistake(
            "layer_forgives_channels",
            "Layer Normalization's set holds all channels. A channel that is multiplied weighs more among "
            "them, and the output changes.",
            _says("layer: channels scaled"),
        ),
        Mistake(
            "group_forgives_channels",
            "A group holds two channels here, each with a factor of its own: they do not cancel. With one "
            "channel in each group they would.",
            _says("group: channels scaled"),
        ),
        Mistake(
            "per_sample_like_batch",
            "You expect a sample's scale to survive everywhere. A set that lies within one sample has one "
            "factor, and it cancels: layer, instance, group and RMS normalization all forget it.",
            _says(*(f"{t}: samples scaled" for t in TECHNIQUES if t != "batch")),
        ),
        Mistake(
            "rms_sees_samples",
            "RMS drops the mean, not the division: a sample's factor still cancels.",
            _says("rms: samples scaled"),
        ),
        Mistake(
            "rms_forgives_shift",
            "RMS subtracts no mean, so a shift stays in. This is what it gives up against Layer "
            "Normalization.",
            _says("rms: all shifted"),
        ),
        Mistake(
            "rms_forgives_channels",
            "RMS averages x² over all channels. Each channel's own factor does not cancel.",
            _says("rms: channels scaled"),
        ),
        Mistake(
            "instance_like_layer",
            "Instance Normalization's set lies within one channel: its factor cancels, as the sample's does. "
            "That is how it removes contrast.",
            _says("instance: channels scaled"),
        ),
        Mistake(
            "shift_per_channel_only",
            "One number for all elements is also one number for all elements of each set. Every mean takes "
            "it out, also in layer and group normalization.",
            _says("layer: all shifted", "group: all shifted"),
        ),
        Mistake(
            "all_alike",
            "Not everything cancels: only what is one shift and one factor *within a set*.",
            _says(*(name for name in _OPTIONS if name not in _INVARIANT)),
        ),
    ),
    probe=_probe_invariances,
)

# ------------------------------------------------------------------------------------------- backward


def _probe_backward(backward: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)
    grad, x = draw.values(3, 4, 2, 3), draw.batch(3, 4, 2, 3)

    def call(grad: Tensor, x: Tensor, axes: tuple[int, ...], eps: float = eps) -> Any:
        return returned(without_autograd(backward, grad, x, axes, eps), backward)

    passed = grad.clone(), x.clone()
    for axes in ((0, 2, 3), (1, 2, 3), (2, 3), (-1,)):
        yield f"dx over {axes}", call(*passed, axes)
    kept = torch.equal(passed[0], grad) and torch.equal(passed[1], x)
    yield "the arguments are unchanged", Holds(kept, "the arguments are overwritten", "in_place")
    yield "dx for a tiny eps and a small variance", call(grad, 1e-4 * x, (2, 3), 1e-12)
    yield "dx for float32", call(grad.float(), x.float(), (1, 2, 3))


_DX = "inverse * (grad - through_mean - through_var)"

BACKWARD = Exercise(
    id="one_formula.backward",
    title="The backward pass, for any index set",
    answer="standardize_backward",
    statement=r"""
Write `standardize_backward(grad, x, axes, eps)`: the gradient in `x` of the one formula
$\hat x = (x - \mu)/\sqrt{\sigma^2 + \varepsilon}$ over any tuple of `axes`. `grad` is
$\partial L/\partial \hat x$, of the shape of `x`; so is the result.

- It serves Batch, Layer, Instance and Group Normalization at once. The checker uses four tuples of axes.
- Every element of a set moves every other through $\mu$ and $\sigma^2$.
- Use no autograd and none of torch's own normalization: both are refused.
""",
    starter="""
def standardize_backward(grad, x, axes, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Recompute x̂ and r = 1/√(σ² + ε) first. Then three terms, all with the factor r.",
        "One term is `grad` itself, one takes out its mean over the set, one takes out its part along x̂.",
        "The part along x̂ is x̂ times the mean of grad · x̂ over the set.",
    ),
    reference=f"""
def standardize_backward(grad, x, axes, eps):
    mean = x.mean(dim=axes, keepdim=True)
    var = x.var(dim=axes, correction=0, keepdim=True)
    inverse = 1 / torch.sqrt(var + eps)
    x_hat = (x - mean) * inverse
    through_mean = grad.mean(dim=axes, keepdim=True)
    through_var = x_hat * (grad * x_hat).mean(dim=axes, keepdim=True)
    return {_DX}
""",
    alternatives=(
        """
def standardize_backward(grad, x, axes, eps):
    n = 1
    for axis in axes:
        n *= x.shape[axis]
    centred = x - x.sum(dim=axes, keepdim=True) / n
    std = (centred.square().sum(dim=axes, keepdim=True) / n + eps) ** 0.5
    dvar = (grad * centred).sum(dim=axes, keepdim=True) * -0.5 * std**-3
    dmean = -(grad / std).sum(dim=axes, keepdim=True)
    return grad / std + dvar * 2 * centred / n + dmean / n
""",
        """
def standardize_backward(grad, x, axes, eps):
    last = tuple(range(-len(axes), 0))
    moved = x.movedim(axes, last)
    rows, g = moved.flatten(-len(axes)), grad.movedim(axes, last).flatten(-len(axes))
    m = rows.size(-1)
    var, mean = torch.var_mean(rows, dim=-1, correction=0, keepdim=True)
    r = torch.rsqrt(var + eps)
    x_hat = (rows - mean) * r
    eye = torch.eye(m, dtype=x.dtype, device=x.device)
    jacobian = eye - 1 / m - x_hat[..., :, None] * x_hat[..., None, :] / m
    dx = r * (jacobian @ g[..., None])[..., 0]
    return dx.view(moved.shape).movedim(last, axes)
""",
    ),
    mistakes=(
        Mistake(
            "mean_path_missing",
            "You treat μ as a constant. Each element moves the mean, and with it all others of its set.",
            {_DX: "inverse * (grad - through_var)"},
        ),
        Mistake(
            "variance_path_missing",
            "You treat σ² as a constant. Each element changes the scale of all others of its set. Or you "
            "multiply two means: that of x̂ is 0, so average the *product* ĝ·x̂.",
            {_DX: "inverse * (grad - through_mean)"},
        ),
        Mistake(
            "both_paths_missing",
            "You treat μ and σ² as constants. That is the gradient of evaluation with running statistics, "
            "not of normalization.",
            {_DX: "inverse * grad"},
        ),
        Mistake(
            "paths_added",
            "You add the two paths. Both are taken *out* of the gradient.",
            {_DX: "inverse * (grad + through_mean + through_var)"},
        ),
        Mistake(
            "mean_path_added",
            "You add the path through the mean. It is subtracted, as μ is.",
            {_DX: "inverse * (grad + through_mean - through_var)"},
        ),
        Mistake(
            "variance_path_added",
            "You add the path through the variance. It is subtracted: a larger σ² makes x̂ smaller.",
            {_DX: "inverse * (grad - through_mean + through_var)"},
        ),
        Mistake(
            "sums_instead_of_means",
            "You sum where a mean belongs: your two paths are m times too strong, m the size of the set.",
            {
                "grad.mean(dim=axes": "grad.sum(dim=axes",
                "(grad * x_hat).mean(": "(grad * x_hat).sum(",
            },
        ),
        Mistake(
            "scale_missing",
            "You leave out the factor r = 1/√(σ² + ε). It is why large activations have small gradients.",
            {_DX: "grad - through_mean - through_var"},
        ),
        Mistake(
            "brackets",
            "The factor r multiplies all three terms: check the brackets.",
            {_DX: "inverse * (grad - through_mean) - through_var"},
        ),
        Mistake(
            "brackets_first_only",
            "The factor r multiplies all three terms, not the first one alone: check the brackets.",
            {_DX: "inverse * grad - through_mean - through_var"},
        ),
        Mistake(
            "centred_instead_of_x_hat",
            "In the path through the variance you use x − μ. It is x̂ on both sides: divided by the "
            "deviation "
            "too.",
            {"x_hat * (grad * x_hat)": "(x - mean) * (grad * (x - mean))"},
        ),
        Mistake(
            "x_instead_of_x_hat",
            "In the path through the variance you use `x`. It is x̂ on both sides: the centred and scaled "
            "value.",
            {"x_hat * (grad * x_hat)": "x * (grad * x)"},
        ),
        Mistake(
            "x_hat_missing",
            "In the path through the variance, the mean is multiplied by x̂ again: how far an element lies "
            "from μ says how much it moves σ².",
            {"x_hat * (grad * x_hat).mean": "(grad * x_hat).mean"},
        ),
        Mistake(
            "unbiased_variance",
            "You recompute x̂ with the unbiased variance. The forward pass divided by n.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "eps_missing",
            "You leave ε out of the root, but the forward pass had it: where variances are small, yours is "
            "the gradient of another function.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, not by its root: your gradient is off by a factor 1/σ.",
            {"1 / torch.sqrt(var + eps)": "1 / (var + eps)"},
        ),
        Mistake(
            "axes_ignored",
            "You use Batch Normalization's axes whatever `axes` says.",
            {"    mean = x": "    axes = (0, 2, 3)\n    mean = x"},
        ),
        Mistake(
            "in_place",
            "You overwrite `grad`. Other layers may still need it.",
            {f"return {_DX}": f"return grad.copy_({_DX})"},
        ),
        Mistake(
            "uses_autograd",
            AUTOGRAD,
            {
                "    mean = x": (
                    "    with torch.enable_grad():\n"
                    "        x = x.clone().requires_grad_()\n"
                    "        var, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)\n"
                    "        return torch.autograd.grad((x - mean) / torch.sqrt(var + eps), x, grad)[0]\n"
                    "    mean = x"
                )
            },
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    mean = x": ("    F.layer_norm(x, x.shape[1:])\n    mean = x")},
        ),
    ),
    probe=by_hand(_probe_backward),
)

# ------------------------------------------------------------------------------------- effective rate

RATES = (
    "gradient at 3w",
    "learning rate at 3w",
    "squared length after a step",
    "effective learning rate",
    "effective learning rate after the step",
    "growth of ‖w‖ when η is 16 times as large",
    "growth of ‖w‖ when λ is 16 times as large",
)


def _probe_rates(prediction: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(prediction, RATES, tolerance=0.001)


RATE = Exercise(
    id="one_formula.effective_rate",
    title="The learning rate that counts",
    answer="rates",
    statement=r"""
Paper and pencil. A weight vector $w$ stands before a normalization, so $f(aw) = f(w)$ for every $a > 0$. Its
length ‖w‖ is 2, the gradient of $f$ there has the length 2 too, and the learning rate η is 0.5. Fill
in the dict `rates`, to two decimals (three where the number is below 1):

- `"gradient at 3w"`: the gradient's length at $3w$;
- `"learning rate at 3w"`: the learning rate with which plain gradient descent from $3w$ gives the same
  *functions*, step by step, as from $w$ with 0.5;
- `"squared length after a step"`: ‖w‖² after one step of plain gradient descent from $w$;
- `"effective learning rate"`: η/‖w‖² before that step;
- `"effective learning rate after the step"`: the same after it;
- with weight decay λ, after a long time, by which factor does the settled ‖w‖ change:
  `"growth of ‖w‖ when η is 16 times as large"` (and λ the same), and
  `"growth of ‖w‖ when λ is 16 times as large"` (and η the same)?
""",
    starter="\nrates = {\n" + "\n".join(f'    "{name}": ...,' for name in RATES) + "\n}\n",
    hints=(
        "Differentiate f(aw) = f(w) in w: a factor a appears on the left.",
        "A step at 3w has to be three times as long as at w, but the gradient there is three times shorter.",
        "The gradient is orthogonal to w, so the step and w are two sides of a right angle: Pythagoras.",
        "At rest, decay shrinks ‖w‖² by 2ηλ‖w‖² and the step adds η²‖∇f‖². And ‖∇f‖ is proportional to "
        "1/‖w‖.",
    ),
    reference="""
length, gradient, lr = 2.0, 2.0, 0.5
after = length**2 + (lr * gradient) ** 2
rates = {
    "gradient at 3w": gradient / 3,
    "learning rate at 3w": lr * 3**2,
    "squared length after a step": after,
    "effective learning rate": lr / length**2,
    "effective learning rate after the step": lr / after,
    "growth of ‖w‖ when η is 16 times as large": 16**0.25,
    "growth of ‖w‖ when λ is 16 times as large": 16**-0.25,
}
""",
    alternatives=(
        """
rates = {
    "gradient at 3w": 0.667,
    "learning rate at 3w": 4.5,
    "squared length after a step": 5,
    "effective learning rate": 0.125,
    "effective learning rate after the step": 0.1,
    "growth of ‖w‖ when η is 16 times as large": 2,
    "growth of ‖w‖ when λ is 16 times as large": 0.5,
}
""",
        """
w = torch.tensor([2.0, 0.0], requires_grad=True)


def f(w):
    return 4 * w[1] / w.square().sum().sqrt()


def gradient(w):
    return torch.autograd.grad(f(w), w)[0]


after = (w - 0.5 * gradient(w)).square().sum().item()
rates = {
    "gradient at 3w": gradient(3 * w.detach().requires_grad_()).square().sum().sqrt(),
    "learning rate at 3w": 0.5 * 9,
    "squared length after a step": after,
    "effective learning rate": 0.5 / 4,
    "effective learning rate after the step": 0.5 / after,
    "growth of ‖w‖ when η is 16 times as large": (16 / 1) ** (1 / 4),
    "growth of ‖w‖ when λ is 16 times as large": (1 / 16) ** (1 / 4),
}
""",
    ),
    mistakes=(
        Mistake(
            "gradient_unchanged",
            "You left the gradient at 3w as it is. The same change of direction needs a step three times as "
            "long there, so the loss rises more slowly: the gradient shrinks.",
            {"gradient / 3": "gradient"},
        ),
        Mistake(
            "gradient_grows",
            "You let the gradient grow with w, as for a linear function. f does not see the length, so the "
            "derivative of f(aw) = f(w) is a ∇f(aw) = ∇f(w).",
            {"gradient / 3": "gradient * 3"},
        ),
        Mistake(
            "gradient_square",
            "You divided the gradient by 9. One factor 3 belongs to it; the second comes in with the step, "
            "relative to the longer w.",
            {"gradient / 3": "gradient / 9"},
        ),
        Mistake(
            "rate_once",
            "You scaled the learning rate by 3. The step must grow by 3 *and* make up for a gradient that is "
            "3 times shorter.",
            {"3**2": "3"},
        ),
        Mistake(
            "rate_unchanged",
            "You kept the learning rate. At 3w the same η turns w nine times less per step: the effective "
            "learning rate falls as the weights grow.",
            {"lr * 3**2": "lr"},
        ),
        Mistake(
            "rate_inverted",
            "You made the learning rate smaller. Longer weights need a *larger* one to turn as fast.",
            {"3**2": "3**-2"},
        ),
        Mistake(
            "length_kept",
            "You let the length stay. The step is orthogonal to w, and a step along the tangent leads away "
            "from the circle.",
            {"length**2 + (lr * gradient) ** 2": "length**2"},
        ),
        Mistake(
            "step_along_w",
            "You subtracted the step from the length, as if the gradient pointed along w. It is orthogonal "
            "to w.",
            {"length**2 + (lr * gradient) ** 2": "(length - lr * gradient) ** 2"},
        ),
        Mistake(
            "lengths_added",
            "You added the two lengths. They are sides of a right angle: the squares add up.",
            {"length**2 + (lr * gradient) ** 2": "(length + lr * gradient) ** 2"},
        ),
        Mistake(
            "length_not_squared",
            "You took the root: what is asked for is ‖w‖², and η is divided by it, too.",
            {"length**2 + (lr * gradient) ** 2": "(length**2 + (lr * gradient) ** 2) ** 0.5"},
        ),
        Mistake(
            "rate_not_squared",
            "You forgot to square the learning rate: the step has the length η‖∇f‖.",
            {"(lr * gradient) ** 2": "lr * gradient**2"},
        ),
        Mistake(
            "effective_by_length",
            "You divided by ‖w‖. One ‖w‖ comes from the gradient and a second one from the step being "
            "measured against w.",
            {"lr / length**2": "lr / length", "lr / after": "lr / after**0.5"},
        ),
        Mistake(
            "square_root",
            "You took the square root. The gradient depends on ‖w‖ too, so it is ‖w‖⁴ that is proportional "
            "to η/λ.",
            {"16**0.25": "16**0.5", "16**-0.25": "16**-0.5"},
        ),
        Mistake(
            "decay_shrinks_in_proportion",
            "You let ‖w‖ grow in proportion to η. At rest ‖w‖⁴ is proportional to η/λ.",
            {"16**0.25": "16", "16**-0.25": "1 / 16"},
        ),
        Mistake(
            "decay_like_rate",
            "You let a larger decay lengthen the weights. It pulls them in: λ divides.",
            {"16**-0.25": "16**+0.25"},
        ),
        Mistake(
            "growth_inverted",
            "You swapped the two: a larger learning rate lengthens the settled weights, a larger decay "
            "shortens them.",
            {"16**0.25": "1 / 16**0.25", "16**-0.25": "16 ** 0.25"},
        ),
    ),
    probe=_probe_rates,
)

# ------------------------------------------------------------------------------------------ challenge

WIDTH, DEPTH = 128, 50


def _probe_deep(step: Callable[..., Any], draw: Draw) -> Observations:
    side = (3 / WIDTH) ** 0.5
    weights = [draw.values(WIDTH, WIDTH, low=-side, high=side) for _ in range(DEPTH)]
    samples = draw.values(8, WIDTH, low=-1.5, high=1.5) + draw.values(1, WIDTH, low=-1.5, high=1.5)

    def run(h: Tensor) -> tuple[Tensor, list[float]]:
        scales = []
        for weight in weights:
            h = returned(step(h @ weight.T), step)
            scales.append(h.square().mean().sqrt().item())
        return h, scales

    z = samples.clone()
    yield "the shape stays", returned(step(z), step).shape == samples.shape
    yield "the input is unchanged", unchanged(z, samples, "in_place")
    # Of a map that is linear but for a factor per sample, f(a + b) lies in the plane of f(a) and f(b).
    rows = returned(step(torch.cat([samples, samples[:1] + samples[1:2]])), step)
    finite = bool(rows.isfinite().all())
    yield (
        "the output is finite",
        Holds(finite, "your step returns nan or inf", "not_finite"),
    )
    if not finite:
        return
    plane, whole = rows[:2].T, rows[-1]
    inside = plane @ (torch.linalg.pinv(plane) @ whole)
    bend = ((whole - inside).norm() / whole.norm()).item()
    yield (
        "the step is not linear",
        Holds(bend > 0.01, f"only {bend:.2%} of the step's output is beyond a linear map's reach", "linear"),
    )
    deep, scales = run(samples)
    low, high = min(scales), max(scales)
    kept = low >= 0.5 and high <= 2
    ranges = f"over the {DEPTH} layers the root mean square ranges from {low:.2g} to {high:.2g}"
    he = torch.allclose(rows, 2**0.5 * torch.relu(torch.cat([samples, samples[:1] + samples[1:2]])))
    yield "not the ReLU times √2", Holds(not he, "your step is the ReLU times √2", "he")
    centred = bool(rows.mean(1).abs().max() < 1e-6 * rows.square().mean().sqrt())
    yield "a centred step holds its scale too", Holds(kept or not centred, ranges, "centred_only")
    yield "the scale stays between 0.5 and 2", Holds(kept, ranges, "no_scale")
    alone, _ = run(samples[:1])
    apart = (alone[0] - deep[0]).abs().max().item()
    yield (
        "a sample alone gives what it gives in company",
        Holds(apart <= 0.01, f"alone and in company differ by {apart:.2g}", "batch_statistics"),
    )
    spread = ((deep - deep.mean(0)).square().mean() / deep.square().mean()).sqrt().item()
    yield (
        "the samples differ at the end",
        Holds(
            spread >= 0.6,
            f"the samples' deviation is {spread:.2f} of the root mean square, at least 0.6 is asked for",
            "before_relu",
        ),
    )


_STEP = """h = torch.relu(z)
    h = h - h.mean(dim=1, keepdim=True)
    return h / torch.sqrt(h.square().mean(dim=1, keepdim=True) + 1e-5)"""

DEEP = Exercise(
    id="one_formula.deep",
    title="Challenge: fifty random layers",
    answer="step",
    statement=r"""
A new network, 50 layers of width 128, no skip connections. Each layer multiplies by a new random $W$, whose
entries have variance 1/128, and calls `step(z)` on the product. You choose `step`, from $(N, 128)$ to
$(N, 128)$: one nonlinearity and whatever normalization you like, without parameters. The checker runs eight
related samples through, and asks that

- the root mean square of what `step` returns stays between 0.5 and 2 in all fifty layers;
- a sample alone gives the same result as in company: no statistics over the batch;
- the samples still differ at the end: their deviation over the batch is at least 0.6 of the root mean square;
- `step` is not linear, keeps the shape, and leaves `z` as it is.

The reference reaches a deviation of 0.93 to 0.95 over five seeds. A well-known order of operations reaches
0.06 to 0.11: it forgets which sample it saw. torch's batch, layer, group, instance and RMS normalization are
refused; any other way is right.
""",
    starter="""
def step(z):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Start with a ReLU alone, and read what the checker measures. Then normalize over each sample's 128 "
        "values: that repairs the scale.",
        "After a ReLU all values are positive, so two samples share a large part: their mean. What removes a "
        "mean, and where would it have to stand?",
    ),
    reference=f"""
def step(z):
    {_STEP}
""",
    alternatives=(
        """
def step(z):  # the constants of a Gaussian input instead of the mean and deviation after the ReLU
    h = torch.relu(z / torch.sqrt(z.square().mean(dim=1, keepdim=True) + 1e-5))
    mean = (2 * torch.pi) ** -0.5
    return (h - mean) / (0.5 - mean**2) ** 0.5
""",
        """
def step(z):  # an odd nonlinearity has no mean to remove
    h = torch.tanh(z / torch.sqrt(z.square().mean(dim=1, keepdim=True)))
    return h / torch.sqrt(h.square().mean(dim=1, keepdim=True))
""",
        """
def step(z):
    h = F.gelu(z)
    h = h - h.mean(dim=1, keepdim=True)
    return h / h.std(dim=1, keepdim=True)
""",
    ),
    mistakes=(
        Mistake(
            "no_scale",
            "Nothing in your step holds the scale, so it drifts over the fifty layers.",
            {_STEP: "return torch.relu(z)"},
        ),
        Mistake(
            "centred_only",
            "You remove each sample's mean, but nothing holds its scale, so that drifts over the "
            "fifty layers.",
            {_STEP: "h = torch.relu(z)\n    return h - h.mean(dim=1, keepdim=True)"},
        ),
        Mistake(
            "he",
            "√2 makes up for the ReLU on average (He's factor), but nothing corrects the drift; and "
            "the samples "
            "still become one.",
            {_STEP: "return 2**0.5 * torch.relu(z)"},
        ),
        Mistake(
            "not_finite",
            "Your step returns nan or inf: is a deviation 0 somewhere? Over the samples, for instance, it is "
            "0 where a ReLU has cut all of them off.",
            {_STEP: "h = torch.relu(z)\n    return (h - h.mean(dim=0)) / h.std(dim=0)"},
        ),
        Mistake(
            "batch_statistics",
            "Your statistics run over the batch, so a sample's result depends on its company, and alone it "
            "has none.",
            {
                _STEP: (
                    "h = z - z.mean(dim=0)\n"
                    "    h = h / torch.sqrt(h.square().mean(dim=0) + 1e-5)\n"
                    "    return 2**0.5 * torch.relu(h)"
                )
            },
        ),
        Mistake(
            "before_relu",
            "Your scale holds, but the samples become one: what they share grows from layer to layer. A "
            "ReLU, for one, gives them all a positive mean. What is normalized *before* the nonlinearity, or "
            "divided without taking out the mean after it, cannot help.",
            {
                _STEP: (
                    "h = z - z.mean(dim=1, keepdim=True)\n"
                    "    h = h / torch.sqrt(h.square().mean(dim=1, keepdim=True) + 1e-5)\n"
                    "    return 2**0.5 * torch.relu(h)"
                )
            },
        ),
        Mistake(
            "linear",
            "Your step is linear but for a factor per sample. Fifty of them are one matrix: the network is "
            "no deeper than one layer.",
            {_STEP: "return z / torch.sqrt(z.square().mean(dim=1, keepdim=True) + 1e-5)"},
        ),
        Mistake(
            "in_place",
            "You overwrite `z`. Autograd still needs it.",
            {"h = torch.relu(z)": "h = torch.relu_(z)"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {_STEP: "return F.layer_norm(torch.relu(z), (z.size(1),))"},
        ),
    ),
    probe=by_hand(_probe_deep),
    challenge=True,
)

EXERCISES = (COUNT, STANDARDIZE, BUG_RESHAPE, INVARIANCES, NORMALIZE, RATE, BACKWARD, DEEP)
