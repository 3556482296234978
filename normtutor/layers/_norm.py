"""What the layers share: parameters, running statistics, and what a checkpoint holds."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normtutor.functional import check_momentum


class AffineNorm(nn.Module):
    """γ (``weight``) and β (``bias``), None where they are not learned.

    A layer derives from this and, second, from torch's layer of the same name: nothing of torch's is run,
    but code that asks ``isinstance(module, nn.BatchNorm2d)``, as ``update_bn`` and many a weight
    initialization do, then finds it.
    """

    weight: Any  # nn.Parameter or None; torch's own annotations, which these must fit, leave out the None
    bias: Any

    def __init__(
        self,
        shape: Sequence[int],
        weight: bool,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        nn.Module.__init__(self)  # not torch's layer's
        for name, learned in (("weight", weight), ("bias", bias)):
            values = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if learned else None
            self.register_parameter(name, values)

    def reset_parameters(self) -> None:
        """γ = 1 and β = 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ChannelNorm(AffineNorm):
    """Parameters and running statistics per channel, (C,) each: BatchNorm's and InstanceNorm's."""

    _version = 2  # torch's: since 2 the state dict holds num_batches_tracked
    layout: ClassVar[Mapping[int, str]]  # accepted rank → the axes' names, for the error message

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__((num_features,), affine, affine and bias, device, dtype)
        if momentum is not None:
            check_momentum(type(self).__name__, momentum)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats

        for name in ("running_mean", "running_var"):
            values = torch.empty(num_features, device=device, dtype=dtype) if track_running_stats else None
            self.register_buffer(name, values)
        counter = torch.zeros((), dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", counter)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batches seen."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """γ = 1, β = 0, and fresh running statistics."""
        self.reset_running_stats()
        super().reset_parameters()

    def _check_rank(self, input: Tensor) -> None:
        if input.dim() not in self.layout:
            wanted = " or ".join(f"{rank}D input {axes}" for rank, axes in self.layout.items())
            raise ValueError(f"expected {wanted}, got {input.dim()}D input of shape {tuple(input.shape)}")

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if (local_metadata.get("version") or 1) < 2 and self.num_batches_tracked is not None:
            # A checkpoint from before version 2 has no counter: keep ours.
            on_meta = self.num_batches_tracked.is_meta
            state_dict.setdefault(key, torch.tensor(0) if on_meta else self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
