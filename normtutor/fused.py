"""The layers of :mod:`normtutor.layers` on fused Triton kernels: same parameters, state dict and errors.

    from normtutor import fused
    layer = fused.LayerNorm(4096, device="cuda")
    fused.why(layer, x)     # "" where the kernels run, else why the plain path is taken

The kernels (the optional extra ``normtutor[fused]``) run on CUDA devices of compute capability 7.5 and above
(T4, A100, H100 …), on float32, bfloat16 and float16, and accumulate in float32. Everywhere else, on a CPU, in
float64, without Triton, inside :mod:`torch.func`, on inputs too small to gain, a layer computes exactly what
the plain layer computes, and :func:`why` says so. Under ``torch.compile`` the kernels are operators of the
graph (``fullgraph=True`` works). They have no second derivative and say so when asked for one.

x is read once for the statistics and the output where one program can hold a set, else twice; the second time
it comes from the L2 cache if it is still there. Kept for the backward pass: what ``torch.nn`` keeps, the
input and two numbers per set.
"""

import copy
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from normtutor import functional, layers

try:
    from normtutor.kernels import ops

    MISSING = ""
except ImportError as error:  # no Triton here: every layer takes the plain path
    MISSING = f"Triton cannot be imported ({error}): pip install 'normtutor[fused]'"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "like",
    "rms_norm",
    "why",
]

# Below this many bytes of input the plain path is taken. Not measured yet: 0 hands nothing over.
SMALL_BYTES = 0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOWEST_CAPABILITY = (7, 5)  # a T4's, the oldest that the kernels are compiled for in the tests


def why(layer: nn.Module, input: Tensor) -> str:
    """Why ``layer``, one of this module's, takes the plain path on ``input``: "" where the kernels run.

    Sizes are not looked at: where the call would raise for its sizes this may say "" too.

    Raises:
        TypeError: the layer is not one of this module's, or the input is no tensor.
    """
    if not isinstance(layer, FUSED):
        raise TypeError(f"expected a layer of normtutor.fused, got {type(layer).__name__}")
    return reason(input, *layer.parameters(recurse=False), *layer.buffers(recurse=False))


def reason(input: Tensor, *others: Tensor | None) -> str:
    """Why the kernels cannot, or should not, run on this input, parameters and statistics: "" if they can.

    Wrong sizes are no reason: they raise, in the plain functions' words.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"expected a tensor, got {type(input).__name__}")
    if input.dtype not in DTYPES:
        return f"the input is {input.dtype}: the kernels take float32, bfloat16 and float16"
    if any(t is not None and t.dtype == torch.float64 for t in others):
        return "a parameter or a running statistic is float64"
    if input.numel() == 0:
        return "the input is empty"
    if MISSING:
        return MISSING
    if not ops.INTERPRETED and input.device.type != "cuda":
        return f"the input is on {input.device}: the kernels run on CUDA devices"
    # torch.compile cannot look into these; inductor refuses GPUs below 7.0 itself.
    if not torch.compiler.is_compiling():
        if not ops.INTERPRETED and _capability(input.device) < LOWEST_CAPABILITY:
            return f"{input.device} has compute capability {_capability(input.device)}, below 7.5"
        if _transformed():
            return "inside torch.func or forward-mode differentiation"
    if input.numel() * input.itemsize < SMALL_BYTES:
        return f"the input is smaller than {SMALL_BYTES} bytes: the plain path is as fast"
    return ""


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    if torch.version.cuda is None:  # ROCm's devices are called "cuda" too; nothing was tried there
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def _transformed() -> bool:
    inside: bool = torch._C._functorch.peek_interpreter_stack() is not None
    return inside or torch.autograd.forward_ad._current_level >= 0


def _too_many(*sizes: int) -> bool:
    """Whether there are too many rows, or places in a row, for 32 bits (elements have 64)."""
    return max(sizes) >= 2**31


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`normtutor.functional.layer_norm`, fused; its arguments, result and errors."""
    return add_layer_norm(input, None, normalized_shape, weight, bias, eps)[0]


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """:func:`normtutor.functional.rms_norm`, fused; its arguments, result and errors."""
    return add_rms_norm(input, None, normalized_shape, weight, eps)[0]


def add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """LayerNorm of ``input + residual``, in one pass, and that sum, for the next residual connection.

    Args:
        residual: shape, dtype and device of ``input``; None for 0.
        input, normalized_shape, weight, bias, eps: as :func:`normtutor.functional.layer_norm`.

    Returns:
        The output, and ``input + residual`` (``input`` itself without a residual); in half precision the
        sum is rounded first and then normalized, as ``layer(input + residual)`` would.

    Raises:
        RuntimeError: ``residual`` is not like ``input``; else as :func:`normtutor.functional.layer_norm`.
    """
    _check_residual("layer_norm", input, residual)
    if not reason(input, weight, bias):
        functional._check_trailing("layer_norm", input, normalized_shape, eps)
        sizes = tuple(normalized_shape)
        functional._check_parameters("layer_norm", input, sizes, {"weight": weight, "bias": bias})
        if not _too_many(math.prod(sizes), input.numel() // math.prod(sizes)):
            y, total, _, _ = ops.layer_norm(input, residual, weight, bias, len(sizes), float(eps), True)
            return _in_format_of(input, y), input if residual is None else _in_format_of(input, total)
    total = input if residual is None else input + residual
    return functional.layer_norm(total, normalized_shape, weight, bias, eps), total


def add_rms_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """RMSNorm of ``input + residual``, in one pass, and that sum; see :func:`add_layer_norm`.

    Raises:
        RuntimeError: ``residual`` is not like ``input``; else as :func:`normtutor.functional.rms_norm`.
    """
    _check_residual("rms_norm", input, residual)
    if not reason(input, weight):
        epsilon = torch.finfo(torch.float32).eps if eps is None else eps
        functional._check_trailing("rms_norm", input, normalized_shape, epsilon, too_few=ValueError)
        sizes = tuple(normalized_shape)
        functional._check_parameters("rms_norm", input, sizes, {"weight": weight}, mixed=True)
        if not _too_many(math.prod(sizes), input.numel() // math.prod(sizes)):
            y, total, _, _ = ops.layer_norm(input, residual, weight, None, len(sizes), float(epsilon), False)
            return _in_format_of(input, y), input if residual is None else _in_format_of(input, total)
    total = input if residual is None else input + residual
    return functional.rms_norm(total, normalized_shape, weight, eps), total


def _in_format_of(input: Tensor, y: Tensor) -> Tensor:
    """``y``, copied to channels_last where ``input`` is: the kernels for rows made it contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    keep = last is None or input.is_contiguous() or not input.is_contiguous(memory_format=last)
    return y if keep or last is None else y.contiguous(memory_format=last)


def _check_residual(name: str, input: Tensor, residual: Tensor | None) -> None:
    if residual is None:
        return
    for tensor in (input, residual):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    for what, a, b in (
        ("shape", tuple(input.shape), tuple(residual.shape)),
        ("dtype", input.dtype, residual.dtype),
        ("device", input.device, residual.device),
    ):
        if a != b:
            raise RuntimeError(f"{name}: expected a residual of the input's {what} {a}, got {b}")


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`normtutor.functional.group_norm`, fused; its arguments, result and errors."""
    if reason(input, weight, bias) or input.dim() < 2 or _too_many(*_rows(input)):
        return functional.group_norm(input, num_groups, weight, bias, eps)
    functional._check_group_norm(input, num_groups, weight, bias, eps)
    y: Tensor = ops.channel_norm(input, weight, bias, num_groups, float(eps))[0]
    return y


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
    """:func:`normtutor.functional.instance_norm`, fused; its arguments, result and errors."""
    arguments: Any = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if reason(input, *arguments[:4]) or input.dim() < 2 or _too_many(*_rows(input)):
        return functional.instance_norm(input, *arguments)
    functional._check_instance_norm(input, *arguments)
    if not use_input_stats:
        return _by(input, running_mean, running_var, weight, bias, eps)
    n, c = input.shape[:2]
    y: Tensor
    y, mean, _, var = ops.channel_norm(input, weight, bias, c, float(eps))
    means, variances = mean.view(n, c).mean(0), var.view(n, c).mean(0)
    functional._update(running_mean, running_var, means, variances, math.prod(input.shape[2:]), momentum)
    return y


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
    """:func:`normtutor.functional.batch_norm`, fused; its arguments, result and errors."""
    arguments: Any = (running_mean, running_var, weight, bias, training, momentum, eps)
    if reason(input, *arguments[:4]) or input.dim() < 2 or _too_many(*_rows(input)):
        return functional.batch_norm(input, *arguments)
    functional._check_batch_norm(input, *arguments)
    if not training:
        return _by(input, running_mean, running_var, weight, bias, eps)
    y: Tensor
    y, mean, _, var = ops.channel_norm(input, weight, bias, 0, float(eps))
    functional._update(running_mean, running_var, mean, var, input.numel() // input.size(1), momentum)
    return y


def _by(input: Tensor, mean: Any, var: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if mean.requires_grad or var.requires_grad:  # the operator takes them for constants
        return functional.batch_norm(input, mean, var, weight, bias, eps=eps)
    y: Tensor = ops.channel_norm_by(input, mean, var, weight, bias, float(eps))
    return y


def _rows(input: Tensor) -> tuple[int, int, int]:
    """Planes, positions, and places in a plane."""
    n, c = input.shape[:2]
    return n * c, input.numel() // c, input.numel() // (n * c)


class LayerNorm(layers.LayerNorm):
    """:class:`normtutor.layers.LayerNorm`, fused, with an optional residual input.

    Shape: ``(*, *normalized_shape)`` → the same; with a residual of the same shape the output and
    ``input + residual``, see :func:`add_layer_norm`.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        found = add_layer_norm(input, residual, self.normalized_shape, self.weight, self.bias, self.eps)
        return found[0] if residual is None else found


class RMSNorm(layers.RMSNorm):
    """:class:`normtutor.layers.RMSNorm`, fused, with an optional residual input.

    Shape: ``(*, *normalized_shape)`` → the same; with a residual of the same shape the output and
    ``x + residual``, see :func:`add_layer_norm`.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        found = add_rms_norm(x, residual, self.normalized_shape, self.weight, self.eps)
        return found[0] if residual is None else found


class GroupNorm(layers.GroupNorm):
    """:class:`normtutor.layers.GroupNorm`, fused."""

    function = staticmethod(group_norm)


class InstanceNorm1d(layers.InstanceNorm1d):
    """:class:`normtutor.layers.InstanceNorm1d`, fused."""

    function = staticmethod(instance_norm)


class InstanceNorm2d(layers.InstanceNorm2d):
    """:class:`normtutor.layers.InstanceNorm2d`, fused."""

    function = staticmethod(instance_norm)


class InstanceNorm3d(layers.InstanceNorm3d):
    """:class:`normtutor.layers.InstanceNorm3d`, fused."""

    function = staticmethod(instance_norm)


class BatchNorm1d(layers.BatchNorm1d):
    """:class:`normtutor.layers.BatchNorm1d`, fused."""

    function = staticmethod(batch_norm)


class BatchNorm2d(layers.BatchNorm2d):
    """:class:`normtutor.layers.BatchNorm2d`, fused."""

    function = staticmethod(batch_norm)


class BatchNorm3d(layers.BatchNorm3d):
    """:class:`normtutor.layers.BatchNorm3d`, fused."""

    function = staticmethod(batch_norm)


FUSED = (
    *(LayerNorm, RMSNorm, GroupNorm),
    *(InstanceNorm1d, InstanceNorm2d, InstanceNorm3d),
    *(BatchNorm1d, BatchNorm2d, BatchNorm3d),
)


def like(layer: nn.Module) -> nn.Module:
    """A fused layer in the place of ``layer``: its settings, its very parameters and buffers.

    Nothing is copied, so that an optimizer built before the swap trains the model after it, and tied weights
    stay tied. ``copy.deepcopy`` of the result is independent of ``layer``.

    Args:
        layer: one of the layers here, of :mod:`normtutor.layers`, or torch's of the same names.

    Raises:
        TypeError: there is no fused layer of that kind.
    """
    kinds = {plain: kind for kind in FUSED for plain in (kind, kind.__base__, getattr(nn, kind.__name__))}
    if type(layer) not in kinds:
        raise TypeError(f"no fused layer is like {type(layer).__module__}.{type(layer).__name__}")
    fused = copy.copy(layer)
    fused.__class__ = kinds[type(layer)]  # the classes keep the same state, and differ by their functions
    for name, value in vars(layer).items():
        if isinstance(value, (dict, set)):  # tables of parameters, buffers, hooks: each layer has its own
            vars(fused)[name] = value.copy()
    return fused
