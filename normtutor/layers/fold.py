"""Folding a trained BatchNorm into the linear map before it, for inference."""

import copy
from typing import TypeVar

import torch
from torch import nn

from normtutor.functional import HALF
from normtutor.layers.batch_norm import _BatchNorm

Linear = TypeVar("Linear", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norm(linear: Linear, norm: _BatchNorm | nn.modules.batchnorm._BatchNorm) -> Linear:
    """One linear map that does what ``linear`` followed by ``norm`` in evaluation mode does.

    In evaluation mode BatchNorm is s x + (β − s m) with s = γ / √(v + ε) per output channel, so
    W' = s W and b' = s (b − m) + β. Exact up to rounding; nothing is left of the normalization's cost.

    Args:
        linear: Linear, Conv1d, Conv2d or Conv3d, any groups, stride, padding, with or without bias.
        norm: the BatchNorm behind it, ours or torch's; its running statistics are used.

    Returns:
        A new module with a bias; ``linear`` and ``norm`` are left as they are.

    Raises:
        TypeError: ``linear`` or ``norm`` is of another type.
        ValueError: ``norm`` keeps no running statistics, or has another number of channels.
    """
    if not isinstance(linear, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise TypeError(f"expected a Linear or Conv1d/2d/3d, got {type(linear).__name__}")
    if not isinstance(norm, _BatchNorm | nn.modules.batchnorm._BatchNorm):
        raise TypeError(f"expected a BatchNorm, ours or torch's, got {type(norm).__name__}")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a BatchNorm with running statistics (track_running_stats=True)")
    channels = linear.weight.shape[0]
    if channels != norm.num_features:
        raise ValueError(f"expected a BatchNorm of {channels} channels, got {norm.num_features}")
    folded = copy.deepcopy(linear)
    with torch.no_grad():
        dtype = torch.float32 if linear.weight.dtype in HALF else linear.weight.dtype
        scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        bias = -norm.running_mean.to(dtype) if linear.bias is None else linear.bias - norm.running_mean
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias
        per_channel = [-1] + [1] * (linear.weight.dim() - 1)
        folded.weight.copy_(linear.weight * scale.view(per_channel))
        folded.bias = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=linear.weight.requires_grad)
    return folded
