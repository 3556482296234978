"""Triton kernels for index sets that many programs share: reduced in two stages, then normalized.

x is a matrix of rows of ``length`` adjacent elements, and reduced over a rectangle of it:

* COLUMNS: x is channels_last, (N, *, C): a row is a position, and each column, a channel, is reduced over the
  rows of a block (a sample for GroupNorm and InstanceNorm, everything for BatchNorm).
* else: x is contiguous, (N, C, *): a row is a plane, and a set is ``per_set`` rows, ``step`` rows apart
  (BatchNorm: N planes, C apart), reduced over their elements too.

The first stage writes one partial result per chunk, the second combines them in a fixed order, so
results are the same every time. All arithmetic is in float32; row offsets have 64 bits.
"""

import triton
import triton.language as tl


@triton.jit
def reduced(x, COLUMNS: tl.constexpr):
    """Sum of a tile over its rows, [1, WIDTH], or over everything, [1, 1]."""
    found = tl.sum(x, axis=0, keep_dims=True)
    if not COLUMNS:
        found = tl.sum(found, axis=1, keep_dims=True)
    return found


@triton.jit
def rectangle(
    per_set, step, next_set, length, row_chunks, row_chunk, col_chunks, col_chunk, across,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What this program reduces: chunk, first row, its rows, its columns, and where its result belongs.

    ``across`` programs lie side by side: tiles of WIDTH columns (COLUMNS), else sets. With COLUMNS a block is
    ``per_set`` rows; else the rows of set k start at k · ``next_set``.
    """
    program = tl.program_id(0)
    side, chunk = program % across, program // across
    block = chunk // (row_chunks * col_chunks)
    row_start = chunk // col_chunks % row_chunks * row_chunk
    row_end = tl.minimum(row_start + row_chunk, per_set)
    if COLUMNS:
        first = block * per_set
        col_start = side * WIDTH
        col_end = tl.minimum(col_start + WIDTH, length)
    else:
        first = side * next_set
        col_start = chunk % col_chunks * col_chunk
        col_end = tl.minimum(col_start + col_chunk, length)
    return side, chunk, block, first, row_start, row_end, col_start, col_end


@triton.jit
def partial_statistics(
    x, count, mean, low, m2,
    per_set, step, next_set, length, row_chunks, row_chunk, col_chunks, col_chunk, across,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """First stage: number, mean and sum of squared deviations of each chunk, [chunks, columns or sets].

    ``low`` is what rounding takes off the mean. Not CENTRED: the mean is 0. Deviations are taken from
    the mean of the chunk's first tile, near enough to its own for the correction by their squared sum to be
    small.
    """
    side, chunk, _, first, row_start, row_end, col_start, col_end = rectangle(
        per_set, step, next_set, length, row_chunks, row_chunk, col_chunks, col_chunk, across, COLUMNS, WIDTH
    )
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    pivot = 0.0
    if CENTRED:
        inside = (row_start + r < row_end) & (col_start + c < col_end)
        at = (first + (row_start + r) * step).to(tl.int64) * length + col_start + c
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        known = tl.minimum(row_end - row_start, ROWS)
        if not COLUMNS:
            known *= tl.minimum(col_end - col_start, WIDTH)
        pivot = reduced(value, COLUMNS) / known
    sums, squares = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    for p in range(row_start, row_end, ROWS):
        for start in range(col_start, col_end, WIDTH):
            inside = (p + r < row_end) & (start + c < col_end)
            at = (first + (p + r) * step).to(tl.int64) * length + start + c
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value - pivot, 0.0)
            sums += value
            squares += value * value
    n = row_end - row_start
    if COLUMNS:
        out, used = chunk.to(tl.int64) * length + col_start + c, col_start + c < col_end
    else:
        n *= col_end - col_start
        out = chunk.to(tl.int64) * across + side + tl.zeros([1, 1], tl.int32)
        used = tl.full([1, 1], True, tl.int1)
    deviation = reduced(squares, COLUMNS)
    if CENTRED:
        shift = reduced(sums, COLUMNS) / n
        deviation = tl.maximum(deviation - n * shift * shift, 0.0)
        tl.store(mean + out, pivot + shift, mask=used)
        tl.store(low + out, pivot - (pivot + shift) + shift, mask=used)
    tl.store(m2 + out, deviation, mask=used)
    tl.store(count + out, tl.zeros_like(deviation) + n, mask=used)


@triton.jit
def combine(
    count, mean, low, m2, out_mean, out_low, out_rstd, out_var,
    chunks, columns, per_set, sets, eps,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr, JOINT: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """Second stage: mean, rstd and variance of each set from its chunks (Chan, Golub & LeVeque 1983).

    A block's partial results are [chunks, columns]. A set is all chunks of one column (a program takes
    WIDTH of them), or (JOINT) of ``per_set`` adjacent columns (a program takes one set). ``out_low`` is what
    rounding takes off the mean.
    """
    program = tl.program_id(0)
    k, c = tl.arange(0, CHUNKS)[:, None], tl.arange(0, WIDTH)[None, :]
    if JOINT:
        block, set_ = program // sets, program % sets
        first, end = set_ * per_set, (set_ + 1) * per_set
        result, used = program + tl.zeros([1, 1], tl.int32), tl.full([1, 1], True, tl.int1)
    else:
        across = (columns + WIDTH - 1) // WIDTH
        block, first = program // across, program % across * WIDTH
        end = tl.minimum(first + WIDTH, columns)
        result, used = block * columns + first + c, first + c < columns
    base = block.to(tl.int64) * chunks * columns
    n = tl.zeros([1, 1] if JOINT else [1, WIDTH], tl.float32)
    shift, deviation = n, n
    pivot = 0.0
    if CENTRED:  # a mean to take the others from, so that their average keeps its digits
        if JOINT:
            pivot = tl.load(mean + base + first)
        else:
            pivot = tl.load(mean + base + first + c, mask=used, other=0.0)
    for start in range(first, end, WIDTH):
        inside = (k < chunks) & (start + c < end)
        at = base + k * columns + start + c
        counted = tl.load(count + at, mask=inside, other=0.0)
        n += total(counted, JOINT)
        if CENTRED:
            apart = tl.load(mean + at, mask=inside, other=0.0) - pivot
            apart += tl.load(low + at, mask=inside, other=0.0)
            shift += total(counted * apart, JOINT)
    n = tl.maximum(n, 1.0)
    shift = shift / n
    for start in range(first, end, WIDTH):
        inside = (k < chunks) & (start + c < end)
        at = base + k * columns + start + c
        deviation += total(tl.load(m2 + at, mask=inside, other=0.0), JOINT)
        if CENTRED:
            apart = tl.load(mean + at, mask=inside, other=0.0) - pivot
            apart += tl.load(low + at, mask=inside, other=0.0) - shift
            counted = tl.load(count + at, mask=inside, other=0.0)
            deviation += total(counted * apart * apart, JOINT)
    variance = deviation / n
    if CENTRED:
        pivot += tl.zeros_like(variance)
        tl.store(out_mean + result, pivot + shift, mask=used)
        tl.store(out_low + result, pivot - (pivot + shift) + shift, mask=used)
    tl.store(out_rstd + result, tl.rsqrt(variance + eps), mask=used)
    tl.store(out_var + result, variance, mask=used)


@triton.jit
def total(x, JOINT: tl.constexpr):
    """Sum over the chunks, [1, WIDTH], or over chunks and columns, [1, 1]."""
    found = tl.sum(x, axis=0, keep_dims=True)
    if JOINT:
        found = tl.sum(found, axis=1, keep_dims=True)
    return found


@triton.jit
def partial_sums(
    x, dy, mean, rstd, drift, weight, sums, size,
    per_set, step, next_set, length, row_chunks, row_chunk, col_chunks, col_chunk, across,
    per_statistic, statistics, n, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, CENTRED: tl.constexpr,
    BY_ROW: tl.constexpr, WEIGHT: tl.constexpr, FROM_VAR: tl.constexpr,
):  # fmt: skip
    """First stage of the backward pass: Σ ∂y, Σ ∂y x̂ and Σ x̂ of each chunk, tables ``size`` apart.

    The statistics belong to column or set k's group k // ``per_statistic`` of the block, ``statistics`` to a
    block. BY_ROW (LayerNorm's ∂γ, a sum over rows) they belong to the row; ``drift`` is its Σ x̂ over ``n``
    elements, 0 but for the mean's rounding, which is taken off, and no third table is made. WEIGHT: ∂y is
    multiplied with γ of the column first (LayerNorm's ∂x). FROM_VAR: ``rstd`` holds the variance.
    """
    side, chunk, block, first, row_start, row_end, col_start, col_end = rectangle(
        per_set, step, next_set, length, row_chunks, row_chunk, col_chunks, col_chunk, across, COLUMNS, WIDTH
    )
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    if COLUMNS:
        at = block * statistics + (col_start + c) // per_statistic
        used = col_start + c < col_end
    else:
        at = side // per_statistic + tl.zeros([1, 1], tl.int32)
        used = tl.full([1, 1], True, tl.int1)
    of_bias, of_weight = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    of_x = tl.zeros([ROWS, WIDTH], tl.float32)
    for p in range(row_start, row_end, ROWS):
        row = first + (p + r) * step
        own, is_own = at, used
        if BY_ROW:
            own, is_own = row, p + r < row_end
        scale = tl.load(rstd + own, mask=is_own, other=0.0).to(tl.float32)
        if FROM_VAR:
            scale = tl.rsqrt(scale + eps)
        centre = 0.0
        if CENTRED:
            centre = tl.load(mean + own, mask=is_own, other=0.0).to(tl.float32)
        low = 0.0
        if CENTRED and BY_ROW:
            low = tl.load(drift + own, mask=is_own, other=0.0) / n
        for start in range(col_start, col_end, WIDTH):
            col = start + c
            inside = (p + r < row_end) & (col < col_end)
            element = row.to(tl.int64) * length + col
            upstream = tl.load(dy + element, mask=inside, other=0.0).to(tl.float32)
            if WEIGHT:
                upstream *= tl.load(weight + col, mask=col < col_end, other=0.0).to(tl.float32)
            x_hat = (tl.load(x + element, mask=inside, other=0.0).to(tl.float32) - centre) * scale - low
            of_bias += upstream
            of_weight += tl.where(inside, upstream * x_hat, 0.0)
            if CENTRED and not BY_ROW:
                of_x += tl.where(inside, x_hat, 0.0)
    if COLUMNS:
        out = chunk.to(tl.int64) * length + col_start + c
    else:
        out = chunk.to(tl.int64) * across + side + tl.zeros([1, 1], tl.int32)
    tl.store(sums + out, reduced(of_bias, COLUMNS), mask=used)
    tl.store(sums + size + out, reduced(of_weight, COLUMNS), mask=used)
    if CENTRED and not BY_ROW:
        tl.store(sums + 2 * size + out, reduced(of_x, COLUMNS), mask=used)


@triton.jit
def tile(rows, length, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """An elementwise program's block, rows in it, and columns; ``rows`` to a block."""
    program = tl.program_id(0)
    across, down = (length + WIDTH - 1) // WIDTH, (rows + ROWS - 1) // ROWS
    block = program // (across * down)
    row = program // across % down * ROWS + tl.arange(0, ROWS)[:, None]
    col = program % across * WIDTH + tl.arange(0, WIDTH)[None, :]
    return block, row, col


@triton.jit
def places(
    block, row, col, rows, length, channels, modulo, per_statistic, statistics,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr,
):  # fmt: skip
    """Where a tile's γ (its channel) and its statistics are, and which of them exist.

    COLUMNS: both go by the column. Else the statistics go by the row, row % ``modulo`` // ``per_statistic``;
    the channel too, row % ``channels``, or by the column (ELEMENT: LayerNorm).
    """
    if COLUMNS:
        channel, known = col, col < length
        at, used = block * statistics + col // per_statistic, col < length
    else:
        at, used = row % modulo // per_statistic, row < rows
        if ELEMENT:
            channel, known = col, col < length
        else:
            channel, known = row % channels, row < rows
    return channel, known, at, used


@triton.jit
def apply(
    x, mean, low, rstd, weight, bias, y,
    rows, length, channels, modulo, per_statistic, statistics, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ELEMENT: tl.constexpr,
    CENTRED: tl.constexpr, FROM_VAR: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """y = γ (x − μ) · rstd + β for given statistics, μ = mean + low. FROM_VAR: ``rstd`` is σ², low is 0."""
    block, row, col = tile(rows, length, ROWS, WIDTH)
    inside = (row < rows) & (col < length)
    channel, known, at, used = places(
        block, row, col, rows, length, channels, modulo, per_statistic, statistics, COLUMNS, ELEMENT
    )
    scale = tl.load(rstd + at, mask=used, other=0.0).to(tl.float32)
    if FROM_VAR:
        scale = tl.rsqrt(scale + eps)
    element = (block * rows + row).to(tl.int64) * length + col
    value = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:  # not folded into one scale and shift: a·x + b cancels where the mean is large
        value -= tl.load(mean + at, mask=used, other=0.0).to(tl.float32)
        if not FROM_VAR:
            value -= tl.load(low + at, mask=used, other=0.0)
    value *= scale
    if WEIGHT:
        value *= tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    tl.store(y + element, value, mask=inside)


@triton.jit
def apply_backward(
    x, dy, extra, mean, rstd, weight, sum_g, sum_gx, sum_x, dx,
    rows, length, channels, modulo, per_statistic, statistics, n, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ELEMENT: tl.constexpr,
    CENTRED: tl.constexpr, FROM_VAR: tl.constexpr, WEIGHT: tl.constexpr, EXTRA: tl.constexpr,
    OWN: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """∂x = (γ ∂y − mean(g) − x̂ · mean(g x̂)) · rstd, or for statistics that are not x's OWN, γ ∂y · rstd.

    ``sum_g``, ``sum_gx`` and ``sum_x`` are the set's Σ γ ∂y, Σ γ ∂y x̂ and Σ x̂ over its n elements, the first
    two without γ where a set has one channel (PER_CHANNEL). The third is 0 but for the mean's rounding.
    """
    block, row, col = tile(rows, length, ROWS, WIDTH)
    inside = (row < rows) & (col < length)
    channel, known, at, used = places(
        block, row, col, rows, length, channels, modulo, per_statistic, statistics, COLUMNS, ELEMENT
    )
    scale = tl.load(rstd + at, mask=used, other=0.0).to(tl.float32)
    if FROM_VAR:
        scale = tl.rsqrt(scale + eps)
    element = (block * rows + row).to(tl.int64) * length + col
    gamma = 1.0
    if WEIGHT:
        gamma = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    result = tl.load(dy + element, mask=inside, other=0.0).to(tl.float32) * gamma
    if OWN:
        factor = 1.0
        if PER_CHANNEL:
            factor = gamma
        x_hat = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            x_hat = (x_hat - tl.load(mean + at, mask=used, other=0.0)) * scale
            x_hat -= tl.load(sum_x + at, mask=used, other=0.0) / n
            result -= tl.load(sum_g + at, mask=used, other=0.0) * factor / n
        else:
            x_hat *= scale
        result -= x_hat * (tl.load(sum_gx + at, mask=used, other=0.0) * factor / n)
    result *= scale
    if EXTRA:
        result += tl.load(extra + element, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + element, result, mask=inside)
