"""Layers with Weight Normalization (Salimans & Kingma 2016, https://arxiv.org/abs/1602.07868)."""

import inspect
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from normtutor.functional import HALF, weight_length, weight_norm

# What torch's parametrization calls g and v in a state dict.
PARAMETRIZATION = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


class _WeightNorm(nn.Module):
    """A torch layer whose weight is g v / ‖v‖; a subclass names the layer, whose forward pass it keeps.

    Args:
        dim: the axis of the weight whose indices have a length g each, see
            :func:`normtutor.functional.weight_norm`; all other arguments are the plain layer's.

    The parameters are ``weight_g`` and ``weight_v`` (g and v), and the plain layer's ``bias``; ``weight`` is
    computed from them. A new layer's v is what the plain layer's weight would be, and g = ‖v‖, so w = v.

    State dicts load from torch's ``parametrizations.weight_norm`` and into it: it renames these keys, and
    this layer renames its keys. A v with a length of 0 is a ValueError when the layer is made, loaded,
    initialized from data or turned into a plain one.
    """

    plain: ClassVar[type[nn.Module]]
    output_axis: ClassVar[int] = 0  # of the weight: the index of the output

    weight_g: Tensor
    weight_v: Tensor
    bias: Tensor | None

    def __init__(self, *args: Any, dim: int | None = 0, **options: Any) -> None:
        super().__init__(*args, **options)  # the plain layer's: makes a parameter `weight`
        self.dim = dim
        v = self._parameters.pop("weight")
        assert v is not None
        self.weight_g = nn.Parameter(weight_length(v.detach(), dim))
        self.weight_v = nn.Parameter(v.detach())
        _check_length(self.weight_v, dim)

    @property
    def weight(self) -> Tensor:
        """w = g v / ‖v‖. (Until v exists, nn.Module finds the parameter of the plain layer's constructor.)"""
        return weight_norm(self.weight_v, self.weight_g, self.dim)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """v and bias as a new plain layer's, and g = ‖v‖."""
        if "weight_v" not in self._parameters:  # called by the plain layer's constructor
            super().reset_parameters()  # type: ignore[misc]
            return
        fresh: Any = self.plain(**self._arguments())
        self.weight_v.copy_(fresh.weight)
        self.weight_g.copy_(weight_length(self.weight_v, self.dim))
        if self.bias is not None:
            self.bias.copy_(fresh.bias)

    @torch.no_grad()
    def initialize(self, input: Tensor) -> Tensor:
        """Set g and the bias so that every output has mean 0 and variance 1 over ``input`` (section 3).

        With t = v·x / ‖v‖: g ← 1/σ[t], b ← −μ[t]/σ[t], per output, over the batch and all positions.
        Without a bias only the variance becomes 1.

        Returns:
            The output for ``input`` afterwards, the next layer's input: initialize from first to last.

        Raises:
            ValueError: g is not one number for each output (``dim``); an output does not vary over
                ``input``; v has a length of 0.
        """
        _check_length(self.weight_v, self.dim)
        unit = self._unset()  # g = 1, b = 0
        unit.weight.copy_(weight_norm(self.weight_v, torch.ones_like(self.weight_g), self.dim))
        if self.bias is not None:
            unit.bias.zero_()
        t = unit(input)
        t = t.float() if t.dtype in HALF else t
        channel = t.dim() - (1 if self.plain is nn.Linear else self.weight_v.dim() - 1)
        wanted = [1] * self.weight_v.dim()
        wanted[self.output_axis] = t.size(channel)
        if list(self.weight_g.shape) != wanted:
            raise ValueError(
                f"expected one g for each of the {t.size(channel)} outputs (dim={self.output_axis}, and no "
                f"groups in a transposed convolution), got dim={self.dim}, g of {tuple(self.weight_g.shape)}"
            )
        var, mean = torch.var_mean(t, dim=[d for d in range(t.dim()) if d != channel], correction=0)
        constant = (~(var > 0)).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"expected outputs that vary over the input, but {constant} do not")
        self.weight_g.copy_(var.rsqrt().view(wanted))
        if self.bias is not None:
            self.bias.copy_(-mean * var.rsqrt())
        output: Tensor = self(input)
        return output

    @torch.no_grad()
    def to_plain(self) -> nn.Module:
        """The plain torch layer with this weight, for inference: nothing is left of the normalization's cost.

        Raises:
            ValueError: v has a length of 0.
        """
        _check_length(self.weight_v, self.dim)
        plain = self._unset()
        plain.weight.copy_(self.weight)
        if self.bias is not None:
            plain.bias.copy_(self.bias)
        return cast(nn.Module, plain.train(self.training))

    def _arguments(self) -> dict[str, Any]:
        """The plain layer's constructor's; their names are attributes' names too, with these exceptions."""
        names = inspect.signature(self.plain).parameters.keys() - {"bias", "device", "dtype"}
        v = self.weight_v
        rest = {"bias": self.bias is not None, "device": v.device, "dtype": v.dtype}
        return {name: getattr(self, name) for name in names} | rest

    def _unset(self) -> Any:
        """A plain layer with this one's arguments and whatever values; the random state stays as it is."""
        return nn.utils.skip_init(self.plain, **self._arguments())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dim={self.dim}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        renamed = {prefix + theirs: prefix + ours for theirs, ours in PARAMETRIZATION.items()}
        state_dict = {renamed.get(key, key): value for key, value in state_dict.items()}
        v = state_dict.get(prefix + "weight_v")
        if v is not None and v.shape == self.weight_v.shape:
            _check_length(v, self.dim)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_length(v: Tensor, dim: int | None) -> None:
    """Raise ValueError where ‖v‖ = 0: w = g v / ‖v‖ would be NaN."""
    if v.is_meta or v.numel() == 0:
        return
    zero = weight_length(v.detach().float() if v.dtype in HALF else v.detach(), dim) == 0
    if zero.any():
        raise ValueError(
            f"weight norm is undefined where v = 0: {int(zero.sum())} of {zero.numel()} directions of a v of "
            f"shape {tuple(v.shape)} (dim={dim}) have length 0"
        )


class WeightNormLinear(_WeightNorm, nn.Linear):  # type: ignore[override, misc]
    """:class:`torch.nn.Linear` with weight g v / ‖v‖: one g for each output feature with ``dim=0``."""

    plain = nn.Linear


class WeightNormConv1d(_WeightNorm, nn.Conv1d):  # type: ignore[override]
    """:class:`torch.nn.Conv1d` with weight g v / ‖v‖: one g for each output channel with ``dim=0``."""

    plain = nn.Conv1d


class WeightNormConv2d(_WeightNorm, nn.Conv2d):  # type: ignore[override]
    """:class:`torch.nn.Conv2d` with weight g v / ‖v‖: one g for each output channel with ``dim=0``."""

    plain = nn.Conv2d


class WeightNormConvTranspose1d(_WeightNorm, nn.ConvTranspose1d):  # type: ignore[override]
    """:class:`torch.nn.ConvTranspose1d` with weight g v / ‖v‖, (C_in, C_out, K).

    One g for each output channel takes ``dim=1`` here; ``dim=0``, torch's default, is one for each input
    channel.
    """

    plain = nn.ConvTranspose1d
    output_axis = 1


class WeightNormConvTranspose2d(_WeightNorm, nn.ConvTranspose2d):  # type: ignore[override]
    """:class:`torch.nn.ConvTranspose2d` with weight g v / ‖v‖, (C_in, C_out, K, K).

    One g for each output channel takes ``dim=1`` here; ``dim=0``, torch's default, is one for each input
    channel.
    """

    plain = nn.ConvTranspose2d
    output_axis = 1
