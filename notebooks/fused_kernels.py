# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fused Kernels
#
# $$
# t \;\ge\; \max\!\left( \frac{\text{bytes}}{\text{bandwidth}}, \; \frac{\text{operations}}{\text{peak}} \right)
# $$
#
# A normalization does a handful of operations per number. A GPU could do dozens in the time in which it
# fetches that number. So what a normalization costs is decided by one question: **how often does a number
# travel between the memory and the chip?**
#
# In this chapter you count the bytes, look at what `torch.compile` fuses, write a kernel line by line,
# break its variance, keep it in registers, and share what does not fit. Each step makes a prediction, and
# is then checked as far as that goes without a GPU: errors, bytes, registers. Times on a GPU come from a
# record. **The predictions were written down before there was one**; where it is missing, the page says
# *not measured yet*.
#
# You need: the backward passes of [Batch Normalization](batch_norm.ipynb) and [Layer
# Normalization](layer_norm.ipynb). The chapter runs top to bottom in under a minute. On a CUDA GPU its
# kernels run for real; on a CPU they run in Triton's interpreter; where there is no Triton (macOS, Windows)
# you read them, and the cells that would run them say so.

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
# The layers of the earlier chapters read like their formula: a mean, a difference, a square, a mean … Each
# of these operations is a program of its own on the GPU, a **kernel**: it reads its inputs from memory,
# computes, and writes its result back, for the next one to read. **Fusing** means to do all of it while the
# numbers are on the chip.
#
# Ivanov et al. ([2020](https://arxiv.org/abs/2007.00072)) found training of Transformers bound by exactly
# this: data movement, not arithmetic.
#
# [Triton](https://triton-lang.org) is a language for such kernels that looks like Python. Its interpreter
# runs them as Python, slowly and faithfully, on a CPU. The choice has to be made before anything imports
# Triton:

# %%
import importlib.util
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl
else:  # stand-ins, so that the kernels below can be read here

    class triton:
        jit = staticmethod(lambda function: function)

    class tl:
        constexpr = int


# %%
import functools
import math
import sys
from unittest import mock

import numpy as np
from torch import nn

from normtutor import functional, fused, layers, networks
from normtutor.catalog import TECHNIQUES
from normtutor.lab import (
    bench,
    generated_kernels,
    line_chart,
    memory,
    memory_table,
    recorded,
    recorded_roofline,
    recorded_timings,
    show_source,
    traffic,
    use_style,
)

use_style()
ORANGE, SKY, GREY, BLUE = "#D55E00", "#56B4E9", "#6e6e6e", "#0072B2"
GREEN, PURPLE = "#009E73", "#CC79A7"

device = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = "triton" in sys.modules  # kernels can run here, for real or interpreted
INTERPRETED = RUNS and device == "cpu"
if INTERPRETED:
    print("no CUDA GPU here: the kernels run in Triton's interpreter")
else:
    print("the kernels run on the GPU" if RUNS else "no Triton here: read on")

# %% [markdown]
# ## The problem, felt
#
# One formula, two programs that compute it: this course's readable layer, one operation after the other,
# and torch's, which is one kernel. On your device:

# %%
from normtutor.lab.timing import FORWARD

sweep = bench(
    "layer", shapes=[(4096, 2048)], directions=(FORWARD,), seconds=0.5, rounds=3
)
print(sweep)

# %% [markdown]
# Both give the same numbers to within rounding: the [chapter on Layer Normalization](layer_norm.ipynb)
# shows it. Neither does more arithmetic than the other, to speak of. The column *least* does not tell them
# apart either: it has the bytes that any implementation must move, $x$ once in and $y$ once out. What each
# of them really moves is another number. The next section counts it.
#
# On a CPU that is not the whole story: on one core arithmetic takes its time too, so that even torch's
# kernel stays below the copy. Bytes alone decide where arithmetic is cheap: on a GPU.

# %% [markdown]
# ## Count the bytes
#
# The lab counts them. Torch's operations are seen as they happen; each is taken to read its inputs once and
# to write its outputs once, the best that a kernel of its own can do. The unit is a **pass**: one reading
# or one writing of a tensor of $x$'s size.


# %%
def small(x, gamma, beta, eps=1e-5):
    """Layer Normalization over the last axis, as the formula says."""
    mean = x.mean(-1, keepdim=True)
    var = (x - mean).square().mean(-1, keepdim=True)
    return gamma * (x - mean) / torch.sqrt(var + eps) + beta


torch.manual_seed(0)
x = torch.randn(256, 1024)
gamma, beta = torch.randn(1024), torch.randn(1024)
print(traffic(lambda: small(x, gamma, beta)))

# %% tags=["nbval-check-output"]
tokens = x.clone().requires_grad_()
parameters = [p.clone().requires_grad_() for p in (gamma, beta)]
upstream = torch.randn_like(x)


def both(function):
    """Forward and backward, with the gradients of x, γ and β."""
    y = function(tokens, *parameters)
    return torch.autograd.grad(y, (tokens, *parameters), upstream)


def theirs(x, gamma, beta):
    return nn.functional.layer_norm(x, (1024,), gamma, beta)


def ours(x, gamma, beta):
    return functional.layer_norm(x, (1024,), gamma, beta)


candidates = {"the formula": small, "the package": ours, "torch's kernel": theirs}
for name, function in candidates.items():
    counted = traffic(functools.partial(function, x, gamma, beta))
    print(f"{name:15} forward: {counted.passes(x):4.1f} passes", end="")
    print(f" in {len(counted.moves)} operations")
formula = traffic(lambda: both(small)).passes(x)
kernel = traffic(lambda: both(theirs)).passes(x)
print("with its backward pass, more than 40 passes:", formula > 40)
half = x.bfloat16()
in_half = traffic(lambda: ours(half, gamma, beta)).passes(half)
print(f"the package in bfloat16: {in_half:.1f} passes of the half-sized tensor")
print(f"torch's kernels, forward and backward: {kernel:.1f}")

# %% [markdown]
# Thirteen or fourteen passes against two. Autograd adds to that: it goes back through every one of those
# operations. In half precision the package's layer converts to float32 first and back last, as its
# statistics need; eagerly it then moves more than twice as many passes, each over half the bytes. If only
# bytes count, the formula takes about **seven times** as long as one kernel on tensors
# larger than every cache. Compare with the ratio that you measured above: a CPU's caches serve a part of
# it.
#
# **What must move?** One program that holds a whole index set in its registers reads $x$ once and writes
# $y$ once: two passes, no less than a copy. Its backward pass reads $x$ and $\partial L/\partial y$ and
# writes $\partial L/\partial x$: three. Batch Normalization cannot: its sets run through the whole batch,
# no program holds one, and so $x$ is read once for the statistics and once more to be normalized. The
# catalog has these numbers:

# %% tags=["nbval-check-output"]
print(f"{'':24}forward  backward")
for row in TECHNIQUES.values():
    print(f"{row.title:24}{row.forward_passes:7}{row.backward_passes:10}")

# %% [markdown]
# ## The roofline
#
# Is it true that only bytes count? Williams, Waterman and Patterson drew the answer in 2009. A machine has
# a peak $P$, in operations per second, and a bandwidth $B$, in bytes per second. A program with $I$
# operations *per byte* can reach
#
# $$
# \min(P, \; I \cdot B)
# $$
#
# operations per second. The roof has a slope and a flat part, and they meet at $I = P/B$, the **ridge**.
# Left of it a program waits for memory. Layer Normalization does about eight operations per element: add
# up; subtract, square, add up; subtract, scale, multiply, add. Forward, in float32, it moves eight bytes
# per element:

# %% tags=["nbval-check-output"]
machines = {  # float32 operations per second, bytes per second: data sheets
    "T4": (8.1e12, 320e9),
    "A100": (19.5e12, 2039e9),
    "H100": (67e12, 3350e9),
}
for name, (peak, bandwidth) in machines.items():
    print(f"{name:5} ridge at {peak / bandwidth:4.1f} operations per byte")
intensity = {kind: 8 / (2 * size) for kind, size in (("float32", 4), ("bfloat16", 2))}
print("Layer Normalization:", intensity)

# %% mystnb={"image": {"alt": "The rooflines of three GPUs: attainable operations per second against operations per byte, both logarithmic. Each rises and then is flat. The vertical line of Layer Normalization at one operation per byte crosses all three far to the left of where they bend."}}
span = np.geomspace(0.1, 200, 60)
roofs = {
    name: (span, [min(peak, i * bandwidth) / 1e12 for i in span])
    for name, (peak, bandwidth) in machines.items()
}
figure = line_chart(
    roofs,
    xlabel="operations per byte (log)",
    ylabel="10¹² operations per second (log)",
    xscale="log",
    yscale="log",
    title="Normalization lives far down the slope",
    colours={"T4": GREY, "A100": BLUE, "H100": PURPLE},
)
figure.axes[0].axvline(1.0, color=ORANGE)
figure.axes[0].text(1.2, 0.05, "LayerNorm, float32", color="#a84300")
figure

# %% [markdown]
# On every one of them it stands on the slope. So the flat part of the roof does not matter, and neither
# does an operation saved. **The prediction for all that follows is bytes ÷ bandwidth**, with the bandwidth
# that a plain copy reaches on the same device, since what a data sheet promises is rarely reached. In units
# of a copy of $x$, which is two passes:

# %% tags=["nbval-check-output"]
for what, passes in {"formula": 14, "fused": 2, "fused backward": 3, "BN": 3}.items():
    print(f"{what:15} {passes:2} passes: {passes / 2:.1f} × a copy of x")

# %% [markdown]
# ## What `torch.compile` fuses
#
# You need not write kernels to get rid of most of these passes. `torch.compile` records the operations, and
# its backend, *inductor*, writes kernels for groups of them. Which groups? Read what it generates. The lab
# stops it before it calls a C++ compiler, so that this takes seconds. For a CPU, forward only:

# %%
images = torch.randn(16, 64, 8, 8)
channel = torch.ones(64), torch.zeros(64)
functions = {
    "LayerNorm, the formula": (small, (x, gamma, beta)),
    "LayerNorm, torch's": (theirs, (x, gamma, beta)),
    "… + residual, then ReLU": (
        lambda x, r, gamma, beta: torch.relu(small(x + r, gamma, beta)),
        (x, upstream, gamma, beta),
    ),
    "RMSNorm, ours": (
        lambda x, gamma: functional.rms_norm(x, (1024,), gamma, 1e-6),
        (x, gamma),
    ),
    "BatchNorm, ours": (
        lambda x, gamma, beta: functional.batch_norm(
            x, None, None, gamma, beta, training=True
        ),
        (images, *channel),
    ),
}
try:
    generated = {
        name: generated_kernels(f, *args) for name, (f, args) in functions.items()
    }
except RuntimeError as error:  # another release of torch
    generated = {}
    print(error)
for name, kernels in generated.items():
    function, inputs = functions[name]
    operations = len(traffic(functools.partial(function, *inputs)).moves)
    print(f"{name:24} {operations:2} operations → {len(kernels)} kernel: ", end="")
    print(", ".join(kernel.name for kernel in kernels))

# %% [markdown]
# In the release that built this page it is **one kernel each**, with what stands before and after fused in.
# No intermediate of $x$'s size is written any more. But look inside. How many loops read the first input?

# %%
for name, kernels in generated.items():
    print(f"{name:24} reads x in {sum(k.reads('in_ptr0') for k in kernels)} loops")
if generated:
    source = generated["RMSNorm, ours"][0].source
    print(source[source.index("    {\n") :])

# %% [markdown]
# A loop for each reduction, and one to write. Batch Normalization has three reductions here: the package
# also adds up $x - \text{mean}$, which rounding keeps from being 0, and subtracts its mean. Whether these readings reach the memory depends on what a
# cache keeps between them: here the loops over one row follow each other at once, and a row of a few KiB is
# still there. For Batch Normalization the first loops go through everything before the last one starts.
#
# So the compiler fuses what is *elementwise* into the reductions, and it cannot undo the order that the
# formula demands: all of a set first, then each element. How it spreads this over a GPU's programs, which
# of the readings stay on the chip, and what its backward pass does are questions for the record, where
# "compiled" is one of the candidates.

# %% [markdown]
# ## The row kernel, line by line
#
# A GPU runs thousands of **programs** of one kernel side by side, each with its number. For Layer
# Normalization program $k$ takes row $k$. It works on a whole **block** of numbers at once, whose size must
# be a power of two and known when the kernel is compiled. Read it once; then read the notes.


# %%
@triton.jit
def two_pass(x, gamma, beta, y, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < n
    value = tl.load(x + row * n + col, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / n
    value = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(value * value, axis=0) / n
    x_hat = value * tl.rsqrt(variance + eps)
    g = tl.load(gamma + col, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(beta + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * n + col, x_hat * g + b, mask=inside)


# %% [markdown]
# - `row`: which program this is. In 64 bits, since `row * n` passes $2^{31}$ in large tensors.
# - `col`: 0, 1, …, `BLOCK` − 1, one **lane** each; `x` is a pointer, and `x + row * n + col` a block of
#   pointers.
# - `inside`: `BLOCK` is the next power of two, so the last lanes hang over the row's end. They load
#   nothing, and get 0.
# - `.to(tl.float32)`: half-precision input is converted once, on the chip. The statistics are float32
#   always.
# - `mean`: the padded zeros do not disturb a *sum*. We divide by `n`, not by `BLOCK`.
# - `tl.where`: after the subtraction a padded lane holds −mean, which *would* disturb the next sum.
# - `variance`: two-pass. `value` is still in registers, so the second pass over the row costs **no memory
#   traffic at all**.
# - `tl.store`: masked again, or it would write into the next row.
#
# The launch says how many programs; here, one per row.


# %%
def block_and_warps(n):
    """The next power of two, and a warp for every 512 lanes of it, 32 at most."""
    block = 1 << (n - 1).bit_length()
    return block, min(32, max(1, block // 512))


def launch(kernel, x, gamma, beta, eps=1e-5):
    """One program per row of x, (rows, n)."""
    y = torch.empty_like(x)
    rows, n = x.shape
    block, warps = block_and_warps(n)
    kernel[(rows,)](x, gamma, beta, y, n, eps, BLOCK=block, num_warps=warps)
    return y


if RUNS:
    for n in (8, 100, 1000):
        rows = torch.randn(5, n, device=device)
        scale, shift = torch.randn(2, n, device=device)
        y = launch(two_pass, rows, scale, shift)
        truth = functional.layer_norm(
            rows.double(), (n,), scale.double(), shift.double()
        )
        error = (y - truth).abs().max().item()
        print(f"rows of {n:4}: largest error {error:.0e}")
        assert error < 1e-5, "the kernel should agree with the layer"
else:
    print("no Triton here, so nothing ran")

# %% [markdown]
# How much does it move? In the interpreter every load and store can be counted:

# %%
if INTERPRETED:
    counted = traffic(lambda: launch(two_pass, x[:16], gamma, beta))
    print(counted)
    print(f"{counted.passes(x[:16]):.2f} passes asked for, of which", end=" ")
    print(f"{2 * x[:16].numel() * 4 / counted.total:.0%} are x and y")
else:
    print("loads and stores are counted in the interpreter only")

# %% [markdown]
# Two passes for $x$ and $y$. Each program reads $\gamma$ and $\beta$ too, which after the first few
# programs come from a cache: a load that is counted here need not reach the memory.
#
# ### The padded lanes
#
# What happens without `tl.where`? The row $(1, 3, 5, 7, 9)$ has mean 5 and variance 8. In a block of 8
# lanes:

# %% tags=["nbval-check-output"]
row = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0])
block = torch.zeros(8)
block[:5] = row
inside = torch.arange(8) < 5
mean = block.sum() / 5
unmasked = (block - mean).square().sum() / 5
masked = torch.where(inside, block - mean, 0.0).square().sum() / 5
print(f"mean {mean:.0f}, variance: masked {masked:.0f}, not masked {unmasked:.0f}")
print("three padded lanes add 3 · 5² / 5 =", 3 * 5**2 // 5)

# %% [markdown]
# The error grows with the square of the mean, it is 0 where `n` is a power of two, and it is small for
# centred input: a test with `randn(…, 1024)` never sees it. An exercise lets you find one.

# %% [markdown]
# ## Why one-pass variance is a trap
#
# $\sigma^2 = E[x^2] - E[x]^2$ lets one loop do both sums. In a kernel it looks even better than in a
# formula: the two reductions no longer wait for each other.


# %%
@triton.jit
def one_pass(x, gamma, beta, y, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < n
    value = tl.load(x + row * n + col, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / n
    variance = tl.sum(value * value, axis=0) / n - mean * mean  # cancels
    x_hat = (value - mean) * tl.rsqrt(variance + eps)
    g = tl.load(gamma + col, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(beta + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * n + col, x_hat * g + b, mask=inside)


# %%
offsets = [1.0, 1e1, 1e2, 1e3, 1e4]
noise = torch.randn(16, 512)
one, zero = torch.ones(512), torch.zeros(512)


def output_error(normalize, offset):
    """Largest error of x̂ against float64, relative to the largest x̂; inf for NaN."""
    x = noise + offset
    truth = functional.layer_norm(x.double(), (512,))
    y = normalize(x).double()
    error = ((y - truth).abs().max() / truth.abs().max()).item()
    return math.inf if math.isnan(error) else error


def in_kernel(kernel, x):
    with np.errstate(invalid="ignore"):  # the root of a negative "variance"
        return launch(kernel, *(t.to(device) for t in (x, one, zero))).cpu()


def by_fused(x):
    return fused.layer_norm(x.to(device), (512,)).cpu()


own = "fused" if RUNS else "plain path"  # which is what `fused` computes without Triton
candidates = {"torch": lambda x: nn.functional.layer_norm(x, (512,)), own: by_fused}
if RUNS:
    candidates |= {
        "one pass": functools.partial(in_kernel, one_pass),
        "two passes": functools.partial(in_kernel, two_pass),
    }
errors = {
    name: [output_error(normalize, offset) for offset in offsets]
    for name, normalize in candidates.items()
}
print(f"{'mean/std':12}" + "".join(f"{offset:>10.0e}" for offset in offsets))
for name, row in errors.items():
    print(f"{name:12}" + "".join(f"{error:10.0e}" for error in row))
assert errors[own][4] < 1e-5
if RUNS:
    assert errors["one pass"][4] > 0.1 > 10 * errors["two passes"][4]

# %% [markdown]
# **Wrong numbers at the same traffic.** One pass over *registers* saves nothing that matters: the row is
# read from memory once either way. The [chapter on Group Normalization](group_norm.ipynb) finds this
# variance in two widely used kernels.
#
# Look at the line *two passes* too. At mean/std $= 10^4$ it has lost digits, for another reason: the mean
# itself is rounded to a float32. `fused`, the package's kernel, subtracts the row's **first element**
# first. Where the mean is large that subtraction is exact, and everything after it happens to small
# numbers:

# %%
if RUNS:
    from normtutor.kernels import plan, rows

    show_source(rows.forward.fn)

# %% [markdown]
# It is the kernel from above, line for line, with four things added: several short rows to a program, sets
# of several rows (Group Normalization's), a residual, and what the backward pass needs. Those in capitals
# are known at compile time; what they turn off leaves no instruction behind.

# %% [markdown]
# ## Registers, and how to read them
#
# "The row stays in registers" was a hope. The compiler says whether it came true. It comes inside Triton's
# wheel together with the assembler, and needs no GPU. What it reports, and how to read it:
#
# - A **warp** is 32 threads that move in step. A program with 8 warps has 256 threads; a row of 4096
#   numbers is 16 to each.
# - **Registers**: a thread has 255 at most; 65,536 are shared by all that run on one multiprocessor at
#   once. So 1024 threads can have 64 each.
# - **Spilled st/ld**: bytes of a thread that found no register, stored and loaded again, as counted in the
#   machine code. It is the traffic that the kernel was to avoid. A multiprocessor's L1 cache serves a
#   little of it; an H100's has 256 KB, for all of its threads.
# - **Widest ld/st**: bytes per load. 16 is the most on these GPUs.
# - **Threads at once**: how many the registers allow on one multiprocessor. While one waits for memory,
#   others issue their loads. Few threads with many loads each do as well as many with few; too few do not.
#
# **Prediction**: up to 32,768 numbers one program can hold a row, with 1024 threads of 32 numbers each.
# Beyond, spills.
#
# Ask the compiler about `two_pass`, for an H100 (compute capability 9.0), at growing rows, with the warps
# that `launch` gives them:

# %%
from normtutor.lab import compiled
from normtutor.lab.compiled import Case, Source

ADDRESSES = dict.fromkeys(("x", "gamma", "beta", "y"), "*fp32")
GROWING = (1024, 4096, 8192, 16384, 32768, 65536)


def as_source(name, n, warps=None, size="i32:16"):
    signature = ADDRESSES | {"n": size, "eps": "fp32"}
    block, usual = block_and_warps(n)
    return Source.of(name, two_pass, signature, {"BLOCK": block}, warps or usual)


register_use = {}
if compiled.missing():
    print("not compiled:", compiled.missing())
else:
    jobs = [as_source(f"n = {n}", n) for n in GROWING]
    jobs.append(as_source("n = 4096, one warp", 4096, warps=1))
    jobs.append(as_source("n = 4097", 4097, size="i32"))
    # The package's kernels as they are launched, and with a limit of its plan lifted.
    whole = {"FORWARD_TILE": 1 << 20}, {"SUMMING_TILE": 1 << 20}
    jobs.append(Case("package, 4096", (8192, 4096)))
    jobs.append(Case("package, 65536", (1024, 65536)))
    jobs.append(Case("kept whole, 65536", (1024, 65536), settings=whole[0]))
    jobs.append(Case("package, 16384", (4096, 16384)))
    jobs.append(Case("kept whole, 16384", (4096, 16384), settings=whole[1]))
    try:
        found = compiled.resources(jobs, arch=90)
        register_use = {(row.case, row.kernel): row for row in found}
        print(compiled.resource_table(found[: len(GROWING) + 2]))
    except RuntimeError as failure:  # another release of Triton may not offer this
        print("not compiled:", failure)

# %% [markdown]
# Compare `n = 4097` with `n = 8192`: the same block, the same warps. A row of odd length starts anywhere,
# so the compiler may not assume that four numbers lie together. It loads them one by one, and that takes
# more registers. Triton compiles a kernel again for sizes that are multiples of 16.
#
# What would the spills cost if all of them travelled to memory and back?


# %%
def spilled_passes(row, n):
    """What is spilled, stored and loaded, in units of a row of n float32 numbers."""
    return row.spilled * 32 * row.warps / (4 * n)


if register_use:
    for n in GROWING:
        row = register_use[f"n = {n}", "two_pass"]
        print(f"{n:6} numbers, {n // (32 * row.warps):2} to a thread:", end=" ")
        print(f"{row.stored * 32 * row.warps / 1e3:3.0f} KB a program,", end=" ")
        print(f"{spilled_passes(row, n):.1f} passes more")
    assert register_use["n = 65536", "two_pass"].spilled > 100
    assert register_use["n = 4096", "two_pass"].spilled == 0
else:
    print("not compiled here")

# %% [markdown]
# So it is, but for a few numbers at the edge, which the L1 cache can hold. At twice the width the spills are
# larger than that cache. How much of them the L2 cache then takes is a question for a GPU.

# %% [markdown]
# ## Sets too long for the registers
#
# What then? Read the row twice, in a loop over blocks: once for the statistics, once to normalize. On paper
# that is a third pass, half as much again. But the second reading follows the first, and an H100 has an L2
# cache of 50 MB in front of its memory. Will the row still be there? That depends on how many rows are
# under way at once:

# %%
if register_use:
    row = register_use["package, 65536", "forward_long"]
    at_once = 132 * (row.threads // (32 * row.warps))  # on 132 multiprocessors
    under_way = at_once * 65536 * 4 / 1e6
    print(f"{at_once} programs at once, a row of 0.26 MB each: {under_way:.0f} MB")
else:
    print("not compiled here")

# %% [markdown]
# More than the cache has, and the writes of $y$ pass through it too. **Prediction**: between 1 copy, if the
# second reading comes from L2, and 1.5, if none of it does; with the machine full, rather the latter. A program of 32 warps instead of 8 would have
# its multiprocessor for itself, and a quarter of the rows would be under way: the first thing to try once
# there is a GPU. That is what a model is for: it was not seen before this line was computed.
#
# The loop wants both sums at once, so the trap from above is back. The way out is to shift first: any
# number $p$ near the mean will do,
#
# $$
# \begin{aligned}
# \delta &= \frac{1}{n} \sum_k (x_k - p) \\
# \sigma^2 &= \frac{1}{n} \sum_k (x_k - p)^2 - \delta^2
# \end{aligned}
# $$
#
# and the package takes the mean of the row's first block of $b$ numbers. How far off can that be? The
# block's share of the row's squared deviations is at least $b\,(p-\mu)^2$, and all of them together are
# $n\sigma^2$. So $\delta^2 = (p-\mu)^2 \le \sigma^2\, n/b$: what cancels is bounded, whatever the mean and
# whatever the order of the numbers.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
long = torch.randn(64, 8192) + 1e4


def shifted(x, p):
    return (x - p).square().mean(1) - (x - p).mean(1).square()


exact = long.double().var(1, correction=0)
pivots = {"nothing": 0.0, "the first block's mean": long[:, :512].mean(1, keepdim=True)}
for name, pivot in pivots.items():
    wrong = ((shifted(long, pivot) - exact).abs() / exact).median().item()
    print(
        f"shifted by {name:23} right to 1 %: {wrong < 0.01}, to 0.01 %: {wrong < 1e-4}"
    )

# %%
if register_use:
    wanted = ("package, 65536", "forward_long"), ("kept whole, 65536", "forward")
    print(compiled.resource_table([register_use[key] for key in wanted]))
if INTERPRETED:
    longer = torch.randn(2, 4096)
    limits = {"FORWARD_TILE": 1024, "BLOCK_TILE": 512}
    with mock.patch.multiple(plan, **limits, multiprocessors=lambda device: 1):
        counted = traffic(lambda: fused.layer_norm(longer, (4096,)))
    print(counted)
    print(f"{counted.passes(longer):.1f} passes asked for")

# %% [markdown]
# (To keep the interpreter short the limits are lowered here, so that a row of 4096 counts as long.)
#
# ### Few sets: shared between programs
#
# Sixteen rows of two million numbers make sixteen programs. An H100 has 132 multiprocessors, so 116 of them
# would stand idle: at best $16/132$ of the machine works. If a multiprocessor draws no more than its share
# of the bandwidth, a pass takes $132/16$ times as long, and such a row takes three: sixteen of them, 134 MB
# in float32, fit neither the registers nor the L2 cache. **Prediction**: at most $1.5 \cdot 132/16$ copies;
# less, as far as one multiprocessor can draw more than its share.
#
# Batch Normalization meets this always, and Group and Instance Normalization on large images. Then a set is cut into **chunks**, one program each, in two
# stages: each chunk writes its count, mean and sum of squared deviations $(n, \mu, M)$; a second kernel
# merges them; a third normalizes. The merge is Chan, Golub and LeVeque's:
#
# $$
# \begin{aligned}
# n &= n_a + n_b, \qquad d = \mu_b - \mu_a \\
# \mu &= \mu_a + d \, \frac{n_b}{n} \\
# M &= M_a + M_b + d^2 \, \frac{n_a n_b}{n}
# \end{aligned}
# $$
#
# No square of a mean is subtracted from anything. It costs a true third pass, and that is why the bound for
# Batch Normalization is three and not two. How many programs does the package's plan launch?

# %%
if RUNS:
    gpu = torch.device("cuda" if device == "cuda" else "cpu")  # on a CPU it assumes 132
    print("multiprocessors:", plan.multiprocessors(gpu))
    for sets, length in ((16, 1 << 21), (16, 4096), (65536, 1024)):
        spread = plan.shared(sets, length, 4, gpu)
        how = plan.over_sets(sets, 1, 1, 1, length, gpu)
        print(f"{sets:6} rows of {length:8}: ", end="")
        print(f"{how.programs} programs in the first stage" if spread else "not shared")
else:
    print("no Triton here, so no plan")

# %%
shared_passes = "not counted here"
if INTERPRETED:
    few = torch.randn(2, 16384)
    limits = {"BACKWARD_TILE": 1024, "BLOCK_TILE": 512}
    with mock.patch.multiple(plan, **limits, multiprocessors=lambda device: 8):
        counted = traffic(lambda: fused.layer_norm(few, (16384,)))
    print(counted)
    shared_passes = f"{counted.passes(few):.1f} passes"
    print(shared_passes)

# %% [markdown]
# What comes above 3 is the first tile of each chunk, which is read once more beforehand: its mean is the
# number by which the chunk is shifted.

# %% [markdown]
# ## The backward pass: two directions at once
#
# Write $g_{a j} = \partial L/\partial y_{a j}$ for the upstream gradient of row $a$, $\hat{g}_{a j} =
# \gamma_j \, g_{a j}$, and $r_a = 1/\sqrt{\sigma_a^2 + \epsilon}$. The [earlier chapter](layer_norm.ipynb)
# derived
#
# $$
# \begin{aligned}
# \frac{\partial L}{\partial x_{a j}} = r_a \Big( & \hat{g}_{a j}
# - \tfrac{1}{n} \textstyle\sum_k \hat{g}_{a k} \\
# &- \hat{x}_{a j} \, \tfrac{1}{n} \textstyle\sum_k \hat{g}_{a k} \hat{x}_{a k} \Big)
# \end{aligned}
# $$
#
# $$
# \frac{\partial L}{\partial \beta_j} = \sum_a g_{a j}, \qquad
# \frac{\partial L}{\partial \gamma_j} = \sum_a g_{a j} \, \hat{x}_{a j}
# $$
#
# The first line is a row's own business: one program, three passes. The second runs *down the columns*,
# through all rows. Three ways to get it:
#
# | way | extra traffic | same bits every time |
# |---|---|---|
# | a second kernel, which reads $x$ and $\partial L/\partial y$ again | 2 passes | yes |
# | each program adds its row into one table, atomically | little, but all wait for the same addresses | no |
# | each program adds up **its** rows, and writes one row of partial sums | $2 \times$ programs $\times\, n$ numbers, written and read | yes |
#
# The third is the **two-stage** reduction. A program takes every so-manieth row and keeps its two sums in
# registers all the while. Few programs write little. Too few leave multiprocessors idle, so: about as many
# as the machine runs at once.

# %%
if INTERPRETED:
    many = torch.randn(64, 256, requires_grad=True)
    scale, shift = (torch.randn(256, requires_grad=True) for _ in range(2))
    g = torch.randn(64, 256)
    y = fused.layer_norm(many, (256,), scale, shift)
    counted = traffic(lambda: torch.autograd.grad(y, (many, scale, shift), g))
    print(counted)
    own = many.numel() * many.itemsize
    partial = counted.moves[0].written - own + sum(m.read for m in counted.moves[1:])
    print(f"the partial sums, written and read: {partial / own:.2f} passes")

# %% [markdown]
# Eight programs for 64 rows: the sums weigh something here. (What else is above three passes is γ, once for
# each tile.) At a size that matters a program has many rows. The package's plan for an H100, 8192 rows of
# 4096 numbers:

# %%
if register_use:
    row = register_use["package, 4096", "backward"]
    partial = row.programs * 4096 * 2 * 2
    print(f"{row.programs} programs, {8192 / row.programs:.0f} rows each;", end=" ")
    print(f"partial sums: {partial / (8192 * 4096):.2f} passes more")
else:
    print("not compiled here")

# %% [markdown]
# Why the fixed order matters:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
terms = torch.randn(4096, dtype=torch.float32)


def add_up(values):
    total = np.float32(0)
    for value in values.numpy():
        total += value
    return total


first, again = add_up(terms), add_up(terms)
orders = {add_up(terms[torch.randperm(4096)]).item() for _ in range(10)}
print("same order, same bits:", first == again)
print("ten other orders give more than one sum:", len(orders) > 1)

# %% [markdown]
# Atomic additions arrive in any order, so two runs of one program differ in their last bits. And the sums
# are float32, whatever the input's dtype: [Layer Normalization's chapter](layer_norm.ipynb) shows what
# bfloat16 makes of 262,144 ones.
#
# The accumulators cost registers. **Prediction**: $x$, $\partial L/\partial y$ and two sums are four
# numbers per element; with 64 registers for each of 1024 threads, 8192 elements fit with room to compute,
# and 16,384 do not.

# %%
if register_use:
    wanted = [("package, 16384", "backward_long"), ("package, 16384", "partial_sums")]
    wanted += [("kept whole, 16384", "backward")]
    print(compiled.resource_table([register_use[key] for key in wanted]))
    assert register_use["kept whole, 16384", "backward"].spilled > 100
else:
    print("not compiled here")

# %% [markdown]
# So above 8192 the package turns to the table's first way for $\gamma$ and $\beta$: two kernels that stay
# in their registers instead of one that does not. One loops over the row twice, so that 5 passes may become
# 7.

# %%
if RUNS:
    show_source(rows.backward.fn)

# %% [markdown]
# ## The story so far, and what is not known
#
# Each version with its prediction, in units of a copy of $x$ (2 passes), and with what came out. What could
# be checked without a GPU was. A range ends where all that is spilled, or read again, travels to memory.
# The last column is the record's median time over that of a copy, on 8192 rows of 4096 numbers in float32.


# %%
def measured(candidate, direction):
    """Recorded time ÷ that of a copy of x, on the newest device that has it."""
    asked = {"shape": (8192, 4096), "dtype": "float32", "layout": "contiguous"}
    asked |= {"candidate": candidate, "direction": direction, "captured": False}
    for timings in recorded_timings("layer"):
        for row in timings.select(**asked):
            if not row.reason:
                copy = 2 * math.prod(row.shape) * 4 / timings.copy_bandwidth
                return f"{row.milliseconds / 1e3 / copy:.2f}"
    return "not measured yet"


def spilled(case, kernel):
    row = register_use.get((case, kernel))
    return f"{row.stored}/{row.loaded} B spilled" if row else "not compiled here"


def at_worst(copies, case, kernel, n):
    """From what is predicted without spills to what it is with them."""
    if (case, kernel) not in register_use:
        return f"{copies}–?"
    more = spilled_passes(register_use[case, kernel], n) / 2
    return f"{copies}–{copies + more:.1f}"


def error(name):
    ran = RUNS and name in errors
    return f"error {errors[name][3]:.0e}" if ran else "did not run here"


passes = traffic(lambda: layers.LayerNorm(1024)(x)).passes(x)
nothing = "not measured yet"
kernels = generated.get("LayerNorm, the formula", [])
one_kernel = f"{len(kernels)} kernel" if kernels else "not generated"
story = [
    ("forward", "copies", "checked", "time"),
    (
        "the package's layer, eager",
        6.5,
        f"{passes:.0f} passes",
        measured("eager", FORWARD),
    ),
    ("compiled", 1, one_kernel, measured("compiled", FORWARD)),
    ("one kernel, one-pass variance", 1, error("one pass"), nothing),
    ("two passes in registers", 1, error("two passes"), nothing),
    (
        "the same, 65,536 wide",
        at_worst(1, "n = 65536", "two_pass", 65536),
        spilled("n = 65536", "two_pass"),
        nothing,
    ),
    (
        "loop, read twice",
        "1–1.5",
        spilled("package, 65536", "forward_long"),
        nothing,
    ),
    ("first element subtracted", 1, error("fused"), measured("fused", FORWARD)),
    (
        "16 long rows, 16 programs",
        f"≤ {1.5 * 132 / 16:.1f}",
        "16 of 132 busy",
        nothing,
    ),
    ("16 long rows, shared", 1.5, shared_passes, nothing),
    ("backward", "", "", ""),
    ("atomic sums", 1.5, f"{len(orders)} sums in 10 orders", "not built"),
    ("two stages", 1.6, "one fixed order", nothing),
    (
        "sums of 16,384 in registers",
        at_worst(1.5, "kept whole, 16384", "backward", 16384),
        spilled("kept whole, 16384", "backward"),
        nothing,
    ),
    (
        "… in a kernel of their own",
        "2.5–3.5",
        spilled("package, 16384", "partial_sums"),
        nothing,
    ),
]
for name, prediction, checked, time in story:
    number = prediction if isinstance(prediction, str) else f"{prediction:.1f}"
    print(f"{name:30} {number:>7}  {checked:20} {time}")

# %% [markdown]
# Errors are those at mean/std $= 10^3$. The predictions of single kernels leave out γ, β and the cost of a
# launch. A prediction that the time will refute teaches more than one that it confirms: the first
# candidates are the ranges, which hang on a cache, and the threads that 64 registers leave.
#
# On a GPU you can fill some of the empty places yourself:


# %%
class ByKernel(nn.Module):
    """Layer Normalization by one of this chapter's kernels; forward only."""

    def __init__(self, kernel, n):
        super().__init__()
        self.kernel = kernel
        self.register_buffer("ones", torch.ones(n))
        self.register_buffer("zeros", torch.zeros(n))

    def forward(self, x):
        return launch(self.kernel, x.detach(), self.ones, self.zeros)


def race(shapes, device):
    """This chapter's kernels beside torch's and the package's, on the same tensors."""
    from normtutor.lab.timing import time_together

    row = TECHNIQUES["layer"]
    factories = {
        "torch.nn": row.twin,
        "fused": lambda shape: fused.LayerNorm(shape[1:]),
        "one pass": lambda shape: ByKernel(one_pass, shape[1]),
        "two passes": lambda shape: ByKernel(two_pass, shape[1]),
    }
    named = {name: (row, factory) for name, factory in factories.items()}
    return time_together("layer", named, shapes, device=device, directions=(FORWARD,))


if device == "cuda":
    print(race([(16384, 4096), (1024, 65536)], device))
else:
    print("timed on a GPU only: an interpreter's seconds say nothing")

# %% [markdown]
# ## The record
#
# Fraction of the copy bandwidth against the tensor's size; the copy is the roof. Every candidate that was
# recorded is there, those that lose too.

# %% mystnb={"image": {"alt": "Fraction of the copy bandwidth that each implementation of Layer Normalization reached, forward and backward, against the size of the tensor, from the newest recorded GPU run; or empty axes that say that nothing has been measured on a GPU yet."}}
recorded_roofline("layer")

# %%
print(recorded("layer"))
if device == "cuda":
    print("\nOn your GPU, now:")
    print(bench("layer", shapes=[(8192, 4096)], dtypes=("bfloat16",)))

# %% [markdown]
# ## The fused layers
#
# `normtutor.fused` has these kernels as layers: same arguments, same state dict, same errors as the plain
# ones. Where they cannot run the layer computes what the plain one computes, and says why:

# %%
sample = torch.randn(4, 512, device=device)
layer = fused.LayerNorm(512, device=device)
print(layer, "→", fused.why(layer, sample) or "the kernels run")
print("in float64:", fused.why(layer.double(), sample.double()))

# %% tags=["nbval-check-output"]
plain = layers.RMSNorm(64, eps=1e-6)
print(type(fused.like(plain)).__module__, list(fused.like(plain).state_dict()))
print("loads:", fused.RMSNorm(64, eps=1e-6).load_state_dict(plain.state_dict()))
try:
    fused.LayerNorm(64)(torch.randn(4, 32))
except RuntimeError as wrong:
    print(str(wrong).splitlines()[0])

# %% [markdown]
# ### Memory
#
# A fused operator keeps for its backward pass what it chooses: the input, which exists anyway, and two
# numbers per row. Autograd, which goes through the formula operation by operation, keeps tensors of the
# input's size.

# %%
activations = torch.randn(32, 512, device=device, requires_grad=True)
uses = {
    "eager": memory(layers.LayerNorm(512, device=device), activations),
    "torch.nn": memory(nn.LayerNorm(512, device=device), activations),
}
if RUNS:
    uses["fused"] = memory(fused.LayerNorm(512, device=device), activations)
print(memory_table(uses))

# %% [markdown]
# ### With its neighbour: the residual
#
# In a Pre-LN Transformer every normalization follows an addition, $s = x + F(\ldots)$, and both $s$ and
# $\text{norm}(s)$ are needed. Apart: the addition reads two tensors and writes one, the normalization reads
# one and writes one, five passes. Together: read two, write two.

# %%
branch, weight = torch.randn(32, 512), torch.ones(512)
start = torch.randn(32, 512)


def apart():
    total = start + branch
    return fused.rms_norm(total, (512,), weight, 1e-6)


def together():
    return fused.add_rms_norm(start, branch, (512,), weight, 1e-6)


if INTERPRETED:
    for name, call in (("apart", apart), ("together", together)):
        counted = traffic(call)
        print(
            f"{name:9} {len(counted.moves)} kernels, {counted.passes(start):.1f} passes"
        )
else:
    print("apart: 5 passes, together: 4; counted in the interpreter only")

# %% [markdown]
# What comes above the whole numbers is $\gamma$, once for each program. **Fuse across the border of the
# layer**, and a fifth of the traffic goes. That is what `torch.compile` does by itself with everything
# elementwise, and a hand-written kernel only where somebody wrote it down.

# %% [markdown]
# ### In a network
#
# `fused.like` turns a plain layer, or torch's, into a fused one with the very same parameters, not copies:
# an optimizer that was built before the swap goes on training them. A small Transformer, its normalizations
# swapped: does a training step see a difference?


# %%
def swap(module):
    """Put a fused layer in the place of every Layer Normalization."""
    for name, child in module.named_children():
        if isinstance(child, layers.LayerNorm):
            setattr(module, name, fused.like(child))
        else:
            swap(child)
    return module


def step(network, x):
    """Loss of one step, and all gradients as one vector."""
    loss = network(x).square().mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return loss, torch.cat([g.flatten() for g in gradients])


torch.manual_seed(0)
network = networks.Transformer(32, 4, 2, dropout=0.0, placement="pre").to(device)
sequences = torch.randn(2, 6, 32, device=device)
parameters = list(network.parameters())  # what an optimizer has
before = step(network, sequences)
swap(network)
after = step(network, sequences)
swapped = sum(isinstance(module, fused.LayerNorm) for module in network.modules())
same = all(map(lambda old, new: old is new, parameters, network.parameters()))
print(swapped, "layers swapped; the same parameters:", same)
assert same, "the optimizer would train what is no longer there"
for what, old, new in zip(("loss", "gradients"), before, after, strict=True):
    difference = ((old - new).abs().max() / old.abs().max()).item()
    print(f"{what:9} differ by {difference:.0e} of the largest")
    assert difference < 1e-4, "the same network in other kernels"

# %% [markdown]
# ## Pitfalls
#
# **32-bit offsets.** Row 70,000 of a tensor with 32,768 columns starts beyond $2^{31}$. In 32 bits the
# offset is negative, and the kernel reads somebody else's memory:

# %% tags=["nbval-check-output"]
row, n = np.array([70_000], dtype=np.int32), np.int32(32_768)
with np.errstate(over="ignore"):
    print("32 bits:", (row * n).item())
print("64 bits:", (row.astype(np.int64) * n).item())

# %% [markdown]
# **A timing without synchronization.** A launch returns at once; a wall clock around it measures the
# launch. **A warm cache.** The second run of a kernel finds a small tensor in the L2 cache, and "beats" the
# memory. The lab waits for events, and overwrites the cache before every repeat. **A small tensor.** Below
# some size a launch takes longer than the work, and no fusion helps but that of launches (CUDA graphs).
# **Autotuning.** It costs seconds at every new shape and may choose differently tomorrow; the package
# computes its tiles from sizes. **Interpreted is not compiled.** The interpreter checks the arithmetic and
# the addresses, one program after the other, on the inputs that you try. It cannot see a race between programs, registers, or speed.

# %% [markdown]
# ## Exercises
#
# Eight tasks, the last one open. Write your answer in the cell under each statement and run it. `hint("…")`
# gives the next hint, `solution("…")` the reference.

# %%
from normtutor.exercises import check, progress, statement

# %% [markdown]
# ### 1. Count the bytes

# %% tags=["nbval-check-output"]
statement("fused_kernels.bytes")

# %%
moved = {
    "tensor": ...,
    "eager": ...,
    "fused_forward": ...,
    "fused_backward": ...,
    "batch_forward": ...,
    "batch_backward": ...,
    "bfloat16": ...,
    "microseconds": ...,
    "fraction": ...,
}

# %% tags=["nbval-check-output"]
check("fused_kernels.bytes", moved)

# %% [markdown]
# ### 2. Under the roof

# %% tags=["nbval-check-output"]
statement("fused_kernels.roofline")


# %%
def roofline(flops, bytes_moved, peak, bandwidth):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("fused_kernels.roofline", roofline)

# %% [markdown]
# ### 3. Statistics of statistics

# %% tags=["nbval-check-output"]
statement("fused_kernels.merge")


# %%
def merge(counts, means, m2s):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("fused_kernels.merge", merge)

# %% [markdown]
# ### 4. Spot the bug: lanes that are not there

# %% tags=["nbval-check-output"]
statement("fused_kernels.masked_lanes")


# %%
def row_block(x, block, eps):
    length = x.shape[1]
    inside = torch.arange(block, device=x.device) < length
    lanes = x.new_zeros(len(x), block)  # as tl.load(..., mask=inside, other=0.0)
    lanes[:, :length] = x
    mean = lanes.sum(1, keepdim=True) / length
    centred = lanes - mean
    rstd = torch.rsqrt((centred * centred).sum(1, keepdim=True) / length + eps)
    return (centred * rstd)[:, :length], mean[:, 0], rstd[:, 0]


# %% tags=["nbval-check-output"]
check("fused_kernels.masked_lanes", row_block)

# %% [markdown]
# ### 5. Two stages instead of a quarrel

# %% tags=["nbval-check-output"]
statement("fused_kernels.two_stage")


# %%
def two_stage(dy, x_hat, programs):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("fused_kernels.two_stage", two_stage)

# %% [markdown]
# ### 6. Read what the compiler says

# %% tags=["nbval-check-output"]
statement("fused_kernels.registers")

# %%
fits = {
    "threads": ...,
    "programs": ...,
    "occupancy": ...,
    "small": ...,
    "most": ...,
    "elements": ...,
    "idle": ...,
    "spilled": ...,
    "share": ...,
}

# %% tags=["nbval-check-output"]
check("fused_kernels.registers", fits)

# %% [markdown]
# ### 7. The row kernel of RMSNorm

# %% tags=["nbval-check-output"]
statement("fused_kernels.rms_row")


# %%
@triton.jit
def rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK: tl.constexpr):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("fused_kernels.rms_row", rms_row)

# %% [markdown]
# ### 8. Challenge: not a byte too many

# %% tags=["nbval-check-output"]
statement("fused_kernels.add_rms")


# %%
@triton.jit
def add_rms(
    x, residual, weight, y, total, rstd, rows, length, eps, BLOCK: tl.constexpr
):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("fused_kernels.add_rms", add_rms)

# %%
progress("fused_kernels")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. You make the arithmetic of a Layer Normalization kernel twice as fast, and it moves the same bytes.
# On a tensor of 256 MiB the kernel…**
#
# <details>
# <summary>takes half the time</summary>
#
# No. At one operation per byte it waits for memory; the arithmetic hides behind the loads.
#
# </details>
# <details>
# <summary>takes about the same time</summary>
#
# Yes, if it stood on the slope of the roofline. Only fewer bytes make it faster.
#
# </details>
# <details>
# <summary>takes longer</summary>
#
# No reason to expect it, unless the change cost registers.
#
# </details>
#
# **2. The compiler reports 400 bytes spilled per thread. What do you try first?**
#
# <details>
# <summary>More programs</summary>
#
# No. Each of them would spill as much.
#
# </details>
# <details>
# <summary>Fewer numbers per thread: more warps, or a loop over blocks</summary>
#
# Yes. If 32 warps are too few, the row does not fit one program: loop, and read it a second time, from L2
# if it is still there.
#
# </details>
# <details>
# <summary>One-pass variance, which needs fewer registers</summary>
#
# No. It holds the same row, and gives wrong numbers.
#
# </details>
#
# **3. `torch.compile` makes one kernel of Batch Normalization's forward pass in training, for a CPU. How
# many times must that kernel go through $x$?**
#
# <details>
# <summary>Once: it is one kernel</summary>
#
# No. One kernel can hold several loops; you printed them.
#
# </details>
# <details>
# <summary>At least twice</summary>
#
# Yes: no element can be normalized before the channel's last one has been seen. Unless the whole channel
# stays on the chip, both readings reach the memory.
#
# </details>
# <details>
# <summary>Three times: mean, variance, output</summary>
#
# Not necessarily. The first two can share a reading: shift first, or merge chunks.
#
# </details>
#
# **4. Your kernel agrees with float64 on `randn(64, 1024)`. Which of these bugs can it still have?**
#
# <details>
# <summary>Padded lanes in the variance</summary>
#
# Yes: 1024 is a power of two, so there are no padded lanes.
#
# </details>
# <details>
# <summary>One-pass variance</summary>
#
# Yes: at mean 0 nothing cancels.
#
# </details>
# <details>
# <summary>32-bit row offsets</summary>
#
# Yes: 65,536 elements are far from $2^{31}$. All three answers are right: test odd lengths, large means,
# and huge tensors.
#
# </details>
#
# ## References
#
# - Williams, Waterman, Patterson: *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures*. Communications of the ACM 52(4), 2009.
# - Chan, Golub, LeVeque: *Algorithms for Computing the Sample Variance*. The American Statistician 37(3),
#   1983. The merge of partial results; the shifted sums.
# - Tillet, Kung, Cox: *Triton: An Intermediate Language and Compiler for Tiled Neural Network
#   Computations*. MAPL, 2019.
# - Ivanov et al.: [Data Movement Is All You Need](https://arxiv.org/abs/2007.00072), 2020.
# - Hsu et al.: [Liger Kernel](https://arxiv.org/abs/2410.10989), 2024. The rival that the benchmark lists.
# - NVIDIA: data sheets of the T4, the A100 80 GB (SXM) and the H100 (SXM), for peak and bandwidth.
# - Triton: [the Layer Normalization
#   tutorial](https://triton-lang.org/main/getting-started/tutorials/05-layer-norm.html), another two-stage
#   backward pass.
