"""Normalization layers: drop-in replacements for ``torch.nn``'s, one module per technique."""

from normtutor.layers.batch_norm import (
    AdaptiveBatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LearnableBatchNorm,
)
from normtutor.layers.fold import fold_batch_norm
from normtutor.layers.group_norm import GroupNorm
from normtutor.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normtutor.layers.layer_norm import LayerNorm, RMSNorm
from normtutor.layers.weight_norm import (
    WeightNormConv1d,
    WeightNormConv2d,
    WeightNormConvTranspose1d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
)
from normtutor.layers.weight_standardization import WeightStandardization, standardize_weights

__all__ = [
    "AdaptiveBatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LearnableBatchNorm",
    "RMSNorm",
    "WeightNormConv1d",
    "WeightNormConv2d",
    "WeightNormConvTranspose1d",
    "WeightNormConvTranspose2d",
    "WeightNormLinear",
    "WeightStandardization",
    "fold_batch_norm",
    "standardize_weights",
]
