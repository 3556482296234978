"""A multilayer perceptron of any depth, the network of Ioffe & Szegedy 2015, section 4.1."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from normtutor.networks.norm import Norm, build_norm


class MLP(nn.Sequential):
    """(linear – norm – activation) for each hidden layer, then a linear layer to the logits.

    Args:
        sizes: features of the input, of each hidden layer, and of the output.
        norm: the normalization, see :func:`normtutor.networks.build_norm`.
        activation: makes the nonlinearity.

    Shape: (N, sizes[0]) → (N, sizes[-1]).

    Raises:
        ValueError: fewer than two sizes; an unknown ``norm``.
    """

    def __init__(
        self, sizes: Sequence[int], norm: Norm = "batch", activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"expected at least an input and an output size, got {list(sizes)}")
        steps: list[nn.Module] = []
        for fan_in, width in pairwise(sizes[:-1]):
            steps += [nn.Linear(fan_in, width), build_norm(norm, (1, width)), activation()]
        super().__init__(*steps, nn.Linear(sizes[-2], sizes[-1]))
