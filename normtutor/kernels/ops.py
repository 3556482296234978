"""The kernels as operators of torch: ``torch.ops.normtutor.*``, with gradients, for eager and compiled use.

Three pairs, forward and backward: ``layer_norm`` (LayerNorm and RMSNorm, with a residual), ``channel_norm``
(GroupNorm, InstanceNorm, BatchNorm with the batch's statistics) and ``channel_norm_by`` (given statistics).
For the backward pass they keep what torch's operators keep: the input (or the sum), γ, and each set's mean
and 1/√(σ² + ε). The arguments are not checked here; :mod:`normtutor.fused` does.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from normtutor.kernels import blocks, plan, rows

# TRITON_INTERPRET=1: the kernels run as Python, on CPU tensors; for the tests.
INTERPRETED = type(rows.forward).__name__ == "InterpretedFunction"


def launch(kernel: Any, programs: int, warps: int, *arguments: object, **constants: object) -> None:
    """Run ``programs`` programs of a kernel on the device of the first argument, a tensor."""
    with _on_device(arguments[0]):
        # a·b + c may be one instruction; said, since Triton's default changes with 3.10.
        kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=True, **constants)


@contextmanager
def _on_device(tensor: Any) -> Iterator[None]:
    if not tensor.is_cuda:
        yield
        return
    with torch.cuda.device(tensor.device):
        yield


# Memory layouts


def in_rows(x: Tensor, axes: int) -> Tensor:
    """``x``, or a contiguous copy where it is not densely packed rows of its last ``axes`` axes.

    The rows themselves may lie in any order, as after a transpose of the other axes.
    """
    expected = 1
    strides = list(zip(x.stride(), x.shape, strict=True))
    trailing = [pair for pair in reversed(strides[-axes:]) if pair[1] != 1]
    leading = sorted(pair for pair in strides[:-axes] if pair[1] != 1)
    for stride, size in trailing + leading:
        if stride != expected:
            return x.contiguous()
        expected *= size
    return x


def in_planes(x: Tensor) -> Tensor:
    """``x``, (N, C, *), or a contiguous copy where it is neither contiguous nor channels_last."""
    return x if x.movedim(1, -1).is_contiguous() else x.contiguous()


def as_laid_out(t: Tensor, like: Tensor) -> Tensor:
    """``t``, or a copy in the strides of ``like``, which is dense."""
    return t if t.stride() == like.stride() else torch.empty_like(like).copy_(t)


def _scratch(x: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device=x.device)


def _parameter_gradients(sums: Tensor, weight: Tensor | None, bias: bool) -> tuple[Tensor, Tensor]:
    """∂γ and ∂β from the terms Σ ∂y and Σ ∂y x̂, [2, terms, …]; empty where there is no such parameter."""
    found = []
    for table, present in ((1, weight is not None), (0, bias)):
        if weight is not None and present:
            found.append(sums[table].sum(0).to(weight.dtype).view(weight.shape))
        else:
            found.append(sums.new_empty(0))  # an operator may not return one tensor twice
    return found[0], found[1]


def _fake_gradients(x: Tensor, weight: Tensor | None, bias: bool) -> tuple[Tensor, Tensor]:
    shape = (0,) if weight is None else weight.shape
    dtype = torch.float32 if weight is None else weight.dtype
    of_weight = torch.empty(shape, dtype=dtype, device=x.device)
    return of_weight, torch.empty_like(of_weight) if bias else _scratch(x, 0)


# LayerNorm and RMSNorm: sets are rows


@torch.library.custom_op(
    "normtutor::layer_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, int axes, float eps, bool centred) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    axes: int,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardize over the last ``axes`` axes of x, or of x + residual.

    Returns:
        y; x + residual (empty without a residual); mean (empty unless ``centred``) and rstd, one per row, in
        the order in which the rows lie in memory.
    """
    x = in_rows(x, axes)
    length = math.prod(x.shape[-axes:])
    sets = x.numel() // length
    y = torch.empty_like(x)
    total = torch.empty_like(x) if residual is not None else x.new_empty(0)
    residual = None if residual is None else as_laid_out(residual, x)
    mean, rstd = _scratch(x, sets if centred else 0), _scratch(x, sets)
    flags = {"CENTRED": centred, "WEIGHT": weight is not None, "BIAS": bias is not None}
    weight, bias = (x if p is None else p.contiguous() for p in (weight, bias))
    tile = plan.in_registers(sets, 1, length, plan.FORWARD_TILE)
    if plan.shared(sets, length, x.itemsize, x.device) and residual is None:
        how = plan.over_sets(sets, 1, 1, 1, length, x.device)
        low = _statistics(x, how, mean, rstd, torch.empty_like(rstd), sets, 1, eps, centred)
        sizes = (sets, length, 1, sets, 1, 0)
        _apply(x, mean, low, rstd, weight, bias, y, 1, sizes, eps, COLUMNS=False, ELEMENT=True, **flags)
        return y, total, mean, rstd
    flags |= {"RESIDUAL": residual is not None, "BY_ROW": False, "VAR": False}
    pointers = (x, x if residual is None else residual, weight, bias, y, total, mean, rstd, rstd)
    _rows_forward(tile, pointers, (sets, 1, length, 1), eps, flags)
    return y, total, mean, rstd


@layer_norm.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, axes: int, eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x = in_rows(x, axes)
    sets = x.numel() // math.prod(x.shape[-axes:])
    total = torch.empty_like(x) if residual is not None else x.new_empty(0)
    return torch.empty_like(x), total, _scratch(x, sets if centred else 0), _scratch(x, sets)


@torch.library.custom_op(
    "normtutor::layer_norm_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? dtotal, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, bool bias, "
    "int axes) -> (Tensor, Tensor, Tensor)",
)
def layer_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: bool,
    axes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """∂x (and ∂residual, which equals it), ∂γ and ∂β; those two empty where there is no such parameter."""
    x = in_rows(x, axes)
    dy = as_laid_out(dy, x)
    length = math.prod(x.shape[-axes:])
    sets = x.numel() // length
    dx = torch.empty_like(x)
    extra = x if dtotal is None else as_laid_out(dtotal, x)
    flags = {"CENTRED": mean.numel() > 0, "WEIGHT": weight is not None, "EXTRA": dtotal is not None}
    gamma = x if weight is None else weight.contiguous()
    tile = plan.in_registers(sets, 1, length, plan.BACKWARD_TILE if weight is None else plan.SUMMING_TILE)
    if tile is not None and not plan.shared(sets, length, x.itemsize, x.device):
        warps = plan.warps(tile.rows * tile.block, 8)  # the sums take registers too
        programs = min(tile.tiles, plan.multiprocessors(x.device) * max(1, 32 // warps))
        sums = _scratch(x, 2, programs, length) if weight is not None else _scratch(x, 2, 0)
        launch(
            rows.backward, programs, warps, x, dy, extra, mean, rstd, gamma, dx, sums, programs * length,
            sets, 1, length, 1, tile.tiles,
            BY_ROW=False, SUM_WEIGHT=weight is not None, SUM_BIAS=bias, **flags, **tile.constants,
        )  # fmt: skip
        return dx, *_parameter_gradients(sums, weight, bias)
    drift, count = _scratch(x, sets), 1  # Σ x̂ of each row, or its mean
    if plan.shared(sets, length, x.itemsize, x.device):
        how = plan.over_sets(sets, 1, 1, 1, length, x.device)
        of_rows = _sums(
            x, dy, mean, rstd, rstd, gamma, how, 1, 0, 1, 0.0,
            CENTRED=flags["CENTRED"], BY_ROW=False, WEIGHT=flags["WEIGHT"], FROM_VAR=False,
        )  # fmt: skip
        if flags["CENTRED"]:
            of_rows = _recentred(of_rows, sets, length)
        drift, count = of_rows[2], length
        sizes = (sets, length, 1, sets, 1, 0)
        _apply_backward(
            x, dy, extra, mean, rstd, gamma, of_rows[0], of_rows[1], of_rows[2], dx, 1, sizes,
            length, 0.0, COLUMNS=False, ELEMENT=True, FROM_VAR=False, OWN=True, PER_CHANNEL=False, **flags,
        )  # fmt: skip
    else:
        launch(
            rows.backward_long, sets, 8, x, dy, extra, mean, rstd, gamma, dx, drift, rstd, 0,
            sets, 1, length, 1,
            BY_ROW=False, SUM_WEIGHT=False, SUM_BIAS=False, **flags, **plan.loop(1, length),
        )  # fmt: skip
    if weight is None:
        return dx, *_parameter_gradients(rstd, None, bias)
    sums = _sums(
        x, dy, mean, rstd, drift, gamma, plan.over_columns(1, sets, length, x.device), 1, 0, count, 0.0,
        CENTRED=flags["CENTRED"], BY_ROW=True, WEIGHT=False, FROM_VAR=False,
    )  # fmt: skip
    return dx, *_parameter_gradients(sums, weight, bias)


@layer_norm_backward.register_fake
def _(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: bool, axes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(in_rows(x, axes)), *_fake_gradients(x, weight, bias)


# GroupNorm, InstanceNorm, BatchNorm: (N, C, *), with γ and β per channel


@torch.library.custom_op(
    "normtutor::channel_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def channel_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardize each sample's ``groups`` groups of channels; with 0 groups each channel over the batch.

    Returns:
        y; mean, rstd and variance, (N · groups,) each, or (C,).
    """
    x = in_planes(x)
    n, c, s = _sizes(x)
    sets = n * groups or c
    y = torch.empty_like(x)
    mean, rstd, var = (_scratch(x, sets) for _ in range(3))
    flags = {"CENTRED": True, "WEIGHT": weight is not None, "BIAS": bias is not None}
    weight, bias = (x if p is None else p.contiguous() for p in (weight, bias))
    how = _reduction(x, groups)
    if how is None:
        per_set = c // groups
        most = plan.FORWARD_TILE if per_set == 1 else plan.JOINT_TILE
        tile = plan.in_registers(sets, per_set, s, most)
        flags |= {"RESIDUAL": False, "BY_ROW": True, "VAR": True}
        _rows_forward(tile, (x, x, weight, bias, y, y, mean, rstd, var), (sets, per_set, s, c), eps, flags)
        return y, mean, rstd, var
    per_set = c // groups if how.columns and groups else 1
    own = groups if how.columns and groups else how.results
    low = _statistics(x, how, mean, rstd, var, own, per_set, eps, True)
    blocks_, sizes = _places(x, groups, how.columns)
    _apply(
        x, mean, low, rstd, weight, bias, y, blocks_, sizes, eps, COLUMNS=how.columns, ELEMENT=False, **flags
    )
    return y, mean, rstd, var


@channel_norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = in_planes(x)
    sets = x.size(0) * groups if groups else x.size(1)
    return torch.empty_like(x), _scratch(x, sets), _scratch(x, sets), _scratch(x, sets)


@torch.library.custom_op(
    "normtutor::channel_norm_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, bool bias, int groups) "
    "-> (Tensor, Tensor, Tensor)",
)
def channel_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: bool, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """∂x, ∂γ and ∂β; those two empty where there is no such parameter."""
    x = in_planes(x)
    dy = as_laid_out(dy, x)
    n, c, s = _sizes(x)
    dx = torch.empty_like(x)
    gamma = x if weight is None else weight.contiguous()
    flags = {"CENTRED": True, "WEIGHT": weight is not None, "EXTRA": False}
    how = _reduction(x, groups)
    if how is None:
        per_set, sets = c // groups, n * groups
        sums = _scratch(x, 2, n * c)
        pointers = (x, dy, x, mean, rstd, gamma, dx, sums, n * c, sets, per_set, s, c)
        flags |= {"BY_ROW": True, "SUM_WEIGHT": weight is not None, "SUM_BIAS": bias}
        tile = plan.in_registers(sets, per_set, s, plan.BACKWARD_TILE)
        if tile is not None:
            launch(rows.backward, tile.tiles, tile.warps, *pointers, tile.tiles, **flags, **tile.constants)
        else:
            drift = _scratch(x, sets)
            with_drift = (*pointers[:7], drift, *pointers[7:])
            launch(rows.backward_long, sets, 8, *with_drift, **flags, **plan.loop(per_set, s))
            terms = sums.view(2, sets, per_set)
            terms[1].addcmul_(terms[0], drift[:, None], value=-1)
        return dx, *_parameter_gradients(sums.view(2, n, c), weight, bias)
    blocks_, sizes = _places(x, groups, how.columns)
    per_channel = not groups or groups == c
    if groups and not how.columns:  # the parameters need the sums of each plane, not of each set
        how = plan.over_sets(n * c, 1, 1, 1, s, x.device)
    count = x.numel() // mean.numel()
    sums = _sums(
        x, dy, mean, rstd, rstd, gamma, how, c // groups if groups else 1, sizes[-1], 1, 0.0,
        CENTRED=True, BY_ROW=False, WEIGHT=False, FROM_VAR=False,
    ).view(3, -1, c)  # fmt: skip
    sums = _recentred(sums, groups or c, count)
    of_sets = sums if per_channel else _over_groups(sums, weight, groups)
    _apply_backward(
        x, dy, x, mean, rstd, gamma, of_sets[0], of_sets[1], of_sets[2], dx, blocks_, sizes, count, 0.0,
        COLUMNS=how.columns, ELEMENT=False, FROM_VAR=False, OWN=True, PER_CHANNEL=per_channel, **flags,
    )  # fmt: skip
    return dx, *_parameter_gradients(sums, weight, bias)


@channel_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: bool, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(in_planes(x)), *_fake_gradients(x, weight, bias)


@torch.library.custom_op(
    "normtutor::channel_norm_by",
    mutates_args=(),
    schema="(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps) -> Tensor",
)
def channel_norm_by(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """γ (x − mean) / √(var + ε) + β, everything (C,)."""
    x = in_planes(x)
    y = torch.empty_like(x)
    blocks_, sizes = _places(x, 0, _columns(x))
    flags = {"WEIGHT": weight is not None, "BIAS": bias is not None}
    weight, bias = (x if p is None else p.contiguous() for p in (weight, bias))
    launch(
        blocks.apply, _programs(blocks_, sizes), 8, x, mean.contiguous(), x, var.contiguous(), weight, bias,
        y, *sizes, eps, COLUMNS=_columns(x), ELEMENT=False, CENTRED=True, FROM_VAR=True, **flags,
        **plan.elementwise(sizes[1]),
    )  # fmt: skip
    return y


@channel_norm_by.register_fake
def _(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.empty_like(in_planes(x))


@torch.library.custom_op(
    "normtutor::channel_norm_by_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? weight, bool bias, float eps) "
    "-> (Tensor, Tensor, Tensor)",
)
def channel_norm_by_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """∂x, ∂γ and ∂β; the statistics are constants."""
    x = in_planes(x)
    dy = as_laid_out(dy, x)
    dx = torch.empty_like(x)
    gamma = x if weight is None else weight.contiguous()
    mean, var = mean.contiguous(), var.contiguous()
    blocks_, sizes = _places(x, 0, _columns(x))
    _apply_backward(
        x, dy, x, mean, var, gamma, var, var, var, dx, blocks_, sizes, 1, eps,
        COLUMNS=_columns(x), ELEMENT=False, CENTRED=True, FROM_VAR=True, OWN=False, PER_CHANNEL=True,
        WEIGHT=weight is not None, EXTRA=False,
    )  # fmt: skip
    if weight is None:
        return dx, *_parameter_gradients(_scratch(x, 0), None, bias)
    how = _reduction(x, 0)
    assert how is not None
    sums = _sums(
        x, dy, mean, var, var, gamma, how, 1, sizes[-1], 1, eps,
        CENTRED=True, BY_ROW=False, WEIGHT=False, FROM_VAR=True,
    )  # fmt: skip
    return dx, *_parameter_gradients(sums, weight, bias)


@channel_norm_by_backward.register_fake
def _(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(in_planes(x)), *_fake_gradients(x, weight, bias)


# Launches that several operators share


def _rows_forward(
    tile: plan.Tile | None, pointers: tuple[Tensor, ...], sizes: tuple[int, ...], eps: float, flags: Any
) -> None:
    if tile is not None:
        launch(rows.forward, tile.tiles, tile.warps, *pointers, *sizes, eps, **flags, **tile.constants)
    else:
        sets, per_set, length, _ = sizes
        loop = plan.loop(per_set, length)
        launch(rows.forward_long, sets, 8, *pointers, *sizes, eps, BLOCK=plan.BLOCK_TILE, **flags, **loop)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """N, C and the number of positions."""
    return x.size(0), x.size(1), math.prod(x.shape[2:])


def _columns(x: Tensor) -> bool:
    """Whether the channels lie side by side: channels_last, or one position."""
    return not x.is_contiguous() or math.prod(x.shape[2:]) == 1


def _reduction(x: Tensor, groups: int) -> plan.Reduction | None:
    """How the statistics are reduced over several programs; None where each program has whole sets."""
    n, c, s = _sizes(x)
    if _columns(x):
        return plan.over_columns(n if groups else 1, s if groups else n * s, c, x.device)
    if not groups:
        return plan.over_sets(c, n, c, 1, s, x.device)
    per_set = c // groups
    if plan.shared(n * groups, per_set * s, x.itemsize, x.device):
        return plan.over_sets(n * groups, per_set, 1, per_set, s, x.device)
    return None


def _places(x: Tensor, groups: int, columns: bool) -> tuple[int, tuple[int, ...]]:
    """Blocks, and the arguments of ``blocks.tile`` and ``blocks.places``."""
    n, c, s = _sizes(x)
    per_statistic = c // groups if groups else 1
    if columns and groups:
        return n, (s, c, c, 1, per_statistic, groups)
    if columns:
        return 1, (n * s, c, c, 1, 1, c)
    return 1, (n * c, s, c, n * c if groups else c, per_statistic, 0)


def _programs(blocks_: int, sizes: tuple[int, ...]) -> int:
    tile = plan.elementwise(sizes[1])
    return blocks_ * plan.cdiv(sizes[0], tile["ROWS"]) * plan.cdiv(sizes[1], tile["WIDTH"])


def _statistics(
    x: Tensor, how: plan.Reduction, mean: Tensor, rstd: Tensor, var: Tensor, sets: int, per_set: int,
    eps: float, centred: bool,
) -> Tensor:  # fmt: skip
    """Mean, rstd and variance of every set; ``sets`` to a block, of ``per_set`` columns each.

    Returns:
        What rounding took off the means, which the forward pass can use and the backward pass need not keep.
    """
    low = torch.empty_like(mean)
    chunks = how.chunks
    count, part, part_low, m2 = _scratch(x, 4, how.blocks, chunks, how.results)
    launch(
        blocks.partial_statistics, how.programs, how.warps, x, count, part, part_low, m2, *how.arguments,
        CENTRED=centred, **how.constants,
    )  # fmt: skip
    high = plan.power_of_two(chunks)
    wide = max(1, min(plan.power_of_two(per_set if per_set > 1 else sets), plan.BLOCK_TILE // high, 64))
    programs = how.blocks * (sets if per_set > 1 else plan.cdiv(sets, wide))
    launch(
        blocks.combine, programs, plan.warps(high * wide, 4),
        count, part, part_low, m2, mean, low, rstd, var, chunks, how.results, per_set, sets, eps,
        CHUNKS=high, WIDTH=wide, JOINT=per_set > 1, CENTRED=centred,
    )  # fmt: skip
    return low


def _apply(
    x: Tensor, mean: Tensor, low: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, y: Tensor, blocks_: int,
    sizes: tuple[int, ...], eps: float, **flags: bool,
) -> None:  # fmt: skip
    launch(
        blocks.apply, _programs(blocks_, sizes), 8, x, mean, low, rstd, weight, bias, y, *sizes, eps,
        FROM_VAR=False, **flags, **plan.elementwise(sizes[1]),
    )  # fmt: skip


def _apply_backward(
    x: Tensor, dy: Tensor, extra: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, sum_g: Tensor,
    sum_gx: Tensor, sum_x: Tensor, dx: Tensor, blocks_: int, sizes: tuple[int, ...], count: int, eps: float,
    **flags: bool,
) -> None:  # fmt: skip
    launch(
        blocks.apply_backward, _programs(blocks_, sizes), 8, x, dy, extra, mean, rstd, weight, sum_g, sum_gx,
        sum_x, dx, *sizes, count, eps, **flags, **plan.elementwise(sizes[1]),
    )  # fmt: skip


def _sums(
    x: Tensor, dy: Tensor, mean: Tensor, rstd: Tensor, drift: Tensor, weight: Tensor, how: plan.Reduction,
    per_statistic: int, statistics: int, count: int, eps: float, **flags: bool,
) -> Tensor:  # fmt: skip
    """Σ ∂y, Σ ∂y x̂ and, unless by row, Σ x̂: [3, blocks, columns or sets]."""
    sums = _scratch(x, 2 if flags["BY_ROW"] else 3, how.blocks, how.chunks, how.results)
    launch(
        blocks.partial_sums, how.programs, how.warps, x, dy, mean, rstd, drift, weight, sums,
        sums[0].numel(), *how.arguments, per_statistic, statistics, count, eps, **flags, **how.constants,
    )  # fmt: skip
    return sums.sum(2)


def _recentred(sums: Tensor, groups: int, count: int) -> Tensor:
    """[3, blocks, channels] Σ ∂y, Σ ∂y x̂, Σ x̂ with x̂'s mean over its set, count elements, taken off x̂.

    That mean is 0 but for the rounding of the mean that was kept, which a large |mean| / σ makes felt.
    """
    of_bias, of_weight, of_x = sums.unflatten(2, (groups, -1))
    drift = of_x.sum(2, keepdim=True) if of_x.size(2) > 1 else of_x
    of_weight.addcmul_(of_bias, drift.expand_as(of_bias), value=-1 / count)
    return sums


def _over_groups(sums: Tensor, weight: Tensor | None, groups: int) -> Tensor:
    """Σ γ ∂y, Σ γ ∂y x̂ and Σ x̂ of each sample's groups, [3, N · groups], from those of its channels."""
    weighted = sums if weight is None else torch.cat([sums[:2] * weight.float(), sums[2:]])
    found: Tensor = weighted.unflatten(2, (groups, -1)).sum(3).flatten(1)
    return found


# Gradients


def _keep_layer_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, residual, weight, bias, ctx.axes, _, ctx.centred = inputs
    _, total, mean, rstd = output
    ctx.bias, ctx.residual = bias is not None, residual is not None
    ctx.save_for_backward(x if residual is None else total, mean, rstd, weight)
    ctx.mark_non_differentiable(mean, rstd, *(() if ctx.residual else (total,)))
    ctx.set_materialize_grads(False)


def _layer_norm_gradients(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, *_: object) -> Any:
    x, mean, rstd, weight = ctx.saved_tensors
    if dy is None:  # only the sum was used
        return dtotal, dtotal if ctx.residual else None, *(None,) * 5
    dx, dw, db = layer_norm_backward(dy, dtotal, x, mean, rstd, weight, ctx.bias, ctx.axes)
    found = (dx, dx if ctx.residual else None, dw if weight is not None else None, db if ctx.bias else None)
    return *found, None, None, None


def _keep_channel_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.groups, _ = inputs
    _, mean, rstd, var = output
    ctx.bias = bias is not None
    ctx.save_for_backward(x, mean, rstd, weight)
    ctx.mark_non_differentiable(mean, rstd, var)
    ctx.set_materialize_grads(False)


def _channel_norm_gradients(ctx: Any, dy: Tensor | None, *_: object) -> Any:
    x, mean, rstd, weight = ctx.saved_tensors
    if dy is None:
        return (None,) * 5
    dx, dw, db = channel_norm_backward(dy, x, mean, rstd, weight, ctx.bias, ctx.groups)
    return dx, dw if weight is not None else None, db if ctx.bias else None, None, None


def _keep_channel_norm_by(ctx: Any, inputs: Any, output: Any) -> None:
    x, mean, var, weight, bias, ctx.eps = inputs
    ctx.bias = bias is not None
    ctx.save_for_backward(x, mean, var, weight)


def _channel_norm_by_gradients(ctx: Any, dy: Tensor) -> Any:
    x, mean, var, weight = ctx.saved_tensors
    dx, dw, db = channel_norm_by_backward(dy, x, mean, var, weight, ctx.bias, ctx.eps)
    return dx, None, None, dw if weight is not None else None, db if ctx.bias else None, None


def _no_second_gradient(ctx: Any, *_: object) -> Any:
    raise NotImplementedError(
        "normtutor's fused kernels have no second derivative: use the same layer of normtutor.layers "
        "where you differentiate twice"
    )


layer_norm.register_autograd(_layer_norm_gradients, setup_context=_keep_layer_norm)
channel_norm.register_autograd(_channel_norm_gradients, setup_context=_keep_channel_norm)
channel_norm_by.register_autograd(_channel_norm_by_gradients, setup_context=_keep_channel_norm_by)
for _backward in (layer_norm_backward, channel_norm_backward, channel_norm_by_backward):
    _backward.register_autograd(_no_second_gradient)
