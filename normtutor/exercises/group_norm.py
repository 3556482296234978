"""The exercises of the Group Normalization notebook, from easy to hard."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normtutor.exercises.exercise import Exercise, Mistake, patched
from normtutor.exercises.observe import (
    AUTOGRAD,
    NORMALIZATION,
    Approx,
    Broken,
    Draw,
    Holds,
    attempted,
    by_hand,
    kind,
    returned,
    settle,
    without_autograd,
)
from normtutor.exercises.probes import (
    Observations,
    gradients,
    leaf,
    loads,
    numbers,
    parameter_shapes,
    unchanged,
)
from normtutor.lab.data import digits
from normtutor.lab.training import accuracy, train

# -------------------------------------------------------------------------------------------- forward


def _probe_forward(group_norm: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)
    affine = draw.values(6), draw.values(6)
    images, rows, series = draw.batch(3, 6, 2, 5), draw.batch(4, 6), draw.batch(2, 6, 3)

    def call(x: Tensor, groups: int, eps: float, affine: tuple[Tensor, Tensor] = affine) -> Any:
        return returned(group_norm(x, groups, *(value.clone() for value in affine), eps), group_norm)

    x = images.clone()
    yield "output for (N, C, H, W)", call(x, 3, eps)
    yield "the input is unchanged", unchanged(x, images, "in_place")
    yield "output for (N, C)", call(rows.clone(), 2, eps)
    yield "output for (N, C, L)", call(series.clone(), 2, eps)
    yield "output for one group", call(images.clone(), 1, eps)
    yield "output for as many groups as channels", call(images.clone(), 6, eps)
    inputs = {
        name: leaf(value) for name, value in zip(("x", "weight", "bias"), (images, *affine), strict=True)
    }
    x, *rest = (value * 1 for value in inputs.values())
    y = returned(group_norm(x, 2, *rest, eps), group_norm)
    yield from gradients(y, draw, **inputs)
    yield "output for a transposed input", call(images.transpose(2, 3), 2, eps)
    yield "output for channels_last", call(images.contiguous(memory_format=torch.channels_last), 2, eps)
    yield "output for a tiny eps and a small variance", call(1e-4 * images, 3, 1e-12)
    if draw.dtype == torch.float64:
        yield "output at an offset of 1e8", Approx(call(images + 1e8, 2, eps), 0.02)
    weight, bias = affine
    yield "output for float32", call(images.float(), 2, eps, (weight.float(), bias.float()))


FORWARD = Exercise(
    id="group_norm.forward",
    title="The forward formula",
    answer="group_norm",
    statement=r"""
Write Group Normalization as a function `group_norm(x, num_groups, weight, bias, eps)`:

$$y = \gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\varepsilon}} + \beta$$

- `x` has shape $(N, C, *)$: $(N, C)$, $(N, C, L)$, $(N, C, H, W)$ …, in any memory layout.
- `num_groups` is $G$, a divisor of $C$. Group 0 is the first $C/G$ channels, group 1 the next $C/G$, and so
  on. $\mu$ and $\sigma^2$ are the mean and the biased variance of one group of one sample.
- `weight` ($\gamma$) and `bias` ($\beta$) have shape $(C,)$: one pair per *channel*.
- Return a new tensor of the shape and dtype of `x`, and leave `x` as it is.
- Write the formula: torch's own normalization is refused.

The checker looks at all these shapes, at $G = 1$ and $G = C$, at transposed and channels-last inputs, at a
tiny $\varepsilon$, at a mean of $10^8$ deviations (in float64), and at the gradient in `x`, `weight` and
`bias`.
""",
    starter="""
def group_norm(x, num_groups, weight, bias, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Give the groups an axis of their own: (N, C, *) becomes (N, G, C/G, *). What do the statistics run "
        "over then?",
        "`x.unflatten(1, (num_groups, -1))` splits axis 1 in any memory layout; so does `reshape`. "
        "`flatten(1, 2)` or another `reshape` joins the axes again.",
        "γ and β come after the groups are joined: `view` them so that they line up with axis 1.",
    ),
    reference="""
def group_norm(x, num_groups, weight, bias, eps):
    groups = x.reshape(len(x), num_groups, -1)
    mean = groups.mean(dim=2, keepdim=True)
    var = groups.var(dim=2, correction=0, keepdim=True)
    x_hat = (groups - mean) / torch.sqrt(var + eps)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return weight.view(shape) * x_hat.reshape(x.shape) + bias.view(shape)
""",
    alternatives=(
        """
def group_norm(x, num_groups, weight, bias, eps):
    groups = x.unflatten(1, (num_groups, -1))
    dims = tuple(range(2, groups.dim()))
    var, mean = torch.var_mean(groups, dim=dims, correction=0, keepdim=True)
    x_hat = ((groups - mean) * torch.rsqrt(var + eps)).flatten(1, 2).movedim(1, -1)
    return (x_hat * weight + bias).movedim(-1, 1)
""",
        """
def group_norm(x, num_groups, weight, bias, eps):
    y = torch.empty_like(x)
    size = x.size(1) // num_groups
    for n in range(len(x)):
        for first in range(0, x.size(1), size):
            group = x[n, first : first + size]
            centred = group - group.mean()
            y[n, first : first + size] = centred / (centred.square().mean() + eps) ** 0.5
    channels = (slice(None),) + (None,) * (x.dim() - 2)
    return y * weight[channels] + bias[channels]
""",
    ),
    mistakes=(
        Mistake(
            "unbiased_variance",
            "You divide the variance by n − 1. Every technique of this course normalizes with the biased "
            "variance; with few values in a group the two differ a lot.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. It belongs to the variance, under the root.",
            {"torch.sqrt(var + eps)": "(torch.sqrt(var) + eps)"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. A group that is constant then divides zero by zero.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "fixed_eps",
            "You use an ε of your own, not the argument. Whoever passes another value is ignored.",
            {"var + eps": "var + 1e-5"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, without the root. The output then has spread 1/σ, not 1.",
            {"torch.sqrt(var + eps)": "(var + eps)"},
        ),
        Mistake(
            "one_pass",
            "Your variance is E[x²] − E[x]². Where the mean is large against the deviation, two large "
            "numbers cancel and only noise is left.",
            {
                "groups.var(dim=2, correction=0, keepdim=True)": (
                    "groups.square().mean(dim=2, keepdim=True) - mean.square()"
                )
            },
        ),
        Mistake(
            "interleaved",
            "Your groups are interleaved: you reshape to (N, C/G, G, …) and keep the wrong axis, so that "
            "every G-th channel shares statistics. Groups are contiguous: the first C/G channels are group "
            "0, and a checkpoint of torch's would give other outputs.",
            {
                "groups = x.reshape(len(x), num_groups, -1)": (
                    "groups = x.reshape(len(x), -1, num_groups, x[0, 0].numel())\n"
                    "    groups = groups.transpose(1, 2).flatten(2)"
                ),
                "x_hat.reshape(x.shape)": (
                    "x_hat.unflatten(2, (-1, x[0, 0].numel())).transpose(1, 2).reshape(x.shape)"
                ),
            },
        ),
        Mistake(
            "size_for_number",
            "You take the second argument for the channels per group. It is the number of groups.",
            {"x.reshape(len(x), num_groups, -1)": "x.reshape(len(x), x.size(1) // num_groups, -1)"},
        ),
        Mistake(
            "batch_shared",
            "Your statistics run over the batch as well. Then a sample's output depends on its company, and "
            "just that is what Group Normalization avoids.",
            {
                "groups.mean(dim=2, keepdim=True)": "groups.mean(dim=(0, 2), keepdim=True)",
                "groups.var(dim=2,": "groups.var(dim=(0, 2),",
            },
        ),
        Mistake(
            "per_channel",
            "You give every channel its own statistics, whatever the number of groups. That is Instance "
            "Normalization.",
            {"x.reshape(len(x), num_groups, -1)": "x.reshape(len(x), x.size(1), -1)"},
        ),
        Mistake(
            "one_group",
            "You normalize each sample as a whole, whatever the number of groups. That is Layer "
            "Normalization over (C, H, W).",
            {"x.reshape(len(x), num_groups, -1)": "x.reshape(len(x), 1, -1)"},
        ),
        Mistake(
            "per_position",
            "Your statistics run over the channels of a group only, at each position alone. All positions "
            "of the group share one mean.",
            {
                "x.reshape(len(x), num_groups, -1)": (
                    "x.reshape(len(x), num_groups, x.size(1) // num_groups, -1)"
                )
            },
        ),
        Mistake(
            "view",
            "You `view` the input. A `view` needs axes that lie next to each other in memory; a transposed "
            "or channels-last tensor stops your function. `reshape` and `unflatten` copy where they must.",
            {"x.reshape(len(x), num_groups, -1)": "x.view(len(x), num_groups, -1)"},
        ),
        Mistake(
            "images_only",
            "You unpack four sizes, N, C, H and W. An input (N, C) or (N, C, L) stops your function.",
            {
                "    groups = x.reshape(len(x), num_groups, -1)": (
                    "    n, c, h, w = x.shape\n    groups = x.reshape(n, num_groups, -1)"
                )
            },
        ),
        Mistake(
            "affine_on_last_axis",
            "γ and β of shape (C,) line up with the *last* axis. A `view` has to put them on axis 1.",
            {"[1, -1] + [1] * (x.dim() - 2)": "[-1]"},
        ),
        Mistake(
            "affine_per_group",
            "All channels of a group get the same γ and β. They share statistics, not parameters: one pair "
            "per channel.",
            {
                "    shape = [": (
                    "    size = x.size(1) // num_groups\n"
                    "    weight, bias = (p[::size].repeat_interleave(size) for p in (weight, bias))\n"
                    "    shape = ["
                )
            },
        ),
        Mistake(
            "affine_swapped",
            "You swapped `weight` and `bias`: γ scales and β shifts.",
            {
                "weight.view(shape) * x_hat.reshape(x.shape) + bias.view(shape)": (
                    "bias.view(shape) * x_hat.reshape(x.shape) + weight.view(shape)"
                )
            },
        ),
        Mistake(
            "no_weight",
            "You leave γ out. The layer then cannot choose the scale of its output.",
            {"weight.view(shape) * x_hat": "x_hat"},
        ),
        Mistake(
            "no_bias",
            "You leave β out. Every group of the output then has mean 0, whatever the next layer needs.",
            {" + bias.view(shape)": ""},
        ),
        Mistake(
            "affine_first",
            "You apply γ and β before you normalize. The normalization then undoes most of it.",
            {
                "    groups = x": (
                    "    shape = [1, -1] + [1] * (x.dim() - 2)\n"
                    "    x = weight.view(shape) * x + bias.view(shape)\n"
                    "    groups = x"
                ),
                "weight.view(shape) * x_hat.reshape(x.shape) + bias.view(shape)": "x_hat.reshape(x.shape)",
            },
        ),
        Mistake(
            "not_centred",
            "You divide by the deviation but do not subtract the mean.",
            {"(groups - mean)": "groups"},
        ),
        Mistake(
            "statistics_detached",
            "Your output is right, your gradient is not: you detach the mean and the variance. They depend "
            "on `x` too.",
            {
                "groups.mean(dim=2, keepdim=True)": "groups.mean(dim=2, keepdim=True).detach()",
                "correction=0, keepdim=True)": "correction=0, keepdim=True).detach()",
            },
        ),
        Mistake(
            "no_graph",
            "Your output is right, but nothing can learn from it: no gradient reaches `x`, `weight` or "
            "`bias`.",
            {"def group_norm": "@torch.no_grad()\ndef group_norm"},
        ),
        Mistake(
            "always_float32",
            "You return float32 whatever comes in. The output has the dtype of `x`.",
            {
                "weight.view(shape) * x_hat.reshape(x.shape) + bias.view(shape)": (
                    "(weight.view(shape) * x_hat.reshape(x.shape) + bias.view(shape)).float()"
                )
            },
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    groups = x": ("    return F.group_norm(x, num_groups, weight, bias, eps)\n    groups = x")},
        ),
        Mistake(
            "in_place",
            "You overwrite `x`: a `reshape` that needs no copy shares its memory. The caller may still need "
            "it (a residual connection does, and so does autograd).",
            {"x_hat = (groups - mean)": "groups -= mean\n    x_hat = groups"},
        ),
    ),
    probe=by_hand(_probe_forward),
)

# -------------------------------------------------------------------------------------------- predict

_NUMBERS = (
    "means",
    "values per mean",
    "learned numbers",
    "group of channel 13",
    "outputs that change",
    "gradients that gamma 13 moves",
)


def _probe_predict(answer: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(answer, _NUMBERS, tolerance=0.0)


PREDICT = Exercise(
    id="group_norm.predict",
    title="Predict six numbers",
    answer="prediction",
    statement=r"""
`GroupNorm(8, 32)` meets an input of shape $(5, 32, 10, 10)$. Fill the dict `prediction`, without running
anything; counting starts at 0:

- `"means"`: how many means the layer computes;
- `"values per mean"`: how many values each of them averages;
- `"learned numbers"`: how many numbers the layer learns;
- `"group of channel 13"`: the number of the group that channel 13 belongs to;
- `"outputs that change"`: you change the single value `x[2, 13, 5, 5]`: how many values of the output can
  change?
- `"gradients that gamma 13 moves"`: the layer's input has a gradient, of its own shape.
  You change the single parameter `weight[13]`, and leave the gradient that arrives from above as it is: how
  many of these values can change?
""",
    starter="""
prediction = {
    "means": ...,
    "values per mean": ...,
    "learned numbers": ...,
    "group of channel 13": ...,
    "outputs that change": ...,
    "gradients that gamma 13 moves": ...,
}
""",
    hints=(
        "How many channels does a group have? Write down the index set of one element.",
        "One mean per sample and group. γ and β are per channel.",
        "A value reaches the outputs that share its mean. γ of channel 13 scales gradients of that channel "
        "in every sample, and the mean of these gradients runs over the whole group.",
    ),
    reference="""
samples, channels, positions, groups = 5, 32, 10 * 10, 8
size = channels // groups
per_mean = size * positions
prediction = {
    "means": samples * groups,
    "values per mean": per_mean,
    "learned numbers": 2 * channels,
    "group of channel 13": 13 // size,
    "outputs that change": size * positions,
    "gradients that gamma 13 moves": samples * size * positions,
}
""",
    alternatives=(
        """
prediction = {
    "means": torch.tensor(40),
    "values per mean": 400.0,
    "learned numbers": 64,
    "group of channel 13": 3,
    "outputs that change": 400,
    "gradients that gamma 13 moves": 2000,
}
""",
        """
x = torch.zeros(5, 32, 10, 10).unflatten(1, (8, -1))
prediction = {
    "means": x.flatten(0, 1).size(0),
    "values per mean": x[0, 0].numel(),
    "learned numbers": sum(p.numel() for p in nn.GroupNorm(8, 32).parameters()),
    "group of channel 13": torch.arange(32).view(8, -1).eq(13).any(1).nonzero().item(),
    "outputs that change": x[2, 3].numel(),
    "gradients that gamma 13 moves": x[:, 3].numel(),
}
""",
    ),
    mistakes=(
        Mistake(
            "one_mean_per_group",
            "You counted one mean per group. Every sample has its own: nothing is shared across the batch.",
            {"samples * groups": "groups"},
        ),
        Mistake(
            "mean_per_channel",
            "You counted one mean per sample and channel. That is Instance Normalization, G = C.",
            {"samples * groups": "samples * channels", "per_mean = size * positions": "per_mean = positions"},
        ),
        Mistake(
            "eight_channels_per_group",
            "You took 8 for the channels per group. It is the number of groups: a group has 32 / 8 channels.",
            {"size = channels // groups": "size = groups", "samples * groups": "samples * channels // size"},
        ),
        Mistake(
            "values_over_batch",
            "Your values per mean include the batch. Each sample has its own means.",
            {"per_mean = size * positions": "per_mean = samples * size * positions"},
        ),
        Mistake(
            "values_of_one_channel",
            "Your values per mean are those of one channel. The mean runs over all channels of its group.",
            {"per_mean = size * positions": "per_mean = positions"},
        ),
        Mistake(
            "values_without_positions",
            "Your values per mean leave out the positions. A group's mean runs over its channels and over H "
            "and W.",
            {"per_mean = size * positions": "per_mean = size"},
        ),
        Mistake(
            "affine_per_group",
            "You counted γ and β per group. They are per channel: the group shares statistics, not "
            "parameters.",
            {"2 * channels": "2 * groups"},
        ),
        Mistake(
            "gamma_alone",
            "You counted γ alone, or β alone. The layer learns both, one of each per channel.",
            {"2 * channels": "channels"},
        ),
        Mistake(
            "interleaved",
            "You put channel 13 into group 13 mod 8. Groups are contiguous: the first C/G are group 0.",
            {"13 // size": "13 % groups"},
        ),
        Mistake(
            "counted_from_one",
            "You counted the groups from 1. Counting starts at 0.",
            {"13 // size": "13 // size + 1"},
        ),
        Mistake(
            "one_output",
            "You changed only one output. The value moves the mean and the variance, and with them every "
            "output that shares them.",
            {'"outputs that change": size * positions': '"outputs that change": 1'},
        ),
        Mistake(
            "channel_only",
            "You changed the outputs of channel 13 only. The whole group shares its mean.",
            {'"outputs that change": size * positions': '"outputs that change": positions'},
        ),
        Mistake(
            "company_changes",
            "You changed outputs of other samples too. Nothing crosses the batch.",
            {'"outputs that change": size * positions': '"outputs that change": samples * size * positions'},
        ),
        Mistake(
            "gamma_moves_its_channel",
            "γ of channel 13 moves more than the gradients of channel 13: ĝ = γ g is averaged over the group "
            "before it is subtracted, so it reaches the neighbours in the group.",
            {
                '"gradients that gamma 13 moves": samples * size * positions': (
                    '"gradients that gamma 13 moves": samples * positions'
                )
            },
        ),
        Mistake(
            "gamma_moves_one_sample",
            "You counted the gradients of one sample. All samples share γ.",
            {
                '"gradients that gamma 13 moves": samples * size * positions': (
                    '"gradients that gamma 13 moves": size * positions'
                )
            },
        ),
    ),
    probe=_probe_predict,
)

# --------------------------------------------------------------------------------------------- divisor


def _probe_divisor(choose: Callable[..., Any], draw: Draw) -> Observations:
    def call(*arguments: int) -> Any:
        value = choose(*arguments)
        if value is None or isinstance(value, Tensor):
            value = value.item() if isinstance(value, Tensor) else returned(value, choose)
        if value is not ... and not isinstance(value, int):
            raise Broken(f"`choose_groups` returns {kind(value)}, expected an int: `nn.GroupNorm` needs one.")
        return value

    attempted(lambda: torch.tensor(0.0) if choose(6, 4, 1) is not None else None, choose)
    for channels, most, least in (
        (64, 32, 1),
        (40, 32, 1),
        (48, 32, 1),
        (100, 32, 1),
        (20, 12, 1),
        (36, 32, 3),
        (7, 32, 1),
        (13, 8, 2),
        (12, 6, 2),
        (16, 1, 1),
        (64, 32, 4),
        (30, 32, 16),
        (3, 32, 4),
        (1, 32, 1),
        (1, 32, 2),
    ):
        yield f"G for {channels} channels, most {most}, least {least}", call(channels, most, least)
    for _ in range(4):
        channels = int(draw.uniform(2, 200))
        yield f"G for {channels} channels, most 32, least 2", call(channels, 32, 2)


DIVISOR = Exercise(
    id="group_norm.divisor",
    title="Choose the number of groups",
    answer="choose_groups",
    statement=r"""
Wu and He use $G = 32$, but 32 does not divide 40 or 48 channels, and with 32 channels it leaves one channel
per group, which is Instance Normalization. Write `choose_groups(channels, most, least)`, which returns as an
`int` the largest number of groups $G$ such that

- $G$ divides `channels`,
- $G$ is at most `most`,
- each group has at least `least` channels.

Where no $G$ satisfies all three (fewer channels than `least`), return 1.
""",
    starter="""
def choose_groups(channels, most, least):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Which numbers are candidates at all? Try them, the largest first.",
        "Which condition says that each group has at least `least` channels? Write it with `channels` and G.",
    ),
    reference="""
def choose_groups(channels, most, least):
    for g in range(most, 0, -1):
        if channels % g == 0 and channels // g >= least:
            return g
    return 1
""",
    alternatives=(
        """
def choose_groups(channels, most, least):
    fitting = [g for g in range(1, most + 1) if channels % g == 0 and g * least <= channels]
    return max(fitting, default=1)
""",
        """
def choose_groups(channels, most, least):
    sizes = [size for size in range(least, channels + 1) if channels % size == 0]
    sizes = [size for size in sizes if channels // size <= most]
    return channels // min(sizes) if sizes else 1
""",
    ),
    mistakes=(
        Mistake(
            "greatest_common_divisor",
            "You return the greatest common divisor of the two numbers. For 40 channels and at most 32 "
            "groups that is 8, but 20 divides 40 too.",
            {
                "    for g": "    most = math.gcd(channels, most)\n    for g",
                "def choose": "import math\ndef choose",
            },
        ),
        Mistake(
            "not_a_divisor",
            "Your G does not divide the channels. `nn.GroupNorm` refuses it.",
            {"channels % g == 0 and channels // g >= least": "channels // g >= least"},
        ),
        Mistake(
            "smallest",
            "You return the smallest G that fits, which is nearly always 1: Layer Normalization.",
            {"range(most, 0, -1)": "range(1, most + 1)"},
        ),
        Mistake(
            "most_excluded",
            'You leave out G = `most` itself. "At most" includes it.',
            {"range(most, 0, -1)": "range(most - 1, 0, -1)"},
        ),
        Mistake(
            "least_ignored",
            "You ignore `least`. Groups of a single channel are Instance Normalization, which is worse "
            "where a channel's own mean carries information.",
            {" and channels // g >= least": ""},
        ),
        Mistake(
            "least_excluded",
            'You ask for *more* than `least` channels in a group. "At least" includes it.',
            {"channels // g >= least": "channels // g > least"},
        ),
        Mistake(
            "most_ignored",
            "You ignore `most`.",
            {"range(most, 0, -1)": "range(channels, 0, -1)"},
        ),
        Mistake(
            "size_instead",
            "You return the channels per group. `nn.GroupNorm` asks for the number of groups.",
            {"return g": "return channels // g"},
        ),
        Mistake(
            "powers_of_two",
            "You try powers of two only. 12 channels in at most 6 groups allow 6.",
            {"range(most, 0, -1)": "(2**k for k in range(most.bit_length() - 1, -1, -1))"},
        ),
        Mistake(
            "halving",
            "You halve `most` until it fits. That skips divisors: for 40 channels and at most 32 groups it "
            "finds 8, but 20 divides 40 too.",
            {"range(most, 0, -1)": "(most >> k for k in range(most.bit_length()))"},
        ),
        Mistake(
            "nothing_fits",
            "You return None where nothing fits. The task asks for 1 then: one group always exists.",
            {"    return 1\n": "    return None if channels else 1\n"},
        ),
        Mistake(
            "float",
            "You return a float. `nn.GroupNorm` needs an int: divide with `//`.",
            {"return g": "return channels / (channels // g)"},
        ),
    ),
    probe=_probe_divisor,
)

# ---------------------------------------------------------------------------------------------- layer

_STATE = ("weight", "bias")


def _fill(layer: nn.Module, draw: Draw) -> None:
    """Random γ and β."""
    for name in _STATE:
        values = draw.values(6)
        tensor = getattr(layer, name, None)
        if isinstance(tensor, Tensor) and tensor.numel() <= values.numel():
            with torch.no_grad():
                tensor.copy_(values[: tensor.numel()].view_as(tensor))


def _refusal(cls: Callable[..., nn.Module]) -> str:
    """The kind of exception that a number of groups meets which is no divisor."""
    try:
        cls(4, 6)
    except Exception as error:
        return type(error).__name__
    return "no exception"


def _probe_layer(cls: Callable[..., nn.Module], draw: Draw) -> Observations:
    attempted(lambda: cls(2, 6)(torch.zeros(2, 6, 2, 2)), cls)
    eps = draw.uniform(0.05, 0.5)
    layer = settle(cls(2, 6, eps=eps), draw)
    yield "the constructor", True
    yield "the parameters", parameter_shapes(layer)
    yield "the keys of state_dict()", sorted(layer.state_dict())
    for name in _STATE:
        yield f"{name} at the start", getattr(layer, name, None)
    yield "4 groups of 6 channels", _refusal(cls)

    _fill(layer, draw)
    images = draw.batch(3, 6, 2, 4)
    x = images.clone()
    yield "output for (N, C, H, W)", returned(layer(x), cls)
    yield "the input is unchanged", unchanged(x, images, "in_place")
    x = leaf(images)
    y = returned(layer(x * 1), cls)
    yield from gradients(
        y, draw, x=x, weight=getattr(layer, "weight", None), bias=getattr(layer, "bias", None)
    )
    yield "output for one sample", returned(layer(images[1:2].clone()), cls)
    yield "output for (N, C)", returned(layer(draw.batch(4, 6)), cls)
    yield "output for (N, C, L)", returned(layer(draw.batch(2, 6, 3)), cls)
    yield "output for (N, C, D, H, W)", returned(layer(draw.batch(2, 6, 2, 1, 3)), cls)
    yield "output for a transposed input", returned(layer(images.transpose(2, 3)), cls)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    yield "output for channels_last", returned(layer(channels_last), cls)
    yield "output in evaluation", returned(layer.eval()(images.clone()), cls)

    for groups in (1, 6):
        yield f"output for G = {groups}", returned(settle(cls(groups, 6), draw)(images.clone()), cls)
    small = 0.005 * images
    yield "output with the default eps", returned(settle(cls(3, 6), draw)(small), cls)
    precise = settle(cls(3, 6, eps=1e-12), draw)
    yield "output for a tiny eps and a small variance", returned(precise(1e-4 * images), cls)
    if draw.dtype == torch.float64:
        far = draw.batch(2, 6, 3, 5) + 1e8
        yield "output at an offset of 1e8", Approx(returned(precise(far), cls), 0.02)

    plain = settle(cls(2, 6, affine=False), draw)
    yield "the parameters with affine=False", parameter_shapes(plain)
    yield "output with affine=False", returned(plain(images.clone()), cls)

    single = settle(cls(2, 6), draw, torch.float32)
    yield "output for float32", returned(single(images.float()), cls)
    for dtype, offset in ((torch.bfloat16, 60), (torch.float16, 250)):
        coarse = (draw.batch(3, 6, 3, 4) + offset).to(dtype)
        name = str(dtype).removeprefix("torch.")
        yield f"output for {name}", returned(single(coarse), cls)

    theirs, mine = settle(nn.GroupNorm(2, 6), draw), settle(cls(2, 6), draw)
    _fill(theirs, draw)
    loaded = loads(theirs.state_dict(), mine)
    yield (
        "a checkpoint of torch's loads",
        Holds(loaded, "a checkpoint of torch's layer does not load into yours"),
    )
    yield "output with torch's checkpoint", returned(mine(images.clone()), cls)
    loaded = loads(layer.state_dict(), theirs)
    yield "torch's layer loads yours", Holds(loaded, "your checkpoint does not load into torch's layer")


_CHECK = """if num_groups < 1 or num_channels % num_groups != 0:
            raise ValueError(f"{num_groups} groups do not divide {num_channels} channels")"""

LAYER = Exercise(
    id="group_norm.layer",
    title="The whole layer",
    answer="GroupNorm",
    statement=r"""
Write the class `GroupNorm(num_groups, num_channels, eps=1e-5, affine=True)`, derived from `nn.Module`, for
inputs of shape $(N, C, *)$. It should be a drop-in for torch's: a checkpoint loads both ways. The checker
looks at

- **state**: parameters `weight` ($\gamma$, ones) and `bias` ($\beta$, zeros) of shape $(C,)$, nothing else;
  with `affine=False` none at all. A number of groups that does not divide the channels is refused with a
  `ValueError` when the layer is built;
- **forward**: the output for $(N, C)$, $(N, C, L)$, $(N, C, H, W)$ and $(N, C, D, H, W)$, for one sample, for
  transposed and channels-last inputs, for $G = 1$ and $G = C$; the same in training and in evaluation; all
  gradients; the input unchanged; `eps` as it is given, however small;
- **numbers**: the dtype of the input comes out; bfloat16 and float16 inputs to a float32 layer have their
  statistics computed in float32; the variance stays right at a mean of $10^8$ deviations (in float64).

Write the formula: torch's own normalization is refused.
""",
    starter="""
class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here
""",
    hints=(
        "`nn.Parameter` registers what is learned. With `affine=False`, `self.weight` should still exist, as "
        "None: `self.register_parameter(name, None)`.",
        "Nothing depends on the batch: no buffers, no running statistics, no difference between the modes.",
        "`reshape` or `unflatten` where `view` would refuse a transposed tensor; γ and β need a `view` that "
        "depends on the number of axes.",
        "For half precision: convert `x` to float32 first, and the result back to `x.dtype` last.",
    ),
    reference=f"""
class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        super().__init__()
        {_CHECK}
        self.num_groups = num_groups
        self.eps = eps
        if affine:
            self.weight = nn.Parameter(torch.ones(num_channels))
            self.bias = nn.Parameter(torch.zeros(num_channels))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)

    def forward(self, x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        groups = wide.reshape(len(x), self.num_groups, -1)
        mean = groups.mean(dim=2, keepdim=True)
        var = groups.var(dim=2, correction=0, keepdim=True)
        x_hat = (groups - mean) / torch.sqrt(var + self.eps)
        y = x_hat.reshape(x.shape)
        if self.weight is not None:
            shape = [1, -1] + [1] * (x.dim() - 2)
            y = self.weight.view(shape) * y + self.bias.view(shape)
        return y.to(x.dtype)
""",
    alternatives=(
        """
class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        super().__init__()
        if num_groups not in [g for g in range(1, num_channels + 1) if num_channels % g == 0]:
            raise ValueError("num_groups must divide num_channels")
        self.shape, self.eps = (num_groups, num_channels // num_groups), eps
        self.register_parameter("weight", nn.Parameter(torch.ones(num_channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_channels)) if affine else None)

    def forward(self, x):
        groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, self.shape)
        dims = list(range(2, groups.dim()))
        var, mean = torch.var_mean(groups, dim=dims, correction=0, keepdim=True)
        y = ((groups - mean) * torch.rsqrt(var + self.eps)).flatten(1, 2)
        if self.weight is None:
            return y.to(x.dtype)
        weight, bias = (p[(...,) + (None,) * (x.dim() - 2)] for p in (self.weight, self.bias))
        return torch.addcmul(bias, y, weight).to(x.dtype)
""",
        """
class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(num_groups)
        self.num_groups, self.eps, self.affine = num_groups, eps, affine
        if affine:
            self.weight = nn.Parameter(torch.ones(num_channels))
            self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x):
        parts = []
        for part in x.chunk(self.num_groups, dim=1):
            rows = part.flatten(1)
            rows = rows if rows.dtype == torch.float64 else rows.float()
            rows = rows - rows.mean(1, keepdim=True)
            rows = rows / (rows.square().mean(1, keepdim=True) + self.eps).sqrt()
            parts.append(rows.reshape(part.shape))
        y = torch.cat(parts, dim=1)
        if self.affine:
            y = (y.movedim(1, -1) * self.weight + self.bias).movedim(-1, 1)
        return y.to(x.dtype)
""",
    ),
    mistakes=(
        Mistake(
            "unbiased_variance",
            "You divide the variance by n − 1. torch's layer, and the paper, divide by n.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. It belongs to the variance, under the root.",
            {"torch.sqrt(var + self.eps)": "(torch.sqrt(var) + self.eps)"},
        ),
        Mistake(
            "eps_ignored",
            "You ignore the argument `eps`.",
            {"self.eps = eps": "self.eps = 1e-5"},
        ),
        Mistake(
            "default_eps",
            "Your default ε is 1e-3. torch's is 1e-5, and a checkpoint does not say which one it was "
            "trained with.",
            {"eps=1e-5": "eps=1e-3"},
        ),
        Mistake(
            "one_pass_variance",
            "Your variance is E[x²] − E[x]². It cancels where the mean is large against the deviation, and "
            "nothing warns you.",
            {
                "groups.var(dim=2, correction=0, keepdim=True)": (
                    "groups.square().mean(dim=2, keepdim=True) - mean * mean"
                )
            },
        ),
        Mistake(
            "seeds_assert",
            "You check the number of groups with `assert`. Under `python -O` the check is gone, and callers "
            "that handle a bad argument wait for a ValueError.",
            {_CHECK: "assert num_channels % num_groups == 0"},
        ),
        Mistake(
            "no_check",
            "You build a layer whose groups do not divide the channels. `reshape(N, G, -1)` does not notice "
            "where the sizes happen to fit: the groups then cut through the middle of a channel.",
            {f"        {_CHECK}\n": ""},
        ),
        Mistake(
            "size_for_number",
            "You take `num_groups` for the channels per group.",
            {"self.num_groups = num_groups": "self.num_groups = num_channels // num_groups"},
        ),
        Mistake(
            "interleaved",
            "Your groups are interleaved: every G-th channel shares statistics. Groups are contiguous, and "
            "with torch's checkpoint your layer computes something else.",
            {
                "groups = wide.reshape(len(x), self.num_groups, -1)": (
                    "groups = wide.reshape(len(x), -1, self.num_groups, x[0, 0].numel())\n"
                    "        groups = groups.transpose(1, 2).flatten(2)"
                ),
                "y = x_hat.reshape(x.shape)": (
                    "y = x_hat.unflatten(2, (-1, x[0, 0].numel())).transpose(1, 2).reshape(x.shape)"
                ),
            },
        ),
        Mistake(
            "batch_shared",
            "Your statistics run over the batch as well: a prediction depends on its company.",
            {
                "groups.mean(dim=2, keepdim=True)": "groups.mean(dim=(0, 2), keepdim=True)",
                "groups.var(dim=2,": "groups.var(dim=(0, 2),",
            },
        ),
        Mistake(
            "view",
            "You `view` the input as (N, G, …). A transposed or channels-last tensor stops your layer; "
            "`reshape` and `unflatten` copy where they must.",
            {"wide.reshape(len(x), self.num_groups, -1)": "wide.view(len(x), self.num_groups, -1)"},
        ),
        Mistake(
            "images_only",
            "You unpack four sizes, N, C, H and W, so (N, C), (N, C, L) and volumes stop your layer.",
            {"        wide = x.float()": "        n, c, h, w = x.shape\n        wide = x.float()"},
        ),
        Mistake(
            "affine_for_images",
            "You view γ and β as (1, C, 1, 1), whatever the number of axes. An (N, C) input is broadcast to "
            "four axes by that, and a volume is scaled along the wrong one.",
            {"[1, -1] + [1] * (x.dim() - 2)": "[1, -1, 1, 1]"},
        ),
        Mistake(
            "affine_per_group",
            "You learn one γ and one β per group. The group shares statistics; the parameters are per "
            "channel, shape (C,).",
            {
                "torch.ones(num_channels)": "torch.ones(num_groups)",
                "torch.zeros(num_channels)": "torch.zeros(num_groups)",
                "y = self.weight.view(shape) * y + self.bias.view(shape)": (
                    "size = x.size(1) // self.num_groups\n"
                    "            weight = self.weight.repeat_interleave(size)\n"
                    "            bias = self.bias.repeat_interleave(size)\n"
                    "            y = weight.view(shape) * y + bias.view(shape)"
                ),
            },
        ),
        Mistake(
            "affine_ignored",
            "You ignore `affine=False`: the layer still learns γ and β.",
            {"if affine:": "if True:"},
        ),
        Mistake(
            "affine_false_breaks",
            "With `affine=False` there is no attribute `weight` at all, and your forward pass stops where it "
            "asks for it. Register None.",
            {
                'self.register_parameter("weight", None)': "pass",
                'self.register_parameter("bias", None)': "pass",
            },
        ),
        Mistake(
            "own_names",
            "Your parameters have names of your own. A checkpoint finds γ and β as `weight` and `bias`.",
            {
                "self.weight = nn": "self.gamma = nn",
                "self.bias = nn": "self.beta = nn",
                'self.register_parameter("weight", None)': "self.gamma = self.beta = None",
                'self.register_parameter("bias", None)': "pass",
                "if self.weight is not None": "if self.gamma is not None",
                "y = self.weight.view(shape) * y + self.bias": "y = self.gamma.view(shape) * y + self.beta",
            },
        ),
        Mistake(
            "broadcast_shapes",
            "Your parameters have shape (1, C, 1, 1). It saves you a `view`, but torch's checkpoints hold "
            "(C,) and no longer load.",
            {
                "torch.ones(num_channels)": "torch.ones(1, num_channels, 1, 1)",
                "torch.zeros(num_channels)": "torch.zeros(1, num_channels, 1, 1)",
            },
        ),
        Mistake(
            "running_statistics",
            "You keep running statistics, as Batch Normalization does. There is nothing to run: every sample "
            "brings its own statistics, in evaluation too.",
            {
                "        self.eps = eps": (
                    '        self.register_buffer("running_mean", torch.zeros(num_channels))\n'
                    '        self.register_buffer("running_var", torch.ones(num_channels))\n'
                    "        self.eps = eps"
                )
            },
        ),
        Mistake(
            "modes_differ",
            "In evaluation you do not normalize. Group Normalization has one mode.",
            {"y = x_hat.reshape(x.shape)": "y = x_hat.reshape(x.shape) if self.training else wide"},
        ),
        Mistake(
            "affine_unused",
            "You register γ and β but do not apply them.",
            {"y = self.weight.view(shape) * y + self.bias.view(shape)": "y = 1 * y"},
        ),
        Mistake(
            "affine_swapped",
            "You swapped `weight` and `bias`: γ scales and β shifts.",
            {
                "y = self.weight.view(shape) * y + self.bias.view(shape)": (
                    "y = self.bias.view(shape) * y + self.weight.view(shape)"
                )
            },
        ),
        Mistake(
            "affine_not_learned",
            "γ and β are buffers: they are saved, but no optimizer sees them, so they never learn.",
            {
                "self.weight = nn.Parameter(torch.ones(num_channels))": (
                    'self.register_buffer("weight", torch.ones(num_channels))'
                ),
                "self.bias = nn.Parameter(torch.zeros(num_channels))": (
                    'self.register_buffer("bias", torch.zeros(num_channels))'
                ),
            },
        ),
        Mistake(
            "gamma_starts_at_zero",
            "γ starts at 0, so the fresh layer outputs 0 and passes no gradient to what comes before. It "
            "starts at 1.",
            {"torch.ones(num_channels)": "torch.zeros(num_channels,)"},
        ),
        Mistake(
            "statistics_detached",
            "The output is right, the gradient is not: you cut the mean and the variance off the graph.",
            {
                "groups.mean(dim=2, keepdim=True)": "groups.mean(dim=2, keepdim=True).detach()",
                "correction=0, keepdim=True)": "correction=0, keepdim=True).detach()",
            },
        ),
        Mistake(
            "no_graph",
            "You compute the output without autograd. No gradient reaches γ, β or the layers below.",
            {"    def forward": "    @torch.no_grad()\n    def forward"},
        ),
        Mistake(
            "half_precision_statistics",
            "You compute the statistics of half-precision inputs in half precision. bfloat16 keeps eight "
            "bits: with a mean of 60 and a deviation of 1 the differences from the mean are mostly "
            "rounding.",
            {"wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x": "wide = x"},
        ),
        Mistake(
            "float32_comes_out",
            "Half-precision inputs come out as float32. The output has the dtype of the input.",
            {"return y.to(x.dtype)": "return y"},
        ),
        Mistake(
            "always_float32",
            "You compute everything in float32, float64 inputs as well. They lose half of their digits.",
            {"wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x": "wide = x.float()"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "        wide = x.float()": (
                    "        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)\n"
                    "        wide = x.float()"
                )
            },
        ),
        Mistake(
            "in_place",
            "You overwrite the input: a `reshape` that needs no copy shares its memory.",
            {"x_hat = (groups - mean)": "groups -= mean\n        x_hat = groups"},
        ),
    ),
    probe=by_hand(_probe_layer),
)

# ------------------------------------------------------------------------------------ bug: interleaved


def _probe_bug_groups(group_normalize: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.2)
    images = draw.batch(2, 6, 2, 3)
    x = images.clone()
    yield "output for one group", returned(group_normalize(x, 1, eps), group_normalize)
    yield "the input is unchanged", unchanged(x, images, "in_place")
    yield "output for six groups", returned(group_normalize(images.clone(), 6, eps), group_normalize)
    yield "output for two groups", returned(group_normalize(images.clone(), 2, eps), group_normalize)
    yield "output for three groups", returned(group_normalize(images.clone(), 3, eps), group_normalize)
    x = leaf(images)
    yield from gradients(returned(group_normalize(x * 1, 2, eps), group_normalize), draw, x=x)
    wide = draw.batch(1, 8, 3, 1)
    yield "output for four groups of two", returned(group_normalize(wide, 4, eps), group_normalize)


_BUG_GROUPS = """
def group_normalize(x, num_groups, eps):
    N, C, H, W = x.shape
    groups = x.reshape(N, num_groups, C // num_groups, H, W)
    mean = groups.mean(dim=(2, 3, 4), keepdim=True)
    var = groups.var(dim=(2, 3, 4), correction=0, keepdim=True)
    x_hat = (groups - mean) / torch.sqrt(var + eps)
    return x_hat.reshape(N, C, H, W)
"""
_SPLIT = "groups = x.reshape(N, num_groups, C // num_groups, H, W)"
_WRONG_SPLIT = "groups = x.reshape(N, C // num_groups, num_groups, H, W)"

BUG_GROUPS = Exercise(
    id="group_norm.bug_groups",
    title="Spot the bug: the right shape, the wrong groups",
    answer="group_normalize",
    statement=r"""
This function has been in production for a year. The shapes are right, one group and $C$ groups give what
torch gives, networks train with it. But a checkpoint of a torch model scores a few points worse, and nobody
knows why. Somewhere between one group and $C$ groups, the wrong channels share their statistics, and not
even the number of groups is right.

Repair `group_normalize(x, num_groups, eps)`: $G$ groups of $C/G$ neighbouring channels, each sample by
itself, no $\gamma$ and $\beta$. The checker looks at the output for several $G$ and at the gradient. torch's
own normalization is refused.
""",
    starter=patched(
        _BUG_GROUPS,
        {
            _SPLIT: _WRONG_SPLIT,
            "groups.mean(dim=(2, 3, 4)": "groups.mean(dim=(1, 3, 4)",
            "groups.var(dim=(2, 3, 4)": "groups.var(dim=(1, 3, 4)",
        },
    ),
    hints=(
        "Number the channels 0 … 5 (`torch.arange(6.0).view(1, 6, 1, 1)`) and print `groups`. Which channels "
        "stand in one row, and which are averaged?",
        "A reshape keeps the order in memory: the last axes run fastest. Which of the two new axes counts "
        "the groups, if the channels of a group are neighbours?",
    ),
    reference=_BUG_GROUPS,
    alternatives=(
        """
def group_normalize(x, num_groups, eps):
    rows = x.reshape(x.size(0) * num_groups, -1)  # contiguous groups: one row each
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows * torch.rsqrt(rows.square().mean(dim=1, keepdim=True) + eps)
    return rows.reshape(x.shape)
""",
        """
def group_normalize(x, num_groups, eps):
    parts = [
        (part - part.mean(dim=(1, 2, 3), keepdim=True))
        / torch.sqrt(part.var(dim=(1, 2, 3), correction=0, keepdim=True) + eps)
        for part in x.chunk(num_groups, dim=1)
    ]
    return torch.cat(parts, dim=1)
""",
    ),
    mistakes=(
        Mistake(
            "axes_only",
            "You moved the statistics to the other axis, but the reshape still makes C/G groups of G "
            "channels: the number of groups and their size are swapped.",
            {_SPLIT: _WRONG_SPLIT},
        ),
        Mistake(
            "reshape_only",
            "You swapped the sizes in the reshape, but not the axes of the statistics: now channels that are "
            "C/G apart share them, in C/G groups.",
            {
                "groups.mean(dim=(2, 3, 4)": "groups.mean(dim=(1, 3, 4)",
                "groups.var(dim=(2, 3, 4)": "groups.var(dim=(1, 3, 4)",
            },
        ),
        Mistake(
            "mean_axes_only",
            "You repaired the axes of the mean and not those of the variance.",
            {"groups.var(dim=(2, 3, 4)": "groups.var(dim=(1, 3, 4)"},
        ),
        Mistake(
            "shuffled_back",
            "You transposed before you joined the axes. The statistics are right, but the channels come back "
            "in another order.",
            {"x_hat.reshape(N, C, H, W)": "x_hat.transpose(1, 2).reshape(N, C, H, W)"},
        ),
        Mistake(
            "batch_shared",
            "You average over the batch too. Each sample is normalized by itself.",
            {
                "groups.mean(dim=(2, 3, 4)": "groups.mean(dim=(0, 2, 3, 4)",
                "groups.var(dim=(2, 3, 4)": "groups.var(dim=(0, 2, 3, 4)",
            },
        ),
        Mistake(
            "per_channel",
            "You average over the positions only. That is Instance Normalization, whatever the number of "
            "groups.",
            {
                "groups.mean(dim=(2, 3, 4)": "groups.mean(dim=(3, 4)",
                "groups.var(dim=(2, 3, 4)": "groups.var(dim=(3, 4)",
            },
        ),
        Mistake(
            "one_group",
            "You average over the groups as well. That is Layer Normalization, whatever G.",
            {
                "groups.mean(dim=(2, 3, 4)": "groups.mean(dim=(1, 2, 3, 4)",
                "groups.var(dim=(2, 3, 4)": "groups.var(dim=(1, 2, 3, 4)",
            },
        ),
        Mistake(
            "unbiased",
            "The groups are right now, but your variance divides by n − 1.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    N, C, H, W": "    return F.group_norm(x, num_groups, eps=eps)\n    N, C, H, W"},
        ),
        Mistake(
            "in_place",
            "You centre `x` in place: a `reshape` shares its memory, so the caller's data changes.",
            {"x_hat = (groups - mean)": "groups -= mean\n    x_hat = groups"},
        ),
    ),
    probe=by_hand(_probe_bug_groups),
    spot_the_bug=True,
)

# --------------------------------------------------------------------------------------- bug: one pass


def _probe_bug_variance(group_statistics: Callable[..., Any], draw: Draw) -> Observations:
    names = ("mean", "rstd")
    eps = draw.uniform(0.05, 0.2)
    x = draw.batch(2, 6, 2, 3)

    def call(x: Tensor, groups: int, eps: float) -> Any:
        return returned(group_statistics(x, groups, eps), group_statistics, *names)

    passed = x.clone()
    mean, rstd = call(passed, 2, eps)
    yield "mean for ordinary data", mean
    yield "rstd for ordinary data", rstd
    yield "the input is unchanged", unchanged(passed, x, "centred_in_place")
    for dtype, offset in ((torch.float32, 1e4), (draw.dtype, 1e8)):
        if offset < 0.1 / torch.finfo(dtype).eps:
            far = (draw.batch(4, 16, 2, 3) + offset).to(dtype)
            _, rstd = call(far, 8, eps)
            yield f"rstd at an offset of {offset:.0e} in {str(dtype)[6:]}", Approx(rstd, 0.02)
    mean, rstd = call(1e-4 * x, 3, 1e-12)
    yield "rstd for a tiny eps and a small variance", rstd
    many = draw.batch(1, 4, 7, 11)  # 77 positions: three blocks of 32, the last not full
    mean, rstd = call(many, 2, eps)
    yield "mean for groups of 154 values", mean
    yield "rstd for groups of 154 values", rstd


_BUG_VARIANCE = """
def group_statistics(x, num_groups, eps):
    groups = x.reshape(len(x), num_groups, -1)
    size = groups.size(2)
    total = torch.zeros_like(groups[:, :, 0])
    for block in groups.split(32, dim=2):
        total = total + block.sum(dim=2)
    mean = total / size
    squares = torch.zeros_like(mean)
    for block in groups.split(32, dim=2):
        squares = squares + ((block - mean[:, :, None]) ** 2).sum(dim=2)
    return mean, torch.rsqrt(squares / size + eps)
"""
_LOOPS = _BUG_VARIANCE[_BUG_VARIANCE.index("    total") :]
_ONE_LOOP = """    total = torch.zeros_like(groups[:, :, 0])
    squares = torch.zeros_like(total)
    for block in groups.split(32, dim=2):
        total = total + block.sum(dim=2)
        squares = squares + (block * block).sum(dim=2)
    mean = total / size
    variance = squares / size - mean * mean
    return mean, torch.rsqrt(variance + eps)
"""

BUG_VARIANCE = Exercise(
    id="group_norm.bug_variance",
    title="Spot the bug: one pass, block by block",
    answer="group_statistics",
    statement=r"""
A GPU kernel reads its group block by block and keeps sums. The forward kernel of Liger-Kernel's GroupNorm
computes its statistics like this function (here in PyTorch, blocks of 32): `(mean, rstd)`, each of shape
$(N, G)$, with `rstd` $= 1/\sqrt{\sigma^2 + \varepsilon}$. For activations with a mean of a few thousand
deviations `rstd` is wrong, or `nan`.

Repair `group_statistics(x, num_groups, eps)`. Whether you read the blocks twice, or once with an update that
does not cancel, is up to you. The checker goes to an offset of $10^4$ in float32 and $10^8$ in
float64, looks at a small variance with a tiny `eps`, and at a group that does not fill its last block.
torch's own normalization is refused.
""",
    starter=patched(_BUG_VARIANCE, {_LOOPS: _ONE_LOOP}),
    hints=(
        "Where are two large, almost equal numbers subtracted?",
        "Two passes: the first loop finds the mean, a second one sums the squares of what is left after it "
        "is subtracted. One pass: keep count, mean and sum of squared *deviations*, and merge each block's "
        "three numbers into them (Chan, Golub and LeVeque 1983).",
    ),
    reference=_BUG_VARIANCE,
    alternatives=(
        """
def group_statistics(x, num_groups, eps):
    groups = x.reshape(len(x), num_groups, -1)
    count, mean, m2 = 0, 0.0, 0.0
    for block in groups.split(32, dim=2):
        n = block.size(2)
        its_mean = block.mean(dim=2)
        its_m2 = (block - its_mean[:, :, None]).square().sum(dim=2)
        delta = its_mean - mean
        m2 = m2 + its_m2 + delta**2 * count * n / (count + n)
        count += n
        mean = mean + delta * n / count
    return mean, torch.rsqrt(m2 / count + eps)
""",
        """
def group_statistics(x, num_groups, eps):
    groups = x.reshape(len(x), num_groups, -1)
    shift = groups[:, :, :1]  # any value near the mean: the offset is gone before squaring
    var, mean = torch.var_mean(groups - shift, dim=2, correction=0)
    return mean + shift[:, :, 0], 1 / torch.sqrt(var + eps)
""",
    ),
    mistakes=(
        Mistake(
            "clamped",
            "You clamp the variance at 0. The `nan` is gone, the wrong scale is not: the digits were lost in "
            "the subtraction, before the clamp.",
            {_LOOPS: _ONE_LOOP.replace("rsqrt(variance", "rsqrt(variance.clamp(min=0)")},
        ),
        Mistake(
            "absolute_value",
            "You take the absolute value of what is left after the cancellation. It is still noise, now "
            "positive.",
            {_LOOPS: _ONE_LOOP.replace("rsqrt(variance", "rsqrt(variance.abs()")},
        ),
        Mistake(
            "nan_replaced",
            "You replace `nan`. Where the variance came out positive but wrong, `rstd` is still wrong.",
            {
                _LOOPS: _ONE_LOOP.replace(
                    "torch.rsqrt(variance + eps)", "torch.nan_to_num(torch.rsqrt(variance + eps), nan=1.0)"
                )
            },
        ),
        Mistake(
            "wider_type",
            "You accumulate the same sums in float64. That moves the cliff to larger offsets, and float64 "
            "inputs still fall off it; a GPU pays dearly for it, too.",
            {
                _LOOPS: _ONE_LOOP.replace("(groups[:, :, 0])", "(groups[:, :, 0]).double()")
                .replace("block.sum(dim=2)", "block.double().sum(dim=2)")
                .replace("(block * block)", "(block.double() * block.double())")
                .replace(
                    "return mean, torch.rsqrt(variance + eps)",
                    "return mean.to(x.dtype), torch.rsqrt(variance + eps).to(x.dtype)",
                )
            },
        ),
        Mistake(
            "larger_eps",
            "You make ε larger than the caller asked. That swamps the variance where it is small.",
            {"squares / size + eps": "squares / size + max(eps, 1e-3)"},
        ),
        Mistake(
            "running_mean_shift",
            "You subtract the mean *so far* from each block. It differs from block to block, so the squares "
            "are taken around different points; the update needs a correction for it.",
            {
                _LOOPS: _ONE_LOOP.replace("    for block", "    seen = 0\n    for block")
                .replace(
                    "        squares = squares + (block * block).sum(dim=2)",
                    "        seen += block.size(2)\n"
                    "        squares = squares + ((block - (total / seen)[:, :, None]) ** 2).sum(dim=2)",
                )
                .replace("squares / size - mean * mean", "squares / size")
            },
        ),
        Mistake(
            "mean_of_block_variances",
            "You average the variances inside the blocks. The blocks' means differ too, and that part of "
            "the variance is lost.",
            {"(block - mean[:, :, None])": "(block - block.mean(dim=2, keepdim=True))"},
        ),
        Mistake(
            "mean_of_block_means",
            "You average the means of the blocks. The last block of a group need not be full, and its values "
            "then count for more than the others'.",
            {
                "mean = total / size": (
                    "mean = torch.stack([b.mean(dim=2) for b in groups.split(32, dim=2)]).mean(dim=0)"
                )
            },
        ),
        Mistake(
            "padded_block",
            "You divide by a multiple of the block's size. The last block of a group need not be full: "
            "divide by the number of values.",
            {"size = groups.size(2)": "size = 32 * len(groups.split(32, dim=2))"},
        ),
        Mistake(
            "unbiased",
            "The offset no longer hurts, but you divide by n − 1.",
            {"squares / size + eps": "squares / (size - 1) + eps"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε outside of the root.",
            {"torch.rsqrt(squares / size + eps)": "1 / (torch.sqrt(squares / size) + eps)"},
        ),
        Mistake(
            "deviation_returned",
            "You return the deviation. The kernel keeps its reciprocal, since the backward pass multiplies "
            "by it.",
            {"torch.rsqrt(squares / size + eps)": "torch.sqrt(squares / size + eps)"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "    size = groups": (
                    "    return torch.native_group_norm(\n"
                    "        x, None, None, len(x), x.size(1), x[0, 0].numel(), num_groups, eps\n"
                    "    )[1:]\n"
                    "    size = groups"
                )
            },
        ),
        Mistake(
            "centred_in_place",
            "You centre the input in place: the caller's data changes.",
            {
                "    squares = torch.zeros_like(mean)": (
                    "    groups -= mean[:, :, None]\n    squares = torch.zeros_like(mean)"
                ),
                "(block - mean[:, :, None])": "block",
            },
        ),
    ),
    probe=by_hand(_probe_bug_variance),
    spot_the_bug=True,
)

# ------------------------------------------------------------------------------------------- backward


def _probe_backward(backward: Callable[..., Any], draw: Draw) -> Observations:
    names = ("dx", "dweight", "dbias")

    def call(*inputs: Any) -> Any:
        return returned(without_autograd(backward, *inputs), backward, *names)

    for shape, groups in (((2, 6, 2, 3), 2), ((3, 6, 1, 2), 3), ((2, 6, 3, 1), 1)):
        grad, x = draw.values(*shape), draw.batch(*shape)
        weight, eps = draw.values(6), draw.uniform(0.05, 0.5)
        passed = grad.clone(), x.clone(), weight.clone()
        for name, value in zip(
            reversed(names), reversed(call(*passed[:2], groups, passed[2], eps)), strict=True
        ):
            yield f"{name} for {shape}, G = {groups}", value
        kept = all(torch.equal(a, b) for a, b in zip(passed, (grad, x, weight), strict=True))
        yield (
            f"the arguments are unchanged for {shape}",
            Holds(kept, "the arguments are overwritten", "in_place"),
        )
    single = call(grad.float(), x.float(), groups, weight.float(), eps)
    for name, value in zip(names, single, strict=True):
        yield f"{name} for float32", value


_DX = "inverse * (dx_hat - through_mean - through_var)"

BACKWARD = Exercise(
    id="group_norm.backward",
    title="The backward pass by hand",
    answer="group_norm_backward",
    statement=r"""
Write `group_norm_backward(grad, x, num_groups, weight, eps)`, which returns `(dx, dweight, dbias)` for
$y = \gamma\,\hat x + \beta$. `grad` is $\partial L/\partial y$, of the shape $(N, C, H, W)$ of `x`; `weight`
is $\gamma$ of shape $(C,)$.

- `dx` has the shape of `x`; `dweight` and `dbias` have shape $(C,)$: they sum over the batch, the statistics
  do not.
- Mind where $\gamma$ enters: inside a group it differs from channel to channel.
- Use no autograd and none of torch's own normalization: both are refused.
""",
    starter="""
def group_norm_backward(grad, x, num_groups, weight, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Start at the end: β and γ are per channel. What do their gradients sum over?",
        "ĝ = γ g is the gradient at x̂. Build it first, in the shape of `x`, then split it into groups like "
        "`x`.",
        "In each group: ĝ, minus its mean, minus x̂ times the mean of ĝ·x̂; all times 1/√(σ² + ε).",
    ),
    reference=f"""
def group_norm_backward(grad, x, num_groups, weight, eps):
    split = (len(x), num_groups, -1)
    groups = x.reshape(split)
    mean = groups.mean(dim=2, keepdim=True)
    var = groups.var(dim=2, correction=0, keepdim=True)
    inverse = 1 / torch.sqrt(var + eps)
    x_hat = (groups - mean) * inverse
    dbias = grad.sum(dim=(0, 2, 3))
    dweight = (grad * x_hat.reshape(x.shape)).sum(dim=(0, 2, 3))
    dx_hat = (grad * weight.view(1, -1, 1, 1)).reshape(split)
    through_mean = dx_hat.mean(dim=2, keepdim=True)
    through_var = x_hat * (dx_hat * x_hat).mean(dim=2, keepdim=True)
    dx = {_DX}
    return dx.reshape(x.shape), dweight, dbias
""",
    alternatives=(
        """
def group_norm_backward(grad, x, num_groups, weight, eps):
    dx, x_hat = torch.empty_like(x), torch.empty_like(x)
    size = x.size(1) // num_groups
    for n in range(len(x)):
        for first in range(0, x.size(1), size):
            part = n, slice(first, first + size)
            centred = x[part] - x[part].mean()
            std = torch.sqrt(centred.square().mean() + eps)
            x_hat[part] = centred / std
            g = grad[part] * weight[first : first + size, None, None]
            dx[part] = (g - g.mean() - x_hat[part] * (g * x_hat[part]).mean()) / std
    return dx, torch.einsum("nchw,nchw->c", grad, x_hat), torch.einsum("nchw->c", grad)
""",
        """
def group_norm_backward(grad, x, num_groups, weight, eps):
    groups, dims = x.unflatten(1, (num_groups, -1)), (2, 3, 4)
    m = groups[0, 0].numel()
    var, mean = torch.var_mean(groups, dim=dims, correction=0, keepdim=True)
    std = torch.sqrt(var + eps)
    g = (grad * weight[:, None, None]).unflatten(1, (num_groups, -1))
    dvar = (g * (groups - mean)).sum(dim=dims, keepdim=True) * -0.5 * std**-3
    dmean = -(g / std).sum(dim=dims, keepdim=True)
    dx = g / std + dvar * 2 * (groups - mean) / m + dmean / m
    x_hat = ((groups - mean) / std).flatten(1, 2)
    return dx.flatten(1, 2), (grad * x_hat).sum((0, 2, 3)), grad.sum((0, 2, 3))
""",
    ),
    mistakes=(
        Mistake(
            "gamma_after_the_means",
            "You multiply by γ after the means are subtracted. In Batch Normalization γ is one number per "
            "index set and may wait; in a group it differs from channel to channel, so it belongs inside the "
            "means: ĝ = γ g comes first.",
            {
                "(grad * weight.view(1, -1, 1, 1)).reshape(split)": "grad.reshape(split)",
                "return dx.reshape(x.shape)": "return dx.reshape(x.shape) * weight.view(1, -1, 1, 1)",
            },
        ),
        Mistake(
            "gamma_missing",
            "`dx` lacks the factor γ: what flows into x̂ is γ times what flows into y.",
            {"(grad * weight.view(1, -1, 1, 1)).reshape(split)": "grad.reshape(split)"},
        ),
        Mistake(
            "gamma_averaged",
            "You use one γ per group, its mean. Each channel scales its own gradient.",
            {
                "weight.view(1, -1, 1, 1)": (
                    "weight.view(num_groups, -1).mean(1)"
                    ".repeat_interleave(x.size(1) // num_groups).view(1, -1, 1, 1)"
                )
            },
        ),
        Mistake(
            "mean_path_missing",
            "`dx` lacks the path through the mean: every element also moves μ, and with it its whole group.",
            {_DX: "inverse * (dx_hat - through_var)"},
        ),
        Mistake(
            "variance_path_missing",
            "`dx` lacks the path through the variance: every element also changes the scale of its group.",
            {_DX: "inverse * (dx_hat - through_mean)"},
        ),
        Mistake(
            "both_paths_missing",
            "You treat μ and σ² as constants. Both depend on every element of the group.",
            {_DX: "inverse * dx_hat"},
        ),
        Mistake(
            "paths_added",
            "The two paths through the statistics are subtracted, not added.",
            {_DX: "inverse * (dx_hat + through_mean + through_var)"},
        ),
        Mistake(
            "sums_instead_of_means",
            "You forgot the 1/m of the mean and of the variance: their paths are m times too strong.",
            {
                "dx_hat.mean(dim=2, keepdim=True)": "dx_hat.sum(dim=2, keepdim=True)",
                "(dx_hat * x_hat).mean(": "(dx_hat * x_hat).sum(",
            },
        ),
        Mistake(
            "batch_shared",
            "You average the two paths over the batch as well. Each sample has its own statistics.",
            {
                "dx_hat.mean(dim=2, keepdim=True)": "dx_hat.mean(dim=(0, 2), keepdim=True)",
                "(dx_hat * x_hat).mean(dim=2, ": "(dx_hat * x_hat).mean(dim=(0, 2), ",
            },
        ),
        Mistake(
            "per_channel",
            "You average the two paths over each channel alone, as in Batch and Instance Normalization. The "
            "group shares its statistics, so the means run over the group.",
            {
                "dx_hat.mean(dim=2, keepdim=True)": (
                    "dx_hat.unflatten(2, (x.size(1) // num_groups, -1)).mean(3, keepdim=True)"
                    ".expand(-1, -1, -1, x[0, 0].numel()).flatten(2)"
                ),
                "(dx_hat * x_hat).mean(dim=2, keepdim=True)": (
                    "(dx_hat * x_hat).unflatten(2, (x.size(1) // num_groups, -1)).mean(3, keepdim=True)"
                    ".expand(-1, -1, -1, x[0, 0].numel()).flatten(2)"
                ),
            },
        ),
        Mistake(
            "parameters_per_sample",
            "You do not sum `dweight` and `dbias` over the batch. The statistics are per sample, the "
            "parameters are shared by all samples.",
            {
                "grad.sum(dim=(0, 2, 3))": "grad.sum(dim=(2, 3))",
                "(grad * x_hat.reshape(x.shape)).sum(dim=(0, 2, 3))": (
                    "(grad * x_hat.reshape(x.shape)).sum(dim=(2, 3))"
                ),
            },
        ),
        Mistake(
            "parameters_per_group",
            "You sum `dweight` and `dbias` over the group. γ and β are per channel.",
            {
                "grad.sum(dim=(0, 2, 3))": "grad.reshape(split).sum(dim=(0, 2))",
                "(grad * x_hat.reshape(x.shape)).sum(dim=(0, 2, 3))": (
                    "(grad.reshape(split) * x_hat).sum(dim=(0, 2))"
                ),
            },
        ),
        Mistake(
            "dweight_from_x",
            "`dweight` uses `x`. γ multiplies x̂, so its gradient does too.",
            {"(grad * x_hat.reshape(x.shape)).sum": "(grad * x).sum"},
        ),
        Mistake(
            "dweight_scaled",
            "`dweight` contains γ. The derivative of γ·x̂ in γ is x̂ alone.",
            {
                "(grad * x_hat.reshape(x.shape)).sum": (
                    "(grad * weight[:, None, None] * x_hat.reshape(x.shape)).sum"
                )
            },
        ),
        Mistake(
            "parameters_from_g_hat",
            "`dweight` and `dbias` contain γ: you sum ĝ = γ g. The derivative of γ·x̂ + β in γ is x̂, and in "
            "β it is 1; sum what comes from above, g.",
            {
                "grad.sum(dim=(0, 2, 3))": "(grad * weight[:, None, None]).sum(dim=(0, 2, 3))",
                "(grad * x_hat.reshape(x.shape)).sum": (
                    "(grad * weight[:, None, None] * x_hat.reshape(x.shape)).sum"
                ),
            },
        ),
        Mistake(
            "order_swapped",
            "You return `dbias` before `dweight`.",
            {"dx.reshape(x.shape), dweight, dbias": "dx.reshape(x.shape), dbias, dweight"},
        ),
        Mistake(
            "unbiased_variance",
            "You recompute x̂ with the unbiased variance. The forward pass divides by m.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "eps_missing",
            "You leave ε out of the root, but the forward pass had it.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, not by its root.",
            {"1 / torch.sqrt(var + eps)": "1 / (var + eps)"},
        ),
        Mistake(
            "in_place",
            "You overwrite `grad`. Other layers may still need it.",
            {"(grad * weight.view(1, -1, 1, 1))": "grad.mul_(weight.view(1, -1, 1, 1))"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "    split = ": (
                    "    mean = rstd = torch.zeros(len(x), num_groups, dtype=x.dtype)\n"
                    "    sizes = len(x), x.size(1), x[0, 0].numel(), num_groups\n"
                    "    return torch.ops.aten.native_group_norm_backward(\n"
                    "        grad, x, mean, rstd, weight, *sizes, (True, True, True)\n"
                    "    )\n"
                    "    split = "
                )
            },
        ),
        Mistake(
            "uses_autograd",
            AUTOGRAD,
            {
                "    split = (len(x), num_groups, -1)": (
                    "    split = (len(x), num_groups, -1)\n"
                    "    with torch.enable_grad():\n"
                    "        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()\n"
                    "        groups = x.reshape(split)\n"
                    "        std = torch.sqrt(groups.var(dim=2, correction=0, keepdim=True) + eps)\n"
                    "        y = ((groups - groups.mean(dim=2, keepdim=True)) / std).reshape(x.shape)\n"
                    "        y = y * weight.view(1, -1, 1, 1)\n"
                    "        return *torch.autograd.grad(y, (x, weight), grad), grad.sum((0, 2, 3))"
                )
            },
        ),
    ),
    probe=by_hand(_probe_backward),
)

# ------------------------------------------------------------------------------------------ replace_bn


def _network(draw: Draw) -> nn.Sequential:
    """Batch Normalization at the top, in a nested part, with an ε of its own, and without γ and β."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.BatchNorm2d(6),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6, eps=0.05), nn.Dropout(0.5)),
        nn.Sequential(nn.Sequential(nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9, affine=False))),
        nn.Flatten(),
        nn.Linear(36, 10),
        nn.BatchNorm1d(10),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draw.values(*parameter.shape))
        for name, buffer in model.named_buffers():  # of a trained network, not (0, 1)
            if buffer.dim():
                buffer.copy_(draw.values(*buffer.shape, low=0.5 if name.endswith("var") else -2))
    return settle(model, draw)


def _probe_replace(replace_bn: Callable[..., Any], draw: Draw) -> Observations:
    def call(model: nn.Module, groups: int) -> nn.Module:
        value = replace_bn(model, groups)
        if value is None or value is ... or not isinstance(value, nn.Module):
            returned(value, replace_bn)  # raises, but for a tensor
            raise Broken(f"`replace_bn` returns {kind(value)}, expected the model.")
        return value

    attempted(lambda: torch.tensor(0.0) if call(nn.Sequential(nn.BatchNorm2d(4)), 2) else None, replace_bn)
    model = _network(draw)
    others = {
        name: part
        for name, part in model.named_modules()
        if not isinstance(part, nn.modules.batchnorm._BatchNorm)
    }
    x = draw.batch(3, 2, 2, 2)
    result = call(model, 4)
    yield "the kinds of layers", [type(part).__name__ for part in result.modules()]
    yield "the names of the layers", [name for name, _ in result.named_modules()]
    kept = result is model and all(
        part is others[name] for name, part in result.named_modules() if name in others
    )
    yield (
        "the model itself is changed",
        Holds(kept, "the model is another object, or its layers are", "copied"),
    )
    norms = [part for part in result.modules() if isinstance(part, nn.GroupNorm)]
    yield "the numbers of groups", [norm.num_groups for norm in norms]
    yield "the numbers of channels", [norm.num_channels for norm in norms]
    yield "eps", [norm.eps for norm in norms]
    yield "γ and β exist", [norm.weight is not None for norm in norms]
    yield "the keys of state_dict()", sorted(result.state_dict())
    for number, norm in enumerate(norms):
        yield f"γ of norm {number}", None if norm.weight is None else norm.weight
        yield f"β of norm {number}", None if norm.bias is None else norm.bias
    yield "the norms learn", [p.requires_grad for norm in norms for p in norm.parameters()]
    yield "the modes", [part.training for part in result.modules()]
    yield "output in evaluation", returned(result.eval()(x), replace_bn)

    trained = _network(draw).eval()
    yield "the modes of a model in evaluation", [part.training for part in call(trained, 2).modules()]
    alone = call(settle(nn.BatchNorm3d(6), draw), 4)
    yield "a model that is one BatchNorm3d", [type(alone).__name__, getattr(alone, "num_groups", 0)]

    class Own(nn.BatchNorm2d):
        pass

    own = call(nn.Sequential(Own(8)), 4)
    yield "a subclass of BatchNorm2d", [type(part).__name__ for part in own.children()]


REPLACE = Exercise(
    id="group_norm.replace",
    title="Convert a network",
    answer="replace_bn",
    statement=r"""
A trained network with Batch Normalization is to be fine-tuned with two images per batch. Write
`replace_bn(model, num_groups)`, which puts an `nn.GroupNorm` in the place of every batch normalization
(`nn.BatchNorm1d`, `2d`, `3d` and subclasses), changes `model` itself, and returns it. (torch's layer is
allowed here.)

- $G$ is the largest divisor of the layer's channels up to `num_groups`.
- $\gamma$ and $\beta$ are kept, as are $\varepsilon$, `affine`, dtype and device, and the mode (training or
  evaluation).
- Layers at any depth are found, and their names stay. Where `model` itself is a batch normalization, the new
  layer is returned.

The running statistics are lost: that is why fine-tuning is needed.
""",
    starter="""
def replace_bn(model, num_groups):
    raise NotImplementedError  # your code here
""",
    hints=(
        "A layer is replaced in its *parent*: `setattr(parent, name, new)`. `named_children()` gives the "
        "direct children of one module.",
        "What does the function do with a child that is not a batch normalization? It is a model, too.",
        "A new `nn.GroupNorm` is float32, on the CPU, in training mode, with γ = 1. Each of these four may "
        "be wrong. It can take the old layer's parameters over as they are.",
    ),
    reference="""
def replace_bn(model, num_groups):
    if isinstance(model, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        channels = model.num_features
        groups = max(g for g in range(1, num_groups + 1) if channels % g == 0)
        norm = nn.GroupNorm(groups, channels, eps=model.eps, affine=model.affine)
        if model.affine:
            norm.weight = model.weight
            norm.bias = model.bias
        norm.train(model.training)
        return norm
    for name, child in model.named_children():
        setattr(model, name, replace_bn(child, num_groups))
    return model
""",
    alternatives=(
        """
def replace_bn(model, num_groups):
    def convert(bn):
        groups = next(g for g in range(num_groups, 0, -1) if bn.num_features % g == 0)
        norm = nn.GroupNorm(groups, bn.num_features, bn.eps, bn.affine)
        state = {k: v for k, v in bn.state_dict().items() if k in ("weight", "bias")}
        norm.load_state_dict(state)
        if bn.affine:
            norm.to(bn.weight.device, bn.weight.dtype)
            norm.load_state_dict(state)
        return norm.train(bn.training)

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(model, kinds):
        return convert(model)
    for name, part in list(model.named_modules()):
        if isinstance(part, kinds):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, convert(part))
    return model
""",
        """
def replace_bn(model, num_groups):
    stack = [model]
    holder = nn.ModuleList([model])
    stack = [holder]
    while stack:
        parent = stack.pop()
        for name, child in list(parent._modules.items()):
            if not isinstance(child, nn.modules.batchnorm._BatchNorm):
                stack.append(child)
                continue
            size = min(
                s for s in range(1, child.num_features + 1)
                if child.num_features % s == 0 and child.num_features // s <= num_groups
            )
            new = nn.GroupNorm(child.num_features // size, child.num_features, child.eps, child.affine)
            new.weight, new.bias, new.training = child.weight, child.bias, child.training
            parent._modules[name] = new
    return holder[0]
""",
    ),
    mistakes=(
        Mistake(
            "children_only",
            "You look at the direct children only. Layers inside blocks keep their batch statistics.",
            {
                "named_children():\n        setattr(model, name, replace_bn(child, num_groups))": (
                    "named_children():\n        if isinstance(child, nn.modules.batchnorm._BatchNorm):\n"
                    "            setattr(model, name, replace_bn(child, num_groups))"
                )
            },
        ),
        Mistake(
            "dotted_names",
            "You set a dotted name such as `2.1` on the model. A layer is replaced in its own parent.",
            {
                "model.named_children():\n        setattr(model, name, replace_bn(child, num_groups))": (
                    "list(model.named_modules())[1:]:\n"
                    "        if isinstance(child, nn.modules.batchnorm._BatchNorm):\n"
                    "            setattr(model, name, replace_bn(child, num_groups))"
                )
            },
        ),
        Mistake(
            "local_variable",
            "You assign the new layer to a variable. The parent still holds the old one.",
            {"setattr(model, name, replace_bn(child, num_groups))": "child = replace_bn(child, num_groups)"},
        ),
        Mistake(
            "images_only",
            "You replace `nn.BatchNorm2d` only. After linear layers, too, it needs a batch.",
            {"(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)": "nn.BatchNorm2d"},
        ),
        Mistake(
            "exact_type",
            "You compare the exact type. Subclasses, such as this course's layers, stay in the model.",
            {
                "isinstance(model, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))": (
                    "type(model) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)"
                )
            },
        ),
        Mistake(
            "groups_as_given",
            "You pass `num_groups` on as it is. Where it does not divide the channels, torch refuses.",
            {"max(g for g in range(1, num_groups + 1) if channels % g == 0)": "num_groups"},
        ),
        Mistake(
            "greatest_common_divisor",
            "You take the greatest common divisor of the channels and `num_groups`. For 6 channels and at "
            "most 4 groups that is 2, but 3 divides 6, too.",
            {
                "max(g for g in range(1, num_groups + 1) if channels % g == 0)": (
                    "math.gcd(channels, num_groups)"
                ),
                "def replace_bn": "import math\ndef replace_bn",
            },
        ),
        Mistake(
            "one_group",
            "You always use one group. That is Layer Normalization over (C, H, W).",
            {"max(g for g in range(1, num_groups + 1) if channels % g == 0)": "1"},
        ),
        Mistake(
            "fresh_parameters",
            "Your new layers start with γ = 1 and β = 0. What the network learned there is lost.",
            {
                "            norm.weight = model.weight\n            norm.bias = model.bias": (
                    "            norm.to(model.weight.device, model.weight.dtype)"
                )
            },
        ),
        Mistake(
            "folds_statistics",
            "You fold the running statistics into γ and β. The new layer normalizes by itself, so they would "
            "be divided out a second time. γ and β stay as they are.",
            {
                "            norm.weight = model.weight\n            norm.bias = model.bias": (
                    "            scale = model.weight / torch.sqrt(model.running_var + model.eps)\n"
                    "            norm.weight = nn.Parameter(scale.detach())\n"
                    "            shift = model.bias - model.running_mean * scale\n"
                    "            norm.bias = nn.Parameter(shift.detach())"
                )
            },
        ),
        Mistake(
            "bias_lost",
            "You carry γ over, but not β.",
            {
                "norm.bias = model.bias": "norm.bias = nn.Parameter(torch.zeros_like(model.bias))",
            },
        ),
        Mistake(
            "dtype_lost",
            "You copy the values of γ and β into a float32 layer on the CPU. Dtype and device are lost, and "
            "a model in another dtype stops at its first forward pass.",
            {
                "            norm.weight = model.weight\n            norm.bias = model.bias": (
                    "            norm.load_state_dict({'weight': model.weight, 'bias': model.bias})"
                )
            },
        ),
        Mistake(
            "eps_lost",
            "You lose ε: the new layers have the default.",
            {", eps=model.eps": ""},
        ),
        Mistake(
            "always_affine",
            "You give every new layer γ and β. Where the old one had `affine=False`, there is more to learn "
            "than before, and a checkpoint no longer fits.",
            {
                ", affine=model.affine)": ")",
            },
        ),
        Mistake(
            "never_affine",
            "Your new layers have no γ and β.",
            {
                "affine=model.affine": "affine=False",
                "norm.weight = model.weight\n            norm.bias = model.bias": "pass",
            },
        ),
        Mistake(
            "frozen",
            "You carry γ and β over as tensors that no longer learn.",
            {
                "            norm.bias = model.bias": (
                    "            norm.bias = model.bias\n            norm.requires_grad_(False)"
                )
            },
        ),
        Mistake(
            "mode_lost",
            "A new layer is in training mode. It computes the same in both, but the model is then half in "
            "one mode, half in the other, and whoever asks a layer for its mode is misled.",
            {"        norm.train(model.training)\n": ""},
        ),
        Mistake(
            "copied",
            "You change a copy. The optimizer still holds the parameters of the model that was passed.",
            {
                "    for name, child in": (
                    "    model = copy.copy(model)\n"
                    "    model._modules = dict(model._modules)\n"
                    "    for name, child in"
                ),
                "def replace_bn": "import copy\ndef replace_bn",
            },
        ),
        Mistake(
            "not_returned",
            "You change the model but return nothing. A model that is itself a batch normalization can only "
            "be replaced by what you return.",
            {"    return model\n": "    model.eval() if not model.training else None\n"},
        ),
    ),
    probe=_probe_replace,
)

# ------------------------------------------------------------------------------- weight standardization


def _probe_weights(standardize_weight: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.3)
    weight = draw.batch(4, 3, 2, 2)

    def call(weight: Tensor, eps: float) -> Any:
        return returned(standardize_weight(weight, eps), standardize_weight)

    passed = weight.clone()
    yield "weight of a Conv2d", call(passed, eps)
    yield "the weight is unchanged", unchanged(passed, weight, "in_place")
    yield "weight of a Conv1d", call(draw.batch(5, 2, 3), eps)
    yield "weight of a linear layer", call(draw.batch(3, 7), eps)
    yield "a depthwise weight", call(draw.batch(4, 1, 3, 3), eps)
    x = leaf(weight)
    yield from gradients(call(x * 1, eps), draw, weight=x)
    yield "a tiny eps and small weights", call(1e-4 * weight, 1e-12)
    yield "weight in float32", call(weight.float(), eps)


WEIGHTS = Exercise(
    id="group_norm.weights",
    title="Weight Standardization",
    answer="standardize_weight",
    statement=r"""
Normalize the *weight*: write `standardize_weight(weight, eps)`, which returns, for a weight of shape
$(C_{out}, C_{in}, *)$,

$$\hat w = \frac{w-\mu_o}{\sqrt{\sigma_o^2+\varepsilon}}$$

for every weight $w$ that feeds output channel $o$.

- $\mu_o$ and $\sigma_o^2$ are the mean and the biased variance of all weights that feed output channel $o$.
- The weight may be that of a linear layer, a Conv1d, a Conv2d or a depthwise convolution.
- It returns a new tensor in the same shape and dtype; the raw weight stays as it is, since the optimizer
  updates *it*, and the gradient flows through the standardization.
- Write the formula: torch's own normalization is refused.
""",
    starter="""
def standardize_weight(weight, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "It is the formula of this whole course with another index set. Which axes run over the weights that "
        "feed output channel o?",
        "All axes but the first. How many there are depends on the layer.",
    ),
    reference="""
def standardize_weight(weight, eps):
    dims = tuple(range(1, weight.dim()))
    mean = weight.mean(dim=dims, keepdim=True)
    var = weight.var(dim=dims, correction=0, keepdim=True)
    return (weight - mean) / torch.sqrt(var + eps)
""",
    alternatives=(
        """
def standardize_weight(weight, eps):
    rows = weight.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    return (rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + eps)).view_as(weight)
""",
        """
def standardize_weight(weight, eps):
    filters = []
    for one in weight:
        var, mean = torch.var_mean(one, correction=0)
        filters.append((one - mean) / (var + eps) ** 0.5)
    return torch.stack(filters)
""",
    ),
    mistakes=(
        Mistake(
            "per_input_channel",
            "You standardize along the other axis: per input channel. It is the output channel whose scale "
            "the next normalization sees.",
            {"tuple(range(1, weight.dim()))": "(0, *range(2, weight.dim()))"},
        ),
        Mistake(
            "all_weights",
            "You use one mean and one variance for the whole weight. Each output channel has its own.",
            {"tuple(range(1, weight.dim()))": "tuple(range(weight.dim()))"},
        ),
        Mistake(
            "per_kernel",
            "You standardize each 2-D kernel by itself. The mean runs over the input channels, too, or else "
            "no filter can prefer one input channel to another.",
            {"tuple(range(1, weight.dim()))": "tuple(range(2, weight.dim())) or (1,)"},
        ),
        Mistake(
            "images_only",
            "Your axes fit a Conv2d only.",
            {"tuple(range(1, weight.dim()))": "(1, 2, 3)"},
        ),
        Mistake(
            "unbiased",
            "You divide the variance by n − 1. It is a scale here, not an estimate; with a depthwise kernel "
            "of nine weights the difference shows.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. The formula has it under the root.",
            {"torch.sqrt(var + eps)": "(torch.sqrt(var) + eps)"},
        ),
        Mistake(
            "authors_code",
            "You add ε to `std`, which also divides by n − 1. That is the authors' published code; the "
            "formula has the biased variance, and ε under the root.",
            {"torch.sqrt(var + eps)": "(weight.std(dim=dims, keepdim=True) + eps)"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. A filter whose weights are all alike then divides zero by zero.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Freshly initialized weights are small, too, and then the "
            "standardized ones are too small.",
            {"var + eps": "var + max(eps, 1e-5)"},
        ),
        Mistake(
            "not_centred",
            "You divide by the deviation but do not subtract the mean. The mean is the half of it that "
            "Weight Normalization lacks.",
            {"(weight - mean)": "weight"},
        ),
        Mistake(
            "centred_only",
            "You subtract the mean and stop there.",
            {" / torch.sqrt(var + eps)": ""},
        ),
        Mistake(
            "divided_by_length",
            "You divide by the length of the filter. That is Weight Normalization's denominator; here the "
            "variance becomes 1, not the length.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var * weight[0].numel() + eps)"},
        ),
        Mistake(
            "statistics_detached",
            "The weight is right, the gradient is not: you detach the mean and the variance. Without their "
            "paths the raw weight can drift and stretch.",
            {
                "weight.mean(dim=dims, keepdim=True)": "weight.detach().mean(dim=dims, keepdim=True)",
                "weight.var(": "weight.detach().var(",
            },
        ),
        Mistake(
            "raw_weight_detached",
            "You compute with `weight.data`: no gradient reaches the raw weight, and the layer cannot learn.",
            {"    dims = ": "    weight = weight.data\n    dims = "},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    dims = ": "    return F.layer_norm(weight, weight.shape[1:], eps=eps)\n    dims = "},
        ),
        Mistake(
            "in_place",
            "You overwrite the raw weight. The optimizer's steps would then be undone at every forward pass.",
            {
                "    return (weight - mean) / torch.sqrt(var + eps)": (
                    "    standardized = (weight - mean) / torch.sqrt(var + eps)\n"
                    "    weight.data.copy_(standardized)\n"
                    "    return standardized"
                )
            },
        ),
    ),
    probe=by_hand(_probe_weights),
)

# ------------------------------------------------------------------------------------------- challenge

_TARGET, _STEPS = 0.8, 300


def _photographed(images: Tensor, draw: Draw) -> Tensor:
    """Every image with a gain of its own, 0.1 to 10, and an offset of its own, −2 to 2."""
    generator = torch.Generator().manual_seed(int(draw.uniform(0, 2**31)))
    gain = 10 ** (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
    offset = 4 * torch.rand(len(images), 1, 1, 1, generator=generator) - 2
    return gain * (images + offset)


def _trouble(model: nn.Module, images: Tensor) -> str:
    """What an untrained network does with images: what the verdict can name if training misses the target."""
    images = 1e3 * images  # biases and ε no longer count

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=0.01, atol=0.01)

    def output(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # dropout makes the same choice each time
        y: Tensor = model(x)
        return y

    with torch.no_grad():
        model.train()
        if not same(output(images[:2])[0], output(images[[0, 2]])[0]):
            return "batch_statistics"
        logits = output(images[:16])
        if same(logits[:1].expand_as(logits), logits):
            return "constant"
        if not same(logits, output(3 * images[:16])):
            return "not_normalized"
        return "other" if same(logits, output(images[:16] + 3e3)) else "scale_only"


def _probe_challenge(make_network: Callable[[], Any], draw: Draw) -> Observations:
    data = digits()
    images, test_images = (_photographed(part, draw) for part in (data.train_images, data.test_images))
    seed = int(draw.uniform(0, 2**31))
    torch.manual_seed(seed)
    model = make_network()
    if not isinstance(model, nn.Module):
        if model is None or model is ...:
            returned(model, make_network)
        raise Broken(f"`make_network` returns {kind(model)}, expected an `nn.Module`.")
    logits = model(images[:2])
    shape = tuple(returned(logits, type(model)).shape)
    yield "the shape of the logits", Holds(shape == (2, 10), f"expected logits of shape (2, 10), got {shape}")
    if shape != (2, 10):
        return
    size = sum(parameter.numel() for parameter in model.parameters())
    yield (
        "at most 20 000 parameters",
        Holds(size <= 20_000, f"the network has {size} parameters", "too_large"),
    )
    untrained = copy.deepcopy(model)
    train(model, images, data.train_labels, steps=_STEPS, lr=0.02, batch_size=2, seed=seed)
    reached = accuracy(model, test_images, data.test_labels)
    reason = "" if reached >= _TARGET else _trouble(untrained, images)
    yield (
        f"{_TARGET:.0%} of the test digits",
        Holds(
            reached >= _TARGET, f"{reached:.1%} of the test digits right; the target is {_TARGET:.0%}", reason
        ),
    )
    if reason:
        yield "why", reason


CHALLENGE = Exercise(
    id="group_norm.challenge",
    title="A challenge: two images at a time",
    answer="make_network",
    statement=rf"""
A camera with a faulty exposure: every digit comes with a gain of its own, between 0.1 and 10, and an offset
of its own, between −2 and 2, and memory allows two images per batch. Write `make_network()`, which returns an
`nn.Module` that maps images $(N, 1, 8, 8)$ to logits $(N, 10)$, with at most 20 000 parameters.

The checker trains it by plain gradient descent, {_STEPS} steps of two images each, learning rate 0.02, and
reads the test digits, which have other gains and offsets. The target is **{_TARGET:.0%}**; guessing gives
10 %. Any way that gets there is right, torch's own layers included. The reference measured 88 % or more in
five seeds; the same network with Batch Normalization less than 20 %.
""",
    starter="""
def make_network():
    raise NotImplementedError  # your code here
""",
    hints=(
        "Which normalizations use no other image? Two images are not enough for a batch statistic.",
        "Normalization after the first layer takes out the gain. Does it take out the offset? What reaches "
        "the first linear layer's output if you add 3 to every pixel?",
        "An image is an activation, too: one channel, 8×8 positions. What does one group over it do to gain "
        "and offset?",
    ),
    reference="""
def make_network():
    return nn.Sequential(
        nn.GroupNorm(1, 1),  # gain and offset are gone, image by image
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
""",
    alternatives=(
        """
class Standardized(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        x = x - x.mean(1, keepdim=True)
        return self.linear(x / (x.std(1, keepdim=True) + 1e-5))


def make_network():
    return Standardized()
""",
        """
def make_network():
    return nn.Sequential(
        nn.LayerNorm([1, 8, 8]),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
""",
    ),
    mistakes=(
        Mistake(
            "batch_statistics",
            "Your network looks across the batch: with two images, the statistics are those of one other "
            "image, and its exposure decides what this one becomes.",
            {"nn.GroupNorm(1, 1)": "nn.BatchNorm2d(1)", "nn.GroupNorm(8, 64)": "nn.BatchNorm1d(64)"},
        ),
        Mistake(
            "not_normalized",
            "Your network passes gain and offset on. A tenfold gain means tenfold logits, and the learning "
            "rate is too large for some images and too small for the others.",
            {
                "        nn.GroupNorm(1, 1),  # gain and offset are gone, image by image\n": "",
                "        nn.GroupNorm(8, 64),\n": "",
            },
        ),
        Mistake(
            "scale_only",
            "Your network normalizes after its first layer only. That takes out the gain; the offset has "
            "gone through the weights by then, as a pattern that is added to every digit.",
            {"        nn.GroupNorm(1, 1),  # gain and offset are gone, image by image\n": ""},
        ),
        Mistake(
            "constant",
            "Your network says the same of every image: a group with a single value is normalized to 0, "
            "whatever the value was.",
            {"nn.GroupNorm(8, 64)": "nn.GroupNorm(64, 64)"},
        ),
        Mistake(
            "too_large",
            "Your network has more parameters than are allowed.",
            {
                "nn.Linear(64, 64)": "nn.Linear(64, 512)",
                "(8, 64)": "(8, 512)",
                "nn.Linear(64, 10)": "nn.Linear(512, 10)",
            },
        ),
    ),
    probe=_probe_challenge,
    challenge=True,
)

EXERCISES = (
    FORWARD,
    PREDICT,
    DIVISOR,
    LAYER,
    BUG_GROUPS,
    BUG_VARIANCE,
    REPLACE,
    WEIGHTS,
    BACKWARD,
    CHALLENGE,
)
