"""Parity: is our layer as exact as the arithmetic allows? Ours and torch's, both judged against the truth."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normtutor.catalog import Shape, Technique
from normtutor.catalog import technique as catalog_row
from normtutor.functional import HALF
from normtutor.lab.machine import present, present_devices
from normtutor.lab.text import number, table
from normtutor.lab.training import one_thread
from normtutor.lab.truth import Array, standardization, sum_to

Errors = Mapping[str, float]

DTYPES = ("float64", "float32", "bfloat16", "float16")
OFFSETS = (0.0, 1e2, 1e3, 1e4)
GROUP = ("device", "dtype", "mode", "layout", "offset")  # one line of the table


@dataclass(frozen=True)
class Comparison:
    """Ours and torch's on the same input, each compared with the truth.

    Attributes:
        device, shape, mode: where, on what, "train" or "eval".
        dtype: the input's, with the parameters' and buffers' behind a slash where they differ.
        layout: "contiguous", "channels_last", "channels_last_3d" or "strided" (every second element of the
            last axis of a larger tensor).
        offset: |mean| ÷ deviation of the input, before it was rounded to its dtype.
        ours, torch: quantity → max |value − truth| ÷ max |truth| (normwise; inf where not finite). For
            a parameter's gradient, a sum of M terms that may cancel by chance, the divisor is at least
            the root of the sum of the squared terms, the size that such a sum has on average.
        allowed: quantity → factor · torch's error + a few units in the last place.
        status: "ok", "failed", or "skipped" where torch's own layer raises.
        reason: why it failed or was skipped.
    """

    device: str
    dtype: str
    mode: str
    layout: str
    offset: float
    shape: Shape
    status: str
    reason: str = ""
    ours: Errors = field(default_factory=dict)
    torch: Errors = field(default_factory=dict)
    allowed: Errors = field(default_factory=dict)

    @property
    def quantity(self) -> str:
        """The quantity with the largest share of its allowed error; empty where none was measured."""
        return max(self.ours, key=self._share, default="")

    @property
    def share(self) -> float:
        """The worst quantity's error ÷ its allowed error; above 1 fails, and inf means our layer raised."""
        if self.status == "skipped":
            return 0.0
        return self._share(self.quantity) if self.ours else float("inf")

    def _share(self, quantity: str) -> float:
        error, allowed = self.ours[quantity], self.allowed[quantity]
        if error == 0:
            return 0.0
        return error / allowed if np.isfinite(error) and allowed > 0 else float("inf")


@dataclass(frozen=True, repr=False)
class ParityReport:
    """Every comparison of one :func:`parity` run. ``print`` it, or assert on ``ok``."""

    technique: str
    factor: float
    ulps: float
    rows: tuple[Comparison, ...]

    @property
    def ok(self) -> bool:
        """Something was compared, and nothing failed."""
        return any(row.status == "ok" for row in self.rows) and not self.failures

    @property
    def failures(self) -> list[Comparison]:
        return [row for row in self.rows if row.status == "failed"]

    @property
    def skipped(self) -> list[Comparison]:
        return [row for row in self.rows if row.status == "skipped"]

    def worst(self) -> Comparison:
        """The comparison with the largest share of its allowed error (see :attr:`Comparison.share`)."""
        return max(self.rows, key=lambda row: row.share)

    def table(
        self,
        *,
        by: Sequence[str] = GROUP,
        quantity: str | None = None,
        numbers: bool = True,
        **only: str | float,
    ) -> str:
        """Aligned text, one line per group with its worst comparison, then a verdict and the failures'
        reasons.

        Args:
            by: the attributes of :class:`Comparison` that make a group.
            quantity: show the largest errors of this one ("output", "grad input", "running_var" …); default:
                the quantity that takes the largest share of its allowed error.
            numbers: False leaves the errors out; what remains is the same on every machine of one kind.
            only: attribute=value, to show these rows only: ``table(offset=1e4, mode="train")``.
        """
        rows = [row for row in self.rows if all(getattr(row, key) == value for key, value in only.items())]
        head = [*by, "ok"] + (
            ["quantity" if quantity else "worst quantity", "ours", "torch", "allowed"] if numbers else []
        )
        lines = []
        for group in self._groups(rows, by, quantity):
            line = [number(group[key]) for key in by]
            line.append("skipped" if not group["compared"] else f"{group['ok']}/{group['compared']}")
            if numbers:
                line += [number(group.get(key)) for key in ("quantity", "ours", "torch", "allowed")]
            lines.append(line)
        return "\n".join([table(head, lines), "", *self._verdict(rows)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the verdict, one entry per group, and each failed or skipped comparison in full.

        An infinite error is the text "inf", which JSON has no number for.
        """
        record = {
            "technique": self.technique,
            "factor": self.factor,
            "ulps": self.ulps,
            "ok": self.ok,
            "compared": len(self.rows) - len(self.skipped),
            "groups": list(self._groups(self.rows, GROUP)),
            "failures": [asdict(row) for row in self.failures],
            "skipped": [asdict(row) for row in self.skipped],
        }
        return cast(dict[str, Any], _plain(record))

    def summary(self) -> str:
        """The verdict in one line."""
        return next(self._verdict(self.rows))

    def __repr__(self) -> str:
        return self.table()

    def _groups(
        self, rows: Iterable[Comparison], by: Sequence[str], quantity: str | None = None
    ) -> Iterator[dict[str, Any]]:
        groups: dict[tuple[Any, ...], list[Comparison]] = {}
        for row in rows:
            groups.setdefault(tuple(getattr(row, key) for key in by), []).append(row)
        for key, members in groups.items():
            compared = [row for row in members if row.status != "skipped"]
            group = dict(zip(by, key, strict=True))
            group |= {"compared": len(compared), "ok": sum(row.status == "ok" for row in compared)}
            worst = max(compared, key=lambda row: row.share, default=None)
            name = quantity or (worst.quantity if worst else "")
            shown = [row for row in ([worst] if worst and not quantity else compared) if name in row.ours]
            if shown:
                ours, theirs = max(row.ours[name] for row in shown), max(row.torch[name] for row in shown)
                allowed = max(row.allowed[name] for row in shown)
                group |= {"quantity": name, "ours": ours, "torch": theirs, "allowed": allowed}
            yield group

    def _verdict(self, rows: Sequence[Comparison]) -> Iterator[str]:
        failed = [row for row in rows if row.status == "failed"]
        skipped = [row for row in rows if row.status == "skipped"]
        judged = len(rows) - len(skipped)
        rule = f"error ≤ {self.factor:g} × torch's + {self.ulps:g} units in the last place"
        yield f"{self.technique}: {judged - len(failed)} of {judged} comparisons ok ({rule})"
        for word, group in (("failed", failed), ("skipped", skipped)):
            reasons: dict[str, int] = {}
            for row in group:
                reasons[row.reason] = reasons.get(row.reason, 0) + 1
            yield from (f"{word} {count}×: {reason}" for reason, count in reasons.items())


@one_thread()  # the tensors are small, and how many threads share a sum must not decide a verdict
def parity(
    technique: str | Technique,
    devices: Sequence[str] | None = None,
    dtypes: Sequence[str | torch.dtype] = DTYPES,
    offsets: Sequence[float] = OFFSETS,
    *,
    layer: Callable[[Shape], nn.Module] | None = None,
    shapes: Sequence[Shape] | None = None,
    steps: int = 3,
    factor: float = 2.0,
    ulps: float = 4.0,
    seed: int = 0,
) -> ParityReport:
    """Compare our layer and torch's with :mod:`normtutor.lab.truth`, on the same inputs.

    For every device, dtype, mode, memory layout and offset: the output, every gradient for a random
    upstream gradient, and the buffers after ``steps`` training steps. γ, β and the running statistics are
    random; each channel, or group of channels that share statistics, has its own sign and scale.
    Half-precision inputs are tried with parameters and buffers of their own dtype and of float32. The truth
    is evaluated on the rounded inputs and parameters, so both candidates face the same condition number. A
    quantity passes if its error (see :class:`Comparison`) is at most ``factor`` × torch's + ``ulps`` × the
    machine epsilon of its dtype; the second term keeps the last rounding, which is luck, out of the
    verdict. A counter must be exact.

    Args:
        technique: a catalog row or its name.
        devices: of torch; default: every one present.
        dtypes: of the input.
        offsets: |mean| ÷ deviation of each channel, or group of channels that share statistics.
        layer: judge this instead of the row's layer: shape → module. It must load the state dict of
            torch's layer.
        shapes: default: the row's ``parity_shapes``.
        steps: training steps before the buffers are compared.
        factor, ulps: the two terms of the rule above.
        seed: of every random number.

    Raises:
        ValueError: unknown technique.
        RuntimeError: a device in ``devices`` is absent.
    """
    row = catalog_row(technique) if isinstance(technique, str) else technique
    places = present_devices() if devices is None else [str(present(device)) for device in devices]
    ours = row.layer if layer is None else layer
    rows = []
    for shape in row.parity_shapes if shapes is None else shapes:
        for dtype in map(_dtype, dtypes):
            for parameters in (dtype, torch.float32) if dtype in HALF else (dtype,):
                for mode in row.modes:
                    for offset in offsets:
                        case = _Case(row, shape, dtype, parameters, mode, float(offset), steps, seed)
                        for place in places:
                            rows += [
                                case.compare(ours, place, at, factor, ulps) for at in layouts(len(shape))
                            ]
    order = {name: i for i, name in enumerate(places)}
    rows.sort(key=lambda r: (order[r.device], row.modes.index(r.mode)))  # stable: shapes stay in order
    return ParityReport(row.name, factor, ulps, tuple(rows))


def layouts(rank: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name → function that lays out a tensor of ``rank`` axes that way, with equal values."""
    found: dict[str, Callable[[Tensor], Tensor]] = {"contiguous": Tensor.contiguous}
    if rank == 4:
        found["channels_last"] = lambda x: x.contiguous(memory_format=torch.channels_last)
    if rank == 5:
        found["channels_last_3d"] = lambda x: x.contiguous(memory_format=torch.channels_last_3d)
    return found | {"strided": _strided}


def _strided(x: Tensor) -> Tensor:
    """Every second element of a larger tensor whose other elements are NaN, so that a wrong stride shows."""
    larger = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    larger[..., ::2] = x
    return larger[..., ::2]


def _dtype(name: str | torch.dtype) -> torch.dtype:
    found = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"expected a floating-point dtype, got {name!r}")
    return found


def index_axes(index_set: str, shape: Shape, groups: int = 1) -> tuple[Shape, tuple[int, ...]]:
    """A view of an (N, C, *) tensor, and the axes of the view that a row's ``index_set`` ("N, H, W") names.

    "C/G", the channels of one group, splits the channel axis: the view is (N, G, C/G, *).

    Raises:
        ValueError: an axis that is none of N, C, C/G, D, H, W, L.
    """
    names = {name.strip() for name in index_set.split(",")}
    if not names <= {"N", "C", "C/G", "D", "H", "W", "L"}:
        raise ValueError(f"expected axes among N, C, C/G, D, H, W, L, got {index_set!r}")
    if "C/G" in names:
        shape = (shape[0], groups, shape[1] // groups, *shape[2:])
        return shape, tuple(range(2, len(shape)))
    spatial = tuple(range(2, len(shape))) if names & {"D", "H", "W", "L"} else ()
    return shape, tuple(d for d, name in enumerate("NC") if name in names) + spatial


def _view(row: Technique, layer: nn.Module, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
    """:func:`index_axes`, with what only the layer knows: its ``normalized_shape`` or ``num_groups``."""
    last = getattr(layer, "normalized_shape", None)
    if last is not None:
        return shape, tuple(range(len(shape) - len(last), len(shape)))
    return index_axes(row.index_set, shape, getattr(layer, "num_groups", 1))


class _Case:
    """One input with its truth, to be compared on several devices and in several layouts."""

    def __init__(
        self,
        row: Technique,
        shape: Shape,
        dtype: torch.dtype,
        parameters: torch.dtype,
        mode: str,
        offset: float,
        steps: int,
        seed: int,
    ) -> None:
        self.mode, self.shape, self.offset, self.parameters = mode, shape, offset, parameters
        self.label = str(dtype).removeprefix("torch.")
        if parameters != dtype:
            self.label += "/" + str(parameters).removeprefix("torch.")
        random = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random, dtype=torch.float64)

        self.twin = row.twin(shape).to(parameters)
        view, axes = _view(row, self.twin, shape)
        # One mean for all elements that share statistics, else the offset would be their deviation: one for
        # each channel or group, or where all channels share them, one.
        own = tuple(size if d == 1 and d not in axes else 1 for d, size in enumerate(view))
        deviation = torch.exp(0.5 * normal(*own).clamp(-1, 1))
        mean = offset * deviation * normal(*own).sign()
        self.batches = [
            ((mean + deviation * normal(*shape).view(view)).view(shape).to(dtype), normal(*shape).to(dtype))
            for _ in range(steps if mode == "train" else 1)
        ]
        state = {
            "weight": lambda size: 1 + 0.5 * normal(*size),
            "bias": lambda size: normal(*size),
            "running_mean": lambda size: (mean + deviation * normal(*own)).reshape(size),
            "running_var": lambda size: (deviation**2 * torch.exp(0.3 * normal(*own))).reshape(size),
        }
        with torch.no_grad():
            for name, value in self.twin.state_dict().items():
                if name in state:
                    value.copy_(state[name](value.shape))
        self.truth, self.size = _truth(row, self.twin, self.batches, mode)

    def compare(
        self, ours: Callable[[Shape], nn.Module], device: str, layout: str, factor: float, ulps: float
    ) -> Comparison:
        def result(status: str, reason: str = "", *errors: Errors) -> Comparison:
            where = (device, self.label, self.mode, layout, self.offset, self.shape)
            return Comparison(*where, status, reason, *errors)

        try:
            with warnings.catch_warnings():  # torch's RMSNorm tells that it cannot fuse mixed dtypes
                warnings.filterwarnings("ignore", message="Mismatch dtype", category=UserWarning)
                expected = self._run(copy.deepcopy(self.twin), device, layout)
        except Exception as error:
            return result("skipped", f"torch.nn raises {_headline(error)}")
        try:
            layer = ours(self.shape).to(self.parameters)
            layer.load_state_dict(self.twin.state_dict())
            values = self._run(layer, device, layout)
        except Exception as error:
            return result("failed", f"the layer raises {_headline(error)}")
        for name, value in expected.items():
            if values[name].dtype != value.dtype or values[name].shape != value.shape:
                kinds = [f"{v.dtype} {tuple(v.shape)}" for v in (value, values[name])]
                return result("failed", f"{name}: expected {kinds[0]}, got {kinds[1]}")
        # torch's LayerNorm and InstanceNorm lose channels_last; ours may keep it.
        given = layouts(len(self.shape))[layout](self.batches[0][0]).stride()
        strides = values["output"].stride()
        if layout != "strided" and strides not in (given, expected["output"].stride()):
            return result("failed", f"output: expected the input's strides {given}, got {strides}")
        errors = [self._errors(values), self._errors(expected)]
        allowed = {
            name: factor * error + ulps * torch.finfo(expected[name].dtype).eps
            if expected[name].is_floating_point()
            else 0.0
            for name, error in errors[1].items()
        }
        measured = result("ok", "", *errors, allowed)
        if measured.share <= 1:
            return measured
        wrong = [name for name in allowed if measured._share(name) > 1]
        return result("failed", f"{', '.join(wrong)} too far from the truth", *errors, allowed)

    def _errors(self, values: dict[str, Tensor]) -> Errors:
        return {
            name: _finite(np.abs(_array(values[name]) - truth).max(initial=0) / self.size[name])
            for name, truth in self.truth.items()
        }

    def _run(self, layer: nn.Module, device: str, layout: str) -> dict[str, Tensor]:
        """The quantities after the steps, on the CPU."""
        layer = layer.to(device).train(self.mode == "train")
        arrange = layouts(len(self.shape))[layout]
        for x, grad in self.batches:
            layer.zero_grad()
            input = arrange(x.to(device).clone()).detach().requires_grad_()
            output = layer(input)
            output.backward(arrange(grad.to(device)))
        found = {"output": output, "grad input": input.grad, **dict(layer.named_buffers())}
        found |= {f"grad {name}": parameter.grad for name, parameter in layer.named_parameters()}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise RuntimeError(f"no {', '.join(missing)} after the backward pass")
        return {name: value.detach().cpu() for name, value in found.items()}


def _truth(
    row: Technique, layer: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], mode: str
) -> tuple[dict[str, Array], dict[str, float]]:
    """Quantity → what a layer with this state should have after the batches, and quantity → its size."""
    state = {name: _array(value) for name, value in layer.state_dict().items()}
    hyper: Any = layer
    eps, momentum = float(hyper.eps), getattr(layer, "momentum", None)
    full = tuple(batches[0][0].shape)
    shape, axes = _view(row, layer, full)
    grouped = shape != full
    channel = (1, *shape[1 : 2 + grouped], *(1 for _ in shape[2 + grouped :]))

    def spread(name: str) -> NDArray[Any] | None:
        value = state.get(name)  # per channel, unless the layer says that it belongs to the last axes
        return value if value is None or hasattr(layer, "normalized_shape") else value.reshape(channel)

    means, variances = spread("running_mean"), spread("running_var")
    given = (means, variances) if mode == "eval" and means is not None and variances is not None else None
    for step, batch in enumerate(batches, start=1):
        x, dy = (_array(tensor).reshape(shape) for tensor in batch)
        parameters = spread("weight"), spread("bias")
        result = standardization(x, axes, eps, *parameters, dy, given, row.centred)
        if mode == "train" and "running_mean" in state:
            share = np.longdouble(1 / step if momentum is None else momentum)
            unbiased = result.var * result.count / (result.count - 1)
            for name, value in (("running_mean", result.mean), ("running_var", unbiased)):
                per_channel = value.mean(axis=tuple(d for d in range(value.ndim) if d != 1))
                state[name] = (1 - share) * state[name] + share * per_channel
            # torch's counter counts batches where the batch shares statistics, and stays 0 elsewhere
            state["num_batches_tracked"] = state["num_batches_tracked"] + (0 in axes)
    assert result.grad_input is not None
    truth = {"output": result.output.reshape(full), "grad input": result.grad_input.reshape(full)}
    terms = {}
    for name, gradient, term in (
        ("weight", result.grad_weight, dy * result.x_hat),
        ("bias", result.grad_bias, dy),
    ):
        if gradient is not None:
            truth[f"grad {name}"] = gradient.reshape(state[name].shape)
            terms[f"grad {name}"] = np.sqrt(sum_to(term**2, gradient.shape))
    truth |= {name: state[name] for name, _ in layer.named_buffers()}
    return truth, {name: max(_largest(v), _largest(terms.get(name))) or 1.0 for name, v in truth.items()}


def _largest(values: Array | None) -> float:
    return 0.0 if values is None else float(np.abs(values).max(initial=0))


def _array(value: Tensor) -> Array:
    return value.detach().double().numpy().astype(np.longdouble)


def _finite(error: Any) -> float:
    return float(error) if np.isfinite(error) else float("inf")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _headline(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"
