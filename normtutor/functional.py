"""Normalization as pure functions, with the names and signatures of ``torch.nn.functional``.

Every standardizing technique is the same formula over another index set S_i, the set of elements
that share a mean and a variance with element i (Wu & He 2018, section 3.1):

    μ_i = mean of x over S_i,   σ²_i = mean of (x − μ_i)² over S_i,   x̂_i = (x_i − μ_i) / √(σ²_i + ε)

:func:`standardize` is that formula; a technique is a choice of S_i, plus an affine map y = γ x̂ + β.
"""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def standardize(input: Tensor, dim: Sequence[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shift and scale ``input`` to mean 0 and variance 1 over the axes ``dim``.

    The variance is the biased one (divided by n) and never E[x²] − E[x]², which cancels where the
    mean is large against the deviation. Half-precision inputs are computed in float32.

    Shifting the input changes neither x̂ nor σ², so it is first shifted by its rounded mean, the pivot; what
    is left is small, and the mean of that, computed exactly enough, is the second-order correction. (The
    corrected two-pass algorithm: Chan, Golub & LeVeque 1983, applied to the mean as well.)

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
    centred = x - pivot
    var, shift = torch.var_mean(centred, dim=tuple(dim), correction=0, keepdim=True)
    return (centred - shift) * torch.rsqrt(var + eps), pivot + shift, var


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
    channels = [1, -1] + [1] * (input.dim() - 2)  # (C,) → (1, C, 1, …): one value per channel
    if input.numel() == 0:  # no elements, no statistics
        x_hat = input.clone()
    elif training:
        index_set = [d for d in range(input.dim()) if d != 1]
        x_hat, mean, var = standardize(input, index_set, eps)
        if running_mean is not None and running_var is not None:
            n = input.numel() // input.size(1)
            with torch.no_grad():
                _move(running_mean, mean.flatten(), momentum)
                _move(running_var, var.flatten() * (n / (n - 1)), momentum)
    else:
        assert running_mean is not None  # checked above, for the type checker's sake
        assert running_var is not None
        x = input.float() if input.dtype in HALF else input
        mean, var = running_mean.to(x.dtype), running_var.to(x.dtype)
        # Not folded into one scale and shift: a·x + b cancels where the mean is large.
        x_hat = (x - mean.view(channels)) * torch.rsqrt(var + eps).view(channels)
    gamma = None if weight is None else weight.view(channels)
    beta = None if bias is None else bias.view(channels)
    return affine(x_hat, gamma, beta).to(input.dtype)


def _move(buffer: Tensor, value: Tensor, momentum: float | Tensor) -> None:
    """buffer ← (1 − momentum) · buffer + momentum · value, computed in the precision of ``value``."""
    if isinstance(momentum, Tensor):
        momentum = momentum.to(value.dtype)
    buffer.copy_(torch.lerp(buffer.to(value.dtype), value, momentum))


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
    """Raise the type that torch's own operator raises, with a message that names both sides."""
    shape = tuple(input.shape)
    if input.dim() < 2:
        raise IndexError(f"batch_norm: expected an input of shape (N, C, *), got shape {shape}")
    _check_floating("batch_norm", input)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var must be given both or neither")
    if not training and running_mean is None:
        raise RuntimeError("batch_norm: running_mean and running_var must be defined outside training")
    _check_parameters(
        "batch_norm",
        input,
        (input.size(1),),
        {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias},
    )
    if eps < 0 or (training and eps == 0):
        wanted = "positive in training" if training else "non-negative"
        raise ValueError(f"batch_norm: eps must be {wanted}, got {eps}")
    if training and input.numel() == input.size(1) > 0:
        raise ValueError(
            f"batch_norm: expected more than 1 value per channel when training, got input of shape {shape}"
        )
    check_momentum(momentum)


def check_momentum(momentum: float | Tensor) -> None:
    """Raise TypeError unless ``momentum`` is a number or a tensor, ValueError unless a number is in [0, 1].

    torch takes any number; a negative one drives the running variance below 0, and eval mode to NaN.
    """
    if not isinstance(momentum, float | int | Tensor) and not isinstance(momentum, Real):  # numpy's too
        raise TypeError(f"batch_norm: momentum must be a number, got {momentum!r}")
    if not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
        raise ValueError(f"batch_norm: momentum must be between 0 and 1, got {momentum}")


def _check_floating(name: str, input: Tensor) -> None:
    if not input.is_floating_point():
        raise NotImplementedError(f"{name}: expected a floating-point input, got {input.dtype}")


def _check_parameters(
    name: str, input: Tensor, shape: tuple[int, ...], parameters: dict[str, Tensor | None]
) -> None:
    """Each parameter or buffer: of ``shape``, on the input's device, in its dtype (or float32 for half)."""
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
        if value.dtype != input.dtype and not (input.dtype in HALF and value.dtype == torch.float32):
            raise RuntimeError(f"{name}: expected {which} of dtype {input.dtype}, got {value.dtype}")
