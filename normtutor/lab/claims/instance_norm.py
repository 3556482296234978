"""The claims about Instance Normalization that this course tests, all on photographs that packages ship."""

from functools import cache
from statistics import median
from typing import Any

from normtutor.lab import style
from normtutor.lab.claims import Claim, Measured
from normtutor.networks import Norm


@cache
def _comparisons(norm: Norm, full: bool) -> list[dict[str, Any]]:
    """One per seed: ``norm`` and Batch Normalization, trained in lockstep; both claims look at the same."""
    seeds, steps = (5, 180) if full else (1, 60)
    settings = style.SMALL | {"steps": steps}
    norms: dict[str, Norm] = {"normalized": norm, "batch": "batch"}
    return [style.compare(norms, seed=seed, **settings)["networks"] for seed in range(seeds)]


def stylization(norm: Norm, full: bool) -> Measured:
    """The networks' losses, on the crops they train on and on a photograph they never saw."""
    return {
        kind: {
            key: [seed[kind][key] for seed in _comparisons(norm, full)] for key in ("training_loss", "loss")
        }
        for kind in ("normalized", "batch")
    }


def _lower_loss(measured: Measured) -> bool:
    """the training loss, averaged over the last fifth of the steps, is at most 0.9 of BatchNorm's."""
    normalized, batch = (median(measured[kind]["training_loss"]) for kind in ("normalized", "batch"))
    return bool(normalized <= 0.9 * batch)


def _tell_stylization(measured: Measured) -> str:
    def line(kind: str) -> str:
        runs = measured[kind]
        return f"{median(runs['training_loss']):.3f} (held out {median(runs['loss']):.3f})"

    pairs = zip(*(measured[kind]["training_loss"] for kind in ("normalized", "batch")), strict=True)
    wins = [mine < theirs for mine, theirs in pairs]
    return (
        f"training loss {line('normalized')}; with BatchNorm {line('batch')}; lower in {sum(wins)} of "
        f"{len(wins)} runs"
    )


def contrast(norm: Norm, full: bool) -> Measured:
    """How the stylized picture changes when the photograph comes at 0.3 of its contrast."""
    return {
        kind: {
            key: [seed[kind][key] for seed in _comparisons(norm, full)]
            for key in ("change", "change_to_grey")
        }
        for kind in ("normalized", "batch")
    }


def _independent_of_contrast(measured: Measured) -> bool:
    """the picture changes by ≤ 2 %, but by ≥ 25 % for a grey photograph; BatchNorm's changes by ≥ 20 %."""
    normalized, batch = (measured[kind]["change"] for kind in ("normalized", "batch"))
    follows = measured["normalized"]["change_to_grey"]  # a network that ignores its input has no merit
    return bool(max(normalized) <= 0.02 and min(batch) >= 0.2 and min(follows) >= 0.25)


def _tell_contrast(measured: Measured) -> str:
    def line(kind: str) -> str:
        runs = {key: median(values) for key, values in measured[kind].items()}
        return f"{runs['change']:.1%} (for a grey photograph by {runs['change_to_grey']:.1%})"

    return f"at contrast × 0.3 the picture changes by {line('normalized')}; with BatchNorm by {line('batch')}"


_CAVEAT = (
    "random filters stand in for VGG, four photographs for thousands, and the network is an eighth as wide"
)

CLAIMS = (
    Claim(
        name="instance_norm.stylization",
        technique="instance",
        paper="Ulyanov et al. 2017",
        url="https://arxiv.org/abs/1701.02096",
        where="section 4",
        says="A style-transfer network trains to a lower loss with Instance than with Batch Normalization.",
        measure=stylization,
        holds=_lower_loss,
        tells=_tell_stylization,
        caveat=(
            f"{_CAVEAT}; after so few steps (60, in full 180) much of the gap is speed: it narrows with more"
        ),
    ),
    Claim(
        name="instance_norm.contrast",
        technique="instance",
        paper="Ulyanov et al. 2016",
        url="https://arxiv.org/abs/1607.08022",
        where="section 2",
        says="With Instance Normalization the stylized picture does not depend on the photograph's contrast.",
        measure=contrast,
        holds=_independent_of_contrast,
        tells=_tell_contrast,
        caveat=_CAVEAT,
        control="batch",
    ),
)
