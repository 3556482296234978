"""Batch Normalization layers (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167) and two variants."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normtutor.functional import batch_norm
from normtutor.layers._norm import ChannelNorm


class _BatchNorm(ChannelNorm):
    """The forward pass; a subclass says which ranks it takes.

    Args:
        num_features: C, the number of channels.
        eps: ε, added to the variance.
        momentum: weight of the newest batch in the running statistics; None: cumulative average.
        affine: learn γ (``weight``) and β (``bias``), each (C,).
        track_running_stats: keep ``running_mean``, ``running_var`` (C,) and ``num_batches_tracked``;
            without them the batch's statistics are used in evaluation too.
        device, dtype: of parameters and buffers.
        bias: learn β as well as γ.

    Shape: (N, C, *) → the same.

    Raises:
        ValueError: momentum out of range; in ``forward`` also wrong rank, ε out of range, or one
            value per channel in training.
        RuntimeError, NotImplementedError: as :func:`normtutor.functional.batch_norm`.
    """

    function = staticmethod(batch_norm)  # normtutor.fused has its own

    def forward(self, input: Tensor) -> Tensor:
        self._check_rank(input)
        # The running buffers take part only where they are updated (training) or used (evaluation).
        use_buffers = not self.training or self.track_running_stats
        running_mean = self.running_mean if use_buffers else None
        running_var = self.running_var if use_buffers else None
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)  # first, so that the first batch counts as 1
            momentum = self._momentum(self.num_batches_tracked)
        return self.function(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training=self.training or (self.running_mean is None and self.running_var is None),
            momentum=momentum,
            eps=self.eps,
        )

    def _momentum(self, batches: Tensor) -> float | Tensor:
        """Weight of this batch, the ``batches``-th, in the running statistics."""
        # A tensor, not a number: fullgraph compilation and export cannot read a value from the device.
        return 1.0 / _floating(batches) if self.momentum is None else self.momentum


def _floating(count: Tensor) -> Tensor:
    """A counter as a float tensor in the widest type its device has (MPS has no float64)."""
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Batch Normalization over (N, C) or (N, C, L): statistics over N, or N and L, per channel.

    Arguments, parameters and buffers are those of ``torch.nn.BatchNorm1d`` (see the base class). Where
    momentum is outside [0, 1] it raises ValueError; torch takes it silently.
    """

    layout: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch Normalization over (N, C, H, W): statistics over N, H and W, per channel.

    Arguments, parameters and buffers are those of ``torch.nn.BatchNorm2d`` (see the base class). Where
    momentum is outside [0, 1] it raises ValueError; torch takes it silently.
    """

    layout: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Batch Normalization over (N, C, D, H, W): statistics over N, D, H and W, per channel.

    Arguments, parameters and buffers are those of ``torch.nn.BatchNorm3d`` (see the base class). Where
    momentum is outside [0, 1] it raises ValueError; torch takes it silently.
    """

    layout: ClassVar = {5: "(N, C, D, H, W)"}


class AdaptiveBatchNorm(_BatchNorm, nn.modules.batchnorm._BatchNorm):
    """Batch Normalization whose momentum adapts to the number of batches seen: max(momentum, 1/t).

    The running statistics are the plain average of the first 1/momentum batches, so the initial 0 and 1
    leave no trace, and an exponential average from then on. Worth having where evaluation starts
    after few steps. With ``momentum=None`` it is the cumulative average. Arguments and state dict of
    :class:`BatchNorm2d`; takes 2 to 5 axes, (N, C, *). Running statistics from a checkpoint count as much as
    its ``num_batches_tracked`` says: where that is 0 or missing, the first batch replaces them.
    """

    layout: ClassVar = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}

    def _momentum(self, batches: Tensor) -> Tensor:
        return (1.0 / _floating(batches)).clamp_min(self.momentum or 0.0)


class LearnableBatchNorm(nn.Module):
    """Batch Normalization whose statistics are parameters: y = γ (x − m) / √(|v| + ε) + β.

    m (``running_mean``) and v (``running_var``) are used in training and in evaluation alike, and
    the loss moves them by gradient descent, as it moves γ and β. So no element depends on the rest of
    the batch: it works with a batch of one and has no train/eval gap. It normalizes only as far as
    m and v fit the data: start from a trained BatchNorm (``load_state_dict`` takes its state
    dict) or from a batch (:meth:`set_statistics`). All four parameters together are one affine map; the
    chapter measures whether learning m and v gains anything over freezing them.

    Args:
        num_features: C, the number of channels.
        eps: ε, added to |v|; the absolute value keeps a gradient step from making a root of a
            negative number.
        device, dtype: of the parameters.

    Shape: (N, C, *) → the same.

    Raises:
        IndexError, NotImplementedError, RuntimeError: as :func:`normtutor.functional.batch_norm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.running_mean = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.running_var = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    @torch.no_grad()
    def set_statistics(self, input: Tensor) -> None:
        """Set m and v to the mean and unbiased variance of a batch (N, C, *), per channel.

        Raises:
            ValueError: the batch has one value per channel; others as in ``forward``.
        """
        # What training with momentum 1 leaves in the buffers, with its checks; ε plays no part in it.
        batch_norm(input, self.running_mean, self.running_var, training=True, momentum=1.0, eps=1.0)

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(
            input, self.running_mean, self.running_var.abs(), self.weight, self.bias, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A BatchNorm's counter has no meaning here; a copy without it, so that the caller's dict stays whole.
        kept = {key: value for key, value in state_dict.items() if key != prefix + "num_batches_tracked"}
        super()._load_from_state_dict(kept, prefix, *args)
