"""Timing: how long a layer takes beside other implementations, and how far it is from the memory's limit."""

import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from normtutor.catalog import Shape, Technique
from normtutor.catalog import technique as catalog_row
from normtutor.kernels.plan import SPLIT_BYTES
from normtutor.lab import rivals
from normtutor.lab.machine import default_device, free_memory, last_level_cache, present, provenance
from normtutor.lab.memory_use import memory
from normtutor.lab.text import number, size, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Factory = Callable[[Shape], nn.Module]
# What is timed, and the row that says how many bytes it must move; None where no row does.
Candidates = Mapping[str, tuple[Technique | None, Factory]]

FORWARD, BOTH = "forward", "forward+backward"
DIRECTIONS = (FORWARD, BOTH)
SHORT = {"forward": "forward", BOTH: "fwd+bwd"}
LAYOUTS = ("contiguous", "channels_last")
MEASURED = ("milliseconds", "low", "high", "bandwidth", "fraction")  # NaN where nothing was timed
MOST_ROUNDS = 200
CAPTURED_BYTES = 4 << 20  # at most: the launches of larger tensors' kernels hide behind the kernels


@dataclass(frozen=True)
class Timing:
    """One candidate on one tensor, forward or forward and backward.

    Attributes:
        candidate, shape, dtype, direction: what was timed on what.
        milliseconds: the median; ``low`` and ``high`` are the first and third quartile. NaN if not timed.
        rounds: how many times it ran after the warm-up.
        bytes: what an algorithm at its best must move through memory, see :func:`compulsory_bytes`.
        bandwidth: ``bytes`` ÷ median, in bytes per second; what moves more has a smaller one.
        fraction: ``bandwidth`` ÷ the copy bandwidth of the same run.
        reason: why it was not timed; else empty.
        layout: "contiguous" or "channels_last".
        captured: replayed as a CUDA graph, without the host's work.
        kept: bytes that autograd keeps for the backward pass, the input included; None if not measured.
        peak: most bytes in use during forward and backward, over those before; None outside CUDA.
    """

    candidate: str
    shape: Shape
    dtype: str
    direction: str
    milliseconds: float
    low: float
    high: float
    rounds: int
    bytes: int
    bandwidth: float
    fraction: float
    reason: str = ""
    layout: str = "contiguous"
    captured: bool = False
    kept: int | None = None
    peak: int | None = None


@dataclass(frozen=True, repr=False)
class Timings:
    """One run of :func:`bench`. ``print`` it, ``plot`` it, or keep ``to_dict`` as JSON.

    Attributes:
        technique: the catalog row's name.
        copy_bandwidth: bytes per second of ``copy_``, read plus written; ``copy_bytes``: the tensor's size.
        cache_bytes, cache_source: the last-level cache, and how its size was found.
        provenance: see :func:`normtutor.lab.provenance`.
        rows: the measurements.
        absent: candidates that were not compared at all → why.
    """

    technique: str
    copy_bandwidth: float
    copy_bytes: int
    cache_bytes: int
    cache_source: str
    provenance: dict[str, Any]
    rows: tuple[Timing, ...]
    absent: Mapping[str, str] = field(default_factory=dict)

    def select(self, **only: object) -> list[Timing]:
        """The rows with these attributes: ``select(candidate="eager", direction="forward")``."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in only.items())]

    def ratio(self, candidate: str, versus: str = "torch.nn", **only: object) -> float:
        """Median over shapes, dtypes and directions of candidate's median time ÷ versus's; NaN if none
        was timed.

        Args:
            candidate, versus: names of candidates.
            only: attribute=value, to take these rows only: ``direction="forward"``.
        """
        ratios = [self._ratio(row, versus) for row in self.select(candidate=candidate, **only)]
        timed = [ratio for ratio in ratios if not math.isnan(ratio)]
        return statistics.median(timed) if timed else math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what was not timed holds null instead of a number."""
        rows = [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in row.items()
            }
            for row in map(asdict, self.rows)
        ]
        return asdict(self) | {"rows": rows}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Timings":
        """The inverse of :meth:`to_dict`, from JSON too."""
        rows = tuple(
            Timing(
                **{
                    key: math.nan if value is None and key in MEASURED else value
                    for key, value in row.items()
                }
                | {"shape": tuple(row["shape"])}
            )
            for row in record["rows"]
        )
        return cls(**{**record, "rows": rows})

    def plot(self, direction: str = BOTH, dtype: str | None = None) -> "Figure":
        """Fraction of the copy bandwidth against the tensor's size, one line per candidate."""
        from normtutor.lab.figures import roofline

        return roofline(self, direction, dtype)

    def cells(self, **only: object) -> tuple[list[str], list[list[str]]]:
        """Head and lines of the table of the rows with these attributes."""
        rows = self.select(**only)
        head = ["shape", "dtype", "direction", "candidate"]
        head += ["ms", "quartiles", "least", "GB/s", "of copy", "÷ torch.nn"]
        head += ["not timed"] if any(row.reason for row in rows) else []
        lines = []
        for row in rows:
            direction = SHORT[row.direction] + (", graph" if row.captured else "")
            shape = number(row.shape) + (" last" if row.layout == "channels_last" else "")
            line = [shape, row.dtype, direction, row.candidate]
            if not row.reason:
                line += [number(row.milliseconds), f"{number(row.low)}–{number(row.high)}", size(row.bytes)]
                line += [number(row.bandwidth / 1e9), f"{row.fraction:.2f}"]
                line += [number(self._ratio(row, "torch.nn"))]
            lines.append(line + [""] * (10 - len(line)) + ([row.reason] if len(head) > 10 else []))
        return head, lines

    def table(self, **only: object) -> str:
        """Aligned text of the rows with these attributes, and below it how to read it."""
        head, lines = self.cells(**only)
        if len({row.dtype for row in self.rows}) == 1:  # said in the notes; the table must fit a page
            head, lines = [head[0], *head[2:]], [[line[0], *line[2:]] for line in lines]
        notes = [*self.notes(), "least: the bytes that any implementation must move; GB/s is that ÷ ms"]
        return "\n".join([table(head, lines), "", *(textwrap.fill(note, 88) for note in notes)])

    def __repr__(self) -> str:
        return self.table()

    def _ratio(self, row: Timing, versus: str) -> float:
        same = {key: getattr(row, key) for key in ("shape", "dtype", "direction", "layout", "captured")}
        others = self.select(candidate=versus, **same)
        return row.milliseconds / others[0].milliseconds if others else math.nan

    def notes(self) -> Iterator[str]:
        """What the table needs beside it: machine, copy bandwidth, cache, method."""
        dtypes = ", ".join(dict.fromkeys(row.dtype for row in self.rows))
        versions = self.provenance["versions"]
        yield f"{self.technique}, {dtypes}, on {self.provenance['device']}, torch {versions['torch']}"
        yield (
            f"copy bandwidth {number(self.copy_bandwidth / 1e9)} GB/s (copy_ of {size(self.copy_bytes)}, "
            f"read + written); last-level cache {size(self.cache_bytes)} ({self.cache_source})"
        )
        if self.provenance["kind"] == "cuda":
            yield "device events, the L2 cache overwritten before every repeat"
        else:
            yield "wall clock, caches warm: a tensor that fits the cache may beat the copy bandwidth"
        if any(row.layout == "channels_last" for row in self.rows):
            yield "last: channels_last, the channels of a position side by side"
        if any(row.captured for row in self.rows):
            yield f"graph: replayed as a CUDA graph, tensors up to {size(CAPTURED_BYTES)}"
        known = [row for row in self.rows if row.kept is not None]
        if known:
            last = known[-1]
            uses = [
                f"{row.candidate} {size(row.kept or 0)}" + (f", peak {size(row.peak)}" if row.peak else "")
                for row in known
                if (row.shape, row.dtype, row.layout) == (last.shape, last.dtype, last.layout)
            ]
            yield f"kept for the backward pass at {number(last.shape)}, input included: {'; '.join(uses)}"
        if self.absent:
            by_reason: dict[str, list[str]] = {}
            for name, why in self.absent.items():
                by_reason.setdefault(why, []).append(name)
            said = [f"{', '.join(names)} ({why})" for why, names in by_reason.items()]
            yield f"not compared: {'; '.join(said)}"


def bench(
    technique: str | Technique,
    *,
    device: str | None = None,
    dtypes: Sequence[str] = ("float32",),
    shapes: Sequence[Shape] | None = None,
    compiled: bool | Sequence[Shape] = False,
    candidates: Mapping[str, Factory] | None = None,
    directions: Sequence[str] = DIRECTIONS,
    seconds: float = 1.0,
    rounds: int = 3,
    deadline: float | None = None,
    command: str = "",
    layouts: Sequence[str] = ("contiguous",),
) -> Timings:
    """Time a technique's candidates side by side: ours, torch's, and on CUDA the fused ones and the rivals'.

    One process, the same tensors, the candidates in turn, round after round, after a warm-up: what disturbs
    one disturbs all. On CUDA: device events around each call, and a write of twice the L2 cache before
    it, so that every call finds its input in memory; the launch of a call overlaps with that write.
    Elsewhere: a wall clock, caches as they are. The layers train; the forward pass records what the
    backward pass needs.
    ``forward+backward`` computes the gradients of input and parameters for a given upstream gradient.

    Compilation is for each shape on its own (``dynamic=False``, ``fullgraph=True``), outside the measured
    time. It resets torch's compiler, so functions compiled earlier in the process compile again at their next
    call. Where it fails, the candidate's row says why.

    Args:
        technique: a catalog row or its name.
        device: of torch; default: CUDA where present, else the CPU.
        dtypes: of the tensors; parameters and buffers are float32 for half precision.
        shapes: default: the row's ``bench_shapes``; its ``large_shapes`` are for a GPU.
        compiled: time our layer and torch's under ``torch.compile`` too: at every shape, or at these shapes.
        candidates: name → factory (shape → module), instead of "eager" (ours), "torch.nn", and on CUDA
            "fused" (:mod:`normtutor.fused`) and the rivals that are installed (``normtutor.lab.rivals``).
        directions: "forward", "forward+backward", or both.
        seconds: for all rounds together, compilation and the copy apart; at least ``rounds`` are run
            whatever they take, at most 200.
        rounds: the fewest rounds.
        deadline: reading of ``time.monotonic()`` after which nothing more is started; the rows say so.
        command: for the provenance.
        layouts: "contiguous", "channels_last" (for shapes of 4 and 5 axes), or both.

    On CUDA a tensor of at most 4 MiB is timed as a CUDA graph too, where the host's work does not count.

    Raises:
        ValueError: unknown technique, dtype, direction or layout.
        RuntimeError: the device is absent.
    """
    row = catalog_row(technique) if isinstance(technique, str) else technique
    place = present(device or default_device())
    absent: dict[str, str] = {}
    factories: Mapping[str, Factory]
    if candidates:
        factories = candidates
    elif place.type == "cuda":
        from normtutor import fused  # here, since it imports Triton

        found, absent = rivals.layers(row.name)
        factories = {"eager": row.layer, "fused": lambda shape: fused.like(row.layer(shape))}
        factories = {**factories, "torch.nn": row.twin, **found}
    else:
        factories = {"eager": row.layer, "torch.nn": row.twin}
        absent = dict.fromkeys(("fused", *rivals.NAMES), "needs a CUDA device")
    shapes = [tuple(shape) for shape in (row.bench_shapes if shapes is None else shapes)]
    at = shapes if compiled is True else [tuple(shape) for shape in compiled or ()]
    twins: Candidates = {
        "compiled": (row, _compile(row.layer)),
        "torch.nn compiled": (row, _compile(row.twin)),
    }
    return time_together(
        row.name,
        {name: (row, factory) for name, factory in factories.items()},
        shapes,
        more=dict.fromkeys(at, twins),
        device=device,
        dtypes=dtypes,
        directions=directions,
        seconds=seconds,
        rounds=rounds,
        deadline=deadline,
        command=command or f"bench({row.name!r}, device={str(place)!r})",
        layouts=layouts,
        absent=absent,
        use_of_memory=True,
    )


def time_together(
    name: str,
    candidates: Candidates,
    shapes: Sequence[Shape],
    *,
    more: Mapping[Shape, Candidates] | None = None,
    device: str | None = None,
    dtypes: Sequence[str] = ("float32",),
    directions: Sequence[str] = DIRECTIONS,
    seconds: float = 1.0,
    rounds: int = 3,
    deadline: float | None = None,
    command: str = "",
    layouts: Sequence[str] = ("contiguous",),
    absent: Mapping[str, str] | None = None,
    use_of_memory: bool = False,
) -> Timings:
    """Time candidates, of one technique or of many, as :func:`bench` does.

    Args:
        name: what the result is called.
        candidates: name → (row, factory); the row counts the bytes, 0 where it is None.
        shapes: of the tensors.
        more: further candidates at one of the shapes.
        absent: candidates that could not be compared → why.
        use_of_memory: measure what each candidate keeps for the backward pass, and its peak on CUDA.

    The other arguments, and what is raised, are those of :func:`bench`.
    """
    place = present(device or default_device())
    for direction in directions:
        if direction not in DIRECTIONS:
            raise ValueError(f"unknown direction {direction!r}: expected one of {', '.join(DIRECTIONS)}")
    for layout in layouts:
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    kinds = [getattr(torch, name, None) for name in dtypes]
    if not all(isinstance(kind, torch.dtype) and kind.is_floating_point for kind in kinds):
        raise ValueError(f"expected names of floating-point dtypes, got {list(dtypes)}")
    stopwatch = _Stopwatch(place)
    copies = stopwatch.copy_milliseconds()
    cases = [
        (shape, layout, dtype)
        for shape in shapes
        for layout in layouts
        for dtype in dtypes
        if layout == "contiguous" or len(shape) in CHANNELS_LAST
    ]
    share = seconds / max(1, len(cases) * len(directions))
    measured: list[Timing] = []
    for shape, layout, dtype in cases:
        tried = {**candidates, **(more or {}).get(shape, {})}
        measured += _case(
            shape, layout, dtype, tried, directions, stopwatch, share, rounds, deadline, use_of_memory
        )
    copies += stopwatch.copy_milliseconds()  # at both ends of the run, in case the clock rate drifted
    copy_bandwidth = 2 * stopwatch.copy_bytes / (statistics.median(copies) / 1e3)
    cache_bytes, cache_source = last_level_cache(place)
    return Timings(
        name,
        copy_bandwidth,
        stopwatch.copy_bytes,
        cache_bytes,
        cache_source,
        provenance(command, str(place)),
        tuple(replace(timing, fraction=timing.bandwidth / copy_bandwidth) for timing in measured),
        absent or {},
    )


def compulsory_bytes(
    row: Technique, shape: Shape, itemsize: int, direction: str, cache_bytes: int, layout: str = "contiguous"
) -> int:
    """Bytes that an algorithm at its best must move: passes over a tensor of the input's size × its size.

    A tensor that fits the last-level cache is read from memory once and written once: 2 passes forward
    (x, y), 3 backward (x, ∂y, ∂x). A larger one takes the row's ``forward_passes`` and ``backward_passes``;
    and 3 and 5 where elements that share statistics are more than one block keeps on the chip (512 KiB), or
    lie apart (channels_last): they are reduced across blocks first, and read again to be normalized.
    """
    numbers = math.prod(shape) * itemsize
    in_set = math.prod(shape) // row.sets(shape) * itemsize
    if numbers <= cache_bytes:
        forward, backward = 2, 3
    elif in_set > SPLIT_BYTES or layout == "channels_last":
        forward, backward = 3, 5
    else:
        forward, backward = row.forward_passes, row.backward_passes
    return numbers * (forward if direction == FORWARD else forward + backward)


def _compile(factory: Factory) -> Factory:
    def compiled(shape: Shape) -> nn.Module:
        return cast(nn.Module, torch.compile(factory(shape), dynamic=False, fullgraph=True))

    return compiled


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _case(
    shape: Shape,
    layout: str,
    dtype: str,
    candidates: Candidates,
    directions: Sequence[str],
    stopwatch: "_Stopwatch",
    seconds: float,
    rounds: int,
    deadline: float | None,
    use_of_memory: bool,
) -> list[Timing]:
    """All candidates on one tensor."""
    kind: torch.dtype = getattr(torch, dtype)
    reasons: dict[str, str] = {}
    uses: dict[str, tuple[int, int | None]] = {}
    device = stopwatch.device
    captured = (
        (False, True)
        if device.type == "cuda" and math.prod(shape) * kind.itemsize <= CAPTURED_BYTES
        else (False,)
    )
    ways = [(direction, graph) for graph in captured for direction in directions]
    calls: dict[tuple[str, bool], dict[str, Callable[[], object]]] = {way: {} for way in ways}
    needed, free = 16 * math.prod(shape) * max(4, kind.itemsize), free_memory(device)
    if deadline is not None and time.monotonic() >= deadline:
        reasons = dict.fromkeys(candidates, "not run: out of time")
    elif free is not None and needed > free // 2:
        reasons = dict.fromkeys(candidates, f"not run: needs {size(needed)}, {size(free)} are free")
    else:
        if any("compiled" in name for name in candidates):
            torch.compiler.reset()  # else the ninth compilation of one forward method falls back
        x, grad = _tensors(shape, layout, kind, device)
        for name, (_, factory) in candidates.items():
            try:
                layer = factory(shape).to(device)
                if why := _plain_path(layer, x):
                    reasons[name] = f"plain path: {why}"
                    continue
                steps = _steps(layer, x, grad)
                for direction, graph in ways:
                    for _ in range(2):  # the first compiles, the second finds everything in place
                        steps[direction]()
                    step = steps[direction]
                    calls[direction, graph][name] = _captured(step, device) if graph else step
                if use_of_memory:
                    use = memory(layer, x)
                    uses[name] = (use.saved_bytes + use.saved_input_bytes, use.peak_bytes)
            except Exception as error:
                lines = str(error).strip().splitlines()
                reasons[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"[:100]
    found = []
    cache_bytes = last_level_cache(device)[0]
    for direction, graph in ways:
        able = {name: call for name, call in calls[direction, graph].items() if name not in reasons}
        samples = stopwatch.interleaved(able, seconds / len(captured), rounds)
        for name, (row, _) in candidates.items():
            least = 0
            if row is not None:
                least = compulsory_bytes(row, shape, kind.itemsize, direction, cache_bytes, layout)
            times = samples.get(name, [])
            low, median, high = _quartiles(times)
            bandwidth = least / (median / 1e3)
            kept, peak = uses.get(name, (None, None)) if (direction, graph) == (BOTH, False) else (None, None)
            found.append(
                Timing(
                    name, shape, dtype, direction, median, low, high, len(times), least, bandwidth, math.nan,
                    reasons.get(name, ""), layout, graph, kept, peak,
                )
            )  # fmt: skip
    return found


def _tensors(shape: Shape, layout: str, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """An input that wants its gradient, and an upstream gradient, the same every time."""
    # Drawn on the GPU: to draw the large shapes on the CPU takes longer than to time them.
    place = device if device.type == "cuda" else torch.device("cpu")
    generator = torch.Generator(place).manual_seed(0)
    found = []
    for _ in range(2):
        drawn = torch.randn(shape, generator=generator, device=place).to(device, kind)
        if layout == "channels_last":
            drawn = drawn.contiguous(memory_format=CHANNELS_LAST[len(shape)])
        found.append(drawn)
    return found[0].requires_grad_(), found[1]


def _plain_path(layer: nn.Module, x: Tensor) -> str:
    """Why a fused layer would take the plain path, which is another candidate; "" for every other layer."""
    if type(layer).__module__ != "normtutor.fused":
        return ""
    from normtutor import fused

    return fused.why(layer, x)


def _captured(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``step`` as a CUDA graph: what replays the kernels that it launched."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what a first run on another stream allocates must not be captured
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    replay: Callable[[], object] = graph.replay
    return replay


def _steps(layer: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Callable[[], object]]:
    layer.train()
    wanted = [x, *layer.parameters()]

    def forward() -> Tensor:
        output: Tensor = layer(x)
        return output

    return {FORWARD: forward, BOTH: lambda: torch.autograd.grad(forward(), wanted, grad)}


def _quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    if len(times) < 2:
        return (times[0],) * 3 if times else (math.nan,) * 3
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


class _Stopwatch:
    """Milliseconds of a call, by device events on CUDA, else by a wall clock around synchronized work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = last_level_cache(device)[0]
        free = free_memory(device) or 1 << 30
        # Larger than the cache where that is affordable; the table prints what it was.
        most = 1 << 30 if device.type == "cuda" else 128 << 20
        self.copy_bytes = min(max(4 * cache, 64 << 20), most, free // 8)
        self._flush = (
            torch.empty(2 * cache, dtype=torch.uint8, device=device) if device.type == "cuda" else None
        )

    def copy_milliseconds(self) -> list[float]:
        """Times of ``copy_`` of ``copy_bytes``, after a warm-up."""
        source = torch.ones(self.copy_bytes // 4, device=self.device)
        target = torch.zeros_like(source)
        warm, repeats = (20, 20) if self.device.type == "cuda" else (1, 4)  # an idle GPU needs to clock up
        return self.interleaved({"copy": lambda: target.copy_(source)}, 0.0, warm + repeats)["copy"][warm:]

    def interleaved(
        self, calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int
    ) -> dict[str, list[float]]:
        """Each call's times, the calls in turn, for about ``seconds`` and at least ``rounds`` rounds."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        end = time.perf_counter() + seconds
        done = 0
        while calls and done < MOST_ROUNDS and (done < rounds or time.perf_counter() < end):
            for name, call in calls.items():
                times[name].append(self._milliseconds(call))
            done += 1
        return times

    def _milliseconds(self, call: Callable[[], object]) -> float:
        if self._flush is not None:
            new_event: Callable[..., Any] = torch.cuda.Event
            start, end = new_event(enable_timing=True), new_event(enable_timing=True)
            with torch.cuda.device(self.device):
                self._flush.zero_()
                start.record()
                call()
                end.record()
                end.synchronize()
            return float(start.elapsed_time(end))
        self._synchronize()
        began = time.perf_counter()
        call()
        self._synchronize()
        return (time.perf_counter() - began) * 1e3

    def _synchronize(self) -> None:
        if self.device.type == "mps":
            torch.mps.synchronize()
