"""The networks the course trains; the normalization is an argument."""

from normtutor.networks.cnn import CNNWithBatchNorm
from normtutor.networks.mlp import MLP
from normtutor.networks.norm import Norm, build_norm
from normtutor.networks.style import StyleTransferBlock, StyleTransferNetwork

__all__ = ["MLP", "CNNWithBatchNorm", "Norm", "StyleTransferBlock", "StyleTransferNetwork", "build_norm"]
