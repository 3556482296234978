"""The normalization argument of every network: a catalog name, "none", or a factory."""

from collections.abc import Callable

from torch import nn

from normtutor.catalog import TECHNIQUES, Shape, technique

Norm = str | Callable[[Shape], nn.Module]


def build_norm(norm: Norm, shape: Shape) -> nn.Module:
    """The layer that normalizes an activation of ``shape`` (with N as 1, since it does not matter).

    Args:
        norm: the name of a catalog row; ``"none"``; or a factory that takes the shape, for torch's
            layers and experiments: ``lambda shape: nn.GroupNorm(8, shape[1])``.
        shape: (1, C, *) of the activation.

    Returns:
        The layer; the identity for ``"none"`` and where the technique is undefined on this rank.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(norm, str):
        return norm(shape)
    if norm == "none":
        return nn.Identity()
    if norm not in TECHNIQUES:
        names = ", ".join(["none", *TECHNIQUES])
        raise ValueError(f"unknown normalization {norm!r}: expected one of {names}, or a factory")
    row = technique(norm)
    return row.layer(shape) if len(shape) in row.ranks else nn.Identity()
