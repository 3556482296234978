"""Weight Standardization (Qiao et al. 2019, https://arxiv.org/abs/1903.10520)."""

from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from normtutor.functional import standardize

Module = TypeVar("Module", bound=nn.Module)


class WeightStandardization(nn.Module):
    """The same formula, with a weight in the place of the activation: S_i = the fan-in of i's output channel.

    A parametrization of a convolution's or linear layer's ``weight``; see :func:`standardize_weights`.

    Args:
        eps: ε, added to the variance.

    Shape: (out, in, *) → the same, each output channel with mean 0 and variance 1.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        standardized, _, _ = standardize(weight, range(1, weight.dim()), self.eps)
        return standardized.to(weight.dtype)


def standardize_weights(module: Module, eps: float = 1e-5) -> Module:
    """Standardize the weights of all convolutions in ``module``, itself included, from now on.

    Linear layers and transposed convolutions stay as they are, and so does what is standardized already.

    The optimizer keeps updating the raw weights, which a checkpoint holds as
    ``parametrizations.weight.original``. Follow each convolution by a normalization: the output's scale is
    about √fan-in, and nothing else takes it out (Qiao et al. 2019, section 3, equation 5; without their
    normalization the network's activations grow with depth).

    Returns:
        ``module``, changed.

    Raises:
        ValueError: a convolution has a single weight per output channel, which would become 0; ``module``
            is unchanged then.
    """
    found = []
    for name, part in module.named_modules():
        if not isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) or _is_standardized(part):
            continue
        if part.weight[0].numel() == 1:
            raise ValueError(
                f"expected more than one weight per output channel, got {name or 'one'} with a weight of "
                f"shape {tuple(part.weight.shape)}: standardized, it would be 0"
            )
        found.append(part)
    for part in found:
        parametrize.register_parametrization(part, "weight", WeightStandardization(eps))
    return module


def _is_standardized(part: nn.Module) -> bool:
    if not parametrize.is_parametrized(part, "weight"):
        return False
    steps: Iterable[nn.Module] = part.parametrizations["weight"]  # type: ignore[index]
    return any(isinstance(step, WeightStandardization) for step in steps)
