"""All techniques side by side on one tensor: time forward and backward, and memory."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normtutor.catalog import TECHNIQUES, Shape, Technique
from normtutor.lab.machine import default_device
from normtutor.lab.memory_use import MemoryUse, memory
from normtutor.lab.text import number, size, table
from normtutor.lab.timing import BOTH, FORWARD, Timings, time_together
from normtutor.layers import WeightNormConv2d

# The founding draft's comparison, and what networks of today hand a normalization.
SEED_SHAPE: Shape = (16, 64, 32, 32)
SHAPES: dict[str, Shape] = {
    "the draft's maps": SEED_SHAPE,
    "early maps of a ResNet": (32, 64, 56, 56),
    "late maps of a ResNet": (32, 512, 7, 7),
    "8 sequences of 512 tokens": (8 * 512, 768),
}
CANDIDATES = ("eager", "torch.nn")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Every technique on one tensor. ``print`` it, or keep :meth:`to_dict` as JSON.

    Attributes:
        shape: of the tensor.
        timings: a candidate is called "batch, eager" or "batch, torch.nn"; "copy" is ``x.clone()``, whose
            backward pass is another copy.
        memory: what each candidate holds and keeps, and a 3×3 convolution as it is and with Weight
            Normalization where the tensor holds maps.
        undefined: techniques without a layer for this rank.
    """

    shape: Shape
    timings: Timings
    memory: Mapping[str, MemoryUse]
    undefined: tuple[str, ...]

    def milliseconds(self, technique: str, candidate: str = "torch.nn", direction: str = FORWARD) -> float:
        """The median time.

        Raises:
            ValueError: it was not compared.
        """
        found = self.timings.select(candidate=_name(technique, candidate), direction=direction)
        if not found:
            raise ValueError(
                f"{_name(technique, candidate)} {direction} was not timed at {number(self.shape)}"
            )
        return found[0].milliseconds

    def time_table(self) -> str:
        """Aligned text: median forward and forward + backward, quartiles, share of the copy bandwidth."""
        head = ["technique", "layer", "fwd ms", "quartiles", "of copy", "fwd+bwd ms", "quartiles", "of copy"]
        lines = []
        for name in dict.fromkeys(row.candidate for row in self.timings.rows):
            technique, _, candidate = name.partition(", ")
            line = [technique, candidate]
            for direction in (FORWARD, BOTH):
                (row,) = self.timings.select(candidate=name, direction=direction)
                if row.reason:
                    line += [row.reason[:24], "", ""]
                    continue
                line += [number(row.milliseconds), f"{number(row.low)}–{number(row.high)}"]
                line += [f"{row.fraction:.2f}" if row.bytes else ""]
            lines.append(line)
        notes = [f"{number(self.shape)}: {next(self.timings.notes())}", *list(self.timings.notes())[1:]]
        if self.undefined:
            notes.append(f"not defined on this rank: {', '.join(self.undefined)}")
        return "\n".join([table(head, lines), "", *(textwrap.fill(note, 88) for note in notes)])

    def memory_table(self) -> str:
        """Aligned text: parameters, buffers, and what autograd keeps for the backward pass."""
        head = ["technique", "layer", "parameters", "buffers", "kept for backward", "in all"]
        lines = []
        for name, use in self.memory.items():
            technique, _, candidate = name.partition(", ")
            kept = use.saved_bytes + use.saved_input_bytes
            # The input is part of "in all" only: something else may hold it anyway.
            lines.append(
                [
                    technique,
                    candidate,
                    str(use.parameters),
                    str(use.buffers),
                    size(use.saved_bytes),
                    size(kept),
                ]
            )
        return "\n".join(
            [
                table(head, lines),
                "",
                f"{number(self.shape)}, one tensor of this size is {size(self._input_bytes())}. “In all” "
                "counts",
                "the input too where autograd keeps it; the layer before may hold it anyway.",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "shape": list(self.shape),
            "timings": self.timings.to_dict(),
            "memory": {name: use.to_dict() for name, use in self.memory.items()},
            "undefined": list(self.undefined),
        }

    def _input_bytes(self) -> int:
        return 4 * torch.Size(self.shape).numel()

    def __repr__(self) -> str:
        return f"{self.time_table()}\n\n{self.memory_table()}"


class _Copy(nn.Module):
    """The least that any layer does: read x, write y."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def compare(
    shape: Sequence[int] = SEED_SHAPE,
    *,
    device: str | None = None,
    candidates: Sequence[str] = CANDIDATES,
    seconds: float = 2.0,
    rounds: int = 5,
) -> Comparison:
    """Time and weigh every technique that is defined on tensors of ``shape``.

    All candidates take turns on one tensor in one process, as :func:`normtutor.lab.bench` times them. The
    layers are the catalog's: LayerNorm and RMSNorm over all axes but the first, GroupNorm with eight groups,
    InstanceNorm with γ and β. For tokens, pass (N·T, features).

    Args:
        shape: (N, C, *).
        device: of torch; default: CUDA where present, else the CPU.
        candidates: "eager" (ours), "torch.nn", or both.
        seconds: for the timing of both directions together.
        rounds: the fewest rounds.

    Raises:
        ValueError: fewer than two axes, an empty one, or an unknown candidate.
        RuntimeError: the device is absent.
    """
    shape = tuple(shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"expected a shape (N, C, *) without empty axes, got {number(shape)}")
    for candidate in candidates:
        if candidate not in CANDIDATES:
            raise ValueError(f"unknown candidate {candidate!r}: expected one of {', '.join(CANDIDATES)}")
    place = device or default_device()
    rows = [row for row in TECHNIQUES.values() if len(shape) in row.ranks]
    layers = {
        _name(row.name, candidate): (row, row.layer if candidate == "eager" else row.twin)
        for row in rows
        for candidate in candidates
    }
    copy: dict[str, tuple[Technique | None, Any]] = {"copy, clone": (None, lambda shape: _Copy())}
    timings = time_together(
        "all techniques",
        copy | layers,
        [shape],
        device=place,
        seconds=seconds,
        rounds=rounds,
        command=f"compare({shape}, device={place!r})",
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(place)
    uses = {name: memory(factory(shape).to(place), x) for name, (_, factory) in layers.items()}
    if len(shape) == 4:
        options: dict[str, Any] = {"kernel_size": 3, "padding": 1, "bias": False}
        plain = nn.Conv2d(shape[1], shape[1], **options)
        normalized = WeightNormConv2d(shape[1], shape[1], **options)
        twin = nn.utils.parametrizations.weight_norm(nn.Conv2d(shape[1], shape[1], **options))
        uses |= {
            "3×3 conv, plain": memory(plain.to(place), x),
            "3×3 conv + weight, eager": memory(normalized.to(place), x),
            "3×3 conv + weight, torch.nn": memory(twin.to(place), x),
        }
    undefined = tuple(row.name for row in TECHNIQUES.values() if row not in rows)
    return Comparison(shape, timings, uses, undefined)


def _name(technique: str, candidate: str) -> str:
    return f"{technique}, {candidate}"
