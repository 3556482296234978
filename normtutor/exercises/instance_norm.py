"""The exercises of the Instance Normalization notebook, from easy to hard."""

from collections.abc import Callable
from functools import cache
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
    returned,
    settle,
    without_autograd,
)
from normtutor.exercises.probes import (
    Observations,
    fill,
    gradients,
    leaf,
    loads,
    numbers,
    parameter_shapes,
    unchanged,
)

# -------------------------------------------------------------------------------------------- forward


def _probe_forward(instance_norm: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)
    weight, bias = draw.values(3), draw.values(3)
    images, signals = draw.batch(4, 3, 2, 5), draw.batch(2, 3, 5)

    def call(x: Tensor, eps: float, *affine: Tensor | None) -> Any:
        return returned(instance_norm(x, *affine, eps), instance_norm)

    yield "output without weight and bias", call(images.clone(), eps, None, None)
    x = images.clone()
    yield "output for (N, C, H, W)", call(x, eps, weight.clone(), bias.clone())
    yield "the input is unchanged", unchanged(x, images, "in_place")
    yield "output for (N, C, L)", call(signals.clone(), eps, weight, bias)
    yield "output for N = C", call(draw.batch(3, 3, 3, 2), eps, weight, bias)
    given = zip(("x", "weight", "bias"), (images, weight, bias), strict=True)
    inputs = {name: leaf(value) for name, value in given}
    y = returned(instance_norm(*(value * 1 for value in inputs.values()), eps), instance_norm)
    yield from gradients(y, draw, **inputs)
    yield "output for a tiny eps and a small variance", call(1e-4 * images, 1e-12, weight, bias)
    if draw.dtype == torch.float64:
        yield "output at an offset of 1e8", Approx(call(images + 1e8, eps, None, None), 0.02)
    yield "output for float32", call(images.float(), eps, weight.float(), bias.float())
    half = call(images.bfloat16(), eps, weight.bfloat16(), bias.bfloat16())
    yield "output for bfloat16", Approx(half, 0.05)


FORWARD = Exercise(
    id="instance_norm.forward",
    title="The forward formula",
    answer="instance_norm",
    statement=r"""
Write Instance Normalization as a function `instance_norm(x, weight, bias, eps)`:

$$y = \gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\varepsilon}} + \beta$$

- `x` has shape $(N, C, L)$ or $(N, C, H, W)$; `weight` ($\gamma$) and `bias` ($\beta$) have shape $(C,)$,
  or both are `None`: then $y$ is the normalized $x$ alone, torch's default.
- $\mu$ and $\sigma^2$ are the mean and the biased variance of each channel of each sample.
- Return a new tensor of the shape and dtype of `x`, and leave `x` as it is.
- Write the formula: torch's own normalization is refused.

The checker looks at the output for both ranks, with and without $\gamma$ and $\beta$, also with a tiny
$\varepsilon$ and at a mean of $10^8$ deviations (in float64), and at the gradient in `x`, `weight` and
`bias`.
""",
    starter="""
def instance_norm(x, weight, bias, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Which axes does one mean run over? Every axis that is neither the sample's nor the channel's: those "
        "from 2 on.",
        "Keep the reduced axes (`keepdim=True`). `weight` and `bias` need a `view` with as many axes as `x`.",
        "`x.var(...)` divides by n − 1 unless you say `correction=0`.",
    ),
    reference="""
def instance_norm(x, weight, bias, eps):
    dims = list(range(2, x.dim()))
    mean = x.mean(dim=dims, keepdim=True)
    var = x.var(dim=dims, keepdim=True, correction=0)
    y = (x - mean) / torch.sqrt(var + eps)
    if weight is not None:
        shape = [1, -1] + [1] * (x.dim() - 2)
        y = weight.view(shape) * y + bias.view(shape)
    return y
""",
    alternatives=(
        """
def instance_norm(x, weight, bias, eps):
    rows = x.flatten(2)  # one row per sample and channel
    centred = rows - rows.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = torch.addcmul(bias[:, None], y, weight[:, None])
    return y.view(x.shape)
""",
        """
def instance_norm(x, weight, bias, eps):
    y = torch.empty_like(x)
    for n in range(x.size(0)):
        for c in range(x.size(1)):
            var, mean = torch.var_mean(x[n, c], correction=0)
            x_hat = (x[n, c] - mean) / (var + eps) ** 0.5
            y[n, c] = x_hat if weight is None else weight[c] * x_hat + bias[c]
    return y
""",
    ),
    mistakes=(
        Mistake(
            "unbiased_variance",
            "You divide the variance by n − 1. The formula normalizes with the biased variance: it is the "
            "spread of this very map that becomes 1.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. It belongs to the variance, under the root; where the "
            "variance is small the two differ a lot.",
            {"torch.sqrt(var + eps)": "(torch.sqrt(var) + eps)"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. A map of one colour (a clear sky) then divides zero by zero.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "fixed_eps",
            "You use an ε of your own, not the argument. Whoever passes another value would be ignored.",
            {"var + eps": "var + 1e-5"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Where the variance is small too, the output is then too small.",
            {"var + eps": "var + max(eps, 1e-5)"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, without the root. The output then has spread 1/σ, not 1.",
            {"torch.sqrt(var + eps)": "(var + eps)"},
        ),
        Mistake(
            "per_channel",
            "You average over the batch too. That is Batch Normalization: a picture's look would depend on "
            "its company.",
            {"list(range(2, x.dim()))": "[d for d in range(x.dim()) if d != 1]"},
        ),
        Mistake(
            "per_sample",
            "You average over the channels too. That is Layer Normalization: it keeps the contrast of one "
            "channel against another.",
            {"list(range(2, x.dim()))": "list(range(1, x.dim()))"},
        ),
        Mistake(
            "all_axes",
            "You use one mean and one variance for the whole tensor. Each channel of each sample has its "
            "own.",
            {"list(range(2, x.dim()))": "list(range(x.dim()))"},
        ),
        Mistake(
            "last_axis_only",
            "You average over the last axis only, so every row of the image is normalized by itself. H "
            "belongs "
            "to the set as well.",
            {"list(range(2, x.dim()))": "[x.dim() - 1]"},
        ),
        Mistake(
            "images_only",
            "Your axes fit (N, C, H, W) only. A signal (N, C, L) has no axis 3.",
            {"list(range(2, x.dim()))": "(2, 3)"},
        ),
        Mistake(
            "affine_per_sample",
            "You line γ and β up with the samples. They belong to the channels: every picture gets the same.",
            {
                "shape = [1, -1] + [1] * (x.dim() - 2)": (
                    "shape = [1, -1] + [1] * (x.dim() - 2)\n"
                    "        if x.size(0) == x.size(1):\n"
                    "            shape = [-1] + [1] * (x.dim() - 1)"
                )
            },
        ),
        Mistake(
            "keepdim_missing",
            "Your mean and variance have shape (N, C), and against `x` they line up with its last axes. Keep "
            "the reduced axes (`keepdim=True`), so that each map meets its own.",
            {
                "x.mean(dim=dims, keepdim=True)": "x.mean(dim=dims)",
                "x.var(dim=dims, keepdim=True, correction=0)": "x.var(dim=dims, correction=0)",
            },
        ),
        Mistake(
            "one_pass",
            "Your variance is E[x²] − E[x]². Where the mean is large against the deviation, two large "
            "numbers cancel and only noise is left.",
            {
                "x.var(dim=dims, keepdim=True, correction=0)": (
                    "x.square().mean(dim=dims, keepdim=True) - mean.square()"
                )
            },
        ),
        Mistake(
            "view_missing",
            "Against (N, C, H, W), γ and β of shape (C,) line up with W, not with C. They need a `view` that "
            "depends on the number of axes.",
            {"shape = [1, -1] + [1] * (x.dim() - 2)": "shape = [-1]"},
        ),
        Mistake(
            "affine_swapped",
            "You swapped `weight` and `bias`: γ scales and β shifts.",
            {"weight.view(shape) * y + bias.view(shape)": "bias.view(shape) * y + weight.view(shape)"},
        ),
        Mistake(
            "affine_unused",
            "You leave out γ and β. Where they are given, the normalized values are only half of the "
            "formula.",
            {"weight.view(shape) * y + bias.view(shape)": "y"},
        ),
        Mistake(
            "affine_needed",
            "You use `weight` without asking whether it is None. Without γ and β, torch's default, your "
            "function stops.",
            {"if weight is not None:": "if True:"},
        ),
        Mistake(
            "statistics_detached",
            "Your output is right, your gradient is not: you detach the mean and the variance. They depend "
            "on `x` too, and these two paths are what makes it a normalization.",
            {
                "x.mean(dim=dims, keepdim=True)": "x.mean(dim=dims, keepdim=True).detach()",
                "correction=0)": "correction=0).detach()",
            },
        ),
        Mistake(
            "no_graph",
            "Your output is right, but nothing can learn from it: no gradient reaches `x`, `weight` or "
            "`bias`.",
            {"def instance_norm": "@torch.no_grad()\ndef instance_norm"},
        ),
        Mistake(
            "always_float32",
            "You return float32 whatever comes in. The output has the dtype of `x`.",
            {"return y": "return y.float()"},
        ),
        Mistake(
            "in_place",
            "You overwrite `x`. The caller may still need it: the content loss compares with it.",
            {"y = (x - mean) / torch.sqrt(var + eps)": "x -= mean\n    y = x / torch.sqrt(var + eps)"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "    dims = list": (
                    "    return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)\n    dims = list"
                )
            },
        ),
    ),
    probe=by_hand(_probe_forward),
)

# -------------------------------------------------------------------------------------------- predict

_PREDICTED = ("instance", "instance, dimmed", "instance, negative", "batch, dimmed", "gradient")


def _probe_predict(prediction: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(prediction, _PREDICTED, tolerance=0.005)


PREDICT = Exercise(
    id="instance_norm.predict",
    title="Dim the photograph",
    answer="prediction",
    statement=r"""
Paper and pencil. One channel of one photograph holds the four values $1, 3, 5, 7$. Take $\gamma=1$,
$\beta=0$ and an $\varepsilon$ too small to matter. Fill in the dict `prediction`, to two decimals:

- `"instance"`: what Instance Normalization makes of the $7$;
- `"instance, dimmed"`: the same after the photograph was dimmed: every value $x$ becomes $0.2\,x + 1$;
- `"instance, negative"`: the same for the negative, where every $x$ becomes $-x$;
- `"batch, dimmed"`: Batch Normalization *in evaluation*, its running mean 4 and its running variance 5
  learned from photographs such as the undimmed one, makes of the dimmed $7$;
- `"gradient"`: by which factor Instance Normalization's gradient in its input grows when the photograph is
  dimmed (the gradient from above being the same).
""",
    starter="""
prediction = {
    "instance": ...,
    "instance, dimmed": ...,
    "instance, negative": ...,
    "batch, dimmed": ...,
    "gradient": ...,
}
""",
    hints=(
        "Mean 4; the squared deviations are 9, 1, 1 and 9, and the variance divides by n.",
        "a·x + b has the mean a·μ + b and the standard deviation |a|·σ. What remains of a and b?",
        "If f(a·x + b) = f(x) for every x, differentiate both sides in x.",
    ),
    reference="""
x = torch.tensor([1.0, 3.0, 5.0, 7.0])
dimmed = 0.2 * x + 1

def last(x):
    return (x[-1] - x.mean()) / x.std(correction=0)

prediction = {
    "instance": last(x),
    "instance, dimmed": last(dimmed),
    "instance, negative": last(-x),
    "batch, dimmed": (dimmed[-1] - 4) / 5**0.5,
    "gradient": 1 / 0.2,
}
""",
    alternatives=(
        """
prediction = {
    "instance": 1.34,
    "instance, dimmed": 1.34,
    "instance, negative": -1.34,
    "batch, dimmed": -0.72,
    "gradient": 5,
}
""",
        """
norm = nn.InstanceNorm1d(1, eps=0.0)
x = torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])
prediction = {
    "instance": norm(x)[0, 0, 3],
    "instance, dimmed": norm(0.2 * x + 1)[0, 0, 3].item(),
    "instance, negative": norm(-x)[0, 0, 3],
    "batch, dimmed": (2.4 - 4) / 2.236,
    "gradient": 5.0,
}
""",
    ),
    mistakes=(
        Mistake(
            "unbiased",
            "You divided by n − 1 = 3. Instance Normalization uses the biased variance, as every "
            "normalization of activations does.",
            {"x.std(correction=0)": "x.std()"},
        ),
        Mistake(
            "no_root",
            "You divided by the variance. The output is divided by its root.",
            {
                "(x[-1] - x.mean()) / x.std(correction=0)": "(x[-1] - x.mean()) / x.var(correction=0)",
                "5**0.5": "5",
            },
        ),
        Mistake(
            "dimming_remains",
            "You let the dimming pass through. The mean takes b away and the standard deviation takes a "
            "away: "
            "nothing of either remains.",
            {"last(dimmed)": "0.2 * last(x)"},
        ),
        Mistake(
            "brightness_remains",
            "You divided the contrast out, but let the brightness b pass. The mean takes it away.",
            {"last(dimmed)": "last(x) + 1"},
        ),
        Mistake(
            "output_dimmed",
            "You dimmed what the layer had returned. It is the photograph that is dimmed, before the layer "
            "sees it, and there the mean takes b away and the standard deviation a.",
            {"last(dimmed)": "0.2 * last(x) + 1"},
        ),
        Mistake(
            "batch_output_scaled",
            "You scaled Batch Normalization's output by 0.2. The 1 that the dimming adds comes through too, "
            "and the mean of 4 is subtracted from the dimmed value.",
            {"(dimmed[-1] - 4) / 5**0.5": "0.2 * last(x)"},
        ),
        Mistake(
            "sign_lost",
            "You made the negative equal to the positive. The standard deviation is |a|·σ: the size of the "
            "factor cancels, its sign stays.",
            {"last(-x)": "last(x)"},
        ),
        Mistake(
            "batch_adapts",
            "You gave Batch Normalization the dimmed photograph's own statistics. In evaluation it subtracts "
            "and divides by what it learned, so the dimming passes through: that is the difference.",
            {"(dimmed[-1] - 4) / 5**0.5": "last(dimmed)"},
        ),
        Mistake(
            "gradient_unchanged",
            "You kept the gradient as it was. The output stays while the input shrinks, so a given step "
            "in the "
            "input counts for more.",
            {"1 / 0.2": "1"},
        ),
        Mistake(
            "gradient_shrinks",
            "You multiplied the gradient by a. From f(a·x + b) = f(x) follows a·f′(a·x + b) = f′(x): it is "
            "divided by a.",
            {"1 / 0.2": "0.2"},
        ),
        Mistake(
            "gradient_squared",
            "You divided the gradient by a². One standard deviation stands in the denominator, so it is a.",
            {"1 / 0.2": "1 / 0.2**2"},
        ),
    ),
    probe=_probe_predict,
)

# -------------------------------------------------------------------------------------------- reshape


def _probe_reshape(function: Callable[..., Any], draw: Draw) -> Observations:
    calls, eps = [], draw.uniform(0.05, 0.4)  # so that no formula of the learner's own can know it

    def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Of (N, C) or (N, C, *), in training; strict about the shapes."""
        if weight.shape != (x.size(1),) or bias.shape != (x.size(1),):
            raise ValueError(
                f"batch_norm got x of shape {tuple(x.shape)}, so weight and bias should have shape "
                f"({x.size(1)},), but have {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        calls.append(tuple(x.shape))
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return weight.view(shape) * (x - mean) / torch.sqrt(var + eps) + bias.view(shape)

    for n, c, *rest in ((4, 3, 2, 5), (3, 3, 4), (1, 2, 3, 3)):
        x, weight, bias = draw.batch(n, c, *rest), draw.values(c), draw.values(c)
        kept = x.clone()
        calls.clear()
        y = returned(function(x, weight, bias, batch_norm), function)
        used = Holds(bool(calls), "`batch_norm` is never called: the task is to reuse it", "own_formula")
        yield f"the use of batch_norm for {(n, c, *rest)}", used
        yield f"output for {(n, c, *rest)}", y
        yield f"the input is unchanged for {(n, c, *rest)}", unchanged(x, kept, "in_place")
    strided = draw.batch(2, 4, 5, 3).transpose(2, 3)
    strided = strided.contiguous(memory_format=torch.channels_last)
    yield (
        "output for channels_last",
        returned(function(strided, draw.values(4), draw.values(4), batch_norm), function),
    )
    x = leaf(kept)
    y = returned(function(x * 1, weight, bias, batch_norm), function)
    yield from gradients(y, draw, x=x)


_RESHAPED = "x.reshape(1, n * c, *x.shape[2:])"

RESHAPE = Exercise(
    id="instance_norm.reshape",
    title="Batch Normalization in disguise",
    answer="instance_norm",
    statement=r"""
You are given a function `batch_norm(x, weight, bias)`: Batch Normalization of $(N, C, *)$ in training, with
statistics per channel and $\gamma$, $\beta$ of shape $(C,)$ for whatever $C$ its input has. Write
`instance_norm(x, weight, bias, batch_norm)` with it, without a mean or variance of your own:

- `x` has shape $(N, C, *)$, `weight` and `bias` have shape $(C,)$;
- the result is Instance Normalization of `x`, in the shape of `x`;
- any number of calls is right; one is enough. (torch's own Instance Normalization is made like this.)

The checker's shapes are $(N, C, L)$ and $(N, C, H, W)$, also in `channels_last`. It also looks at the
gradient in `x`, and at whether `batch_norm`, which has an $\varepsilon$ of its own, was called.
""",
    starter="""
def instance_norm(x, weight, bias, batch_norm):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Batch Normalization mixes what has the same channel index. Give every pair of sample and channel an "
        "index of its own.",
        "A batch of one sample with N·C channels: which γ belongs to the channel n·C + c?",
    ),
    reference=f"""
def instance_norm(x, weight, bias, batch_norm):
    n, c = x.shape[:2]
    as_channels = {_RESHAPED}
    y = batch_norm(as_channels, weight.repeat(n), bias.repeat(n))
    return y.reshape(x.shape)
""",
    alternatives=(
        """
def instance_norm(x, weight, bias, batch_norm):
    return torch.cat([batch_norm(sample[None], weight, bias) for sample in x])
""",
        """
def instance_norm(x, weight, bias, batch_norm):
    rows = x.flatten(2).flatten(0, 1).T  # positions × (sample, channel): the positions are the batch
    y = batch_norm(rows, weight.repeat(len(x)), bias.repeat(len(x)))
    return y.T.reshape(x.shape)
""",
        """
def instance_norm(x, weight, bias, batch_norm):
    y = [batch_norm(x[i : i + 1], weight, bias) for i in range(x.size(0))]
    return torch.stack([part[0] for part in y])
""",
    ),
    mistakes=(
        Mistake(
            "plain_batch_norm",
            "You pass `x` as it is. That is Batch Normalization: the samples of a channel share their "
            "statistics.",
            {
                _RESHAPED: "x",
                "weight.repeat(n), bias.repeat(n)": "weight, bias",
            },
        ),
        Mistake(
            "samples_as_batch",
            "You make one channel of everything, (N·C, 1, …). Then all maps share one mean; it is the "
            "channels "
            "that have statistics of their own.",
            {
                _RESHAPED: "x.reshape(n * c, 1, *x.shape[2:])",
                "weight.repeat(n), bias.repeat(n)": "weight[:1], bias[:1]",
            },
        ),
        Mistake(
            "samples_as_channels",
            "You swap samples and channels. Then each sample has one mean for all its channels: that is "
            "Layer "
            "Normalization.",
            {
                _RESHAPED: "x.transpose(0, 1)",
                "weight.repeat(n), bias.repeat(n)": "weight.new_ones(n), bias.new_zeros(n)",
                "y.reshape(x.shape)": (
                    "y.transpose(0, 1) * weight.view(1, -1, *[1] * (x.dim() - 2)) "
                    "+ bias.view(1, -1, *[1] * (x.dim() - 2))"
                ),
            },
        ),
        Mistake(
            "gamma_not_repeated",
            "You pass γ and β of C values for N·C channels. Each sample needs its copy.",
            {"weight.repeat(n), bias.repeat(n)": "weight, bias"},
        ),
        Mistake(
            "gamma_interleaved",
            "You repeat each value of γ N times in a row. The channels run fastest: γ as a whole comes once "
            "per sample.",
            {"weight.repeat(n), bias.repeat(n)": ("weight.repeat_interleave(n), bias.repeat_interleave(n)")},
        ),
        Mistake(
            "affine_forgotten",
            "You normalize with γ = 1 and β = 0. The weight and bias that came in are lost.",
            {"weight.repeat(n), bias.repeat(n)": ("weight.new_ones(n * c), bias.new_zeros(n * c)")},
        ),
        Mistake(
            "affine_twice",
            "You apply γ and β once more after `batch_norm` did.",
            {
                "y.reshape(x.shape)": (
                    "y.reshape(x.shape) * weight.view(1, -1, *[1] * (x.dim() - 2)) "
                    "+ bias.view(1, -1, *[1] * (x.dim() - 2))"
                )
            },
        ),
        Mistake(
            "shape_kept",
            "You return (1, N·C, …). Whoever called you expects the shape of `x`.",
            {"y.reshape(x.shape)": "y"},
        ),
        Mistake(
            "view",
            "You use `view`, which needs contiguous memory. A channels_last image, or one that was "
            "transposed, "
            "stops with an error; `reshape` copies where it must.",
            {_RESHAPED: _RESHAPED.replace("reshape", "view")},
        ),
        Mistake(
            "images_only",
            "You take the shape apart as (N, C, H, W). A signal (N, C, L) has one axis less.",
            {"n, c = x.shape[:2]": "n, c, _, _ = x.shape"},
        ),
        Mistake(
            "own_formula",
            "`batch_norm` takes no part in your result. The point is that you need no new formula, only "
            "another shape.",
            {
                "    n, c = x.shape[:2]": (
                    "    dims = list(range(2, x.dim()))\n"
                    "    shape = [1, -1] + [1] * len(dims)\n"
                    "    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)\n"
                    "    x_hat = (x - mean) / torch.sqrt(var + 0.1)\n"
                    "    return weight.view(shape) * x_hat + bias.view(shape)\n"
                    "    n, c = x.shape[:2]"
                )
            },
        ),
        Mistake(
            "in_place",
            "You write the result into `x`. Its owner may still need it.",
            {"return y.reshape(x.shape)": "return x.copy_(y.reshape(x.shape))"},
        ),
    ),
    probe=by_hand(_probe_reshape),
    cancels={
        frozenset(
            ("affine_forgotten", "affine_twice")
        ): "With γ = 1 and β = 0 inside, applying γ and β once outside is the formula."
    },
)

# ----------------------------------------------------------------------------------------- bug: layout


def _probe_bug_layout(normalize: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.3)
    for shape in ((3, 4, 5, 2), (2, 3, 3, 3), (1, 2, 6, 4)):
        images = draw.batch(shape[0], shape[3], *shape[1:3]).permute(0, 2, 3, 1).contiguous()
        x = images.clone()
        yield f"output for {shape}", returned(normalize(x, eps), normalize)
        yield f"the input is unchanged for {shape}", unchanged(x, images, "in_place")
    strided = draw.batch(2, 3, 4, 5).permute(0, 2, 3, 1)  # as a photograph comes out of a network
    yield "output for a strided input", returned(normalize(strided, eps), normalize)
    x = leaf(images)
    yield from gradients(returned(normalize(x * 1, eps), normalize), draw, x=x)
    yield "output for a tiny eps and a small variance", returned(normalize(1e-4 * images, 1e-12), normalize)


_ROWS = "x.permute(0, 3, 1, 2).reshape(n * c, h * w)"
_BACK = "y.reshape(n, c, h, w).permute(0, 2, 3, 1)"
_BUG_LAYOUT = f"""
def normalize(x, eps):
    n, h, w, c = x.shape
    rows = {_ROWS}
    mean = rows.mean(dim=1, keepdim=True)
    var = rows.var(dim=1, keepdim=True, correction=0)
    y = (rows - mean) / torch.sqrt(var + eps)
    return {_BACK}
"""

BUG_LAYOUT = Exercise(
    id="instance_norm.bug_layout",
    title="Spot the bug: rows that are no channels",
    answer="normalize",
    statement=r"""
A founding draft of this course made one row per sample and channel with
`x.view(batch_size * num_channels, height * width)`. That is right for a contiguous $(N, C, H, W)$, and stops
with an error for a `channels_last` one. Somebody carried it over to photographs as they come from NumPy and
JAX, $(N, H, W, C)$, and made the error go away with `reshape`. Now it runs, and is wrong: look at its output
for a red and a blue half, and colours bleed.

Repair `normalize(x, eps)`: Instance Normalization of `x` of shape $(N, H, W, C)$, without $\gamma$ and
$\beta$, in the same layout. The checker looks at several shapes, at a strided input, at the gradient and at
a tiny $\varepsilon$. torch's own normalization is refused.
""",
    starter=patched(_BUG_LAYOUT, {_ROWS: "x.reshape(n * c, h * w)", _BACK: "y.reshape(n, h, w, c)"}),
    hints=(
        "`reshape` keeps the order in memory. In (N, H, W, C), which numbers follow each other?",
        "Move the channels before the positions first (`permute`), and back afterwards. Or use no rows at "
        "all: "
        "`dim=` takes several axes.",
    ),
    reference=_BUG_LAYOUT,
    alternatives=(
        """
def normalize(x, eps):
    var, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)
""",
        """
def normalize(x, eps):
    rows = x.flatten(1, 2)  # N, positions, C
    centred = rows - rows.mean(1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    return y.unflatten(1, x.shape[1:3])
""",
    ),
    mistakes=(
        Mistake(
            "back_forgotten",
            "You normalize the right rows, but return (N, C, H, W). The caller's layout is (N, H, W, C).",
            {_BACK: "y.reshape(n, c, h, w)"},
        ),
        Mistake(
            "back_reshaped",
            "You normalize the right rows, but a `reshape` to (N, H, W, C) does not bring them back: it "
            "scatters "
            "each channel over the picture. Undo the `permute`.",
            {_BACK: "y.reshape(n, h, w, c)"},
        ),
        Mistake(
            "height_and_width_swapped",
            "You bring the axes back in another order: the picture comes out transposed.",
            {_BACK: "y.reshape(n, c, h, w).permute(0, 3, 2, 1)"},
        ),
        Mistake(
            "per_pixel",
            "You normalize the channels of each pixel. That is Layer Normalization of a pixel; here each "
            "channel is normalized over the positions.",
            {_ROWS: "x.reshape(n * h * w, c)", _BACK: "y.reshape(n, h, w, c)"},
        ),
        Mistake(
            "per_sample",
            "You use one mean for all channels of a photograph. Its colour cast then survives; each channel "
            "has its own.",
            {_ROWS: "x.reshape(n, h * w * c)", _BACK: "y.reshape(n, h, w, c)"},
        ),
        Mistake(
            "over_batch",
            "You average over the photographs too. That is Batch Normalization.",
            {
                _ROWS: "x.permute(3, 0, 1, 2).reshape(c, n * h * w)",
                _BACK: "y.reshape(c, n, h, w).permute(1, 2, 3, 0)",
            },
        ),
        Mistake(
            "view_on_strided",
            "You use `view`, which needs contiguous memory: after a `permute` it stops with an error.",
            {_ROWS: "x.permute(0, 3, 1, 2).view(n * c, h * w)"},
        ),
        Mistake(
            "unbiased_variance",
            "You divide the variance by n − 1. The formula's is the biased one.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Where the variance is small too, the output is then too small.",
            {"var + eps": "var + max(eps, 1e-5)"},
        ),
        Mistake(
            "statistics_detached",
            "Your output is right, your gradient is not: you detach the mean and the variance.",
            {
                "rows.mean(dim=1, keepdim=True)": "rows.mean(dim=1, keepdim=True).detach()",
                "correction=0)": "correction=0).detach()",
            },
        ),
        Mistake(
            "in_place",
            "You overwrite the photographs. Whoever passed them still needs them.",
            {"    return y": "    x.zero_()\n    return y"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "    n, h, w, c = x.shape": (
                    "    return F.instance_norm(x.movedim(-1, 1), eps=eps).movedim(1, -1)\n"
                    "    n, h, w, c = x.shape"
                )
            },
        ),
    ),
    probe=by_hand(_probe_bug_layout),
    spot_the_bug=True,
)

# ---------------------------------------------------------------------------------------------- layer

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_FILLED = dict.fromkeys(_STATE[:4], (3,))
_RUNNING = ("running_mean", "running_var")


def _probe_layer(cls: Callable[..., nn.Module], draw: Draw) -> Observations:
    attempted(lambda: cls(3)(torch.zeros(2, 3, 2, 2)), cls)
    eps, momentum = draw.uniform(0.05, 0.5), draw.uniform(0.15, 0.4)
    images, other = draw.batch(3, 3, 2, 4), draw.batch(4, 3, 3, 2)

    plain = settle(cls(3, eps=eps), draw)
    yield "the default has no parameters", parameter_shapes(plain)
    yield "the default's keys of state_dict()", sorted(plain.state_dict())
    x = images.clone()
    yield "the default's output in training", returned(plain(x), cls)
    yield "the input is unchanged", unchanged(x, images, "input_changed")
    yield "the default's output in evaluation", returned(plain.eval()(images.clone()), cls)
    yield "one sample alone", returned(plain(images[1:2].clone()), cls)

    layer = settle(cls(3, eps=eps, momentum=momentum, affine=True, track_running_stats=True), draw)
    yield "the parameters with affine=True", parameter_shapes(layer)
    yield "the keys of state_dict() with both", sorted(layer.state_dict())
    for name in _STATE:
        yield f"{name} at the start", getattr(layer, name, None)
    fill(layer, draw, _FILLED)
    yield "output in training", returned(layer(images.clone()), cls)
    for name in (*_RUNNING, "num_batches_tracked"):
        yield f"{name} after one step", getattr(layer, name, None)
    x = leaf(images)
    y = returned(layer(x * 1), cls)
    graphs = [b.grad_fn for name in _RUNNING if isinstance(b := getattr(layer, name, None), Tensor)]
    free = Holds(graphs == [None] * len(graphs), "the buffers keep an autograd graph", "graph_kept")
    yield "no graph in the buffers", free
    learned = {name: getattr(layer, name, None) for name in ("weight", "bias")}
    yield from gradients(y, draw, x=x, **learned)
    layer(other.clone())
    for name in (*_RUNNING, "num_batches_tracked"):
        yield f"{name} after three steps", getattr(layer, name, None)
    layer.eval()
    yield "output in evaluation", returned(layer(images.clone()), cls)
    yield "output for one sample in evaluation", returned(layer(images[1:2].clone()), cls)
    for name in (*_RUNNING, "num_batches_tracked"):
        yield f"{name} after evaluation", getattr(layer, name, None)

    only_affine = settle(cls(3, affine=True), draw)
    fill(only_affine, draw, _FILLED)
    yield "the keys of state_dict() with affine only", sorted(only_affine.state_dict())
    yield "output in evaluation with affine only", returned(only_affine.eval()(other.clone()), cls)
    tracked = settle(cls(3, track_running_stats=True), draw)
    yield "the keys of state_dict() with tracking only", sorted(tracked.state_dict())
    yield "output with the default eps", returned(tracked(0.005 * images), cls)
    yield "running_mean with the default momentum", getattr(tracked, "running_mean", None)
    precise = settle(cls(3, eps=1e-12), draw)
    yield "output for a tiny eps and a small variance", returned(precise(1e-4 * images), cls)
    last = draw.batch(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    yield "output for channels_last", returned(plain(last), cls)
    if draw.dtype == torch.float64:
        yield "output at an offset of 1e8", Approx(returned(plain(draw.batch(2, 3, 4, 5) + 1e8), cls), 0.02)

    single = settle(cls(3, affine=True), draw, torch.float32)
    yield "output for float32", returned(single(images.float()), cls)
    for dtype, offset in ((torch.bfloat16, 60), (torch.float16, 250)):
        half = settle(cls(8, affine=True, track_running_stats=True), draw, torch.float32)
        coarse = (draw.batch(3, 8, 3, 4) + offset).to(dtype)
        name = str(dtype).removeprefix("torch.")
        yield f"output for {name}", returned(half(coarse), cls)
        yield f"running_mean for {name}", getattr(half, "running_mean", None)

    options = {"affine": True, "track_running_stats": True}
    theirs, mine = settle(nn.InstanceNorm2d(3, **options), draw), settle(cls(3, **options), draw)
    fill(theirs, draw, _FILLED)
    loaded = loads(theirs.state_dict(), mine)
    yield "torch's checkpoint loads", Holds(loaded, "a checkpoint of torch's layer does not load into yours")
    yield "output with torch's checkpoint", returned(mine.eval()(images.clone()), cls)


_MEAN = "wide.mean(dim=(2, 3))"
_VAR = "wide.var(dim=(2, 3), correction=0)"
_AFFINE = "self.weight[:, None, None] * y + self.bias[:, None, None]"
_UPDATE = """                self.running_mean.lerp_(mean.mean(0), self.momentum)
                self.running_var.lerp_(var.mean(0) * n / (n - 1), self.momentum)
"""

LAYER = Exercise(
    id="instance_norm.layer",
    title="The whole layer",
    answer="InstanceNorm2d",
    statement=r"""
Write the class `InstanceNorm2d(num_features, eps=1e-5, momentum=0.1, affine=False,
track_running_stats=False)`, derived from `nn.Module`, for inputs of shape $(N, C, H, W)$: a drop-in for
torch's. The checker looks at

- **the default**: no parameters, nothing in `state_dict()`; each sample's own statistics in training *and* in
  evaluation;
- **affine=True**: parameters `weight` ($\gamma$, ones) and `bias` ($\beta$, zeros) of shape $(C,)$, and all
  gradients;
- **track_running_stats=True**: buffers `running_mean` (zeros) and `running_var` (ones) of shape $(C,)$ and
  `num_batches_tracked` (an integer 0, shape `()`). Training still normalizes with each sample's own
  statistics; the buffers follow, with `momentum`, the *average over the samples* of their means and of their
  unbiased variances (divided by $HW-1$). Evaluation normalizes with the buffers and moves nothing. The
  counter stays 0: torch never touches it. No autograd graph is left in the buffers;
- **numbers**: `eps` and `momentum` as they are given, however small; the dtype of the input comes out;
  bfloat16 and float16 inputs to a float32 layer have their statistics computed in float32; the variance stays
  right at a mean of $10^8$ deviations (in float64); `channels_last` inputs; the input unchanged; torch's
  checkpoint loads.

Write the formula: torch's own normalization is refused.
""",
    starter="""
class InstanceNorm2d(nn.Module):
    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=False,
        track_running_stats=False,
    ):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here
""",
    hints=(
        "Make parameters and buffers only where the options ask for them; what is missing must not appear in "
        "`state_dict()`.",
        "When do the buffers serve as statistics? Only if they are tracked and the layer is in "
        "evaluation. In "
        "the three other cases the sample's own do.",
        "The samples' statistics have shape (N, C), the buffers (C,): average over N under "
        "`torch.no_grad()`.",
        "For half precision: convert `x` to float32 first, and the result back to `x.dtype` last.",
    ),
    reference=f"""
class InstanceNorm2d(nn.Module):
    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=False, track_running_stats=False
    ):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features))
            self.bias = nn.Parameter(torch.zeros(num_features))
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.training or not self.track_running_stats:
            mean = {_MEAN}
            var = {_VAR}
        else:
            mean, var = self.running_mean[None], self.running_var[None]
        if self.training and self.track_running_stats:
            n = x.size(2) * x.size(3)
            with torch.no_grad():
{_UPDATE}        y = (wide - mean[:, :, None, None]) / torch.sqrt(var[:, :, None, None] + self.eps)
        if self.affine:
            y = {_AFFINE}
        return y.to(x.dtype)
""",
    alternatives=(
        """
class InstanceNorm2d(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=False, track_running_stats=False):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        parameters = (torch.ones(num_features), torch.zeros(num_features)) if affine else (None, None)
        for name, value in zip(("weight", "bias"), parameters):
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        kept = (torch.zeros(num_features), torch.ones(num_features), torch.tensor(0))
        for name, value in zip(("running_mean", "running_var", "num_batches_tracked"), kept):
            self.register_buffer(name, value if track_running_stats else None)

    def forward(self, x):
        n, c, h, w = x.shape
        rows = x.reshape(n, c, h * w).to(torch.promote_types(x.dtype, torch.float32))
        if self.running_mean is not None and not self.training:
            var, mean = self.running_var.view(1, c, 1), self.running_mean.view(1, c, 1)
        else:
            var, mean = torch.var_mean(rows, dim=2, correction=0, keepdim=True)
            if self.running_mean is not None:
                self._update(mean.detach(), rows.detach().var(dim=2))
        y = (rows - mean) * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            y = torch.addcmul(self.bias.view(1, c, 1), y, self.weight.view(1, c, 1))
        return y.view(n, c, h, w).to(x.dtype)

    def _update(self, mean, var):
        old, new = 1 - self.momentum, self.momentum
        self.running_mean = old * self.running_mean + new * mean.mean(0).flatten()
        self.running_var = old * self.running_var + new * var.mean(0)
""",
        """
class InstanceNorm2d(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=False, track_running_stats=False):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.affine, self.tracked = affine, track_running_stats
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features))
            self.bias = nn.Parameter(torch.zeros(num_features))
        if track_running_stats:
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))
            self.register_buffer("running_var", torch.ones(num_features))
            self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x):
        return torch.stack([self._one(sample, len(x)) for sample in x]) if self._own() else self._kept(x)

    def _own(self):
        if self.tracked and self.training:
            self.running_mean *= 1 - self.momentum
            self.running_var *= 1 - self.momentum
        return self.training or not self.tracked

    def _one(self, sample, of):
        wide = sample if sample.dtype == torch.float64 else sample.float()
        centred = wide - wide.mean((1, 2), keepdim=True)
        squares = centred.square().sum((1, 2), keepdim=True)
        n = wide[0].numel()
        if self.tracked:
            with torch.no_grad():
                self.running_mean += self.momentum * wide.mean((1, 2)) / of
                self.running_var += self.momentum * squares.flatten() / (n - 1) / of
        return self._shift(centred / (squares / n + self.eps).sqrt()).to(sample.dtype)

    def _kept(self, x):
        centred = x - self.running_mean[:, None, None]
        return self._shift(centred / (self.running_var[:, None, None] + self.eps).sqrt()).to(x.dtype)

    def _shift(self, y):
        return y * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else y
""",
    ),
    mistakes=(
        Mistake(
            "affine_by_default",
            "Your default is affine=True. torch's InstanceNorm2d learns nothing unless it is asked to, "
            "unlike "
            "its BatchNorm2d: a checkpoint of the default layer is empty.",
            {"affine=False": "affine=True"},
        ),
        Mistake(
            "tracks_by_default",
            "Your default tracks running statistics. torch's does not: by default training and evaluation "
            "are "
            "the same.",
            {"track_running_stats=False": "track_running_stats=True"},
        ),
        Mistake(
            "unbiased_normalization",
            "You normalize with the unbiased variance (`torch.std` and `var` divide by n − 1 unless told "
            "otherwise). The map is divided by the biased one; only the buffer takes the unbiased.",
            {_VAR: "wide.var(dim=(2, 3), correction=1)", "var.mean(0) * n / (n - 1)": "var.mean(0)"},
        ),
        Mistake(
            "over_batch",
            "You take the statistics over the batch too, as Batch Normalization does. Then a picture's "
            "result "
            "depends on its company.",
            {
                _MEAN: "wide.mean(dim=(0, 2, 3))[None]",
                _VAR: "wide.var(dim=(0, 2, 3), correction=0)[None]",
                "n = x.size(2) * x.size(3)": "n = x.numel() // x.size(1)",
            },
        ),
        Mistake(
            "over_channels",
            "You take one mean over all channels of a sample. That is Layer Normalization.",
            {
                _MEAN: "wide.mean(dim=(1, 2, 3))[:, None].expand(x.shape[:2])",
                _VAR: "wide.var(dim=(1, 2, 3), correction=0)[:, None].expand(x.shape[:2])",
            },
        ),
        Mistake(
            "momentum_ignored",
            "You accept `momentum` and ignore it, as the founding draft of this course did: 0.1 whatever is "
            "asked for.",
            {"self.eps, self.momentum = eps, momentum": "self.eps, self.momentum = eps, 0.1"},
        ),
        Mistake(
            "momentum_swapped",
            "You swapped the weights of old and new: momentum is the weight of the newest batch.",
            {"self.eps, self.momentum = eps, momentum": "self.eps, self.momentum = eps, 1 - momentum"},
        ),
        Mistake(
            "default_momentum",
            "Your default momentum is 0.9. torch's is 0.1, the weight of the newest batch.",
            {"momentum=0.1": "momentum=0.9"},
        ),
        Mistake(
            "buffers_never_move",
            "You make the buffers, but nothing moves them: evaluation subtracts 0 and divides by 1.",
            {_UPDATE: "                pass\n"},
        ),
        Mistake(
            "biased_running_var",
            "You store the biased variance. The maps are normalized with it, but the buffer holds the "
            "unbiased "
            "one, divided by H·W − 1.",
            {"var.mean(0) * n / (n - 1)": "var.mean(0)"},
        ),
        Mistake(
            "counts_the_batch",
            "Your n counts the samples too. Each sample's variance comes from its own H·W values, and only "
            "those: n = H·W.",
            {"n = x.size(2) * x.size(3)": "n = x.size(0) * x.size(2) * x.size(3)"},
        ),
        Mistake(
            "variance_over_batch_stored",
            "You store the variance over the whole batch, as Batch Normalization does. Here it is the "
            "average "
            "of the samples' variances: how the means differ between samples does not count.",
            {
                "var.mean(0) * n / (n - 1)": "wide.var(dim=(0, 2, 3))",
            },
        ),
        Mistake(
            "sum_over_samples",
            "You add the samples' statistics up. The buffers follow their average, whatever N is.",
            {
                "lerp_(mean.mean(0), self": "lerp_(mean.sum(0), self",
                "lerp_(var.mean(0) * n": "lerp_(var.sum(0) * n",
            },
        ),
        Mistake(
            "last_sample_only",
            "You store the statistics of the last sample. The buffers follow the average over all.",
            {
                "lerp_(mean.mean(0), self": "lerp_(mean[-1], self",
                "lerp_(var.mean(0) * n": "lerp_(var[-1] * n",
            },
        ),
        Mistake(
            "buffers_per_sample",
            "You move the buffers once per sample. One batch is one step, with momentum once.",
            {
                _UPDATE: (
                    "                for m, v in zip(mean, var):\n"
                    "                    self.running_mean.lerp_(m, self.momentum)\n"
                    "                    self.running_var.lerp_(v * n / (n - 1), self.momentum)\n"
                )
            },
        ),
        Mistake(
            "evaluation_ignores_buffers",
            "With tracked statistics you still use the sample's own in evaluation. What was tracked is then "
            "never used.",
            {"if self.training or not self.track_running_stats:": "if True:"},
        ),
        Mistake(
            "evaluation_needs_buffers",
            "Without tracking, evaluation looks for buffers that are not there. The sample's own statistics "
            "serve in both modes.",
            {"if self.training or not self.track_running_stats:": "if self.training:"},
        ),
        Mistake(
            "training_uses_buffers",
            "With tracked statistics you use the buffers in training too. Training normalizes with each "
            "sample's own; no gradient flows through the buffers.",
            {
                "        y = (wide": (
                    "        if self.track_running_stats:\n"
                    "            mean, var = self.running_mean[None], self.running_var[None]\n"
                    "        y = (wide"
                )
            },
        ),
        Mistake(
            "updates_in_evaluation",
            "You move the buffers in evaluation too. A trained model then changes while it is only being "
            "used.",
            {
                "if self.training and self.track_running_stats:": (
                    "if self.track_running_stats:\n"
                    "            own, spread = wide.mean(dim=(2, 3)), wide.var(dim=(2, 3), correction=0)"
                ),
                "lerp_(mean.mean(0), self": "lerp_(own.mean(0), self",
                "lerp_(var.mean(0) * n": "lerp_(spread.mean(0) * n",
            },
        ),
        Mistake(
            "counts_batches",
            "You count batches. torch's Instance Normalization has the counter, for the checkpoint's "
            "sake, and "
            "never moves it: there is no cumulative average here.",
            {
                "with torch.no_grad():\n": (
                    "with torch.no_grad():\n                self.num_batches_tracked += 1\n"
                )
            },
        ),
        Mistake(
            "counter_missing",
            "There is no `num_batches_tracked`. torch's checkpoints hold it and no longer load.",
            {'            self.register_buffer("num_batches_tracked", torch.tensor(0))\n': ""},
        ),
        Mistake(
            "plain_attributes",
            "Your running statistics are plain attributes. They are missing from `state_dict()` and stay "
            "behind when the model moves to another device or dtype.",
            {
                'self.register_buffer("running_mean", torch.zeros(num_features))': (
                    "self.running_mean = torch.zeros(num_features)"
                ),
                'self.register_buffer("running_var", torch.ones(num_features))': (
                    "self.running_var = torch.ones(num_features)"
                ),
            },
        ),
        Mistake(
            "running_deviation",
            "You keep the standard deviation in `running_var`. It has to hold the variance.",
            {"var.mean(0) * n / (n - 1)": "torch.sqrt(var.mean(0) * n / (n - 1))"},
        ),
        Mistake(
            "graph_kept",
            "Your buffers keep the autograd graph of every step. Memory grows from step to step.",
            {
                "with torch.no_grad():": "if True:",
                "self.running_mean.lerp_(mean.mean(0), self.momentum)": (
                    "self.running_mean = self.running_mean.lerp(mean.mean(0), self.momentum)"
                ),
                "self.running_var.lerp_(var.mean(0) * n / (n - 1), self.momentum)": (
                    "self.running_var = self.running_var.lerp(var.mean(0) * n / (n - 1), self.momentum)"
                ),
            },
        ),
        Mistake(
            "affine_unused",
            "You register γ and β but do not apply them.",
            {_AFFINE: "y"},
        ),
        Mistake(
            "affine_swapped",
            "You swapped `weight` and `bias`: γ scales and β shifts.",
            {_AFFINE: "self.bias[:, None, None] * y + self.weight[:, None, None]"},
        ),
        Mistake(
            "gamma_starts_at_zero",
            "γ starts at 0, so the fresh layer outputs 0 and passes no gradient to what comes before. It "
            "starts at 1.",
            {"nn.Parameter(torch.ones(num_features))": "nn.Parameter(torch.zeros(num_features))"},
        ),
        Mistake(
            "affine_not_learned",
            "γ and β are buffers: they are saved, but no optimizer sees them, so they never learn.",
            {
                "self.weight = nn.Parameter(torch.ones(num_features))": (
                    'self.register_buffer("weight", torch.ones(num_features))'
                ),
                "self.bias = nn.Parameter(torch.zeros(num_features))": (
                    'self.register_buffer("bias", torch.zeros(num_features))'
                ),
            },
        ),
        Mistake(
            "running_var_starts_at_zero",
            "The running variance starts at 0. It starts at 1: an untrained layer in evaluation should "
            "change "
            "nothing, not divide by √ε.",
            {'"running_var", torch.ones': '"running_var", torch.zeros'},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the standard deviation. It belongs under the root, to the variance.",
            {
                "torch.sqrt(var[:, :, None, None] + self.eps)": (
                    "(torch.sqrt(var[:, :, None, None]) + self.eps)"
                )
            },
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Where the variance is small too, the output is then too small.",
            {"self.eps, self.momentum = eps, momentum": "self.eps, self.momentum = max(eps, 1e-5), momentum"},
        ),
        Mistake(
            "eps_fixed",
            "You ignore the argument `eps` and always use 1e-5.",
            {"self.eps, self.momentum = eps, momentum": "self.eps, self.momentum = 1e-5, momentum"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, not by its root. The output then has spread 1/σ.",
            {"torch.sqrt(var[:, :, None, None] + self.eps)": "(var[:, :, None, None] + self.eps)"},
        ),
        Mistake(
            "view_needs_contiguous",
            "You make rows with `view`, as the founding draft of this course did. An input in "
            "channels_last, or "
            "a transposed one, stops with an error.",
            {_MEAN: "wide.view(x.size(0) * x.size(1), -1).mean(dim=1).view(x.shape[:2])"},
        ),
        Mistake(
            "statistics_detached",
            "The output is right, the gradient is not: you cut the mean and the variance off the graph. They "
            "depend on `x` too.",
            {_MEAN: _MEAN + ".detach()", _VAR: _VAR + ".detach()"},
        ),
        Mistake(
            "one_pass_variance",
            "Your variance is E[x²] − E[x]². Where the mean is large against the deviation, two large "
            "numbers "
            "cancel and only noise is left.",
            {_VAR: "wide.square().mean(dim=(2, 3)) - mean.square()"},
        ),
        Mistake(
            "half_precision_statistics",
            "For bfloat16 and float16 inputs you compute the statistics in half precision, where a mean "
            "keeps "
            "two or three digits.",
            {"x.float() if x.dtype in (torch.float16, torch.bfloat16) else x": "x"},
        ),
        Mistake(
            "always_float32",
            "You return float32 for half-precision inputs. The output has the dtype of the input.",
            {"return y.to(x.dtype)": "return y"},
        ),
        Mistake(
            "input_changed",
            "You overwrite the input. Its owner may still need it: a residual connection does, and so does "
            "autograd.",
            {
                "        y = (wide - mean[:, :, None, None])": (
                    "        wide -= mean[:, :, None, None]\n        y = wide"
                )
            },
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {
                "        wide = x.float()": (
                    "        if not self.track_running_stats:\n"
                    "            return F.instance_norm(x, eps=self.eps)\n"
                    "        wide = x.float()"
                )
            },
        ),
    ),
    probe=by_hand(_probe_layer),
)

# ----------------------------------------------------------------------------------------------- gram


def _probe_gram(gram: Callable[..., Any], draw: Draw) -> Observations:
    for shape in ((2, 3, 4, 5), (3, 4, 2, 1), (1, 2, 3, 3)):
        features = draw.batch(*shape)
        x = features.clone()
        yield f"output for {shape}", returned(gram(x), gram)
        yield f"the input is unchanged for {shape}", unchanged(x, features, "in_place")
    x = leaf(features)
    yield from gradients(returned(gram(x * 1), gram), draw, features=x)
    strided = draw.batch(2, 3, 4, 5).transpose(2, 3)
    yield "output for a transposed picture", returned(gram(strided), gram)
    yield "output for float32", returned(gram(features.float()), gram)


_PRODUCT = "rows @ rows.transpose(1, 2)"

GRAM = Exercise(
    id="instance_norm.gram",
    title="The Gram matrix, a picture's style",
    answer="gram",
    statement=r"""
Which features occur together, wherever in the picture that is? Write `gram(features)`: for `features` of
shape $(N, C, H, W)$ return $G$ of shape $(N, C, C)$,

$$G_{n,i,j} = \frac{1}{HW} \sum_{h,w} F_{n,i,h,w}\, F_{n,j,h,w}$$

one matrix per picture. The checker looks at several shapes, at the gradient, at a transposed picture and at
float32.
""",
    starter="""
def gram(features):
    raise NotImplementedError  # your code here
""",
    hints=(
        "One row of H·W numbers per channel. Which product of matrices multiplies each row with each row?",
        "`@` multiplies the last two axes, picture by picture. Only they may be transposed.",
        "Dividing by the number of positions makes a small and a large picture comparable.",
    ),
    reference=f"""
def gram(features):
    rows = features.flatten(2)
    return {_PRODUCT} / rows.size(2)
""",
    alternatives=(
        """
def gram(features):
    return torch.einsum("nihw,njhw->nij", features, features) / features[0, 0].numel()
""",
        """
def gram(features):
    return (features[:, :, None] * features[:, None]).mean(dim=(3, 4))
""",
        """
def gram(features):
    rows = features.movedim(1, -1).flatten(1, 2)
    return torch.bmm(rows.mT, rows) / rows.shape[1]
""",
    ),
    mistakes=(
        Mistake(
            "not_averaged",
            "You leave out the division by H·W. The style of a large picture would then be another one than "
            "that of its smaller copy.",
            {" / rows.size(2)": ""},
        ),
        Mistake(
            "divided_by_all",
            "You divide by C·H·W. The sum runs over the positions only.",
            {" / rows.size(2)": " / rows[0].numel()"},
        ),
        Mistake(
            "divided_by_channels",
            "You divide by C. The sum runs over the H·W positions.",
            {" / rows.size(2)": " / rows.size(1)"},
        ),
        Mistake(
            "divided_by_height",
            "You divide by H alone. The sum runs over the rows and the columns of the picture.",
            {" / rows.size(2)": " / features.size(2)"},
        ),
        Mistake(
            "positions_by_positions",
            "You transposed the wrong factor: your matrix compares positions, (H·W)². The style forgets "
            "where "
            "things are; it compares channels.",
            {_PRODUCT: "rows.transpose(1, 2) @ rows"},
        ),
        Mistake(
            "over_batch",
            "You mix the pictures of a batch into one matrix. Each has its own style.",
            {"rows = features.flatten(2)": "rows = features.transpose(0, 1).flatten(1)[None]"},
        ),
        Mistake(
            "centred",
            "You subtract the mean first: a covariance. How strong a feature is on average belongs to the "
            "style.",
            {"features.flatten(2)": "features.flatten(2) - features.flatten(2).mean(2, keepdim=True)"},
        ),
        Mistake(
            "normalized_rows",
            "You scale every row to length 1: correlations. How strong a feature is belongs to the style.",
            {
                "features.flatten(2)": (
                    "F.normalize(features.flatten(2), dim=2) * features[0, 0].numel() ** 0.5"
                )
            },
        ),
        Mistake(
            "rows_mixed",
            "You reshape to one row per channel from (N, H, W, C) order, without moving the axes: your rows "
            "mix the channels.",
            {
                "features.flatten(2)": (
                    "features.permute(0, 2, 3, 1).reshape(len(features), features.size(1), -1)"
                )
            },
        ),
        Mistake(
            "elementwise",
            "You multiply element by element: only the diagonal of the matrix, repeated. The pairs i ≠ j are "
            "what tells textures apart.",
            {_PRODUCT: "rows.square().sum(2, keepdim=True).expand(-1, -1, rows.size(1))"},
        ),
        Mistake(
            "view",
            "You use `view`, which needs contiguous memory. A transposed picture stops with an error.",
            {"features.flatten(2)": "features.view(*features.shape[:2], -1)"},
        ),
        Mistake(
            "no_graph",
            "Your numbers are right, but no gradient reaches the features: the style would teach nothing.",
            {"def gram": "@torch.no_grad()\ndef gram"},
        ),
        Mistake(
            "in_place",
            "You overwrite the features. The content loss still needs them.",
            {
                "rows = features.flatten(2)": "rows = features.flatten(2)\n    scale = rows.size(2)",
                f"return {_PRODUCT} / rows.size(2)": (
                    f"result = {_PRODUCT} / scale\n    features.div_(scale**0.5)\n    return result"
                ),
            },
        ),
    ),
    probe=_probe_gram,
)

# ---------------------------------------------------------------------------------------------- adain


def _probe_adain(adain: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.4)
    content, style = draw.batch(3, 3, 2, 5), draw.batch(3, 3, 4, 3)
    x, s = content.clone(), style.clone()
    yield "output", returned(adain(x, s, eps), adain)
    yield (
        "the arguments are unchanged",
        Holds(torch.equal(x, content) and torch.equal(s, style), "an argument is overwritten", "in_place"),
    )
    yield (
        "output for other sizes",
        returned(adain(draw.batch(2, 4, 3, 3), draw.batch(2, 4, 1, 6), eps), adain),
    )
    yield "a picture in its own style", returned(adain(content, content, eps), adain)
    x, s = leaf(content), leaf(style)
    yield from gradients(returned(adain(x * 1, s * 1, eps), adain), draw, content=x, style=s)
    flat = returned(adain(1e-4 * content, style, 1e-12), adain)
    yield "output for a tiny eps and a small variance", flat
    yield "output for float32", returned(adain(content.float(), style.float(), eps), adain)


_STD = "x.var(dim=(2, 3), keepdim=True, correction=0)"
_ADAIN = "spread(style) * (content - middle(content)) / spread(content) + middle(style)"

ADAIN = Exercise(
    id="instance_norm.adain",
    title="Adaptive Instance Normalization",
    answer="adain",
    statement=r"""
Huang and Belongie (2017) give Instance Normalization the $\gamma$ and $\beta$ of a *style picture*, its
standard deviation and mean. One network then paints in any style. Write `adain(content, style, eps)`:

$$y = s_y\, \frac{x - \mu_x}{s_x} + \mu_y$$

- $s$ is $\sqrt{\sigma^2 + \varepsilon}$, of the content and of the style alike;
- $x$ is `content`, of shape $(N, C, H, W)$; $\mu_x$ and $s_x$ are those of each channel of each sample;
- $\mu_y$ and $s_y$ are the same of `style`, of shape $(N, C, H', W')$: the $n$-th content gets the $n$-th
  style;
- the variance is the biased one, and the same $\varepsilon$ stands in both roots.

Return a new tensor of the shape of `content`. The checker looks at several sizes, at a picture in its own
style, and at the gradients in both. torch's own normalization is refused.
""",
    starter="""
def adain(content, style, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Write mean and s once, as a small function of a picture, and use it twice.",
        "Take the content's own mean and scale away, then put the style's in their place. H′ × W′ differs "
        "from "
        "H × W, so keep the reduced axes.",
    ),
    reference=f"""
def adain(content, style, eps):
    def middle(x):
        return x.mean(dim=(2, 3), keepdim=True)

    def spread(x):
        return torch.sqrt({_STD} + eps)

    return {_ADAIN}
""",
    alternatives=(
        """
def adain(content, style, eps):
    (v, m), (w, b) = (torch.var_mean(t.flatten(2), 2, correction=0, keepdim=True) for t in (content, style))
    y = (content.flatten(2) - m) * torch.rsqrt(v + eps)
    return torch.addcmul(b, y, (w + eps).sqrt()).view(content.shape)
""",
        """
def adain(content, style, eps):
    y = torch.zeros_like(content)
    for n in range(content.size(0)):
        for c in range(content.size(1)):
            x, s = content[n, c], style[n, c]
            scale = ((s.var(correction=0) + eps) / (x.var(correction=0) + eps)) ** 0.5
            y[n, c] = (x - x.mean()) * scale + s.mean()
    return y
""",
    ),
    mistakes=(
        Mistake(
            "roles_swapped",
            "You normalize the style and give it the content's statistics. It is the content that is kept.",
            {
                "def adain(content, style, eps):\n": (
                    "def adain(content, style, eps):\n    content, style = style, content\n"
                )
            },
        ),
        Mistake(
            "mean_and_spread_swapped",
            "You scale with the style's mean and shift by its deviation: γ is the deviation, β the mean.",
            {_ADAIN: "middle(style) * (content - middle(content)) / spread(content) + spread(style)"},
        ),
        Mistake(
            "not_centred",
            "You do not subtract the content's mean. Its brightness then comes on top of the style's.",
            {"(content - middle(content))": "content"},
        ),
        Mistake(
            "mean_not_added",
            "You leave out the style's mean. Its brightness and colour are half of the style.",
            {" + middle(style)": ""},
        ),
        Mistake(
            "spread_left_out",
            "You leave out the style's deviation: the output has deviation 1, whatever the style's contrast.",
            {"spread(style) * (content": "(content"},
        ),
        Mistake(
            "content_spread_left_out",
            "You do not divide by the content's deviation. Its contrast then multiplies the style's.",
            {" / spread(content)": ""},
        ),
        Mistake(
            "variance_for_deviation",
            "You use the variance where the formula has its root.",
            {f"torch.sqrt({_STD} + eps)": f"({_STD} + eps)"},
        ),
        Mistake(
            "unbiased_variance",
            "You divide by n − 1. Content and style may have different sizes, and then the two "
            "corrections do "
            "not cancel; the formula has the biased variance.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "std_plus_eps",
            "You add ε to `std`, which also divides by n − 1. The formula has the biased variance, and ε "
            "under the root.",
            {f"torch.sqrt({_STD} + eps)": "(x.std(dim=(2, 3), keepdim=True) + eps)"},
        ),
        Mistake(
            "one_style_for_all",
            "You average the style over the batch. The n-th content gets the n-th style.",
            {
                "def adain(content, style, eps):\n": (
                    "def adain(content, style, eps):\n"
                    "    style = style.transpose(0, 1).flatten(1)[None, :, :, None]\n"
                )
            },
        ),
        Mistake(
            "first_style_for_all",
            "You use the first style for every content. The n-th content gets the n-th style.",
            {"def adain(content, style, eps):\n": "def adain(content, style, eps):\n    style = style[:1]\n"},
        ),
        Mistake(
            "over_channels",
            "You take one mean and one deviation over all channels. A style has its own for every channel: "
            "that is where its colours are.",
            {"x.mean(dim=(2, 3)": "x.mean(dim=(1, 2, 3)", "x.var(dim=(2, 3)": "x.var(dim=(1, 2, 3)"},
        ),
        Mistake(
            "eps_in_content_only",
            "You leave ε out of the style's root. With ε in one of the two, a picture in its own style comes "
            "out changed.",
            {"spread(style) * (content": "style.std(dim=(2, 3), correction=0, keepdim=True) * (content"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε to the deviation. It belongs to the variance, under the root.",
            {f"torch.sqrt({_STD} + eps)": f"(torch.sqrt({_STD}) + eps)"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. A picture of little contrast then comes out too weak.",
            {f"{_STD} + eps": f"{_STD} + max(eps, 1e-5)"},
        ),
        Mistake(
            "style_detached",
            "Your output is right, but no gradient reaches the style. What produces it, a network often, "
            "could "
            "not learn.",
            {
                "def adain(content, style, eps):\n": (
                    "def adain(content, style, eps):\n    style = style.detach()\n"
                )
            },
        ),
        Mistake(
            "content_statistics_detached",
            "Your output is right, the content's gradient is not: its mean and deviation depend on it too.",
            {
                "middle(content)) / spread(content)": "middle(content.detach())) / spread(content.detach())",
            },
        ),
        Mistake(
            "in_place",
            "You overwrite the content. The content loss still needs it.",
            {f"return {_ADAIN}": f"return content.copy_({_ADAIN})"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {f"return {_ADAIN}": "return spread(style) * F.instance_norm(content, eps=eps) + middle(style)"},
        ),
    ),
    probe=by_hand(_probe_adain),
)

# ------------------------------------------------------------------------------------------- backward


def _probe_backward(backward: Callable[..., Any], draw: Draw) -> Observations:
    names = ("dx", "dweight", "dbias")

    def call(*inputs: Any) -> Any:
        return returned(without_autograd(backward, *inputs), backward, *names)

    for shape in ((3, 3, 2, 4), (2, 3, 1, 3)):
        grad, x = draw.values(*shape), draw.batch(*shape)
        weight, eps = draw.values(3), draw.uniform(0.05, 0.5)
        passed = grad.clone(), x.clone(), weight.clone()
        for name, value in zip(reversed(names), reversed(call(*passed, eps)), strict=True):
            yield f"{name} for {shape}", value
        kept = all(torch.equal(a, b) for a, b in zip(passed, (grad, x, weight), strict=True))
        said = Holds(kept, "the arguments are overwritten", "in_place")
        yield f"the arguments are unchanged for {shape}", said
    single = call(grad.float(), x.float(), weight.float(), eps)
    for name, value in zip(names, single, strict=True):
        yield f"{name} for float32", value


_DX = "inverse * (dx_hat - through_mean - through_var)"
_THROUGH_MEAN = "dx_hat.mean(dim=own, keepdim=True)"
_THROUGH_VAR = "(dx_hat * x_hat).mean(dim=own, keepdim=True)"

BACKWARD = Exercise(
    id="instance_norm.backward",
    title="The backward pass by hand",
    answer="instance_norm_backward",
    statement=r"""
Write `instance_norm_backward(grad, x, weight, eps)`, which returns `(dx, dweight, dbias)` for
$y = \gamma\,\hat x + \beta$. `grad` is $\partial L/\partial y$, of the shape $(N, C, H, W)$ of `x`; `weight`
is $\gamma$ of shape $(C,)$.

- `dx` has the shape of `x`; `dweight` and `dbias` have shape $(C,)$.
- Two kinds of sums meet here: the statistics belong to one channel of one sample, $\gamma$ and $\beta$ to one
  channel of all samples.
- Use no autograd and none of torch's own normalization: both are refused.
""",
    starter="""
def instance_norm_backward(grad, x, weight, eps):
    raise NotImplementedError  # your code here
""",
    hints=(
        "β is added in every sample and at every position, so its gradient sums over all three axes but the "
        "channel's. Then γ, then x̂.",
        "With g = ∂L/∂x̂, the path through μ subtracts the mean of g, over the positions of this sample only.",
        "The path through σ² subtracts x̂ times the mean of g·x̂. All three terms share the factor 1/√(σ² "
        "+ ε).",
    ),
    reference=f"""
def instance_norm_backward(grad, x, weight, eps):
    own, shared = (2, 3), (0, 2, 3)
    mean = x.mean(dim=own, keepdim=True)
    var = x.var(dim=own, correction=0, keepdim=True)
    inverse = 1 / torch.sqrt(var + eps)
    x_hat = (x - mean) * inverse
    dbias = grad.sum(dim=shared)
    dweight = (grad * x_hat).sum(dim=shared)
    dx_hat = grad * weight[:, None, None]
    through_mean = {_THROUGH_MEAN}
    through_var = x_hat * {_THROUGH_VAR}
    dx = {_DX}
    return dx, dweight, dbias
""",
    alternatives=(
        """
def instance_norm_backward(grad, x, weight, eps):
    rows, grads = x.flatten(2), grad.flatten(2)
    var, mean = torch.var_mean(rows, dim=2, correction=0, keepdim=True)
    x_hat = (rows - mean) / torch.sqrt(var + eps)
    n = rows.size(2)
    dx = n * grads - grads.sum(2, keepdim=True) - x_hat * (grads * x_hat).sum(2, keepdim=True)
    dx = dx * weight[:, None] / torch.sqrt(var + eps) / n
    return dx.view(x.shape), (grads * x_hat).sum((0, 2)), grads.sum((0, 2))
""",
        """
def instance_norm_backward(grad, x, weight, eps):
    dx, dweight, dbias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    for i in range(x.size(0)):
        for c in range(x.size(1)):
            r = (x[i, c].var(correction=0) + eps) ** -0.5
            x_hat, g = r * (x[i, c] - x[i, c].mean()), grad[i, c]
            dbias[c] += g.sum()
            dweight[c] += (g * x_hat).sum()
            dx[i, c] = weight[c] * r * (g - g.mean() - x_hat * (g * x_hat).mean())
    return dx, dweight, dbias
""",
    ),
    mistakes=(
        Mistake(
            "batch_norms_dx",
            "Your paths through the statistics run over the batch: that is Batch Normalization's backward "
            "pass. "
            "No sample's gradient reaches another here.",
            {
                _THROUGH_MEAN: "dx_hat.mean(dim=shared, keepdim=True)",
                _THROUGH_VAR: "(dx_hat * x_hat).mean(dim=shared, keepdim=True)",
            },
        ),
        Mistake(
            "means_of_everything",
            "You average the paths through the statistics over the whole tensor. Each map has its own mean "
            "and variance, so its paths run over its positions alone.",
            {_THROUGH_MEAN: "dx_hat.mean()", _THROUGH_VAR: "(dx_hat * x_hat).mean()"},
        ),
        Mistake(
            "parameters_are_means",
            "You average `dweight` and `dbias` over batch and positions. γ and β act in every element of "
            "their channel, and what they cause adds up.",
            {
                "grad.sum(dim=shared)": "grad.mean(dim=shared)",
                "(grad * x_hat).sum(dim=shared)": "(grad * x_hat).mean(dim=shared)",
            },
        ),
        Mistake(
            "batch_statistics",
            "You recompute x̂ with the batch's statistics. Each sample was normalized with its own.",
            {"x.mean(dim=own": "x.mean(dim=shared", "x.var(dim=own": "x.var(dim=shared"},
        ),
        Mistake(
            "parameters_per_sample",
            "You sum `dweight` and `dbias` over the positions only: one gradient per sample. γ and β are "
            "shared by all samples, so theirs add up over N as well.",
            {
                "grad.sum(dim=shared)": "grad.sum(dim=own)",
                "(grad * x_hat).sum(dim=shared)": "(grad * x_hat).sum(dim=own)",
            },
        ),
        Mistake(
            "parameters_averaged",
            "You average `dweight` and `dbias` over the samples. They act in every sample, so their "
            "gradients "
            "add up.",
            {
                "grad.sum(dim=shared)": "grad.sum(dim=own).mean(dim=0)",
                "(grad * x_hat).sum(dim=shared)": "(grad * x_hat).sum(dim=own).mean(dim=0)",
            },
        ),
        Mistake(
            "mean_path_missing",
            "`dx` lacks the path through the mean: every element also moves μ, and with it all the others.",
            {_DX: "inverse * (dx_hat - through_var)"},
        ),
        Mistake(
            "variance_path_missing",
            "`dx` lacks the path through the variance: every element also changes the scale of all the "
            "others. "
            "Without it, the gradient still asks for more contrast, in vain.",
            {_DX: "inverse * (dx_hat - through_mean)"},
        ),
        Mistake(
            "both_paths_missing",
            "You treat μ and σ² as constants. Both depend on every element of the map.",
            {_DX: "inverse * dx_hat"},
        ),
        Mistake(
            "paths_added",
            "The two paths through the statistics are subtracted, not added.",
            {_DX: "inverse * (dx_hat + through_mean + through_var)"},
        ),
        Mistake(
            "sums_instead_of_means",
            "You forgot the 1/n of the mean and of the variance: their paths are n times too strong.",
            {
                _THROUGH_MEAN: _THROUGH_MEAN.replace("mean", "sum"),
                _THROUGH_VAR: _THROUGH_VAR.replace("mean", "sum"),
            },
        ),
        Mistake(
            "divided_by_n_minus_1",
            "You divide the path through the variance by n − 1. The forward pass divides by n, and so "
            "does its "
            "gradient.",
            {_THROUGH_VAR: "(dx_hat * x_hat).sum(dim=own, keepdim=True) / (x[0, 0].numel() - 1)"},
        ),
        Mistake(
            "unbiased_variance",
            "You recompute x̂ with the unbiased variance. The forward pass uses the biased one.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "variance_path_without_x_hat",
            "In the path through the variance, the mean is multiplied by x̂ again: how far an element "
            "lies from "
            "μ says how much it moves σ².",
            {f"x_hat * {_THROUGH_VAR}": _THROUGH_VAR},
        ),
        Mistake(
            "gamma_missing",
            "`dx` lacks the factor γ: what flows into x̂ is γ times what flows into y.",
            {"grad * weight[:, None, None]": "grad"},
        ),
        Mistake(
            "scale_missing",
            "`dx` lacks the factor 1/√(σ² + ε): the one that makes a dim photograph's gradient large.",
            {_DX: "dx_hat - through_mean - through_var"},
        ),
        Mistake(
            "no_root",
            "You divide by the variance, not by its root.",
            {"1 / torch.sqrt(var + eps)": "1 / (var + eps)"},
        ),
        Mistake(
            "eps_missing",
            "You leave ε out of the root, but the forward pass had it.",
            {"torch.sqrt(var + eps)": "torch.sqrt(var)"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε outside of the root.",
            {"torch.sqrt(var + eps)": "(torch.sqrt(var) + eps)"},
        ),
        Mistake(
            "dweight_from_x",
            "`dweight` uses `x`. γ multiplies x̂, so its gradient does too.",
            {"(grad * x_hat).sum": "(grad * x).sum"},
        ),
        Mistake(
            "dweight_scaled",
            "`dweight` contains γ. The derivative of γ·x̂ in γ is x̂ alone.",
            {"(grad * x_hat).sum": "(grad * weight[:, None, None] * x_hat).sum"},
        ),
        Mistake(
            "order_swapped",
            "You return `dbias` before `dweight`.",
            {"return dx, dweight, dbias": "return dx, dbias, dweight"},
        ),
        Mistake(
            "in_place",
            "You overwrite `grad`. Other layers may still need it.",
            {"dx_hat = grad * weight[:, None, None]": "dx_hat = grad.mul_(weight[:, None, None])"},
        ),
        Mistake(
            "uses_autograd",
            AUTOGRAD,
            {
                "    own, shared = (2, 3), (0, 2, 3)": (
                    "    with torch.enable_grad():\n"
                    "        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()\n"
                    "        var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)\n"
                    "        y = weight[:, None, None] * (x - mean) / torch.sqrt(var + eps)\n"
                    "        return *torch.autograd.grad(y, (x, weight), grad), grad.sum((0, 2, 3))\n"
                    "    own, shared = (2, 3), (0, 2, 3)"
                )
            },
        ),
    ),
    probe=by_hand(_probe_backward),
)

# ------------------------------------------------------------------------------------------ challenge

_TARGET = 0.9


@cache
def _reader() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network trained on the digits as they are, the training images, and the test images and labels."""
    from normtutor.lab.data import digits
    from normtutor.lab.training import train
    from normtutor.networks import MLP

    data = digits()
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(0)
        network = MLP([64, 64, 10], "none")
        train(network, data.train_images.flatten(1), data.train_labels, steps=400, lr=0.5)
    return network.eval().requires_grad_(False), data.train_images, data.test_images, data.test_labels


def _probe_restore(restore: Callable[..., Any], draw: Draw) -> Observations:
    network, examples, test_images, test_labels = _reader()
    chosen = draw.values(len(test_images)).argsort()[:300].cpu()
    images, labels, n = test_images[chosen], test_labels[chosen], 300

    def each(low: float, high: float) -> Tensor:
        return draw.values(n, 1, 1, 1, low=low, high=high).float().cpu()

    def with_dead_pixel(x: Tensor) -> Tensor:
        x, at = x.flatten(1).clone(), each(0, 63.99).flatten().long()
        x[torch.arange(n), at] = 5 * each(-1, 1).flatten().sign()
        return x.view(n, 1, 8, 8)

    def restored(photographs: Tensor) -> Tensor:
        given = photographs.to(draw.device)
        result = returned(restore(given.clone(), examples.clone().to(draw.device)), restore)
        if result.shape != photographs.shape:
            came = tuple(result.shape)
            raise Broken(f"`restore` returns shape {came}, expected that of `images`, {tuple(given.shape)}.")
        shown: Tensor = result.detach().float().cpu()
        return shown

    def accuracy(photographs: Tensor) -> float:
        right = network(restored(photographs).flatten(1)).argmax(1) == labels
        share: float = right.float().mean().item()
        return share

    def trouble(dead: Tensor) -> str:
        """What a dead pixel does to an answer: it decides the scale of the other 63, or only stays."""
        clean, other = restored(images), restored(dead)
        alive = dead == images
        moved = (other - clean)[alive].abs().mean() > 0.2 * clean[alive].std()
        return "fooled_by_one_pixel" if moved else "pixel_passed_on"

    dead = with_dead_pixel(images)
    why = ""
    dimmed = each(0.1, 1) * images
    for name, photographs, mistake in (
        ("as they are", images, ""),
        ("dimmed alike", 0.3 * images + 1, "untouched"),
        ("each with a brightness of its own", images + each(-2, 2), "of_the_batch"),
        ("with one dead pixel each", dead, "dead pixel"),
        ("dimmed and brightened, each with one dead pixel", with_dead_pixel(dimmed + each(-2, 2)), ""),
    ):
        share = accuracy(photographs)
        if mistake == "dead pixel":
            why = mistake = "" if share >= _TARGET else trouble(dead)
        said = f"the network reads {share:.1%} of them, the target is {_TARGET:.0%}"
        yield f"digits {name}", Holds(share >= _TARGET, said, mistake)
    if why:
        yield "why", why


CHALLENGE = Exercise(
    id="instance_norm.challenge",
    title="Challenge: what contrast cannot fool",
    answer="restore",
    statement=r"""
A network was trained on the digits as they are, $8 \times 8$ pixels in $[0, 1]$, and is fixed: it reads about
95 % of the test digits. Then the camera changes. Every photograph now comes as $a\,x + b$, with $a$ between
0.1 and 1 and $b$ between −2 and 2 of its own, and **one pixel of each is dead**: stuck at 5 or at −5. Of
these the network reads about a third.

Write `restore(images, examples)`: `images` are such photographs, $(N, 1, 8, 8)$; `examples` are clean
training digits, $(M, 1, 8, 8)$, should you want to know what the network is used to. Return what the network
shall see, in the shape of `images`.

The checker measures, on 300 test digits drawn anew for each seed, the share that the network reads: of digits
as they are; dimmed all alike; each with a brightness of its own; with one dead pixel each; and with all of
that at once. **Target: at least 90 % each time.** The reference measured 94 to 96 % over five seeds; Instance
Normalization alone fails on the dead pixels. Any way that reaches the target is right.
""",
    starter="""
def restore(images, examples):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Without the dead pixel, Instance Normalization and the mean and deviation of `examples` would do.",
        "Mean and deviation follow a single wild value. Which statistics of 64 numbers do not care about "
        "one?",
        "Every clean digit has many pixels at 0 and several at 1. Sort each photograph's pixels: what stands "
        "at the fifth place from either end?",
    ),
    reference="""
def restore(images, examples):
    pixels = images.flatten(1)
    low, high = (pixels.quantile(q, dim=1).view(-1, 1, 1, 1) for q in (0.05, 0.95))
    return ((images - low) / (high - low)).clamp(0, 1)
""",
    alternatives=(
        """
def restore(images, examples):
    ordered = images.flatten(1).sort(dim=1).values
    low, high = ordered[:, 1].view(-1, 1, 1, 1), ordered[:, -2].view(-1, 1, 1, 1)
    x = torch.minimum(torch.maximum(images, low), high)  # the wild value becomes the next one
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    return (x - mean) / std * examples.std((2, 3)).mean() + examples.mean()
""",
        """
def restore(images, examples):
    kept = images.flatten(1).sort(dim=1).values[:, 4:-4]
    usual = examples.flatten(1).sort(dim=1).values[:, 4:-4]
    mean, std = kept.mean(1).view(-1, 1, 1, 1), kept.std(1).view(-1, 1, 1, 1)
    return ((images - mean) / std * usual.std(1).mean() + usual.mean()).clamp(0, 1)
""",
    ),
    mistakes=(
        Mistake(
            "untouched",
            "You return the photographs as they come. The network knows one contrast and one brightness.",
            {"return ((images - low) / (high - low)).clamp(0, 1)": "return images"},
        ),
        Mistake(
            "clamped_only",
            "You clamp to [0, 1]. That tames a dead pixel, but a dim photograph stays dim and a bright "
            "one turns "
            "white.",
            {"((images - low) / (high - low)).clamp(0, 1)": "images.clamp(0, 1)"},
        ),
        Mistake(
            "of_the_batch",
            "You bring the batch as a whole to the training set's mean and deviation. Each photograph has a "
            "contrast of its own, and one statistic for all cannot undo them.",
            {
                "return ((images - low) / (high - low)).clamp(0, 1)": (
                    "return (images - images.mean()) / images.std() * examples.std() + examples.mean()"
                )
            },
        ),
        Mistake(
            "brightness_only",
            "You bring each photograph's mean to the training set's, but leave its contrast as it is.",
            {
                "return ((images - low) / (high - low)).clamp(0, 1)": (
                    "return images - images.mean((2, 3), keepdim=True) + examples.mean()"
                )
            },
        ),
        Mistake(
            "fooled_by_one_pixel",
            "You take each photograph's scale from statistics that a single wild value decides: mean and "
            "deviation, or the extremes. One dead pixel then squashes the 63 others.",
            {"(0.05, 0.95)": "(0.0, 1.0)"},
        ),
        Mistake(
            "pixel_passed_on",
            "Your scale ignores the dead pixel, but the pixel itself still reaches the network, far outside "
            "of what it has seen. Clamp it.",
            {".clamp(0, 1)": ""},
        ),
    ),
    probe=_probe_restore,
    challenge=True,
)

EXERCISES = (FORWARD, PREDICT, RESHAPE, BUG_LAYOUT, LAYER, GRAM, ADAIN, BACKWARD, CHALLENGE)
