"""Normalization layers: drop-in replacements for ``torch.nn``'s, one module per technique."""

from normtutor.layers.batch_norm import (
    AdaptiveBatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LearnableBatchNorm,
)
from normtutor.layers.fold import fold_batch_norm

__all__ = [
    "AdaptiveBatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LearnableBatchNorm",
    "fold_batch_norm",
]
