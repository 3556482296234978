"""Instance Normalization layers (Ulyanov, Vedaldi & Lempitsky 2016, https://arxiv.org/abs/1607.08022)."""

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normtutor.functional import instance_norm
from normtutor.layers._norm import ChannelNorm


class _InstanceNorm(ChannelNorm):
    """Defaults and the forward pass; a subclass says which ranks it takes.

    Args:
        num_features: C, the number of channels.
        eps: ε, added to the variance.
        momentum: weight of the newest batch in the running statistics; with None they never move, as in
            torch: ``num_batches_tracked`` stays 0, so there is no cumulative average.
        affine: learn γ (``weight``) and β (``bias``), each (C,).
        track_running_stats: keep ``running_mean`` and ``running_var`` (C,), averages over samples and steps,
            and normalize with them in evaluation. Without them each sample's own statistics are used always.
        device, dtype: of parameters and buffers.
        bias: learn β as well as γ.

    Shape: (N, C, *), or one sample (C, *) → the same.

    Raises:
        ValueError: momentum out of range; in ``forward`` also wrong rank, another number of channels
            than γ's, or one value per sample and channel where those are the statistics.
        RuntimeError, NotImplementedError: as :func:`normtutor.functional.instance_norm`.
    """

    function = staticmethod(instance_norm)  # normtutor.fused has its own

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        self._check_rank(input)
        one_sample = input.dim() == min(self.layout)
        x = input.unsqueeze(0) if one_sample else input
        self._check_channels(x)
        y = self.function(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            use_input_stats=self.training or not self.track_running_stats,
            momentum=0.0 if self.momentum is None else self.momentum,
            eps=self.eps,
        )
        return y.squeeze(0) if one_sample else y

    def _check_channels(self, input: Tensor) -> None:
        if input.size(1) == self.num_features:
            return
        message = f"expected {self.num_features} channels (num_features), got {input.size(1)}"
        if self.affine:
            raise ValueError(message)
        # Nothing is kept per channel, so it works all the same; torch warns too.
        warnings.warn(f"{message}; without affine that is not used", stacklevel=3)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        errors: list[str] = args[-1]
        unexpected = [name for name in ("running_mean", "running_var") if prefix + name in state_dict]
        if local_metadata.get("version") is None and not self.track_running_stats and unexpected:
            errors.append(
                f"unexpected {' and '.join(unexpected)} for {type(self).__name__} with "
                "track_running_stats=False: a checkpoint from before torch 0.4, where they were always kept? "
                "Remove them from it, or set track_running_stats=True if they are needed."
            )
            for name in unexpected:
                del state_dict[prefix + name]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """Instance Normalization over (N, C, L): statistics over L, per sample and channel.

    A 2D input is one sample (C, L), as in torch, never a batch (N, C): that has one value per sample and
    channel, of which nothing would remain.
    """

    layout: ClassVar = {2: "(C, L)", 3: "(N, C, L)"}


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Instance Normalization over (N, C, H, W): statistics over H and W, per sample and channel."""

    layout: ClassVar = {3: "(C, H, W)", 4: "(N, C, H, W)"}


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Instance Normalization over (N, C, D, H, W): statistics over D, H and W, per sample and channel."""

    layout: ClassVar = {4: "(C, D, H, W)", 5: "(N, C, D, H, W)"}
