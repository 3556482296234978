"""The machine that a measurement was made on: what it is, and where the measured code came from."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import normtutor

ROOT = Path(normtutor.__file__).resolve().parent.parent  # the repository, where this is a checkout


def provenance(command: str, device: str | None = None) -> dict[str, Any]:
    """What a recorded number needs beside it: JSON-ready.

    Args:
        command: what a reader runs to repeat the measurement.
        device: of torch; default: CUDA where present, else the CPU.

    Returns:
        ``command``; ``date`` (UTC, ISO 8601); ``device``, its name, and ``kind`` ("cuda", "cpu", …); on
        CUDA also ``driver``, ``compute_capability``, ``memory_bytes``, ``l2_bytes``, ``multiprocessors``;
        ``versions`` of python, torch, cuda, triton, numpy and normtutor (None where absent); ``commit``
        (git's, or the environment's NORMTUTOR_COMMIT where there is no repository, else "unknown");
        ``dirty`` (uncommitted changes in tracked files; None if not known); ``threads`` of torch;
        ``platform``.
    """
    commit, dirty = _commit()
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe(torch.device(device or default_device())),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "triton": _version("triton") or _version("pytorch-triton"),
            "numpy": np.__version__,
            "normtutor": normtutor.__version__,
        },
        "commit": commit,
        "dirty": dirty,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def default_device() -> str:
    """ "cuda" where torch sees one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def present_devices() -> list[str]:
    """ "cpu", and "cuda" and "mps" where torch sees one."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(name for name, present in found.items() if present)]


def present(device: str) -> torch.device:
    """The device of that name.

    Raises:
        RuntimeError: torch knows no such device, or sees none here.
    """
    found = torch.device(device)
    if found.type not in present_devices():
        raise RuntimeError(f"device {device!r} is not here: torch sees {', '.join(present_devices())}")
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """Kind and name of a device; on CUDA also driver, compute capability, sizes."""
    if device.type != "cuda":
        name = _cpu_name() if device.type == "cpu" else f"{platform.machine()} {device.type}"
        return {"device": name, "kind": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "kind": "cuda",
        "driver": _driver(device),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": last_level_cache(device)[0],
        "multiprocessors": properties.multi_processor_count,
    }


def last_level_cache(device: torch.device) -> tuple[int, str]:
    """Bytes of the device's largest cache, and how they were found.

    On CUDA the device property; on Linux the largest of the first core's caches in ``/sys``, else
    ``sysconf``; else 32 MiB is assumed. A virtual machine may report the whole host's cache.
    """
    if device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        return (int(size), "L2_cache_size of the device") if size else (64 << 20, "assumed")
    if device.type == "cpu":
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        sizes = []
        for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
            found = re.fullmatch(r"(\d+)([KMG]?)\s*", entry.read_text())
            if found:
                sizes.append(int(found[1]) * units.get(found[2], 1))
        if sizes:
            return max(sizes), "/sys/devices/system/cpu/cpu0/cache"
        for key in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
            if key in getattr(os, "sysconf_names", {}) and os.sysconf(key) > 0:
                return os.sysconf(key), f"sysconf {key}"
    return 32 << 20, "assumed"


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(found[1]) << 10 if found else None
    except OSError:
        return None


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, where output can be rich and figures appear inline."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _run(*command: str) -> str | None:
    """Standard output of a program, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _commit() -> tuple[str, bool | None]:
    top = _run("git", "-C", str(ROOT), "rev-parse", "--show-toplevel")
    # A package installed into an environment inside somebody's repository is not that repository's.
    ours = top is not None and Path(top).resolve() == ROOT
    head = _run("git", "-C", str(ROOT), "rev-parse", "HEAD") if ours else None
    if head is None:  # no repository here, or no commit yet: whoever copied the files may say which
        return os.environ.get("NORMTUTOR_COMMIT") or "unknown", None
    changes = _run("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head, None if changes is None else bool(changes)


def _driver(device: torch.device) -> str | None:
    found = _run(
        "nvidia-smi", f"--id={device.index or 0}", "--query-gpu=driver_version", "--format=csv,noheader"
    )
    lines = (found or "").splitlines()
    return lines[0].strip() if lines else None


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
