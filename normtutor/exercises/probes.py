"""What the probes of several chapters share."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normtutor.exercises.observe import Approx, Broken, Draw, Holds, Secret

Observations = Iterator[tuple[str, object]]


def leaf(value: Tensor) -> Tensor:
    """A copy to take a gradient in; pass ``leaf * 1``, which may be overwritten."""
    return value.clone().requires_grad_()


def gradients(y: Tensor, draw: Draw, **inputs: object) -> Observations:
    """The gradient of a random weighted sum of ``y`` in each input."""
    weights = draw.values(*y.shape) if y.is_floating_point() else y
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.requires_grad and y.requires_grad:
            (gradient,) = torch.autograd.grad(y, value, weights, retain_graph=True, allow_unused=True)
            yield f"gradient in {name}", gradient
        else:
            yield f"gradient in {name}", None


def unchanged(x: Tensor, kept: Tensor, mistake: str = "") -> Holds:
    """Whether ``x`` is still what it was; ``mistake`` is the one that overwrites it."""
    return Holds(torch.equal(x, kept), "the input is overwritten", mistake)


def parameter_shapes(layer: nn.Module) -> dict[str, str]:
    """The learned parameters by name, each in words."""
    return {name: f"of shape {tuple(value.shape)}" for name, value in sorted(layer.named_parameters())}


def fill(layer: nn.Module, draw: Draw, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Random parameters and statistics, as training or a checkpoint would leave them.

    What the layer lacks, or has in another size, is drawn and dropped: all answers see the same numbers.
    """
    for name, shape in shapes.items():
        values = draw.values(*shape, low=0.5 if name == "running_var" else -2)
        tensor = getattr(layer, name, None)
        if isinstance(tensor, Tensor) and tensor.numel() == values.numel():
            with torch.no_grad():
                tensor.copy_(values.view_as(tensor))


def loads(state: dict[str, Tensor], into: nn.Module) -> bool:
    """Whether the module takes that checkpoint."""
    try:
        into.load_state_dict(state)
    except RuntimeError:
        return False
    return True


def can_be_copied(layer: nn.Module) -> bool:
    """Whether ``copy.deepcopy`` takes the layer: not one that holds a tensor with a graph."""
    try:
        copy.deepcopy(layer)
    except RuntimeError:
        return False
    return True


def numbers(answer: Mapping[str, Any], names: Sequence[str], tolerance: float) -> Observations:
    """The numbers of a dict, as secrets: a verdict that showed the right one would give it away.

    Args:
        answer: the learner's dict.
        names: its keys, in the order in which they are looked at.
        tolerance: relative to the number, or absolute where that is below 1.

    Raises:
        Broken: a key is missing, or a value is no number.
    """
    for name in names:
        value = _entry(answer, name)
        if value is not ... and not isinstance(value, Tensor):
            try:
                value = float(value)
            except (TypeError, ValueError):
                raise Broken(f"{name}: expected a number, got {type(value).__name__}.") from None
        elif isinstance(value, Tensor):
            value = value.double().cpu()
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        yield name, Secret(Approx(number, tolerance))


def choices(answer: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> Observations:
    """The words of a dict, each one of the options that its key has, as secrets.

    Raises:
        Broken: a key is missing, or a value is none of its options.
    """
    for name, allowed in options.items():
        value = _entry(answer, name)
        if value is not ...:
            if value not in allowed:
                raise Broken(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}.")
            value = Secret(value)
        yield name, value


def _entry(answer: Mapping[str, Any], name: str) -> Any:
    if name not in answer:
        raise Broken(f"The dict lacks the key {name!r}.")
    return answer[name]
