"""A multilayer perceptron of any depth, the network of Ioffe & Szegedy 2015, section 4.1."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from normtutor.networks.norm import Norm, build_norm


class MLP(nn.Sequential):
    """(linear – norm – activation) for each hidden layer, then a linear layer to the logits.

    Args:
        sizes: features of the input, of each hidden layer, and of the output.
        norm: the normalization, see :func:`normtutor.networks.build_norm`.
        activation: makes the nonlinearity.
        linear: makes each linear layer from (in_features, out_features), the last one too: with
            :class:`normtutor.layers.WeightNormLinear` and ``norm="none"``, a weight-normalized network.

    Shape: (N, sizes[0]) → (N, sizes[-1]).

    Raises:
        ValueError: fewer than two sizes; an unknown ``norm``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        norm: Norm = "batch",
        activation: Callable[[], nn.Module] = nn.ReLU,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"expected at least an input and an output size, got {list(sizes)}")
        steps: list[nn.Module] = []
        for fan_in, width in pairwise(sizes[:-1]):
            steps += [linear(fan_in, width), build_norm(norm, (1, width)), activation()]
        super().__init__(*steps, linear(sizes[-2], sizes[-1]))

    def initialize(self, input: Tensor) -> Tensor:
        """Initialize every weight-normalized layer from ``input``, (N, sizes[0]), one after the other.

        Each layer sees what the layers before it, already initialized, make of ``input`` (Salimans & Kingma
        2016, section 3, https://arxiv.org/abs/1602.07868); other layers stay as they are.

        Returns:
            The logits for ``input`` afterwards.

        Raises:
            ValueError: an output does not vary over ``input``, see the layer's own ``initialize``.
        """
        x = input
        for module in self:
            step: Callable[[Tensor], Tensor] = getattr(module, "initialize", module)
            x = step(x)
        return x
