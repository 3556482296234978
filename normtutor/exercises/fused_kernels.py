"""The exercises of the Fused Kernels notebook, from easy to hard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normtutor.exercises.exercise import Exercise, Mistake
from normtutor.exercises.observe import (
    NORMALIZATION,
    Approx,
    Broken,
    Draw,
    Holds,
    Unfinished,
    by_hand,
    does_nothing,
    kind,
    returned,
)
from normtutor.exercises.probes import Observations, numbers, unchanged

# ---------------------------------------------------------------------------------------------- bytes

_MOVED = (
    "tensor", "eager", "fused_forward", "fused_backward", "batch_forward", "batch_backward", "bfloat16",
    "microseconds", "fraction",
)  # fmt: skip


def _probe_bytes(answer: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(answer, _MOVED, 1e-3)


BYTES = Exercise(
    id="fused_kernels.bytes",
    title="Count the bytes",
    answer="moved",
    statement=r"""
A tensor `x` of shape (8192, 4096) in float32 lies in the memory of a GPU. A *pass* reads it, or writes one of
its size. This is LayerNorm, operation by operation; each of them is a kernel of its own, and nothing stays in
a cache from one to the next:

```python
mean = x.mean(-1, keepdim=True)
centred = x - mean
var = centred.square().mean(-1, keepdim=True)
x_hat = centred * torch.rsqrt(var + eps)
y = weight * x_hat + bias
```

Fill in the dict `moved`. What has one value per row or per column is too small to count.

- `tensor`: size of `x` in MiB ($2^{20}$ bytes);
- `eager`: passes of the code above;
- `fused_forward`, `fused_backward`: passes of a LayerNorm kernel that holds a whole row, forward, and
  backward (without the forward pass that came before);
- `batch_forward`, `batch_backward`: passes of Batch Normalization in training, likewise. No program sees a
  whole channel, so what needs a sum over the channel waits until everything was read once;
- `bfloat16`: MiB that the fused LayerNorm moves, forward and backward together, if `x` is bfloat16;
- `microseconds`: the least time that the fused forward pass in float32 takes at $3\times10^{12}$ bytes per
  second;
- `fraction`: it took 100 microseconds. What fraction of that bandwidth did it use?

The checker allows 0.1 %.
""",
    starter="""
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
""",
    hints=(
        "Go through the code operation by operation: `a * b + c` is two of them. For each, how many tensors "
        "of the size of `x` does it read, and how many does it write? A mean writes one number per row.",
        "At its best a kernel reads every input once and writes every output once. The backward pass of "
        "LayerNorm gets x and ∂y and makes ∂x.",
        "Batch Normalization reads once to sum, and then again to compute. MiB to bytes: times $2^{20}$; "
        "time is bytes over bandwidth.",
    ),
    reference="""
moved = {
    "tensor": 8192 * 4096 * 4 / 2**20,
    "eager": 1 + 2 + 2 + 1 + 2 + 2 + 2,
    "fused_forward": 2,
    "fused_backward": 3,
    "batch_forward": 3,
    "batch_backward": 5,
    "bfloat16": 5 * 64,
    "microseconds": 2 * 128 * 2**20 / 3e12 * 1e6,
    "fraction": 2 * 128 * 2**20 / 100e-6 / 3e12,
}
""",
    alternatives=(
        """
moved = dict(zip(
    ("tensor", "eager", "fused_forward", "fused_backward", "batch_forward", "batch_backward",
     "bfloat16", "microseconds", "fraction"),
    (128, 12, 2, 3, 3, 5, 320, 89.5, 0.895),
))
""",
        """
size = torch.empty(8192, 4096, device="meta").nbytes
least = torch.tensor(2 * size / 3e12, dtype=torch.float64)
moved = {
    "tensor": size >> 20, "eager": 12, "fused_forward": 2, "fused_backward": 3,
    "batch_forward": 3, "batch_backward": 5, "bfloat16": 5 * (size / 2) / 2**20,
    "microseconds": 1e6 * least, "fraction": least / 100e-6,
}
""",
    ),
    mistakes=(
        Mistake(
            "elements",
            "You count elements. An element of float32 takes 4 bytes.",
            {"8192 * 4096 * 4 / 2**20": "8192 * 4096 / 2**20"},
        ),
        Mistake(
            "megabytes",
            "You give megabytes of a million bytes. A MiB has 1,048,576: you are 5 % off.",
            {"8192 * 4096 * 4 / 2**20": "8192 * 4096 * 4 / 1e6"},
        ),
        Mistake(
            "operations",
            "You count the operations. Five of the seven read one tensor of the size of x and write "
            "another: two passes.",
            {"1 + 2 + 2 + 1 + 2 + 2 + 2": "7"},
        ),
        Mistake(
            "lines",
            "You count two passes for each line of code. A line is no kernel: `centred.square().mean()` "
            "launches two, and so does `weight * x_hat + bias`.",
            {"1 + 2 + 2 + 1 + 2 + 2 + 2": "10"},
        ),
        Mistake(
            "means_write",
            "You let every operation read and write a whole tensor. A mean along the rows writes one number "
            "per row. Or did you take the 14 that this page measures? That function subtracts the mean "
            "twice, the code above once.",
            {"1 + 2 + 2 + 1 + 2 + 2 + 2": "14"},
        ),
        Mistake(
            "one_more",
            "You count one pass too many. Each of the two means reads one tensor and writes one number per "
            "row; each of the five other operations reads one and writes one.",
            {"1 + 2 + 2 + 1 + 2 + 2 + 2": "13"},
        ),
        Mistake(
            "writes_only",
            "You count what is written. Reading costs the same.",
            {"1 + 2 + 2 + 1 + 2 + 2 + 2": "5"},
        ),
        Mistake(
            "fused_reads_twice",
            "You let the fused forward pass read x a second time, after the statistics. The row is still "
            "in the registers of the program that read it: that is what the fusion gains.",
            {'"fused_forward": 2': '"fused_forward": 3'},
        ),
        Mistake(
            "output_forgotten",
            "You leave out one of the two passes of the fused forward: it reads x and it writes y.",
            {'"fused_forward": 2': '"fused_forward": 1'},
        ),
        Mistake(
            "backward_like_forward",
            "You count two passes for the fused backward. It reads two tensors, x and ∂y, before it "
            "writes ∂x.",
            {'"fused_backward": 3': '"fused_backward": 2'},
        ),
        Mistake(
            "output_kept",
            "You count four passes for the fused backward. It needs x and ∂y; x̂ comes from x and two "
            "numbers per row, so nothing else of that size has to be kept or read.",
            {'"fused_backward": 3': '"fused_backward": 4'},
        ),
        Mistake(
            "batch_reads_once",
            "You let Batch Normalization read x once. The mean of a channel is known after all of x was "
            "read, and by then the first samples are gone.",
            {'"batch_forward": 3': '"batch_forward": 2'},
        ),
        Mistake(
            "batch_backward_reads_once",
            "You let the backward pass of Batch Normalization read x and ∂y once. Both means over the "
            "channel come first: all of x and ∂y, and then again.",
            {'"batch_backward": 5': '"batch_backward": 3'},
        ),
        Mistake(
            "upstream_read_once",
            "You let the backward pass of Batch Normalization read one of its two inputs once. Both take "
            "part in a sum over the channel, and both are needed again for ∂x.",
            {'"batch_backward": 5': '"batch_backward": 4'},
        ),
        Mistake(
            "not_halved",
            "You count four bytes for a bfloat16. It takes two: half precision doubles the speed of what "
            "memory limits.",
            {"5 * 64": "5 * 128"},
        ),
        Mistake(
            "forward_alone",
            "You count the forward pass alone in bfloat16. Training runs both, and backward moves more.",
            {"5 * 64": "2 * 64"},
        ),
        Mistake(
            "backward_alone",
            "You count the backward pass alone in bfloat16, without the forward pass before it.",
            {"5 * 64": "3 * 64"},
        ),
        Mistake(
            "one_tensor",
            "Your least time is that of one tensor. The forward pass moves two: x in and y out.",
            {"2 * 128 * 2**20 / 3e12": "128 * 2**20 / 3e12"},
        ),
        Mistake(
            "million_bytes",
            "Your least time takes a MiB for a million bytes, and comes out 5 % short.",
            {"2 * 128 * 2**20 / 3e12": "2 * 128 * 1e6 / 3e12"},
        ),
        Mistake(
            "megabytes_moved",
            "You count half-precision traffic in megabytes of a million bytes. Asked are MiB, of 1,048,576.",
            {"5 * 64": "5 * 64 * 2**20 / 1e6"},
        ),
        Mistake(
            "seconds",
            "You give the least time in seconds. Asked are microseconds.",
            {"2 * 128 * 2**20 / 3e12 * 1e6": "2 * 128 * 2**20 / 3e12"},
        ),
        Mistake(
            "milliseconds",
            "You give the least time in milliseconds. Asked are microseconds.",
            {"2 * 128 * 2**20 / 3e12 * 1e6": "2 * 128 * 2**20 / 3e12 * 1e3"},
        ),
        Mistake(
            "fraction_in_percent",
            "You give percent. Asked is a fraction, a number between 0 and 1.",
            {"2 * 128 * 2**20 / 100e-6 / 3e12": "100 * 2 * 128 * 2**20 / 100e-6 / 3e12"},
        ),
        Mistake(
            "inverted",
            "Your fraction is above 1: more than the memory can move. It is the least time over the time "
            "that was taken.",
            {"2 * 128 * 2**20 / 100e-6 / 3e12": "3e12 * 100e-6 / (2 * 128 * 2**20)"},
        ),
        Mistake(
            "fraction_of_one_tensor",
            "Your fraction counts one tensor. The kernel moved x and y, and a copy does the same.",
            {"2 * 128 * 2**20 / 100e-6": "128 * 2**20 / 100e-6"},
        ),
    ),
    probe=_probe_bytes,
)

# ------------------------------------------------------------------------------------------- roofline


def _probe_roofline(roofline: Callable[..., Any], draw: Draw) -> Observations:
    peak, bandwidth = draw.uniform(40e12, 90e12), draw.uniform(1e12, 4e12)
    moved, ridge = draw.uniform(1e8, 5e8), peak / bandwidth

    def call(*given: float) -> Any:
        seconds, limit = returned(roofline(*given), roofline, "seconds", "limit")
        if isinstance(seconds, str):
            raise Broken(f"The first of the two is {seconds!r}. Return (seconds, limit), in this order.")
        if isinstance(limit, str) and limit != limit.lower() and limit.lower() in ("memory", "compute"):
            raise Broken(f"You return {limit!r}. Write it in small letters: {limit.lower()!r}.")
        return seconds, limit

    for name, flops, size in (
        ("a normalization", 0.2 * ridge * moved, moved),
        ("a matrix product", 7 * ridge * moved, moved),
        ("a kernel just left of the ridge", 0.9 * ridge * moved, moved),
        ("a kernel just right of the ridge", 1.1 * ridge * moved, moved),
        ("a copy, which computes nothing", 0.0, moved),
        ("a kernel that moves nothing", 3 * ridge * moved, 0.0),
    ):
        seconds, limit = call(flops, size, peak, bandwidth)
        yield f"microseconds of {name}", Approx(1e6 * _number(seconds), 1e-9)
        yield f"what limits {name}", str(limit)
    # Powers of two: the two times are equal to the last bit.
    yield "what limits a kernel on the ridge", str(call(2.0**40, 2.0**35, 2.0**45, 2.0**40)[1])


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        if value is ...:
            raise Unfinished from None
        raise Broken(f"The seconds are {kind(value)}, expected a number.") from None


ROOFLINE = Exercise(
    id="fused_kernels.roofline",
    title="Under the roof",
    answer="roofline",
    statement=r"""
A GPU computes at most `peak` operations per second and moves at most `bandwidth` bytes per second, both at
the same time. Write `roofline(flops, bytes_moved, peak, bandwidth)`. It returns a tuple `(seconds, limit)`:

- `seconds`: the least time for a kernel of `flops` operations that moves `bytes_moved` bytes;
- `limit`: what that time is due to, `"memory"` or `"compute"`; `"memory"` if both take equally long.

Either number of work may be 0: a copy computes nothing. The checker tries kernels on both sides of the ridge,
close to it, and on it.
""",
    starter="""
def roofline(flops, bytes_moved, peak, bandwidth):
    raise NotImplementedError  # your code here
""",
    hints=(
        "How long would the operations take alone? And the bytes?",
        "Both go on at once, so the slower of the two decides. No intensity is needed: dividing by "
        "`bytes_moved` fails where nothing moves.",
    ),
    reference="""
def roofline(flops, bytes_moved, peak, bandwidth):
    compute, memory = flops / peak, bytes_moved / bandwidth
    return max(compute, memory), "compute" if compute > memory else "memory"
""",
    alternatives=(
        """
def roofline(flops, bytes_moved, peak, bandwidth):
    if flops * bandwidth > bytes_moved * peak:  # right of the ridge
        return flops / peak, "compute"
    return bytes_moved / bandwidth, "memory"
""",
        """
def roofline(flops, bytes_moved, peak, bandwidth):
    intensity = flops / bytes_moved if bytes_moved else float("inf")
    if not flops:
        return bytes_moved / bandwidth, "memory"
    attainable = min(peak, intensity * bandwidth)
    return flops / attainable, "compute" if intensity > peak / bandwidth else "memory"
""",
        """
def roofline(flops, bytes_moved, peak, bandwidth):
    times = torch.tensor([bytes_moved / bandwidth, flops / peak], dtype=torch.float64)
    return [times.max(), ("memory", "compute")[times.argmax()]]
""",
    ),
    mistakes=(
        Mistake(
            "sum",
            "You add the two times. A GPU computes one row while it loads the next: the slower one decides.",
            {"max(compute, memory)": "compute + memory"},
        ),
        Mistake(
            "faster",
            "You take the shorter of the two times. The kernel is done when both are.",
            {"max(compute, memory)": "min(compute, memory)"},
        ),
        Mistake(
            "always_memory",
            "You call every kernel limited by memory. That holds for normalization; a matrix product of "
            "the same size is limited by arithmetic.",
            {'max(compute, memory), "compute" if compute > memory else "memory"': 'memory, "memory"'},
        ),
        Mistake(
            "limits_swapped",
            "You swapped the names: what takes longer is the limit.",
            {"compute > memory else": "compute < memory else"},
        ),
        Mistake(
            "tie_to_compute",
            'On the ridge both take equally long; there the exercise asks for `"memory"`.',
            {"compute > memory else": "compute >= memory else"},
        ),
        Mistake(
            "intensity",
            "You compare the intensity, operations per byte, with the bandwidth. It is to be compared with "
            "peak over bandwidth, the operations that fit in the time of one byte.",
            {
                '"compute" if compute > memory': (
                    '"compute" if flops / max(bytes_moved, 1) * 1e12 > bandwidth'
                )
            },
        ),
        Mistake(
            "copy_costs_nothing",
            "A kernel without operations takes no time in your answer. A copy moves bytes, and that takes "
            "as long as for a normalization.",
            {"max(compute, memory)": "max(compute, memory) * (flops > 0)"},
        ),
        Mistake(
            "divides_by_bytes",
            "You divide by the bytes that are moved. A kernel that moves none then stops with an error, "
            "or counts as limited by memory.",
            {
                "compute, memory = flops / peak, bytes_moved / bandwidth\n": (
                    "compute, memory = flops / peak, bytes_moved / bandwidth\n"
                    "    intensity = flops / bytes_moved\n"
                )
            },
        ),
        Mistake(
            "bits",
            "You count eight bits for a byte. Bandwidth and `bytes_moved` are both in bytes.",
            {"bytes_moved / bandwidth": "8 * bytes_moved / bandwidth"},
        ),
        Mistake(
            "rate",
            "You return the operations per second that can be reached, the height of the roof. Asked is "
            "the time.",
            {"return max(compute, memory)": "return flops / max(compute, memory)"},
        ),
    ),
    probe=_probe_roofline,
)

# ---------------------------------------------------------------------------------------------- merge


def _chunks(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, means and sums of squared deviations of x's rows in chunks; a mean of no rows is NaN."""
    parts = x.double().split(sizes)
    means = torch.stack([part.mean(0) for part in parts])
    m2s = torch.stack([(part - part.mean(0)).square().sum(0) if len(part) else part.sum(0) for part in parts])
    return torch.tensor(sizes, device=x.device), means.to(x.dtype), m2s.to(x.dtype)


def _probe_merge(merge: Callable[..., Any], draw: Draw) -> Observations:
    def call(counts: Tensor, means: Tensor, m2s: Tensor) -> Any:
        return returned(merge(counts, means, m2s), merge, "n", "mean", "m2")

    def all_of(name: str, found: Any, tolerance: float, of_mean: float = 1e-6) -> Observations:
        yield f"n of {name}", Approx(_number(found[0]), 0.0)
        yield f"mean of {name}", Approx(found[1], min(tolerance, of_mean))
        yield f"m2 of {name}", Approx(found[2], tolerance)

    x = draw.batch(11, 3)
    yield from all_of("chunks of 2, 5, 1 and 3 rows", call(*_chunks(x, (2, 5, 1, 3))), 1e-9)
    yield from all_of("one chunk", call(*_chunks(x, (11,))), 1e-9)
    given = _chunks(x, (0, 6, 0, 5))
    kept = [value.clone() for value in given]
    yield from all_of("chunks of which two are empty", call(*given), 1e-9)
    same = all(torch.allclose(*pair, 0, 0, equal_nan=True) for pair in zip(given, kept, strict=True))
    yield "the arguments are unchanged", Holds(same, "an argument is overwritten", "in_place")
    yield from all_of("empty chunks alone", call(*_chunks(x[:0], (0, 0))), 1e-9)
    yield from all_of(
        "twelve chunks of unequal size", call(*_chunks(draw.batch(78, 2), tuple(range(1, 13)))), 1e-9
    )
    # Deviations of about 1 around 1e4. There float32 numbers are 1e-3 apart, and so is every merged mean.
    far = (draw.values(48, 3) + draw.values(1, 3, low=9e3, high=1.1e4)).float()
    yield from all_of("float32 at a mean of 1e4", call(*_chunks(far, (16, 16, 4, 12))), 1e-3)
    if draw.dtype == torch.float64:  # 1e-7 apart around 1e9: float64 does not help a difference of squares
        far = draw.values(48, 3) + draw.values(1, 3, low=0.9e9, high=1.1e9)
        yield from all_of("float64 at a mean of 1e9", call(*_chunks(far, (16, 16, 4, 12))), 1e-4, 1e-14)


MERGE = Exercise(
    id="fused_kernels.merge",
    title="Statistics of statistics",
    answer="merge",
    statement=r"""
A set too large for one program is cut into chunks. Each program leaves three numbers: how many elements it
saw, $n_k$, their mean $m_k$, and the sum of their squared deviations from that mean, $M_k$. Write
`merge(counts, means, m2s)`, which makes those of the whole set of them and returns a tuple
`(n, mean, m2)`.

- `counts` are integers of shape $(K)$; `means` and `m2s` have shape $(K, S)$, for $S$ sets at once. `mean`
  and `m2` have shape $(S)$, `n` is a number.
- A chunk may be empty. Its count is 0 and its mean is NaN, as $0/0$ is: it must change nothing. If all are,
  return 0 for all three.
- The result must be as good where the mean is $10^4$ times the deviation in float32, or $10^9$ times in
  float64. Then $\sum_k n_k m_k^2 - n\,m^2$ is the difference of two large numbers: use none such.
- Keep the dtype, and leave the arguments as they are.
""",
    starter="""
def merge(counts, means, m2s):
    raise NotImplementedError  # your code here
""",
    hints=(
        "The mean of the whole is the mean of the means, each with the weight of its count.",
        "An element deviates from the common mean by its deviation from its chunk's mean, and then by how "
        "far that one is from the common mean. Square and add up over a chunk: the mixed term is 0.",
        "NaN times 0 is NaN: replace the means of empty chunks (`torch.where`) before you multiply. And "
        "`clamp(min=1)` keeps a division from dividing by 0.",
    ),
    reference="""
def merge(counts, means, m2s):
    n = counts.sum()
    weight = counts[:, None].to(means.dtype)
    means = torch.where(weight > 0, means, 0)
    mean = (weight * means).sum(0) / n.clamp(min=1)
    between = weight * (means - mean).square()
    return n, mean, m2s.sum(0) + between.sum(0)
""",
    alternatives=(
        """
def merge(counts, means, m2s):  # one after the other, as Chan, Golub and LeVeque merge two
    n, mean, m2 = 0, torch.zeros_like(means[0]), torch.zeros_like(means[0])
    for count, other, more in zip(counts.tolist(), means, m2s):
        if count:
            delta = other - mean
            m2 = m2 + more + delta**2 * n * count / (n + count)
            n += count
            mean = mean + delta * count / n
    return n, mean, m2
""",
        """
def merge(counts, means, m2s):  # by halves, as a tree
    if len(counts) > 1:
        half = len(counts) // 2
        na, a, ma = merge(counts[:half], means[:half], m2s[:half])
        nb, b, mb = merge(counts[half:], means[half:], m2s[half:])
        n = na + nb
        if n == 0:
            return n, a, ma
        return n, a + (b - a) * (nb / n), ma + mb + (b - a) ** 2 * (na * nb / n)
    return int(counts[0]), means[0].nan_to_num(0), m2s[0]
""",
        """
def merge(counts, means, m2s):  # around a pivot
    full = counts > 0
    if not full.any():
        return 0, torch.zeros_like(m2s[0]), torch.zeros_like(m2s[0])
    counts, means, m2s = counts[full], means[full], m2s[full]
    share = (counts.to(means.dtype) / counts.sum())[:, None]
    shift = (share * (means - means[0])).sum(0)
    between = (counts[:, None] * (means - means[0] - shift) ** 2).sum(0)
    return counts.sum(), means[0] + shift, m2s.sum(0) + between
""",
    ),
    mistakes=(
        Mistake(
            "between_missing",
            "You add the chunks' own deviations only. How far their means lie apart is spread too: without "
            "it, chunks of constant rows have none.",
            {"m2s.sum(0) + between.sum(0)": "m2s.sum(0)"},
        ),
        Mistake(
            "mean_of_means",
            "You average the means as if all chunks were of one size. The last one of a row seldom is.",
            {"(weight * means).sum(0) / n.clamp(min=1)": "means.sum(0) / (counts > 0).sum().clamp(min=1)"},
        ),
        Mistake(
            "mean_over_all_chunks",
            "You divide the sum of the means by the number of chunks, the empty ones and the small ones "
            "included. Each mean counts as often as there are elements in it.",
            {"(weight * means).sum(0) / n.clamp(min=1)": "means.mean(0)"},
        ),
        Mistake(
            "between_unweighted",
            "You count the distance between the means once for each chunk. It holds for each of its "
            "elements: times the count.",
            {"weight * (means - mean)": "(means - mean)"},
        ),
        Mistake(
            "one_pass",
            "You take the difference of two sums of squares. At a mean of 1e4 both are near 1e8 per element "
            "and float32 keeps seven digits: what is left is noise, and may be negative.",
            {
                "m2s.sum(0) + between.sum(0)": (
                    "m2s.sum(0) + (weight * means.square()).sum(0) - n * mean.square()"
                )
            },
        ),
        Mistake(
            "one_pass_in_float64",
            "You take the difference of two sums of squares in float64. That moves the limit and leaves it "
            "there: at a mean of 1e9 the squares are near 1e18, float64 keeps 16 digits, and few units of a "
            "GPU compute in it.",
            {
                "m2s.sum(0) + between.sum(0)": (
                    "(m2s.double().sum(0) + (weight * means.double().square()).sum(0) - n * ((weight * "
                    "means.double()).sum(0) / n.clamp(min=1)).square()).to(m2s.dtype)"
                )
            },
        ),
        Mistake(
            "bessel",
            "You multiply by n / (n − 1). Asked is a sum, not a variance, and no divisor belongs to it.",
            {"m2s.sum(0) + between.sum(0)": "(m2s.sum(0) + between.sum(0)) * n / (n - 1).clamp(min=1)"},
        ),
        Mistake(
            "empty_is_nan",
            "An empty chunk makes everything NaN: its mean is 0/0, and 0 times NaN is NaN. Replace it "
            "before you multiply.",
            {"    means = torch.where(weight > 0, means, 0)\n": ""},
        ),
        Mistake(
            "nothing_is_nan",
            "If all chunks are empty, you divide 0 by 0.",
            {"n.clamp(min=1)": "n"},
        ),
        Mistake(
            "variance",
            "You return the variance. Asked is the sum of the squared deviations, so that the next merge "
            "can go on with it.",
            {"m2s.sum(0) + between.sum(0)": "(m2s.sum(0) + between.sum(0)) / n.clamp(min=1)"},
        ),
        Mistake(
            "as_if_variances",
            "You treat `m2s` as variances and weight them by the counts. They are sums already.",
            {"m2s.sum(0)": "(weight * m2s).sum(0)"},
        ),
        Mistake(
            "empty_as_zero",
            "You replace the mean of an empty chunk by 0 and let it count as one element. It must change "
            "nothing.",
            {"    between = weight *": "    between = weight.clamp(min=1) *"},
        ),
        Mistake(
            "number_of_chunks",
            "Your `n` is the number of chunks, not of elements.",
            {"return n,": "return len(counts),"},
        ),
        Mistake(
            "always_float64",
            "You return float64 whatever comes in. The formula without a cancellation needs no more digits "
            "than the input has, and a GPU has few units for float64.",
            {"return n, mean, ": "return n, mean.double(), "},
        ),
        Mistake(
            "in_place",
            "You overwrite an argument. Another program may still read it.",
            {"torch.where(weight > 0, means, 0)": "means.nan_to_num_(0)"},
        ),
    ),
    probe=_probe_merge,
)

# --------------------------------------------------------------------------------------- masked lanes


def _probe_masked_lanes(row_block: Callable[..., Any], draw: Draw) -> Observations:
    eps = draw.uniform(0.05, 0.5)

    def call(x: Tensor, block: int, eps: float) -> Any:
        return returned(row_block(x, block, eps), row_block, "y", "mean", "rstd")

    def all_of(name: str, found: Any) -> Observations:
        yield from (
            (f"{part} of {name}", value) for part, value in zip(("y", "mean", "rstd"), found, strict=True)
        )

    rows = draw.batch(3, 5)
    rows[1, 2] = 0  # an element like any other
    x = rows.clone()
    yield from all_of("rows of 5 in a block of 8", call(x, 8, eps))
    yield "x is unchanged", unchanged(x, rows, "in_place")
    yield from all_of("rows of 8 in a block of 8", call(draw.batch(2, 8), 8, eps))
    yield from all_of("rows of 9 in a block of 64", call(draw.batch(2, 9), 64, eps))
    yield from all_of("one row of 1 in a block of 4", call(draw.batch(1, 1), 4, eps))
    yield from all_of("a small variance and a tiny eps", call(1e-4 * rows, 8, 1e-12))
    far = (draw.values(3, 20) + draw.values(3, 1, low=9e3, high=1.1e4)).float()
    for part, value in zip(("y", "mean", "rstd"), call(far, 32, eps), strict=True):
        yield f"{part} of float32 at a mean of 1e4", Approx(value, 2e-3 if part == "y" else 1e-4)


_BLOCK_HEAD = """
def row_block(x, block, eps):
    length = x.shape[1]
    inside = torch.arange(block, device=x.device) < length
    lanes = x.new_zeros(len(x), block)  # as tl.load(..., mask=inside, other=0.0)
    lanes[:, :length] = x
    mean = lanes.sum(1, keepdim=True) / length
"""
_BLOCK_TAIL = """
    rstd = torch.rsqrt((centred * centred).sum(1, keepdim=True) / length + eps)
    return (centred * rstd)[:, :length], mean[:, 0], rstd[:, 0]
"""

MASKED_LANES = Exercise(
    id="fused_kernels.masked_lanes",
    title="Spot the bug: lanes that are not there",
    answer="row_block",
    statement=r"""
A row kernel works on blocks whose width is a power of two. A row of 5 sits in a block of 8, and the three
*lanes* behind it are loaded as 0. `row_block(x, block, eps)` does with torch what such a kernel does, for all
rows at once, and returns the output (without the lanes behind the row), the mean and $1/\sqrt{\sigma^2 +
\varepsilon}$ of each row. Whenever the row fills its block it is right.

Repair `row_block`. The checker tries rows that fill their block and rows that do not, an element that is 0,
one element in a block of four, a tiny $\varepsilon$, and, in float32, rows whose mean is $10^4$ times their
deviation: a repair by a difference of two large numbers fails there.
""",
    starter=f"{_BLOCK_HEAD}    centred = lanes - mean{_BLOCK_TAIL}",
    hints=(
        "Print `centred` for one row of 5 in a block of 8. What stands in the last three lanes?",
        "0 is what adds nothing to a sum. A masked lane holds it after the load; who sees to it after the "
        "subtraction?",
        "In Triton it is one more line: `tl.where(inside, …, 0.0)`. `torch.where` does the same.",
    ),
    reference=f"{_BLOCK_HEAD}    centred = torch.where(inside, lanes - mean, 0.0){_BLOCK_TAIL}",
    alternatives=(
        """
def row_block(x, block, eps):
    length = x.shape[1]
    mean = x.sum(1, keepdim=True) / length
    centred = x - mean  # no lanes, no trouble
    rstd = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    return centred * rstd, mean[:, 0], rstd[:, 0]
""",
        f"{_BLOCK_HEAD}    centred = (lanes - mean) * inside{_BLOCK_TAIL}",
        f"{_BLOCK_HEAD}    lanes = torch.where(inside, lanes, mean)\n    centred = lanes - mean{_BLOCK_TAIL}",
    ),
    mistakes=(
        Mistake(
            "divided_by_block",
            "You divide by the width of the block. The mean is over the row: its length is what was summed.",
            {"lanes.sum(1, keepdim=True) / length": "lanes.sum(1, keepdim=True) / block"},
        ),
        Mistake(
            "variance_over_block",
            "You divide the squared deviations by the width of the block. The masked lanes add nothing to "
            "the sum, and they must not count either.",
            {
                "(centred * centred).sum(1, keepdim=True) / length": (
                    "(centred * centred).mean(1, keepdim=True)"
                )
            },
        ),
        Mistake(
            "one_pass",
            "You take E[x²] − E[x]², for which the lanes behind the row hold the right 0. At a mean of 1e4 "
            "float32 has no digits left for the difference.",
            {
                "torch.where(inside, lanes - mean, 0.0)": "lanes - mean",
                "(centred * centred).sum(1, keepdim=True) / length": (
                    "((lanes * lanes).sum(1, keepdim=True) / length - mean * mean)"
                ),
            },
        ),
        Mistake(
            "taken_off_again",
            "You let the masked lanes count and take their squares off again. That is right on paper; at a "
            "mean of 1e4 they are nearly all of the sum, and what is left is noise.",
            {
                "torch.where(inside, lanes - mean, 0.0)": "lanes - mean",
                "(centred * centred).sum(1, keepdim=True) / length": (
                    "((centred * centred).sum(1, keepdim=True) - (block - length) * mean * mean) / length"
                ),
            },
        ),
        Mistake(
            "not_centred",
            "You do not subtract the mean any more. The masked lanes are 0 then, and so is nothing else: "
            "this is RMSNorm.",
            {"torch.where(inside, lanes - mean, 0.0)": "lanes"},
        ),
        Mistake(
            "mask_inverted",
            "You keep the masked lanes and drop the row: `torch.where(condition, a, b)` takes `a` where the "
            "condition holds.",
            {"torch.where(inside, lanes - mean, 0.0)": "torch.where(inside, 0.0, lanes - mean)"},
        ),
        Mistake(
            "mask_by_value",
            "You take every lane that holds 0 for one behind the row. An element of the row may be 0 too: "
            "which lanes are masked says their position, not their value.",
            {"torch.where(inside, lanes - mean, 0.0)": "torch.where(lanes != 0, lanes - mean, 0.0)"},
        ),
        Mistake(
            "as_for_a_maximum",
            "You fill the masked lanes with −∞. That leaves a maximum alone, as a softmax needs it; a sum "
            "needs 0.",
            {"lanes - mean, 0.0)": "lanes - mean, -torch.inf)"},
        ),
        Mistake(
            "unbiased",
            "You divide the squared deviations by the length less one. Layer normalization divides by all "
            "of the length.",
            {
                "(centred * centred).sum(1, keepdim=True) / length": (
                    "(centred * centred).sum(1, keepdim=True) / max(length - 1, 1)"
                )
            },
        ),
        Mistake(
            "lanes_returned",
            "You return the lanes behind the row too. A kernel that stores them overwrites the next row.",
            {"(centred * rstd)[:, :length]": "centred * rstd"},
        ),
        Mistake(
            "larger_eps",
            "You keep ε from getting small. Where the variance is small too, the output is then too small.",
            {"+ eps)": "+ max(eps, 1e-5))"},
        ),
        Mistake(
            "in_place",
            "You centre `x` where it stands. The backward pass still needs it.",
            {
                "    mean = lanes.sum(1, keepdim=True) / length\n": (
                    "    mean = lanes.sum(1, keepdim=True) / length\n    x -= mean\n"
                )
            },
        ),
        Mistake(
            "torchs_own",
            NORMALIZATION,
            {"    length = x.shape[1]\n": "    length = x.shape[1]\n    F.layer_norm(x, (length,))\n"},
        ),
    ),
    probe=by_hand(_probe_masked_lanes),
    spot_the_bug=True,
)

# ------------------------------------------------------------------------------------------ two stages


def _probe_two_stage(two_stage: Callable[..., Any], draw: Draw) -> Observations:
    def call(dy: Tensor, x_hat: Tensor, programs: int) -> Any:
        return returned(two_stage(dy, x_hat, programs), two_stage, "table", "dgamma", "dbeta")

    def all_of(name: str, found: Any, tolerance: float) -> Observations:
        for part, value in zip(("table", "dgamma", "dbeta"), found, strict=True):
            yield f"{part} of {name}", Approx(value, tolerance)

    dy, x_hat = draw.batch(7, 3).float(), draw.values(7, 3).float()
    given = dy.clone(), x_hat.clone()
    yield from all_of("7 rows by 3 programs", call(*given, 3), 1e-5)
    kept = torch.equal(given[0], dy) and torch.equal(given[1], x_hat)
    yield "the arguments are unchanged", Holds(kept, "an argument is overwritten", "in_place")
    yield from all_of("7 rows by one program", call(dy.clone(), x_hat.clone(), 1), 1e-5)
    yield from all_of("2 rows by 4 programs", call(dy[:2].clone(), x_hat[:2].clone(), 4), 1e-5)
    wide = draw.batch(6, 5).float(), draw.values(6, 5).float()
    yield from all_of("6 rows by 2 programs", call(wide[0].clone(), wide[1].clone(), 2), 1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        half = draw.batch(600, 3).to(dtype), draw.values(600, 3, low=0.5).to(dtype)
        name = f"600 rows of {str(dtype).removeprefix('torch.')} by 4 programs"
        yield from all_of(name, call(*half, 4), 1e-5)


TWO_STAGE = Exercise(
    id="fused_kernels.two_stage",
    title="Two stages instead of a quarrel",
    answer="two_stage",
    statement=r"""
$\partial\gamma_j = \sum_i \partial y_{ij}\,\hat x_{ij}$ and $\partial\beta_j = \sum_i \partial y_{ij}$ run
over the rows, and the rows lie with different programs. If all of them added to one place, the order, and so
the rounding, would differ from run to run. Instead each program leaves its own sums in a table, and a second
step adds the table up, always in the same order.

Write `two_stage(dy, x_hat, programs)` for two matrices of shape $(N, D)$. It returns a tuple
`(table, dgamma, dbeta)`.

- Program $p$ takes the rows $p$, $p + P$, $p + 2P$, … of the $P$ programs; some may get a row more, or none.
- `table` has shape $(2, P, D)$: `table[0, p]` is program $p$'s sum of `dy`, `table[1, p]` its sum of
  `dy * x_hat`.
- `dgamma` and `dbeta`, of shape $(D)$, are the sums of the table over the programs.
- `dy` and `x_hat` may be float32, bfloat16 or float16. Products, sums, and all three results are float32.
- Leave the arguments as they are.
""",
    starter="""
def two_stage(dy, x_hat, programs):
    raise NotImplementedError  # your code here
""",
    hints=(
        "`dy[p::programs]` are the rows of program p.",
        "When does a bfloat16 product lose digits: when it is made, or when it is summed? Both: turn the "
        "inputs into float32 before either.",
        "The sum over no rows is 0; `sum(0)` of an empty slice gives just that.",
    ),
    reference="""
def two_stage(dy, x_hat, programs):
    dy, x_hat = dy.float(), x_hat.float()
    table = torch.zeros(2, programs, dy.shape[1], device=dy.device)
    for p in range(programs):
        mine = slice(p, None, programs)
        table[0, p] = dy[mine].sum(0)
        table[1, p] = (dy[mine] * x_hat[mine]).sum(0)
    return table, table[1].sum(0), table[0].sum(0)
""",
    alternatives=(
        """
def two_stage(dy, x_hat, programs):
    dy, x_hat = dy.to(torch.float32), x_hat.to(torch.float32)
    terms = torch.stack([dy, dy * x_hat])
    table = terms.new_zeros(2, programs, dy.shape[1])
    table.index_add_(1, torch.arange(len(dy), device=dy.device) % programs, terms)
    dbeta, dgamma = table.sum(1)
    return table, dgamma, dbeta
""",
        """
def two_stage(dy, x_hat, programs):
    rows = -(-len(dy) // programs) * programs
    pad = (0, 0, 0, rows - len(dy))
    dy, x_hat = F.pad(dy.float(), pad), F.pad(x_hat.float(), pad)
    tall = dy.view(-1, programs, dy.shape[1])
    table = torch.stack([tall.sum(0), (tall * x_hat.view_as(tall)).sum(0)])
    return table, table[1].sum(0), table[0].sum(0)
""",
    ),
    mistakes=(
        Mistake(
            "half_products",
            "You multiply in half precision and sum the products in float32. Each product was rounded "
            "already, to three digits in bfloat16.",
            {
                "    dy, x_hat = dy.float(), x_hat.float()\n": "",
                "(dy[mine] * x_hat[mine]).sum(0)": "(dy[mine] * x_hat[mine]).float().sum(0)",
                "table[0, p] = dy[mine]": "table[0, p] = dy[mine].float()",
            },
        ),
        Mistake(
            "half_sums",
            "You sum in the dtype of the inputs. 150 rows of a bfloat16 lose what is smaller than one part "
            "in 256 of the sum.",
            {"    dy, x_hat = dy.float(), x_hat.float()\n": ""},
        ),
        Mistake(
            "half_table",
            "Your table is in the dtype of the inputs. The sums that it holds are rounded before they are "
            "added up.",
            {
                "programs, dy.shape[1], device": "programs, dy.shape[1], dtype=given, device",
                "    dy, x_hat = dy.float(), x_hat.float()\n": (
                    "    given = dy.dtype\n    dy, x_hat = dy.float(), x_hat.float()\n"
                ),
            },
        ),
        Mistake(
            "half_running_sums",
            "You add row after row to a table in the dtype of the inputs. Each addition rounds: once the sum "
            "is 256 times a term, a bfloat16 does not change any more.",
            {
                "programs, dy.shape[1], device": "programs, dy.shape[1], dtype=given, device",
                "    dy, x_hat = dy.float(), x_hat.float()\n": (
                    "    given = dy.dtype\n    dy, x_hat = dy.float(), x_hat.float()\n"
                ),
                "        table[0, p] = dy[mine].sum(0)\n": (
                    "        for row in dy[mine]:\n            table[0, p] += row\n"
                ),
                "        table[1, p] = (dy[mine] * x_hat[mine]).sum(0)\n": (
                    "        for row in dy[mine] * x_hat[mine]:\n            table[1, p] += row\n"
                ),
            },
        ),
        Mistake(
            "half_results",
            "You round the gradients to the dtype of the inputs. The parameters are often kept in float32, "
            "so that small steps are not lost; whoever wants less can round later.",
            {
                "    dy, x_hat = dy.float(), x_hat.float()\n": (
                    "    given = dy.dtype\n    dy, x_hat = dy.float(), x_hat.float()\n"
                ),
                "table[1].sum(0), table[0].sum(0)": "table[1].sum(0).to(given), table[0].sum(0).to(given)",
            },
        ),
        Mistake(
            "blocks_of_rows",
            "You give each program a block of adjacent rows. The sums are right in the end; asked was every "
            "P-th row, so that the table can be compared.",
            {
                "slice(p, None, programs)": (
                    "slice(p * -(-len(dy) // programs), (p + 1) * -(-len(dy) // programs))"
                )
            },
        ),
        Mistake(
            "rest_dropped",
            "You drop the rows that do not fill a round of all programs: 7 rows by 3 programs make two "
            "rounds, and one row more.",
            {"slice(p, None, programs)": "slice(p, len(dy) // programs * programs, programs)"},
        ),
        Mistake(
            "tables_swapped",
            "You swapped the two halves of the table. The gradients come out right, and who reads the "
            "table takes one for the other.",
            {
                "table[0, p] = dy": "table[1, p] = dy",
                "table[1, p] = (dy": "table[0, p] = (dy",
                "table[1].sum(0), table[0].sum(0)": "table[0].sum(0), table[1].sum(0)",
            },
        ),
        Mistake(
            "gradients_swapped",
            "You return ∂β before ∂γ. Both have one shape, and no error tells you.",
            {"table[1].sum(0), table[0].sum(0)": "table[0].sum(0), table[1].sum(0)"},
        ),
        Mistake(
            "mean",
            "You average over the programs. A gradient is a sum over the rows, however many programs share "
            "them.",
            {"table[1].sum(0), table[0].sum(0)": "table[1].mean(0), table[0].mean(0)"},
        ),
        Mistake(
            "first_program",
            "You return the sums of the first program alone.",
            {"table[1].sum(0), table[0].sum(0)": "table[1, 0], table[0, 0]"},
        ),
        Mistake(
            "dy_squared",
            "You multiply ∂y with itself. ∂γ is the sum of ∂y times x̂.",
            {"dy[mine] * x_hat[mine]": "dy[mine] * dy[mine]"},
        ),
        Mistake(
            "no_x_hat",
            "You leave out x̂: your ∂γ is ∂β.",
            {"(dy[mine] * x_hat[mine])": "dy[mine]"},
        ),
        Mistake(
            "in_place",
            "You multiply `dy` where it stands. ∂x still needs it.",
            {"    return table, ": "    dy *= x_hat\n    return table, "},
        ),
    ),
    probe=_probe_two_stage,
)

# ------------------------------------------------------------------------------------------ registers

_FITS = ("threads", "programs", "occupancy", "small", "most", "elements", "idle", "spilled", "share")


def _probe_registers(answer: dict[str, Any], draw: Draw) -> Observations:
    yield from numbers(answer, _FITS, 1e-3)


REGISTERS = Exercise(
    id="fused_kernels.registers",
    title="Read what the compiler says",
    answer="fits",
    statement=r"""
A multiprocessor of an H100 has 65,536 registers of 32 bits and holds at most 2,048 threads; a warp has 32
threads. A program is on one multiprocessor as a whole, or not at all. The compiler says of three kernels:

| kernel | warps per program | registers per thread | spilled bytes per thread |
|---|---|---|---|
| A | 8 | 64 | 0 |
| B | 8 | 24 | 0 |
| C | 16 | 128 | 96 |

Fill in the dict `fits`:

- `threads`: threads of one program of A;
- `programs`: how many programs of A a multiprocessor holds at once;
- `occupancy`: the threads that are then there, as a fraction of those that there could be;
- `small`: how many programs of B a multiprocessor holds at once;
- `most`: the most registers per thread with which a program of 16 warps still fits;
- `elements`: A's tile is a row of 8,192 float32 values. How many of them does a thread hold?
- `idle`: a row of 5,000 goes into that tile. What fraction of the lanes does nothing?
- `spilled`: KiB that one program of C writes and reads again because of what is spilled, each byte once
  both ways;
- `share`: a program of C normalizes one row of 8,192 bfloat16 values: it reads them and writes as many. If
  what is spilled goes to memory too, what fraction of all its traffic is that?

The checker allows 0.1 %.
""",
    starter="""
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
""",
    hints=(
        "A program takes its registers per thread times its threads. How often does that go into 65,536?",
        "There are two limits, registers and threads. B meets the other one.",
        "A row of 8,192 values of 2 bytes, in and out, is 32 KiB.",
    ),
    reference="""
fits = {
    "threads": 8 * 32,
    "programs": 65536 // (64 * 256),
    "occupancy": 4 * 256 / 2048,
    "small": min(65536 // (24 * 256), 2048 // 256),
    "most": 65536 // (16 * 32),
    "elements": 8192 / 256,
    "idle": (8192 - 5000) / 8192,
    "spilled": 2 * 96 * 512 / 1024,
    "share": 96 / (96 + 32),
}
""",
    alternatives=(
        """
fits = dict(threads=256, programs=4, occupancy=0.5, small=8, most=128, elements=32, idle=0.39,
            spilled=96, share=0.75)
""",
        """
def at_once(warps, registers):
    return min(65536 // (32 * warps * registers), 64 // warps)

fits = {
    "threads": 256, "programs": at_once(8, 64), "occupancy": torch.tensor(at_once(8, 64) * 8 / 64),
    "small": at_once(8, 24), "most": max(r for r in range(256) if r == 0 or at_once(16, r)),
    "elements": 32, "idle": 1 - 5000 / 8192, "spilled": 96.0, "share": 3 / 4,
}
""",
    ),
    mistakes=(
        Mistake(
            "warps",
            "You give the warps of a program. Each has 32 threads.",
            {'"threads": 8 * 32': '"threads": 8'},
        ),
        Mistake(
            "registers_of_one_thread",
            "You divide the registers by those of one thread. All threads of a program need theirs at the "
            "same time.",
            {'"programs": 65536 // (64 * 256)': '"programs": 65536 // 64'},
        ),
        Mistake(
            "registers_of_warps",
            "You count the warps as if each were one thread: a register is one per thread, 32 per warp.",
            {'"programs": 65536 // (64 * 256)': '"programs": 65536 // (64 * 8)'},
        ),
        Mistake(
            "thread_limit_alone",
            "You take as many programs of A as there is room for threads. Their registers run out before "
            "that.",
            {'"programs": 65536 // (64 * 256)': '"programs": 2048 // 256'},
        ),
        Mistake(
            "in_warps",
            "You count warps: so many have room for their registers at once. A program of A has eight.",
            {'"programs": 65536 // (64 * 256)': '"programs": 65536 // (64 * 32)'},
        ),
        Mistake(
            "occupancy_in_percent",
            "You give the occupancy in percent. Asked is a fraction, a number between 0 and 1.",
            {"4 * 256 / 2048": "100 * 4 * 256 / 2048"},
        ),
        Mistake(
            "full",
            "You call the multiprocessor full when its registers are. Occupancy counts threads, of the 2,048 "
            "that there could be.",
            {"4 * 256 / 2048": "4 * 64 * 256 / 65536"},
        ),
        Mistake(
            "one_program",
            "Your occupancy is that of one program. Several are there at once.",
            {"4 * 256 / 2048": "256 / 2048"},
        ),
        Mistake(
            "register_limit_alone",
            "You take as many programs of B as there are registers for. No more than 2,048 threads are there "
            "at once, however few registers they take.",
            {"min(65536 // (24 * 256), 2048 // 256)": "65536 // (24 * 256)"},
        ),
        Mistake(
            "half_a_program",
            "You count a part of a program of B. It is there as a whole or not at all, and the number of "
            "threads limits it first.",
            {"min(65536 // (24 * 256), 2048 // 256)": "65536 / (24 * 256)"},
        ),
        Mistake(
            "instruction_set",
            "You give 255, the most that an instruction can name. For 16 warps there are not as many: the "
            "compiler has to spill before that.",
            {'"most": 65536 // (16 * 32)': '"most": 255'},
        ),
        Mistake(
            "most_by_warps",
            "You share the registers among 16 warps. Each of their 32 threads needs its own.",
            {'"most": 65536 // (16 * 32)': '"most": 65536 // 16'},
        ),
        Mistake(
            "elements_of_a_warp",
            "You share the row among the warps. It is spread over all threads.",
            {"8192 / 256": "8192 / 8"},
        ),
        Mistake(
            "used",
            "You give the fraction of the lanes that work. Asked is the rest: wasted instructions, if no "
            "wasted bytes.",
            {"(8192 - 5000) / 8192": "5000 / 8192"},
        ),
        Mistake(
            "idle_of_the_row",
            "You take the idle lanes as a fraction of the row. Asked is their fraction of the lanes.",
            {"(8192 - 5000) / 8192": "(8192 - 5000) / 5000"},
        ),
        Mistake(
            "idle_in_percent",
            "You give the idle lanes in percent. Asked is a fraction, a number between 0 and 1.",
            {"(8192 - 5000) / 8192": "100 * (8192 - 5000) / 8192"},
        ),
        Mistake(
            "spilled_in_bytes",
            "You give bytes. Asked are KiB, of 1,024 bytes.",
            {"2 * 96 * 512 / 1024": "2 * 96 * 512"},
        ),
        Mistake(
            "share_in_percent",
            "You give the share in percent. Asked is a fraction, a number between 0 and 1.",
            {"96 / (96 + 32)": "100 * 96 / (96 + 32)"},
        ),
        Mistake(
            "one_way",
            "You count what is spilled once. It is written, and read again.",
            {"2 * 96 * 512 / 1024": "96 * 512 / 1024"},
        ),
        Mistake(
            "one_thread_spills",
            "You count what one thread spills. Every thread of the program does.",
            {"2 * 96 * 512 / 1024": "2 * 96 / 1024"},
        ),
        Mistake(
            "a_warp_spills",
            "You count bytes per warp. The compiler says them per thread.",
            {"2 * 96 * 512 / 1024": "2 * 96 * 16 / 1024"},
        ),
        Mistake(
            "share_of_the_row",
            "You compare what is spilled with the row's own traffic. Asked is its fraction of all.",
            {"96 / (96 + 32)": "96 / 32"},
        ),
        Mistake(
            "output_forgotten",
            "You leave out that the row is written too: it is 16 KiB in and 16 KiB out.",
            {"96 / (96 + 32)": "96 / (96 + 16)"},
        ),
        Mistake(
            "row_of_float32",
            "You count four bytes for a bfloat16.",
            {"96 / (96 + 32)": "96 / (96 + 64)"},
        ),
    ),
    probe=_probe_registers,
)

# -------------------------------------------------------------------------------------------- rms row


def _run(name: str, kernel: Any, programs: int, *arguments: object, **constants: object) -> Observations:
    """Launch a learner's kernel, and observe whether it stayed in its buffers."""
    from normtutor.exercises import interpreter  # Triton is imported only when it is asked for

    if does_nothing(interpreter.python_of(kernel)):
        raise Unfinished
    faults = interpreter.launch(kernel, programs, *arguments, **constants)
    held = [argument.name for argument in arguments if isinstance(argument, interpreter.Buffer)]
    for buffer in (*held, ""):
        texts = [fault.text for fault in faults if fault.buffer == buffer]
        where = f"of {buffer}" if buffer else "elsewhere"
        yield f"the accesses {where} for {name}", Holds(not texts, texts[0] if texts else "")


def _holds_numbers(name: str, y: Tensor) -> Observations:
    """For bfloat16 alone, which NumPy does not have, and so Triton's interpreter neither."""
    if y.dtype == torch.bfloat16:
        otherwise = (
            f"{name} holds NaN, or nothing but 0. You compute in bfloat16, which Triton's interpreter cannot "
            "do: turn what you load into float32"
        )
        fine = bool(y.isfinite().all() and y.any())
        yield f"{name} holds numbers", Holds(fine, otherwise, "bfloat16")


def _rounded_once(name: str, y: Tensor, exact: Tensor) -> Observations:
    """Whether ``y`` is as near to ``exact`` as its dtype allows, but for a tie or two."""
    if y.dtype != torch.float32:
        right = (y == exact.to(y.dtype)).double().mean().item()
        otherwise = f"{100 * (1 - right):.0f} % of y for {name} are not the nearest numbers of their dtype"
        yield f"y for {name} is rounded once", Holds(right >= 0.9, otherwise, "rounded_twice")


def _probe_rms_row(kernel: Any, draw: Draw) -> Observations:
    from normtutor.exercises.interpreter import Buffer

    eps = draw.uniform(0.05, 0.5)

    def trial(
        name: str,
        values: Tensor,
        weight: Tensor,
        eps: float,
        block: int,
        x_step: int = 0,
        y_step: int = 0,
    ) -> Observations:
        rows, length = values.shape
        x, y = (
            Buffer("x", values, x_step or None),
            Buffer("y", draw.values(rows, length).to(values), y_step or None),
        )
        gamma, rstd = Buffer("weight", weight[None]), Buffer("rstd", draw.values(rows, 1).float())
        pointers = x, gamma, y, rstd
        yield from _run(name, kernel, rows, *pointers, x.step, y.step, length, eps, BLOCK=block)
        yield (
            f"y is stored once for {name}",
            Holds(
                int(y.writes.max()) <= 1, f"an element of y is stored {y.writes.max()} times", "stored_twice"
            ),
        )
        yield from _holds_numbers(f"y for {name}", y.values)
        yield f"y for {name}", y.values
        exact = x.values.double()
        exact *= (exact.square().mean(1, keepdim=True) + eps).rsqrt()
        yield from _rounded_once(name, y.values, exact * gamma.values.double())
        yield f"rstd for {name}", rstd.values[:, 0]
        by = torch.from_numpy(y.stored_by[:, 0]), torch.from_numpy(rstd.stored_by[:, 0])
        others = [row for row in range(rows) if not by[0][row] == by[1][row] == row]
        said = f"program {by[0][others[0]]} stores row {others[0]} of y" if others else ""
        yield f"program p stores row p for {name}", Holds(not others, said, "one_program")
        kept = not (x.writes.any() or gamma.writes.any())
        yield (
            f"x and weight are only read for {name}",
            Holds(kept, "the kernel stores into x or weight", "in_place"),
        )
        once = int(x.reads.max()) <= 1
        yield f"x is read once for {name}", Holds(once, f"it loads an element of x {x.reads.max()} times")

    gamma = draw.values(50, low=0.5).float()
    narrow = draw.batch(3, 5).float()
    yield from trial("rows of 5 in a block of 8", narrow, gamma[:5], eps, 8)
    yield from trial("rows 9 apart, to rows 7 apart", draw.batch(2, 5).float(), gamma[:5], eps, 8, 9, 7)
    yield from trial("rows of 16 in a block of 16", draw.batch(2, 16).float(), gamma[:16], 1e-12, 16)
    yield from trial("a tiny eps, and small values", 1e-4 * narrow[:1], gamma[:5], 1e-12, 16)
    # Squares of 300 exceed what float16 can hold; a bfloat16 has three digits.
    yield from trial("float16", 300 * draw.values(1, 50, low=0.5).half(), gamma, eps, 64)
    yield from trial("bfloat16", draw.batch(1, 50).bfloat16(), gamma.bfloat16(), eps, 64)
    # From the third row on, no int32 holds the offset.
    far = 2**30 + 8 * round(draw.uniform(1, 100))
    yield from trial(f"rows of x {far} apart", narrow[:, :3], gamma[:3], eps, 4, far)
    yield from trial(f"rows of y {far} apart", narrow[:, :3], gamma[:3], eps, 4, 0, far)


def _refused(kernel: Any, signature: dict[str, str]) -> str:
    """What the compiler says; see :func:`normtutor.exercises.compiler.refusal`."""
    from normtutor.exercises import compiler

    return compiler.refusal(kernel, signature, {"BLOCK": 64})


def _rms_row_refused(kernel: Any) -> str:
    pointers = {"x": "*bf16", "weight": "*fp32", "y": "*bf16", "rstd": "*fp32"}
    return _refused(kernel, pointers | {"x_step": "i32", "y_step": "i32", "length": "i32", "eps": "fp32"})


_ROW_GIVEN = "x, weight, y, rstd, x_step, y_step, length, eps"
_ROW_HEAD = f"""
@triton.jit
def rms_row({_ROW_GIVEN}, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
"""
_ROW_BODY = """    col = tl.arange(0, BLOCK)
    inside = col < length
    value = tl.load(x + row * x_step + col, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / length + eps)
    tl.store(rstd + row, scale)
    gamma = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * y_step + col, value * scale * gamma, mask=inside)
"""

RMS_ROW = Exercise(
    id="fused_kernels.rms_row",
    title="The row kernel of RMSNorm",
    answer="rms_row",
    statement=r"""
Write the forward pass of RMSNorm as a Triton kernel,
`rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK)`. One program takes one row:

$$y_j = \gamma_j\,r\,x_j$$

with $r = 1/\sqrt{m + \varepsilon}$, where $m$ is the mean of the squares of the row.

- `x`, `weight`, `y`, `rstd` are pointers. Row $p$ of `x` begins `x_step` elements behind row $p-1$, that of
  `y` `y_step` elements. A row has `length` adjacent elements, and so has `weight` ($\gamma$). `BLOCK` is a
  power of two, at least `length`.
- There are as many programs as rows. Program $p$ stores row $p$ of `y`, and $r$ in `rstd[p]`.
- `x` and `y` are float32, bfloat16 or float16, `weight` too; `rstd` is float32. All arithmetic is in float32.
- Load every element of `x` once, and store every element of `y` once, rounded once. Load and store nothing
  outside of the rows: behind a row may lie what is not yours.
- The tensors may be large: a row may begin more than $2^{31}$ elements behind the first one.

The checker runs your kernel in Triton's interpreter, on a CPU, in a memory where every access is seen, with
rows that fill their block and rows that do not, steps larger than the rows, all three dtypes, a tiny
$\varepsilon$, and steps of more than $2^{30}$. The interpreter is Python. It cannot compute in bfloat16, and
it runs much that no GPU can. So what is right there goes to Triton's compiler too, where Triton 3.6 or newer
is installed; that takes a few seconds. With an older one, what passes here may not compile.
""",
    starter="""
@triton.jit
def rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK: tl.constexpr):
    raise NotImplementedError  # your code here
""",
    hints=(
        "`tl.program_id(0)` is the row, `tl.arange(0, BLOCK)` are the columns; a pointer plus an offset is "
        "a pointer, and plus a block of offsets it is a block of pointers.",
        "`tl.load(pointers, mask=…, other=0.0)` touches only the lanes where the mask holds and gives 0 in "
        "the others, which adds nothing to a sum. `.to(tl.float32)` comes right behind it.",
        "Divide by `length`, not by `BLOCK`. `tl.store` needs the mask too. `tl.program_id(0)` is an int32: "
        "make it a `tl.int64` before you multiply by a step.",
    ),
    reference=_ROW_HEAD + _ROW_BODY,
    alternatives=(
        """
@triton.jit
def rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK: tl.constexpr):
    p = tl.program_id(0)
    x += p.to(tl.int64) * x_step
    y += p.to(tl.int64) * y_step
    lanes = tl.arange(0, BLOCK)
    v = tl.load(x + lanes, mask=lanes < length)
    v = tl.where(lanes < length, v, 0.0).to(tl.float32)
    total = tl.sum(v * v)
    r = 1.0 / tl.sqrt(total / length + eps)
    tl.store(rstd + p, r)
    g = tl.load(weight + lanes, mask=lanes < length)
    tl.store(y + lanes, v * r * g.to(tl.float32), mask=lanes < length)
""",
        """
@triton.jit
def mean_of_squares(v, length):
    return tl.sum(v * v, axis=1, keep_dims=True) / length


@triton.jit
def rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1, 1], tl.int64)
    col = tl.arange(0, BLOCK)[None, :]
    inside = col < length
    v = tl.load(x + (row * x_step + col), mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(mean_of_squares(v, length) + eps)
    tl.store(rstd + row, scale)
    g = tl.load(weight + col, mask=inside, other=0).to(tl.float32)
    tl.store(y + (row * y_step + col), (v * scale * g).to(y.dtype.element_ty), mask=inside)
""",
    ),
    mistakes=(
        Mistake(
            "load_not_masked",
            "You load whole blocks of `x`. Behind the row lies the next one, or memory that is not yours; "
            "whatever stands there goes into the sum.",
            {"tl.load(x + row * x_step + col, mask=inside, other=0.0)": "tl.load(x + row * x_step + col)"},
        ),
        Mistake(
            "no_other",
            "You mask the load of `x` without `other=`. What the masked lanes then hold is not defined, and "
            "it goes into the sum; on some days it is 0.",
            {"x_step + col, mask=inside, other=0.0": "x_step + col, mask=inside"},
        ),
        Mistake(
            "weight_not_masked",
            "You load `weight` without the mask. The result is right, and the program reads behind the end "
            "of γ, which on a GPU can stop everything.",
            {"tl.load(weight + col, mask=inside, other=0.0)": "tl.load(weight + col)"},
        ),
        Mistake(
            "store_not_masked",
            "You store whole blocks of `y`. That overwrites the beginning of the next row, which another "
            "program writes, in any order.",
            {"value * scale * gamma, mask=inside": "value * scale * gamma"},
        ),
        Mistake(
            "mask_one_too_wide",
            "Your mask lets one lane too many in: the columns of a row end at `length` − 1.",
            {"col < length": "col <= length"},
        ),
        Mistake(
            "divided_by_block",
            "You divide by `BLOCK`. The masked lanes hold 0 and must not count: the mean is over `length` "
            "elements.",
            {"/ length + eps": "/ BLOCK + eps"},
        ),
        Mistake(
            "not_divided",
            "You take the sum of the squares, not their mean.",
            {" / length + eps": " + eps"},
        ),
        Mistake(
            "half_arithmetic",
            "You compute in the dtype of `x`. In float16 the square of 300 is infinite; in bfloat16 a sum "
            "keeps three digits. Turn what you load into float32.",
            {"x_step + col, mask=inside, other=0.0).to(tl.float32)": "x_step + col, mask=inside, other=0.0)"},
        ),
        Mistake(
            "int32_offset",
            "Your offsets are int32. From the third row on, with steps of 2³⁰, they wrap around to negative "
            "numbers, and the program reads and writes in front of the tensors. Make the row's number an "
            "int64 before you multiply.",
            {"tl.program_id(0).to(tl.int64)": "tl.program_id(0)"},
        ),
        Mistake(
            "int32_offset_of_y",
            "The offset into `x` has 64 bits, that into `y` has not: it wraps around and the output goes "
            "elsewhere.",
            {"row * y_step": "row.to(tl.int32) * y_step"},
        ),
        Mistake(
            "widened_too_late",
            "You make the product an int64. By then it has wrapped around: widen a factor.",
            {
                "tl.program_id(0).to(tl.int64)": "tl.program_id(0)",
                "row * x_step": "(row * x_step).to(tl.int64)",
                "row * y_step": "row.to(tl.int64) * y_step",
            },
        ),
        Mistake(
            "x_step_ignored",
            "You find the rows of `x` by `length`. They may lie further apart: `x_step` says how far.",
            {"row * x_step": "row * length"},
        ),
        Mistake(
            "y_step_ignored",
            "You find the rows of `y` by the step of `x`. Each tensor has its own.",
            {"row * y_step": "row * x_step"},
        ),
        Mistake(
            "one_row",
            "Every program takes the first row: the grid has one axis, and `tl.program_id(1)` is always 0.",
            {"tl.program_id(0)": "tl.program_id(1)"},
        ),
        Mistake(
            "output_not_stored",
            "You never store `y`. A kernel returns nothing: what it does not store is lost.",
            {"    tl.store(y + row * y_step + col, value * scale * gamma, mask=inside)\n": ""},
        ),
        Mistake(
            "rstd_not_stored",
            "You do not store `rstd`. The backward pass would have to compute it again.",
            {"    tl.store(rstd + row, scale)\n": ""},
        ),
        Mistake(
            "rstd_of_the_first_row",
            "All programs store to `rstd[0]`; the last one wins, and which one that is no one knows.",
            {"tl.store(rstd + row, scale)": "tl.store(rstd, scale)"},
        ),
        Mistake(
            "root_stored",
            "You store the root mean square. Asked is 1 over it, the factor that the backward pass needs.",
            {"tl.store(rstd + row, scale)": "tl.store(rstd + row, 1.0 / scale)"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. A row of zeros then divides zero by zero.",
            {"/ length + eps)": "/ length)"},
        ),
        Mistake(
            "eps_outside_root",
            "You add ε outside of the root. It belongs to the mean of the squares.",
            {
                "tl.rsqrt(tl.sum(value * value, axis=0) / length + eps)": (
                    "1.0 / (tl.sqrt(tl.sum(value * value, axis=0) / length) + eps)"
                )
            },
        ),
        Mistake(
            "fixed_eps",
            "You use an ε of your own. With small values a tiny ε matters.",
            {"/ length + eps)": "/ length + 1e-6)"},
        ),
        Mistake(
            "no_root",
            "You divide by the mean of the squares, without the root.",
            {
                "tl.rsqrt(tl.sum(value * value, axis=0) / length + eps)": (
                    "1.0 / (tl.sum(value * value, axis=0) / length + eps)"
                )
            },
        ),
        Mistake(
            "centred",
            "You subtract the mean. That is LayerNorm.",
            {
                "    scale = ": (
                    "    value = tl.where(inside, value - tl.sum(value, axis=0) / length, 0.0)\n    scale = "
                )
            },
        ),
        Mistake(
            "no_weight",
            "You leave out γ.",
            {"value * scale * gamma": "value * scale"},
        ),
        Mistake(
            "one_plus_weight",
            "You multiply by 1 + γ, as the models do that store γ − 1. Here `weight` is γ.",
            {"value * scale * gamma": "value * scale * (1.0 + gamma)"},
        ),
        Mistake(
            "weight_of_the_row",
            "You find `weight` by the row. γ belongs to the columns: every row takes all of it.",
            {"weight + col": "weight + row * length + col"},
        ),
        Mistake(
            "loaded_twice",
            "The result is right, but you load `x` a second time. On a GPU that may be a second pass through "
            "memory, unless a cache helps; the row is in registers already.",
            {
                "    gamma = tl.load": (
                    "    value = tl.load(x + row * x_step + col, mask=inside, other=0.0).to(tl.float32)\n"
                    "    gamma = tl.load"
                )
            },
        ),
        Mistake(
            "in_place",
            "You store the output into `x`. The backward pass needs `x` as it was.",
            {"tl.store(y + row * y_step": "tl.store(x + row * x_step"},
        ),
        Mistake(
            "one_program",
            "One program does the work of all. It runs on one multiprocessor of the GPU, and all others "
            "wait: program p is to store row p.",
            {
                _ROW_HEAD: f"\n@triton.jit\ndef one({_ROW_GIVEN}, row, BLOCK: tl.constexpr):\n",
                "value * scale * gamma, mask=inside)\n": (
                    "value * scale * gamma, mask=inside)\n\n\n"
                    f"@triton.jit\ndef rms_row({_ROW_GIVEN}, BLOCK: tl.constexpr):\n"
                    "    if tl.program_id(0) == 0:\n"
                    "        for row in range(0, tl.num_programs(0)):\n"
                    f"            one({_ROW_GIVEN}, row.to(tl.int64), BLOCK)\n"
                ),
            },
        ),
        Mistake(
            "stored_twice",
            "You store `y` twice. The second store moves as many bytes as the first: finish the numbers in "
            "registers, and store them once.",
            {
                "    gamma = tl.load": (
                    "    tl.store(y + row * y_step + col, value * scale, mask=inside)\n    gamma = tl.load"
                )
            },
        ),
        Mistake(
            "rounded_twice",
            "You round the normalized row to the dtype of `y` before you multiply by γ, and once more when "
            "you store it. In bfloat16 two roundings put part of the output off by one step: multiply in "
            "float32.",
            {"value * scale * gamma": "(value * scale).to(y.dtype.element_ty).to(tl.float32) * gamma"},
        ),
        Mistake(
            "rstd_by_step",
            "You store `rstd` elsewhere than in `rstd[p]`. It has one number for each row: no step, and no "
            "columns.",
            {"tl.store(rstd + row, scale)": "tl.store(rstd + row * y_step, scale)"},
        ),
        Mistake(
            "row_times_block",
            "You find the rows of `x` by `BLOCK`. That is the width of the tile in registers; in memory the "
            "rows are `x_step` apart.",
            {"row * x_step": "row * BLOCK"},
        ),
        Mistake(
            "nothing_masked",
            "You use no mask at all: every load and store takes the whole block, and what lies behind the "
            "row is read, summed up and overwritten.",
            {
                "tl.load(x + row * x_step + col, mask=inside, other=0.0)": "tl.load(x + row * x_step + col)",
                "tl.load(weight + col, mask=inside, other=0.0)": "tl.load(weight + col)",
                "value * scale * gamma, mask=inside": "value * scale * gamma",
            },
        ),
    ),
    probe=_probe_rms_row,
    triton=True,
    refusal=_rms_row_refused,
)

# ------------------------------------------------------------------------------------------ challenge

_ROWS, _LENGTH, _PROGRAMS = 9, 24, 2
_LEAST = 4 * _ROWS * _LENGTH * 2 + _PROGRAMS * _LENGTH * 4 + _ROWS * 4  # bfloat16, γ and rstd float32
_FOR_EVERY_ROW = _LEAST + (_ROWS - _PROGRAMS) * _LENGTH * 4
_READ_BACK = _LEAST + _ROWS * _LENGTH * 2


def _probe_add_rms(kernel: Any, draw: Draw) -> Observations:
    from normtutor.exercises.interpreter import Buffer

    eps = draw.uniform(0.05, 0.5)
    for rows, length, programs, dtype in (
        (_ROWS, _LENGTH, _PROGRAMS, torch.bfloat16),
        (7, 5, 3, torch.float32),
        (2, 5, 2, torch.float32),
        (1, 5, 3, torch.float16),
    ):
        kinds = {"x": dtype, "residual": dtype, "weight": torch.float32, "y": dtype, "total": dtype}
        held = {
            name: Buffer(name, draw.values(1 if name == "weight" else rows, length, low=0.2).to(kept))
            for name, kept in kinds.items()
        }
        held["rstd"] = Buffer("rstd", draw.values(rows, 1).float())
        name, block = f"{rows} row{'s' * (rows > 1)} by {programs} programs", 1 << (length - 1).bit_length()
        yield from _run(name, kernel, programs, *held.values(), rows, length, eps, BLOCK=block)
        kept = not any(held[given].writes.any() for given in ("x", "residual", "weight"))
        yield (
            f"what is given is only read for {name}",
            Holds(kept, "the kernel stores into what it was given"),
        )
        yield from _holds_numbers(f"total for {name}", held["total"].values)
        yield f"total for {name}", held["total"].values
        yield f"rstd for {name}", Approx(held["rstd"].values[:, 0], 1e-5)
        yield from _holds_numbers(f"y for {name}", held["y"].values)
        yield f"y for {name}", held["y"].values
        if length == _LENGTH:
            exact = (held["x"].values.float() + held["residual"].values.float()).to(dtype).double()
            exact *= (exact.square().mean(1, keepdim=True) + eps).rsqrt()
            yield from _rounded_once(name, held["y"].values, exact * held["weight"].values.double())
        yield from _traffic(name, held, programs, rows == _ROWS)


def _traffic(name: str, held: dict[str, Any], programs: int, counted: bool) -> Observations:
    """What a kernel loads and stores more than once, and, where it is ``counted``, the target."""
    touched = {key: int((b.reads + b.writes).sum()) * b.values.element_size() for key, b in held.items()}
    moved = sum(touched.values())
    asked = f"it moves {moved} bytes, asked are at most {_LEAST}"
    begin = f"{asked}: " if counted else f"for {name}, "

    def once(key: str, verb: str, times: int, by: int) -> tuple[str, Holds]:
        who = f"by {by} programs" if by > 1 else f"{times} times by one program"
        mistake = "rows_shared" if by > 1 else f"{verb}_twice"
        said = f"{begin}an element of `{key}` is {verb} {who}"
        return f"{key} is {verb} once for {name}", Holds(times <= 1, said, mistake)

    for key in ("x", "residual"):
        yield once(key, "loaded", int(held[key].reads.max()), int(held[key].readers.max()))
    for key in ("total", "y", "rstd"):
        yield once(key, "stored", int(held[key].writes.max()), int(held[key].writers.max()))
    back, gamma = int(held["total"].reads.max()), int(held["weight"].reads.max())
    said = f"{begin}it loads `total`, which it has just stored"
    yield f"the sum is not read back for {name}", Holds(not back, said, "total_read_back")
    said = f"{begin}each element of `weight` is loaded {gamma} times by {programs} programs"
    weight = Holds(gamma <= programs, said, "weight_for_every_row")
    yield f"weight is loaded once by a program for {name}", weight
    if counted:
        yield f"at most {_LEAST} bytes", Holds(moved <= _LEAST, asked)


def _add_rms_refused(kernel: Any) -> str:
    pointers = {"x": "*bf16", "residual": "*bf16", "weight": "*fp32", "y": "*bf16", "total": "*bf16"}
    return _refused(kernel, pointers | {"rstd": "*fp32", "rows": "i32", "length": "i32", "eps": "fp32"})


ADD_RMS = Exercise(
    id="fused_kernels.add_rms",
    title="Challenge: not a byte too many",
    answer="add_rms",
    statement=f"""
In a transformer every normalization stands behind an addition. Done apart, the sum is written, read again,
and normalized: five passes. Write the kernel that does both,
`add_rms(x, residual, weight, y, total, rstd, rows, length, eps, BLOCK)`:

- `total` is `x + residual`, computed in float32 and rounded to the dtype of `total` when it is stored;
- `y` is RMSNorm of `total` *as it is stored*, rounded: so the backward pass, which finds `total` in memory,
  sees the same numbers. `weight` is its $\\gamma$;
- `rstd[i]` is $1/\\sqrt{{m + \\varepsilon}}$, float32, where $m$ is the mean of the squares of row $i$
  of `total`.

All matrices have `rows` rows of `length` elements, without gaps. There may be **fewer programs than rows**,
or more: `tl.num_programs(0)` says how many. On a GPU one would launch as many as run at once.

The checker counts every byte that your kernel loads and stores in Triton's interpreter. For {_ROWS} rows of
{_LENGTH} bfloat16 values, with {_PROGRAMS} programs and `weight` in float32, it asks for **at most {_LEAST}
bytes**: `x` and `residual` in, `total` and `y` out, `weight` once for each program, and `rstd`. The reference
moves just these. A kernel that loads `weight` for every row moves {_FOR_EVERY_ROW} bytes, one that reads
the sum back {_READ_BACK}. Other shapes, dtypes and numbers of programs must come out right, with nothing
loaded or stored twice. The interpreter cannot compute in bfloat16: turn what you load into float32. What is
right there goes to Triton's compiler too, where Triton 3.6 or newer is installed.
""",
    starter="""
@triton.jit
def add_rms(x, residual, weight, y, total, rstd, rows, length, eps, BLOCK: tl.constexpr):
    raise NotImplementedError  # your code here
""",
    hints=(
        "Let a program take the rows p, p + P, p + 2P, …: a loop whose step is the number of programs. What "
        "does not depend on the row belongs in front of it.",
        "`value.to(total.dtype.element_ty)` rounds as the store does. Turn it into float32 again, and go on "
        "with that.",
    ),
    reference="""
@triton.jit
def add_rms(x, residual, weight, y, total, rstd, rows, length, eps, BLOCK: tl.constexpr):
    col = tl.arange(0, BLOCK)
    inside = col < length
    gamma = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = row.to(tl.int64) * length + col
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty).to(tl.float32)
        tl.store(total + at, value, mask=inside)
        scale = tl.rsqrt(tl.sum(value * value, axis=0) / length + eps)
        tl.store(rstd + row, scale)
        tl.store(y + at, value * scale * gamma, mask=inside)
""",
    alternatives=(
        """
@triton.jit
def add_rms(x, residual, weight, y, total, rstd, rows, length, eps, BLOCK: tl.constexpr):
    # Adjacent rows for each program.
    p, many = tl.program_id(0), tl.num_programs(0)
    each = (rows + many - 1) // many
    col = tl.arange(0, BLOCK)
    gamma = tl.load(weight + col, mask=col < length, other=0.0)
    for i in range(0, each):
        row = p * each + i
        inside = (col < length) & (row < rows)
        at = row * length + col
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = (a + b).to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        s = rounded.to(tl.float32)
        r = 1.0 / tl.sqrt(tl.sum(s * s, axis=0) / length + eps)
        tl.store(rstd + row, r, mask=row < rows)
        tl.store(y + at, s * r * gamma, mask=inside)
""",
        """
@triton.jit
def add_rms(x, residual, weight, y, total, rstd, rows, length, eps, BLOCK: tl.constexpr):
    # Tiles of four rows.
    col = tl.arange(0, BLOCK)[None, :]
    gamma = tl.load(weight + col, mask=col < length, other=0.0).to(tl.float32)
    for tile in range(tl.program_id(0), (rows + 3) // 4, tl.num_programs(0)):
        row = tile * 4 + tl.arange(0, 4)[:, None]
        here = row < rows
        inside = here & (col < length)
        at = row.to(tl.int64) * length + col
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty).to(tl.float32)
        tl.store(total + at, value, mask=inside)
        scale = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / length + eps)
        tl.store(rstd + row, scale, mask=here)
        tl.store(y + at, value * scale * gamma, mask=inside)
""",
    ),
    mistakes=(
        Mistake(
            "weight_for_every_row",
            "Everything is right, and you load `weight` for every row. A program needs it once: what does "
            "not depend on the row belongs in front of the loop.",
            {
                "    gamma = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)\n": "",
                "        scale = ": (
                    "        gamma = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)\n"
                    "        scale = "
                ),
            },
        ),
        Mistake(
            "total_read_back",
            "Everything is right, and you load `total` again after you stored it. The row is in registers: "
            "rounding it there gives the same numbers.",
            {
                "        scale = ": (
                    "        value = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)\n"
                    "        scale = "
                )
            },
        ),
        Mistake(
            "one_row_per_program",
            "Each program takes one row and is done. There may be fewer programs than rows: the rest is "
            "never written.",
            {"rows, tl.num_programs(0)": "rows, rows"},
        ),
        Mistake(
            "rows_shared",
            "Several programs take the same rows. The result is right, and each byte moves once for each of "
            "them: the step from one row of a program to its next is `tl.num_programs(0)`.",
            {"tl.program_id(0), rows, tl.num_programs(0)": "0 * tl.program_id(0), rows, 1"},
        ),
        Mistake(
            "sum_not_rounded",
            "You normalize the sum before it is rounded. The backward pass reads `total` from memory, other "
            "numbers than those whose root mean square you stored.",
            {"        value = value.to(total.dtype.element_ty).to(tl.float32)\n": ""},
        ),
        Mistake(
            "residual_not_normalized",
            "You add the residual, store the sum, and normalize `x` alone.",
            {
                "        value += tl.load": "        value_of_x = value\n        value += tl.load",
                "        scale = ": "        value = value_of_x\n        scale = ",
            },
        ),
        Mistake(
            "divided_by_block",
            "You divide by `BLOCK`, and so count the lanes behind the row.",
            {"/ length + eps": "/ BLOCK + eps"},
        ),
        Mistake(
            "store_not_masked",
            "You store `total` without the mask, into the rows behind.",
            {"tl.store(total + at, value, mask=inside)": "tl.store(total + at, value)"},
        ),
        Mistake(
            "y_not_masked",
            "You store `y` without the mask, into the rows behind.",
            {"value * scale * gamma, mask=inside": "value * scale * gamma"},
        ),
        Mistake(
            "loaded_twice",
            "You load the same row twice. It is in registers after the first time, and a second load may go "
            "to memory once more.",
            {
                "        scale = ": (
                    "        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)\n"
                    "        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)\n"
                    "        value = value.to(y.dtype.element_ty).to(tl.float32)\n"
                    "        scale = "
                )
            },
        ),
        Mistake(
            "stored_twice",
            "You store the same numbers twice. Whatever is stored moves.",
            {"        tl.store(rstd + row, scale)\n": 2 * "        tl.store(rstd + row, scale)\n"},
        ),
        Mistake(
            "rounded_twice",
            "You round the normalized row before you multiply by γ, and once more when you store it. In "
            "bfloat16 two roundings put part of the output off by one step: multiply in float32.",
            {"value * scale * gamma": "(value * scale).to(y.dtype.element_ty).to(tl.float32) * gamma"},
        ),
        Mistake(
            "no_eps",
            "You leave ε out. A row of zeros then divides zero by zero.",
            {"/ length + eps)": "/ length)"},
        ),
        Mistake(
            "no_weight",
            "You leave out γ.",
            {"value * scale * gamma": "value * scale"},
        ),
        Mistake(
            "row_times_block",
            "You find the rows by `BLOCK`. That is the width of the tile in registers; in memory the rows "
            "are `length` apart.",
            {"row.to(tl.int64) * length": "row.to(tl.int64) * BLOCK"},
        ),
        Mistake(
            "centred",
            "You subtract the mean. That is LayerNorm.",
            {
                "        scale = ": (
                    "        value = tl.where(inside, value - tl.sum(value, axis=0) / length, 0.0)\n"
                    "        scale = "
                )
            },
        ),
    ),
    probe=_probe_add_rms,
    refusal=_add_rms_refused,
    challenge=True,
    triton=True,
)

EXERCISES = (BYTES, ROOFLINE, MERGE, MASKED_LANES, TWO_STAGE, REGISTERS, RMS_ROW, ADD_RMS)
