# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Instance Normalization
#
# $$
# y = \gamma \, \frac{x - \mu_I}{\sqrt{\sigma_I^2 + \varepsilon}} + \beta
# $$
#
# Batch Normalization's formula, with the mean and the deviation of **one channel of one sample**. Dmitry
# Ulyanov, Andrea Vedaldi and Victor Lempitsky published it in [2016](https://arxiv.org/abs/1607.08022), for
# pictures.
#
# In this chapter you train a network that paints, prove what it can no longer see, derive the layer forward
# and backward, prove it right and time it, find out what the invariance costs, and then write it yourself,
# graded.
#
# You need: [Batch Normalization's chapter](batch_norm.ipynb), to which this one refers where nothing
# changes. It runs top to bottom in under a minute, on a CPU or a GPU.

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
# A picture's *style* should not depend on how bright the day was. Instance Normalization gives every
# channel of every single picture mean 0 and variance 1: the picture's own contrast and brightness are gone,
# and what the network paints does not depend on them. Ulyanov, Vedaldi and Lempitsky changed one line of a
# style-transfer network, Batch Normalization became Instance Normalization, and the pictures became much
# better.
#
# The statistics are taken **per sample and channel**, over the positions. No sample sees another, so training
# and evaluation are the same function, and a batch of one is fine.

# %%
import copy

import torch
from torch import nn

from normtutor import functional, layers, networks
from normtutor.lab import index_set, line_chart, style, use_style

use_style()

# %% mystnb={"image": {"alt": "Two blocks of N samples by C channels by H·W positions. Batch Normalization colours one channel of every sample; Instance Normalization colours one channel of one sample only."}}
index_set("batch", "instance")

# %% [markdown]
# ## The problem, felt
#
# Train a network to paint photographs in the style of a dahlia's petals. The network is that of the
# founding draft (the document that this course grew from): five blocks of convolution, normalization and
# ReLU, here an eighth as wide (8, 16, 32, 16, 8 channels instead of 64, 128, 256, 128, 64), so that it
# trains on a CPU while you watch. Two versions differ in the normalization alone; they start from the same
# weights and see the same crops of four photographs.
#
# What "in the style of" means is a loss. Gatys, Ecker and Bethge ([2015](https://arxiv.org/abs/1508.06576))
# compare *features*: the content loss asks for the features of the photograph where they are; the style
# loss asks for their **Gram matrices**, which features occur together, wherever that is. Their features
# come from VGG, a network of half a gigabyte. Here fixed **random filters** at three scales do: a single
# layer of them is enough to synthesize textures ([Ustyuzhaninov et al.
# 2016](https://arxiv.org/abs/1606.00021)), and deeper random networks give stylizations too ([He et al.
# 2016](https://arxiv.org/abs/1606.04801)). They know edges and colours but no objects: expect petals and
# paint, not a masterpiece. The whole loss is the style's plus 0.03 times the content's. (An exercise
# asks you for the Gram matrix.)

# %%
from normtutor.lab import show_source

show_source(style.PerceptualLoss.style)

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
instance, batch = style.train_stylizers(
    ["instance", "batch"], width=8, crop=48, steps=120, device=device
)
for name, stylizer in (("instance", instance), ("batch", batch)):
    print(f"{name:9} loss over the last 24 steps: {stylizer.final_loss:.3f}")

# %% [markdown]
# Now show both a photograph that neither was trained on, and then the same photograph at three tenths of its
# contrast, as on a foggy day:

# %% mystnb={"image": {"alt": "Two rows of pictures. First row: a portrait of an astronaut, the dahlia whose style was learned, the portrait painted in orange petal tones by the network with Instance Normalization and by the one with Batch Normalization. Second row: the portrait at three tenths of its contrast; the Instance Normalization network paints the same picture as before, the Batch Normalization network another one."}}
photographs = style.pictures(device=device)
portrait, dahlia = photographs[style.HELD_OUT], photographs[style.STYLE]
foggy = 0.3 * portrait
style.gallery(
    [
        {
            "photograph": portrait,
            "InstanceNorm": instance(portrait),
            "BatchNorm": batch(portrait),
            "the style": dahlia,
        },
        {
            "contrast × 0.3": foggy,
            "InstanceNorm ": instance(foggy),
            "BatchNorm ": batch(foggy),
        },
    ]
)

# %%
for name, stylizer in (("instance", instance), ("batch", batch)):
    measured = style.held_out(stylizer)
    print(
        f"{name:9} loss {measured['loss']:.3f}, in fog {measured['loss_dimmed']:.3f}; "
        f"the picture changes by {measured['change']:.1%}"
    )
    if name == "instance":
        assert measured["change"] < 0.02, "it was expected not to see the fog"
    else:
        assert measured["change"] > 0.1, "it was expected to see the fog"

# %% [markdown]
# In clear air the two are about equally good at *this* photograph; on what they are trained for, Instance
# Normalization's loss is the lower one. The difference that strikes is the fog. Batch Normalization divides
# by what the contrast was *on average in training*: fog comes through to the
# output. Instance Normalization divides by what it is *in this picture*. This chapter takes that one
# difference apart: what exactly is invariant, what it costs, and what is lost with it.
#
# Photographs: Eileen Collins by NASA (public domain); dahlia by
# [vultilion](https://www.flickr.com/photos/vultilion/6056698931/), CC BY 2.0, cropped; in training the
# Summer Palace by [danielbuechele](https://www.flickr.com/photos/danielbuechele/6061409035/), CC BY 2.0, a
# coffee cup by Rachel Michetti (CC0), a rocket by SpaceX (public domain), Chelsea the cat by Stefan van der
# Walt (CC0). They ship inside scikit-learn and scikit-image.
#
# ## The forward formula
#
# The formula is Batch Normalization's over another index set. An element $i = (i_N, i_C, i_H, i_W)$ shares
# its statistics with its own channel in its own sample:
#
# $$
# S_i = \lbrace k \mid k_N = i_N,\; k_C = i_C \rbrace, \qquad m = H W
# $$
#
# $$
# \begin{aligned}
# \mu_i &= \frac{1}{m} \sum_{k \in S_i} x_k \\
# \sigma_i^2 &= \frac{1}{m} \sum_{k \in S_i} (x_k - \mu_i)^2 \\
# y_i &= \gamma_{i_C} \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \varepsilon}} + \beta_{i_C}
# \end{aligned}
# $$
#
# | symbol | meaning | shape |
# |---|---|---|
# | $x, y$ | input, output | $(N, C, L)$, $(N, C, H, W)$, $(N, C, D, H, W)$ |
# | $\mu, \sigma^2$ | mean and biased variance of one map | $(N, C)$ |
# | $\gamma, \beta$ | learned scale and shift, if asked for | $(C)$ |
#
# The statistics are per sample and channel, $\gamma$ and $\beta$ per channel only: all pictures get the same.


# %%
def forward(x, gamma=None, beta=None, eps=1e-5):
    """Instance Normalization of (N, C, *), as the formula says."""
    positions = list(range(2, x.dim()))
    mean = x.mean(positions, keepdim=True)
    var = (x - mean).square().mean(positions, keepdim=True)
    x_hat = (x - mean) / torch.sqrt(var + eps)
    if gamma is None:
        return x_hat
    per_channel = [-1] + [1] * len(positions)
    return gamma.view(per_channel) * x_hat + beta.view(per_channel)


# %% [markdown]
# By hand: two pictures of one channel and two pixels. The first holds 1 and 5 (mean 3, deviation 2), the
# second 30 and 70 (mean 50, deviation 20). Batch Normalization would see four values of one channel; here
# each picture becomes
# $\pm 1$.

# %% tags=["nbval-check-output"]
x = torch.tensor([[[1.0, 5.0]], [[30.0, 70.0]]])
print("instance:", forward(x, eps=0.0).flatten().tolist())
together = functional.batch_norm(x, None, None, training=True, eps=1e-12)
print("batch:   ", [round(value, 2) for value in together.flatten().tolist()])

# %% [markdown]
# ## Contrast invariance, proved
#
# Change a map's contrast by $a > 0$ and its brightness by $b$. Its mean becomes $a\mu + b$, its variance
# $a^2\sigma^2$, so
#
# $$
# \begin{aligned}
# \hat{x}' &= \frac{(a x + b) - (a \mu + b)}{\sqrt{a^2 \sigma^2 + \varepsilon}} \\
# &= \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon / a^2}} \approx \hat{x}
# \end{aligned}
# $$
#
# Exactly equal but for $\varepsilon$, which counts as if it were $\varepsilon / a^2$: invariance ends where
# the contrast
# $a \sigma$ falls to $\sqrt{\varepsilon}$, about 0.003. A negative $a$ flips the sign.
#
# A convolution without padding is linear, $W * (a x + b) + c = a (W * x) + \text{const}$ in each channel,
# so the same holds for **convolution, then Instance Normalization**: whole networks that begin like this
# cannot see the contrast or the brightness of what they are shown. Zero padding is linear in $x$, but not
# blind to $b$: it adds a frame of zeros, whose contrast to the picture depends on $b$. Check each of these sentences, in float64:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
y = forward(x)


def same(a, b):
    return torch.allclose(a, b, atol=1e-3)


print("contrast × 0.3:      ", same(forward(0.3 * x), y))
print("brightness + 5:      ", same(forward(x + 5), y))
print("negative, sign flips:", same(forward(-x), -y))
print("each picture its own:", same(forward(torch.stack([x[0], 9 * x[1] - 4])), y))
print("contrast × 0.001:    ", same(forward(0.001 * x), y))

network = networks.StyleTransferNetwork(width=4).double()
replicating = copy.deepcopy(network)
for module in replicating.modules():
    if isinstance(module, nn.Conv2d):
        module.padding_mode = "replicate"
for name, net in (("zero padding", network), ("replicated border", replicating)):
    dimmed, brighter = same(net(0.3 * x), net(x)), same(net(x + 5), net(x))
    print(f"network, {name}: contrast {dimmed}, brightness {brighter}")

# %% [markdown]
# Where does it end? The deviation of the output against the contrast of the input, one map of deviation $a$:

# %% mystnb={"image": {"alt": "Deviation of the output against contrast of the input, logarithmic. Level at 1 down to a contrast of about one hundredth, then falling to one half near 0.002, and towards 0 below. With a larger epsilon the fall begins earlier."}}
contrasts = [10 ** (exponent / 4) for exponent in range(-16, 5)]
unit_map = torch.linspace(-1, 1, 1000, dtype=torch.float64).view(1, 1, -1)
unit_map = unit_map / unit_map.std(correction=0)
line_chart(
    {
        f"ε = {eps:g}": (
            contrasts,
            [
                forward(a * unit_map, eps=eps).std(correction=0).item()
                for a in contrasts
            ],
        )
        for eps in (1e-5, 1e-3)
    },
    xlabel="contrast of the input, a·σ (log)",
    ylabel="deviation of the output",
    xscale="log",
    title="Invariance ends where contrast reaches √ε",
    colours={"ε = 1e-05": "#CC79A7", "ε = 0.001": "#6e6e6e"},
)

# %% [markdown]
# ## The backward pass
#
# [Batch Normalization's chapter](batch_norm.ipynb) derives the gradient step by step. Nothing in that
# derivation asks which set $S_i$ is, so it carries over, with sums over one map. With
# $g = \partial L / \partial y$, $\hat{g} = \gamma g$ and $r = 1/\sqrt{\sigma^2 + \varepsilon}$:
#
# $$
# \begin{aligned}
# \frac{\partial L}{\partial x_k} = r \Big( \hat{g}_k
# &- \tfrac{1}{m} \textstyle\sum_{i \in S_k} \hat{g}_i \\
# &- \hat{x}_k \cdot \tfrac{1}{m} \textstyle\sum_{i \in S_k} \hat{g}_i \hat{x}_i \Big)
# \end{aligned}
# $$
#
# **Two kinds of sums** meet here, and mixing them up is the classic mistake. The paths through $\mu$ and
# $\sigma^2$ stay inside one map, since no other sample used them. But $\gamma_c$ and $\beta_c$ acted in
# every sample, so theirs run over the batch as well:
#
# $$
# \frac{\partial L}{\partial \beta_c} = \sum_{i:\, i_C = c} g_i, \qquad
# \frac{\partial L}{\partial \gamma_c} = \sum_{i:\, i_C = c} g_i \hat{x}_i
# $$
#
# For one map of $m$ values, as a function that autograd can call:


# %%
class OneMap(torch.autograd.Function):
    """Instance Normalization of one map, its backward pass the closed form."""

    @staticmethod
    def forward(ctx, x, gamma, beta, eps):
        var, mean = torch.var_mean(x, correction=0)
        r = torch.rsqrt(var + eps)
        x_hat = (x - mean) * r
        ctx.save_for_backward(x_hat, r, gamma)
        return gamma * x_hat + beta

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved_tensors
        g_hat = gamma * g
        dx = r * (g_hat - g_hat.mean() - x_hat * (g_hat * x_hat).mean())
        return dx, (g * x_hat).sum(), g.sum(), None


# %% [markdown]
# Two samples of one channel share $\gamma$ and $\beta$. Compare with what autograd makes of the forward
# formula, and with finite differences:

# %% tags=["nbval-check-output"]
x = torch.randn(2, 1, 12, dtype=torch.float64, requires_grad=True)
gamma = torch.randn((), dtype=torch.float64, requires_grad=True)
beta = torch.randn((), dtype=torch.float64, requires_grad=True)
g = torch.randn(2, 1, 12, dtype=torch.float64)


def map_by_map(x, gamma, beta):
    maps = [OneMap.apply(sample[0], gamma, beta, 1e-5) for sample in x]
    return torch.stack(maps)[:, None]


closed_form = torch.autograd.grad(map_by_map(x, gamma, beta), (x, gamma, beta), g)
y = forward(x, gamma[None], beta[None])
by_autograd = torch.autograd.grad(y, (x, gamma, beta), g)
for name, ours, theirs in zip(("x", "γ", "β"), closed_form, by_autograd, strict=True):
    equal = torch.allclose(ours, theirs, atol=1e-12)
    print(f"closed form equals autograd, {name}: {equal}")
equal = torch.autograd.gradcheck(map_by_map, (x, gamma, beta))
print("closed form equals finite differences:", equal)

# %% [markdown]
# Read it as geometry once more: in **each map** the gradient is orthogonal to the constant and, up to
# $\varepsilon$, to $\hat{x}$. No loss can ask the layer before for another contrast or brightness of any single
# map. And from $f(a x) = f(x)$ follows, by differentiation, $a\, f'(a x) = f'(x)$: a picture at a third of
# the contrast sends back three times the gradient. The factor $r$ is where that sits.

# %% tags=["nbval-check-output"]
dx = closed_form[0]
x_hat = forward(x).detach()
one = dx.sum(-1).abs() < 1e-12
along = (dx * x_hat).sum(-1).abs() < 1e-4 * dx.norm()
print("orthogonal to the constant, each map:", one.all().item())
print("orthogonal to x̂, each map, up to ε:  ", along.all().item())
dim = (x / 3).detach().requires_grad_()
(dx_dim,) = torch.autograd.grad(forward(dim, gamma[None], beta[None]), dim, g)
print("a third of the contrast, gradient × 3:", same(dx_dim, 3 * dx))

# %% [markdown]
# ## Building the layer
#
# The package's function is the shared `standardize` over the positions, with the running statistics added:

# %%
show_source(functional.instance_norm)

# %%
show_source(layers.InstanceNorm2d.forward)

# %% [markdown]
# It takes torch's arguments, and torch's defaults, which differ from Batch Normalization's:
# **`affine=False` and `track_running_stats=False`**. By default there is nothing to learn and nothing to
# store. (The founding draft of this course had `affine=True`, and the network of this chapter asks for it
# too.)

# %% tags=["nbval-check-output"]
for options in (
    {},
    {"affine": True},
    {"track_running_stats": True},
    {"affine": True, "track_running_stats": True},
):
    ours, theirs = layers.InstanceNorm2d(3, **options), nn.InstanceNorm2d(3, **options)
    theirs.load_state_dict(ours.state_dict())
    print(", ".join(options) or "default", "→", list(ours.state_dict()) or "nothing")

# %% [markdown]
# It agrees with the small cell above, for signals, images and volumes, in value and in gradient:

# %% tags=["nbval-check-output"]
from normtutor.catalog import technique

for shape in technique("instance").parity_shapes:
    layer = technique("instance").layer(shape).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    small = forward(x, layer.weight, layer.bias)
    same_value = torch.allclose(layer(x), small, atol=1e-12)
    same_gradient = torch.allclose(
        torch.autograd.grad(layer(x), x, g)[0],
        torch.autograd.grad(small, x, g)[0],
        atol=1e-12,
    )
    print(
        f"{type(layer).__name__} {shape}: value {same_value}, gradient {same_gradient}"
    )

# %% [markdown]
# ## Training, inference, and statistics that are kept
#
# Without tracking there is one function for both modes. With `track_running_stats=True` the layer behaves
# in training as before, and keeps averages on the side: per channel, the **mean over the samples** of their
# means and of their *unbiased* variances. In evaluation it uses these, as Batch Normalization does. By
# hand, with `momentum=1.0`: two samples, one with the values 1 and 5 (mean 3, unbiased variance 8), one
# with 10 and 10 (mean 10, variance 0).

# %% tags=["nbval-check-output"]
layer = layers.InstanceNorm1d(1, momentum=1.0, track_running_stats=True)
x = torch.tensor([[[1.0, 5.0]], [[10.0, 10.0]]])
layer(x)
print("running mean, (3 + 10) / 2:", layer.running_mean.item())
print("running var,  (8 + 0) / 2: ", layer.running_var.item())
print("counter after one batch:   ", layer.num_batches_tracked.item())

# %% [markdown]
# The running variance is 4, where Batch Normalization would store the variance of all four values: how the
# samples' *means* differ does not count here. **The counter stays at 0**: torch keeps `num_batches_tracked`
# for the checkpoint's sake and never moves it; so with `momentum=None` there is no cumulative average, and
# the buffers stay where they are. And tracking **gives the invariance away**: in evaluation the layer is a
# fixed affine map, and fog comes through.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(4, 3, 8, 8)
never = layers.InstanceNorm2d(3, momentum=None, track_running_stats=True)
never(x + 5)
print("momentum=None, running mean:", never.running_mean.tolist())
for tracked in (False, True):
    layer = layers.InstanceNorm2d(3, track_running_stats=tracked)
    layer(x)
    layer.eval()
    print(f"tracked {tracked}, blind to contrast:", same(layer(0.3 * x), layer(x)))

# %% [markdown]
# ## Numerics
#
# The variance has the cancellation that [Batch Normalization's chapter](batch_norm.ipynb) shows, and the
# same cure. What is new is how *few* and how *flat* the values of one map can be. A clear sky is a map
# without contrast: its variance is 0, its output is 0, and nothing but $\varepsilon$ prevents 0/0. A sky
# with the noise of 8 bits, half a level or 0.002, is amplified until the noise has half the contrast of a
# building. The gain is
# $1/\sqrt{\sigma^2 + \varepsilon}$, at most 316:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
noise = torch.randn(1, 1, 64, 64, dtype=torch.float64)
noise = noise / noise.std(correction=0)
print(
    "a flat map:",
    layers.InstanceNorm2d(1)(torch.full((1, 1, 4, 4), 0.7)).abs().max().item(),
)
for deviation in (1.0, 0.1, 0.002, 0.0001):
    out = layers.InstanceNorm2d(1)(0.7 + deviation * noise).std(correction=0).item()
    print(f"deviation {deviation:<7g} → {out:.2f}, gain {out / deviation:.0f}")

# %% [markdown]
# Half precision sharpens this: float16 cannot hold $\sigma^2$ below $6 \cdot 10^{-8}$, and a bfloat16
# picture around 0.7 has steps of 0.004, so its flat regions have false edges of their own. The package
# computes float16 and bfloat16 in float32. Where the mean is large, compare with float64:


# %%
def output_error(normalize, offset, memory_format=torch.contiguous_format):
    """Largest error of x̂ against float64 on the same, rounded values."""
    torch.manual_seed(0)
    x = (torch.randn(16, 8, 12, 12) + offset).to(memory_format=memory_format)
    return (normalize(x).double() - forward(x.double())).abs().max().item()


rivals = {
    "the small cell": (forward, torch.contiguous_format),
    "torch.nn": (nn.InstanceNorm2d(8), torch.contiguous_format),
    "torch.nn, channels_last": (nn.InstanceNorm2d(8), torch.channels_last),
    "normtutor": (layers.InstanceNorm2d(8), torch.contiguous_format),
    "normtutor, channels_last": (layers.InstanceNorm2d(8), torch.channels_last),
}
print(f"{'mean/std':26}" + "".join(f"{offset:>10.0e}" for offset in (1, 1e2, 1e3, 1e4)))
for name, (layer, memory_format) in rivals.items():
    row = [output_error(layer, offset, memory_format) for offset in (1, 1e2, 1e3, 1e4)]
    print(f"{name:26}" + "".join(f"{error:10.1e}" for error in row))
assert row[-1] < 1e-5, "the package's layer should be right to rounding at 10⁴"

# %% [markdown]
# ## Parity
#
# The rule, the candidates and the columns are those of [Batch Normalization's chapter](batch_norm.ipynb):
# closed form in extended precision as the truth, torch as one more candidate.

# %%
from normtutor.lab import parity

report = parity("instance")
print(report.table(by=("device", "dtype", "mode")))
assert report.ok

# %% [markdown]
# The hard case, mean/std = $10^4$: the error of the output.

# %%
print(report.table(by=("dtype", "layout"), quantity="output", offset=1e4))

# %% [markdown]
# ## Timing
#
# Here Instance Normalization has an advantage over Batch Normalization. As long as one *map* fits in the
# cache, or in one block of a GPU, $x$ is read once, even where the whole tensor is larger. Then **2 passes
# forward and 3 backward** do, against Batch Normalization's 3 and 5. (A map of 256 × 256 is 256 KiB in
# float32: there the bound is hard to reach.) The bound and the method are explained in [that
# chapter](batch_norm.ipynb).

# %%
from normtutor.lab import bench

sweep = bench("instance")
print(sweep)

# %% mystnb={"image": {"alt": "Fraction of the copy bandwidth reached against tensor size, for our eager Instance Normalization layer and torch.nn, forward plus backward."}}
sweep.plot()

# %% [markdown]
# `make bench` adds the compiled layers. The record of a GPU:

# %%
from normtutor.lab import recorded, recorded_style

print(recorded("instance"))

# %% [markdown]
# ## Memory
#
# The closed form needs one tensor of the input's size and one $r$ per map. The eager layer keeps what its
# operations ask for.

# %%
from normtutor.lab import memory, memory_table

x = torch.randn(16, 64, 32, 32, requires_grad=True)
print(
    memory_table(
        {
            "eager": memory(layers.InstanceNorm2d(64, affine=True), x),
            "torch.nn": memory(nn.InstanceNorm2d(64, affine=True), x),
        }
    )
)

# %% [markdown]
# ## In a network
#
# The network that painted at the top is the founding draft's, with the normalization as an argument:

# %%
show_source(networks.StyleTransferBlock)

# %% [markdown]
# Three decisions differ from the draft. Its `nn.InstanceNorm2d` learned no $\gamma$ and $\beta$, unnoticed,
# since that is torch's default; here they are learned. Its ReLU worked **in place**; here it does not,
# because whatever looks at the normalized activation afterwards finds the ReLU's output in its place.
# Training's memory loses nothing by that: what autograd keeps for the backward pass is the ReLU's output in
# either case, measured:

# %%
x = torch.randn(4, 16, 32, 32, requires_grad=True)
kept = {}
for inplace in (False, True):
    block = nn.Sequential(layers.InstanceNorm2d(16), nn.ReLU(inplace=inplace))
    kept[inplace] = memory(block, x)
print(memory_table({f"ReLU(inplace={flag})": use for flag, use in kept.items()}))

seen = []
block = nn.Sequential(layers.InstanceNorm2d(16), nn.ReLU(inplace=True))
block[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
block(x)
assert seen[0].min() == 0, (
    "the hook was expected to see a normalized map without negatives"
)

# %% [markdown]
# And its demonstration ran an *untrained* network on noise: a picture of nothing. Yours has been trained;
# look at how:


# %% mystnb={"image": {"alt": "Training loss against step for the style-transfer networks, averaged over ten steps. The curve with Instance Normalization falls below the one with Batch Normalization and stays there."}}
def smooth(losses, window=10):
    windows = torch.tensor(losses).unfold(0, window, window)
    return windows.mean(1).tolist()


steps = list(range(10, len(instance.losses) + 1, 10))
line_chart(
    {
        "instance": (steps, smooth(instance.losses)),
        "batch": (steps, smooth(batch.losses)),
    },
    xlabel="training step",
    ylabel="style + content loss (log)",
    yscale="log",
    title="The same network, the same crops",
)

# %% [markdown]
# ### Two published claims, put to the test
#
# Each is tested here, briefly, and in full by `make claims`, as in [Batch Normalization's
# chapter](batch_norm.ipynb). The first is about the training loss; a test of the course leaves the
# normalization out and sees the claim fail.

# %%
from normtutor.lab import claims

outcome = claims.run("instance_norm.stylization")
print(outcome)
print(claims.recorded("instance_norm.stylization"))
assert outcome.holds

# %% [markdown]
# The second is what you saw above, as a number: how much the *picture* changes in fog. Its test puts Batch Normalization in Instance
# Normalization's place. A network that ignores the photograph would pass without merit; that is why a grey
# photograph must give another picture.

# %%
outcome = claims.run("instance_norm.contrast")
print(outcome)
print(claims.recorded("instance_norm.contrast"))
assert outcome.holds

# %% [markdown]
# All of this is the small network on a CPU. The draft's full width, on crops of 256 × 256, is a GPU's work
# (`python -m normtutor.lab.style --device cuda --full`, or `make gpu-evidence`, which records it):

# %%
print(recorded_style())

# %% [markdown]
# With VGG's features instead of random filters, the network learns to paint objects' parts and not only
# edges. On Colab, with a GPU, set the flag; the weights are a download of half a gigabyte.

# %%
VGG, painted = False, None

if VGG:
    from torchvision.models import VGG16_Weights, vgg16

    class VGGFeatures(nn.Module):
        """relu1_2, relu2_2, relu3_3: the first three of Johnson et al.'s four."""

        def __init__(self):
            super().__init__()
            features = vgg16(weights=VGG16_Weights.DEFAULT).features.eval()
            self.blocks = nn.ModuleList([features[:4], features[4:9], features[9:16]])
            self.requires_grad_(False)
            for name, values in (
                ("mean", (0.485, 0.456, 0.406)),
                ("std", (0.229, 0.224, 0.225)),
            ):
                self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

        def forward(self, images):
            x, found = ((images + 1) / 2 - self.mean) / self.std, []
            for block in self.blocks:
                x = block(x)
                found.append(x)
            return found

    settings = style.FULL | {"lr": 0.001, "device": "cuda", "filters": VGGFeatures()}
    (painter,) = style.train_stylizers(["instance"], **settings)
    large = style.pictures(512, "cuda")[style.HELD_OUT]
    painted = style.gallery([{"VGG": painter(large)}], size=256)
painted

# %% [markdown]
# ## What it throws away
#
# What the layer cannot see, no loss can teach. Take the digits, dim every second one to three tenths, and
# ask a network one thing: *was this one dimmed?* Any pixel's brightness tells.

# %%
from normtutor.lab import accuracy, digits, one_thread, train

data = digits()


def dim_every_second(images):
    dimmed = (torch.arange(len(images)) % 2).long()
    return images * (1 - 0.7 * dimmed.view(-1, 1, 1, 1)), dimmed


seen_images, seen_labels = dim_every_second(data.train_images)
new_images, new_labels = dim_every_second(data.test_images)
right = {}
with one_thread():
    for name in ("batch", "instance", "group", "group, no bias"):
        torch.manual_seed(0)
        network = networks.CNNWithBatchNorm(
            num_classes=2, image_size=8, norm=name.partition(",")[0]
        )
        if "no bias" in name:
            network.conv1.bias = None
        train(network, seen_images, seen_labels, steps=60, lr=0.05)
        right[name] = accuracy(network, new_images, new_labels)
        print(f"{name:14} {right[name]:.1%} right")
assert right["batch"] > 0.95
assert right["instance"] < 0.6, "Instance Normalization was expected to be blind"

# %% [markdown]
# Instance Normalization guesses, by the proof above: the first convolution and the normalization after it
# have already deleted the answer. Batch Normalization keeps it, since it divides all digits by one number.
# Group Normalization divides each digit by its own too, and yet it sees: the convolution's *bias* does not
# shrink with the picture, and within a group of channels it stays as the yardstick. Without that bias it is
# as blind.
#
# And where contrast says nothing about the class? On the plain digits:

# %%
with one_thread():
    for norm in ("batch", "instance"):
        torch.manual_seed(0)
        network = networks.CNNWithBatchNorm(image_size=8, norm=norm)
        train(network, data.train_images, data.train_labels, steps=60, lr=0.05)
        plain = accuracy(network, data.test_images, data.test_labels)
        foggy_digits = accuracy(network, 0.3 * data.test_images, data.test_labels)
        print(f"{norm:9} {plain:.1%} right, in fog {foggy_digits:.1%}")

# %% [markdown]
# So "Instance Normalization is bad for classification" is too simple. It deletes each map's mean and scale.
# On these digits that costs next to nothing, and fog no longer matters; where *how strong* a feature is, is
# the answer, it deletes the answer. How *often* the feature occurs survives, in the shape of what is left. A
# map with a share $p$ of ones among zeros becomes $\sqrt{(1-p)/p}$ at the ones and $-\sqrt{p/(1-p)}$
# elsewhere; after a ReLU its mean is $\sqrt{p(1-p)}$, whatever the ones' strength was:

# %% tags=["nbval-check-output"]
for share, strength in ((0.1, 1.0), (0.1, 0.3), (0.4, 1.0), (0.4, 0.3)):
    found = (torch.arange(100) < 100 * share).double() * strength
    left = forward(found.view(1, 1, 100)).relu().mean().item()
    print(f"{share:.0%} of the map at {strength}: mean after the ReLU {left:.2f}")

# %% [markdown]
# For photographs both are wanted, what Instance Normalization deletes and what it keeps: Pan et al.
# ([2018](https://arxiv.org/abs/1807.09441)) build classifiers with some channels of either kind.
#
# ## Variants
#
# **One style per set of $\gamma$ and $\beta$.** If Instance Normalization deletes a picture's style, then
# $\gamma$ and
# $\beta$ are where a new one comes in. Dumoulin et al.
# ([2017](https://arxiv.org/abs/1610.07629)) train one network for many styles: all weights are shared, and
# each style has its own $\gamma$ and $\beta$ (conditional Instance Normalization).
#
# **Adaptive Instance Normalization** (Huang & Belongie [2017](https://arxiv.org/abs/1703.06868)) learns
# none at all: it takes
# $\gamma$ and $\beta$ from the style picture, its standard deviation and mean, in every channel. They do it to VGG's
# features and train a decoder; done to the three colour channels themselves, it is a transfer of colours:

# %% mystnb={"image": {"alt": "Three pictures: the portrait of the astronaut, the Hubble deep field, and the portrait in the deep field's dark colours."}}
from normtutor.lab import photographs as load_photographs

sky = 2 * load_photographs("hubble")["hubble"] - 1
petals, face = dahlia.cpu(), portrait.cpu()


def with_colours_of(picture):
    """AdaIN on the pixels: γ and β are the other picture's."""
    std, mean = picture.std((1, 2), correction=0), picture.mean((1, 2))
    return functional.instance_norm(face[None], weight=std, bias=mean)[0].clamp(-1, 1)


style.gallery(
    [
        {
            "photograph": face,
            "the dahlia's colours": with_colours_of(petals),
            "the sky's": with_colours_of(sky),
        }
    ],
    size=72,
)

# %% [markdown]
# (The sky is the Hubble deep field, NASA, public domain.) An exercise asks you for AdaIN on a batch of
# features.
#
# ## Pitfalls
#
# **`InstanceNorm1d` and a table $(N, D)$.** It has no positions to average over, and Instance Normalization
# of it would be all zeros. torch does not say so: it takes a 2D input for *one* sample $(C, L)$, and
# normalizes each row over its features. That is Layer Normalization by accident, and nobody warns if $N$
# happens to be `num_features`.

# %% tags=["nbval-check-output"]
import warnings

table = torch.tensor(
    [[1.0, 5.0, 3.0], [10.0, 30.0, 20.0]]
)  # N = 2 rows, D = 3 features
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    by_torch = nn.InstanceNorm1d(2)(table)
rows = functional.layer_norm(table, (3,))
print("warnings:", len(caught), "- equals Layer Normalization:", same(by_torch, rows))
try:
    layers.InstanceNorm1d(3)(table[:, :, None])
except ValueError as error:
    print("(N, D, 1):", error)
try:
    layers.InstanceNorm1d(3, affine=True)(table)
except ValueError as error:
    print("with affine:", error)

# %% [markdown]
# **`view` needs contiguous memory.** The founding draft made one row per map with `x.view(batch_size *
# num_channels, height * width)`. That stops on a `channels_last` tensor, the layout that GPUs prefer for
# convolutions. (It also took `momentum` as an argument and ignored it.) A `reshape` mends it, or no reshape
# at all.

# %% tags=["nbval-check-output"]
x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
try:
    x.view(2 * 3, 4 * 4)
except RuntimeError as error:
    print(str(error)[:47])
print("the package:", same(layers.InstanceNorm2d(3)(x), forward(x)))

# %% [markdown]
# **A convolution's bias before it is dead weight**, as before Batch Normalization: the mean takes it out.
# (`StyleTransferBlock` has one all the same: the founding draft's does, and its checkpoints load.)
#
# **Small maps.** Deep in a network a map may have few positions: with 2 × 2, four values become a mean, a
# variance and two degrees of freedom; with 1 × 1 nothing is left, and the layer refuses. After global
# pooling there is nothing to normalize.

# %% tags=["nbval-check-output"]
layer = layers.InstanceNorm2d(1)
pairs = torch.tensor([[[[1.0, 2.0]]], [[[5.0, 90.0]]]])
print(
    "two positions, any picture:",
    [round(v, 2) for v in layer(pairs).flatten().tolist()],
)
try:
    layer(torch.randn(8, 1, 1, 1))
except ValueError as error:
    print(error)

# %% [markdown]
# **Crops are not the picture.** The statistics of a 48 × 48 crop differ from those of the whole photograph:
# the sky alone, the face alone. A network trained on crops meets other statistics at full size; tiles of a
# large picture, stylized one by one, do not fit together at their seams.
#
# ## Exercises
#
# Nine tasks, the last one a challenge. Write your answer in the cell under each statement and run it.
# `hint("…")` gives the next hint, `solution("…")` the reference.

# %%
from normtutor.exercises import check, progress, statement

# %% [markdown]
# ### 1. The forward formula

# %% tags=["nbval-check-output"]
statement("instance_norm.forward")


# %%
def instance_norm(x, weight, bias, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("instance_norm.forward", instance_norm)

# %% [markdown]
# ### 2. Dim the photograph

# %% tags=["nbval-check-output"]
statement("instance_norm.predict")

# %%
prediction = {
    "instance": ...,
    "instance, dimmed": ...,
    "instance, negative": ...,
    "batch, dimmed": ...,
    "gradient": ...,
}

# %% tags=["nbval-check-output"]
check("instance_norm.predict", prediction)

# %% [markdown]
# ### 3. Batch Normalization in disguise

# %% tags=["nbval-check-output"]
statement("instance_norm.reshape")


# %%
def instance_norm(x, weight, bias, batch_norm):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("instance_norm.reshape", instance_norm)

# %% [markdown]
# ### 4. Spot the bug: rows that are no channels

# %% tags=["nbval-check-output"]
statement("instance_norm.bug_layout")


# %%
def normalize(x, eps):
    n, h, w, c = x.shape
    rows = x.reshape(n * c, h * w)
    mean = rows.mean(dim=1, keepdim=True)
    var = rows.var(dim=1, keepdim=True, correction=0)
    y = (rows - mean) / torch.sqrt(var + eps)
    return y.reshape(n, h, w, c)


# %% tags=["nbval-check-output"]
check("instance_norm.bug_layout", normalize)

# %% [markdown]
# ### 5. The whole layer

# %% tags=["nbval-check-output"]
statement("instance_norm.layer")


# %%
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


# %% tags=["nbval-check-output"]
check("instance_norm.layer", InstanceNorm2d)

# %% [markdown]
# ### 6. The Gram matrix, a picture's style

# %% tags=["nbval-check-output"]
statement("instance_norm.gram")


# %%
def gram(features):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("instance_norm.gram", gram)

# %% [markdown]
# ### 7. Adaptive Instance Normalization

# %% tags=["nbval-check-output"]
statement("instance_norm.adain")


# %%
def adain(content, style, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("instance_norm.adain", adain)

# %% [markdown]
# ### 8. The backward pass by hand

# %% tags=["nbval-check-output"]
statement("instance_norm.backward")


# %%
def instance_norm_backward(grad, x, weight, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("instance_norm.backward", instance_norm_backward)

# %% [markdown]
# ### 9. Challenge: what contrast cannot fool

# %% tags=["nbval-check-output"]
statement("instance_norm.challenge")


# %%
def restore(images, examples):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("instance_norm.challenge", restore)


# %%
progress("instance_norm")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. A batch of 8 images, 64 channels, 16×16. How many means does `InstanceNorm2d` compute, and how many
# values does it learn by default?**
#
# <details>
# <summary>512 means, nothing learned</summary>
#
# Yes: one mean per sample and channel, each over 256 positions. torch's default is `affine=False`.
#
# </details>
# <details>
# <summary>512 means, 128 values learned</summary>
#
# The means are right. γ and β, 64 values each, exist with `affine=True` only.
#
# </details>
# <details>
# <summary>64 means, 128 values learned</summary>
#
# No. That is `BatchNorm2d`.
#
# </details>
#
# **2. Your network begins with a convolution and Instance Normalization. Which of these can it still see?**
#
# <details>
# <summary>Whether the photograph is under-exposed</summary>
#
# No. Exposure is a factor on all pixels, and the standard deviation divides it out.
#
# </details>
# <details>
# <summary>Whether the left half is darker than the right half</summary>
#
# Yes. The statistics belong to the whole map; differences *within* it stay.
#
# </details>
# <details>
# <summary>Whether all edges are stronger than in another photograph, by the same factor</summary>
#
# No. That is one factor on the whole map, and the standard deviation divides it out.
#
# </details>
#
# **3. You set `track_running_stats=True` and evaluate on foggy photographs. What happens?**
#
# <details>
# <summary>The same as in training: the fog is normalized away</summary>
#
# No. In evaluation the layer uses the statistics that it kept, for every photograph the same.
#
# </details>
# <details>
# <summary>The fog comes through</summary>
#
# Yes. With tracked statistics, evaluation is a fixed affine map per channel, as with Batch Normalization.
#
# </details>
# <details>
# <summary>An error: there are no statistics for fog</summary>
#
# No. The layer does not know what it looks at.
#
# </details>
#
# **4. In the backward pass, over what does the sum in $\partial L / \partial \gamma_c$ run, and over what
# the mean in
# $\partial L / \partial x$?**
#
# <details>
# <summary>Both over one map</summary>
#
# No. γ acts in every sample of the batch, so its gradient collects from all of them.
#
# </details>
# <details>
# <summary>Both over the batch and the positions</summary>
#
# No. That is Batch Normalization. Here no sample's statistics depend on another sample.
#
# </details>
# <details>
# <summary>The sum over batch and positions, the mean over one map</summary>
#
# Yes: parameters are shared by the samples, statistics are not.
#
# </details>
#
# ## References
#
# - Ulyanov, Vedaldi, Lempitsky: [Instance Normalization: The Missing Ingredient for Fast
#   Stylization](https://arxiv.org/abs/1607.08022), 2016. The method, and the argument from contrast.
# - Ulyanov, Vedaldi, Lempitsky: [Improved Texture Networks](https://arxiv.org/abs/1701.02096), 2017. Section 4:
#   stylization with Instance instead of Batch Normalization.
# - Gatys, Ecker, Bethge: [A Neural Algorithm of Artistic Style](https://arxiv.org/abs/1508.06576), 2015. Gram
#   matrices as style.
# - Johnson, Alahi, Fei-Fei: [Perceptual Losses for Real-Time Style Transfer and
#   Super-Resolution](https://arxiv.org/abs/1603.08155), 2016. The feed-forward network and its loss.
# - Ustyuzhaninov, Brendel, Gatys, Bethge: [Texture Synthesis Using Shallow Convolutional Networks with Random
#   Filters](https://arxiv.org/abs/1606.00021), 2016.
# - He, Wang, Hopcroft: [A Powerful Generative Model Using Random Weights for the Deep Image
#   Representation](https://arxiv.org/abs/1606.04801), 2016.
# - Dumoulin, Shlens, Kudlur: [A Learned Representation for Artistic Style](https://arxiv.org/abs/1610.07629),
#   2017. Conditional Instance Normalization.
# - Huang, Belongie: [Arbitrary Style Transfer in Real-time with Adaptive Instance
#   Normalization](https://arxiv.org/abs/1703.06868), 2017.
# - Pan, Luo, Shi, Tang: [Two at Once: Enhancing Learning and Generalization Capacities via
#   IBN-Net](https://arxiv.org/abs/1807.09441), 2018. Instance and Batch Normalization in one classifier.
# - PyTorch: [InstanceNorm2d](https://docs.pytorch.org/docs/stable/generated/torch.nn.InstanceNorm2d.html).
