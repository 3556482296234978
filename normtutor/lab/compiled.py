"""What Triton's compiler makes of a kernel for a GPU that need not be here: registers, spills, vector width.

The compiler and the assembler ``ptxas`` come inside Triton's wheel, so no device is needed. A process of its
own compiles (``python -m normtutor.lab.compiled``, JSON in and out), since TRITON_INTERPRET, which runs
kernels without a GPU, turns the compiler off. What is compiled is what would be launched: the operators run
on meta tensors, and every launch is taken with its arguments' types and divisibility.
"""

import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from normtutor.kernels import plan
from normtutor.lab.text import table

# The kernels compile with Triton 3.2 too; the compiler's own interface, used here, was another then.
OLDEST = (3, 6)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
ARCHITECTURES = {75: "T4", 80: "A100", 90: "H100, H200"}
_Launch = tuple[Any, int, int, tuple[object, ...], dict[str, object]]  # kernel, programs, warps, arguments, …


@dataclass(frozen=True)
class Case:
    """An operator of ``normtutor.kernels.ops``, forward and backward, at a size; γ and β are float32.

    Attributes:
        name: for the table.
        shape: of x; LayerNorm and RMSNorm normalize its last axis.
        operator: "channel" is BatchNorm (``groups`` 0), GroupNorm and InstanceNorm; "given" takes statistics.
        dtype: of x.
        groups: of "channel".
        residual: of "layer" and "rms".
        last: x is channels_last.
        settings: constants of ``normtutor.kernels.plan`` to be changed, to see what they are for.
    """

    name: str
    shape: tuple[int, ...]
    operator: Literal["layer", "rms", "channel", "given"] = "layer"
    dtype: str = "float32"
    groups: int = 0
    residual: bool = False
    last: bool = False
    settings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A kernel written elsewhere, in a notebook for instance, as text.

    Attributes:
        name: for the table.
        text: the source of the ``@triton.jit`` function ``kernel``; it may use ``triton`` and ``tl``.
        signature: type of each argument that is not a constant: ``*fp32``, ``*bf16``, ``fp32``, ``i32`` …, or
            ``i32:16`` for a multiple of 16. Pointers are aligned to 16 bytes, as torch's are.
        constants: the ``tl.constexpr`` arguments.
        warps: how many are launched.
    """

    name: str
    text: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, int]
    warps: int = 4

    @classmethod
    def of(
        cls, name: str, kernel: Any, signature: Mapping[str, str], constants: Mapping[str, int], warps: int
    ) -> "Source":
        """From a ``@triton.jit`` function, interpreted or not."""
        text = textwrap.dedent(inspect.getsource(kernel.fn))
        return cls(name, text, kernel.fn.__name__, signature, constants, warps)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    Attributes:
        case, kernel, programs, warps: what was compiled, and how it is launched; 0 programs: not said.
        registers: of each thread.
        stored, loaded: bytes that each thread writes to and reads from its local memory, since they find no
            register: of the spilling instructions in the machine code, each counted once (one in a loop runs
            more often).
        ld, st: bytes of the widest load and store; 16 is the most that the GPUs in ``ARCHITECTURES`` have.
    """

    case: str
    kernel: str
    programs: int
    warps: int
    registers: int
    stored: int
    loaded: int
    ld: int
    st: int

    @property
    def spilled(self) -> int:
        """Bytes of each thread that are written and read again because they find no register."""
        return self.stored + self.loaded

    @property
    def threads(self) -> int:
        """Threads that fit a multiprocessor at once by its 65,536 registers alone, in whole programs.

        A warp's registers come in units of 256; at most 2048 threads, as on an A100 and an H100.
        """
        per_warp = -(-32 * self.registers // 256) * 256
        return min(2048, 65536 // (per_warp * self.warps) * self.warps * 32)


def missing() -> str:
    """Why nothing can be compiled here: "" if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed here (pip install 'normtutor[fused]'; Linux only)"
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"Triton {version} is installed here; this needs {OLDEST[0]}.{OLDEST[1]} or newer"
    return ""


def with_compiler() -> dict[str, str]:
    """The environment of a process in which Triton compiles: TRITON_INTERPRET would turn that off."""
    return {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def resources(jobs: Sequence[Case | Source], arch: int = 90) -> list[Resources]:
    """Compile for compute capability ``arch`` (90: 9.0), in a process of its own; 0.1–1.2 s a kernel.

    Raises:
        RuntimeError: there is no Triton, or an old one, or it fails; the message says which.
    """
    if missing():
        raise RuntimeError(missing())
    environment = with_compiler()
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    request = {"arch": arch, "jobs": [{"kind": type(job).__name__, **asdict(job)} for job in jobs]}
    done = subprocess.run(
        [sys.executable, "-m", "normtutor.lab.compiled"],
        input=json.dumps(request), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"compiling for sm_{arch} failed:\n{done.stderr[-3000:]}")
    return [Resources(**row) for row in json.loads(done.stdout)]


def resource_table(rows: Sequence[Resources]) -> str:
    """The rows as aligned text."""
    head = ["case", "kernel", "warps", "registers", "spilled st/ld", "widest ld/st", "threads at once"]
    lines = [
        [
            r.case,
            r.kernel,
            str(r.warps),
            str(r.registers),
            f"{r.stored}/{r.loaded} B",
            f"{r.ld}/{r.st} B",
            str(r.threads),
        ]
        for r in rows
    ]
    return table(head, lines)


# What follows runs in the other process.


def launches(case: Case) -> list[_Launch]:
    """What the case's operators would launch: kernel, programs, warps, arguments, constants."""
    from normtutor.kernels import ops

    found: list[_Launch] = []

    def record(kernel: Any, programs: int, warps: int, *arguments: object, **constants: object) -> None:
        found.append((kernel, programs, warps, arguments, constants))

    kept = {name: getattr(plan, name) for name in case.settings}
    launch = ops.launch
    ops.launch = record
    try:
        for name, value in case.settings.items():
            setattr(plan, name, value)
        _run(case)
    finally:
        ops.launch = launch
        for name, value in kept.items():
            setattr(plan, name, value)
    return found


def _run(case: Case) -> None:
    from normtutor.kernels import ops

    x = torch.empty(case.shape, dtype=getattr(torch, case.dtype), device="meta")
    if case.last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    w = torch.empty(case.shape[-1 if case.operator in ("layer", "rms") else 1], device="meta")
    if case.operator == "channel":
        _, mean, rstd, _ = ops.channel_norm._init_fn(x, w, w, case.groups, 1e-5)
        ops.channel_norm_backward._init_fn(x, x, mean, rstd, w, True, case.groups)
    elif case.operator == "given":
        ops.channel_norm_by._init_fn(x, w, w, w, w, 1e-5)
        ops.channel_norm_by_backward._init_fn(x, x, w, w, w, True, 1e-5)
    else:
        centred = case.operator == "layer"
        residual = x if case.residual else None
        _, _, mean, rstd = ops.layer_norm._init_fn(x, residual, w, w if centred else None, 1, 1e-5, centred)
        ops.layer_norm_backward._init_fn(x, residual, x, mean, rstd, w, centred, 1)


def _as_source(launch: _Launch) -> tuple[Any, str]:
    """A launch as the compiler takes it, with a key that tells it from others."""
    from triton.compiler import ASTSource

    kernel, _, warps, arguments, constants = launch
    signature: dict[str, str] = {}
    fixed: dict[tuple[int], object] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    for i, name in enumerate(inspect.signature(kernel.fn).parameters):
        value = constants[name] if name in constants else arguments[i]
        if name in constants or (isinstance(value, int) and value == 1):
            signature[name], fixed[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i64" if value >= 2**31 else "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    key = f"{kernel.__name__} {warps} {signature} {fixed} {sorted(attributes)}"
    return ASTSource(kernel, signature, fixed, attributes), key


def _from_text(job: Source, folder: Path) -> Any:
    """The kernel in ``job.text`` as the compiler takes it; Triton reads a function's file, so it gets one."""
    from triton.compiler import ASTSource

    path = folder / f"{job.kernel}.py"
    path.write_text(f"import triton\nimport triton.language as tl\n\n\n{job.text}", encoding="utf-8")
    spec = importlib.util.spec_from_file_location(job.kernel, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, job.kernel)
    names = list(inspect.signature(kernel.fn).parameters)
    kinds = {name: job.signature.get(name, "constexpr") for name in names}
    signature = {name: kind.removesuffix(":16") for name, kind in kinds.items()}
    fixed = {(names.index(name),): value for name, value in job.constants.items()}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if kinds[name].startswith("*") or kinds[name].endswith(":16")
    }
    return ASTSource(kernel, signature, fixed, attributes)


def _compile(source: Any, warps: int, arch: int) -> dict[str, int]:
    import triton
    from triton.backends.compiler import GPUTarget

    found = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "enable_fp_fusion": True}
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", file.name)
    (registers,) = re.findall(r"\bREG:(\d+)", usage)
    stored, loaded = (_local_bytes(what, code) for what in ("STL", "LDL"))
    widest = {what: _widest(what, found.asm["ptx"]) for what in ("ld", "st")}
    return {"registers": int(registers), "stored": stored, "loaded": loaded, **widest}


def _output(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def _local_bytes(what: str, code: str) -> int:
    """Bytes of all accesses to local memory: ``STL.64 [R1+0x8], R2`` has 8; without a width it is 4.

    The frame that the compiler reports is not that: its slots are used again, and padded.
    """
    widths = re.findall(rf"\b{what}(?:\.[A-Z]+)*(?:\.[US]?(\d+))? ", code)
    return sum(int(bits or 32) for bits in widths) // 8


def _widest(what: str, ptx: str) -> int:
    """Bytes of the widest access to global memory: ``ld.global.v4.b32`` has 16."""
    accesses = re.findall(rf"{what}\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in accesses), default=0)


def _answer(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, int]] = {}
    rows = []
    arch = request["arch"]
    with tempfile.TemporaryDirectory() as folder:
        for job in request["jobs"]:
            kind = job.pop("kind")
            if kind == "Source":
                text = Source(**job)
                source = _from_text(text, Path(folder))
                taken = _compile(source, text.warps, arch)
                how = {"case": text.name, "kernel": text.kernel, "programs": 0, "warps": text.warps}
                rows.append({**how, **taken})
                continue
            case = Case(**job | {"shape": tuple(job["shape"])})
            for launch in launches(case):
                kernel, programs, warps, *_ = launch
                source, key = _as_source(launch)
                if key not in seen:
                    seen[key] = _compile(source, warps, arch)
                how = {"case": case.name, "kernel": kernel.__name__, "programs": programs, "warps": warps}
                rows.append({**how, **seen[key]})
    return rows


if __name__ == "__main__":
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
