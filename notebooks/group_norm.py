# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Group Normalization
#
# $$
# y = \gamma \, \frac{x - \mu_G}{\sqrt{\sigma_G^2 + \varepsilon}} + \beta
# $$
#
# Cut the channels of *one sample* into groups, and standardize each group by itself. Yuxin Wu and Kaiming
# He published it in [2018](https://arxiv.org/abs/1803.08494), for training with batches too small for
# Batch Normalization.
#
# In this chapter you feel what a small batch does, derive the formula forward and backward and see where
# it differs from its relatives, find a bug in a famous library, choose the number of groups, and write it
# all yourself, graded.
#
# You need: the chapter on [Batch Normalization](batch_norm.ipynb), whose derivation this one uses. It runs
# top to bottom in under a minute, on a CPU or a GPU.

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
# Batch Normalization needs a batch, and a batch needs memory. Detection, segmentation, video and 3-D scans
# leave room for one or two samples on a device, too few to estimate a mean. Group Normalization takes its
# statistics from **one sample**, over groups of channels. Training and inference are the same function;
# there are no running statistics, and no sample's result depends on its company.

# %%
import torch
from torch import nn

from normtutor.lab import (
    accuracy,
    digits,
    index_set,
    line_chart,
    one_thread,
    train,
    use_style,
)

use_style()
BLUE, GREEN, GREY, ORANGE = "#0072B2", "#009E73", "#6e6e6e", "#D55E00"

# %% mystnb={"image": {"alt": "Two blocks of N samples by C channels by H·W positions. Batch Normalization colours one channel in all samples. Group Normalization colours, in one sample, a run of neighbouring channels at all positions."}}
index_set("batch", "group")

# %% [markdown]
# ## The problem, felt
#
# The course's convolutional network, with Batch Normalization, and one image:

# %% tags=["nbval-check-output"]
from normtutor.networks import CNNWithBatchNorm, CNNWithGroupNorm

data = digits()
image = data.train_images[:1]
try:
    CNNWithBatchNorm(image_size=8)(image)
except ValueError as error:
    print("Batch Normalization:", error)
print("Group Normalization:", tuple(CNNWithGroupNorm(image_size=8)(image).shape))

# %% [markdown]
# One image cannot train it at all. Two can, and that is worse, because nothing complains. Figure 1 of [Wu
# & He 2018](https://arxiv.org/abs/1803.08494) shows the error of a ResNet-50 on ImageNet against the
# number of images per device: at 2 images, Group Normalization's is 10.6 points below Batch
# Normalization's. Here is the small version. The optimizer's batch stays at 32; only the number $n$ of
# samples that supply the statistics shrinks.

# %%
from normtutor.lab import claims

outcome = claims.run("group_norm.statistics_batch")
print(outcome)
print(claims.recorded("group_norm.statistics_batch"))
assert outcome.holds

# %% mystnb={"image": {"alt": "Test error against the number of samples that supply the statistics, 32 and 2. Batch Normalization rises steeply towards 2; Group Normalization is a low level line."}}
runs = {"BatchNorm": outcome.measured["batch"], "GroupNorm": outcome.measured["error"]}
line_chart(
    {
        name: ([2, 32], [100 * by_size["2"][0], 100 * by_size["32"][0]])
        for name, by_size in runs.items()
    },
    xlabel="samples that supply the statistics (log)",
    ylabel="test error (%)",
    xscale="log",
    title="Group Normalization does not ask how many samples there are",
    colours={"BatchNorm": BLUE, "GroupNorm": GREEN},
)

# %% [markdown]
# That the line is level needs no experiment: splitting a batch changes nothing in the formula. What the
# experiment adds is the price: after so short a training, with 32 samples, Batch Normalization is ahead.
#
# ## The forward formula
#
# Write an element's index as $i = (i_N, i_C, i_H, i_W)$ and let $G$ divide $C$. Group Normalization gives
# $i$ the elements of its own sample whose channel is in its group (Wu & He 2018, equation 7):
#
# $$
# \begin{aligned}
# S_i = \Big\lbrace k \;\Big|\; & k_N = i_N, \\
# & \Big\lfloor \frac{k_C}{C/G} \Big\rfloor = \Big\lfloor \frac{i_C}{C/G} \Big\rfloor \Big\rbrace
# \end{aligned}
# $$
#
# with $m = |S_i| = \frac{C}{G} H W$. Over this set, mean and biased variance, as in [Batch
# Normalization](batch_norm.ipynb):
#
# $$
# \begin{aligned}
# \mu_i &= \frac{1}{m} \sum_{k \in S_i} x_k, \quad
# \sigma_i^2 = \frac{1}{m} \sum_{k \in S_i} (x_k - \mu_i)^2 \\
# \hat{x}_i &= \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \varepsilon}}, \quad
# y_i = \gamma_{i_C} \hat{x}_i + \beta_{i_C}
# \end{aligned}
# $$
#
# | symbol | meaning | shape |
# |---|---|---|
# | $x, \hat{x}, y$ | input, standardized, output | $(N, C, *)$: any number of further axes |
# | $G$ | number of groups, `num_groups`, a divisor of $C$ | number |
# | $\mu, \sigma^2$ | mean and biased variance | $(N, G)$ |
# | $\gamma, \beta$ | scale and shift **per channel**, not per group | $(C)$ |
#
# Two details of the formula are the two classic bugs. The floor says that groups are **contiguous**:
# channels $0 \dots C/G - 1$, then the next $C/G$. And $\gamma, \beta$ carry the channel's index, while
# $\mu, \sigma$ carry the group's. In code, give the groups an axis of their own:


# %%
def forward(x, num_groups, gamma, beta, eps=1e-5):
    """Group Normalization of (N, C, *), as the formula says."""
    groups = x.unflatten(1, (num_groups, -1))  # (N, C, *) → (N, G, C/G, *)
    index_set = list(range(2, groups.dim()))  # every axis but sample and group
    mean = groups.mean(index_set, keepdim=True)
    var = (groups - mean).square().mean(index_set, keepdim=True)
    x_hat = ((groups - mean) / torch.sqrt(var + eps)).flatten(1, 2)
    per_channel = [-1] + [1] * (x.dim() - 2)
    return gamma.view(per_channel) * x_hat + beta.view(per_channel)


# %% [markdown]
# By hand: one sample, four channels of one value, two groups. Group 0 holds 1 and 5: mean 3, variance 4,
# so $\hat{x} = \mp 1$ (with $\varepsilon = 0$). Group 1 holds 30 and 70: the same $\hat{x}$. Then $\gamma$
# and $\beta$, per channel.

# %% tags=["nbval-check-output"]
x = torch.tensor([[1.0, 5.0, 30.0, 70.0]])
print(forward(x, 2, torch.ones(4), torch.zeros(4), eps=0.0))
gamma, beta = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.0, 0.0, 100.0])
print(forward(x, 2, gamma, beta, eps=0.0))

# %% [markdown]
# Which elements share statistics? Do not trust a picture, ask the code: change one element and see which
# outputs move.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
one, zero = torch.ones(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
changed = x.clone()
changed[1, 5, 0, 0] += 1.0
for num_groups in (1, 2, 4, 8):
    before, after = (forward(each, num_groups, one, zero) for each in (x, changed))
    moved = before != after
    samples = moved.any(3).any(2).any(1).nonzero().flatten().tolist()
    channels = moved.any(3).any(2).any(0).nonzero().flatten().tolist()
    print(
        f"G = {num_groups}: samples {samples}, channels {channels}, "
        f"{moved.sum()} outputs"
    )

# %% [markdown]
# The two ends are old acquaintances. **One group** is Layer Normalization over $(C, H, W)$; **as many
# groups as channels** is Instance Normalization:

# %% tags=["nbval-check-output"]
from normtutor import functional

as_layer = functional.layer_norm(x, x.shape[1:])
as_instance = functional.instance_norm(x)
print("G = 1 is LayerNorm:   ", torch.allclose(forward(x, 1, one, zero), as_layer))
print("G = C is InstanceNorm:", torch.allclose(forward(x, 8, one, zero), as_instance))

# %% [markdown]
# What does the layer not see? Any shift and any positive factor that a **whole group of one sample** gets.
# A factor on one *channel* of a group it does see, unlike Batch Normalization. Two consequences: a
# convolution's bias is not dead weight before Group Normalization (see *Pitfalls*), and a filter can gain
# influence by growing, at its neighbours' cost. Weight Standardization, below, takes that freedom away.

# %% tags=["nbval-check-output"]
y = forward(x, 2, one, zero)
whole, single = x.clone(), x.clone()
whole[0, :4] = 5 * whole[0, :4] + 7  # group 0 of sample 0
single[0, 0] = 5 * single[0, 0]  # channel 0 of sample 0
same = forward(whole, 2, one, zero)
print("a whole group, up to ε:", torch.allclose(same, y, atol=1e-4))
print(
    "one of its channels:   ",
    torch.allclose(forward(single, 2, one, zero), y, atol=1e-4),
)

# %% [markdown]
# ## The backward pass
#
# The derivation is Batch Normalization's, [step by step there](batch_norm.ipynb), since the formula is the
# same over another set. In one group, with $r = 1/\sqrt{\sigma^2 + \varepsilon}$ and the gradient
# $\hat{g}_i$ at $\hat{x}_i$:
#
# $$
# \begin{aligned}
# \frac{\partial L}{\partial x_k} = r \Big( \hat{g}_k
# &- \tfrac{1}{m} \textstyle\sum_{i \in S_k} \hat{g}_i \\
# &- \hat{x}_k \cdot \tfrac{1}{m} \textstyle\sum_{i \in S_k} \hat{g}_i \hat{x}_i \Big)
# \end{aligned}
# $$
#
# What differs is $\hat{g}$. From $y_i = \gamma_{i_C} \hat{x}_i + \beta_{i_C}$,
#
# $$
# \hat{g}_i = \gamma_{i_C} \, g_i, \qquad g_i = \frac{\partial L}{\partial y_i}
# $$
#
# In Batch Normalization $\gamma$ is one number for the whole set and may be pulled out of both sums. In a
# group **it differs from element to element, and must stay inside**. The parameters sum over everything
# that carries their channel, the batch included, though the statistics never cross it:
#
# $$
# \frac{\partial L}{\partial \beta_c} = \sum_{i:\, i_C = c} g_i, \qquad
# \frac{\partial L}{\partial \gamma_c} = \sum_{i:\, i_C = c} g_i \hat{x}_i
# $$
#
# For one group, its values in rows, one row per channel:


# %%
class OneGroup(torch.autograd.Function):
    """Group Normalization of one group (C/G, H·W), its backward pass the closed form."""

    @staticmethod
    def forward(ctx, x, gamma, beta, eps):
        var, mean = torch.var_mean(x, correction=0)
        r = torch.rsqrt(var + eps)
        x_hat = (x - mean) * r
        ctx.save_for_backward(x_hat, r, gamma)
        return gamma[:, None] * x_hat + beta[:, None]

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved_tensors
        g_hat = gamma[:, None] * g
        dx = r * (g_hat - g_hat.mean() - x_hat * (g_hat * x_hat).mean())
        return dx, (g * x_hat).sum(1), g.sum(1), None


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)  # 3 channels
gamma = torch.randn(3, dtype=torch.float64, requires_grad=True)
beta = torch.randn(3, dtype=torch.float64, requires_grad=True)
g = torch.randn(3, 5, dtype=torch.float64)

inputs = (x, gamma, beta)
closed_form = torch.autograd.grad(OneGroup.apply(*inputs, 1e-5), inputs, g)
by_autograd = torch.autograd.grad(forward(x[None], 1, gamma, beta)[0], inputs, g)
for name, ours, theirs in zip(("x", "γ", "β"), closed_form, by_autograd, strict=True):
    print(
        f"closed form equals autograd, {name}:",
        torch.allclose(ours, theirs, atol=1e-12),
    )
equal = torch.autograd.gradcheck(lambda *args: OneGroup.apply(*args, 1e-5), inputs)
print("closed form equals finite differences:", equal)

# %% [markdown]
# Now the classic bug, copied from a Batch Normalization kernel: subtract the means first, multiply by
# $\gamma$ last. With a fresh layer ($\gamma = 1$) every test passes; the first optimizer step makes it
# wrong.

# %% tags=["nbval-check-output"]


def gamma_last(x, gamma, g, eps=1e-5):
    r = torch.rsqrt(x.var(correction=0) + eps)
    x_hat = (x - x.mean()) * r
    return gamma[:, None] * r * (g - g.mean() - x_hat * (g * x_hat).mean())


for name, scale in (("γ = 1", torch.ones_like(gamma)), ("γ learned", gamma)):
    (right,) = torch.autograd.grad(OneGroup.apply(x, scale, beta, 1e-5), x, g)
    print(
        f"{name}: the shortcut is right:",
        torch.allclose(gamma_last(x, scale, g), right),
    )

# %% [markdown]
# ## Building the layer
#
# The package's function is the small cell with the half-precision rule; `standardize` is the one that all
# techniques share.

# %%
from normtutor import layers
from normtutor.exercises import check, progress, statement
from normtutor.lab import show_source

show_source(functional.group_norm)

# %%
show_source(layers.GroupNorm.forward)

# %% [markdown]
# State: two parameters, no buffer, no mode. It takes `torch.nn.GroupNorm`'s arguments and has its state
# dict.

# %% tags=["nbval-check-output"]
ours, theirs = layers.GroupNorm(2, 6), nn.GroupNorm(2, 6)
print(ours)
for key, value in ours.state_dict().items():
    print(f"{key:7} {tuple(value.shape)!s:5} {value.dtype}")
theirs.load_state_dict(ours.state_dict())

# %% [markdown]
# It agrees with the small cell for signals, images and volumes, in value and in gradient. An input
# $(N, C)$ is allowed, too: then a group's statistics run over its $C/G$ features alone, so $G = C$ would
# leave one value, and 0 for an output.

# %% tags=["nbval-check-output"]
from normtutor import catalog

for shape in ((4, 12), *catalog.technique("group").parity_shapes):
    num_groups = catalog.groups(shape[1])
    layer = layers.GroupNorm(num_groups, shape[1], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(-2, 2), layer.bias.uniform_(-2, 2)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    small = forward(x, layer.num_groups, layer.weight, layer.bias)
    same_value = torch.allclose(layer(x), small, atol=1e-12)
    gradients = [torch.autograd.grad(y, x, g)[0] for y in (layer(x), small)]
    same_gradient = torch.allclose(*gradients, atol=1e-12)
    print(f"{shape}, G = {layer.num_groups}: {same_value}, gradient {same_gradient}")

# %% [markdown]
# ## Numerics
#
# The one-pass variance $E[x^2] - E[x]^2$ loses its digits where the mean is large; the [chapter on Batch
# Normalization](batch_norm.ipynb) measures how. Here you meet it in the wild. The forward kernel of
# [Liger-Kernel's
# GroupNorm](https://github.com/linkedin/Liger-Kernel/blob/main/src/liger_kernel/ops/group_norm.py)
# computes its variance this way (an exercise lets you repair it). And so does torch's own CPU kernel, for
# one memory format: `channels_last`, the one recommended for convolutions (for volumes `channels_last_3d`).
# Compare with float64:


# %%
def output_error(normalize, offset, memory_format):
    """Largest error of x̂ against float64, relative to the largest x̂."""
    torch.manual_seed(0)
    x = (torch.randn(4, 32, 14, 14) + offset).contiguous(memory_format=memory_format)
    truth = forward(x.double(), 8, torch.ones(32), torch.zeros(32))
    error = (normalize(x, 8).double() - truth).abs().max() / truth.abs().max()
    return error.item()


offsets = [1.0, 1e1, 1e2, 1e3, 1e4]
rivals = {
    "torch, contiguous": (nn.functional.group_norm, torch.contiguous_format),
    "torch, channels_last": (nn.functional.group_norm, torch.channels_last),
    "normtutor, contiguous": (functional.group_norm, torch.contiguous_format),
    "normtutor, channels_last": (functional.group_norm, torch.channels_last),
}
errors = {
    name: [output_error(function, offset, layout) for offset in offsets]
    for name, (function, layout) in rivals.items()
}
print(f"{'mean/std':26}" + "".join(f"{offset:>10.0e}" for offset in offsets))
for name, row in errors.items():
    print(f"{name:26}" + "".join(f"{error:10.1e}" for error in row))
assert max(errors["normtutor, contiguous"] + errors["normtutor, channels_last"]) < 1e-5

# %% mystnb={"image": {"alt": "Relative error of the output against mean over standard deviation, both logarithmic. torch in channels_last rises with the square of the offset and passes 1; torch contiguous rises slowly; normtutor in both formats stays at rounding error."}}
line_chart(
    {name: (offsets, row) for name, row in errors.items()},
    xlabel="mean / std (log)",
    ylabel="relative error (log)",
    xscale="log",
    yscale="log",
    title="The memory format decides how many digits are left",
    colours=dict(zip(errors, (GREY, ORANGE, BLUE, GREEN), strict=True)),
)

# %% [markdown]
# A defect of a library is news with a date. This cell watches whether it is still true where you are:

# %%
error = errors["torch, channels_last"][offsets.index(1e3)]
state = "still so" if error > 0.01 else "mended"
print(
    f"torch {torch.__version__}, channels_last at mean/std = 1000: {error:.1%} wrong: {state}"
)

# %% [markdown]
# If it says *mended*, read the paragraphs above as history. (A test of the course fails on the day it is
# mended, so that this text is brought up to date.) The same kernel has a second defect, which this
# notebook does not show, because it ends the process: in torch 2.13, `F.group_norm` on a channels-last CPU
# tensor, with a gradient asked for the weight alone and neither for the input nor for the bias, is a
# segmentation fault. You meet it where only $\gamma$ learns and everything before the layer is frozen.
#
# What to do about a large mean? Subtract it early (normalize your images), or use a layer that subtracts
# before it squares.
#
# ## Parity
#
# The rule is the course's: against the closed form in extended precision, our error may be twice torch's
# plus 4 units in the last place. Outputs and gradients, four number formats, contiguous, strided and
# channels-last inputs, means up to $10^4$ standard deviations.

# %%
from normtutor.lab import parity

report = parity("group")
print(report.table(by=("device", "dtype", "mode")))
assert report.ok

# %% [markdown]
# The hard case, mean/std = $10^4$: the error of the output. Compare the layouts. (In the channels-last rows
# torch is wrong by so much that twice its error asks nothing of us. There, read our column.)

# %%
print(report.table(by=("dtype", "layout"), quantity="output", offset=1e4, mode="train"))

# %% [markdown]
# ## Timing
#
# The bound is bytes ÷ copy bandwidth, as in the chapter on [Batch Normalization](batch_norm.ipynb). As long
# as one *group* of $\frac{C}{G} H W$ values fits in the cache, or in one block of a GPU, $x$ is read once,
# even where the whole tensor is larger. Then Group Normalization moves **2 tensors forward and 3 backward**,
# where Batch Normalization needs 3 and 5.

# %%
from normtutor.lab import bench

sweep = bench("group")
print(sweep)

# %% mystnb={"image": {"alt": "Fraction of the copy bandwidth reached against tensor size, for our eager layer and torch.nn, forward and forward plus backward. torch.nn lies above the eager layer at every size."}}
sweep.plot()

# %% [markdown]
# The eager layer makes a pass over memory for every operation; `make bench` shows what `torch.compile`
# makes of the same lines. The record of a GPU:

# %%
from normtutor.lab import recorded

print(recorded("group"))

# %% [markdown]
# ## Memory
#
# The parameters are $2C$ numbers, with no buffers: Batch Normalization has $2C$ and, in buffers, $2C + 1$.
# What autograd keeps is again the input's size, once for the fused operator and twice for the eager layer.

# %%
from normtutor.lab import memory, memory_table

x = torch.randn(16, 64, 32, 32, requires_grad=True)
print(
    memory_table(
        {
            "eager": memory(layers.GroupNorm(8, 64), x),
            "torch.nn": memory(nn.GroupNorm(8, 64), x),
        }
    )
)

# %% [markdown]
# What Group Normalization saves is elsewhere: a device may hold one sample instead of sixteen.
#
# ## In a network
#
# `CNNWithGroupNorm` is the course's convolutional network with `GroupNorm(8, 32)` and `GroupNorm(8, 64)`.
# First a fact that holds *in training mode*: how a batch is cut into parts changes no output. No network
# with batch statistics can say that.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
networks = {
    "CNNWithGroupNorm": CNNWithGroupNorm(image_size=8).double(),
    "CNNWithBatchNorm": CNNWithBatchNorm(image_size=8).double(),
}
images = data.train_images[:16].double()
for name, network in networks.items():
    together = network(images)
    for size in (1, 4, 8):
        try:
            apart = torch.cat([network(part) for part in images.split(size)])
            print(
                f"{name}, parts of {size}:", torch.allclose(apart, together, atol=1e-10)
            )
        except ValueError:
            print(f"{name}, parts of {size}: refused")

# %% [markdown]
# So gradient accumulation over small parts *is* a large batch, and activation checkpointing changes
# nothing. Now train at the four batch sizes of the document that this course grew from. Each run sees about 1000 images; the learning rate grows in
# proportion to the batch. The third network is the second without the normalization of its linear layer.


# %%
def without_norm3():
    network = CNNWithBatchNorm(image_size=8)
    network.norm3 = nn.Identity()
    return network


test_accuracy = {}
with one_thread():
    for name, make in (
        ("GroupNorm", lambda: CNNWithGroupNorm(image_size=8)),
        ("BatchNorm", lambda: CNNWithBatchNorm(image_size=8)),
        ("BatchNorm, convolutions only", without_norm3),
    ):
        for size in (1, 4, 8, 16):
            torch.manual_seed(0)
            network = make()
            options = {"steps": 1000 // size, "lr": 0.005 * size, "batch_size": size}
            try:
                train(network, data.train_images, data.train_labels, **options)
                right = accuracy(network, data.test_images, data.test_labels)
                test_accuracy[name, size] = right
                told = f"{right:.1%} right"
            except ValueError:
                told = "refused: one value per channel after the linear layer"
            print(f"{name}, batches of {size:2}: {told}")

assert test_accuracy["GroupNorm", 1] > 0.6
assert ("BatchNorm", 1) not in test_accuracy

# %% [markdown]
# Read it without wishful thinking. Group Normalization trains from single images, where the network with
# Batch Normalization refuses. At 4 and more, on this task, Batch Normalization is ahead every time. That it
# also normalizes the linear layer is not why: the third network does without, stays ahead, and trains even
# from single images. For a convolution no batch is that small, since a map supplies many values; the next
# section looks into that.
#
# ### When small batches do *not* hurt
#
# The claim of Figure 1 was made for convolutions. So repeat the experiment of the beginning with three
# convolutions over 8×8 maps:

# %%
outcome = claims.run("group_norm.convolutions")
print(outcome)
print(claims.recorded("group_norm.convolutions"))
assert not outcome.holds

# %% [markdown]
# It does not reproduce: with two images the error is about what it is with 32. Why? With convolutions, $n$
# images supply $n \cdot H \cdot W$ values per channel. The experiment's control tests that explanation:
# let each *position* of each map have its own statistics, so that $n$ images supply $n$ values again. Same
# network, same data:

# %%
per_position = claims.run(
    "group_norm.convolutions", norm=claims.claims()[outcome.claim.name].control
)
print(outcome.claim.tells(outcome.measured), "(per channel)")
print(outcome.claim.tells(per_position.measured), "(per position)")
assert per_position.holds

# %% [markdown]
# Then the rise is there. Values in one map are not independent, though, so counting them overstates. The
# honest measure is how much a channel's mean varies from image to image, against the spread of all its
# values. Call the ratio of the two variances $\rho$. The mean over $n$ images is then wrong by
# $\sqrt{\rho / n}$ deviations. For a linear layer $\rho = 1$.

# %%
from normtutor.lab.claims.batch_norm import ConvNet

torch.manual_seed(0)
network = ConvNet("batch", width=8, depth=3)
train(network, data.train_images, data.train_labels, steps=100, lr=0.05, momentum=0.9)
x = data.train_images
with torch.no_grad():
    for module in network.eval():
        x = module(x)
        if isinstance(module, nn.Conv2d):
            rho = x.mean((2, 3)).var(0) / x.transpose(0, 1).flatten(1).var(1)
            typical = rho.median().item()
            print(
                f"ρ = {typical:.3f}: two images, mean off by {(typical / 2) ** 0.5:.2f} σ"
            )
print(f"ρ = 1, a linear layer:  mean off by {0.5**0.5:.2f} σ")
assert typical < 0.5

# %% [markdown]
# So the rule is not "small batches are bad" but "few *independent* values are bad". And $\rho$ grows from
# layer to layer: deep features say what is in the image, and so vary from image to image. A ResNet has
# fifty layers, photographs of a thousand kinds, and maps of 7×7 at the end. That this is why its error
# rises is a conjecture here: this course has not trained a ResNet-50.
#
# ## Choosing G
#
# Wu and He use $G = 32$ throughout. Their Table 3 varies it on ImageNet: the error depends little on $G$
# in the middle, and rises at the two ends, at one group (Layer Normalization) and most of all at one
# channel per group (Instance Normalization). The small version: three convolutions of 32 channels, two
# seeds each, a short training.

# %%
sizes, errors = [1, 2, 8, 32], {}
with one_thread():
    for num_groups in sizes:
        errors[num_groups] = []
        for seed in range(2):
            torch.manual_seed(seed)
            network = ConvNet(
                lambda shape, g=num_groups: layers.GroupNorm(g, shape[1]), 32, 3
            )
            options = {"lr": 0.05, "momentum": 0.9, "batch_size": 32, "seed": seed}
            train(network, data.train_images, data.train_labels, steps=60, **options)
            wrong = 1 - accuracy(network, data.test_images, data.test_labels)
            errors[num_groups].append(100 * wrong)
        runs = ", ".join(f"{error:.1f}" for error in errors[num_groups])
        print(f"G = {num_groups:2}: test error {runs} %")
mean = {g: sum(runs) / len(runs) for g, runs in errors.items()}
assert max(mean.values()) < 50, "every G was expected to learn"
assert mean[32] < mean[1], "one channel per group was expected to beat one group"

# %% mystnb={"image": {"alt": "Test error against the number of groups from 1 to 32, two seeds and their mean. The error is highest with few groups and lowest with 32."}}
line_chart(
    {
        "mean": (sizes, [mean[g] for g in sizes]),
        "seed 0": (sizes, [errors[g][0] for g in sizes]),
        "seed 1": (sizes, [errors[g][1] for g in sizes]),
    },
    xlabel="number of groups (log)",
    ylabel="test error (%)",
    xscale="log",
    title="On digits, G = C does best",
    colours={"mean": GREEN, "seed 0": GREY, "seed 1": GREY},
)

# %% [markdown]
# One end agrees with the paper: few groups do worse than many. The other does not: here $G = C$, Instance
# Normalization, is the best choice, where the paper's is the worst. It throws away each channel's mean and
# contrast in this image. A digit's class does not need them; the classes of ImageNet may. Neighbouring $G$
# differ less than two seeds do. So take a rule, not a law: $G = 32$ or 16 channels per group, the paper's
# choices, and one channel per group only where you mean it.
#
# **When $G$ does not divide $C$**, the layer refuses. Networks with 24, 40 or 100 channels need a rule.
# The course's takes the largest divisor up to a limit:

# %% tags=["nbval-check-output"]
try:
    layers.GroupNorm(32, 40)
except ValueError as error:
    print(error)
print("channels  G up to 8  G up to 32  then channels per group")
for channels in (7, 24, 32, 40, 64, 100, 256):
    few, many = catalog.groups(channels), catalog.groups(channels, most=32)
    print(f"{channels:8}{few:11}{many:12}{channels // many:25}")

# %% [markdown]
# Look at 7, 24 and 32: a divisor alone can leave one channel per group. An exercise asks you for a better
# rule.
#
# ## Variants
#
# **Weight Standardization** ([Qiao et al. 2019](https://arxiv.org/abs/1903.10520)) normalizes the
# *weights* that feed each output channel, at every forward pass. It is the same formula once more, over
# the index set "same output channel":

# %%
show_source(layers.WeightStandardization.forward)

# %% [markdown]
# The optimizer updates the raw weights. Their gradient is orthogonal to the constant and to the weights
# themselves, as for every standardization: plain gradient descent cannot shift a filter nor, to first
# order, stretch it. That fits Group Normalization: it sees the scale of one filter against its neighbours in the group, which
# Batch Normalization takes out, and Weight Standardization takes out in its place:

# %% tags=["nbval-check-output"]
from torch.nn.utils import parametrize

torch.manual_seed(0)
conv = nn.Conv2d(1, 4, 3).double()
stretched = nn.Conv2d(1, 4, 3).double()
with torch.no_grad():
    stretched.load_state_dict(conv.state_dict())
    conv.bias.zero_(), stretched.bias.zero_()
    stretched.weight[0] *= 5  # one filter of four
images = data.train_images[:8].double()
raw = {
    "BatchNorm": layers.BatchNorm2d(4, dtype=torch.float64),
    "GroupNorm(2, 4)": layers.GroupNorm(2, 4, dtype=torch.float64),
}
for name, norm in raw.items():
    same = torch.allclose(norm(conv(images)), norm(stretched(images)), atol=1e-2)
    print(f"one filter times 5, {name}: same output {same}")
layers.standardize_weights(conv, eps=1e-12)
layers.standardize_weights(stretched, eps=1e-12)
same = torch.allclose(norm(conv(images)), norm(stretched(images)), atol=1e-2)
print(f"one filter times 5, {name} with standardized weights: same output {same}")
print("what learns:", [name for name, _ in conv.named_parameters()])
assert parametrize.is_parametrized(conv, "weight")

# %% [markdown]
# Does it help? The paper says that it lifts Group Normalization to Batch Normalization's level and above.
# A small residual network on digits:

# %%
outcome = claims.run("group_norm.weight_standardization")
print(outcome)
print(claims.recorded("group_norm.weight_standardization"))
assert outcome.holds

# %% [markdown]
# It does, each side at the better of two learning rates. The full run tries three, trains longer, and has
# the same band. (With as many groups as channels only the centring of the filters is left to it.) Use it only where a normalization follows: a standardized filter has
# variance 1 whatever its fan-in, so its output is about $\sqrt{\text{fan-in}}$ times too large, and
# without a normalization after it the network diverges (the claim's control).
#
# **`GroupNorm(1, C)`**, also called `GroupNorm1`, stands in PoolFormer, whose paper calls it a modified
# Layer Normalization. It is not `LayerNorm(C)` as transformers and ConvNeXt use it: that one normalizes each
# *position* over its channels. Three layers, two standardizations, three shapes of
# $\gamma$:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(2, 4, 3, 3)
one_group = layers.GroupNorm(1, 4)(x)
over_all = layers.LayerNorm([4, 3, 3])(x)
over_channels = layers.LayerNorm(4)(x.movedim(1, -1)).movedim(-1, 1)
print(
    "GroupNorm(1, C) equals LayerNorm((C, H, W)):",
    torch.allclose(one_group, over_all, atol=1e-5),
)
print(
    "GroupNorm(1, C) equals LayerNorm(C):        ",
    torch.allclose(one_group, over_channels, atol=1e-1),
)
for layer in (layers.GroupNorm(1, 4), layers.LayerNorm([4, 3, 3]), layers.LayerNorm(4)):
    print(f"{type(layer).__name__}: γ of shape {tuple(layer.weight.shape)}")

# %% [markdown]
# Even where the statistics agree the parameters do not: $\gamma$ per channel, or per channel *and
# position*, which ties the layer to one image size.
#
# ## Pitfalls
#
# **Interleaved groups**, the right shape over the wrong channels: exercise 5 lets you repair one.
#
# **The order of the channels matters.** Concatenating, pruning or shuffling channels before the layer
# changes who shares statistics with whom. Batch Normalization does not care.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x, order = torch.randn(2, 6, 4, 4), torch.tensor([3, 0, 4, 1, 5, 2])
for name, layer in (
    ("GroupNorm(2, 6)", layers.GroupNorm(2, 6)),
    ("BatchNorm", layers.BatchNorm2d(6)),
):
    shuffled = torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-5)
    print(f"{name}: shuffling before is shuffling after: {shuffled}")

# %% [markdown]
# **Channels come second.** The layer reads axis 1, whatever you call it. In $(N, H, W, C)$ that is $H$,
# and if $H$ happens to equal the number of channels nobody complains. (The memory format `channels_last`
# is something else: there the shape stays $(N, C, H, W)$.)

# %% tags=["nbval-check-output"]
layer = layers.GroupNorm(2, 8)
print("(N, H, W, C), H = C:", tuple(layer(torch.randn(2, 8, 8, 8)).shape), "and wrong")
try:
    layer(torch.randn(2, 5, 5, 8))
except RuntimeError as error:
    print(error)

# %% [markdown]
# **A bias before the layer is not dead.** The group's mean takes out the average of its channels' biases
# only. It is dead where every channel is its own group.

# %% tags=["nbval-check-output"]
for num_groups in (1, 2, 4):
    conv = nn.Conv2d(1, 4, 3).double()
    norm = layers.GroupNorm(num_groups, 4, dtype=torch.float64)
    norm(conv(data.train_images[:8].double())).pow(3).sum().backward()
    alive = (conv.bias.grad.abs().max() > 1e-9 * conv.weight.grad.abs().max()).item()
    print(f"G = {num_groups} of 4 channels: the bias has a gradient: {alive}")

# %% [markdown]
# **One value per group.** Where $C/G \cdot H \cdot W = 1$, $\hat{x}$ is 0 whatever came in. torch refuses
# it for a batch of one and lets larger batches pass; so does this layer, to be a drop-in.

# %% tags=["nbval-check-output"]
layer = layers.GroupNorm(4, 4)
print(layer(torch.randn(2, 4)).abs().max().item())
try:
    layer(torch.randn(1, 4))
except ValueError as error:
    print(error)

# %% [markdown]
# **ε decides what counts as nothing.** A group whose variance is far below $\varepsilon$ is not amplified;
# it fades. Half-dead groups after a ReLU are such groups, and in float16 an ε of $10^{-12}$ is 0, unless
# the statistics are computed in float32, as here.

# %% tags=["nbval-check-output"]
x = torch.tensor([[[-1.0, 1.0]]])  # one channel, deviation 1
for scale in (1.0, 1e-2, 1e-4):
    y = functional.group_norm(scale * x, 1, eps=1e-5)
    print(f"deviation {scale:g}: output ±{y.max().item():.2f}")

# %% [markdown]
# **No regularization by noise.** Batch statistics make every sample noisy; Group Normalization has no such
# noise, and Wu and He find a lower training error but a slightly higher validation error than Batch
# Normalization's at 32 images (section 4.1). Add augmentation or dropout where that matters.
#
# ## Exercises
#
# Ten tasks, from a first success in a minute to an open challenge. Write your answer in the cell under
# each statement and run it: the checker says what is right already, and which mistake it sees. `hint("…")`
# gives the next hint, `solution("…")` the reference.

# %% [markdown]
# ### 1. The forward formula

# %% tags=["nbval-check-output"]
statement("group_norm.forward")


# %%
def group_norm(x, num_groups, weight, bias, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.forward", group_norm)

# %% [markdown]
# ### 2. Predict six numbers

# %% tags=["nbval-check-output"]
statement("group_norm.predict")

# %%
prediction = {
    "means": ...,
    "values per mean": ...,
    "learned numbers": ...,
    "group of channel 13": ...,
    "outputs that change": ...,
    "gradients that gamma 13 moves": ...,
}

# %% tags=["nbval-check-output"]
check("group_norm.predict", prediction)

# %% [markdown]
# ### 3. Choose the number of groups

# %% tags=["nbval-check-output"]
statement("group_norm.divisor")


# %%
def choose_groups(channels, most, least):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.divisor", choose_groups)

# %% [markdown]
# ### 4. The whole layer

# %% tags=["nbval-check-output"]
statement("group_norm.layer")


# %%
class GroupNorm(nn.Module):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.layer", GroupNorm)

# %% [markdown]
# ### 5. Spot the bug: the right shape, the wrong groups

# %% tags=["nbval-check-output"]
statement("group_norm.bug_groups")


# %%
def group_normalize(x, num_groups, eps):
    N, C, H, W = x.shape
    groups = x.reshape(N, C // num_groups, num_groups, H, W)
    mean = groups.mean(dim=(1, 3, 4), keepdim=True)
    var = groups.var(dim=(1, 3, 4), correction=0, keepdim=True)
    x_hat = (groups - mean) / torch.sqrt(var + eps)
    return x_hat.reshape(N, C, H, W)


# %% tags=["nbval-check-output"]
check("group_norm.bug_groups", group_normalize)

# %% [markdown]
# ### 6. Spot the bug: one pass, block by block

# %% tags=["nbval-check-output"]
statement("group_norm.bug_variance")


# %%
def group_statistics(x, num_groups, eps):
    groups = x.reshape(len(x), num_groups, -1)
    size = groups.size(2)
    total = torch.zeros_like(groups[:, :, 0])
    squares = torch.zeros_like(total)
    for block in groups.split(32, dim=2):
        total = total + block.sum(dim=2)
        squares = squares + (block * block).sum(dim=2)
    mean = total / size
    variance = squares / size - mean * mean
    return mean, torch.rsqrt(variance + eps)


# %% tags=["nbval-check-output"]
check("group_norm.bug_variance", group_statistics)

# %% [markdown]
# ### 7. Convert a network

# %% tags=["nbval-check-output"]
statement("group_norm.replace")


# %%
def replace_bn(model, num_groups):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.replace", replace_bn)

# %% [markdown]
# ### 8. Weight Standardization

# %% tags=["nbval-check-output"]
statement("group_norm.weights")


# %%
def standardize_weight(weight, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.weights", standardize_weight)

# %% [markdown]
# ### 9. The backward pass by hand

# %% tags=["nbval-check-output"]
statement("group_norm.backward")


# %%
def group_norm_backward(grad, x, num_groups, weight, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.backward", group_norm_backward)

# %% [markdown]
# ### 10. A challenge: two images at a time

# %% tags=["nbval-check-output"]
statement("group_norm.challenge")


# %%
def make_network():
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("group_norm.challenge", make_network)


# %%
progress("group_norm")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. `GroupNorm(32, 64)` on a batch of 8 images of 16×16. How many means does it compute, over how many
# values each?**
#
# <details>
# <summary>32 means over 4096 values</summary>
#
# No. That shares each group's mean among the 8 images; nothing crosses the batch.
#
# </details>
# <details>
# <summary>256 means over 512 values</summary>
#
# Yes: 8 images times 32 groups, each over 2 channels of 16 · 16 positions.
#
# </details>
# <details>
# <summary>16 means over 8192 values</summary>
#
# No. That takes 32 for the channels per group. It is the number of groups.
#
# </details>
#
# **2. You train with batches of 2 and accumulate gradients over 16 of them. With which layer is that the
# same as batches of 32?**
#
# <details>
# <summary>With both Batch and Group Normalization: gradients add up</summary>
#
# No. Gradients add up, but Batch Normalization's outputs already differ, since each part has its own
# statistics.
#
# </details>
# <details>
# <summary>With Group Normalization</summary>
#
# Yes. No output depends on how the batch is cut, so neither does a sum of gradients.
#
# </details>
# <details>
# <summary>With Batch Normalization in training mode</summary>
#
# No. Sixteen pairs have sixteen means. In evaluation mode it would be right, with frozen statistics.
#
# </details>
#
# **3. Which gradient do you get wrong if you copy Batch Normalization's backward pass and multiply by γ at
# the end?**
#
# <details>
# <summary>That of γ</summary>
#
# No. It is the sum of $g \hat{x}$, and contains no γ.
#
# </details>
# <details>
# <summary>That of the input, as soon as γ differs inside a group</summary>
#
# Yes. γ varies inside the sums over the group, so it has to be in them. With γ = 1 the test passes.
#
# </details>
# <details>
# <summary>That of the input, always</summary>
#
# No. While γ is the same in the whole group, as it is at the start, it may be pulled out.
#
# </details>
#
# **4. A convolutional network with Batch Normalization trains well with two images of 512×512 per device.
# Should you replace the layers?**
#
# <details>
# <summary>Yes, two samples are too few</summary>
#
# Not because of the number alone. A map of many positions supplies many values, and the experiment above
# shows no rise.
#
# </details>
# <details>
# <summary>Measure first: compare training with evaluation, and vary the samples per device</summary>
#
# Yes. What counts is how much a channel's statistics vary from image to image, and that depends on data
# and depth.
#
# </details>
# <details>
# <summary>No, Batch Normalization is always better</summary>
#
# No. At one sample per device, after a linear layer, or with images that differ a lot, it is not.
#
# </details>
#
# ## References
#
# - Wu, He: [Group Normalization](https://arxiv.org/abs/1803.08494), 2018. Equation 7 for the index set,
#   Figure 1 for the error against the batch, Table 3 for the number of groups.
# - Qiao, Wang, Liu, Shen, Yuille: [Weight Standardization](https://arxiv.org/abs/1903.10520), 2019.
# - Ioffe, Szegedy: [Batch Normalization](https://arxiv.org/abs/1502.03167), 2015.
# - Ba, Kiros, Hinton: [Layer Normalization](https://arxiv.org/abs/1607.06450), 2016. The limit of one
#   group.
# - Ulyanov, Vedaldi, Lempitsky: [Instance Normalization](https://arxiv.org/abs/1607.08022), 2016. The
#   limit of $G = C$.
# - Yu et al.: [MetaFormer Is Actually What You Need for Vision](https://arxiv.org/abs/2111.11418), 2021.
#   PoolFormer, and its `GroupNorm` of one group.
# - Liu et al.: [A ConvNet for the 2020s](https://arxiv.org/abs/2201.03545), 2022. ConvNeXt, and its
#   `LayerNorm` of each position.
# - Chan, Golub, LeVeque: Algorithms for Computing the Sample Variance, The American Statistician 37(3),
#   1983. Merging blocks.
# - Liger-Kernel: [GroupNorm's
#   kernel](https://github.com/linkedin/Liger-Kernel/blob/main/src/liger_kernel/ops/group_norm.py).
# - PyTorch: [GroupNorm](https://docs.pytorch.org/docs/stable/generated/torch.nn.GroupNorm.html).
