"""Layer Normalization (Ba, Kiros & Hinton 2016, https://arxiv.org/abs/1607.06450) and RMSNorm.

RMSNorm: Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467.
"""

from collections.abc import Iterable, Sequence
from operator import index

import torch
from torch import Tensor, nn

from normtutor.functional import layer_norm, rms_norm
from normtutor.layers._norm import AffineNorm


class LayerNorm(AffineNorm, nn.LayerNorm):
    """Layer Normalization over the last axes, which must have the sizes ``normalized_shape``.

    Args:
        normalized_shape: sizes of the last axes; one number for the last axis alone.
        eps: ε, added to the variance.
        elementwise_affine: learn γ (``weight``) and β (``bias``), of shape ``normalized_shape``.
        bias: learn β as well as γ.
        device, dtype: of the parameters.

    Shape: ``(*, *normalized_shape)`` → the same.

    Raises:
        RuntimeError, NotImplementedError, ValueError: in ``forward``, as
            :func:`normtutor.functional.layer_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _sizes(normalized_shape)
        super().__init__(sizes, elementwise_affine, elementwise_affine and bias, device, dtype)
        self.normalized_shape = sizes
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(AffineNorm, nn.RMSNorm):
    """Root Mean Square Normalization over the last axes: x̂ is x ÷ √(mean of x² + ε), no mean subtracted.

    Args:
        normalized_shape: sizes of the last axes; one number for the last axis alone.
        eps: ε, added to the mean of x². None: see :func:`normtutor.functional.rms_norm`; its meaning changed
            between torch releases, so better give a number.
        elementwise_affine: learn γ (``weight``), of shape ``normalized_shape``; there is no β.
        device, dtype: of γ.

    Shape: ``(*, *normalized_shape)`` → the same.

    Raises:
        RuntimeError, NotImplementedError, ValueError: in ``forward``, as
            :func:`normtutor.functional.rms_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _sizes(normalized_shape)
        super().__init__(sizes, elementwise_affine, False, device, dtype)
        self.normalized_shape = sizes
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


def _sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Sizes as a tuple; ``index`` takes the whole numbers of other libraries too, and refuses 2.5."""
    return tuple(normalized_shape) if isinstance(normalized_shape, Iterable) else (index(normalized_shape),)
