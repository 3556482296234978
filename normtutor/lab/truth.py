"""What a standardizing layer should compute, to more digits than any layer has: the yardstick of parity.

Closed forms in numpy's long double, evaluated without autograd and without torch's operators, so that
no error is shared with what is judged. Long double has 64 significant bits on x86; where the platform
has no wider type than float64 (Apple's and most Arm machines, Windows) it is float64, and float64 rows
are then judged against a truth with rounding errors of its own, a few units in the last place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.longdouble]


@dataclass(frozen=True)
class Standardization:
    """Results of :func:`standardization`; the gradients are None where no upstream gradient was given."""

    output: Array
    x_hat: Array
    mean: Array  # of each index set, with the axes kept at size 1
    var: Array  # biased, likewise
    count: int  # n, the elements of one index set
    grad_input: Array | None
    grad_weight: Array | None
    grad_bias: Array | None


def standardization(
    x: NDArray[Any],
    axes: Sequence[int],
    eps: float,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    grad_output: NDArray[Any] | None = None,
    statistics: tuple[NDArray[Any], NDArray[Any]] | None = None,
    centred: bool = True,
) -> Standardization:
    """y = γ (x − μ) / √(σ² + ε) + β and its gradients, for the index sets that span ``axes``.

    With g = γ ∂y and means over the index set: ∂x = (g − mean(g) − x̂ · mean(g x̂)) / √(σ² + ε). With
    given statistics (evaluation) μ and σ² are constants: ∂x = g / √(σ² + ε). ∂γ is the sum of ∂y x̂,
    ∂β the sum of ∂y, each over the elements that share the parameter.

    Args:
        x: (…), any shape.
        axes: the axes that share one mean and one variance.
        eps: ε, added to the variance.
        weight, bias: γ and β, shaped so that they broadcast against ``x``; None means 1 and 0.
        grad_output: ∂y, shaped like ``x``.
        statistics: (μ, σ²), broadcasting against ``x``, instead of those of ``x``.
        centred: False for RMSNorm: μ is 0, σ² the mean of x², and ∂x lacks the term mean(g).

    Returns:
        Everything in long double; the parameters' gradients in the parameters' shapes.
    """
    axes, x = tuple(axes), _wide(x)
    # Statistics of x − (one element of its set): the subtraction is exact where the mean is large, so
    # nothing cancels, in float64 either.
    origin = x[tuple(slice(0, 1) if d in axes else slice(None) for d in range(x.ndim))] * centred
    shifted = x - origin
    shift = shifted.mean(axis=axes, keepdims=True) * centred
    difference = shifted - shift
    mean, var = origin + shift, np.square(difference).mean(axis=axes, keepdims=True)
    count = x.size // max(mean.size, 1)
    if statistics is None:
        rstd = 1 / np.sqrt(var + np.longdouble(eps))
    else:
        rstd = 1 / np.sqrt(_wide(statistics[1]) + np.longdouble(eps))
        difference = x - _wide(statistics[0])
    x_hat = difference * rstd
    gamma = np.longdouble(1) if weight is None else _wide(weight)
    output = gamma * x_hat + (0 if bias is None else _wide(bias))
    if grad_output is None:
        return Standardization(output, x_hat, mean, var, count, None, None, None)
    dy = _wide(grad_output)
    g = gamma * dy
    if statistics is None:
        means = [term.mean(axis=axes, keepdims=True) for term in (g, g * x_hat)]
        grad_input = (g - means[0] * centred - x_hat * means[1]) * rstd
    else:
        grad_input = g * rstd
    grad_weight = None if weight is None else sum_to(dy * x_hat, weight.shape)
    grad_bias = None if bias is None else sum_to(dy, bias.shape)
    return Standardization(output, x_hat, mean, var, count, grad_input, grad_weight, grad_bias)


def _wide(values: NDArray[Any]) -> Array:
    return np.asarray(values, dtype=np.longdouble)


def sum_to(values: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which ``shape`` broadcasts, as the gradient of a parameter does."""
    padded = (1,) * (values.ndim - len(shape)) + shape
    repeated = tuple(d for d, size in enumerate(padded) if size == 1 != values.shape[d])
    summed: Array = values.sum(axis=repeated, keepdims=True).reshape(shape)
    return summed
