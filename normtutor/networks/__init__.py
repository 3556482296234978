"""The networks the course trains; the normalization is an argument."""

from normtutor.networks.cnn import CNNWithBatchNorm, CNNWithGroupNorm
from normtutor.networks.mlp import MLP
from normtutor.networks.norm import Norm, build_norm

__all__ = ["MLP", "CNNWithBatchNorm", "CNNWithGroupNorm", "Norm", "build_norm"]
