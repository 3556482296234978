# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One Formula, Four Index Sets
#
# $$
# \hat{x}_i = \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \varepsilon}}
# $$
#
# Subtract a mean, divide by a standard deviation. Batch, layer, instance and group normalization all do this
# and nothing else. They differ in one choice: *which elements share a mean*. Yuxin Wu and Kaiming He wrote
# that choice down as an index set $S_i$ in [2018](https://arxiv.org/abs/1803.08494).
#
# In this chapter you build the one formula, get four techniques and RMSNorm out of it, prove how they turn
# into each other, derive the backward pass for all of them at once, and see what a normalization does to the
# gradients and the signals of a network. Each technique then has a chapter of its own: start with
# [Batch Normalization](batch_norm.ipynb).
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
# A photograph can be bright or dim, a sensor can report metres or millimetres, a layer can double all of its
# weights. None of that is the *content* of the signal, but it changes every number that the next layer sees.
# Normalization removes it: what is left of a set of numbers when their mean and their scale are taken away is
# their pattern.
#
# Which numbers form such a set? That is the whole question. Ask it of one pixel in one channel of one image
# in one batch: is it bright *for this image*, *for this channel*, or *for this channel over the whole batch*?
# Each answer is a technique.

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
GREY, BLUE, ORANGE = "#6e6e6e", "#0072B2", "#D55E00"

# %% [markdown]
# ## The problem, felt
#
# Real data: the 8×8 handwritten digits of scikit-learn. A small convolutional network, two convolutions deep,
# once without normalization and once with each technique. All are trained alike, on ordinary images. Then
# somebody turns down the light: the test images keep half, a fifth, a tenth of their contrast. The digits in
# them are as legible as before.

# %%
from normtutor.networks import build_norm

data = digits()
contrasts = [1.0, 0.5, 0.2, 0.1]


def small_network(norm, bias=False):
    torch.manual_seed(0)
    steps = []
    for channels in (1, 16):
        conv = nn.Conv2d(channels, 16, 3, padding=1, bias=bias)
        steps += [conv, build_norm(norm, (1, 16, 8, 8)), nn.ReLU()]
    return nn.Sequential(*steps, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))


print("test accuracy at contrast")
print(" " * 8 + "".join(f"{contrast:7.0%}" for contrast in contrasts))
dimmed = {}
for norm in ("none", "batch", "layer", "instance", "group", "rms"):
    network = small_network(norm)
    train(network, data.train_images, data.train_labels, steps=120, lr=0.1)
    dimmed[norm] = [
        accuracy(network, contrast * data.test_images, data.test_labels)
        for contrast in contrasts
    ]
    print(f"{norm:8}" + "".join(f"{right:7.1%}" for right in dimmed[norm]))

# %% mystnb={"image": {"alt": "Test accuracy against the factor by which the test images are dimmed, 1 to 10. Layer normalization, drawn for the four within one image: level. No normalization: falls a little. Batch Normalization: falls steeply."}}
# The lines of instance, group and RMS normalization run as level as layer's.
drawn = {norm: dimmed[norm] for norm in ("layer", "none", "batch")}
line_chart(
    {norm: ([1 / c for c in contrasts], right) for norm, right in drawn.items()},
    xlabel="dimming factor (log)",
    ylabel="test accuracy",
    xscale="log",
    title="Only one of the sets minds the dark",
)

# %%
for norm in ("layer", "instance", "group", "rms"):
    assert abs(dimmed[norm][-1] - dimmed[norm][0]) < 0.05, f"{norm} forgets contrast"
assert dimmed["batch"][-1] < dimmed["batch"][0] - 0.2, "batch should mind it"

# %% [markdown]
# Layer normalization's line is level, and so are the rows of instance, group and RMS normalization in the table,
# which the figure leaves out: their sets lie within one image, so the image's contrast cancels. Batch Normalization
# takes its statistics from the training batches (in evaluation it keeps them) and holds dim images against
# them. The plain network hands the factor through to its last layer, since neither a ReLU nor a convolution
# without bias minds it.
#
# That the convolutions have no bias matters. A bias does not dim with the image; who forgets it?

# %%
print("test accuracy at contrast, with a bias")
print(" " * 8 + "".join(f"{contrast:7.0%}" for contrast in contrasts))
for norm in ("layer", "instance"):
    network = small_network(norm, bias=True)
    train(network, data.train_images, data.train_labels, steps=120, lr=0.1)
    biased = [
        accuracy(network, contrast * data.test_images, data.test_labels)
        for contrast in contrasts
    ]
    print(f"{norm:8}" + "".join(f"{right:7.1%}" for right in biased))
    level = abs(biased[-1] - biased[0]) < 0.05
    assert level is (norm == "instance"), "only instance normalization forgets the bias"

# %% [markdown]
# The bias is one number per channel. Instance normalization, with a mean for each channel, subtracts it. Layer
# normalization, with one mean for all channels, does not.
#
# None of this is a verdict: where contrast *is* content (an X-ray, say), forgetting it is the fault. It is the
# point of this chapter: **the set decides what is forgotten**.
#
# ## Four index sets
#
# A batch of images is a tensor of shape $(N, C, H, W)$: $N$ samples, $C$ channels, $H \times W$ positions. In
# the pictures $H$ and $W$ are folded into one axis. The coloured elements share one mean and one variance.

# %% mystnb={"image": {"alt": "Four blocks of N samples by C channels by positions. Batch: one channel of all samples is coloured. Layer: all channels of one sample. Instance: one channel of one sample. Group: half of the channels of one sample."}}
index_set("batch", "layer", "instance", "group")

# %% [markdown]
# Now in symbols. Write an element's index as $i = (i_N, i_C, i_H, i_W)$, and $S_i$ for the set of elements
# that share their statistics with $i$ (Wu & He 2018, section 3.1):
#
# $$
# \begin{aligned}
# \text{batch:} \quad & S_i = \lbrace k \mid k_C = i_C \rbrace \\
# \text{layer:} \quad & S_i = \lbrace k \mid k_N = i_N \rbrace \\
# \text{instance:} \quad & S_i = \lbrace k \mid k_N = i_N,\ k_C = i_C \rbrace \\
# \text{group:} \quad & S_i = \lbrace k \mid k_N = i_N, \\
# & \qquad\quad \lfloor \tfrac{k_C}{C/G} \rfloor = \lfloor \tfrac{i_C}{C/G} \rfloor \rbrace
# \end{aligned}
# $$
#
# What a set holds fixed stands behind the bar; everything else varies within it. The rest is the same for all
# four, with $m = |S_i|$:
#
# $$
# \mu_i = \frac{1}{m} \sum_{k \in S_i} x_k, \qquad
# \sigma_i^2 = \frac{1}{m} \sum_{k \in S_i} (x_k - \mu_i)^2
# $$
#
# | technique | the mean runs over | number of means | elements that share one | its chapter |
# |---|---|---|---|---|
# | batch | $N, H, W$ | $C$ | $N H W$ | [Batch Normalization](batch_norm.ipynb) |
# | layer | $C, H, W$ | $N$ | $C H W$ | [Layer Normalization](layer_norm.ipynb) |
# | instance | $H, W$ | $N C$ | $H W$ | [Instance Normalization](instance_norm.ipynb) |
# | group | $C/G, H, W$ | $N G$ | $(C/G) H W$ | [Group Normalization](group_norm.ipynb) |
#
# Afterwards each technique gives the network its freedom back: $y_i = \gamma \hat{x}_i + \beta$, with a
# $\gamma$ and a $\beta$ per channel (layer normalization: per element). The affine map is not part of the
# set, and this chapter leaves it out until it matters.
#
# ## One small function
#
# In code, an index set is a tuple of axes:


# %%
def standardized(x, axes, eps=1e-5):
    """x̂, mean and variance; elements that differ only along `axes` form a set."""
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps), mean, var


AXES = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3)}


def group_standardized(x, groups, eps=1e-5):
    """Group Normalization: give the tensor an axis for the groups, then the same."""
    parts = x.unflatten(1, (groups, -1))  # (N, C, H, W) → (N, G, C/G, H, W)
    x_hat, mean, var = standardized(parts, (2, 3, 4), eps)
    return x_hat.flatten(1, 2), mean, var


# %% [markdown]
# **Change these numbers.** Two samples of two channels of 2×2 pixels: sixteen integers that you can check in
# your head. As they stand, the second channel is twice the first one, and the second sample three times the
# first one. Look which technique still sees which of the two facts; then spoil them, and run the cell again.

# %% tags=["nbval-check-output"]
x = torch.tensor(
    [
        [[[1, 3], [5, 7]], [[2, 6], [10, 14]]],  # sample 0: channels 0 and 1
        [[[3, 9], [15, 21]], [[6, 18], [30, 42]]],  # sample 1
    ],
    dtype=torch.float64,
)


def show(technique, x_hat, mean, var):
    rounded = [[f"{value:.2f}" for value in t.flatten().tolist()] for t in (mean, var)]
    print(f"{technique}: {mean.numel()} means {', '.join(rounded[0])}")
    print(f"  variances {', '.join(rounded[1])}")
    for n, sample in enumerate(x_hat):
        for c, plane in enumerate(sample):
            values = " ".join(
                f"{value + 0.0:6.2f}" for value in plane.flatten().tolist()
            )
            print(f"  sample {n}, channel {c}: {values}")


for technique, axes in AXES.items():
    show(technique, *standardized(x, axes))
show("group, G = 2", *group_standardized(x, 2))

# %% [markdown]
# Batch normalization prints the same numbers for both channels: it has forgotten the 2, and still tells the
# samples apart. Layer normalization prints the same for both samples: it has forgotten the 3, and still tells
# the channels apart. Instance normalization has forgotten both. And two groups of one channel each are
# instance normalization, number for number; more about that below.
#
# ### The package's function
#
# Every layer of this course stands on one function. It is the small cell above, made safe: half precision is
# computed in float32, and the mean is subtracted in two steps, since a rounded mean is itself a source of
# error (the [next chapter](batch_norm.ipynb) measures it).

# %%
from normtutor import functional, layers
from normtutor.lab import show_source

show_source(functional.standardize, functional.group_norm)

# %% [markdown]
# `group_norm` reads like the formula; the other techniques are as short. Do all five agree with the small cell,
# in value and in gradient?


# %% tags=["nbval-check-output"]
def rms_normalized(x, axes, eps=1e-5):
    """RMSNorm: the mean is left where it is."""
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + eps)


small = {
    "batch": lambda x: standardized(x, AXES["batch"])[0],
    "layer": lambda x: standardized(x, AXES["layer"])[0],
    "instance": lambda x: standardized(x, AXES["instance"])[0],
    "group": lambda x: group_standardized(x, 3)[0],
    "rms": lambda x: rms_normalized(x, AXES["layer"]),
}
package = {
    "batch": lambda x: functional.batch_norm(x, None, None, training=True),
    "layer": lambda x: functional.layer_norm(x, x.shape[1:]),
    "instance": functional.instance_norm,
    "group": lambda x: functional.group_norm(x, 3),
    "rms": lambda x: functional.rms_norm(x, x.shape[1:], eps=1e-5),
}
torch.manual_seed(0)
x = torch.randn(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
g = torch.randn_like(x)
for technique in small:
    ours, theirs = small[technique](x), package[technique](x)
    gradients = [torch.autograd.grad(y, x, g)[0] for y in (ours, theirs)]
    print(
        f"{technique:9} value {torch.allclose(ours, theirs, rtol=0, atol=1e-12)}, "
        f"gradient {torch.allclose(*gradients, rtol=0, atol=1e-12)}"
    )

# %% [markdown]
# ## How they turn into each other
#
# The techniques are neighbours: choose a shape or a number of groups, and one set becomes another. Each line
# is an equality of sets, so it needs no calculation:
#
# - **One group is layer normalization.** $G = 1$: all channels fall into group 0, so the condition on $k_C$
#   is always true, and $k_N = i_N$ is left.
# - **$C$ groups are instance normalization.** $C/G = 1$: the condition reads $k_C = i_C$.
# - **A batch of one makes batch normalization instance normalization.** With $N = 1$, $k_N = i_N$ always
#   holds, so adding it to $k_C = i_C$ changes nothing.
# - **Instance normalization is batch normalization of a reshaped batch.** See the $N C$ planes as the
#   channels of a single sample, shape $(1, N C, H, W)$: "same channel" now means "same sample and channel".
# - **On a matrix $(N, C)$, layer normalization is batch normalization, transposed.** One runs along the rows,
#   the other along the columns.

# %% tags=["nbval-check-output"]
x = x.detach()
n, c, h, w = x.shape
batch, layer, instance = package["batch"], package["layer"], package["instance"]
planes = x.reshape(1, n * c, h, w)
matrix = x[:, :, 0, 0]
pairs = {
    "group norm, one group = layer norm": (functional.group_norm(x, 1), layer(x)),
    "group norm, C groups = instance norm": (functional.group_norm(x, c), instance(x)),
    "batch norm on N = 1 = instance norm": (batch(x[:1]), instance(x[:1])),
    "instance norm = batch norm on (1, N·C)": (
        batch(planes).reshape(x.shape),
        instance(x),
    ),
    "layer norm of a matrix = batch norm of its transpose": (
        batch(matrix.T).T,
        layer(matrix),
    ),
}
for name, (left, right) in pairs.items():
    print(f"{name}: {torch.allclose(left, right, rtol=0, atol=1e-12)}")

# %% [markdown]
# **Mind $\gamma$ and $\beta$.** These equalities are about $\hat{x}$. The parameters do not follow:
# `GroupNorm(1, C)` has one $\gamma$ per *channel*, `LayerNorm((C, H, W))` one per *element*. Every group
# normalization with one group can be written as a layer normalization, by repeating its $\gamma$ over the
# positions. The other way works only if $\gamma$ happens to be constant within each channel.

# %% tags=["nbval-check-output"]
gamma = torch.randn(c, dtype=torch.float64)
repeated = gamma.view(c, 1, 1).expand(c, h, w)
print(
    "a channel's γ, repeated:",
    torch.allclose(
        functional.group_norm(x, 1, gamma),
        functional.layer_norm(x, (c, h, w), repeated),
    ),
)
for one in (layers.GroupNorm(1, c), layers.LayerNorm((c, h, w))):
    print(f"{type(one).__name__}: γ has shape {tuple(one.weight.shape)}")
try:
    layers.LayerNorm((c, h, w)).load_state_dict(layers.GroupNorm(1, c).state_dict())
except RuntimeError as error:
    print("their checkpoints do not fit:", "size mismatch for weight" in str(error))

# %% [markdown]
# ### What drops the mean: RMSNorm
#
# [RMSNorm](layer_norm.ipynb) keeps layer normalization's set and divides by the root mean square, without
# subtracting anything: $y_i = x_i / \sqrt{\overline{x^2} + \varepsilon}$, the bar being the mean over $S_i$.
# Since $\overline{x^2} = \sigma^2 + \mu^2$, the two agree where the mean is 0; and layer normalization is
# RMSNorm of the centred input.
#
# ### What has no index set: weight normalization
#
# [Weight Normalization](weight_norm.ipynb) does not look at activations at all. It writes each weight vector
# as $w = g \, v / \|v\|$, a length times a direction. There is no batch, no set $S_i$, nothing that depends
# on data. And yet the same formula is inside: $v/\|v\|$ is RMSNorm of the weight vector, but for a factor
# $\sqrt{n}$, with $n$ the number of inputs.

# %% tags=["nbval-check-output"]
centred = x - x.mean((1, 2, 3), keepdim=True)
rms = package["rms"]
print(
    "layer norm = RMSNorm of the centred input:", torch.allclose(rms(centred), layer(x))
)
print("RMSNorm = layer norm:", torch.allclose(rms(x), layer(x)))

v = torch.randn(7, 10, dtype=torch.float64)  # a linear layer from 10 to 7
ones = torch.ones(7, 1, dtype=torch.float64)
print(
    "weight norm = RMSNorm of each weight vector / √n:",
    torch.allclose(
        functional.weight_norm(v, ones),
        functional.rms_norm(v, (10,), eps=0.0) / 10**0.5,
    ),
)

# %% [markdown]
# ## What is forgotten
#
# A shift and a positive factor that are *the same for all elements of a set* leave no trace
# ($\varepsilon = 0$):
#
# $$
# \frac{(a x_i + b) - (a \mu + b)}{\sqrt{a^2 \sigma^2}}
# = \frac{a (x_i - \mu)}{a \sigma} = \hat{x}_i
# $$
#
# That line is the complete theory of what a normalization is blind to. Layer normalization forgets each
# sample's brightness and contrast; batch normalization forgets each channel's; RMSNorm subtracts no mean, so
# it forgets the factor only.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)


def factor(*shape):
    return 0.5 + 2 * torch.rand(shape, dtype=torch.float64)


changes = {
    "a factor and a shift for each sample": factor(n, 1, 1, 1) * x + factor(n, 1, 1, 1),
    "a factor and a shift for each channel": factor(1, c, 1, 1) * x
    + factor(1, c, 1, 1),
    "only a factor for each sample": factor(n, 1, 1, 1) * x,
}
print(f"{'the output stays the same under':40}batch  layer  rms")
for change, changed in changes.items():
    stays = [
        torch.allclose(normalize(changed), normalize(x), atol=1e-3)
        for normalize in (batch, layer, rms)
    ]
    print(f"{change:40}" + "".join(f"{'yes' if yes else 'no':7}" for yes in stays))

# %% [markdown]
# (The other techniques are for you: an exercise below asks for the whole table.)
#
# ### The table of Ba, Kiros and Hinton, measured
#
# In a network the input of a normalization is $x W^\top$, so changes of the *weights* and of the *data* pass
# through it. The [paper on Layer Normalization](https://arxiv.org/abs/1607.06450) lists in its Table 1 which
# of six changes three techniques do not notice. Do not believe it, run it: a linear layer with random
# weights, random data, each change once, in float64 with a tiny $\varepsilon$. RMSNorm, which came later,
# gets a line too.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
X = torch.randn(32, 10, dtype=torch.float64)  # 32 cases of 10 features
W = torch.randn(7, 10, dtype=torch.float64)  # 7 units
row = torch.randn(10, dtype=torch.float64)
one_unit = torch.tensor([3.0] + [1.0] * 6, dtype=torch.float64).view(7, 1)
one_case = torch.tensor([3.0] + [1.0] * 31, dtype=torch.float64).view(32, 1)
unit_length = torch.ones(7, 1, dtype=torch.float64)

outputs = {
    "batch": lambda X, W: functional.batch_norm(
        X @ W.T, None, None, training=True, eps=1e-20
    ),
    "weight": lambda X, W: X @ functional.weight_norm(W, unit_length).T,
    "layer": lambda X, W: functional.layer_norm(X @ W.T, (7,), eps=1e-20),
    "rms": lambda X, W: functional.rms_norm(X @ W.T, (7,), eps=1e-20),
}
six_changes = {
    "weight matrix × 3": (X, 3 * W),
    "weight matrix + one row for all": (X, W + row),
    "one weight vector × 3": (X, one_unit * W),
    "data × 3": (3 * X, W),
    "data + one vector for all": (X + row, W),
    "one case × 3": (one_case * X, W),
}
table = {
    name: [
        torch.allclose(output(*change), output(X, W), rtol=0, atol=1e-10)
        for change in six_changes.values()
    ]
    for name, output in outputs.items()
}
print(f"{'':33}" + "".join(f"{name:8}" for name in table))
for number, change in enumerate(six_changes):
    words = ["yes" if yes[number] else "no" for yes in table.values()]
    print(f"{change:33}" + "".join(f"{word:8}" for word in words))

published = {
    "batch": [True, False, True, True, True, False],
    "weight": [True, False, True, False, False, False],
    "layer": [True, True, False, True, False, True],
}
assert all(table[name] == row for name, row in published.items()), "not as in Table 1"
print(
    "as in the paper's Table 1:",
    all(table[name] == published[name] for name in published),
)

# %% [markdown]
# Read it by columns. Batch normalization ignores the length of every *single* weight vector; layer
# normalization only that of the whole matrix, but it ignores the scale of every single case. And "one row for
# all" adds the same number to all units of a case: layer normalization subtracts it, RMSNorm does not.
#
# ## The backward pass, once for all
#
# Sets do not overlap, so each can be treated by itself. Take one with $m$ elements, write $\hat{g}_i$ for the
# gradient that arrives at $\hat{x}_i$, and $r = 1/\sqrt{\sigma^2 + \varepsilon}$. An element reaches every
# $\hat{x}_i$ of its set in three ways: directly, through $\mu$, and through $\sigma^2$. Two derivatives are
# needed,
#
# $$
# \frac{\partial \mu}{\partial x_k} = \frac{1}{m}, \qquad
# \frac{\partial r}{\partial x_k} = -\frac{r^2}{m} \hat{x}_k
# $$
#
# and the product rule on $\hat{x}_i = (x_i - \mu) \, r$ gives the Jacobian, with $\delta_{ik}$ for 1 where
# $i = k$ and 0 elsewhere (the [next chapter](batch_norm.ipynb) goes step by step):
#
# $$
# J_{ik} = \frac{\partial \hat{x}_i}{\partial x_k}
# = r \Big( \delta_{ik} - \frac{1}{m} - \frac{\hat{x}_i \hat{x}_k}{m} \Big)
# $$
#
# Multiply from the left by $\hat{g}$, and the sums over $S$ turn into means over $S$:
#
# $$
# \frac{\partial L}{\partial x} = r \big( \hat{g} - \overline{\hat{g}}
# - \hat{x} \; \overline{\hat{g} \hat{x}} \big)
# $$
#
# **The gradient, minus its mean, minus its part along $\hat{x}$, times $r$.** Only the bars know which
# technique it is. For RMSNorm the first bar is missing, as the mean is.
#
# Read $J/r$ as a matrix: the identity minus two rank-one projections, onto the vector of ones and onto
# $\hat{x}$. These are the two directions that the forward pass forgets, shift and scale: what leaves the
# output alone must get no gradient. With $\varepsilon = 0$ the eigenvalues of $J$ are therefore 0, twice, and
# $r$, $m - 2$ times. (An $\varepsilon > 0$ lifts the second zero a little, to
# $r \varepsilon / (\sigma^2 + \varepsilon)$.)

# %% tags=["nbval-check-output"]
from torch.autograd.functional import jacobian

m = 8
torch.manual_seed(0)
x = torch.randn(m, dtype=torch.float64)
x_hat, mean, var = standardized(x, (0,), eps=0.0)
r = 1 / var.sqrt()
J = r * (torch.eye(m, dtype=torch.float64) - 1 / m - torch.outer(x_hat, x_hat) / m)
by_autograd = jacobian(lambda x: standardized(x, (0,), eps=0.0)[0], x)
print("formula = autograd:", torch.allclose(J, by_autograd, rtol=0, atol=1e-12))
print("J/r is a projection, P·P = P:", torch.allclose((J / r) @ (J / r), J / r))
eigenvalues = torch.linalg.eigvalsh(J / r)
print("eigenvalues of J/r:", [round(abs(value), 6) for value in eigenvalues.tolist()])
print("rank:", torch.linalg.matrix_rank(J).item(), "of", m)

x_hat = rms_normalized(x, (0,), eps=0.0)
J = jacobian(lambda x: rms_normalized(x, (0,), eps=0.0), x)
print("rank for RMSNorm:", torch.linalg.matrix_rank(J).item(), "of", m)

# %% [markdown]
# For a whole tensor the Jacobian is a large matrix, and its picture *is* the index set: a dot at $(i, k)$
# says that $x_k$ reaches $\hat{x}_i$. Two samples, four channels, three positions; the elements in the order
# of memory, so that samples are the two large blocks and channels the small ones.

# %% mystnb={"image": {"alt": "Four 24 by 24 matrices of dots. Batch: stripes that join both samples' elements of a channel. Layer: two large blocks on the diagonal. Instance: eight small blocks on the diagonal. Group: four blocks of middle size."}}
import matplotlib.pyplot as plt

torch.manual_seed(0)
x = torch.randn(2, 4, 1, 3, dtype=torch.float64)
panels = {
    "batch": small["batch"],
    "layer": small["layer"],
    "instance": small["instance"],
    "group, G = 2": lambda x: group_standardized(x, 2)[0],
}
figure, grid = plt.subplots(2, 2, figsize=(5.6, 5.8))
for axes, (name, normalize) in zip(grid.flat, panels.items(), strict=True):
    J = jacobian(normalize, x).reshape(24, 24)
    axes.imshow(J.abs() > 1e-9, cmap="Blues", vmin=0, vmax=1.3)
    axes.set(title=name, xticks=[0, 12], yticks=[0, 12])
    axes.grid(False)
figure.suptitle("Who reaches whom: the Jacobian shows the index set")
figure.supxlabel("input element k")
figure.supylabel("output element i")
plt.close(figure)
figure

# %% [markdown]
# The stripes of batch normalization are the only dots outside of the two diagonal blocks: it is the only
# technique in which one sample's gradient flows into another's. And for all of them gradcheck agrees with
# autograd:

# %% tags=["nbval-check-output"]
x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
for name, normalize in package.items():
    normalize = normalize if name != "group" else lambda x: functional.group_norm(x, 2)
    print(f"{name:9} gradcheck {torch.autograd.gradcheck(normalize, x)}")

# %% [markdown]
# An exercise below asks you for this backward pass, for any tuple of axes, without autograd. How exact and
# how fast each layer is, how much memory it takes and what it does on a GPU is measured in its own chapter.
#
# ## What normalization does to gradients
#
# Put weights $w$ before a normalization whose set holds everything that $w$ scales: a filter before batch
# normalization, a whole weight matrix before any of the techniques. Then their length has no effect on the
# loss: $f(a w) = f(w)$ for every $a > 0$. Two facts follow by differentiating this equation, in $w$ and in
# $a$:
#
# $$
# \nabla f(a w) = \frac{1}{a} \nabla f(w), \qquad
# w \cdot \nabla f(w) = 0
# $$
#
# Longer weights get shorter gradients; and the gradient is orthogonal to the weights (Euler's theorem on
# homogeneous functions). Measured, on a network that reads digits:

# %% tags=["nbval-check-output"]
from torch.nn.functional import cross_entropy

from normtutor.networks import MLP

torch.manual_seed(0)
network = MLP([64, 32, 32, 10]).double()  # linear, batch norm, ReLU; twice; linear
for module in network.modules():
    if isinstance(module, layers.BatchNorm1d):
        module.eps = 1e-30
images, labels = data.train_images[:256].flatten(1).double(), data.train_labels[:256]
weight = network[3].weight
start = weight.detach().clone()


def loss_and_gradient(scale):
    with torch.no_grad():
        weight.copy_(scale * start)
    loss = cross_entropy(network(images), labels)
    return loss.item(), torch.autograd.grad(loss, weight)[0]


loss, gradient = loss_and_gradient(1)
for scale in (2, 10, 1000):
    there, scaled_gradient = loss_and_gradient(scale)
    same_loss = abs(there - loss) < 1e-12
    shorter = torch.allclose(scale * scaled_gradient, gradient, rtol=0, atol=1e-12)
    print(f"weights × {scale:4}: same loss {same_loss}, gradient / {scale}: {shorter}")
cosine = (start * gradient).sum() / (start.norm() * gradient.norm())
print("gradient orthogonal to the weights:", abs(cosine.item()) < 1e-12)

# %% [markdown]
# Now take a step of plain gradient descent, $w_{t+1} = w_t - \eta \, \nabla f(w_t)$ with the learning rate
# $\eta$. It is orthogonal to $w$, so Pythagoras gives the new length:
#
# $$
# \|w_{t+1}\|^2 = \|w_t\|^2 + \eta^2 \|\nabla f(w_t)\|^2
# $$
#
# **The weights can only grow.** While they do, they turn less and less: a step has the length
# $\eta \|\nabla f\| \propto \eta / \|w\|$, and what counts is its size relative to $\|w\|$. So the number
# that decides how fast the *function* changes is the **effective learning rate** $\eta / \|w\|^2$
# ([van Laarhoven 2017](https://arxiv.org/abs/1706.05350)). Weight decay, which adds
# $\lambda w$ to the gradient, pulls the other way: it cannot
# regularize a function that ignores the length, but it keeps the weights short and so the effective learning
# rate high. Train four times, with four weight decays, and watch the first layer's $\|w\|^2$:


# %%
from itertools import pairwise


@one_thread()
def trace_length(decay, steps=400, lr=0.1):
    """‖w‖² of the first layer after each step, and the sum that Pythagoras predicts."""
    torch.manual_seed(0)
    network = MLP([64, 32, 32, 10])
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, weight_decay=decay)
    inputs = data.train_images.flatten(1)
    weight = network[0].weight
    lengths, predicted = [], [weight.square().sum().item()]
    for _ in range(steps):
        batch = torch.randint(len(inputs), (64,))
        loss = cross_entropy(network(inputs[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        squared = weight.grad.square().sum().item()
        predicted.append(predicted[-1] + lr**2 * squared)
        optimizer.step()
        lengths.append(weight.square().sum().item())
    return lengths, predicted[1:]


traces = {decay: trace_length(decay) for decay in (0.0, 0.01, 0.03, 0.1)}
lengths, predicted = traces[0.0]
error = max(abs(a - b) / a for a, b in zip(lengths, predicted, strict=True))
print(f"no decay: ‖w‖² from {lengths[0]:.3f} to {lengths[-1]:.3f}")
print(f"Pythagoras misses it by at most {error:.1e} of itself (ε > 0 and rounding)")
assert error < 1e-2
assert all(b >= a - 1e-4 for a, b in pairwise(lengths)), "it should never shrink"
assert traces[0.1][0][-1] < 0.8 * lengths[0], "decay should shorten the weights"

# %% mystnb={"image": {"alt": "Squared length of the first layer's weights against training steps. Without decay it rises; the larger the weight decay, the faster it falls, and only the largest one has settled by the end."}}
shades = (GREY, BLUE, "#009E73", ORANGE)
line_chart(
    {f"λ = {d:g}": (range(1, 401), lengths) for d, (lengths, _) in traces.items()},
    xlabel="training step",
    ylabel="‖w‖²",
    title="Without decay weights grow, with it they shrink",
    colours={f"λ = {d:g}": shade for d, shade in zip(traces, shades, strict=True)},
)

# %% [markdown]
# ### Four published claims, put to the test
#
# Each claim below is tested twice: here, briefly, and in full by `make claims`, whose record is shown. What
# counts as "reproduces" stands in the line *Holds if*. A test of the course puts the identity
# in the place of the normalization, and sees each of the four fail.
#
# **Only the effective learning rate counts.** Weights ten times as long, with a learning rate a hundred times
# as large: the same $\eta / \|w\|^2$, so the same function at every step. The experiment is small enough to
# read:

# %%
from normtutor.lab import claims
from normtutor.lab.claims import one_formula as experiments

show_source(experiments.scaled_run)

# %%
outcome = claims.run("one_formula.scale_invariance")
print(outcome)
print(claims.recorded("one_formula.scale_invariance"))
assert outcome.holds

# %% [markdown]
# **Where the weights come to rest.** Decay shrinks $\|w\|^2$ by $2 \eta \lambda \|w\|^2$ per step, the
# gradient adds $\eta^2 \|\nabla f\|^2 = \eta^2 c^2 / \|w\|^2$, with $c$ the gradient's length at $\|w\| = 1$.
# They balance where
#
# $$
# 2 \eta \lambda \|w\|^2 = \frac{\eta^2 c^2}{\|w\|^2}
# \quad \Longrightarrow \quad
# \|w\| = \Big( \frac{c^2}{2} \cdot \frac{\eta}{\lambda} \Big)^{1/4}
# $$

# %%
outcome = claims.run("one_formula.weight_norm_equilibrium")
print(outcome)
print(claims.recorded("one_formula.weight_norm_equilibrium"))
assert outcome.holds

# %% mystnb={"image": {"alt": "Length of the weights at rest against learning rate over weight decay, both logarithmic. The measured points lie on a line of slope one quarter."}}
points = outcome.measured["points"]
ratio = [point["lr"] / point["decay"] for point in points]
settled = [point["norm"][0] for point in points]
line_chart(
    {
        "measured": (ratio, settled),
        "slope ¼": (ratio, [settled[0] * (q / ratio[0]) ** 0.25 for q in ratio]),
    },
    xlabel="η/λ (log)",
    ylabel="‖w‖ at rest (log)",
    xscale="log",
    yscale="log",
    title="At rest, ‖w‖ is a fourth root of η/λ",
    colours={"measured": BLUE, "slope ¼": GREY},
    markers=True,
)

# %% [markdown]
# Put it into $\eta / \|w\|^2$, and the effective learning rate at rest is $\sqrt{2 \eta \lambda} / c$:
# **learning rate and weight decay are one knob**, their product.
#
# ## What normalization does to signals
#
# Forward now. In a residual network each block adds something to a stream, $x \leftarrow x + f(x)$. If $f$
# keeps the scale of its input, the stream's variance doubles in every block: after thirty of them it is a
# billion. If the branch is normalized first, it adds about the same amount every time, and the growth is
# linear. A *transition* block, which changes the resolution, replaces the stream by a convolution of its
# normalized self, and so starts again.

# %%
outcome = claims.run("one_formula.signal_propagation")
print(outcome)
print(claims.recorded("one_formula.signal_propagation"))
assert outcome.holds

# %% mystnb={"image": {"alt": "Variance of the residual stream against the block's number, logarithmic. With Batch Normalization a low saw-tooth of three teeth, one for each stage. Without normalization it rises by a factor in every block."}}
streams = {
    kind: [value for stage in outcome.measured[key][0] for value in stage]
    for kind, key in (("batch", "normalized"), ("none", "plain"))
}
line_chart(
    {kind: (range(1, len(values) + 1), values) for kind, values in streams.items()},
    xlabel="block",
    ylabel="variance of the stream (log)",
    yscale="log",
    title="Normalized branches add; others multiply",
    markers=True,
)

# %% [markdown]
# The teeth are of practical use: deep in a stage, a block adds little compared with the stream, so each block
# of a new network is close to the identity, which is what makes very deep residual networks trainable, as
# [De & Smith 2020](https://arxiv.org/abs/2002.10444) argue. Networks without normalization imitate this on
# purpose, by constants.
#
# Where there is no stream, *where* the normalization stands decides whether fifty layers still know which
# sample they saw. That is this chapter's challenge, at the end.
#
# ## Why does it help?
#
# The first explanation was *internal covariate shift*: while a network trains, the inputs of every layer keep
# moving, and normalization holds them still. Santurkar and others tested it the direct way. Normalize, then
# spoil it: add noise after each normalization, with a mean and a scale that are drawn anew at every step. The
# layers' inputs now move more than ever.

# %%
show_source(experiments.Noisy)

# %%
outcome = claims.run("one_formula.noise")
print(outcome)
print(claims.recorded("one_formula.noise"))
assert outcome.holds

# %% [markdown]
# So steadiness of the inputs is not what makes the difference. But read the caveat: this is one learning rate.
# At a smaller one, in the full run, the noise costs more than the rule would allow. The result is "holding the
# inputs still is not *why* it trains", not "noise is free". What the same authors put in its place, a smoother
# landscape, is measured in [Batch Normalization](batch_norm.ipynb); and this chapter has shown you two more
# parts of the answer, gradients that adapt to the weights' length and branches that add instead of multiply.
# There is no single reason, and the course does not pretend there is.
#
# ## Pitfalls
#
# **A reshape is not a transpose.** To get one row per channel of $(N, C, H, W)$, `x.reshape(C, -1)` is
# tempting. It keeps the order in memory, in which the *sample* comes first, and cuts it into $C$ equal
# pieces: rows that mix channels, without any error message.

# %% tags=["nbval-check-output"]
x = torch.zeros(2, 2, 1, 2)
x[:, 1] = 1  # channel 0 is all zeros, channel 1 all ones
print("reshape:  ", x.reshape(2, -1).tolist())
print("transpose:", x.transpose(0, 1).reshape(2, -1).tolist())

# %% [markdown]
# **Sets that are too small.** Two elements, standardized, are $+1$ and $-1$: whatever they were, only their
# order is left. The Jacobian has rank $m - 2 = 0$, so no gradient passes at all. That is batch normalization
# of vectors with a batch of two, or instance normalization of 1×2 maps; a single element is always 0.

# %% tags=["nbval-check-output"]
x = torch.tensor([[3.0, 50.0], [4.0, -900.0]], dtype=torch.float64, requires_grad=True)
y, _, _ = standardized(x, (0,), eps=0.0)  # batch norm, two samples
y.backward(torch.randn_like(y))
print("output:  ", y.detach().round(decimals=6).tolist())
print("gradient is zero:", (x.grad.abs().max() < 1e-12).item())

# %% [markdown]
# **$\varepsilon$ is a length scale.** All invariances end where $\sigma^2$ comes near $\varepsilon$. Shrink
# the input (small weights, strong decay, a dim image) and the output shrinks with it:

# %% tags=["nbval-check-output"]
x = torch.tensor([-1.0, 1.0], dtype=torch.float64)
for scale in (1, 1e-1, 1e-2, 1e-3):
    y, _, _ = standardized(scale * x, (0,), eps=1e-5)
    print(f"σ = {scale:5g}: normalized to ±{y[1].item():.3f}")

# %% [markdown]
# **Weight decay before a normalization is not regularization.** It sets the effective learning rate;
# excluding it "to regularize less" changes how fast you train. Where no normalization follows, as after the
# last layer, it does regularize.
#
# **The axes have names only in your head.** `LayerNorm(C)` on $(N, C, H, W)$ fails or, if $W = C$, silently
# normalizes along the width; `InstanceNorm1d` takes a matrix $(N, D)$ for one unbatched sample. The chapters
# on [layer](layer_norm.ipynb) and [instance normalization](instance_norm.ipynb) come back to this.

# %% tags=["nbval-check-output"]
square = torch.randn(2, 4, 4, 4)  # (N, C, H, W) with W = C
y = layers.LayerNorm(4, elementwise_affine=False)(square)
print("mean over the channels is 0:", torch.allclose(y.mean(1), torch.zeros(2, 4, 4)))
print("mean over the width is 0:", y.mean(3).abs().max().item() < 1e-5)

# %% [markdown]
# ## Exercises
#
# Eight tasks, from a first success in a minute to an open challenge. Write your answer in the cell under each
# statement and run it: the checker says what is right already, and which mistake it sees. `hint("…")` gives
# the next hint, `solution("…")` the reference. Nothing leaves your machine; your progress is in
# `normtutor_progress.json` beside the notebook.

# %%
from normtutor.exercises import check, progress, statement

# %% [markdown]
# ### 1. How many means?

# %% tags=["nbval-check-output"]
statement("one_formula.count")

# %%
count = {
    "batch": ...,
    "layer": ...,
    "instance": ...,
    "group, G = 6": ...,
    "elements per set, batch": ...,
    "elements per set, group": ...,
    "layer, one per token": ...,
}

# %% tags=["nbval-check-output"]
check("one_formula.count", count)

# %% [markdown]
# ### 2. The one formula

# %% tags=["nbval-check-output"]
statement("one_formula.standardize")


# %%
def standardize(x, axes, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("one_formula.standardize", standardize)

# %% [markdown]
# ### 3. Spot the bug: the reshape that mixes

# %% tags=["nbval-check-output"]
statement("one_formula.bug_reshape")


# %%
def batch_norm(x, eps):
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = (x - mean).square().mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)


def instance_norm(x, eps):
    n, c, h, w = x.shape
    folded = x.reshape(n * c, 1, h, w)
    return batch_norm(folded, eps).reshape(n, c, h, w)


# %% tags=["nbval-check-output"]
check("one_formula.bug_reshape", instance_norm)

# %% [markdown]
# ### 4. What leaves the output alone?

# %% tags=["nbval-check-output"]
statement("one_formula.invariances")

# %%
invariant = {
    "batch: samples scaled": ...,
    "layer: samples scaled": ...,
    "instance: samples scaled": ...,
    "group: samples scaled": ...,
    "rms: samples scaled": ...,
    "batch: channels scaled": ...,
    "layer: channels scaled": ...,
    "instance: channels scaled": ...,
    "group: channels scaled": ...,
    "rms: channels scaled": ...,
    "batch: all shifted": ...,
    "layer: all shifted": ...,
    "instance: all shifted": ...,
    "group: all shifted": ...,
    "rms: all shifted": ...,
}

# %% tags=["nbval-check-output"]
check("one_formula.invariances", invariant)

# %% [markdown]
# ### 5. All of them, in one function

# %% tags=["nbval-check-output"]
statement("one_formula.normalize")


# %%
def normalize(x, technique, groups, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("one_formula.normalize", normalize)

# %% [markdown]
# ### 6. The learning rate that counts

# %% tags=["nbval-check-output"]
statement("one_formula.effective_rate")

# %%
rates = {
    "gradient at 3w": ...,
    "learning rate at 3w": ...,
    "squared length after a step": ...,
    "effective learning rate": ...,
    "effective learning rate after the step": ...,
    "growth of ‖w‖ when η is 16 times as large": ...,
    "growth of ‖w‖ when λ is 16 times as large": ...,
}

# %% tags=["nbval-check-output"]
check("one_formula.effective_rate", rates)

# %% [markdown]
# ### 7. The backward pass, for any index set

# %% tags=["nbval-check-output"]
statement("one_formula.backward")


# %%
def standardize_backward(grad, x, axes, eps):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("one_formula.backward", standardize_backward)

# %% [markdown]
# ### 8. Challenge: fifty random layers

# %% tags=["nbval-check-output"]
statement("one_formula.deep")


# %%
def step(z):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("one_formula.deep", step)


# %%
progress("one_formula")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. A tensor $(16, 32, 8, 8)$, group normalization with 8 groups. How many means, and how many elements in
# each set?**
#
# <details>
# <summary>8 means over 4096 elements</summary>
#
# No. That would be one mean per group over the whole batch. Each sample has its own.
#
# </details>
# <details>
# <summary>128 means over 256 elements</summary>
#
# Yes: 16 samples with 8 groups each; a set holds 32/8 = 4 channels of 64 positions.
#
# </details>
# <details>
# <summary>128 means over 512 elements</summary>
#
# No. A group has C/G = 4 channels, not 8. (The product of both numbers must be the size of the tensor.)
#
# </details>
#
# **2. You multiply one image of a batch by 5. Which technique, in training, changes the output for the
# *other* images?**
#
# <details>
# <summary>All of them</summary>
#
# No. If a set lies within one sample, the others do not notice.
#
# </details>
# <details>
# <summary>Batch normalization only</summary>
#
# Yes. Its sets are the only ones that run over samples: one bright image moves the mean and the variance of
# every channel.
#
# </details>
# <details>
# <summary>None: the factor cancels</summary>
#
# No. It cancels only where it is the same for all elements of a set.
#
# </details>
#
# **3. The gradient that leaves a normalization backwards has, over each set, which two properties?
# ($\varepsilon = 0$)**
#
# <details>
# <summary>Mean 0 and variance 1</summary>
#
# Half right. The mean is 0; but the gradient is not standardized, its size is that of $\hat{g}$ times $r$ or
# less.
#
# </details>
# <details>
# <summary>Mean 0, and orthogonal to x̂</summary>
#
# Yes. These are the two directions in which the input can move without changing the output: a shift and a
# scaling.
#
# </details>
# <details>
# <summary>It equals γ times what came in</summary>
#
# No. That holds in evaluation with running statistics (times $r$), where mean and variance are constants.
#
# </details>
#
# **4. A network with a normalization after every layer is trained by SGD without weight decay, at a constant
# learning rate. What happens to its effective learning rate?**
#
# <details>
# <summary>It stays: the learning rate is constant</summary>
#
# No. What counts is $\eta / \|w\|^2$, and $\|w\|$ grows.
#
# </details>
# <details>
# <summary>It falls, by itself</summary>
#
# Yes. Every step is orthogonal to the weights and lengthens them: a learning-rate schedule that nobody wrote.
#
# </details>
# <details>
# <summary>It rises, since the gradients shrink</summary>
#
# No. Shrinking gradients are one of the two reasons why it *falls*.
#
# </details>
#
# **5. Which technique can tell a sample from the same sample with 7 added to every element?**
#
# <details>
# <summary>Layer normalization</summary>
#
# No. The 7 is part of the sample's mean, and is subtracted.
#
# </details>
# <details>
# <summary>RMSNorm</summary>
#
# Yes. It subtracts no mean; the shift stays in, and in the root mean square too.
#
# </details>
# <details>
# <summary>Instance normalization</summary>
#
# No. Each plane's mean contains the 7, and is subtracted.
#
# </details>
#
# ## References
#
# - Wu, He: [Group Normalization](https://arxiv.org/abs/1803.08494), 2018. Section 3.1: the index sets of all
#   four.
# - Ioffe, Szegedy: [Batch Normalization](https://arxiv.org/abs/1502.03167), 2015.
# - Ba, Kiros, Hinton: [Layer Normalization](https://arxiv.org/abs/1607.06450), 2016. Table 1: the invariances.
# - Ulyanov, Vedaldi, Lempitsky: [Instance Normalization](https://arxiv.org/abs/1607.08022), 2016.
# - Salimans, Kingma: [Weight Normalization](https://arxiv.org/abs/1602.07868), 2016.
# - Zhang, Sennrich: [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467), 2019.
# - van Laarhoven: [L2 Regularization versus Batch and Weight
#   Normalization](https://arxiv.org/abs/1706.05350), 2017. The effective learning rate.
# - Brock, De, Smith: [Characterizing Signal Propagation to Close the Performance Gap in Unnormalized
#   ResNets](https://arxiv.org/abs/2101.08692), 2021. The saw-tooth.
# - De, Smith: [Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep
#   Networks](https://arxiv.org/abs/2002.10444), 2020.
# - Santurkar, Tsipras, Ilyas, Mądry: [How Does Batch Normalization Help
#   Optimization?](https://arxiv.org/abs/1805.11604), 2018. The noise.
