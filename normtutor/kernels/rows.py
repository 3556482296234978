"""Triton kernels in which one program owns whole index sets: x is read from memory once.

An index set is ``per_set`` adjacent rows of ``length`` adjacent elements: one row for LayerNorm and RMSNorm
(the last axes) and for InstanceNorm (a channel's plane), C/G planes for GroupNorm. A tile has shape
[ROWS, BLOCK], and holds whole rows: either ROWS sets of one row each, or (JOINT) the rows of one set.

γ and β belong to the elements of a row (LayerNorm, RMSNorm), or to the row, whose channel is its number
modulo ``channels`` (BY_ROW). All arithmetic is in float32; row offsets have 64 bits.
"""

# Triton reads the annotations, so they must be values: no `from __future__ import annotations` here.
import triton
import triton.language as tl


@triton.jit
def total_over_set(x, JOINT: tl.constexpr):
    """Sum of each row, [ROWS, 1], or of all rows of the one set, [1, 1]: both broadcast against the tile."""
    found = tl.sum(x, axis=1, keep_dims=True)
    if JOINT:
        found = tl.sum(found, axis=0, keep_dims=True)
    return found


@triton.jit
def load_sum(x, residual, at, inside, RESIDUAL: tl.constexpr):
    """x, or x + residual rounded as it is stored, so that the backward pass sees what was normalized."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def load_affine(
    weight, bias, row, col, here, length, channels,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    """γ and β of a tile, broadcasting against it; 1 and 0 where there are none."""
    gamma, beta = 1.0, 0.0
    if BY_ROW:
        at, inside = row % channels, here
    else:
        at, inside = col, col < length
    if WEIGHT:
        gamma = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        beta = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    return gamma, beta


@triton.jit
def forward(
    x, residual, weight, bias, y, total, mean, rstd, var,
    sets, per_set, length, channels, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, JOINT: tl.constexpr, CENTRED: tl.constexpr,
    RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BY_ROW: tl.constexpr,
    VAR: tl.constexpr,
):  # fmt: skip
    """Standardize whole sets that stay in registers: two-pass variance, x read once and y written once."""
    program = tl.program_id(0)
    r, col = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    if JOINT:
        row, here = program * per_set + r, r < per_set
        set_, is_set = program + tl.zeros([1, 1], tl.int32), tl.full([1, 1], True, tl.int1)
    else:
        row = program * ROWS + r
        here = row < sets
        set_, is_set = row, here
    inside = here & (col < length)
    at = row.to(tl.int64) * length + col
    value = load_sum(x, residual, at, inside, RESIDUAL)
    if RESIDUAL:
        tl.store(total + at, value, mask=inside)
    n = per_set * length
    if CENTRED:
        # Shifted by the set's first element, an exact subtraction where the mean is large, nothing cancels.
        pivot = load_sum(x, residual, set_.to(tl.int64) * n, is_set, RESIDUAL)
        value = tl.where(inside, value - pivot, 0.0)
        shift = total_over_set(value, JOINT) / n
        value = tl.where(inside, value - shift, 0.0)  # masked lanes are not 0 after a subtraction
        tl.store(mean + set_, pivot + shift, mask=is_set)
    variance = total_over_set(value * value, JOINT) / n
    scale = tl.rsqrt(variance + eps)
    tl.store(rstd + set_, scale, mask=is_set)
    if VAR:
        tl.store(var + set_, variance, mask=is_set)
    gamma, beta = load_affine(weight, bias, row, col, here, length, channels, WEIGHT, BIAS, BY_ROW)
    tl.store(y + at, value * scale * gamma + beta, mask=inside)


@triton.jit
def forward_long(
    x, residual, weight, bias, y, total, mean, rstd, var,
    sets, per_set, length, channels, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr,
    RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BY_ROW: tl.constexpr,
    VAR: tl.constexpr,
):  # fmt: skip
    """Standardize one set that does not fit the registers: x is read twice, from L2 if it is still there."""
    set_ = tl.program_id(0).to(tl.int64)
    n = per_set * length
    first = set_ * n
    lane = tl.arange(0, BLOCK)
    # Sums of x − pivot. The pivot is the mean of the first block, so it lies within σ √(n / BLOCK) of the
    # set's mean: the correction shift² below is small, and what cancels in it is bounded by 1 + n / BLOCK.
    pivot = 0.0
    if CENTRED:
        value = load_sum(x, residual, first + lane, lane < n, RESIDUAL)
        pivot = tl.sum(value, axis=0) / tl.minimum(n, BLOCK)
    sums, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        inside = start + lane < n
        value = load_sum(x, residual, first + start + lane, inside, RESIDUAL)
        value = tl.where(inside, value - pivot, 0.0)
        sums += value
        squares += value * value
    variance = tl.sum(squares, axis=0) / n
    shift = 0.0
    if CENTRED:
        shift = tl.sum(sums, axis=0) / n
        variance = tl.maximum(variance - shift * shift, 0.0)
        tl.store(mean + set_, pivot + shift)
    scale = tl.rsqrt(variance + eps)
    tl.store(rstd + set_, scale)
    if VAR:
        tl.store(var + set_, variance)
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    for p in range(0, per_set, ROWS):
        row = set_ * per_set + p + r
        for start in range(0, length, WIDTH):
            col = start + c
            here = p + r < per_set
            within = here & (col < length)
            at = row * length + col
            element = load_sum(x, residual, at, within, RESIDUAL)
            if RESIDUAL:
                tl.store(total + at, element, mask=within)
            gamma, beta = load_affine(weight, bias, row, col, here, length, channels, WEIGHT, BIAS, BY_ROW)
            tl.store(y + at, (element - pivot - shift) * scale * gamma + beta, mask=within)


@triton.jit
def backward(
    x, dy, extra, mean, rstd, weight, dx, sums, size,
    sets, per_set, length, channels, tiles,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, JOINT: tl.constexpr, CENTRED: tl.constexpr,
    EXTRA: tl.constexpr, WEIGHT: tl.constexpr, BY_ROW: tl.constexpr,
    SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
):  # fmt: skip
    """∂x of sets that stay in registers, and the terms of ∂β and ∂γ: x and ∂y are read once.

    With g = γ ∂y and means over the set: ∂x = (g − mean(g) − x̂ · mean(g x̂)) · rstd. The kept mean is rounded;
    what that moves x̂ by, its mean over the set, which should be 0, is subtracted again. A program takes every
    num_programs-th tile. ``sums`` is two tables, ``size`` apart: Σ ∂y and Σ ∂y x̂ of each row (BY_ROW), or of
    each column over the program's rows; added up in a fixed order they are ∂β and ∂γ.
    """
    program = tl.program_id(0)
    r, col = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    if SUM_WEIGHT and not BY_ROW:
        of_weight = tl.zeros([ROWS, BLOCK], tl.float32)
    if SUM_BIAS and not BY_ROW:
        of_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    n = per_set * length
    for tile in range(program, tiles, tl.num_programs(0)):
        if JOINT:
            row, here = tile * per_set + r, r < per_set
            set_, is_set = tile + tl.zeros([1, 1], tl.int32), tl.full([1, 1], True, tl.int1)
        else:
            row = tile * ROWS + r
            here = row < sets
            set_, is_set = row, here
        inside = here & (col < length)
        at = row.to(tl.int64) * length + col
        x_hat = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        upstream = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + set_, mask=is_set, other=0.0)
        if CENTRED:
            x_hat -= tl.load(mean + set_, mask=is_set, other=0.0)
        x_hat = tl.where(inside, x_hat * scale, 0.0)
        gamma, _ = load_affine(weight, weight, row, col, here, length, channels, WEIGHT, False, BY_ROW)
        g = upstream * gamma
        mean_gx = total_over_set(g * x_hat, JOINT) / n
        mean_g = 0.0
        if CENTRED:  # three sums that need not wait for each other
            mean_g = total_over_set(g, JOINT) / n
            drift = total_over_set(x_hat, JOINT) / n
            mean_gx -= drift * mean_g
            x_hat -= drift
        result = (g - mean_g - x_hat * mean_gx) * scale
        if EXTRA:  # what reaches the sum x + residual by another way than through the normalization
            result += tl.load(extra + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, result, mask=inside)
        if BY_ROW:
            if SUM_BIAS:
                tl.store(sums + row, tl.sum(upstream, axis=1, keep_dims=True), mask=here)
            if SUM_WEIGHT:
                of_row = tl.sum(upstream * x_hat, axis=1, keep_dims=True)
                tl.store(sums + size + row, of_row, mask=here)
        else:
            if SUM_BIAS:
                of_bias += upstream
            if SUM_WEIGHT:
                of_weight += upstream * x_hat
    if not BY_ROW:
        at = program.to(tl.int64) * length + col
        if SUM_BIAS:
            tl.store(sums + at, tl.sum(of_bias, axis=0, keep_dims=True), mask=col < length)
        if SUM_WEIGHT:
            tl.store(sums + size + at, tl.sum(of_weight, axis=0, keep_dims=True), mask=col < length)


@triton.jit
def backward_long(
    x, dy, extra, mean, rstd, weight, dx, drift, sums, size,
    sets, per_set, length, channels,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CENTRED: tl.constexpr, EXTRA: tl.constexpr,
    WEIGHT: tl.constexpr, BY_ROW: tl.constexpr, SUM_WEIGHT: tl.constexpr, SUM_BIAS: tl.constexpr,
):  # fmt: skip
    """:func:`backward` of one set that does not fit the registers: x and ∂y are read twice.

    The terms of ∂β and ∂γ only BY_ROW, and before the set's ``drift``, the mean of x̂ over it, is known: that
    is stored, to be taken off. For a long LayerNorm the reduction over columns makes them.
    """
    set_ = tl.program_id(0).to(tl.int64)
    n = per_set * length
    scale = tl.load(rstd + set_)
    centre = 0.0
    if CENTRED:
        centre = tl.load(mean + set_)
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    mean_g = tl.zeros([1, 1], tl.float32)
    mean_gx = tl.zeros([1, 1], tl.float32)
    drifted = tl.zeros([1, 1], tl.float32)
    for p in range(0, per_set, ROWS):
        here = p + r < per_set
        row = set_ * per_set + p + r
        of_bias = tl.zeros([ROWS, WIDTH], tl.float32)
        of_weight = tl.zeros([ROWS, WIDTH], tl.float32)
        of_x = tl.zeros([ROWS, WIDTH], tl.float32)
        for start in range(0, length, WIDTH):
            col = start + c
            inside = here & (col < length)
            at = row * length + col
            x_hat = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            x_hat = tl.where(inside, (x_hat - centre) * scale, 0.0)
            upstream = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            if WEIGHT and not BY_ROW:
                upstream *= tl.load(weight + col, mask=col < length, other=0.0).to(tl.float32)
            of_bias += upstream
            of_weight += upstream * x_hat
            of_x += x_hat
        row_bias = tl.sum(of_bias, axis=1, keep_dims=True)
        row_weight = tl.sum(of_weight, axis=1, keep_dims=True)
        if BY_ROW:
            if SUM_BIAS:
                tl.store(sums + row, row_bias, mask=here)
            if SUM_WEIGHT:
                tl.store(sums + size + row, row_weight, mask=here)
            if WEIGHT:
                gamma = tl.load(weight + row % channels, mask=here, other=0.0).to(tl.float32)
                row_bias *= gamma
                row_weight *= gamma
        mean_g += tl.sum(row_bias, axis=0, keep_dims=True) / n
        mean_gx += tl.sum(row_weight, axis=0, keep_dims=True) / n
        drifted += tl.sum(tl.sum(of_x, axis=1, keep_dims=True), axis=0, keep_dims=True) / n
    if CENTRED:
        tl.store(drift + set_ + tl.zeros([1, 1], tl.int32), drifted)
        mean_gx -= drifted * mean_g
    else:
        mean_g = tl.zeros([1, 1], tl.float32)
        drifted = tl.zeros([1, 1], tl.float32)
    for p in range(0, per_set, ROWS):
        here = p + r < per_set
        row = set_ * per_set + p + r
        for start in range(0, length, WIDTH):
            col = start + c
            inside = here & (col < length)
            at = row * length + col
            x_hat = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - centre) * scale - drifted
            upstream = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            gamma, _ = load_affine(weight, weight, row, col, here, length, channels, WEIGHT, False, BY_ROW)
            result = (upstream * gamma - mean_g - x_hat * mean_gx) * scale
            if EXTRA:
                result += tl.load(extra + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx + at, result, mask=inside)
