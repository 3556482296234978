# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batch Normalization
#
# $$
# y = \gamma \, \frac{x - \mu_B}{\sqrt{\sigma_B^2 + \varepsilon}} + \beta
# $$
#
# Subtract each channel's mean over the batch, divide by its standard deviation, then let the network
# choose scale and shift. Sergey Ioffe and Christian Szegedy published it in
# [2015](https://arxiv.org/abs/1502.03167).
#
# In this chapter you derive it forward and backward, build the layer, prove it right, time it against the
# machine's limit, see what it does to a network, and then write it yourself, graded.
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
# A layer deep in a network sees inputs whose scale every layer before it can change. Batch Normalization
# fixes that scale: after it, each channel has the mean and the standard deviation that two learned numbers,
# $\beta$ and $\gamma$, prescribe.
#
# The picture to keep in mind is *which elements share one mean and one variance*. An image batch is a tensor of
# shape $(N, C, H, W)$: $N$ samples, $C$ channels, $H \times W$ positions. Batch Normalization
# computes its statistics **per channel**, over all samples and all positions.

# %%
import torch
from torch import nn

from normtutor.lab import accuracy, digits, index_set, line_chart, train, use_style

use_style()
BLUE, GREY, ORANGE = "#0072B2", "#6e6e6e", "#D55E00"

# %% mystnb={"image": {"alt": "A block of N samples by C channels by H·W positions. One channel is coloured: all its elements, in every sample and at every position, share one mean and one variance."}}
index_set("batch")

# %% [markdown]
# ## The problem, felt
#
# Take a plain multilayer perceptron, sixteen hidden layers deep, and real data: the 8×8 handwritten digits
# of scikit-learn, with every fourth image held out as the test set. Three versions: as PyTorch initializes it; with
# [Kaiming's initialization](https://arxiv.org/abs/1502.01852), made for ReLU; and with Batch Normalization
# after each linear layer.

# %%
from normtutor.networks import MLP

data = digits()
inputs, test_inputs = data.train_images.flatten(1), data.test_images.flatten(1)


def deep_network(norm, kaiming=False):
    torch.manual_seed(0)
    network = MLP([64] + [64] * 16 + [10], norm)
    for module in network:
        if kaiming and isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


networks = {
    "plain": deep_network("none"),
    "plain, Kaiming": deep_network("none", kaiming=True),
    "BatchNorm": deep_network("batch"),
}

# %% [markdown]
# Before any training: how different do two different images look after each layer? That is the standard deviation of
# an activation over images. Where it is 0, the network can no longer tell its inputs apart, and no gradient can
# teach it to.


# %%
@torch.no_grad()
def spread_by_layer(network):
    """Deviation over 256 images after each ReLU, averaged over the units."""
    x, spread = inputs[:256], []
    for module in network:
        x = module(x)
        if isinstance(module, nn.ReLU):
            spread.append(x.std(dim=0).mean().item())
    return spread


spread = {name: spread_by_layer(network) for name, network in networks.items()}

# %% mystnb={"image": {"alt": "Standard deviation of the activations over images, by layer, logarithmic. Plain: falls by orders of magnitude within sixteen layers. Kaiming: falls a little. BatchNorm: level."}}
line_chart(
    {name: (range(1, 17), values) for name, values in spread.items()},
    xlabel="hidden layer",
    ylabel="std over images (log)",
    yscale="log",
    title="Without help, sixteen layers erase the difference between two images",
    colours={"plain": GREY, "plain, Kaiming": ORANGE, "BatchNorm": BLUE},
)

# %% [markdown]
# Now train all three the same way: 150 steps of plain gradient descent, learning rate 0.1, batches of 64.

# %%
test_accuracy = {}
for name, network in networks.items():
    train(network, inputs, data.train_labels, steps=150, lr=0.1)
    test_accuracy[name] = accuracy(network, test_inputs, data.test_labels)
    print(
        f"{name:15} {test_accuracy[name]:.1%} of the test digits right after 150 steps"
    )

assert test_accuracy["plain"] < 0.3, "the plain network was expected to fail here"
assert test_accuracy["BatchNorm"] > 0.75, "the normalized network was expected to learn"

# %% [markdown]
# Guessing gives 10 %. A careful initialization repairs the *start*; Batch Normalization keeps the scale right *while
# the weights move*, and needs no knowledge of the activation function. Skip connections are a third cure. The
# question of this chapter is what exactly the formula does, and what it costs.

# %% [markdown]
# ## The forward formula
#
# Every normalization of this course is one formula over another **index set**. Write an element's index
# as $i = (i_N, i_C, i_H, i_W)$. Batch Normalization gives $i$ the set of all elements of its channel
# ([Wu & He 2018](https://arxiv.org/abs/1803.08494), section 3.1):
#
# $$
# S_i = \lbrace k \mid k_C = i_C \rbrace, \qquad m = |S_i| = N H W
# $$
#
# Over this set, take mean and variance, and standardize:
#
# $$
# \begin{aligned}
# \mu_i &= \frac{1}{m} \sum_{k \in S_i} x_k \\
# \sigma_i^2 &= \frac{1}{m} \sum_{k \in S_i} (x_k - \mu_i)^2 \\
# \hat{x}_i &= \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \varepsilon}}
# \end{aligned}
# $$
#
# and give the network its freedom back: $y_i = \gamma_{i_C} \hat{x}_i + \beta_{i_C}$.
#
# | symbol | meaning | shape |
# |---|---|---|
# | $x, \hat{x}, y$ | input, standardized, output | $(N, C, H, W)$, or $(N, C)$ after a linear layer |
# | $\mu, \sigma^2$ | mean and *biased* variance (divided by $m$) | $(C)$ |
# | $\gamma, \beta$ | learned scale and shift, `weight` and `bias` | $(C)$ |
# | $\varepsilon$ | keeps the root away from 0, $10^{-5}$ | number |
#
# In code, the index set is a choice of axes, and nothing else:


# %%
def forward(x, gamma, beta, eps=1e-5):
    """Batch Normalization of (N, C, *) in training, as the formula says."""
    index_set = [
        axis for axis in range(x.dim()) if axis != 1
    ]  # every axis but the channel's
    mean = x.mean(index_set, keepdim=True)
    var = (x - mean).square().mean(index_set, keepdim=True)
    x_hat = (x - mean) / torch.sqrt(var + eps)
    per_channel = [-1] + [1] * (x.dim() - 2)
    return gamma.view(per_channel) * x_hat + beta.view(per_channel)


# %% [markdown]
# By hand, for two samples of two channels. Channel 0 holds 1 and 5: mean 3, variance 4, so $\hat{x} = \pm 1$ (with
# $\varepsilon = 0$). Channel 1 holds 30 and 70: mean 50, variance 400, and the same $\hat{x}$. The scale is
# gone; $\gamma = (1, 10)$ and $\beta = (0, 100)$ put a new one in its place.

# %% tags=["nbval-check-output"]
x = torch.tensor([[1.0, 30.0], [5.0, 70.0]])
print(
    forward(x, gamma=torch.tensor([1.0, 1.0]), beta=torch.tensor([0.0, 0.0]), eps=0.0)
)
print(
    forward(
        x, gamma=torch.tensor([1.0, 10.0]), beta=torch.tensor([0.0, 100.0]), eps=0.0
    )
)

# %% [markdown]
# Two facts follow at once. Over $S_i$, $\hat{x}$ has mean 0 and variance $\sigma^2 / (\sigma^2 + \varepsilon)$, a
# little under 1. And $\hat{x}$ does not change when a channel is shifted, or (up to $\varepsilon$)
# multiplied by a positive number: a bias before Batch Normalization does nothing, and the length of a weight vector
# before it does nothing either.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
y = forward(x, one, zero)
print("mean 0:", torch.allclose(y.mean((0, 2, 3)), zero, atol=1e-12))
var = x.var((0, 2, 3), correction=0)
print(
    "variance σ²/(σ²+ε):",
    torch.allclose(y.var((0, 2, 3), correction=0), var / (var + 1e-5), atol=1e-12),
)
print("shift does nothing:", torch.allclose(forward(x + 7, one, zero), y, atol=1e-12))
print(
    "scale does nothing but for ε:",
    torch.allclose(forward(5 * x, one, zero), y, atol=1e-4),
)

# %% [markdown]
# ## The backward pass
#
# Let $g_i = \partial L / \partial y_i$ be what arrives from above. Three gradients are wanted; two are
# short, because $y = \gamma \hat{x} + \beta$ is affine in its parameters:
#
# $$
# \frac{\partial L}{\partial \beta_c} = \sum_{i:\, i_C = c} g_i, \qquad
# \frac{\partial L}{\partial \gamma_c} = \sum_{i:\, i_C = c} g_i \hat{x}_i
# $$
#
# The third is the interesting one: every $x_k$ of a channel moves *every* $\hat{x}_i$ of it, through mean and
# variance. Work in one channel, with $r = 1/\sqrt{\sigma^2 + \varepsilon}$ and $\hat{g}_i = \gamma g_i$, the
# gradient at $\hat{x}_i$. Step by step:
#
# **1. The mean** moves by $\partial \mu / \partial x_k = 1/m$.
#
# **2. The variance** moves by
# $\partial \sigma^2 / \partial x_k = \frac{2}{m} (x_k - \mu)$. (The mean inside it contributes
# $-\frac{2}{m} \sum_i (x_i - \mu) \cdot \frac{1}{m}$, which is 0.)
#
# **3. The factor** $r = (\sigma^2 + \varepsilon)^{-1/2}$ moves by
#
# $$
# \begin{aligned}
# \frac{\partial r}{\partial x_k}
# &= -\tfrac{1}{2} (\sigma^2 + \varepsilon)^{-3/2} \cdot \tfrac{2}{m} (x_k - \mu) \\
# &= -\frac{r^2}{m} \hat{x}_k
# \end{aligned}
# $$
#
# because $(x_k - \mu) = \hat{x}_k / r$ and $(\sigma^2+\varepsilon)^{-3/2} = r^3$.
#
# **4. The output** $\hat{x}_i = (x_i - \mu)\, r$ moves, by the product rule, with $\delta_{ik} = 1$ if $i = k$, else 0:
#
# $$
# \begin{aligned}
# \frac{\partial \hat{x}_i}{\partial x_k}
# &= r \left( \delta_{ik} - \tfrac{1}{m} \right) - (x_i - \mu) \tfrac{r^2}{m} \hat{x}_k \\
# &= r \left( \delta_{ik} - \tfrac{1}{m} - \tfrac{1}{m} \hat{x}_i \hat{x}_k \right)
# \end{aligned}
# $$
#
# **5. Sum over all outputs**, $\partial L / \partial x_k = \sum_i \hat{g}_i \, \partial \hat{x}_i / \partial x_k$:
#
# $$
# \begin{aligned}
# \frac{\partial L}{\partial x_k} = r \Big( \hat{g}_k
# &- \tfrac{1}{m} \textstyle\sum_i \hat{g}_i \\
# &- \hat{x}_k \cdot \tfrac{1}{m} \textstyle\sum_i \hat{g}_i \hat{x}_i \Big)
# \end{aligned}
# $$
#
# This closed form is the whole backward pass: the gradient, **minus its mean, minus its component along
# $\hat{x}$**, scaled by $r$. In code, for one channel, as a function that autograd can call:


# %%
class OneChannel(torch.autograd.Function):
    """Batch Normalization of m values, its backward pass the closed form."""

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
        return dx, (g * x_hat).sum(0, keepdim=True), g.sum(0, keepdim=True), None


# %% [markdown]
# Two checks: against what autograd makes of the forward formula above, and against finite differences
# (`gradcheck` compares every partial derivative). An exercise asks you for the same over all
# of $(N, C, H, W)$.

# %% tags=["nbval-check-output"]
x = torch.randn(12, dtype=torch.float64, requires_grad=True)
gamma = torch.randn(1, dtype=torch.float64, requires_grad=True)
beta = torch.randn(1, dtype=torch.float64, requires_grad=True)
g = torch.randn(12, dtype=torch.float64)

closed_form = torch.autograd.grad(
    OneChannel.apply(x, gamma, beta, 1e-5), (x, gamma, beta), g
)
by_autograd = torch.autograd.grad(
    forward(x[:, None], gamma, beta)[:, 0], (x, gamma, beta), g
)
for name, ours, theirs in zip(("x", "γ", "β"), closed_form, by_autograd, strict=True):
    print(
        f"closed form equals autograd, {name}:",
        torch.allclose(ours, theirs, atol=1e-12),
    )
equal = torch.autograd.gradcheck(
    lambda *inputs: OneChannel.apply(*inputs, 1e-5), (x, gamma, beta)
)
print("closed form equals finite differences:", equal)

# %% [markdown]
# Read the formula once more as geometry. The two subtracted terms are projections: in each channel the gradient that
# leaves the layer is orthogonal to the constant vector, and (up to $\varepsilon$) to $\hat{x}$. Nothing
# downstream can ask the layer before it to shift or to scale its output, since normalization would undo either.

# %% tags=["nbval-check-output"]
dx, x_hat = closed_form[0], (x - x.mean()).detach() / x.std(correction=0).detach()
print("orthogonal to the constant:", (dx.sum().abs() < 1e-12 * dx.norm()).item())
print("orthogonal to x̂, up to ε:", ((dx @ x_hat).abs() < 1e-4 * dx.norm()).item())

# %% [markdown]
# ## Building the layer
#
# The package's function is the same formula, with the half-precision rule and the running statistics added. The
# standardization itself is shared by every technique of this course; Batch Normalization only chooses the axes.

# %%
from normtutor import functional
from normtutor.exercises import check, progress, statement
from normtutor.lab import show_source

show_source(functional.standardize)

# %%
show_source(functional.batch_norm)

# %% [markdown]
# The layer adds state: two parameters, three buffers, and the decision which statistics to use. This is its
# forward pass:

# %%
from normtutor import layers

show_source(layers.BatchNorm2d.forward)

# %% [markdown]
# It takes `torch.nn.BatchNorm2d`'s arguments and has its state dict, so a checkpoint loads both ways.

# %% tags=["nbval-check-output"]
ours, theirs = layers.BatchNorm2d(3), nn.BatchNorm2d(3)
print(ours)
for key, value in ours.state_dict().items():
    print(f"{key:20} {tuple(value.shape)!s:6} {value.dtype}")
theirs.load_state_dict(ours.state_dict())

# %% [markdown]
# And it agrees with the small cell above, on every rank, in value and in gradient:

# %% tags=["nbval-check-output"]
from normtutor.catalog import technique

for shape in technique("batch").parity_shapes:
    layer = technique("batch").layer(shape).double()
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
# ## Training and inference
#
# In training the statistics come from the batch. In inference there may be no batch: one image arrives, and its
# result must not depend on its company. So the layer keeps **running statistics** while it trains,
#
# $$
# \text{running} \leftarrow (1 - \alpha) \cdot \text{running} + \alpha \cdot \text{batch's}
# $$
#
# with $\alpha$ = `momentum` (0.1), and uses them, as constants, in evaluation mode. Three details matter, and each is a
# classic bug:
#
# **Biased and unbiased.** The batch is normalized with the biased variance, divided by $m$; the
# running variance stores the *unbiased* one, $\frac{m}{m-1} \sigma^2$, since it stands for the population
# (Ioffe & Szegedy 2015, Algorithm 2). With $m = 2$, as below, they differ by a factor of two.

# %% tags=["nbval-check-output"]
layer = layers.BatchNorm1d(1, momentum=1.0)  # keeps only the newest batch
y = layer(torch.tensor([[1.0], [5.0]]))  # mean 3, biased variance 4, unbiased 8
print("output (±1 but for ε):", y.flatten().tolist())
print("running mean, var:    ", layer.running_mean.item(), layer.running_var.item())

# %% [markdown]
# **`momentum=None`** means the cumulative average: the $t$-th batch has the weight $1/t$, so that all
# batches count alike. **The counter** `num_batches_tracked` provides $t$, and is incremented *before* it is used: the
# first batch has weight 1 and wipes out the initial 0 and 1.

# %% tags=["nbval-check-output"]
batches = [
    torch.tensor([[1.0], [5.0]]),
    torch.tensor([[4.0], [8.0]]),
    torch.tensor([[7.0], [11.0]]),
]
exponential, cumulative = layers.BatchNorm1d(1), layers.BatchNorm1d(1, momentum=None)
print("batch  mean   momentum=0.1   momentum=None")
for batch in batches:
    exponential(batch), cumulative(batch)
    print(
        f"{exponential.num_batches_tracked.item():5}{batch.mean().item():6.1f}"
        f"{exponential.running_mean.item():15.3f}{cumulative.running_mean.item():16.3f}"
    )

# %% [markdown]
# In evaluation mode the layer is a fixed affine map of each element: a batch of one is fine, and company changes
# nothing. In training mode a batch with a single value per channel has no variance, and is refused.

# %% tags=["nbval-check-output"]
layer = layers.BatchNorm1d(3)
layer(torch.randn(16, 3))
x = torch.randn(4, 3)
layer.eval()
print("alone as in company:", torch.equal(layer(x)[:1], layer(x[:1])))
layer.train()
try:
    layer(x[:1])
except ValueError as error:
    print(error)

# %% [markdown]
# ## Numerics
#
# $\sigma^2 = E[x^2] - E[x]^2$ needs one pass over the data and looks like a bargain. Subtracting two large, almost
# equal numbers cancels their leading digits: with mean/std = $10^3$ the two agree in six decimal digits, and
# float32 holds seven. The two-pass formula, $E[(x - \mu)^2]$, subtracts first.

# %%
offsets = [0.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5]
torch.manual_seed(0)
noise = torch.randn(400, 1024)  # 400 channels of 1024 values


def one_pass(x):
    return x.square().mean(1) - x.mean(1).square()


def two_pass(x):
    return (x - x.mean(1, keepdim=True)).square().mean(1)


def torch_var(x):
    return x.var(1, correction=0)


def relative_error(variance, offset):
    """Median over the channels, against float64 on the same, rounded values."""
    x = noise + offset
    truth = two_pass(x.double())
    return ((variance(x).double() - truth) / truth).abs().median().item()


errors = {
    "one pass": [relative_error(one_pass, offset) for offset in offsets],
    "two passes": [relative_error(two_pass, offset) for offset in offsets],
    "torch.var": [relative_error(torch_var, offset) for offset in offsets],
}
negative = (one_pass(noise + 1e4) < 0).float().mean().item()
print(f"mean/std = 10⁴: one-pass variance negative in {negative:.0%} of the channels")
assert errors["one pass"][5] > 0.1 > 100 * errors["two passes"][5]

# %% mystnb={"image": {"alt": "Relative error of the variance against mean over standard deviation, both logarithmic. One pass: rises with the square of the offset, past 1 at ten thousand. Two passes and torch.var: stay near rounding error."}}
line_chart(
    {name: (offsets[1:], values[1:]) for name, values in errors.items()},
    xlabel="mean / std (log)",
    ylabel="relative error of σ² (log)",
    xscale="log",
    yscale="log",
    title="The one-pass variance loses everything at mean/std = 10⁴",
    colours=dict(zip(errors, (ORANGE, BLUE, GREY), strict=True)),
)

# %% [markdown]
# [nn.labml.ai's Batch Normalization](https://nn.labml.ai/normalization/batch_norm/index.html) computes it that way,
# and an exercise lets you repair it. Even the two-pass formula keeps one error: the
# *mean* itself is rounded. At $10^4$, neighbouring float32 numbers are $0.001$ apart, and $x - \mu$ is wrong by up
# to half of that, everywhere. The package therefore shifts by the rounded mean first, and subtracts the small mean of what
# is left. Compare the layer's *output* with float64:


# %%
def output_error(normalize, offset, memory_format=torch.contiguous_format):
    """Largest error of x̂ against float64 on the same, rounded values."""
    torch.manual_seed(0)
    x = (torch.randn(16, 8, 12, 12) + offset).to(memory_format=memory_format)
    y, truth = normalize(x), forward(x.double(), torch.ones(8), torch.zeros(8))
    return (y.detach().double() - truth).abs().max().item()


one, zero = torch.ones(8), torch.zeros(8)
rivals = {
    "the small cell": (lambda x: forward(x, one, zero), torch.contiguous_format),
    "torch.nn": (nn.BatchNorm2d(8), torch.contiguous_format),
    "torch.nn, channels_last": (nn.BatchNorm2d(8), torch.channels_last),
    "normtutor": (layers.BatchNorm2d(8), torch.contiguous_format),
    "normtutor, channels_last": (layers.BatchNorm2d(8), torch.channels_last),
}
print(f"{'mean/std':26}" + "".join(f"{offset:>10.0e}" for offset in (1, 1e2, 1e3, 1e4)))
for name, (layer, memory_format) in rivals.items():
    row = [output_error(layer, offset, memory_format) for offset in (1, 1e2, 1e3, 1e4)]
    print(f"{name:26}" + "".join(f"{error:10.1e}" for error in row))
assert row[-1] < 1e-5, "the package's layer should be right to rounding at 10⁴"

# %% [markdown]
# Half precision has two more traps,
# both in the *buffers*: a bfloat16 running mean stops moving when the step is less than half the distance to the
# next bfloat16, and a float16 running variance overflows at 65504. Statistics of half-precision inputs are
# accumulated in float32 here; keep the buffers in float32 as well (that is what autocast does).

# %% tags=["nbval-check-output"]
ones = torch.full((64, 1), 1.0)
for dtype in (torch.float32, torch.bfloat16):
    layer = layers.BatchNorm1d(1, dtype=dtype)
    for _ in range(200):
        layer(ones.to(dtype) + torch.tensor([[-0.5], [0.5]], dtype=dtype).repeat(32, 1))
    print(
        f"200 batches of mean 1, {dtype}: running mean {layer.running_mean.item():.4f}"
    )
layer = layers.BatchNorm1d(1, momentum=1.0, dtype=torch.float16)
layer(torch.tensor([[-300.0], [300.0]], dtype=torch.float16))
print("running variance of ±300 in torch.float16:", layer.running_var.item())

# %% [markdown]
# ## Parity
#
# Is the layer right? Not "equal to `torch.nn`": torch is one more candidate. Both are compared with the closed form,
# evaluated in extended precision on the same inputs: output, every gradient, and the buffers after three steps; in both
# modes; for four number formats (half precision with half and with float32 parameters); for contiguous, strided and
# channels-last tensors; with means up to $10^4$ standard deviations; on every device that is present.
#
# The rule: our error may be twice torch's plus 4 units in the last place. That is the column *allowed*. A quantity
# that both get right to rounding may well have three times torch's error and still be a fraction of one unit.

# %%
from normtutor.lab import parity

report = parity("batch")
print(report.table(by=("device", "dtype", "mode")))
assert report.ok

# %% [markdown]
# The hard case, mean/std = $10^4$ in training: the error of the output.

# %%
by = ("dtype", "layout")
print(report.table(by=by, quantity="output", offset=1e4, mode="train"))

# %% [markdown]
# ## Timing
#
# Normalization does a handful of operations per element, so on any modern machine it is limited by memory: what
# counts is how many bytes must move. Training needs the mean before it can normalize. If the tensor fits in the
# last-level cache, the input is read once and the output written once: 2 passes forward, 3 backward ($x$ and
# $\partial y$ in, $\partial x$ out). If it does not fit, $x$ must be read twice: **3 passes forward and 5 backward**.
#
# The bound is then bytes ÷ copy bandwidth, with the bandwidth measured in the same run, by copying a large tensor.
# The table gives each candidate's time and its fraction of that bound: 1.00 is as fast as the machine can move the
# bytes. Expect far less on a CPU, where arithmetic and the many small steps of eager code count too.
#
# Candidates run in one process, interleaved, after a warm-up; the median counts. Quartiles far apart mean that
# something else was using the machine: run the cell again.

# %%
from normtutor.lab import bench

sweep = bench("batch")
print(sweep)

# %% mystnb={"image": {"alt": "Fraction of the copy bandwidth reached against tensor size, for our eager layer and torch.nn, forward and forward plus backward. torch.nn lies above the eager layer at every size."}}
sweep.plot()

# %% [markdown]
# The eager layer reads like the formula, and pays for it: every operation is a pass of its own over memory.
# `torch.compile` fuses operations into fewer passes. One size here, since compiling takes longer than measuring;
# `make bench` compiles at every size.

# %%
compiled = bench("batch", shapes=[(16, 64, 32, 32)], compiled=True)
print(compiled)

# %% [markdown]
# All of the above is the machine you run on. The record of a GPU:

# %%
from normtutor.lab import recorded

print(recorded("batch"))

# %% [markdown]
# ## Memory
#
# Parameters are few; what costs memory is what autograd keeps for the backward pass. The closed form needs one tensor
# of the input's size, the input or $\hat{x}$. The eager layer keeps what each of its operations asks for.

# %%
from normtutor.lab import memory, memory_table

x = torch.randn(16, 64, 32, 32, requires_grad=True)
print(
    memory_table(
        {
            "eager": memory(layers.BatchNorm2d(64), x),
            "torch.nn": memory(nn.BatchNorm2d(64), x),
        }
    )
)

# %% [markdown]
# ## In a network
#
# The course's convolutional network, with and without Batch Normalization: same initialization, same data, same
# learning rate.

# %%
from normtutor.networks import CNNWithBatchNorm

steps, curves = list(range(10, 101, 10)), {}
for norm in ("none", "batch"):
    torch.manual_seed(0)
    network = CNNWithBatchNorm(image_size=8, norm=norm)
    curve = []
    train(
        network,
        data.train_images,
        data.train_labels,
        steps=100,
        lr=0.05,
        every=10,
        on_step=lambda step, net=network, to=curve: to.append(
            accuracy(net, data.test_images, data.test_labels)
        ),
    )
    curves[norm] = curve
trained = network  # with Batch Normalization; folded below
print({norm: f"{curve[-1]:.1%}" for norm, curve in curves.items()})
assert curves["batch"][4] > curves["none"][4] + 0.1, (
    "after 50 steps the normalized network should lead"
)

# %% mystnb={"image": {"alt": "Test accuracy on digits against training steps. The network with Batch Normalization rises to above 90 percent within a few dozen steps; the one without rises later."}}
line_chart(
    {"none": (steps, curves["none"]), "BatchNorm": (steps, curves["batch"])},
    xlabel="training step",
    ylabel="test accuracy",
    title="The same convolutional network learns in fewer steps",
    colours={"none": GREY, "BatchNorm": BLUE},
)

# %% [markdown]
# ### Four published claims, put to the test
#
# Each claim below is tested twice: here, briefly, and in full by `make claims`, whose record is shown. What counts as
# "reproduces" is fixed beforehand, in the line *Holds if*, and wide enough that a lucky seed does not decide. A test
# of the course puts the identity in the place of Batch Normalization, and sees each of the four fail.
#
# **Faster, and at higher learning rates.** The experiment is small enough to read:

# %%
from normtutor.lab import claims
from normtutor.lab.claims import batch_norm as experiments

show_source(experiments.steps_to_90_percent)

# %%
outcome = claims.run("batch_norm.learning_rates")
print(outcome)
print(claims.recorded("batch_norm.learning_rates"))
assert outcome.holds

# %% [markdown]
# **Why?** Ioffe and Szegedy named *internal covariate shift*: the layers' inputs keep moving. Santurkar and others
# tested that explanation in 2018 and found another: the loss landscape becomes smoother. Walk
# along the gradient from where training stands, and see how much the loss, and the gradient, change:

# %%
outcome = claims.run("batch_norm.landscape")
print(outcome)
print(claims.recorded("batch_norm.landscape"))
assert outcome.holds

# %% [markdown]
# **The samples of a batch talk to each other.** Show a network sixteen digits, the first one sometimes
# as a negative, and ask it for each of the *other fifteen* whether the first was. Nothing in their
# pixels tells. Batch statistics do:

# %%
outcome = claims.run("batch_norm.leak")
print(outcome)
print(claims.recorded("batch_norm.leak"))
assert outcome.holds

# %% [markdown]
# In contrastive learning this is cheating, and MoCo shuffles samples between devices to prevent it. It is
# also why Batch Normalization acts as a regularizer: every sample sees the noise of its company.
#
# **Small batches hurt.** The optimizer's batch stays at 32; only the number of samples that supply the
# statistics shrinks, as it would on more devices with fewer samples each:

# %%
outcome = claims.run("batch_norm.statistics_batch")
print(outcome)
print(claims.recorded("batch_norm.statistics_batch"))
assert outcome.holds

# %% mystnb={"image": {"alt": "Test error against the number of samples that supply the statistics. Batch Normalization: low at 32 and 8, many times higher at 2. LayerNorm, which needs no batch: a low level line."}}
errors = {int(size): 100 * runs[0] for size, runs in outcome.measured["error"].items()}
sizes = sorted(errors)
line_chart(
    {
        "BatchNorm": (sizes, [errors[size] for size in sizes]),
        "LayerNorm": (sizes, [100 * outcome.measured["layer"][0]] * len(sizes)),
    },
    xlabel="samples that supply the statistics (log)",
    ylabel="test error (%)",
    xscale="log",
    title="Two samples are too few to estimate a variance",
    colours={"BatchNorm": BLUE, "LayerNorm": ORANGE},
)

# %% [markdown]
# ## Variants
#
# **Adaptive momentum.** With momentum 0.1, the running mean starts at 0 and still carries
# $0.9^{10} = 35\,\%$ of that 0 after ten batches. An early draft of this course proposed the weight
# $\min(0.1, 1/(t+1))$ for the $t$-th batch, counted from 0. Look at it: it is 0.1 for the first ten batches, so
# nothing is gained at the start, and $1/(t+1)$ later, so the initial 0 is remembered longer than without it. The
# useful rule is the opposite one, $\max(0.1, 1/t)$ counted from 1: a plain average first, and an exponential
# one once there are enough batches. That is what `AdaptiveBatchNorm` does. (The draft also stored the biased variance, and
# replaced its buffers by results that can drag the autograd graph of every earlier batch along.)

# %% tags=["nbval-check-output"]
rules = {
    "torch, 0.1": lambda t: 0.1,
    "min(0.1, 1/(t+1)), t from 0": lambda t: min(0.1, 1 / t),
    "max(0.1, 1/t), t from 1": lambda t: max(0.1, 1 / t),
}
print("share of the initial value left in the running mean after t batches")
print(f"{'':28}" + "".join(f"{f't = {t}':>10}" for t in (1, 5, 10, 50)))
for name, rule in rules.items():
    left, row = 1.0, f"{name:28}"
    for t in range(1, 51):
        left *= 1 - rule(t)
        row += f"{left:10.3f}" if t in (1, 5, 10, 50) else ""
    print(row)

# %% tags=["nbval-check-output"]
layer, plain = layers.AdaptiveBatchNorm(1), layers.BatchNorm1d(1)
for _ in range(5):
    batch = torch.tensor([[4.0], [6.0]])  # mean 5
    layer(batch), plain(batch)
print("running mean after five batches of mean 5:")
print(f"  adaptive {layer.running_mean.item():.3f}")
print(f"  plain    {plain.running_mean.item():.3f}")

# %% [markdown]
# When would you want it? When evaluation starts after few steps: short fine-tuning, re-estimating
# statistics, tests. After a hundred batches the two hardly differ.
#
# **Learnable statistics.** The same draft made the running statistics parameters, updated them by hand, and
# normalized with the batch's: so no gradient ever reached them in training. `LearnableBatchNorm` does what the name
# says: $y = \gamma (x - m)/\sqrt{|v| + \varepsilon} + \beta$ in both modes, and the loss moves $m$ and $v$.

# %% tags=["nbval-check-output"]
m, v = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
x = torch.randn(8, 3)
loss = functional.batch_norm(
    x, m.detach(), v.detach(), torch.ones(3, requires_grad=True), training=True
).sum()
print("the draft's, in training:", torch.autograd.grad(loss, (m, v), allow_unused=True))
layer = layers.LearnableBatchNorm(3)
layer(x).square().sum().backward()
print(
    "LearnableBatchNorm:",
    all(p.grad is not None for p in (layer.running_mean, layer.running_var)),
)

# %% [markdown]
# When would you want it? It works with a batch of one, where Batch Normalization cannot train. But $m$ and $v$ add
# nothing to what $\gamma$ and $\beta$ can express: all four together are one affine map. So try it: fine-tune a
# trained network on negatives of the digits, with learnable statistics, and with the
# statistics simply frozen, at 1 and at 8 images per batch. (Batch Normalization itself cannot train on one image.)

# %%
import copy


def with_norm(network, replace):
    """A copy of the network, each layers.BatchNorm1d replaced."""
    network = copy.deepcopy(network)
    for name, module in network.named_children():
        if isinstance(module, layers.BatchNorm1d):
            setattr(network, name, replace(module))
    return network


class Frozen(nn.Module):
    """Batch Normalization in evaluation mode for good; γ and β still learn."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm.eval()(x)


def learnable(norm):
    layer = layers.LearnableBatchNorm(norm.num_features)
    layer.load_state_dict(norm.state_dict())
    return layer


torch.manual_seed(0)
base = MLP([64, 100, 100, 10])
train(base, inputs, data.train_labels, steps=300, lr=0.1, momentum=0.9)
right = accuracy(base, 1 - test_inputs, data.test_labels)
print(f"before fine-tuning: {right:.1%} of the negatives right")
for batch_size, seed in ((1, 0), (1, 1), (8, 0), (8, 1)):
    candidates = {
        "frozen": with_norm(base, Frozen),
        "learnable": with_norm(base, learnable),
    }
    if batch_size > 1:
        candidates["batch statistics"] = copy.deepcopy(base)
    for name, network in candidates.items():
        batches = {"batch_size": batch_size, "seed": seed}
        train(network, 1 - inputs, data.train_labels, steps=200, lr=0.01, **batches)
        right = accuracy(network, 1 - test_inputs, data.test_labels)
        print(f"batches of {batch_size}, seed {seed}, {name}: {right:.1%}")

# %% [markdown]
# A negative result, worth knowing: with one image per batch both are poor and luck decides; with eight, learnable
# statistics are no better than frozen ones, at times much worse, and batch statistics adapt best. Use `LearnableBatchNorm` to study the question,
# frozen statistics to fine-tune with tiny batches, and a technique that needs no batch to train with them.

# %% [markdown]
# ## Folding into a convolution
#
# In evaluation mode Batch Normalization multiplies each channel by $s = \gamma / \sqrt{v + \varepsilon}$ and adds a
# constant. The convolution before it is linear. So the two are one convolution:
#
# $$
# \begin{aligned}
# & s \, (W * x + b - m) + \beta \\
# &= (s W) * x + \big( s (b - m) + \beta \big)
# \end{aligned}
# $$
#
# with $s$ applied per *output* channel. A folded network pays nothing for its normalization. Fold the
# network trained above, in float64, and compare:

# %% tags=["nbval-check-output"]
network = copy.deepcopy(trained).double().eval()
folded = copy.deepcopy(network)
for linear, norm in (("conv1", "norm1"), ("conv2", "norm2"), ("fc1", "norm3")):
    setattr(
        folded,
        linear,
        layers.fold_batch_norm(getattr(network, linear), getattr(network, norm)),
    )
    setattr(folded, norm, nn.Identity())

images = data.test_images.double()
with torch.no_grad():
    difference = (network(images) - folded(images)).abs().max() / network(
        images
    ).abs().max()
print(
    "equal to rounding, relative difference below 1e-13:", (difference < 1e-13).item()
)
print(
    "normalization layers left:",
    sum(
        isinstance(m, layers.BatchNorm1d | layers.BatchNorm2d) for m in folded.modules()
    ),
)

# %% [markdown]
# The source of `fold_batch_norm` is not shown here: an exercise asks you for it.
#
# ## Pitfalls
#
# **A bias before Batch Normalization is dead weight.** The mean takes it out again; its gradient is zero.

# %% tags=["nbval-check-output"]
conv = nn.Conv2d(1, 4, 3).double()
layers.BatchNorm2d(4, dtype=torch.float64)(conv(data.train_images[:32].double())).pow(
    3
).sum().backward()
print("gradient of the weight:", (conv.weight.grad.abs().max() > 1e-3).item())
print(
    "gradient of the bias:  ",
    (conv.bias.grad.abs().max() > 1e-9 * conv.weight.grad.abs().max()).item(),
)

# %% [markdown]
# **Forgotten `eval()`.** In training mode the answer to one image depends on which others are in the batch, and every
# forward pass, under `torch.no_grad()` too, moves the running statistics.

# %% tags=["nbval-check-output"]
layer = layers.BatchNorm2d(1)
image, company = data.test_images[:1], data.test_images[1:9]
with torch.no_grad():
    first = layer(torch.cat([image, company]))[0]
    second = layer(torch.cat([image, 2 * company]))[0]
print("same image, same output:", torch.allclose(first, second))
print("batches counted while 'only looking':", layer.num_batches_tracked.item())

# %% [markdown]
# **Gradient accumulation is not a larger batch.** Two half batches have two means. **Activation checkpointing** runs the
# forward pass twice, and so updates the buffers twice:

# %% tags=["nbval-check-output"]
from torch.utils.checkpoint import checkpoint

layer = layers.BatchNorm2d(1)
x = data.train_images[:8].clone().requires_grad_()
checkpoint(layer, x, use_reentrant=False).sum().backward()
print("one training step, batches counted:", layer.num_batches_tracked.item())

# %% [markdown]
# **Very deep networks without skip connections explode at initialization**, *because of* Batch Normalization:
# for ReLU and large batches, the squared gradient grows by $\pi/(\pi - 1) \approx 1.467$ per layer
# ([Yang et al. 2019](https://arxiv.org/abs/1902.08129)). Forty layers are a factor of several million. Measured:

# %%
torch.manual_seed(0)
very_deep = MLP([64] + [256] * 30 + [10])
x, activations = inputs[:256], []
for module in very_deep:
    x = module(x)
    if isinstance(module, nn.Linear):
        x.retain_grad()
        activations.append(x)
x.square().sum().backward()
squared = [a.grad.square().mean().item() for a in activations]
growth = (squared[4] / squared[24]) ** (1 / 20)
print(f"squared gradient, growth per layer: {growth:.3f}")
print("theory, for infinite width and batch: 1.467")
assert 1.3 < growth < 1.65

# %% [markdown]
# **Several devices.** Each normalizes with its own share of the batch, unless torch's `SyncBatchNorm`
# is used; its `convert_sync_batchnorm` converts torch's layers and these alike.
# **Weight decay** on weights before Batch Normalization does not limit the function, which ignores their length; it sets the
# effective learning rate ([van Laarhoven 2017](https://arxiv.org/abs/1706.05350)).
#
# ## Exercises
#
# Eleven tasks, from a first success in a minute to a real challenge. Write your answer in the cell under each statement
# and run it: the checker says what is right already, and which mistake it sees. `hint("…")` gives the next hint,
# `solution("…")` the reference. Nothing leaves your machine; your progress is in `normtutor_progress.json`
# beside the notebook.

# %% [markdown]
# ### 1. The forward formula

# %% tags=["nbval-check-output"]
statement("batch_norm.forward")


# %%
def batch_norm(x, weight, bias, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.forward", batch_norm)

# %% [markdown]
# ### 2. Running statistics

# %% tags=["nbval-check-output"]
statement("batch_norm.running")


# %%
def update_running(running_mean, running_var, x, momentum):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.running", update_running)

# %% [markdown]
# ### 3. Predict four numbers

# %% tags=["nbval-check-output"]
statement("batch_norm.predict")

# %%
prediction = {
    "running mean": ...,
    "running variance": ...,
    "output in training": ...,
    "output in evaluation": ...,
}


# %% tags=["nbval-check-output"]
check("batch_norm.predict", prediction)

# %% [markdown]
# ### 4. Spot the bug: not a number

# %% tags=["nbval-check-output"]
statement("batch_norm.bug_variance")


# %%
def normalize(x, eps):
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    mean_of_squares = (x * x).mean(dim=(0, 2, 3), keepdim=True)
    var = mean_of_squares - mean * mean
    return (x - mean) / torch.sqrt(var + eps)


# %% tags=["nbval-check-output"]
check("batch_norm.bug_variance", normalize)

# %% [markdown]
# ### 5. Momentum as a cumulative average

# %% tags=["nbval-check-output"]
statement("batch_norm.cumulative")


# %%
def update_cumulative(running_mean, running_var, batches, x):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.cumulative", update_cumulative)

# %% [markdown]
# ### 6. The whole layer

# %% tags=["nbval-check-output"]
statement("batch_norm.layer")


# %%
class BatchNorm2d(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.layer", BatchNorm2d)

# %% [markdown]
# ### 7. Spot the bug: memory that grows

# %% tags=["nbval-check-output"]
statement("batch_norm.bug_graph")


# %%
class LeakyBatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        if self.training:
            mean = x.mean(dim=0)
            var = x.var(dim=0, correction=0)
            n = len(x)
            m = self.momentum
            self.running_mean = (1 - m) * self.running_mean + m * mean
            self.running_var = (1 - m) * self.running_var + m * var * n / (n - 1)
        else:
            mean, var = self.running_mean, self.running_var
        x_hat = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight * x_hat + self.bias


# %% tags=["nbval-check-output"]
check("batch_norm.bug_graph", LeakyBatchNorm)

# %% [markdown]
# ### 8. Spot the bug: an average that is none

# %% tags=["nbval-check-output"]
statement("batch_norm.bug_momentum")


# %%
class AdaptiveBatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("step_count", torch.tensor(0))

    def forward(self, x):
        if self.training:
            mean = x.mean(dim=0)
            var = x.var(dim=0, correction=0)
            momentum = min(self.momentum, 1 / (int(self.step_count) + 1))
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(x.var(dim=0, correction=1), momentum)
                self.step_count += 1
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) / torch.sqrt(var + self.eps)


# %% tags=["nbval-check-output"]
check("batch_norm.bug_momentum", AdaptiveBatchNorm)

# %% [markdown]
# ### 9. Fold it into a convolution

# %% tags=["nbval-check-output"]
statement("batch_norm.fold")


# %%
def fold(conv, bn):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.fold", fold)

# %% [markdown]
# ### 10. The backward pass by hand

# %% tags=["nbval-check-output"]
statement("batch_norm.backward")


# %%
def batch_norm_backward(grad, x, weight, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.backward", batch_norm_backward)


# %% [markdown]
# ### 11. Challenge: sixteen layers in eighty steps

# %% tags=["nbval-check-output"]
statement("batch_norm.challenge")


# %%
def build():
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("batch_norm.challenge", build)


# %%
progress("batch_norm")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. A batch of 8 images, 64 channels, 16×16. How many means does `BatchNorm2d` compute in training?**
#
# <details>
# <summary>8</summary>
#
# No. That is one per image, as layer normalization over (C, H, W) would have it.
#
# </details>
# <details>
# <summary>64</summary>
#
# Yes: one per channel, each over 8 · 16 · 16 = 2048 elements.
#
# </details>
# <details>
# <summary>512</summary>
#
# No. One per image and channel is instance normalization.
#
# </details>
#
# **2. You train with batches of 32 and evaluate one image at a time. Which statistics should be used then?**
#
# <details>
# <summary>Those of the one image</summary>
#
# No. That changes the function the network was trained as; for a linear layer there would not even be a variance.
#
# </details>
# <details>
# <summary>The running statistics, with their unbiased variance</summary>
#
# Yes. They stand for the whole training population, and make the answer independent of the batch.
#
# </details>
# <details>
# <summary>Those of the last training batch</summary>
#
# No. They are as noisy as any single batch; `momentum=1.0` would do that.
#
# </details>
#
# **3. You double all weights of a convolution that is followed by Batch Normalization in training mode. What changes
# in the output, and what in the gradient of these weights?**
#
# <details>
# <summary>The output doubles, the gradient stays</summary>
#
# No. The standard deviation doubles too, and is divided out.
#
# </details>
# <details>
# <summary>The output stays, the gradient stays</summary>
#
# Half right. The loss is unchanged, but it now takes twice as long a step to change it as much.
#
# </details>
# <details>
# <summary>The output stays (but for ε), the gradient halves</summary>
#
# Yes. $f(2w) = f(w)$ implies $\nabla f(2w) = \frac{1}{2} \nabla f(w)$: the larger the weights, the smaller their
# effective learning rate.
#
# </details>
#
# **4. Your loss is fine in training and terrible after `model.eval()`. What is the likeliest cause?**
#
# <details>
# <summary>The running statistics do not describe the batches</summary>
#
# Yes. Too few steps for the momentum, a domain other than the training one, statistics of tiny batches, or a
# running variance that was never updated.
#
# </details>
# <details>
# <summary>ε is too small</summary>
#
# No. ε acts in both modes alike.
#
# </details>
# <details>
# <summary>γ and β are not learned</summary>
#
# No. They act in both modes alike; without them training would suffer too.
#
# </details>
#
# ## References
#
# - Ioffe, Szegedy: [Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
#   Shift](https://arxiv.org/abs/1502.03167), 2015. The method; Algorithms 1 and 2, section 4.1 for the digits experiment.
# - Santurkar, Tsipras, Ilyas, Mądry: [How Does Batch Normalization Help
#   Optimization?](https://arxiv.org/abs/1805.11604), 2018. The landscape.
# - Wu, He: [Group Normalization](https://arxiv.org/abs/1803.08494), 2018. The index-set notation; error against batch size.
# - He, Fan, Wu, Xie, Girshick: [Momentum Contrast](https://arxiv.org/abs/1911.05722), 2020. Section 3.3: the leak.
# - Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz: [A Mean Field Theory of Batch
#   Normalization](https://arxiv.org/abs/1902.08129), 2019. Exploding gradients.
# - van Laarhoven: [L2 Regularization versus Batch and Weight Normalization](https://arxiv.org/abs/1706.05350), 2017.
# - He, Zhang, Ren, Sun: [Delving Deep into Rectifiers](https://arxiv.org/abs/1502.01852), 2015. Kaiming's initialization.
# - PyTorch: [BatchNorm2d](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html).
