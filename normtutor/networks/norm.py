"""The normalization argument of every network: a catalog name, "none", or a factory."""

from collections.abc import Callable

from torch import nn

from normtutor.catalog import TECHNIQUES, Shape, technique

Norm = str | Callable[[Shape], nn.Module]


def build_norm(norm: Norm, shape: Shape, optional: bool = False) -> nn.Module:
    """The layer that normalizes an activation of ``shape`` (with N as 1, since it does not matter).

    Args:
        norm: the name of a catalog row; ``"none"``; or a factory that takes the shape, for torch's
            layers and experiments: ``lambda shape: nn.GroupNorm(8, shape[1])``.
        shape: (1, C, *) of the activation.
        optional: leave out a technique that is not defined on this many axes, instead of refusing it.

    Returns:
        The layer; the identity for ``"none"``, and for what is left out.

    Raises:
        TypeError: ``norm`` is neither a name nor a factory; the class of a layer is none.
        ValueError: an unknown name, or a technique that is not defined on this many axes.
    """
    if not isinstance(norm, str):
        if isinstance(norm, type) and norm.__module__.startswith(("torch.nn", "normtutor.layers")):
            raise TypeError(
                f"expected a name or a factory that takes the shape, got the class {norm.__name__}: "
                f"try lambda shape: {norm.__name__}(shape[1])"
            )
        if not callable(norm):
            raise TypeError(f"expected a name or a factory that takes the shape, got {norm!r}")
        return norm(shape)
    if norm == "none":
        return nn.Identity()
    if norm not in TECHNIQUES:
        names = ", ".join(["none", *TECHNIQUES])
        raise ValueError(f"unknown normalization {norm!r}: expected one of {names}, or a factory")
    row = technique(norm)
    if len(shape) in row.ranks:
        return row.layer(shape)
    if optional:
        return nn.Identity()
    defined = ", ".join(name for name, other in TECHNIQUES.items() if len(shape) in other.ranks)
    raise ValueError(
        f"{norm!r} is not defined on an activation of shape (N, {', '.join(map(str, shape[1:]))}): "
        f"expected one of none, {defined}, or a factory"
    )
