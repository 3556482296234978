"""Normalization as pure functions, with the names and signatures of ``torch.nn.functional``.

Every standardizing technique is the same formula over another index set S_i, the set of elements
that share a mean and a variance with element i (Wu & He 2018, section 3.1):

    μ_i = mean of x over S_i,   σ²_i = mean of (x − μ_i)² over S_i,   x̂_i = (x_i − μ_i) / √(σ²_i + ε)

:func:`standardize` is that formula; a technique is a choice of S_i, plus an affine map y = γ x̂ + β.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def standardize(input: Tensor, dim: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shift and scale ``input`` to mean 0 and variance 1 over the axes ``dim``.

    The variance is the biased one (divided by n) and never E[x²] − E[x]², which cancels where the
    mean is large against the deviation. Half-precision inputs are computed in float32.

    Shifting the input changes neither x̂ nor σ², so it is first shifted by its rounded mean, the pivot; what
    is left is small, and the mean of that, exact enough, is subtracted too. Then the variance is the mean of
    the squares, and needs no correction (such as that of Chan, Golub & LeVeque 1983).

    Args:
        input: floating-point tensor of any shape.
        dim: the axes that share one mean and one variance.
        eps: ε, added to the variance.

    Returns:
        ``(x_hat, mean, var)``; ``x_hat`` in the shape of ``input``, the other two with the axes
        ``dim`` kept at size 1; all three in float32 for half-precision inputs, else in the input's dtype.
    """
    x = input.float() if input.dtype in HALF else input
    # A constant, since nothing depends on it but the rounding: no gradient.
    pivot = x.detach().mean(dim=tuple(dim), keepdim=True)
    shifted = x - pivot
    shift = shifted.mean(dim=tuple(dim), keepdim=True)
    centred = shifted - shift
    var = centred.square().mean(dim=tuple(dim), keepdim=True)  # on a CPU several times as fast as var_mean
    return centred * torch.rsqrt(var + eps), pivot + shift, var


def affine(x_hat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """γ x̂ + β, with ``weight`` (γ) and ``bias`` (β) broadcast against ``x_hat``; None means 1 and 0."""
    if weight is None:
        return x_hat if bias is None else x_hat + bias
    return x_hat * weight if bias is None else torch.addcmul(bias, x_hat, weight)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch Normalization (Ioffe & Szegedy 2015, Algorithms 1 and 2): S_i = elements of i's channel.

    In training the statistics are those of the batch, and the running buffers, where given, move
    towards them in place: ``buffer ← (1 − momentum) · buffer + momentum · statistic``, with the
    *unbiased* variance n/(n − 1) · σ². Otherwise the running buffers are the statistics.

    Args:
        input: (N, C, *), floating point; float16 and bfloat16 are computed in float32.
        running_mean, running_var: (C,) or None; updated in place in training. Both or neither.
        weight, bias: γ and β, (C,) or None.
        training: normalize with the batch's statistics.
        momentum: weight of the newest statistic in the running buffers, between 0 and 1; a 0-dim
            tensor is accepted too, so that a cumulative average needs no value from the device.
        eps: ε, added to the variance; positive in training, never negative.

    Returns:
        A new tensor in the shape, dtype and memory format of ``input``.

    Raises:
        IndexError: ``input`` has no channel axis.
        NotImplementedError: ``input`` is not floating point.
        TypeError: ``momentum`` is not a number.
        RuntimeError: a parameter or buffer has another size, device or an unsuitable dtype, or
            statistics are missing outside training.
        ValueError: one value per channel in training, ε or momentum out of range, only one buffer given.
    """
    _check_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:
        index_set = [d for d in range(input.dim()) if d != 1]
        x_hat, mean, var = standardize(input, index_set, eps)
        if input.numel() > 0:  # no elements, no statistics
            n = input.numel() // input.size(1)
            _update(running_mean, running_var, mean.flatten(), var.flatten(), n, momentum)
    else:
        x_hat = _standardize_by(input, running_mean, running_var, eps)
    return affine(x_hat, _per_channel(weight, input), _per_channel(bias, input)).to(input.dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer Normalization (Ba, Kiros & Hinton 2016): S_i = the last axes, at i's other indices.

    Each sample, or each token, is standardized by itself: nothing depends on the batch.

    Args:
        input: ``(*, *normalized_shape)``, floating point; float16 and bfloat16 are computed in float32.
        normalized_shape: sizes of the last axes, those that share one mean and one variance.
        weight, bias: γ and β, of shape ``normalized_shape`` or None.
        eps: ε, added to the variance; not negative.

    Returns:
        A new tensor in the shape and dtype of ``input``.

    Raises:
        TypeError: ``normalized_shape`` is not a sequence, ``eps`` not a number.
        NotImplementedError: ``input`` is not floating point.
        RuntimeError: ``input`` does not end in ``normalized_shape``, or that is empty; a parameter has
            another size, device or an unsuitable dtype.
        ValueError: ε is negative.
    """
    _check_trailing("layer_norm", input, normalized_shape, eps)
    _check_parameters("layer_norm", input, tuple(normalized_shape), {"weight": weight, "bias": bias})
    x_hat, _, _ = standardize(input, _last(len(normalized_shape)), eps)
    return affine(x_hat, weight, bias).to(input.dtype)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Root Mean Square Normalization (Zhang & Sennrich 2019): y = γ x / √(mean of x² over S_i + ε).

    S_i is that of :func:`layer_norm`. No mean is subtracted and there is no β, so this is not
    :func:`standardize`: the output is invariant to the input's scale, but not to a shift.

    Args:
        input: ``(*, *normalized_shape)``, floating point; float16 and bfloat16 are computed in float32.
        normalized_shape: sizes of the last axes, those that share one root mean square.
        weight: γ, of shape ``normalized_shape`` and any floating dtype, or None.
        eps: ε, added to the mean of x²; not negative. None: the machine epsilon of the dtype of the
            computation, 1.19e-7 for all inputs but float64 (2.2e-16). Give a number where it matters:
            this is torch 2.13's meaning, in older releases None meant the epsilon of the input's own dtype
            (9.8e-4 for float16).

    Returns:
        A new tensor in the shape, dtype and memory format of ``input``.

    Raises:
        TypeError: ``normalized_shape`` is not a sequence, ``eps`` not a number.
        NotImplementedError: ``input`` is not floating point (torch takes complex numbers, and averages x²
            instead of its modulus).
        RuntimeError: ``input`` does not end in ``normalized_shape``, or that is empty; γ has another size,
            device or is not floating point.
        ValueError: ``input`` has fewer axes than ``normalized_shape``; ε is negative.
    """
    _check_trailing("rms_norm", input, normalized_shape, 0.0 if eps is None else eps, too_few=ValueError)
    _check_parameters("rms_norm", input, tuple(normalized_shape), {"weight": weight}, mixed=True)
    x = input.float() if input.dtype in HALF else input
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mean_square = x.square().mean(dim=_last(len(normalized_shape)), keepdim=True)
    return affine(x * torch.rsqrt(mean_square + eps), weight, None).to(input.dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group Normalization (Wu & He 2018, equation 7): S_i = i's sample and group of C/G channels.

    Args:
        input: (N, C, *), floating point; float16 and bfloat16 are computed in float32.
        num_groups: G, a divisor of C. One group is Layer Normalization over C and all further axes, C groups
            are Instance Normalization.
        weight, bias: γ and β, (C,) or None.
        eps: ε, added to the variance; not negative.

    Returns:
        A new tensor in the shape, dtype and memory format of ``input``.

    Raises:
        NotImplementedError: ``input`` is not floating point.
        RuntimeError: ``input`` has no channel axis; ``num_groups`` is below 1 or does not divide C; a
            parameter has another size, device or an unsuitable dtype.
        TypeError: ``eps`` is not a number.
        ValueError: a batch of one with one value in each group; ε is negative.
    """
    _check_group_norm(input, num_groups, weight, bias, eps)
    groups = input.unflatten(1, (num_groups, input.size(1) // num_groups))  # (N, C, *) → (N, G, C/G, *)
    x_hat, _, _ = standardize(groups, range(2, groups.dim()), eps)
    x_hat = x_hat.flatten(1, 2)
    return affine(x_hat, _per_channel(weight, input), _per_channel(bias, input)).to(input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance Normalization (Ulyanov, Vedaldi & Lempitsky 2016): S_i = i's channel of i's sample.

    With ``use_input_stats`` the running buffers, where given, move in place towards the average over N of the
    samples' statistics, as :func:`batch_norm`'s do. Otherwise the running buffers are the statistics.

    Args:
        input: (N, C, *), floating point; float16 and bfloat16 are computed in float32.
        running_mean, running_var: (C,), of any floating dtype, or None. Both or neither.
        weight, bias: γ and β, (C,) or None.
        use_input_stats: normalize with the samples' own statistics.
        momentum: weight of the newest statistic in the running buffers, between 0 and 1.
        eps: ε, added to the variance; not negative.

    Returns:
        A new tensor in the shape, dtype and memory format of ``input``.

    Raises:
        IndexError: ``input`` has no channel axis (without ``use_input_stats``).
        NotImplementedError: ``input`` is not floating point.
        TypeError: ``momentum`` or ``eps`` is not a number.
        RuntimeError: a parameter or buffer has another size, device or an unsuitable dtype, or
            statistics are missing without ``use_input_stats``.
        ValueError: one value per sample and channel with ``use_input_stats``, ε or momentum out of range,
            only one buffer given.
    """
    _check_instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if use_input_stats:
        x_hat, mean, var = standardize(input, range(2, input.dim()), eps)
        if input.numel() > 0:  # no elements, no statistics
            n = math.prod(input.shape[2:])
            _update(running_mean, running_var, mean.mean(0).flatten(), var.mean(0).flatten(), n, momentum)
    else:
        x_hat = _standardize_by(input, running_mean, running_var, eps)
    return affine(x_hat, _per_channel(weight, input), _per_channel(bias, input)).to(input.dtype)


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """Weight Normalization (Salimans & Kingma 2016, equation 2): w = g v / ‖v‖.

    ‖v‖ is taken over all axes but ``dim``, one length for each index of it: with ``dim=0`` one per output of
    a linear layer or convolution. The gradients are those of equation 3, by autograd; ∇v is orthogonal to v.

    Args:
        v: the direction, a weight of any shape, floating point; float16 and bfloat16 are computed in float32.
        g: the length, in v's dtype: size v.size(dim) along ``dim`` and 1 elsewhere; 0-dim for the whole
            tensor.
        dim: the axis that keeps its own lengths; None, or -1 as in torch, for one length of the whole tensor.

    Returns:
        w, in the shape and dtype of ``v``; NaN where ‖v‖ = 0. That is not looked for here, since it would
        take a value from the device and break compilation; the layers check it when v is set.

    Raises:
        NotImplementedError: ``v`` is not floating point.
        IndexError: ``v`` has no axis ``dim``.
        RuntimeError: ``g`` has another shape, device or dtype.
    """
    _check_floating("weight_norm", v)
    x = v.float() if v.dtype in HALF else v
    length = weight_length(x, dim)
    _check_parameters("weight_norm", v, tuple(length.shape), {"g": g})
    return (x * (g / length)).to(v.dtype)


def weight_length(v: Tensor, dim: int | None = 0) -> Tensor:
    """‖v‖ over all axes but ``dim``, kept at size 1; 0-dim for the whole tensor (``dim`` None or -1).

    Raises:
        IndexError: ``v`` has no axis ``dim``.
    """
    if dim is None or dim == -1:
        return v.square().sum().sqrt()
    if not -v.dim() <= dim < v.dim():
        raise IndexError(
            f"weight_norm: expected dim between {-v.dim()} and {v.dim() - 1} for a weight of shape "
            f"{tuple(v.shape)}, got {dim}"
        )
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    return v.square().sum(dim=others, keepdim=True).sqrt()


def _last(axes: int) -> list[int]:
    return list(range(-axes, 0))


def _per_channel(parameter: Tensor | None, input: Tensor) -> Tensor | None:
    """(C,) → (1, C, 1, …), which broadcasts against an (N, C, *) input: one value per channel."""
    return None if parameter is None else parameter.view([1, -1] + [1] * (input.dim() - 2))


def _standardize_by(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, eps: float
) -> Tensor:
    """x̂ for given statistics, (C,) each."""
    assert running_mean is not None  # checked by the callers, for the type checker's sake
    assert running_var is not None
    x = input.float() if input.dtype in HALF else input
    mean, var = running_mean.to(x.dtype), running_var.to(x.dtype)
    # Not folded into one scale and shift: a·x + b cancels where the mean is large.
    channels = [1, -1] + [1] * (input.dim() - 2)
    return (x - mean.view(channels)) * torch.rsqrt(var + eps).view(channels)


@torch.no_grad()
def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    n: int,
    momentum: float | Tensor,
) -> None:
    """Move the buffers towards these statistics of n elements each; the buffer's variance is unbiased."""
    if running_mean is not None and running_var is not None:
        _move(running_mean, mean, momentum)
        _move(running_var, var * (n / (n - 1)), momentum)


def _move(buffer: Tensor, value: Tensor, momentum: float | Tensor) -> None:
    """buffer ← (1 − momentum) · buffer + momentum · value, computed in the precision of ``value``."""
    if isinstance(momentum, Tensor):
        momentum = momentum.to(value.dtype)
    buffer.copy_(torch.lerp(buffer.to(value.dtype), value, momentum))


# Checks. They raise the type that torch's own operator raises, with a message that names both sides.


def _check_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
) -> None:
    shape = tuple(input.shape)
    if input.dim() < 2:
        raise IndexError(f"batch_norm: expected an input of shape (N, C, *), got shape {shape}")
    _check_floating("batch_norm", input)
    _check_both("batch_norm", running_mean, running_var, None if training else "outside training")
    _check_parameters(
        "batch_norm",
        input,
        (input.size(1),),
        {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias},
    )
    _check_eps("batch_norm", eps)
    if training and eps == 0:
        raise ValueError(f"batch_norm: eps must be positive in training, got {eps}")
    if training and input.numel() == input.size(1) > 0:
        raise ValueError(
            f"batch_norm: expected more than 1 value per channel when training, got input of shape {shape}"
        )
    check_momentum("batch_norm", momentum)


def _check_instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float | Tensor,
    eps: float,
) -> None:
    shape = tuple(input.shape)
    if use_input_stats and math.prod(shape[2:]) == 1:
        raise ValueError(
            f"instance_norm: expected more than 1 value per sample and channel, got input of shape {shape}"
        )
    if input.dim() < 2:
        raise IndexError(f"instance_norm: expected an input of shape (N, C, *), got shape {shape}")
    _check_floating("instance_norm", input)
    needed = None if use_input_stats else "without use_input_stats"
    _check_both("instance_norm", running_mean, running_var, needed)
    buffers = {"running_mean": running_mean, "running_var": running_var}
    _check_parameters("instance_norm", input, (input.size(1),), buffers, mixed=True)
    _check_parameters("instance_norm", input, (input.size(1),), {"weight": weight, "bias": bias})
    _check_eps("instance_norm", eps)
    check_momentum("instance_norm", momentum)


def _check_group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    shape = tuple(input.shape)
    if input.dim() < 2:
        raise RuntimeError(f"group_norm: expected an input of shape (N, C, *), got shape {shape}")
    _check_floating("group_norm", input)
    if num_groups < 1 or input.size(1) % num_groups:
        raise RuntimeError(
            f"group_norm: expected num_groups to be a divisor of the {input.size(1)} channels of an input of "
            f"shape {shape}, got {num_groups}"
        )
    if input.numel() == num_groups:  # torch's condition: with N > 1 it lets one value per group pass
        raise ValueError(f"group_norm: expected more than 1 value per group, got input of shape {shape}")
    _check_parameters("group_norm", input, (input.size(1),), {"weight": weight, "bias": bias})
    _check_eps("group_norm", eps)


def _check_trailing(
    name: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    eps: float,
    too_few: type[Exception] = RuntimeError,
) -> None:
    """The input ends in ``normalized_shape``; ``too_few`` is raised where it has fewer axes than that."""
    if not isinstance(normalized_shape, Sequence):
        raise TypeError(
            f"{name}: expected normalized_shape to be a sequence of sizes, got {normalized_shape!r}"
        )
    wanted, shape = tuple(normalized_shape), tuple(input.shape)
    if not wanted:
        raise RuntimeError(f"{name}: expected at least one axis in normalized_shape, got {normalized_shape}")
    if shape[-len(wanted) :] != wanted:
        error = too_few if len(shape) < len(wanted) else RuntimeError
        raise error(f"{name}: expected an input whose last sizes are {wanted}, got shape {shape}")
    _check_floating(name, input)
    _check_eps(name, eps)


def _check_both(
    name: str, running_mean: Tensor | None, running_var: Tensor | None, needed: str | None
) -> None:
    """Both buffers or neither; both where they are ``needed``."""
    if needed and (running_mean is None or running_var is None):
        raise RuntimeError(f"{name}: running_mean and running_var must be defined {needed}")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{name}: running_mean and running_var must be given both or neither")


def _check_eps(name: str, eps: float) -> None:
    if not isinstance(eps, float | int):
        raise TypeError(f"{name}: eps must be a number, got {eps!r}")
    if eps < 0:
        raise ValueError(f"{name}: eps must be non-negative, got {eps}")


def check_momentum(name: str, momentum: float | Tensor) -> None:
    """Raise TypeError unless ``momentum`` is a number or a tensor, ValueError unless a number is in [0, 1].

    torch takes any number; a negative one drives the running variance below 0, and eval mode to NaN.
    """
    if not isinstance(momentum, float | int | Tensor) and not isinstance(momentum, Real):  # numpy's too
        raise TypeError(f"{name}: momentum must be a number, got {momentum!r}")
    if not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
        raise ValueError(f"{name}: momentum must be between 0 and 1, got {momentum}")


def _check_floating(name: str, input: Tensor) -> None:
    if not input.is_floating_point():
        raise NotImplementedError(f"{name}: expected a floating-point input, got {input.dtype}")


def _check_parameters(
    name: str,
    input: Tensor,
    shape: tuple[int, ...],
    parameters: Mapping[str, Tensor | None],
    mixed: bool = False,
) -> None:
    """Each parameter or buffer: of ``shape``, on the input's device, in its dtype (or float32 for half).

    ``mixed``: of any floating dtype.
    """
    for which, value in parameters.items():
        if value is None:
            continue
        if tuple(value.shape) != shape:
            raise RuntimeError(
                f"{name}: expected {which} of shape {shape} for an input of shape {tuple(input.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
        if value.device != input.device:
            raise RuntimeError(
                f"{name}: expected {which} on the input's device {input.device}, got {value.device}"
            )
        suits = value.is_floating_point() if mixed else input.dtype in HALF and value.dtype == torch.float32
        if value.dtype != input.dtype and not suits:
            raise RuntimeError(f"{name}: expected {which} of dtype {input.dtype}, got {value.dtype}")
