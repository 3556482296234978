"""The exercises of the Weight Normalization notebook, from easy to hard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normtutor.exercises.exercise import Exercise, Mistake
from normtutor.exercises.observe import (
    AUTOGRAD,
    NORMALIZATION,
    Approx,
    Broken,
    Draw,
    Holds,
    Unfinished,
    attempted,
    by_hand,
    kind,
    returned,
    settle,
    without_autograd,
)
from normtutor.exercises.probes import (
    Observations,
    can_be_copied,
    fill,
    gradients,
    leaf,
    loads,
    numbers,
    parameter_shapes,
    unchanged,
)
from normtutor.lab.data import digits

# -------------------------------------------------------------------------------------------- forward


def _probe_forward(weight_norm: Callable[..., Any], draw: Draw) -> Observations:
    def call(v: Tensor, g: Tensor) -> Any:
        return returned(weight_norm(v, g), weight_norm)

    for shape in ((3, 4), (4, 2, 3, 2)):
        v, g = draw.values(*shape), draw.values(shape[0], *[1] * (len(shape) - 1))
        passed = v.clone(), g.clone()
        yield f"w for v of {shape}", call(*passed)
        kept = torch.equal(passed[0], v) and torch.equal(passed[1], g)
        yield (
            f"the arguments are unchanged for {shape}",
            Holds(kept, "the arguments are overwritten", "in_place"),
        )
        inputs = {"v": leaf(v), "g": leaf(g)}
        yield from gradients(call(*(value * 1 for value in inputs.values())), draw, **inputs)
    v, g = draw.values(3, 4), draw.values(3, 1)
    yield "w for a tiny v", call(1e-14 * v, g)
    yield "w for float32", call(v.float(), g.float())
    yield "w for bfloat16", call(v.bfloat16(), g.bfloat16())
    yield "w for a large v in float16", call((v.sign() * 300 + v).half(), g.half())


_LENGTH = "wide.square().sum(dim=others, keepdim=True).sqrt()"

FORWARD = Exercise(
    id="weight_norm.forward",
    title="The weight from direction and length",
    answer="weight_norm",
    statement=r"""
Write `weight_norm(v, g)`, which returns the weight

$$w = g\,\frac{v}{\lVert v\rVert}$$

- `v` has shape $(C_{out}, \ldots)$: the weight of a linear layer or of a convolution.
- There is one length for each output: $\lVert v\rVert$ runs over all axes but the first, and `g` has shape
  $(C_{out}, 1, \ldots, 1)$, with as many axes as `v`.
- Return a new tensor in the shape and dtype of `v`; leave the arguments as they are. There is no
  $\varepsilon$.
- A float16 or bfloat16 `v` has its length computed in float32: the square of 300 is too large for float16.
- Write the formula: torch's own weight normalization is refused.

The checker looks at `w`, also for a tiny `v`, and at the gradients in `v` and `g`.
""",
    starter="""
def weight_norm(v, g):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Which axes does the length run over? All but axis 0. `sum` takes a list of axes in `dim=`.",
        "Keep the reduced axes (`keepdim=True`): the length then has the shape of `g`.",
        "`wide = v.float()` for the two half-precision dtypes, and `.to(v.dtype)` at the end.",
    ),
    reference="""
def weight_norm(v, g):
    wide = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
    others = list(range(1, v.dim()))
    length = wide.square().sum(dim=others, keepdim=True).sqrt()
    return (wide * (g / length)).to(v.dtype)
""",
    alternatives=(
        """
def weight_norm(v, g):
    wide = v if v.dtype == torch.float64 else v.float()
    rows = wide.flatten(1)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (g.flatten(1) * rows / length).view_as(v).to(v.dtype)
""",
        """
def weight_norm(v, g):
    wide = v.double()
    inverse = torch.einsum("i...,i...->i", wide, wide).rsqrt()
    return torch.einsum("i...,i->i...", wide, inverse * g.flatten()).to(v.dtype)
""",
    ),
    mistakes=(
        Mistake(
            "wrong_axis",
            "Your length runs over axis 0, so each *input* has one. Then `g` does not set the length of the "
            "weights of any unit.",
            {_LENGTH: "wide.square().sum(dim=0, keepdim=True).sqrt()"},
        ),
        Mistake(
            "whole_tensor",
            "You divide by one length for the whole tensor. Each output has its own, or `g` sets only the "
            "ratio between them.",
            {_LENGTH: "wide.square().sum().sqrt()"},
        ),
        Mistake(
            "axis_1_only",
            "Your length runs over axis 1 only. That is enough for a linear layer, but in a convolution all "
            "taps of the kernel belong to the same vector.",
            {_LENGTH: "wide.square().sum(dim=1, keepdim=True).sqrt()"},
        ),
        Mistake(
            "squared",
            "You divide by the squared length: the root is missing. The weight then has length g/‖v‖.",
            {".sum(dim=others, keepdim=True).sqrt()": ".sum(dim=others, keepdim=True)"},
        ),
        Mistake(
            "root_mean_square",
            "You divide by the root of the mean square, not of the sum. The length of w is then g times the "
            "root of the number of inputs.",
            {"square().sum(": "square().mean("},
        ),
        Mistake(
            "absolute_values",
            "You take the sum of the absolute values. The length of Weight Normalization is the Euclidean "
            "one; only for it is ∇v orthogonal to v.",
            {_LENGTH: "wide.abs().sum(dim=others, keepdim=True)"},
        ),
        Mistake(
            "eps_added",
            "You add a small number to the length. Where v is small, w is then shorter than g says, and the "
            "function depends on the length of v.",
            {"(g / length)": "(g / (length + 1e-12))"},
        ),
        Mistake(
            "length_clamped",
            "You keep the length from getting small, as `F.normalize` does. A short v is a direction like "
            "any other.",
            {"(g / length)": "(g / length.clamp_min(1e-12))"},
        ),
        Mistake(
            "no_g",
            "You leave `g` out: all your weights have length 1, and the layer cannot learn another scale.",
            {"(g / length)": "(1 / length) + 0 * g"},
        ),
        Mistake(
            "divided_by_g",
            "You divide by `g`, where the formula multiplies: g is the length itself.",
            {"(g / length)": "(1 / (g * length))"},
        ),
        Mistake(
            "g_positive",
            "You take the magnitude of `g`. Nothing keeps g positive; a negative one turns the vector round.",
            {"(g / length)": "(g.abs() / length)"},
        ),
        Mistake(
            "length_detached",
            "Your w is right, your gradient is not: you detach the length. Without its path the gradient in "
            "v keeps its part along v, which the normalization has to remove.",
            {"keepdim=True).sqrt()": "keepdim=True).sqrt().detach()"},
        ),
        Mistake(
            "g_detached",
            "Your w is right, but no gradient reaches `g`: the lengths would never be learned.",
            {"(g / length)": "(g.detach() / length)"},
        ),
        Mistake(
            "no_graph",
            "Your w is right, but nothing can learn from it: no gradient reaches `v` or `g`.",
            {"def weight_norm": "@torch.no_grad()\ndef weight_norm"},
        ),
        Mistake(
            "length_in_half",
            "You square half-precision numbers in half precision: 300² overflows in float16, and w is 0. "
            "Compute the length in float32.",
            {"v.float() if v.dtype in (torch.float16, torch.bfloat16) else v": "v"},
        ),
        Mistake(
            "always_float32",
            "You return float32 whatever comes in. w has the dtype of `v`.",
            {".to(v.dtype)": ".float()"},
        ),
        Mistake(
            "in_place",
            "You overwrite `v` with the unit vector. The length of v is state: it sets the effective step.",
            {"    return (wide * (g / length))": "    v.data /= length\n    return (v * g)"},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    wide = v.float()": "    return torch._weight_norm(v, g, 0)\n    wide = v.float()"},
        ),
    ),
    probe=by_hand(_probe_forward),
)

# -------------------------------------------------------------------------------------------- predict

_NAMES = (
    "first element of w",
    "gradient in g",
    "first element of the gradient in v",
    "length of v after the step",
    "first element of w with v doubled",
)


def _probe_predict(prediction: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(prediction, _NAMES, tolerance=0.002)


PREDICT = Exercise(
    id="weight_norm.predict",
    title="Predict five numbers",
    answer="prediction",
    statement=r"""
Paper and pencil. One unit has $v = (3, 4)$ and $g = 10$. The loss has the gradient $\nabla_w L = (1, 2)$ in
the weight. Fill in the dict `prediction`, to two decimals:

- the first element of $w$;
- the gradient in $g$, and the first element of the gradient in $v$;
- the length $\lVert v \rVert$ after one step of gradient descent on $v$ with the learning rate $1$;
- the first element of $w$ if, instead of that step, somebody doubles $v$.
""",
    starter="""
prediction = {
    "first element of w": ...,
    "gradient in g": ...,
    "first element of the gradient in v": ...,
    "length of v after the step": ...,
    "first element of w with v doubled": ...,
}
""",
    hints=(
        "‖v‖ = 5. The gradient in g is the part of ∇w along the unit vector v/‖v‖.",
        "For the gradient in v, take that part away from ∇w, and multiply what is left by g/‖v‖.",
        "The step is at a right angle to v: Pythagoras gives the new length.",
    ),
    reference="""
v, g, dw = torch.tensor([3.0, 4.0]), 10.0, torch.tensor([1.0, 2.0])
length = v.norm()
unit = v / length
along = dw @ unit
dv = g / length * (dw - along * unit)
prediction = {
    "first element of w": g * unit[0],
    "gradient in g": along,
    "first element of the gradient in v": dv[0],
    "length of v after the step": (length**2 + dv @ dv).sqrt(),
    "first element of w with v doubled": g * unit[0],
}
""",
    alternatives=(
        """
prediction = {
    "first element of w": 6,
    "gradient in g": 2.2,
    "first element of the gradient in v": -0.64,
    "length of v after the step": 5.06,
    "first element of w with v doubled": 6,
}
""",
        """
v, g = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor(10.0, requires_grad=True)
w = g * v / v.norm()
w.backward(torch.tensor([1.0, 2.0]))
after = (v - v.grad).detach()
prediction = {
    "first element of w": w[0].detach(),
    "gradient in g": g.grad,
    "first element of the gradient in v": v.grad[0],
    "length of v after the step": after.norm(),
    "first element of w with v doubled": w[0].item(),
}
""",
    ),
    mistakes=(
        Mistake(
            "g_not_used",
            "Your w has length 1. Multiply the unit vector by g.",
            {'"first element of w": g * unit[0]': '"first element of w": unit[0]'},
        ),
        Mistake(
            "not_normalized",
            "You multiplied v by g without dividing by its length: w would be ten times v.",
            {'"first element of w": g * unit[0]': '"first element of w": g * v[0]'},
        ),
        Mistake(
            "along_v",
            "You took ∇w·v. The gradient in g is the part of ∇w along the *unit* vector: divide by ‖v‖.",
            {'"gradient in g": along': '"gradient in g": dw @ v'},
        ),
        Mistake(
            "no_projection",
            "Your gradient in v is that of a fixed length, (g/‖v‖)∇w. The length depends on v as well, and "
            "takes the part along v away.",
            {
                '"first element of the gradient in v": dv[0]': (
                    '"first element of the gradient in v": 2 * dw[0]'
                ),
            },
        ),
        Mistake(
            "no_factor",
            "You projected ∇w, but left the factor g/‖v‖ out.",
            {
                '"first element of the gradient in v": dv[0]': (
                    '"first element of the gradient in v": dv[0] * length / g'
                )
            },
        ),
        Mistake(
            "length_stays",
            "You left ‖v‖ at 5. The step is at a right angle to v, and a step at a right angle leads away "
            "from the centre.",
            {"(length**2 + dv @ dv).sqrt()": "length"},
        ),
        Mistake(
            "lengths_added",
            "You added the step's length to v's. They are at a right angle: add the squares.",
            {"(length**2 + dv @ dv).sqrt()": "length + dv.norm()"},
        ),
        Mistake(
            "square_of_the_length",
            "You wrote the squared length. Take the root.",
            {"(length**2 + dv @ dv).sqrt()": "length**2 + dv @ dv"},
        ),
        Mistake(
            "v_has_a_scale",
            "You doubled w along with v. The length of v is divided out: w stays.",
            {
                '"first element of w with v doubled": g * unit[0]': (
                    '"first element of w with v doubled": 2 * g * unit[0]'
                )
            },
        ),
    ),
    probe=_probe_predict,
)

# ------------------------------------------------------------------------------------- bug_transposed


def _probe_transposed(transposed_weight: Callable[..., Any], draw: Draw) -> Observations:
    def call(v: Tensor, g: Tensor) -> Any:
        return returned(transposed_weight(v, g), transposed_weight)

    for shape in ((3, 4, 2), (4, 2, 3), (3, 3, 2)):
        v, g = draw.values(*shape), draw.values(shape[1])
        w = call(v.clone(), g.clone())
        yield f"w for v of {shape}", w
        yield (
            f"the length of each output channel's weights for {shape}",
            w.transpose(0, 1).flatten(1).norm(dim=1),
        )
    inputs = {"v": leaf(draw.values(3, 4, 2)), "g": leaf(draw.values(4))}
    yield from gradients(call(*(value * 1 for value in inputs.values())), draw, **inputs)
    v, g = draw.values(2, 3, 2), draw.values(3)
    kept = v.clone(), g.clone()
    call(v, g)
    same = torch.equal(v, kept[0]) and torch.equal(g, kept[1])
    yield "the arguments are unchanged", Holds(same, "the arguments are overwritten", "in_place")
    yield "w for float32", call(v.float(), g.float())
    yield "w for bfloat16", call(v.bfloat16(), g.bfloat16())


_TRANSPOSED = "v.square().sum(dim=(0, 2), keepdim=True).sqrt()"

BUG_TRANSPOSED = Exercise(
    id="weight_norm.bug_transposed",
    title="Spot the bug: whose length is it?",
    answer="transposed_weight",
    statement=r"""
A vocoder upsamples with transposed convolutions and wants `g[c]` to be the length of the weights of *output*
channel `c`. `transposed_weight(v, g)` makes the weight of an `nn.ConvTranspose1d`, whose shape is
$(C_{in}, C_{out}, K)$, from `v` of that shape and `g` of shape $(C_{out},)$.

It runs, trains, and is wrong: the code was copied from a convolution, whose weight has its output axis first.
Repair it. The checker looks at `w` and at the length of each output channel's weights, for three
shapes and three dtypes, and at the gradients.
""",
    starter="""
def transposed_weight(v, g):
    length = v.square().sum(dim=(1, 2), keepdim=True).sqrt()
    return g.view(1, -1, 1) * v / length
""",
    hints=(
        "Which axis of the weight counts the output channels? The length keeps that axis and sums over the "
        "others.",
        "torch's `parametrizations.weight_norm(layer, dim=1)` does it; its default, `dim=0`, has one length "
        "for each *input* channel of a transposed convolution.",
    ),
    reference="""
def transposed_weight(v, g):
    length = v.square().sum(dim=(0, 2), keepdim=True).sqrt()
    return g.view(1, -1, 1) * v / length
""",
    alternatives=(
        """
def transposed_weight(v, g):
    rows = v.transpose(0, 1)
    unit = rows / torch.linalg.vector_norm(rows, dim=(1, 2), keepdim=True)
    return (g[:, None, None] * unit).transpose(0, 1)
""",
        """
def transposed_weight(v, g):
    columns = [g[c] * v[:, c] / v[:, c].norm() for c in range(v.size(1))]
    return torch.stack(columns, dim=1)
""",
    ),
    mistakes=(
        Mistake(
            "per_tap",
            "Your length leaves the taps apart: sum over the kernel's axis too.",
            {_TRANSPOSED: "v.square().sum(dim=0, keepdim=True).sqrt()"},
        ),
        Mistake(
            "inputs_forgotten",
            "Your length runs over the taps only. All inputs of an output channel belong to its vector.",
            {_TRANSPOSED: "v.square().sum(dim=2, keepdim=True).sqrt()"},
        ),
        Mistake(
            "whole_tensor",
            "You divide by one length for the whole tensor: then g is not the length of any channel's "
            "weights.",
            {_TRANSPOSED: "v.square().sum().sqrt()"},
        ),
        Mistake(
            "g_on_inputs",
            "`g` lines up with the input channels, the first axis. It has one number per output, the second.",
            {"g.view(1, -1, 1)": "g.view(-1, 1, 1)"},
        ),
        Mistake(
            "g_on_taps",
            "`g` of shape (C,) without a `view` lines up with the last axis, the kernel's taps.",
            {"g.view(1, -1, 1)": "g"},
        ),
        Mistake(
            "outputs_only",
            "Your length runs over the outputs: the very axis that has a length for each of its channels.",
            {_TRANSPOSED: "v.square().sum(dim=1, keepdim=True).sqrt()"},
        ),
        Mistake(
            "one_per_tap",
            "Your length runs over inputs and outputs, one for each tap. It is to be one for each output.",
            {_TRANSPOSED: "v.square().sum(dim=(0, 1), keepdim=True).sqrt()"},
        ),
        Mistake(
            "no_root",
            "You divide by the squared length: the root got lost.",
            {".sqrt()": ""},
        ),
        Mistake(
            "length_detached",
            "Your w is right, your gradient in v is not: it has to flow through the length too.",
            {".sqrt()": ".sqrt().detach()"},
        ),
        Mistake(
            "in_place",
            "You overwrite v. A forward pass reads its parameters and leaves them.",
            {
                "    return g.view(1, -1, 1) * v / length": (
                    "    w = g.view(1, -1, 1) * v / length\n    v.data /= length\n    return w"
                )
            },
        ),
    ),
    spot_the_bug=True,
    probe=by_hand(_probe_transposed),
)

# ------------------------------------------------------------------------------------------- backward


def _probe_backward(backward: Callable[..., Any], draw: Draw) -> Observations:
    names = ("dv", "dg")

    def call(*inputs: Any) -> Any:
        return returned(without_autograd(backward, *inputs), backward, *names)

    for shape in ((3, 4), (2, 3, 2, 2)):
        grad, v = draw.values(*shape), draw.values(*shape)
        g = draw.values(shape[0], *[1] * (len(shape) - 1))
        passed = grad.clone(), v.clone(), g.clone()
        dv, dg = call(*passed)
        yield f"dg for {shape}", dg
        yield f"dv for {shape}", dv
        kept = all(torch.equal(a, b) for a, b in zip(passed, (grad, v, g), strict=True))
        yield (
            f"the arguments are unchanged for {shape}",
            Holds(kept, "the arguments are overwritten", "in_place"),
        )
    for name, value in zip(names, call(grad.float(), v.float(), g.float()), strict=True):
        yield f"{name} for float32", value


_DV = "g / length * (grad - along * unit)"

BACKWARD = Exercise(
    id="weight_norm.backward",
    title="The backward pass by hand",
    answer="weight_norm_backward",
    statement=r"""
Write `weight_norm_backward(grad, v, g)`, which returns `(dv, dg)` for $w = g\,v/\lVert v\rVert$.
`grad` is $\nabla_w L$, of the shape $(C_{out}, \ldots)$ of `v`; `g` has shape $(C_{out}, 1, \ldots, 1)$;
there is one length for each output.

- `dv` has the shape of `v`, and `dg` that of `g`.
- Use no autograd: it is refused. Nor is torch's own weight normalization allowed.

The checker looks at both gradients, for a linear layer's and a convolution's weight.
""",
    starter="""
def weight_norm_backward(grad, v, g):
    raise NotImplementedError  # your code here
""",
    hints=(
        "dg is the part of ∇w along the unit vector v/‖v‖: a product with it, summed over all axes but 0.",
        "v changes w in two ways: directly, and through the length. The second takes away the part along v.",
        "Multiply what is left by g/‖v‖. Check that each row of dv is orthogonal to that row of v.",
    ),
    reference="""
def weight_norm_backward(grad, v, g):
    others = list(range(1, v.dim()))
    length = v.square().sum(dim=others, keepdim=True).sqrt()
    unit = v / length
    along = (grad * unit).sum(dim=others, keepdim=True)
    dv = g / length * (grad - along * unit)
    dg = along
    return dv, dg
""",
    alternatives=(
        """
def weight_norm_backward(grad, v, g):
    rows, r = v.flatten(1), grad.flatten(1)
    squares = torch.einsum("ij,ij->i", rows, rows)
    products = torch.einsum("ij,ij->i", r, rows)
    dg = products / squares.sqrt()
    dv = g.flatten()[:, None] / squares.sqrt()[:, None] * r
    dv = dv - (g.flatten() * dg / squares)[:, None] * rows
    return dv.view_as(v), dg.view_as(g)
""",
        """
def weight_norm_backward(grad, v, g):
    dv, dg = torch.empty_like(v), torch.empty_like(g)
    for i in range(len(v)):
        unit = (v[i] / v[i].norm()).flatten()
        projector = torch.eye(len(unit), dtype=v.dtype, device=v.device) - torch.outer(unit, unit)
        dg[i] = unit @ grad[i].flatten()
        dv[i] = (g[i].flatten() / v[i].norm() * (projector @ grad[i].flatten())).view_as(v[i])
    return dv, dg
""",
    ),
    mistakes=(
        Mistake(
            "no_projection",
            "Your dv treats the length as a constant: the part of ∇w along v is still in it. That part would "
            "only stretch v, which changes nothing.",
            {_DV: "g / length * grad"},
        ),
        Mistake(
            "no_factor",
            "Your dv lacks the factor g/‖v‖. It is what makes the step on a long v small.",
            {_DV: "(grad - along * unit)"},
        ),
        Mistake(
            "factor_without_g",
            "Your dv is divided by ‖v‖ but not multiplied by g.",
            {_DV: "(grad - along * unit) / length"},
        ),
        Mistake(
            "factor_without_length",
            "Your dv is multiplied by g but not divided by ‖v‖. Then the effective step would not shrink "
            "as v grows.",
            {_DV: "g * (grad - along * unit)"},
        ),
        Mistake(
            "projection_not_unit",
            "You project on v, not on the unit vector: the part along v is off by a factor of ‖v‖.",
            {_DV: "g / length * (grad - along * v)"},
        ),
        Mistake(
            "projection_added",
            "You add the part along v instead of taking it away.",
            {_DV: "g / length * (grad + along * unit)"},
        ),
        Mistake(
            "dg_along_v",
            "Your dg is ∇w·v. The gradient in g is the part along the unit vector: divide by ‖v‖.",
            {"dg = along": "dg = along * length"},
        ),
        Mistake(
            "dg_along_w",
            "Your dg is multiplied by g once too often: w is linear in g, and its slope is the unit vector.",
            {"dg = along": "dg = along * g"},
        ),
        Mistake(
            "dg_not_summed",
            "You did not sum dg over the elements of the vector: its shape is that of g.",
            {"dg = along": "dg = grad * unit"},
        ),
        Mistake(
            "dg_flat",
            "Your dg has shape (C,). An optimizer needs the shape of g, with its axes of size 1.",
            {"dg = along": "dg = along.flatten()"},
        ),
        Mistake(
            "axis_1_only",
            "Your sums run over axis 1 only: in a convolution, all taps of the kernel belong to the vector.",
            {"list(range(1, v.dim()))": "[1]"},
        ),
        Mistake(
            "whole_tensor",
            "You use one length for the whole tensor. Each output has its own.",
            {"list(range(1, v.dim()))": "list(range(v.dim()))", "dg = along": "dg = along.expand_as(g)"},
        ),
        Mistake(
            "order",
            "You return (dg, dv). The order is (dv, dg).",
            {"return dv, dg": "return dg, dv"},
        ),
        Mistake(
            "in_place",
            "Your gradients are right, but you overwrite an argument.",
            {"(grad - along * unit)": "grad.sub_(along * unit)"},
        ),
        Mistake(
            "by_autograd",
            AUTOGRAD,
            {
                "    others = ": (
                    "    with torch.enable_grad():\n"
                    "        a, b = v.clone().requires_grad_(), g.clone().requires_grad_()\n"
                    "        n = a.flatten(1).norm(dim=1).view(b.shape)\n"
                    "        return torch.autograd.grad(b * a / n, (a, b), grad)\n"
                    "    others = "
                )
            },
        ),
    ),
    probe=by_hand(_probe_backward),
)

# ----------------------------------------------------------------------------------------- initialize


def _probe_initialize(initialize: Callable[..., Any], draw: Draw) -> Observations:
    names = ("g", "bias")
    for n in (6, 3):
        v, x = draw.values(3, 4), draw.batch(n, 4)
        passed = v.clone(), x.clone()
        g, bias = returned(initialize(*passed), initialize, *names)
        yield f"g for {n} samples", g
        yield f"bias for {n} samples", bias
        if isinstance(g, Tensor) and isinstance(bias, Tensor) and g.numel() == bias.numel() == 3:
            w = g.reshape(3, 1) * v / v.norm(dim=1, keepdim=True)
            y = x @ w.T + bias.reshape(3)
            yield f"mean of the outputs of {n} samples", y.mean(0)
            yield f"variance of the outputs of {n} samples", y.var(0, correction=0)
        kept = all(torch.equal(a, b) for a, b in zip(passed, (v, x), strict=True))
        yield (
            f"the arguments are unchanged for {n} samples",
            Holds(kept, "the arguments are overwritten", "in_place"),
        )
    for name, value in zip(names, returned(initialize(1e-6 * v, 1e-3 * x), initialize, *names), strict=True):
        yield f"{name} for faint inputs", value
    for name, value in zip(
        names, returned(initialize(v.float(), x.float()), initialize, *names), strict=True
    ):
        yield f"{name} for float32", value


INITIALIZE = Exercise(
    id="weight_norm.initialize",
    title="Data-dependent initialization",
    answer="initialize",
    statement=r"""
Weight Normalization does not normalize what comes out of a layer; a good start has to. Write
`initialize(v, x)` for a linear layer with the direction `v`, of shape $(C_{out}, C_{in})$, and one batch
`x` of its inputs, of shape $(N, C_{in})$. Return `(g, bias)` such that every output

$$y = \frac{g}{\lVert v\rVert}\, v \cdot x + b$$

has mean 0 and (biased) variance 1 over this batch.

- `g` has shape $(C_{out}, 1)$ and is positive; `bias` has shape $(C_{out},)$.
- Leave `v` and `x` as they are, and use no $\varepsilon$: the inputs may be faint.

The checker looks at `g` and `bias`, and at the mean and the variance of the outputs that they give.
""",
    starter="""
def initialize(v, x):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Compute the outputs for g = 1 and b = 0 first: x times the unit vectors.",
        "Let t be those outputs, with mean μ and deviation σ per output. Which g makes the deviation 1? The "
        "mean is then μ/σ: take it away.",
    ),
    reference="""
def initialize(v, x):
    unit = v / v.norm(dim=1, keepdim=True)
    t = x @ unit.T
    mean, std = t.mean(dim=0), t.std(dim=0, correction=0)
    bias = -mean / std
    return (1 / std).unsqueeze(1), bias
""",
    alternatives=(
        """
def initialize(v, x):
    unit = torch.nn.functional.normalize(v, dim=1, eps=0.0)
    var, mean = torch.var_mean(nn.functional.linear(x, unit), dim=0, correction=0)
    g = var.rsqrt()
    return g[:, None], -mean * g
""",
        """
def initialize(v, x):
    t = x @ v.T  # the length of v cancels in the bias
    spread = (t - t.mean(0)).square().mean(0).sqrt()
    return (v.norm(dim=1) / spread).view(-1, 1), -t.mean(0) / spread
""",
    ),
    mistakes=(
        Mistake(
            "v_not_normalized",
            "You measure the outputs of v itself. They are ‖v‖ times those that g will scale: take the unit "
            "vectors.",
            {"unit = v / v.norm(dim=1, keepdim=True)": "unit = v"},
        ),
        Mistake(
            "unbiased",
            "You divide the variance by n − 1. The variance of this very batch is to be 1, so divide by n.",
            {"correction=0": "correction=1"},
        ),
        Mistake(
            "g_not_inverted",
            "Your g is the deviation. The outputs have to be divided by it: g = 1/σ.",
            {"(1 / std)": "std"},
        ),
        Mistake(
            "variance_for_deviation",
            "You divide by the variance. Its root is what has the outputs' scale.",
            {"t.std(dim=0, correction=0)": "t.var(dim=0, correction=0)"},
        ),
        Mistake(
            "bias_not_scaled",
            "Your bias is −μ, the mean before g. Once g has scaled the outputs, their mean is μ/σ.",
            {"-mean / std": "-mean"},
        ),
        Mistake(
            "bias_added",
            "Your bias has the wrong sign: it doubles the mean instead of removing it.",
            {"-mean / std": "mean / std"},
        ),
        Mistake(
            "bias_zero",
            "You leave the bias at 0: only the variance is then as asked.",
            {"-mean / std": "torch.zeros_like(mean)"},
        ),
        Mistake(
            "per_sample",
            "Your mean and deviation run over the outputs of each sample. Each *output* has its own, over "
            "the batch.",
            {
                "t.mean(dim=0), t.std(dim=0, correction=0)": (
                    "t.mean(dim=1)[:3], t.std(dim=1, correction=0)[:3]"
                )
            },
        ),
        Mistake(
            "shared",
            "You use one mean and one deviation for all outputs. Each output has its own.",
            {
                "t.mean(dim=0), t.std(dim=0, correction=0)": (
                    "t.mean().expand(len(v)), t.std(correction=0).expand(len(v))"
                )
            },
        ),
        Mistake(
            "statistics_of_x",
            "You measure the inputs, not the outputs: a sum of several of them has another deviation.",
            {"1 / std": "1 / x.std(correction=0) + 0 * std"},
        ),
        Mistake(
            "eps_added",
            "You add a small number to the deviation. Faint inputs then give faint outputs, and the layers "
            "after this one even fainter ones.",
            {"t.std(dim=0, correction=0)": "t.std(dim=0, correction=0) + 1e-5"},
        ),
        Mistake(
            "eps_in_variance",
            "You add a small number to the variance. Faint inputs have a variance that is smaller still, and "
            "then give faint outputs.",
            {"t.std(dim=0, correction=0)": "(t.var(dim=0, correction=0) + 1e-5).sqrt()"},
        ),
        Mistake(
            "second_moment",
            "You divide by the root of the mean square, without taking the mean out. The outputs' deviation "
            "is then below 1.",
            {"t.std(dim=0, correction=0)": "t.square().mean(dim=0).sqrt()"},
        ),
        Mistake(
            "one_length",
            "You divide v by one length for the whole tensor. Each output has a unit vector of its own.",
            {"v.norm(dim=1, keepdim=True)": "v.norm()"},
        ),
        Mistake(
            "flat",
            "Your g has shape (C,). It has one column, so that it lines up with the rows of v.",
            {"(1 / std).unsqueeze(1)": "1 / std"},
        ),
        Mistake(
            "in_place",
            "Your numbers are right, but you overwrite v. Its length is the layer's own business.",
            {"unit = v / v.norm(dim=1, keepdim=True)": "unit = v.div_(v.norm(dim=1, keepdim=True))"},
        ),
    ),
    probe=by_hand(_probe_initialize),
)

# ------------------------------------------------------------------------------------------ bug_decay


class _Normalized(nn.Module):
    """Parameters named and shaped like those of a weight-normalized linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1))
        self.weight_v = nn.Parameter(torch.ones(outputs, inputs))
        self.bias = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return nn.functional.linear(x, w, self.bias)


def _listed(params: Any) -> list[Any]:
    """A group's parameters as torch reads them: one alone, a list, or any iterable."""
    return [params] if isinstance(params, Tensor) else list(params)


def _probe_decay(parameter_groups: Callable[..., Any], draw: Draw) -> Observations:
    decay = draw.uniform(0.1, 0.5)
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), _Normalized(2, 3), nn.ReLU(), nn.Linear(3, 2))
    settle(network, draw)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(draw.values(*parameter.shape))
    groups = parameter_groups(network, decay)
    if groups is None or groups is ...:
        raise Unfinished
    if not isinstance(groups, list | tuple) or not all(isinstance(group, dict) for group in groups):
        raise Broken("`parameter_groups` returns something else than a list of dicts.")
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [group | {"params": _listed(group.get("params", ()))} for group in groups]
    held = [names.get(id(p), "a parameter of no layer") for group in groups for p in group["params"]]
    missing = [name for name in names.values() if name not in held]
    twice = sorted({name for name in held if held.count(name) > 1})
    text = f"in no group: {', '.join(missing) or 'none'}; in several: {', '.join(twice) or 'none'}"
    name = "twice" if twice else "left_out"
    yield "every parameter is in one group", Holds(sorted(held) == sorted(names.values()), text, name)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        yield f"decay of {name}", (before[name] - parameter.detach()) / before[name]


_DECAYED = 'name.endswith("weight_g") or name.endswith(".weight")'

BUG_DECAY = Exercise(
    id="weight_norm.bug_decay",
    title="Spot the bug: decay that regularizes nothing",
    answer="parameter_groups",
    statement=r"""
A common recipe gives weight decay to every parameter with more than one axis, and spares the biases. Here is
that recipe as `parameter_groups(network, decay)`, which returns the optimizer's parameter groups, used on a
network with weight-normalized layers (parameters `weight_g`, `weight_v`, `bias`) and plain ones (`weight`,
`bias`).

The length of `weight_v` is divided out of the function. So its decay holds no weight back: it only keeps the
effective learning rate high. Change the function so that `decay` acts on the weights' scale, and on nothing
else: on `weight_g` and on the plain `weight`; not on `weight_v`, not on a bias. Every parameter stays in
exactly one group. The checker takes one step of gradient descent with zero gradients and looks at what each
parameter loses. """,
    starter="""
def parameter_groups(network, decay):
    decayed, spared = [], []
    for parameter in network.parameters():
        (decayed if parameter.dim() > 1 else spared).append(parameter)
    return [
        {"params": decayed, "weight_decay": decay},
        {"params": spared, "weight_decay": 0.0},
    ]
""",
    hints=(
        "`named_parameters()` gives names like `2.weight_v`: `name.endswith(...)` tells them apart.",
        "What has a scale that the function feels? `weight_g`, and a plain layer's `weight`.",
    ),
    reference="""
def parameter_groups(network, decay):
    decayed, spared = [], []
    for name, parameter in network.named_parameters():
        chosen = name.endswith("weight_g") or name.endswith(".weight")
        (decayed if chosen else spared).append(parameter)
    return [
        {"params": decayed, "weight_decay": decay},
        {"params": spared, "weight_decay": 0.0},
    ]
""",
    alternatives=(
        """
def parameter_groups(network, decay):
    groups = []
    for name, parameter in network.named_parameters():
        spared = name.endswith(("weight_v", "bias"))
        groups.append({"params": [parameter], "weight_decay": 0.0 if spared else decay})
    return groups
""",
        """
def parameter_groups(network, decay):
    spared = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("bias", "weight_v"):
                spared.add(parameter)
    decayed = [p for p in network.parameters() if p not in spared]
    return [dict(params=decayed, weight_decay=decay), dict(params=list(spared), weight_decay=0)]
""",
        """
def parameter_groups(network, decay):
    named = dict(network.named_parameters())
    spared = {name for name in named if name.endswith("weight_v") or name.endswith("bias")}
    return [
        {"params": (p for name, p in named.items() if name not in spared), "weight_decay": decay},
        {"params": (named[name] for name in sorted(spared))},
    ]
""",
    ),
    mistakes=(
        Mistake(
            "g_spared",
            "You spare `weight_g` too. It is the length of the weights, the very thing that decay is to "
            "limit.",
            {_DECAYED: 'name.endswith(".weight")'},
        ),
        Mistake(
            "plain_spared",
            "You spare the plain layers' `weight`, which has a scale of its own.",
            {_DECAYED: 'name.endswith("weight_g")'},
        ),
        Mistake(
            "v_for_g",
            "You took the wrong one of the two: `weight_v` decays now and `weight_g` does not.",
            {'name.endswith("weight_g")': 'name.endswith("weight_v")'},
        ),
        Mistake(
            "biases_too",
            "The biases decay now. They are not to.",
            {_DECAYED: 'not name.endswith("weight_v")'},
        ),
        Mistake(
            "nothing_decays",
            "Nothing decays at all now.",
            {'"weight_decay": decay': '"weight_decay": 0.0'},
        ),
        Mistake(
            "everything_decays",
            "Everything decays now: the second group has the same decay as the first.",
            {'"weight_decay": 0.0': '"weight_decay": decay'},
        ),
        Mistake(
            "left_out",
            "The spared parameters are in no group. An optimizer never moves what it is not given.",
            {'        {"params": spared, "weight_decay": 0.0},\n': ""},
        ),
        Mistake(
            "twice",
            "A parameter is in two groups. torch refuses that: the optimizer would move it twice.",
            {
                "(decayed if chosen else spared).append(parameter)": (
                    "spared.append(parameter)\n        if chosen:\n            decayed.append(parameter)"
                )
            },
        ),
        Mistake(
            "half_the_decay",
            "You halved the decay. SGD's `weight_decay` multiplies the parameter itself; the ½ of the "
            "penalty is already gone.",
            {'"weight_decay": decay': '"weight_decay": decay / 2'},
        ),
    ),
    spot_the_bug=True,
    probe=_probe_decay,
)

# ---------------------------------------------------------------------------------------------- layer


_FILLED = {"weight_g": (3, 1), "weight_v": (3, 4), "bias": (3,)}


def _start(layer: nn.Module) -> Observations:
    """How g and v begin, without the random numbers themselves."""
    g, v = getattr(layer, "weight_g", None), getattr(layer, "weight_v", None)
    if not isinstance(g, Tensor) or not isinstance(v, Tensor):
        return
    g, v = g.detach(), v.detach()
    largest, bound = v.abs().max().item(), v.size(1) ** -0.5
    usual = bound / 3**0.5  # deviation of a uniform distribution
    drawn = 0.5 * bound < largest <= bound and abs(v.std().item() / usual - 1) < 0.15
    yield (
        "v below 1 at the start",
        Holds(largest < 1, f"the largest |v| is {largest:.3f}", "v_standard_normal"),
    )
    unit = torch.allclose(v.norm(dim=1), torch.ones_like(v[:, 0]), atol=1e-4)
    yield "lengths of v at the start", Holds(not unit, "the rows of v have length 1", "unit_rows")
    said = f"the largest |v| is {largest:.3f} and its deviation {v.std().item():.3f}"
    said += f", expected uniform values up to {bound:.3f}, whose deviation is {usual:.3f}"
    yield "v at the start", Holds(drawn, said, "v_other_rule")
    if g.numel() == len(v):
        yield "g ÷ ‖v‖ at the start", Approx(g.flatten() / v.norm(dim=1), 1e-5)


def _probe_layer(cls: Callable[..., nn.Module], draw: Draw) -> Observations:
    attempted(lambda: cls(4, 3)(torch.zeros(2, 4)), cls)
    layer = settle(cls(4, 3), draw)
    yield "the constructor", True
    yield "the parameters", parameter_shapes(layer)
    yield "the keys of state_dict()", sorted(layer.state_dict())
    yield from _start(settle(cls(40, 9), draw))

    fill(layer, draw, _FILLED)
    rows = draw.batch(5, 4)
    x = rows.clone()
    yield "output for (N, in)", returned(layer(x), cls)
    yield "the input is unchanged", unchanged(x, rows, "input_changed")
    yield "v after a forward pass", getattr(layer, "weight_v", None)
    yield "output for (N, T, in)", returned(layer(draw.batch(2, 4, 3).transpose(1, 2)), cls)
    x = leaf(rows)
    named = {name: getattr(layer, name, None) for name in ("weight_g", "weight_v", "bias")}
    yield from gradients(returned(layer(x * 1), cls), draw, x=x, **named)
    yield "a copy", Holds(can_be_copied(layer), "copy.deepcopy stops after a forward pass", "weight_kept")

    layer.eval()
    yield "output in evaluation", returned(layer(rows.clone()), cls)
    fill(layer, draw, _FILLED)
    yield "output with other parameters", returned(layer(rows.clone()), cls)
    if isinstance(named["weight_v"], Tensor):
        with torch.no_grad():
            named["weight_v"].mul_(1e-16)
        yield "output for a tiny v", returned(layer(rows.clone()), cls)

    bare = settle(cls(4, 3, bias=False), draw)
    yield "the parameters with bias=False", parameter_shapes(bare)
    fill(bare, draw, _FILLED)
    yield "output with bias=False", returned(bare(rows.clone()), cls)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        other = cls(4, 3)
        fill(other, draw, _FILLED)
        with torch.no_grad():
            if isinstance(v := getattr(other, "weight_v", None), Tensor):
                v.add_(300 * v.sign())  # its square is too large for float16
        settle(other, draw, dtype)
        name = str(dtype).removeprefix("torch.")
        yield f"output for {name}", returned(other((0.1 * rows).to(dtype)), cls)

    theirs = nn.utils.parametrizations.weight_norm(settle(nn.Linear(4, 3), draw))
    loaded = loads(layer.state_dict(), theirs)
    yield (
        "torch's layer loads yours",
        Holds(loaded, "torch's weight_norm(nn.Linear) does not load your state"),
    )


_WEIGHT = "length = wide.square().sum(dim=1, keepdim=True).sqrt()"

LAYER = Exercise(
    id="weight_norm.layer",
    title="The whole layer",
    answer="WeightNormLinear",
    statement=r"""
Write the class `WeightNormLinear(in_features, out_features, bias=True)`, derived from `nn.Module`: a linear
layer with the weight $g\,v/\lVert v\rVert$, one length for each output. The checker looks at

- **state**: parameters `weight_g` of shape $(C_{out}, 1)$ and `weight_v` of shape $(C_{out}, C_{in})$, and
  `bias` of shape $(C_{out},)$ unless `bias=False`; nothing else in the state dict, which
  torch's `parametrizations.weight_norm(nn.Linear(…))` then loads;
- **the start**: `weight_v` as `nn.Linear` draws its weight, uniformly within ±1/√`in_features`, and
  $g = \lVert v\rVert$: a new layer computes what a plain one would;
- **the forward pass**: the output for $(N, C_{in})$ and $(N, T, C_{in})$, and all gradients; in evaluation
  the same; `weight_v` is not changed by it, nor is the input; no $\varepsilon$, however small $v$ is;
- **use**: `copy.deepcopy` works after a forward pass; a layer in bfloat16 or float16 gives its own dtype
  back, with the length computed in float32.

Write the formula: torch's own weight normalization is refused.
""",
    starter="""
class WeightNormLinear(nn.Module):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here
""",
    hints=(
        "`nn.Linear(in_features, out_features).weight.detach()` is a v drawn as asked.",
        "Compute the weight in every forward pass, from `weight_g` and `weight_v`, and keep it nowhere: a "
        "tensor with a graph among the attributes cannot be copied.",
        '`self.register_parameter("bias", None)` says that there is no bias; `linear` takes None for it.',
        "For half precision: `wide = self.weight_v.float()`, and the weight back to `self.weight_v.dtype`.",
    ),
    reference="""
class WeightNormLinear(nn.Module):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        v = (2 * torch.rand(out_features, in_features) - 1) / in_features**0.5
        self.weight_g = nn.Parameter(v.norm(dim=1, keepdim=True))
        self.weight_v = nn.Parameter(v)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x):
        v, g = self.weight_v, self.weight_g
        wide = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
        length = wide.square().sum(dim=1, keepdim=True).sqrt()
        weight = (wide * (g / length)).to(v.dtype)
        return nn.functional.linear(x, weight, self.bias)
""",
    alternatives=(
        """
class WeightNormLinear(nn.Module):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        plain = nn.Linear(in_features, out_features, bias=bias)
        self.weight_v = plain.weight
        self.weight_g = nn.Parameter(plain.weight.detach().norm(dim=1, keepdim=True))
        self.register_parameter("bias", plain.bias)

    @property
    def weight(self):
        v = self.weight_v if self.weight_v.dtype == torch.float64 else self.weight_v.float()
        unit = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
        return (self.weight_g * unit).to(self.weight_v.dtype)

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias
""",
        """
class WeightNormLinear(nn.Linear):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__(in_features, out_features, bias=bias)
        v = self.weight
        del self.weight
        self.weight_v = v
        self.weight_g = nn.Parameter(v.detach().square().sum(1, keepdim=True).sqrt())

    def forward(self, x):
        v = self.weight_v
        wide = v.double()
        inverse = torch.einsum("ij,ij->i", wide, wide).rsqrt()
        weight = (self.weight_g * inverse[:, None] * wide).to(v.dtype)
        return nn.functional.linear(x, weight, self.bias)
""",
    ),
    mistakes=(
        Mistake(
            "wrong_axis",
            "Your length runs over axis 0: one for each input. Then g does not set the length of any unit's "
            "weights.",
            {_WEIGHT: "length = wide.square().sum(dim=0, keepdim=True).sqrt()"},
        ),
        Mistake(
            "whole_tensor",
            "You divide by one length for the whole weight. Each output has its own.",
            {_WEIGHT: "length = wide.square().sum().sqrt()"},
        ),
        Mistake(
            "squared",
            "You divide by the squared length: the root is missing.",
            {_WEIGHT: "length = wide.square().sum(dim=1, keepdim=True)"},
        ),
        Mistake(
            "eps_added",
            "You add a small number to the length. Where v is small, the weight is then shorter than g says.",
            {"(g / length)": "(g / (length + 1e-8))"},
        ),
        Mistake(
            "length_clamped",
            "You keep the length from getting small, as `F.normalize` does. A short v is a direction like "
            "any other.",
            {"(g / length)": "(g / length.clamp_min(1e-12))"},
        ),
        Mistake(
            "g_left_out",
            "Your forward pass does not use g. All units then have weights of length 1 for ever.",
            {"(g / length)": "(1 / length)"},
        ),
        Mistake(
            "g_is_exponent",
            "You use exp(g) for the length. The paper tried that parameterization too, but here, as in "
            "torch, g is the length itself.",
            {"(g / length)": "(g.exp() / length)"},
        ),
        Mistake(
            "length_detached",
            "Your output is right, your gradient in `weight_v` is not: you detach the length. The part along "
            "v is then still in it, and v's length is no longer free of the loss.",
            {_WEIGHT: _WEIGHT + ".detach()"},
        ),
        Mistake(
            "no_graph",
            "Your output is right, but `weight_g` and `weight_v` get no gradient: the weight is computed "
            "without a graph.",
            {"(g / length)).to(v.dtype)": "(g / length)).to(v.dtype).detach()"},
        ),
        Mistake(
            "v_overwritten",
            "You write the unit vectors back into `weight_v` in each forward pass. Its growing length is "
            "what adapts the effective learning rate; now it cannot grow.",
            {"        weight = (wide": "        v.data = (v / length).detach()\n        weight = (wide"},
        ),
        Mistake(
            "g_one",
            "You start g at 1. A new layer should compute what a plain one would: g = ‖v‖.",
            {"nn.Parameter(v.norm(dim=1, keepdim=True))": "nn.Parameter(torch.ones(out_features, 1))"},
        ),
        Mistake(
            "unit_rows",
            "You start with unit rows in v and g = 1. Weights of length 1 are not those of a plain layer, "
            "and drawing v by a careful rule was in vain: only its direction is left.",
            {"/ in_features**0.5\n": "/ in_features**0.5\n        v = v / v.norm(dim=1, keepdim=True)\n"},
        ),
        Mistake(
            "v_other_rule",
            "You draw v by another rule than `nn.Linear`, which is uniform within ±1/√in_features. A new "
            "layer should compute what a plain one would.",
            {
                "(2 * torch.rand(out_features, in_features) - 1) / in_features**0.5": (
                    "nn.init.xavier_uniform_(torch.empty(out_features, in_features))"
                )
            },
        ),
        Mistake(
            "v_standard_normal",
            "You draw v from the standard normal distribution and set g to its length: the weights are far "
            "longer than those of a plain layer.",
            {
                "(2 * torch.rand(out_features, in_features) - 1) / in_features**0.5": (
                    "torch.randn(out_features, in_features)"
                )
            },
        ),
        Mistake(
            "g_flat",
            "Your `weight_g` has shape (C,). It has one column, or torch's layer cannot load it.",
            {
                "nn.Parameter(v.norm(dim=1, keepdim=True))": "nn.Parameter(v.norm(dim=1))",
                "(g / length)": "(g[:, None] / length)",
            },
        ),
        Mistake(
            "g_not_learned",
            "Your g is a buffer, not a parameter. No optimizer will ever change the length of the weights.",
            {
                "self.weight_g = nn.Parameter(v.norm(dim=1, keepdim=True))": (
                    'self.register_buffer("weight_g", v.norm(dim=1, keepdim=True))'
                )
            },
        ),
        Mistake(
            "other_names",
            "Your parameters have other names, so checkpoints fit neither way. They are `weight_g` and "
            "`weight_v`.",
            {
                "self.weight_g = nn.Parameter": "self.g = nn.Parameter",
                "self.weight_v = nn.Parameter": "self.v = nn.Parameter",
                "v, g = self.weight_v, self.weight_g": "v, g = self.v, self.g",
            },
        ),
        Mistake(
            "weight_too",
            "You keep a third parameter, `weight`, which no gradient reaches. The weight is computed.",
            {
                "        self.weight_v = nn.Parameter(v)": (
                    "        self.weight_v = nn.Parameter(v)\n        self.weight = nn.Parameter(v.clone())"
                )
            },
        ),
        Mistake(
            "weight_once",
            "You compute the weight once and keep it. After the next update, or a loaded checkpoint, the "
            "output no longer follows `weight_g` and `weight_v`.",
            {
                "        return nn": (
                    '        if not hasattr(self, "once"):\n'
                    "            self.once = weight.detach()\n"
                    "        weight = self.once.to(weight) + (weight - weight.detach())\n"
                    "        return nn"
                )
            },
        ),
        Mistake(
            "weight_kept",
            "You keep the computed weight as an attribute. It carries a graph, so `copy.deepcopy` stops "
            "after the first forward pass; torch's old `weight_norm` hook is known for it.",
            {"        return nn": "        self.weight = weight\n        return nn"},
        ),
        Mistake(
            "bias_always",
            "You ignore `bias=False`. Before a layer that subtracts a mean, the bias would be dead weight.",
            {" if bias else None": ""},
        ),
        Mistake(
            "bias_not_added",
            "You never add the bias.",
            {"x, weight, self.bias": "x, weight"},
        ),
        Mistake(
            "input_normalized",
            "You normalize the input, too. That is cosine similarity; Weight Normalization does not look at "
            "its input.",
            {"linear(x, weight": "linear(x / x.norm(dim=-1, keepdim=True), weight"},
        ),
        Mistake(
            "transposed",
            "Your v has shape (in, out). As in `nn.Linear`, the output's axis comes first.",
            {
                "self.weight_v = nn.Parameter(v)": "self.weight_v = nn.Parameter(v.T.clone())",
                "v, g = self.weight_v, self.weight_g": "v, g = self.weight_v.T, self.weight_g",
            },
        ),
        Mistake(
            "length_in_half",
            "You square half-precision numbers in half precision: 300² overflows in float16, and the weight "
            "is 0. Compute the length in float32.",
            {"v.float() if v.dtype in (torch.float16, torch.bfloat16) else v": "v"},
        ),
        Mistake(
            "always_float32",
            "You compute in float32 whatever comes in, and return it. A layer in half precision gives half "
            "precision.",
            {
                "return nn.functional.linear(x, weight, self.bias)": (
                    "y = nn.functional.linear(x.float(), weight.float())\n"
                    "        return y if self.bias is None else y + self.bias.float()"
                )
            },
        ),
        Mistake(
            "input_changed",
            "You overwrite the input. The caller may still need it.",
            {"        v, g =": "        x.data = x.data.clamp_(-1, 1) + 0 * x\n        v, g ="},
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"weight = (wide * (g / length)).to(v.dtype)": "weight = torch._weight_norm(v, g, 0)"},
        ),
    ),
    probe=by_hand(_probe_layer),
)

# ----------------------------------------------------------------------------------------- checkpoint


def _probe_checkpoint(plain_state: Callable[..., Any], draw: Draw) -> Observations:
    def pair(prefix: str, old: bool, v: Tensor, g: Tensor) -> dict[str, Tensor]:
        names = ("weight_g", "weight_v")
        if not old:
            names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
        return {prefix + names[0]: g, prefix + names[1]: v}

    linear = draw.values(3, 4), draw.values(3, 1)
    transposed = draw.values(2, 3, 2), draw.values(1, 3, 1)
    whole = draw.values(2, 3), draw.values()
    states = {
        "the old names": {"0.bias": draw.values(3)} | pair("0.", True, *linear),
        "torch's names": {"0.bias": draw.values(3)} | pair("0.", False, *linear),
        "both, among plain layers": {"head.weight": draw.values(2, 2)}
        | pair("a.b.", False, *linear)
        | pair("c.", True, *linear)
        | {"norm.running_mean": draw.values(3)},
        "a layer alone": pair("", True, *linear) | {"bias": draw.values(3)},
        "a convolution": pair("conv.", True, draw.values(3, 2, 2, 2), draw.values(3, 1, 1, 1)),
        "a transposed convolution": pair("up.", False, *transposed),
        "one length for all": pair("0.", False, *whole),
    }
    for name, state in states.items():
        kept = {key: value.clone() for key, value in state.items()}
        plain = plain_state(state)
        if plain is None or plain is ...:
            returned(plain, plain_state)
        if not isinstance(plain, dict):
            raise Broken(f"`plain_state` returns {kind(plain)}, expected a dict.")
        yield f"the keys with {name}", sorted(plain)
        for key in sorted(plain):
            yield f"{key} with {name}", plain[key]
        same = state.keys() == kept.keys() and all(torch.equal(state[key], kept[key]) for key in kept)
        yield (
            f"the argument is unchanged with {name}",
            Holds(same, "the state dict that was passed has changed", "in_place"),
        )


CHECKPOINT = Exercise(
    id="weight_norm.checkpoint",
    title="An old checkpoint, for inference",
    answer="plain_state",
    statement=r"""
A vocoder's checkpoint is to run without Weight Normalization. Write `plain_state(state)`: it takes the state
dict of a network and returns a new dict, for the same network made of plain layers.

- $g$ and $v$ come under one of two pairs of names: `….weight_g` and `….weight_v` (torch's old hook, and this
  course's layers), or `….parametrizations.weight.original0` and `….original1` (torch's
  `parametrizations.weight_norm`). One checkpoint may hold both pairs; a layer saved alone has no prefix.
- Each pair becomes one entry, `….weight`, with $w = g\,v/\lVert v\rVert$. Every other entry stays.
- The shape of $g$ tells over which axes the length runs: those where it has size 1. A $g$ without axes is one
  length for the whole tensor.
- Leave `state` as it is.

The checker looks at the keys and the values for linear layers, convolutions and transposed convolutions.
""",
    starter="""
def plain_state(state):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Walk through the keys. At a name for v, find the g that belongs to it, and write the weight; skip "
        "the names for g; copy everything else.",
        "The axes: `[d for d in range(v.dim()) if g.dim() == 0 or g.size(d) == 1]`.",
        "`key.removesuffix(name)` gives the prefix, which may be empty.",
    ),
    reference="""
def plain_state(state):
    pairs = {
        "weight_v": "weight_g",
        "parametrizations.weight.original1": "parametrizations.weight.original0",
    }
    plain = dict(state)
    for name_v, name_g in pairs.items():
        for key in [key for key in state if key.endswith(name_v)]:
            prefix = key.removesuffix(name_v)
            v, g = plain.pop(key), plain.pop(prefix + name_g)
            axes = [d for d in range(v.dim()) if g.dim() == 0 or g.size(d) == 1]
            length = v.square().sum(dim=axes, keepdim=True).sqrt()
            plain[prefix + "weight"] = g * v / length
    return plain
""",
    alternatives=(
        """
def plain_state(state):
    plain = {}
    for key, value in state.items():
        prefix, dot, name = key.rpartition(".")
        if name in ("weight_g", "original0"):
            continue
        if name == "weight_v":
            g = state[prefix + dot + "weight_g"]
            key = prefix + dot + "weight"
        elif name == "original1":
            g = state[prefix + ".original0"]
            key = prefix.removesuffix("parametrizations.weight") + "weight"
        else:
            plain[key] = value
            continue
        axes = [d for d, size in enumerate(g.shape) if size == 1] or list(range(value.dim()))
        plain[key] = g * (value / torch.linalg.vector_norm(value, dim=axes, keepdim=True))
    return plain
""",
        """
def plain_state(state):
    renamed = {}
    for key, value in state.items():
        key = key.replace("parametrizations.weight.original0", "weight_g")
        renamed[key.replace("parametrizations.weight.original1", "weight_v")] = value
    for key in [key for key in renamed if key.endswith("weight_v")]:
        v, g = renamed.pop(key), renamed.pop(key[:-1] + "g")
        dim = -1 if g.dim() == 0 else max(range(g.dim()), key=g.size)
        if dim == -1:
            renamed[key[:-2]] = g * v / v.norm()
        else:
            rows = v.transpose(0, dim)
            unit = rows / rows.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))
            renamed[key[:-2]] = g * unit.transpose(0, dim)
    return renamed
""",
    ),
    mistakes=(
        Mistake(
            "old_names_only",
            "You know the old pair of names only. torch's parametrization writes `original0` and "
            "`original1`.",
            {
                '        "parametrizations.weight.original1": "parametrizations.weight.original0",\n': "",
            },
        ),
        Mistake(
            "new_names_only",
            "You know the parametrization's names only. Published checkpoints of vocoders hold `weight_g` "
            "and `weight_v`.",
            {'        "weight_v": "weight_g",\n': ""},
        ),
        Mistake(
            "g_and_v_swapped",
            "You took `original0` for v. It is g; v is `original1`.",
            {
                '"parametrizations.weight.original1": "parametrizations.weight.original0"': (
                    '"parametrizations.weight.original0": "parametrizations.weight.original1"'
                )
            },
        ),
        Mistake(
            "not_normalized",
            "You multiply v by g without dividing by its length.",
            {"g * v / length": "g * v"},
        ),
        Mistake(
            "g_left_out",
            "You write the unit vectors, without g.",
            {"g * v / length": "v / length"},
        ),
        Mistake(
            "v_alone",
            "You rename v to weight. That is the weight only where g happens to be ‖v‖, in a layer that was "
            "never trained.",
            {"g * v / length": "v"},
        ),
        Mistake(
            "axis_0_assumed",
            "You assume one length for each index of axis 0. A transposed convolution keeps axis 1, and a g "
            "without axes is one length for all: look at the shape of g.",
            {"[d for d in range(v.dim()) if g.dim() == 0 or g.size(d) == 1]": "list(range(1, v.dim()))"},
        ),
        Mistake(
            "one_axis",
            "Your length runs over one axis. In a convolution it runs over all where g has size 1.",
            {"g.dim() == 0 or g.size(d) == 1]": "g.dim() == 0 or g.size(d) == 1][:1]"},
        ),
        Mistake(
            "whole_tensor",
            "You always use one length for the whole tensor. Each index of g's long axis has its own.",
            {"sum(dim=axes, keepdim=True)": "sum()"},
        ),
        Mistake(
            "pair_kept",
            "You leave g and v in the dict: `load_state_dict` of the plain network stops at unexpected keys.",
            {"plain.pop(key), plain.pop(prefix + name_g)": "plain[key], plain[prefix + name_g]"},
        ),
        Mistake(
            "others_dropped",
            "You drop the entries that are no g or v: biases, plain weights, running statistics.",
            {
                "plain = dict(state)": (
                    'plain = {k: v for k, v in state.items() if k.endswith(("_g", "_v", "0", "1"))}'
                )
            },
        ),
        Mistake(
            "in_place",
            "Your result is right, but you take entries out of the dict that was passed.",
            {"plain = dict(state)": "plain = state"},
        ),
    ),
    probe=by_hand(_probe_checkpoint),
)

# ------------------------------------------------------------------------------------------ challenge

_RATE, _STEPS, _BATCH, _TARGET = 0.01, 80, 32, 0.7


def _given() -> nn.Sequential:
    """Six hidden layers of 64 units, as PyTorch initializes them."""
    hidden = [part for _ in range(6) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def _affine(module: nn.Module, draw: Draw) -> bool:
    """Whether every sample is mapped by f(x) = A x + b, whatever stands beside it in the batch."""
    a, b = draw.values(4, 64).float(), draw.values(4, 64).float()
    with torch.no_grad():
        sum_, zero = module(a + b), module(torch.zeros_like(a))
        left, right = sum_ + zero, module(a) + module(b)
        alone = module(a[:1])
    scale = 1e-3 * max(1.0, left.abs().max().item())
    return torch.allclose(left, right, atol=scale) and torch.allclose(alone, module(a)[:1], atol=scale)


def _probe_challenge(prepare: Callable[..., Any], draw: Draw) -> Observations:
    data = digits()
    torch.manual_seed(int(draw.uniform(0, 2**31)))
    brightness = draw.uniform(0.02, 0.15)
    inputs = brightness * data.train_images.flatten(1).to(draw.device)
    tests = brightness * data.test_images.flatten(1).to(draw.device)
    labels = data.train_labels.to(draw.device)
    given = _given().to(draw.device)
    network = prepare(given, inputs[:256].clone())
    if network is None or network is ...:
        returned(network, prepare)
    if not isinstance(network, nn.Sequential):
        raise Broken(f"`prepare` returns {kind(network)}, expected an nn.Sequential.")
    steps = [type(step) is nn.ReLU for step in network]
    layout = steps == [i % 2 == 1 for i in range(13)]
    yield "the layout", Holds(layout, "the network is not 7 linear maps with an nn.ReLU between each two")
    if not layout:
        return
    network.train()
    affine = all(_affine(step, draw) for step in list(network)[::2])
    yield (
        "every sample on its own",
        Holds(
            affine,
            "a step between the ReLUs is no affine map x ↦ A x + b of each sample",
            "batch_statistics",
        ),
    )
    with torch.no_grad():
        spread = network[:-1](tests).std(dim=0).mean().item()
    for name, good, wanted in (
        ("the last hidden layer tells images apart", spread > 0.001, "above 0.001"),
        ("the images are no longer dim there", spread > 0.2, "above 0.2"),
        ("nor too bright", spread < 20, "below 20"),
    ):
        yield name, Holds(good, f"its deviation over the test images is {spread:.2g}, expected {wanted}")
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(int(draw.uniform(0, 2**31)))
    losses = []
    with torch.enable_grad():
        for _ in range(_STEPS):
            batch = torch.randint(len(inputs), (_BATCH,), generator=generator).to(draw.device)
            loss = cross_entropy(network(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    with torch.no_grad():
        right = (network(tests).argmax(1).cpu() == data.test_labels).float().mean().item()
    calm = right >= _TARGET or all(loss <= 2 * losses[0] for loss in losses)  # False for NaN
    yield (
        "the first steps are not too long",
        Holds(calm, f"the loss rises from {losses[0]:.3g} to {max(losses):.3g}", "steps_too_long"),
    )
    yield (
        f"{_TARGET:.0%} of the test digits",
        Holds(right >= _TARGET, f"{right:.1%} of the test digits are right, the target is {_TARGET:.0%}"),
    )


CHALLENGE = Exercise(
    id="weight_norm.challenge",
    title="Challenge: eighty small steps",
    answer="prepare",
    statement=r"""
An open task: any way that reaches the target is right. You are given `network`, an `nn.Sequential` of six
hidden layers (`nn.Linear(64, 64)` and `nn.ReLU()` by turns, then `nn.Linear(64, 10)`) as PyTorch
initializes it, and `images`, 256 training digits of shape $(256, 64)$. They are dim: every pixel is
multiplied by an unknown number between 0.02 and 0.15.

Write `prepare(network, images)`. It returns an `nn.Sequential` with the same layout, in which you may
initialize each linear layer anew, or put your own module in its place: how the affine map
$x \mapsto A x + b$ is parameterized is up to you, but an affine map of each sample it must be, in training
too. No batch statistics, no normalized activations, no skip connections.

The checker then trains what you return: 80 steps of plain gradient descent, learning rate 0.01, batches of
32.

- At the start, the deviation of the last hidden layer's activations over the test images, averaged over its
  units, lies between 0.2 and 20.
- **The target: 70 % of the test digits.** Over five seeds, the reference read between 79 % and 91 %; the same
  network with Kaiming's initialization at most 39 %.

torch's own tools are allowed here.
""",
    starter="""
def prepare(network, images):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Two things are needed: a start at which the last layers tell images apart, and a step that is large "
        "enough for a learning rate of 0.01.",
        "Initialize from the data, layer after layer, each from what the layers before it, *already "
        "initialized*, make of the images.",
        "The step of w is η (g/‖v‖)² times what plain gradient descent would make of it. Nobody prescribes "
        "the length of v.",
    ),
    reference="""
class Normalized(nn.Module):
    def __init__(self, plain, x):
        super().__init__()
        v = plain.weight.detach().clone()
        t = x @ (v / v.norm(dim=1, keepdim=True)).T
        std = t.std(dim=0, correction=0)
        self.v = nn.Parameter(v)
        self.g = nn.Parameter((1 / std)[:, None])
        self.bias = nn.Parameter(-t.mean(dim=0) / std)

    def forward(self, x):
        weight = self.g * self.v / self.v.norm(dim=1, keepdim=True)
        return nn.functional.linear(x, weight, self.bias)


def prepare(network, images):
    steps, x = [], images
    for step in network:
        if isinstance(step, nn.Linear):
            step = Normalized(step, x)
        steps.append(step)
        x = step(x).detach()
    return nn.Sequential(*steps)
""",
    alternatives=(
        """
def prepare(network, images):
    # torch's parametrization, v of length 1
    x = images
    for step in network:
        if isinstance(step, nn.Linear):
            with torch.no_grad():
                step.weight /= step.weight.norm(dim=1, keepdim=True)
                step.bias.zero_()
                t = step(x)
                scale = 1 / t.std(0, correction=0)
                step.bias.copy_(-t.mean(0) * scale)
            nn.utils.parametrizations.weight_norm(step)
            with torch.no_grad():
                step.parametrizations.weight.original0.copy_(scale[:, None])
        x = step(x).detach()
    return network
""",
        """
class Scaled(nn.Module):
    # no weight normalization: A = s U with a constant s, which is a larger step for U
    def __init__(self, plain, x, s=9.0):
        super().__init__()
        w = plain.weight.detach().clone()
        t = x @ w.T
        w = w / t.std(0)[:, None]
        self.s = s * w.norm(dim=1).mean().item() / 6
        self.u = nn.Parameter(w / self.s)
        self.bias = nn.Parameter(-(x @ w.T).mean(0))

    def forward(self, x):
        return nn.functional.linear(x, self.s * self.u, self.bias)


def prepare(network, images):
    x = images
    for i in range(0, 13, 2):
        network[i] = Scaled(network[i], x)
        x = torch.relu(network[i](x)).detach()
    return network
""",
    ),
    mistakes=(
        Mistake(
            "not_initialized",
            "You normalize the weights, but g is still ‖v‖: the function is PyTorch's start, at which two "
            "images are nearly the same to the last layers. Weight Normalization does not scale what comes "
            "out.",
            {
                "nn.Parameter((1 / std)[:, None])": "nn.Parameter(v.norm(dim=1, keepdim=True))",
                "nn.Parameter(-t.mean(dim=0) / std)": "nn.Parameter(plain.bias.detach().clone())",
            },
        ),
        Mistake(
            "plain_steps",
            "The start is right, but the steps are too small: with plain weights, or a v as long as g, the "
            "learning rate 0.01 is what moves the weights. A shorter v makes longer steps.",
            {
                "self.v = nn.Parameter(v)": (
                    "self.v = nn.Parameter(v / v.norm(dim=1, keepdim=True) / std[:, None])"
                )
            },
        ),
        Mistake(
            "steps_too_long",
            "Your steps are too long: the loss rises. The effective rate goes with 1/‖v‖²; take a longer v.",
            {"self.v = nn.Parameter(v)": "self.v = nn.Parameter(0.3 * v)"},
        ),
        Mistake(
            "batch_statistics",
            "You normalize activations with batch statistics. Then the answer to one image depends on the "
            "others; here each sample is on its own.",
            {
                "        return nn.functional.linear(x, weight, self.bias)": (
                    "        y = nn.functional.linear(x, weight, self.bias)\n"
                    "        return (y - y.mean(0)) / (y.std(0, correction=0) + 1e-5)"
                )
            },
        ),
        Mistake(
            "kaiming",
            "You initialize for ReLU, without looking at the data. The images are dim, and stay dim through "
            "every layer: at this learning rate nothing happens in 80 steps.",
            {
                "            step = Normalized(step, x)": (
                    '            nn.init.kaiming_normal_(step.weight, nonlinearity="relu")\n'
                    "            nn.init.zeros_(step.bias)"
                )
            },
        ),
        Mistake(
            "all_at_once",
            "You initialize each layer from what the layers before it made of the images *before* their own "
            "initialization. That is far too little, so the factors multiply up.",
            {
                "            step = Normalized(step, x)\n        steps.append(step)\n        x =": (
                    "            steps.append(Normalized(step, x))\n"
                    "        else:\n"
                    "            steps.append(step)\n"
                    "        x ="
                )
            },
        ),
    ),
    challenge=True,
    probe=_probe_challenge,
)

EXERCISES = (
    FORWARD,
    PREDICT,
    BUG_TRANSPOSED,
    INITIALIZE,
    BUG_DECAY,
    BACKWARD,
    LAYER,
    CHECKPOINT,
    CHALLENGE,
)
