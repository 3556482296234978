"""Group Normalization (Wu & He 2018, https://arxiv.org/abs/1803.08494)."""

import torch
from torch import Tensor, nn

from normtutor.functional import group_norm
from normtutor.layers._norm import AffineNorm


class GroupNorm(AffineNorm, nn.GroupNorm):
    """Group Normalization: statistics over each sample's groups of C/G channels, at all positions.

    Args:
        num_groups: G, a divisor of C.
        num_channels: C.
        eps: ε, added to the variance.
        affine: learn γ (``weight``) and β (``bias``), each (C,).
        device, dtype: of the parameters.
        bias: learn β as well as γ.

    Shape: (N, C, *) → the same.

    Raises:
        ValueError: ``num_groups`` is below 1 or does not divide ``num_channels``.
        RuntimeError, NotImplementedError, ValueError: in ``forward``, as
            :func:`normtutor.functional.group_norm`.
    """

    function = staticmethod(group_norm)  # normtutor.fused has its own

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"num_groups must divide num_channels ({num_channels}), got {num_groups}")
        super().__init__((num_channels,), affine, affine and bias, device, dtype)
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )
