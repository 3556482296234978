# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Layer Normalization
#
# $$
# y = \gamma \, \frac{x - \mu_L}{\sqrt{\sigma_L^2 + \varepsilon}} + \beta
# $$
#
# The same formula as Batch Normalization, along another axis: each sample, or each token of a sequence, is
# standardized over its own features. Jimmy Lei Ba, Jamie Ryan Kiros and Geoffrey Hinton published it in
# [2016](https://arxiv.org/abs/1607.06450); every Transformer has it, or its smaller sister **RMSNorm**.
#
# In this chapter you derive both forward and backward, build the layers, prove them right, put them into
# recurrent networks and Transformers, and test five published claims, two of which do not hold here.
#
# You need: the chapter on [Batch Normalization](batch_norm.ipynb) up to its backward pass. The chapter runs
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
# Batch Normalization asks the rest of the batch what is normal. A sequence model cannot always ask: sentences
# differ in length, a generated text arrives one token at a time, and a batch may hold one sample. Layer
# Normalization asks nobody. Each sample, or each token, is standardized by the mean and the variance of **its
# own features**.
#
# Of an image batch $(N, C, H, W)$ it takes, for each sample, everything. Of a sequence batch $(N, T, D)$ a
# Transformer normalizes the $D$ features of each token.

# %%
import torch
from torch import nn

from normtutor import functional, layers, networks
from normtutor.lab import (
    digits,
    index_set,
    line_chart,
    one_thread,
    show_source,
    use_style,
)

use_style()
ORANGE, SKY, GREY, BLUE = "#D55E00", "#56B4E9", "#6e6e6e", "#0072B2"

# %% mystnb={"image": {"alt": "A block of N samples by C channels by H·W positions. One sample is coloured: all its channels and positions share one mean and one variance."}}
index_set("layer")

# %% [markdown]
# ## The problem, felt
#
# Ba, Kiros and Hinton had recurrent networks in mind: one weight matrix is applied again and again, so any
# mistake in scale is compounded at each step, and a batch of sequences of different lengths has fewer and
# fewer members from step to step. So feel it there. A recurrent network with a tanh reads scikit-learn's
# digits row by row, eight pixels a step, and names the digit after the last row.

# %%
show_source(networks.recurrent.TanhCell)

# %%
data = digits()
rows, test_rows = data.train_images.flatten(1, 2), data.test_images.flatten(1, 2)
print("a batch of sequences, (N, T, D):", tuple(rows[:64].shape))


@one_thread()
def train_rnn(norm, steps=50, every=5):
    """Test accuracy every few steps of Adam; gradients clipped to length 1."""
    torch.manual_seed(0)
    model = networks.RNN(8, 64, norm=norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    curve = []
    for step in range(1, steps + 1):
        batch = torch.randint(len(rows), (64,))
        logits = model(rows[batch])
        loss = nn.functional.cross_entropy(logits, data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % every == 0:
            with torch.no_grad():
                right = model(test_rows).argmax(1) == data.test_labels
            curve.append(right.float().mean().item())
    return curve


curves = {norm: train_rnn(norm) for norm in ("none", "layer")}
print({norm: f"{curve[4]:.0%} after 25 steps" for norm, curve in curves.items()})
assert curves["layer"][4] > curves["none"][4] + 0.05, "LayerNorm should lead here"

# %% mystnb={"image": {"alt": "Test accuracy of a recurrent network on digits read row by row, against training steps. With LayerNorm the curve rises earlier and stays above the one without."}}
line_chart(
    {norm: (range(5, 51, 5), curve) for norm, curve in curves.items()},
    xlabel="training step",
    ylabel="test accuracy",
    title="The same recurrent network learns in fewer steps",
)

# %% [markdown]
# ## The forward formula
#
# The formula is Batch Normalization's; the index set is another one. Split the axes of $x$ into leading ones
# and the last ones, those of `normalized_shape`. Write $i = (a, j)$: $a$ counts the leading axes, $j$ the
# last. Then
#
# $$
# S_{(a, j)} = \lbrace (a, k) \mid k \text{ any} \rbrace, \qquad n = |S_i|
# $$
#
# $$
# \begin{aligned}
# \mu_a &= \frac{1}{n} \sum_{k} x_{a k} \\
# \sigma_a^2 &= \frac{1}{n} \sum_{k} (x_{a k} - \mu_a)^2 \\
# y_{a j} &= \gamma_j \, \frac{x_{a j} - \mu_a}{\sqrt{\sigma_a^2 + \varepsilon}} + \beta_j
# \end{aligned}
# $$
#
# | input | `normalized_shape` | statistics | $\gamma, \beta$ |
# |---|---|---|---|
# | tokens $(N, T, D)$ | $D$ | one pair per token, $N T$ | $(D)$ |
# | vectors $(N, D)$ | $D$ | one pair per sample, $N$ | $(D)$ |
# | images $(N, C, H, W)$ | $(C, H, W)$ | one pair per sample, $N$ | $(C, H, W)$ |
#
# Note the exchange against Batch Normalization. There, statistics and parameters both belong to a channel.
# Here the statistics belong to a token and the parameters to a feature: $\gamma$ and $\beta$ vary *inside* an
# index set. That will matter in the backward pass.


# %%
def forward(x, normalized_shape, gamma, beta, eps=1e-5):
    """Layer Normalization over the last axes, as the formula says."""
    last = tuple(range(-len(normalized_shape), 0))
    mean = x.mean(last, keepdim=True)
    var = (x - mean).square().mean(last, keepdim=True)
    return gamma * (x - mean) / torch.sqrt(var + eps) + beta


# %% [markdown]
# By hand, two tokens with four features. The first, $(1, 3, 5, 7)$, has mean 4 and variance 5; the second is
# ten times as large. Both come out alike, whatever the other one is:

# %% tags=["nbval-check-output"]
x = torch.tensor([[1.0, 3.0, 5.0, 7.0], [10.0, 30.0, 50.0, 70.0]])
one, zero = torch.ones(4), torch.zeros(4)
for row in forward(x, (4,), one, zero, eps=0.0):
    print([round(value, 3) for value in row.tolist()])
print("±1/√5 and ±3/√5:", round(5**-0.5, 3), round(3 * 5**-0.5, 3))

# %% [markdown]
# ### The axes that the first draft forgot
#
# The first draft of this course took any `normalized_shape`, gave $\gamma$ and $\beta$ that shape, and then
# averaged over the last axis only: `x.mean(dim=-1)`. For tokens that is right. For an image it is one mean
# per *row of pixels*. Take an image with a dark upper and a bright lower row:

# %% tags=["nbval-check-output"]
image = torch.tensor([[[[1.0, 3.0], [11.0, 13.0]]]])  # (N, C, H, W) = (1, 1, 2, 2)


def draft(x, eps=1e-5):
    mean = x.mean(dim=-1, keepdim=True)
    var = x.var(dim=-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + eps)


right = layers.LayerNorm((1, 2, 2))(image).detach()
for name, y in (("draft", draft(image)), ("right", right)):
    print(f"{name}: rows {[[round(v, 2) for v in row] for row in y[0, 0].tolist()]}")
    print(
        f"       overall mean {abs(y.mean().item()):.2f}, deviation {y.std(correction=0):.2f}"
    )

# %% [markdown]
# Both have mean 0 and deviation 1, which is all that the draft's demonstration printed. But in the draft's
# output the dark and the bright row are *the same*: what distinguishes them is gone. With 32 rows in each of
# 64 channels, as in the draft's own comparison, 2048 pairs of statistics are computed where one was asked
# for. An exercise lets you repair it.

# %% [markdown]
# ### What it does not feel
#
# Each of these follows from the index set in one line (Ba et al. 2016, Table 1). Compare with Batch
# Normalization.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
tokens = torch.randn(4, 6, 32, dtype=torch.float64)
layer = layers.LayerNorm(32, eps=0.0, dtype=torch.float64)
company = tokens.clone()
company[1:] *= 100  # other samples
scale = 0.5 + torch.rand(4, 6, 1, dtype=torch.float64)  # each token its own
scaled = tokens * scale
weight = torch.randn(32, 32, dtype=torch.float64)


def same(a, b):
    return torch.allclose(a, b, atol=1e-10)


print("other samples change:     ", same(layer(company)[0], layer(tokens)[0]))
print("a token shifted:          ", same(layer(tokens + 7), layer(tokens)))
print("a token scaled:           ", same(layer(scaled), layer(tokens)))
print(
    "weight matrix scaled:     ",
    same(layer(tokens @ (9 * weight)), layer(tokens @ weight)),
)
one_unit = weight.clone()
one_unit[:, 0] *= 9
print(
    "one unit's weights scaled:", same(layer(tokens @ one_unit), layer(tokens @ weight))
)
bias = torch.randn(32, dtype=torch.float64)
print("a bias before it:         ", same(layer(tokens + bias), layer(tokens)))

# %% [markdown]
# The last two lines are where it differs from Batch Normalization, which ignores both. A *bias before Layer
# Normalization is not dead*: it changes the features against each other. Only its mean is.

# %% [markdown]
# ## The backward pass
#
# The derivation in the chapter on [Batch Normalization](batch_norm.ipynb) never used which set $S_i$ is. So
# steps 1 to 5 hold word for word, within one token. With $g = \partial L/\partial y$ and $r_a =
# 1/\sqrt{\sigma_a^2+\varepsilon}$:
#
# $$
# \begin{aligned}
# \hat{g}_{a j} &= \gamma_j \, g_{a j} \\
# \frac{\partial L}{\partial x_{a j}} = r_a \Big( & \hat{g}_{a j}
# - \tfrac{1}{n} \textstyle\sum_k \hat{g}_{a k} \\
# &- \hat{x}_{a j} \, \tfrac{1}{n} \textstyle\sum_k \hat{g}_{a k} \hat{x}_{a k} \Big)
# \end{aligned}
# $$
#
# Two things changed. **$\gamma$ stays inside the means**: in Batch Normalization it was one number per set
# and could be pulled out in front. And the parameters' gradients are summed over **the leading axes**, every
# token of every sample:
#
# $$
# \frac{\partial L}{\partial \beta_j} = \sum_a g_{a j}, \qquad
# \frac{\partial L}{\partial \gamma_j} = \sum_a g_{a j} \, \hat{x}_{a j}
# $$
#
# So $\partial L/\partial x$ needs one token at a time, and $\partial L/\partial\gamma$ all of them: two
# reductions along different axes. That is what makes a fast kernel for the backward pass harder than for the
# forward pass.


# %%
class Tokens(torch.autograd.Function):
    """Layer Normalization of (tokens, D), its backward pass the closed form."""

    @staticmethod
    def forward(ctx, x, gamma, beta, eps):
        var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        r = torch.rsqrt(var + eps)
        x_hat = (x - mean) * r
        ctx.save_for_backward(x_hat, r, gamma)
        return gamma * x_hat + beta

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved_tensors
        g_hat = gamma * g
        through_mean = g_hat.mean(1, keepdim=True)
        through_var = x_hat * (g_hat * x_hat).mean(1, keepdim=True)
        dx = r * (g_hat - through_mean - through_var)
        return dx, (g * x_hat).sum(0), g.sum(0), None


# %% tags=["nbval-check-output"]
x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
gamma = torch.randn(7, dtype=torch.float64, requires_grad=True)
beta = torch.randn(7, dtype=torch.float64, requires_grad=True)
g = torch.randn(5, 7, dtype=torch.float64)
inputs = (x, gamma, beta)

closed_form = torch.autograd.grad(Tokens.apply(*inputs, 1e-5), inputs, g)
by_autograd = torch.autograd.grad(forward(x, (7,), gamma, beta), inputs, g)
for name, ours, theirs in zip(("x", "γ", "β"), closed_form, by_autograd, strict=True):
    equal = torch.allclose(ours, theirs, atol=1e-12)
    print(f"closed form equals autograd, {name}:", equal)
equal = torch.autograd.gradcheck(lambda *i: Tokens.apply(*i, 1e-5), inputs)
print("closed form equals finite differences:", equal)

# γ pulled out of the means, as it may be in Batch Normalization:
x_hat = (x - x.mean(1, keepdim=True)) / (
    x.var(1, keepdim=True, correction=0) + 1e-5
).sqrt()
r = (x.var(1, keepdim=True, correction=0) + 1e-5).rsqrt()
through_var = x_hat * (g * x_hat).mean(1, keepdim=True)
outside = gamma * r * (g - g.mean(1, keepdim=True) - through_var)
print("with γ outside the means:", torch.allclose(outside, closed_form[0], atol=1e-3))

# %% [markdown]
# ## RMSNorm: what drops
#
# [Zhang and Sennrich](https://arxiv.org/abs/1910.07467) asked in 2019 which half of Layer Normalization does
# the work, the shift to mean 0 or the scale to variance 1, and dropped the shift:
#
# $$
# y_{a j} = \gamma_j \, \frac{x_{a j}}{\sqrt{\frac{1}{n} \sum_k x_{a k}^2 + \varepsilon}}
# $$
#
# No mean, no $\beta$. In the backward pass the path through the mean drops with it:
#
# $$
# \begin{aligned}
# \frac{\partial L}{\partial x_{a j}} = r_a \Big( & \hat{g}_{a j} \\
# &- \hat{x}_{a j} \, \tfrac{1}{n} \textstyle\sum_k \hat{g}_{a k} \hat{x}_{a k} \Big)
# \end{aligned}
# $$
#
# with $r_a$ and $\hat{x}$ those of RMSNorm. One reduction forward instead of two, one backward instead of
# two.


# %%
class RMSTokens(torch.autograd.Function):
    """RMSNorm of (tokens, D), its backward pass the closed form."""

    @staticmethod
    def forward(ctx, x, gamma, eps):
        r = torch.rsqrt(x.square().mean(1, keepdim=True) + eps)
        ctx.save_for_backward(x * r, r, gamma)
        return gamma * x * r

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved_tensors
        g_hat = gamma * g
        dx = r * (g_hat - x_hat * (g_hat * x_hat).mean(1, keepdim=True))
        return dx, (g * x_hat).sum(0), None


# %% tags=["nbval-check-output"]
equal = torch.autograd.gradcheck(
    lambda x, gamma: RMSTokens.apply(x, gamma, 1e-5), (x, gamma)
)
print("closed form equals finite differences:", equal)
rms = layers.RMSNorm(32, eps=0.0, dtype=torch.float64)
print("re-scaling changes nothing:", same(rms(5 * tokens), rms(tokens)))
print("a shift changes nothing:   ", same(rms(tokens + 1), rms(tokens)))
centred = tokens - tokens.mean(-1, keepdim=True)
print("on centred tokens it is LayerNorm:", same(rms(centred), layer(tokens)))

# %% [markdown]
# Re-scaling invariance is kept, shift invariance is dropped. Where the features of a token average to 0
# anyway the two agree.
#
# **Always say ε.** torch's `RMSNorm(eps=None)` took the machine epsilon of the *input's* dtype in older
# releases, and takes that of the dtype it computes in now: for float16 a difference between 0.00098 and
# 0.00000012.

# %% [markdown]
# ## Building the layer
#
# The package's functions: index set, shared standardization, affine map.

# %%
show_source(functional.layer_norm, functional.rms_norm)

# %% [markdown]
# The layer adds two parameters and nothing else. There are **no running statistics**: a token brings its own
# mean wherever it goes. So training and evaluation are the same function, a batch of one is fine, and a
# single token too.

# %%
show_source(layers.LayerNorm)

# %% tags=["nbval-check-output"]
ours, theirs = layers.LayerNorm((4, 6)), nn.LayerNorm((4, 6))
print(ours)
print({key: tuple(value.shape) for key, value in ours.state_dict().items()})
print("loads into torch's:", theirs.load_state_dict(ours.state_dict()))
print("no β:", list(layers.LayerNorm(6, bias=False).state_dict()))
print("neither:", list(layers.LayerNorm(6, elementwise_affine=False).state_dict()))

x = torch.randn(3, 5, 4, 6)
train_mode, eval_mode = ours.train()(x), ours.eval()(x)
print("evaluation equals training:", torch.equal(train_mode, eval_mode))
print("a batch of one:", torch.equal(ours(x[:1]), ours(x)[:1]))
print("one token alone:", torch.allclose(ours(x[0, 0]), ours(x)[0, 0], atol=1e-6))

# %% [markdown]
# The layers agree with the small cell above for any number of axes, in value and in gradient:

# %% tags=["nbval-check-output"]
for sizes in ((64,), (8, 16), (6, 8, 8), (4, 4, 6, 6)):
    layer = layers.LayerNorm(sizes, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_()
    x = torch.randn(3, 2, *sizes, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    small = forward(x, sizes, layer.weight, layer.bias)
    value = torch.allclose(layer(x), small, atol=1e-12)
    wanted = (x, layer.weight, layer.bias)
    pairs = zip(
        torch.autograd.grad(layer(x), wanted, g),
        torch.autograd.grad(small, wanted, g),
        strict=True,
    )
    gradients = all(torch.allclose(a, b, atol=1e-11) for a, b in pairs)
    print(f"normalized_shape {sizes!s:13} value {value}, gradients {gradients}")

# %% [markdown]
# ## Numerics
#
# Large means against small deviations are as dangerous here as in Batch Normalization, whose chapter measures
# the one-pass variance. Layer Normalization has a trap of its own: the gradient of $\beta$ is a sum over
# **all tokens of the batch**, easily a hundred thousand. bfloat16 keeps 8 significant bits, so after 256
# comes 258, and 256 + 1 is 256:

# %% tags=["nbval-check-output"]
number = torch.tensor(256.0, dtype=torch.bfloat16)
print("256 + 1 in bfloat16:", (number + 1).item())

# %%
half, single = torch.bfloat16, torch.float32


def gradient_of_ones(cls, count, parameters, inputs):
    """The gradient of β when `count` tokens each send a 1."""
    layer = cls(4, dtype=parameters)
    y = layer(torch.randn(count, 4).to(inputs))
    y.backward(torch.ones_like(y))
    return layer.bias.grad[0].item()


print(f"{'':8}{'normtutor':>12}{'torch.nn':>12}{'torch.nn':>12}{'torch.nn':>12}")
print(f"{'γ, β':8}{'bfloat16':>12}{'bfloat16':>12}{'float32':>12}{'float32':>12}")
print(f"{'input':8}{'bfloat16':>12}{'bfloat16':>12}{'bfloat16':>12}{'float32':>12}")
for count in (100, 1_000, 10_000, 262_144):
    ours = gradient_of_ones(layers.LayerNorm, count, half, half)
    mixed = gradient_of_ones(layers.LayerNorm, count, single, half)
    theirs = [
        gradient_of_ones(nn.LayerNorm, count, *dtypes)
        for dtypes in ((half, half), (single, half), (single, single))
    ]
    print(f"{count:<8}" + "".join(f"{sum:12.0f}" for sum in (ours, *theirs)))
    assert abs(ours - count) <= count / 128, "ours should round once"
    assert mixed == theirs[-1] == count, "float32 should be exact here"

# %% [markdown]
# The number of tokens is the right answer in every row. Ours adds in float32 and rounds once. torch's fused
# backward pass on a CPU adds in the dtype of the *input*: where that is bfloat16, the sum of each thread
# stops at 256. Parameters in float32 do not help there; a float32 input does. An exercise lets you repair such
# a sum.

# %% [markdown]
# ## Parity
#
# The rule is that of the previous chapter: the error against the closed form in extended precision may be
# twice torch's plus 4 units in the last place. There is one mode here, and nothing to remember between steps.

# %%
from normtutor.lab import parity

for name in ("layer", "rms"):
    report = parity(name)
    print(name)
    print(report.table(by=("device", "dtype")))
    assert report.ok

# %% [markdown]
# ## Timing
#
# Every index set is one contiguous row, which a core, or a GPU's block, can hold while it works. So even
# beyond the cache the bound is 2 passes forward and 3 backward, less than Batch Normalization's 3 and 5.

# %%
from normtutor.lab import bench

sweep = bench("layer", shapes=[(320, 512), (2560, 512)])
print(sweep)

# %%
print(bench("rms", shapes=[(320, 512), (2560, 512)]))

# %% [markdown]
# Look at torch.nn's rows of both tables: on a CPU, torch fuses Layer Normalization into one kernel and
# composes RMSNorm of several, so that the operation with less to do takes *longer*. By hand it is the other
# way round. More sizes, and compiled versions, come from `make bench`. The record of a GPU:

# %%
from normtutor.lab import recorded

print(recorded("layer"))
print(recorded("rms"))

# %% [markdown]
# ## Memory
#
# A layer over $(C, H, W)$ is expensive in *parameters*: one $\gamma$ and one $\beta$ for each pixel of each
# channel, and the image size is built in. Over the tokens' features it is cheap.

# %% tags=["nbval-check-output"]
for name, layer in {
    "BatchNorm2d(64)": layers.BatchNorm2d(64),
    "LayerNorm((64, 32, 32))": layers.LayerNorm((64, 32, 32)),
    "LayerNorm(64)": layers.LayerNorm(64),
    "RMSNorm(64)": layers.RMSNorm(64),
}.items():
    parameters = sum(p.numel() for p in layer.parameters())
    print(
        f"{name:24} {parameters:7} parameters, {sum(b.numel() for b in layer.buffers())} in buffers"
    )

# %%
from normtutor.lab import memory, memory_table

x = torch.randn(16, 20, 512, requires_grad=True)
print(
    memory_table(
        {
            "LayerNorm, eager": memory(layers.LayerNorm(512), x),
            "LayerNorm, torch.nn": memory(nn.LayerNorm(512), x),
            "RMSNorm, eager": memory(layers.RMSNorm(512), x),
            "RMSNorm, torch.nn": memory(nn.RMSNorm(512, eps=1e-6), x),
        }
    )
)

# %% [markdown]
# Our Layer Normalization keeps two tensors of the input's size that it has made itself, the centred values
# among them; torch's fused one keeps the input, which exists anyway, and two numbers per token, mean and $r$.
# torch's RMSNorm is composed of several operations on a CPU, and keeps as much as ours.

# %% [markdown]
# ## In a network: the Transformer block
#
# A Transformer block has two sublayers $F$, attention and a small feed-forward network, each with a residual
# connection around it. Where does the normalization go?
#
# | placement | sublayer | on the residual path |
# |---|---|---|
# | post ([Vaswani et al. 2017](https://arxiv.org/abs/1706.03762)) | $x \leftarrow \text{norm}(x + F(x))$ | a normalization after every sublayer |
# | pre ([Xiong et al. 2020](https://arxiv.org/abs/2002.04745)) | $x \leftarrow x + F(\text{norm}(x))$ | nothing; one last normalization at the end |
# | sandwich ([Ding et al. 2021](https://arxiv.org/abs/2105.13290)) | $x \leftarrow x + \text{norm}(F(\text{norm}(x)))$ | nothing; one last normalization at the end |

# %%
show_source(networks.TransformerBlock.forward)

# %% [markdown]
# The first draft of this course had such a block, with the placement *post*, and fed it $(T, N, D)$. Its
# arguments and its checkpoints still fit; the rest is new: the placement, the normalization, masks, and the
# batch as the first axis. A block is checked against torch's own, weight for weight:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(2, 5, 32)
for placement in ("post", "pre"):
    block = networks.TransformerBlock(32, 4, placement=placement).eval()
    theirs = nn.TransformerEncoderLayer(
        32, 4, 4 * 32, norm_first=placement == "pre", batch_first=True
    ).eval()
    names = {"self_attn": "attention", "linear1": "ffn.0", "linear2": "ffn.3"}
    state = {}
    for key in theirs.state_dict():
        part, _, rest = key.partition(".")
        state[key] = block.state_dict()[f"{names.get(part, part)}.{rest}"]
    theirs.load_state_dict(state)
    print(
        f"{placement}: equals torch's:", torch.allclose(block(x), theirs(x), atol=1e-5)
    )

block = networks.TransformerBlock(512, num_heads=8, batch_first=False)  # as the draft's
print("the draft's (T, N, D):", tuple(block(torch.randn(20, 16, 512)).shape))

# %% [markdown]
# What does a *name* such as `"layer"` mean on tokens? The block shows its normalization a batch of vectors,
# $(N T, D)$: `"layer"` and `"rms"` then take the features of one token, and `"batch"` one feature of all
# tokens of the batch. Group and instance normalization are refused; a factory such as `lambda shape:
# layers.GroupNorm(4, shape[1])` can always say more.
#
# ### Padding, and the other samples
#
# Sequences of different lengths are filled up with padding. Layer Normalization gives each token its own
# statistics, so padding does nothing to the others; batch statistics count it in.

# %% tags=["nbval-check-output"]
sequences = torch.randn(3, 6, 32)
padding = torch.zeros(3, 6, dtype=torch.bool)
padding[0, 4:] = True  # the first sequence has four tokens
other = torch.where(padding[..., None], 100 * torch.randn(3, 6, 32), sequences)
for norm in ("layer", "rms", "batch"):
    torch.manual_seed(0)
    block = networks.TransformerBlock(32, 4, dropout=0.0, placement="pre", norm=norm)
    outputs = [
        block(version, key_padding_mask=padding) for version in (sequences, other)
    ]
    equal = torch.allclose(outputs[0][~padding], outputs[1][~padding], atol=1e-5)
    print(f"{norm:6} what the padding holds does not matter: {equal}")

# %% [markdown]
# ### Post or pre: the gradient at the start
#
# On the residual path of Pre-LN nothing stands, so the sum grows with each sublayer: after $L$ blocks its
# variance is of the order of $L$. The last normalization divides by its root. A gradient that comes back
# passes that division, so at the last block it is smaller by $1/\sqrt{L}$. In Post-LN each block is
# normalized back to variance 1, and the last block's gradient does not know how many came before. That is
# Theorem 1 of Xiong et al. in three sentences. Measured, at initialization, for the last weight matrix of the
# last block:

# %%
from normtutor.lab import claims
from normtutor.lab.claims import layer_norm as experiments

show_source(experiments.last_gradient)

# %%
outcome = claims.run("layer_norm.gradient_depth")
print(outcome)
print(claims.recorded("layer_norm.gradient_depth"))
assert outcome.holds

# %% mystnb={"image": {"alt": "Gradient norm of the last block's weight against the number of blocks, both logarithmic. Post-LN: level. Pre-LN: falls along the grey line of the theory, one over the square root of the depth."}}
depths = [int(depth) for depth in outcome.measured["pre"]]
start = outcome.measured["pre"]["2"]
line_chart(
    {
        "Post-LN": (depths, list(outcome.measured["post"].values())),
        "Pre-LN": (depths, list(outcome.measured["pre"].values())),
        "1/√L": (depths, [start * (2 / depth) ** 0.5 for depth in depths]),
    },
    xlabel="blocks L (log)",
    ylabel="gradient norm of the last block (log)",
    xscale="log",
    yscale="log",
    title="Only Pre-LN's gradient falls with the depth",
    colours={"Post-LN": BLUE, "Pre-LN": ORANGE, "1/√L": GREY},
)

# %% [markdown]
# Post-LN is known to want a **warm-up**: let the learning rate rise from 0. Large gradients alone do not
# explain it: they mean large steps only for plain gradient descent, and Adam divides a gradient by its own
# size. The reason is disputed; [Liu et al. 2020](https://arxiv.org/abs/2004.08249) blame how strongly a
# Post-LN block depends on its residual branch. So whether it is needed has to be measured. Eight blocks learn
# to sort eight numbers, with Adam:

# %%
outcome = claims.run("layer_norm.warm_up")
print(outcome)
print(claims.recorded("layer_norm.warm_up"))
assert outcome.holds

# %% [markdown]
# Guessing costs $\ln 10 \approx 2.30$: without a warm-up, Post-LN learns next to *nothing* here. One honest
# remark: this is one learning rate, 0.01. The full run adds 0.001; read in its record what is left of the
# difference there.
#
# ### Recurrent networks, again
#
# The opening experiment as a claim with a band, and with an LSTM, which Ba et al. normalize in three places.
# One of them deserves a second look: with a single number as input, $\text{norm}(w x)$ is the same for every
# $x > 0$, so brightness would be lost. The course's cell has a bias inside that normalization.

# %% tags=["nbval-check-output"]
layer, w = layers.LayerNorm(8, eps=0.0), torch.randn(8)
dark, bright = layer(0.1 * w), layer(0.9 * w)
print(
    "without a bias, dark and bright look alike:",
    torch.allclose(dark, bright, atol=1e-5),
)
bias = torch.randn(8)
dark, bright = layer(0.1 * w + bias), layer(0.9 * w + bias)
print("with a bias inside:", torch.allclose(dark, bright, atol=1e-5))

# %%
outcome = claims.run("layer_norm.recurrent")
print(outcome)
print(claims.recorded("layer_norm.recurrent"))
assert outcome.holds

# %% [markdown]
# ### Does RMSNorm save time?
#
# The abstract says 7 to 64 % of the running time. Ratios within one run, the four networks in turns, like
# against like: by hand against by hand, and torch's layer against torch's.

# %%
outcome = claims.run("layer_norm.rms_speed")
print(outcome)
print(claims.recorded("layer_norm.rms_speed"))  # no assert: a wall time decides

# %% [markdown]
# **It depends on who wrote the kernel.** By hand, RMSNorm has fewer operations than Layer Normalization; how
# much of a training step that saves is the first row of numbers, and it varies from machine to machine. With
# torch's layers on a CPU, Layer Normalization is one fused kernel and RMSNorm is not: there the formula with
# less to do does not save what the abstract says. And what the *model* saves depends on how much of its time
# the normalization took. Count operations, but measure seconds.
#
# ### Does a tanh do as well?
#
# [Zhu et al. 2025](https://arxiv.org/abs/2503.10622) replace Layer Normalization by *Dynamic Tanh*, $\gamma
# \tanh(\alpha x) + \beta$ with one learned number $\alpha$: no statistics at all. A tiny Vision Transformer
# on the digits, the same settings for both:

# %%
show_source(experiments.DyT.forward)

# %%
outcome = claims.run("layer_norm.dyt")
print(outcome)
print(claims.recorded("layer_norm.dyt"))
assert not outcome.holds

# %% [markdown]
# With Layer Normalization's settings it *starts* late: after 5 epochs it lags far behind. At first its tanh is
# nearly linear, and its inputs are small. The full run trains for 30 epochs: there the gap is much smaller, and
# the record says how many points are left. It also tries a larger $\alpha$ at the start with a higher learning
# rate, which is tuning: compare those two numbers as well. A normalization adapts to the scale that it finds;
# DyT has to be told, or learn it.

# %% [markdown]
# ## Pitfalls
#
# **Statistics over the sequence look ahead.** `LayerNorm((T, D))` on tokens runs, trains well, and lets
# earlier tokens see later ones through the mean, past any causal mask. Normalize over $D$ alone.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)


class OverTheSequence(nn.Module):
    """Layer Normalization over (T, D), in a block that shows its norm (N·T, D)."""

    def __init__(self):
        super().__init__()
        self.norm = layers.LayerNorm((6, 32))

    def forward(self, x):
        return self.norm(x.view(-1, 6, 32)).view(x.shape)


sequence = torch.randn(1, 6, 32)
changed = sequence.clone()
changed[0, 5] += 1.0 + torch.randn(32)  # only the last token
for name, norm in (
    ("LayerNorm(D)", "layer"),
    ("LayerNorm((T, D))", lambda shape: OverTheSequence()),
):
    torch.manual_seed(0)
    block = networks.TransformerBlock(32, 4, 0.0, "pre", norm, causal=True)
    blind = torch.allclose(block(sequence)[0, :5], block(changed)[0, :5], atol=1e-5)
    print(f"{name:18} earlier tokens do not see the last one: {blind}")

# %% [markdown]
# **The forgotten last normalization.** In a Pre-LN stack the residual path grows with depth. Without the
# normalization after the last block, the output's scale depends on how many blocks there are:

# %%
spread = []
for depth in (2, 8, 32):
    torch.manual_seed(0)
    network = networks.Transformer(32, 4, depth, dropout=0.0, placement="pre")
    experiments.xavier(network)
    with torch.no_grad(), one_thread():
        x = torch.randn(8, 6, 32)
        normalized = network(x).std().item()
        for block in network.blocks:
            x = block(x)
    spread.append(x.std().item())
    print(
        f"{depth:2} blocks: deviation {spread[-1]:.2f} without, {normalized:.2f} with it"
    )
assert spread[2] > 1.5 * spread[1] > 1.5 * 1.2 * spread[0], "it should grow"

# %% [markdown]
# **Weight decay on γ and β.** Most recipes exclude them: a decayed $\gamma$ shrinks the output, and no scale
# invariance makes up for it. **One feature.** `LayerNorm(1)` always returns $\beta$: a number minus its own
# mean is 0. With two features only a sign is left. **ε from elsewhere.** BERT used $10^{-12}$, torch's
# default is $10^{-5}$, and no checkpoint stores it.

# %% tags=["nbval-check-output"]
print(
    "one feature: ",
    layers.LayerNorm(1)(torch.tensor([[3.0], [700.0]])).flatten().tolist(),
)
pairs = torch.tensor([[1.0, 2.0], [5.0, 900.0], [4.0, -4.0]])
print(
    "two features:",
    [[round(v, 2) for v in row] for row in layers.LayerNorm(2)(pairs).tolist()],
)

# %% [markdown]
# ## Exercises
#
# Ten tasks, the last one open. Write your answer in the cell under each statement and run it. `hint("…")`
# gives the next hint, `solution("…")` the reference.

# %%
from normtutor.exercises import check, progress, statement

# %% [markdown]
# ### 1. The forward formula

# %% tags=["nbval-check-output"]
statement("layer_norm.forward")


# %%
def layer_norm(x, normalized_shape, weight, bias, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("layer_norm.forward", layer_norm)

# %% [markdown]
# ### 2. Spot the bug: a row too few

# %% tags=["nbval-check-output"]
statement("layer_norm.bug_axes")


# %%
class SeedLayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5):
        super().__init__()
        if isinstance(normalized_shape, int):
            normalized_shape = (normalized_shape,)
        self.normalized_shape = normalized_shape
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, unbiased=False)
        x_norm = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight * x_norm + self.bias


# %% tags=["nbval-check-output"]
check("layer_norm.bug_axes", SeedLayerNorm)

# %% [markdown]
# ### 3. Predict six numbers

# %% tags=["nbval-check-output"]
statement("layer_norm.predict")

# %%
prediction = {
    "means": ...,
    "parameters": ...,
    "layer": ...,
    "layer, shifted": ...,
    "rms": ...,
    "rms, shifted": ...,
}

# %% tags=["nbval-check-output"]
check("layer_norm.predict", prediction)

# %% [markdown]
# ### 4. RMSNorm

# %% tags=["nbval-check-output"]
statement("layer_norm.rms")


# %%
def rms_norm(x, normalized_shape, weight, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("layer_norm.rms", rms_norm)

# %% [markdown]
# ### 5. Spot the bug: 600 ones make 256

# %% tags=["nbval-check-output"]
statement("layer_norm.bug_sum")


# %%
def bias_gradient(grad):
    rows = grad.reshape(-1, grad.size(-1))
    total = torch.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total


# %% tags=["nbval-check-output"]
check("layer_norm.bug_sum", bias_gradient)

# %% [markdown]
# ### 6. The whole layer

# %% tags=["nbval-check-output"]
statement("layer_norm.layer")


# %%
class LayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("layer_norm.layer", LayerNorm)

# %% [markdown]
# ### 7. Before or after

# %% tags=["nbval-check-output"]
statement("layer_norm.placement")


# %%
def transformer(x, blocks, final_norm, placement):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("layer_norm.placement", transformer)

# %% [markdown]
# ### 8. Who feels a token change?

# %% tags=["nbval-check-output"]
statement("layer_norm.reach")

# %%
reach = {
    "LayerNorm(D)": ...,
    "LayerNorm((T, D))": ...,
    "BatchNorm1d(D)": ...,
    "block, LayerNorm(D)": ...,
    "causal block, LayerNorm(D)": ...,
    "causal block, RMSNorm(D)": ...,
    "causal block, LayerNorm((T, D))": ...,
    "causal block, BatchNorm1d(D)": ...,
}

# %% tags=["nbval-check-output"]
check("layer_norm.reach", reach)

# %% [markdown]
# ### 9. The backward pass by hand

# %% tags=["nbval-check-output"]
statement("layer_norm.backward")


# %%
def layer_norm_backward(grad, x, normalized_shape, weight, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("layer_norm.backward", layer_norm_backward)

# %% [markdown]
# ### 10. Challenge: twenty-four layers, thirty steps

# %% tags=["nbval-check-output"]
statement("layer_norm.deep")


# %%
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        # your code here

    def forward(self, x):
        raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("layer_norm.deep", Block)


# %%
progress("layer_norm")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. A Transformer sees $(16, 20, 512)$: 16 sequences of 20 tokens. How many means does `LayerNorm(512)`
# compute?**
#
# <details>
# <summary>16</summary>
#
# No. That would be `LayerNorm((20, 512))`, which mixes the tokens of a sequence.
#
# </details>
# <details>
# <summary>320</summary>
#
# Yes: one per token, each over its 512 features.
#
# </details>
# <details>
# <summary>512</summary>
#
# No. One per feature is Batch Normalization.
#
# </details>
#
# **2. Your model behaves differently after `model.eval()`. Can Layer Normalization be the cause?**
#
# <details>
# <summary>Yes, its running statistics may be off</summary>
#
# No. It has none: each token brings its own.
#
# </details>
# <details>
# <summary>No</summary>
#
# Yes, that is right: it computes the same in both modes. Look for Dropout or Batch Normalization.
#
# </details>
# <details>
# <summary>Only for a batch of one</summary>
#
# No. The batch takes no part in it.
#
# </details>
#
# **3. You drop the bias of the linear layer before a Layer Normalization, as you would before Batch
# Normalization. What is lost?**
#
# <details>
# <summary>Nothing, the mean takes it out</summary>
#
# No. The mean over the *features* takes out only the part that all features share.
#
# </details>
# <details>
# <summary>Shifts of the features against each other, before the normalization</summary>
#
# Yes. β shifts after the normalization, so it cannot replace them: the variance would be another.
#
# </details>
# <details>
# <summary>The scale of the output</summary>
#
# No. That is γ's.
#
# </details>
#
# **4. In this chapter's experiment the Post-LN Transformer does not train at a learning rate of 0.01. Which of
# these does *not* follow as a cure from anything you saw here?**
#
# <details>
# <summary>A warm-up</summary>
#
# It does: with it, Post-LN's loss fell.
#
# </details>
# <details>
# <summary>Pre-LN with a last normalization</summary>
#
# It does: Pre-LN trained at the same learning rate without a warm-up.
#
# </details>
# <details>
# <summary>A larger batch</summary>
#
# Right: nothing here tested it, and Layer Normalization does not look at the batch. (Try it: change the 16 in
# `sorting_loss`.)
#
# </details>
#
# ## References
#
# - Ba, Kiros, Hinton: [Layer Normalization](https://arxiv.org/abs/1607.06450), 2016. The method; invariances
#   in section 5, recurrent networks in section 3.1 and the supplementary material.
# - Zhang, Sennrich: [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467), 2019.
# - Vaswani et al.: [Attention Is All You Need](https://arxiv.org/abs/1706.03762), 2017.
#   Post-LN, and the warm-up.
# - Xiong et al.: [On Layer Normalization in the Transformer Architecture](https://arxiv.org/abs/2002.04745), 2020.
#   Pre-LN, Theorem 1.
# - Liu et al.: [Understanding the Difficulty of Training Transformers](https://arxiv.org/abs/2004.08249), 2020.
# - Ding et al.: [CogView](https://arxiv.org/abs/2105.13290), 2021. Sandwich-LN.
# - Zhu et al.: [Transformers without Normalization](https://arxiv.org/abs/2503.10622), 2025. Dynamic Tanh.
# - PyTorch: [LayerNorm](https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html),
#   [RMSNorm](https://docs.pytorch.org/docs/stable/generated/torch.nn.RMSNorm.html).
