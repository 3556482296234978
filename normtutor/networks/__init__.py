"""The networks the course trains; the normalization is an argument."""

from normtutor.networks.cnn import CNNWithBatchNorm, CNNWithGroupNorm
from normtutor.networks.mlp import MLP
from normtutor.networks.norm import Norm, build_norm
from normtutor.networks.recurrent import RNN
from normtutor.networks.style import StyleTransferBlock, StyleTransferNetwork
from normtutor.networks.transformer import Transformer, TransformerBlock

__all__ = [
    "MLP",
    "RNN",
    "CNNWithBatchNorm",
    "CNNWithGroupNorm",
    "Norm",
    "StyleTransferBlock",
    "StyleTransferNetwork",
    "Transformer",
    "TransformerBlock",
    "build_norm",
]
