"""Compile every kernel for GPUs that are not here, as the operators would launch it at sizes that matter.

A program of its own (``python tests/kernels/ahead.py 90``), since TRITON_INTERPRET, which the tests beside it
need, turns the compiler off. The operators run on meta tensors; what they would launch is compiled with the
arguments' types and divisibility, and cuobjdump says what it takes. Prints JSON, one entry per kernel.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normtutor.kernels import ops

CONV, LARGE = (256, 64, 56, 56), (16, 64, 256, 256)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
Launch = tuple[Any, int, tuple[object, ...], dict[str, object]]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layer(rows: int, length: int, dtype: torch.dtype, centred: bool = True, residual: bool = False) -> None:
    x, w = meta(rows, length, dtype=dtype), meta(length)
    r, b = x if residual else None, w if centred else None
    _, _, mean, rstd = ops.layer_norm._init_fn(x, r, w, b, 1, 1e-5, centred)
    ops.layer_norm_backward._init_fn(x, r, x, mean, rstd, w, centred, 1)


def channel(shape: tuple[int, ...], groups: int, dtype: torch.dtype, last: bool = False) -> None:
    x, w = meta(*shape, dtype=dtype), meta(shape[1])
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    _, mean, rstd, _ = ops.channel_norm._init_fn(x, w, w, groups, 1e-5)
    ops.channel_norm_backward._init_fn(x, x, mean, rstd, w, True, groups)


def by(shape: tuple[int, ...], dtype: torch.dtype, last: bool = False) -> None:
    x, w = meta(*shape, dtype=dtype), meta(shape[1])
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    ops.channel_norm_by._init_fn(x, w, w, w, w, 1e-5)
    ops.channel_norm_by_backward._init_fn(x, x, w, w, w, True, 1e-5)


def cases(arch: int) -> Iterator[tuple[str, Any]]:
    """What is launched, by name; every size fills 64 MiB at least. Most of it for Hopper alone."""
    kinds = {75: (torch.float32, torch.float16), 80: (torch.bfloat16,)}
    widths = (256, 1024, 4096, 8192, 16384, 32768, 65536) if arch == 90 else (1024, 8192, 65536)
    for dtype in kinds.get(arch, (torch.float32, torch.bfloat16, torch.float16)):
        kind = str(dtype).removeprefix("torch.")
        half = dtype == torch.float16  # differs from bfloat16 by its conversions alone: one width
        for length in (4096,) if half else widths:
            rows = (64 << 20) // (length * dtype.itemsize)
            yield f"LN {kind} {length}", lambda r=rows, n=length, d=dtype: layer(r, n, d)
        yield f"RMS+residual {kind} 4096", lambda d=dtype: layer(8192, 4096, d, False, True)
        if half:
            continue
        for last in (False, True):
            name = f"{kind}{' last' if last else ''}"
            yield f"BN {name}", lambda d=dtype, at=last: channel(CONV, 0, d, at)
            yield f"BN eval {name}", lambda d=dtype, at=last: by(CONV, d, at)
            yield f"GN {name}", lambda d=dtype, at=last: channel(CONV, 8, d, at)
            yield f"IN {name}", lambda d=dtype, at=last: channel(CONV, 64, d, at)
            yield f"IN large {name}", lambda d=dtype, at=last: channel(LARGE, 64, d, at)
        yield f"GN small {kind}", lambda d=dtype: channel((256, 256, 16, 16), 32, d)
        yield f"GN few {kind}", lambda d=dtype: channel((4, 64, 512, 512), 2, d)
        yield f"LN few {kind}", lambda d=dtype: layer(16, 1 << 21, d)
        yield f"BN rows {kind}", lambda d=dtype: channel((65536, 512), 0, d)


def source(launch: Launch) -> tuple[ASTSource, str]:
    """A launch as Triton's compiler takes it, with a key that tells it from others."""
    kernel, warps, arguments, constants = launch
    names = list(inspect.signature(kernel.fn).parameters)
    signature, fixed, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = constants[name] if name in constants else arguments[i]
        if name in constants or (isinstance(value, int) and value == 1):
            signature[name], fixed[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i64" if value >= 2**31 else "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    key = f"{kernel.__name__} {warps} {signature} {fixed} {sorted(attributes)}"
    return ASTSource(kernel, signature, fixed, attributes), key


def compiled(src: ASTSource, warps: int, arch: int) -> dict[str, Any]:
    """Registers, bytes of stack (what was spilled), and bytes of the widest load and store."""
    found = triton.compile(
        src, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "enable_fp_fusion": True}
    )
    ptx = found.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken = {what: int(n) for what, n in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    widest = {
        what: max(
            (
                int(count or 1) * int(bits) // 8
                for count, bits in re.findall(rf"{what}\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
            ),
            default=0,
        )
        for what in ("ld", "st")
    }
    return {
        "registers": taken["REG"],
        "spilled": taken["STACK"] + taken["LOCAL"],
        **widest,
    }


def main(arch: int, only: str = "") -> None:
    recorded: list[Launch] = []
    ops.launch = lambda kernel, programs, warps, *arguments, **constants: recorded.append(  # type: ignore[assignment]
        (kernel, warps, arguments, constants)
    )
    seen: dict[str, dict[str, Any]] = {}
    rows = []
    for name, run in cases(arch):
        if only not in name:
            continue
        recorded.clear()
        run()
        for launch in recorded:
            src, key = source(launch)
            if key not in seen:
                seen[key] = compiled(src, launch[1], arch)
            rows.append({"case": name, "kernel": launch[0].__name__, "warps": launch[1], **seen[key]})
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
