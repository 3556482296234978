# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Weight Normalization
#
# $$
# w = g \, \frac{v}{\lVert v \rVert}
# $$
#
# Write every weight vector as a length times a direction, and learn the two apart. Nothing is done to an
# activation. Tim Salimans and Diederik Kingma published it in [2016](https://arxiv.org/abs/1602.07868).
#
# In this chapter you derive it forward and backward, see why the length of $v$ only ever grows, build the layer, load
# checkpoints from torch and into it, and find out which part of its reputation is the parameterization and which is
# the initialization that came with it. Then you write it yourself, graded.
#
# You need: Python, PyTorch tensors, the chain rule. The chapter runs top to bottom in under a minute, on a CPU
# or a GPU.

# %% tags=["remove-cell"]
# Installs the course's package where it is missing, on Colab for instance.
# An installed torch or numpy stays exactly as it is.
import importlib.util

if importlib.util.find_spec("normtutor") is None:
    import importlib.metadata
    import pathlib
    import subprocess
    import sys
    import tempfile

    address = "git+https://github.com/normtutor/normtutor"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", address, "--constraint"]
    present = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in present]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "pins.txt")
        file.write_text("\n".join(pins))
        done = subprocess.run([*pip, str(file)], capture_output=True, text=True)
    if done.returncode != 0:
        message = "Installing the package failed. Is torch 2.6 or newer? pip says:\n"
        raise RuntimeError(message + done.stderr)
    importlib.invalidate_caches()

# %% [markdown]
# ## What it is for
#
# The other techniques of this course measure activations, and divide by what they find. That couples things: the
# samples of a batch in Batch Normalization, the units of a layer in Layer Normalization. Weight Normalization measures the
# *weights*. They are the same for every sample, so nothing is coupled, training and inference are the same function,
# and a batch of one is as good as any.
#
# It has no index set $S_i$, and no row in this course's catalog of techniques: there is no layer to put between two others.
# It replaces the linear layer or the convolution itself.

# %%
import copy
import warnings

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm as torch_weight_norm

from normtutor import functional, layers
from normtutor.lab import accuracy, digits, line_chart, train, use_style
from normtutor.networks import MLP

use_style()
BLUE, GREY, ORANGE, AMBER = "#0072B2", "#6e6e6e", "#D55E00", "#E69F00"
GREEN = "#009E73"
data = digits()
inputs, test_inputs = data.train_images.flatten(1), data.test_images.flatten(1)

# %% [markdown]
# ## The problem, felt
#
# A multilayer perceptron with eight hidden layers, on the 8×8 digits of scikit-learn. Two hundred steps of plain
# gradient descent, learning rate 0.01. Batch Normalization makes it train; but show it one image at a time, as in
# online or reinforcement learning, and it has no variance to divide by.

# %%
SIZES = [64] + [64] * 8 + [10]


def deep_network(norm="none", linear=nn.Linear, initialize=False):
    torch.manual_seed(0)
    network = MLP(SIZES, norm, linear=linear)
    if initialize:
        network.initialize(inputs[:256])  # explained below
    return network


right = {}
for name, network in {
    "plain": deep_network(),
    "batch normalization": deep_network("batch"),
    "weight normalization": deep_network(linear=layers.WeightNormLinear),
    "the same, initialized from data": deep_network(
        linear=layers.WeightNormLinear, initialize=True
    ),
}.items():
    train(network, inputs, data.train_labels, steps=200, lr=0.01)
    right[name] = accuracy(network, test_inputs, data.test_labels)
    try:
        network.train()(inputs[:1])
        alone = "takes one image"
    except ValueError:
        alone = "refuses one image"
    print(f"{name:32}{right[name]:6.1%} of the test digits, {alone}")

assert right["plain"] < 0.3 and right["weight normalization"] < 0.3
assert right["the same, initialized from data"] > 0.8

# %% [markdown]
# Guessing gives 10 %. Look at the last two lines: the reparameterization *alone* changed nothing, and the same
# layers after an *initialization from data* train at this rate. Keep the question in mind: what does
# $g\,v/\lVert v \rVert$ do, and what does the initialization do? The chapter takes them apart.

# %% [markdown]
# ## The forward formula
#
# One unit computes $y = w \cdot x + b$. Give $w$ a length $g$ of its own (Salimans & Kingma 2016, equation 2):
#
# $$
# w = g \, \frac{v}{\lVert v \rVert}, \qquad \lVert v \rVert = \sqrt{\textstyle\sum_j v_j^2}
# $$
#
# so that $\lVert w \rVert = |g|$ whatever $v$ is. A layer has many units; its weight is a tensor, and `dim` names the
# axis whose indices have a length each. The norm runs over all other axes:
#
# | layer | weight | `dim` | $g$ |
# |---|---|---|---|
# | linear | $(C_{out}, C_{in})$ | 0 | $(C_{out}, 1)$ |
# | convolution | $(C_{out}, C_{in}, K, K)$ | 0 | $(C_{out}, 1, 1, 1)$ |
# | transposed convolution | $(C_{in}, C_{out}, K, K)$ | 1 | $(1, C_{out}, 1, 1)$ |
# | any, one length for all | any | None | $()$ |
#
# Mind the third line. A transposed convolution has its output axis second, and torch's default, `dim=0`, gives a
# length to each *input* channel. That runs and trains; it just is not what the formula says of a unit. An
# exercise lets you spot it.


# %%
def forward(v, g, dim=0):
    """g v / ‖v‖, with one length for each index of axis `dim`."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    length = v.square().sum(axes, keepdim=dim is not None).sqrt()
    return g * v / length


# %% [markdown]
# By hand, for two units: $v = (3, 4)$ has length 5, so with $g = 10$ the weight is $(6, 8)$. And $v = (30, 40)$ with
# $g = 10$? The same: the length of $v$ is divided out. A negative $g$ turns the vector round.

# %% tags=["nbval-check-output"]
v = torch.tensor([[3.0, 4.0], [30.0, 40.0], [3.0, 4.0]])
g = torch.tensor([[10.0], [10.0], [-10.0]])
print(forward(v, g))

# %% [markdown]
# Two consequences, which are the whole chapter in a nutshell: scaling $v$ changes nothing, so the loss cannot see the length of
# $v$; and scaling $g$ scales the unit's output, so **pre-activations are as large as $g$ and the input
# make them**. Weight Normalization does not normalize what comes out.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
v, g = torch.randn(5, 64, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
x = data.test_images.flatten(1).double()
w = forward(v, g)
print("‖w‖ is g:", torch.allclose(w.norm(dim=1, keepdim=True), g))
print("7 v gives the same w:", torch.allclose(forward(7 * v, g), w))
print("7 g gives 7 y:", torch.allclose(x @ forward(v, 7 * g).T, 7 * x @ w.T))
t = x @ w.T
print("outputs of mean 0:", torch.allclose(t.mean(0), torch.zeros_like(t[0]), atol=0.01))

# %% [markdown]
# ## The backward pass
#
# Let $r = \nabla_w L$ be the gradient that arrives at the weight of one unit, and $\hat{v} = v / \lVert v \rVert$ the
# unit vector. Two gradients are wanted. Step by step:
#
# **1. The length.** $w = g \hat{v}$ is linear in $g$, so
#
# $$
# \nabla_g L = r \cdot \hat{v} = \frac{r \cdot v}{\lVert v \rVert}
# $$
#
# the part of $r$ along the direction.
#
# **2. The norm** moves with $v$ by
#
# $$
# \frac{\partial \lVert v \rVert}{\partial v_k}
# = \frac{2 v_k}{2 \sqrt{\sum_j v_j^2}} = \hat{v}_k
# $$
#
# **3. The unit vector** $\hat{v}_j = v_j \lVert v \rVert^{-1}$ moves, by the product rule, with $\delta_{jk} = 1$ if $j = k$,
# else 0:
#
# $$
# \begin{aligned}
# \frac{\partial \hat{v}_j}{\partial v_k}
# &= \frac{\delta_{jk}}{\lVert v \rVert} - \frac{v_j}{\lVert v \rVert^2} \hat{v}_k \\
# &= \frac{1}{\lVert v \rVert} \left( \delta_{jk} - \hat{v}_j \hat{v}_k \right)
# \end{aligned}
# $$
#
# **4. Sum over the elements of $w$**, $\partial L / \partial v_k = \sum_j r_j \, g \, \partial \hat{v}_j / \partial v_k$:
#
# $$
# \nabla_v L = \frac{g}{\lVert v \rVert} \big( r - (r \cdot \hat{v}) \, \hat{v} \big)
# $$
#
# That is equation 3 of the paper. **Scaled** by $g / \lVert v \rVert$, and **projected**: the part along $v$ is
# gone. It went to $g$. In code, as a function that autograd can call:


# %%
class OneVector(torch.autograd.Function):
    """g v / ‖v‖ of one vector, its backward pass the closed form."""

    @staticmethod
    def forward(ctx, v, g):
        length = v.square().sum().sqrt()
        ctx.save_for_backward(v / length, g / length)
        return g * v / length

    @staticmethod
    def backward(ctx, r):
        unit, factor = ctx.saved_tensors
        along = r @ unit
        return factor * (r - along * unit), along


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
v = torch.randn(12, dtype=torch.float64, requires_grad=True)
g = torch.randn((), dtype=torch.float64, requires_grad=True)
r = torch.randn(12, dtype=torch.float64)
closed_form = torch.autograd.grad(OneVector.apply(v, g), (v, g), r)
by_autograd = torch.autograd.grad(forward(v, g, dim=None), (v, g), r)
for name, ours, theirs in zip(("v", "g"), closed_form, by_autograd, strict=True):
    print(f"closed form equals autograd, {name}:", torch.allclose(ours, theirs, atol=1e-12))
equal = torch.autograd.gradcheck(OneVector.apply, (v, g))
print("closed form equals finite differences:", equal)
print("∇v ⟂ v:", abs(closed_form[0] @ v).item() < 1e-12)

# %% [markdown]
# Compare with Batch Normalization, whose gradient loses its mean and its part along $\hat{x}$: the same geometry, in
# weight space. What is divided out forward is projected out backward.
#
# ### The length of v only grows
#
# A step of gradient descent, $v' = v - \eta \nabla_v L$, goes at a right angle to $v$. Pythagoras gives the new length:
#
# $$
# \lVert v' \rVert^2 = \lVert v \rVert^2 + \eta^2 \lVert \nabla_v L \rVert^2
# $$
#
# It never shrinks. Measured, over a real training in float64: at every step and for every unit, the growth of
# $\lVert v \rVert^2$ beside $\eta^2 \lVert \nabla_v L \rVert^2$.

# %% tags=["nbval-check-output"]
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
network = MLP([64, 32, 10], "none", linear=layers.WeightNormLinear).double()
optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
normalized = [m for m in network if isinstance(m, layers.WeightNormLinear)]
error, shrunk = 0.0, 0
for step in range(100):
    batch = torch.randint(len(inputs), (64,))
    loss = cross_entropy(network(inputs[batch].double()), data.train_labels[batch])
    optimizer.zero_grad()
    loss.backward()
    before = [m.weight_v.detach().square().sum(1) for m in normalized]
    optimizer.step()
    for module, old in zip(normalized, before, strict=True):
        grown = module.weight_v.detach().square().sum(1) - old
        predicted = 0.5**2 * module.weight_v.grad.square().sum(1)
        error = max(error, (grown - predicted).abs().max().item())
        shrunk += int((grown < -1e-12).sum())
print("growth of ‖v‖² is η²‖∇v‖², to rounding:", error < 1e-12)
print("lengths that shrank in 100 steps:", shrunk)

# %% [markdown]
# ### Why it should: the effective step
#
# What does a step on $v$ do to the weight? To first order, with $P = I - \hat{v}\hat{v}^\top$,
#
# $$
# \begin{aligned}
# \Delta w &\approx \frac{g}{\lVert v \rVert} P \, \Delta v \\
# &= - \eta \, \Big( \frac{g}{\lVert v \rVert} \Big)^2 P \, r
# \end{aligned}
# $$
#
# So $w$ moves with the **effective learning rate** $\eta \, (g / \lVert v \rVert)^2$. If the rate is too large, $\nabla_v$ is
# large, $v$ grows, the effective rate falls: it adjusts itself. The argument can be made exact. Since $\nabla_v \propto 1/\lVert v \rVert$,
# the squared length grows by $\eta^2 c / \lVert v \rVert^2$ a step, hence
# $\lVert v \rVert^4 \approx \lVert v_0 \rVert^4 + 2 \eta^2 c \, t$. After a while the start is forgotten, and
# $\eta / \lVert v \rVert^2 \approx 1 / \sqrt{2 c t}$, **in which $\eta$ no longer occurs**.
#
# First the exact part: scaling $v$ by 10 and its learning rate by 100 is the same training.


# %%
def train_apart(network, steps, lr_v, lr_rest):
    """Gradient descent with one learning rate for v, one for g and the biases."""
    named = list(network.named_parameters())
    v = [p for name, p in named if name.endswith("weight_v")]
    rest = [p for name, p in named if not name.endswith("weight_v")]
    groups = [{"params": v, "lr": lr_v}, {"params": rest, "lr": lr_rest}]
    optimizer = torch.optim.SGD(groups)
    generator, effective = torch.Generator().manual_seed(0), []
    first = next(m for m in network if isinstance(m, layers.WeightNormLinear))
    kind = first.weight_v.dtype
    for _ in range(steps):
        ratio = first.weight_g / first.weight_v.norm(dim=1, keepdim=True)
        effective.append(lr_v * ratio.square().mean().item())
        batch = torch.randint(len(inputs), (64,), generator=generator)
        logits = network(inputs[batch].to(kind))
        loss = cross_entropy(logits, data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return effective


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
a = MLP([64, 32, 10], "none", linear=layers.WeightNormLinear).double()
b = copy.deepcopy(a)
with torch.no_grad():
    for module in b:
        if isinstance(module, layers.WeightNormLinear):
            module.weight_v *= 10
train_apart(a, 50, lr_v=0.1, lr_rest=0.1)
train_apart(b, 50, lr_v=0.1 * 100, lr_rest=0.1)
x = test_inputs.double()
print("v × 10 and its rate × 100, same logits:", torch.allclose(a(x), b(x), atol=1e-9))

# %% [markdown]
# Then the self-adjustment. One hidden layer, initialized from data, four learning rates that span a factor of a
# thousand. Only $v$ is trained at that rate; $g$ and the biases stay put.

# %%
rates, effective, only_v, everything = (0.1, 1.0, 10.0, 100.0), {}, {}, {}
for lr in rates:
    torch.manual_seed(0)
    network = MLP([64, 64, 10], "none", linear=layers.WeightNormLinear)
    network.initialize(inputs[:256])
    together = copy.deepcopy(network)
    effective[f"η = {lr:g}"] = train_apart(network, 150, lr_v=lr, lr_rest=0.0)
    only_v[lr] = accuracy(network, test_inputs, data.test_labels)
    train_apart(together, 150, lr_v=lr, lr_rest=lr)
    everything[lr] = accuracy(together, test_inputs, data.test_labels)

print("learning rate           " + "".join(f"{lr:>8g}" for lr in rates))
print("only v trained          " + "".join(f"{only_v[lr]:8.1%}" for lr in rates))
print("v, g and biases trained " + "".join(f"{everything[lr]:8.1%}" for lr in rates))
assert min(only_v[lr] for lr in rates) > 0.75, "v should tolerate every rate here"
assert everything[100.0] < 0.3, "g and the biases should not"

# %% mystnb={"image": {"alt": "Effective learning rate of the first layer against training steps, both logarithmic, for four learning rates from 0.1 to 100. They start a factor of a thousand apart and come together within a few steps."}}
line_chart(
    {
        name: (range(1, len(values) + 1), values) for name, values in effective.items()
    },
    xlabel="training step (log)",
    ylabel="effective rate η(g/‖v‖)² (log)",
    xscale="log",
    yscale="log",
    title="The length of v takes too large a rate back",
    colours=dict(zip(effective, (GREY, BLUE, ORANGE, GREEN), strict=True)),
)

# %% [markdown]
# Both halves matter. **The direction $v$ is safe** at rates a thousand times apart: section 2.1 of the paper is right about it.
# **$g$ and the biases are not**: they are ordinary parameters, with no length to grow. Train them at the same large rate,
# as everybody does, and they blow up. Remember this when a claim below fails.

# %% [markdown]
# ## Building the layer
#
# The package's function is the small cell, with the half-precision rule and the checks added:

# %%
from normtutor.exercises import check, progress, statement
from normtutor.lab import show_source

show_source(functional.weight_norm, functional.weight_length)

# %% [markdown]
# The layers keep the plain layer's forward pass; its `weight` becomes a property, computed anew each time from the
# parameters `weight_g` and `weight_v`. A new layer has $g = \lVert v \rVert$: it computes what the plain one would.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
ours = layers.WeightNormLinear(64, 10)
torch.manual_seed(0)
plain = nn.Linear(64, 10)
print(ours)
for key, value in ours.state_dict().items():
    print(f"{key:10} {tuple(value.shape)!s:9} {value.dtype}")
print("starts as the plain layer:", torch.allclose(ours(test_inputs), plain(test_inputs)))
print(layers.WeightNormConvTranspose1d(8, 4, 3, dim=1).weight_g.shape)

# %% [markdown]
# **Checkpoints.** Weight Normalization has had two homes in torch: the old hook `torch.nn.utils.weight_norm`, with the keys
# `weight_g` and `weight_v`, and today's `torch.nn.utils.parametrizations.weight_norm`, with
# `parametrizations.weight.original0` and `…original1`. (Number 0 is $g$.) A state dict of either loads into the
# package's layers, and theirs loads into torch's:

# %% tags=["nbval-check-output"]
theirs = torch_weight_norm(nn.Linear(64, 10))
print("torch's keys:", *sorted(theirs.state_dict()))
with torch.no_grad():
    for parameter in theirs.parameters():
        parameter.normal_()
ours.load_state_dict(theirs.state_dict())
print("from torch:", torch.allclose(ours(test_inputs), theirs(test_inputs), atol=1e-5))

fresh = torch_weight_norm(nn.Linear(64, 10))
fresh.load_state_dict(ours.state_dict())
print("into torch:", torch.allclose(ours(test_inputs), fresh(test_inputs), atol=1e-5))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says that the hook is deprecated
    old = nn.utils.weight_norm(nn.Linear(64, 10))
print("the old hook's keys:", *sorted(old.state_dict()))
ours.load_state_dict(old.state_dict())
print("from the old hook:", torch.allclose(ours(test_inputs), old(test_inputs), atol=1e-5))

# %% [markdown]
# The small cell, the layer, and torch agree, for every kind of layer and every `dim`, in value and in gradient:

# %% tags=["nbval-check-output"]
cases = (
    (layers.WeightNormLinear, (6, 4), 0, (3, 6)),
    (layers.WeightNormLinear, (6, 4), None, (3, 6)),
    (layers.WeightNormConv1d, (6, 4, 3), 0, (2, 6, 9)),
    (layers.WeightNormConv2d, (6, 4, 3), 0, (2, 6, 5, 5)),
    (layers.WeightNormConvTranspose1d, (6, 4, 3), 1, (2, 6, 9)),
    (layers.WeightNormConvTranspose2d, (6, 4, 3), 1, (2, 6, 5, 5)),
)
torch.manual_seed(0)
for kind, sizes, dim, shape in cases:
    ours = kind(*sizes, dim=dim, dtype=torch.float64)
    theirs = torch_weight_norm(kind.plain(*sizes, dtype=torch.float64), dim=dim)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    small = forward(ours.weight_v, ours.weight_g, dim)
    r = torch.randn_like(small)
    parameters = (ours.weight_v, ours.weight_g)
    same_gradient = all(
        torch.allclose(a, b, atol=1e-12)
        for a, b in zip(
            torch.autograd.grad(ours.weight, parameters, r),
            torch.autograd.grad(small, parameters, r),
            strict=True,
        )
    )
    print(
        f"{kind.__name__:26} dim {dim!s:5}"
        f"weight {torch.allclose(small, ours.weight)}, gradients {same_gradient}, "
        f"torch {torch.allclose(ours(x), theirs(x))}"
    )

# %% [markdown]
# ## Numerics
#
# **v = 0** has no direction. The formula divides zero by zero, and the NaN spreads from one unit to every
# output after it. A checkpoint with a pruned unit is all it takes. The package's layers look when $v$ is
# set (made, loaded, initialized, made plain), where looking is cheap, and say what is wrong:

# %% tags=["nbval-check-output"]
pruned = layers.WeightNormLinear(3, 4).state_dict()
pruned["weight_v"][1] = 0
theirs = torch_weight_norm(nn.Linear(3, 4))
theirs.load_state_dict(pruned)
print("torch:", theirs(torch.ones(1, 3)).isnan().flatten().tolist())
try:
    layers.WeightNormLinear(3, 4).load_state_dict(pruned)
except ValueError as error:
    print("normtutor:", error)

# %% [markdown]
# (To prune a unit, set its $g$ to 0, not its $v$.)
#
# **Half precision.** The square of 300 is 90000, and float16 ends at 65504. Sum squares in float16 and
# the length is infinite, the weight silently 0. The function computes in float32, and so does torch.
#
# **float32 has the same wall, only further out:** its squares overflow at about $10^{19}$ and vanish below
# $10^{-23}$. Neither package nor torch guards against it, and neither needs to: only the direction of $v$ counts,
# so no sane $v$ is there. If yours might be, divide by the largest element first. That is exact, since the norm
# is homogeneous, $\lVert v \rVert = s \, \lVert v / s \rVert$:


# %%
def safe_length(v):
    """‖v‖ of each row, without overflow or underflow of the squares."""
    scale = v.abs().amax(dim=1, keepdim=True)
    return scale * (v / scale).square().sum(dim=1, keepdim=True).sqrt()


def in_half(v, g):
    """The formula as it stands, in the dtype of v."""
    return g * v / v.square().sum(dim=1, keepdim=True).sqrt()


rivals = {
    "the formula as it stands": in_half,
    "torch": lambda v, g: torch._weight_norm(v, g, 0),
    "normtutor": functional.weight_norm,
    "with the safe length": lambda v, g: g * (v / safe_length(v)),
}
torch.manual_seed(0)
noise = torch.randn(8, 64, dtype=torch.float64)
trials = [(torch.float16, 300.0), (torch.float32, 1.0)]
trials += [(torch.float32, scale) for scale in (1e-25, 1e25)]
errors = {}
print("largest error of w (g = 1); nan or inf: not even a number")
print(f"{'':26}" + "".join(f"{str(t)[6:]:>9}·{s:<6.0e}" for t, s in trials))
for name, compute in rivals.items():
    row = []
    for kind, scale in trials:
        v = (noise * scale).to(kind)
        truth = v.double() / v.double().norm(dim=1, keepdim=True)
        w = compute(v, torch.ones(8, 1, dtype=kind)).double()
        row.append((w - truth).abs().max().item())
    errors[name] = row
    print(f"{name:26}" + "".join(f"{error:16.1e}" for error in row))
assert errors["normtutor"][0] < 1e-3 < errors["the formula as it stands"][0]
assert max(errors["with the safe length"][1:]) < 1e-6

# %% [markdown]
# ## Parity
#
# The course's parity report covers the techniques of the catalog; here is the same question for Weight
# Normalization, in small. Output and both gradients, against the closed form in extended precision on the same
# inputs, for four number formats and three choices of `dim`. The unit is one unit in the last place of the format, relative to
# the largest value. The rule is the same too: our error may be twice torch's plus 4 units.

# %%
import numpy as np

from normtutor.lab.text import table


def truth(v, g, r, dim):
    """w, ∂v and ∂g by the closed form, in long double."""
    v, g, r = (t.double().numpy().astype(np.longdouble) for t in (v, g, r))
    axes = tuple(axis for axis in range(v.ndim) if axis != dim)
    length = np.sqrt(np.square(v).sum(axis=axes, keepdims=dim is not None))
    unit = v / length
    along = (r * unit).sum(axis=axes, keepdims=dim is not None)
    return g * unit, g / length * (r - along * unit), along


def by_autograd(compute, v, g, r, dim):
    v, g = v.clone().requires_grad_(), g.clone().requires_grad_()
    w = compute(v, g, dim)
    return (w.detach(), *torch.autograd.grad(w, (v, g), r))


def torchs(v, g, dim):
    return torch._weight_norm(v, g, -1 if dim is None else dim)


head, lines, ok = ["dtype", "quantity", "normtutor", "torch", "allowed"], [], True
for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    worst = {}
    for dim, shape in ((0, (64, 512)), (1, (48, 32, 3, 3)), (None, (16, 24))):
        torch.manual_seed(0)
        v, r = torch.randn(shape).to(kind), torch.randn(shape).to(kind)
        g_shape = [] if dim is None else [1] * len(shape)
        if dim is not None:
            g_shape[dim] = shape[dim]
        g = (torch.rand(g_shape) + 0.5).to(kind)
        right = truth(v, g, r, dim)
        for name, compute in (("ours", functional.weight_norm), ("torch", torchs)):
            came = by_autograd(compute, v, g, r, dim)
            for quantity, got, want in zip(("w", "∂v", "∂g"), came, right, strict=True):
                error = np.abs(got.double().numpy() - want).max() / np.abs(want).max()
                key = quantity, name
                ulps = float(error / torch.finfo(kind).eps)
                worst[key] = max(worst.get(key, 0.0), ulps)
    for quantity in ("w", "∂v", "∂g"):
        mine, other = worst[quantity, "ours"], worst[quantity, "torch"]
        allowed = 2 * other + 4
        ok &= mine <= allowed
        numbers = [f"{value:.2f}" for value in (mine, other, allowed)]
        lines.append([str(kind).removeprefix("torch."), quantity, *numbers])
print(table(head, lines))
assert ok
