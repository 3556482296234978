"""What Triton's compiler says of a learner's kernel: its interpreter is Python and runs much that no GPU can.

A process of its own compiles, for an H100 that need not be here. It gets the kernel as text, with whatever
the kernel's names mean; where that cannot be told, or the compiler is missing or old, nothing is said.
"""

import inspect
import json
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from normtutor.exercises.interpreter import is_constant, python_of, tl
from normtutor.lab import compiled

# A parameter under `tl.constexpr` for which the exercise has no constant is compiled for one of these.
_EXAMPLES = {"i32": 24, "fp32": 1e-5}

_CHILD = """
import json, linecache, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError

asked = json.load(sys.stdin)
linecache.cache["kernel"] = (len(asked["text"]), None, asked["text"].splitlines(keepends=True), "kernel")
names = {"__name__": "kernel"}
exec(compile(asked["text"], "kernel", "exec"), names)
at = {name: i for i, name in enumerate(asked["signature"])}
fixed = {(at[name],): value for name, value in asked["constants"].items()}
said = []
try:
    source = ASTSource(names[asked["name"]], asked["signature"], fixed, {})
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
except CompilationError as error:
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    line = error.src.split("\\n")[error.node.lineno - 1].strip() if error.src else ""
    said = [line, error.error_message or repr(error.__cause__)]
print(json.dumps(said))
"""


class _UnclearError(Exception):
    """The kernel cannot be handed to another process."""


def refusal(kernel: Any, signature: Mapping[str, str], constants: Mapping[str, int]) -> str:
    """Why the compiler does not take ``kernel``: "" if it does, or if that cannot be told here.

    Args:
        kernel: a function under ``@triton.jit``.
        signature: types of the parameters that are no constants, as "*bf16" or "i32", in their order.
        constants: values of the others, which follow them.
    """
    if compiled.missing():
        return ""
    function = python_of(kernel)
    parameters = inspect.signature(function).parameters.values()
    if len(parameters) != len(signature) + len(constants):  # it has more, with defaults
        return ""
    types_of: dict[str, str] = {}
    values: dict[str, float] = {}
    kinds = (*signature.values(), *["constexpr"] * len(constants))
    for parameter, kind in zip(parameters, kinds, strict=True):
        name, types_of[parameter.name] = parameter.name, kind
        if name in constants:
            values[name] = constants[name]
        elif is_constant(parameter) and kind in _EXAMPLES:
            types_of[name], values[name] = "constexpr", _EXAMPLES[kind]
    try:
        text = _text(function)
    except (_UnclearError, OSError, TypeError):  # no source, or none that another process understands
        return ""
    said = _compile(text, function.__name__, tuple(types_of.items()), tuple(values.items()))
    if not said:
        return ""
    line, why = said
    wrapped = re.fullmatch(r"\w+\((['\"])(.*)\1\)", why, re.DOTALL)
    why = (wrapped[2] if wrapped else why).partition(". ")[0].rstrip(".")
    return (
        f"The numbers are right in the interpreter, which is Python. Triton's compiler, which has to make a "
        f"program for a GPU of it, stops at `{line}`: {why}."
    )


def _text(function: types.FunctionType) -> str:
    """The kernel, the functions that it calls and its global names, as one text."""
    found: dict[str, tuple[object, str]] = {}
    _collect(function, function.__name__, found)
    parts = [text for _, text in found.values()]
    return "\n\n".join(
        ["from __future__ import annotations\nimport triton\nimport triton.language as tl", *parts]
    )


def _collect(function: types.FunctionType, name: str, found: dict[str, tuple[object, str]]) -> None:
    source = re.search(r"^def .*", textwrap.dedent(inspect.getsource(function)), re.MULTILINE | re.DOTALL)
    if source is None:
        raise _UnclearError
    alias = f"{name} = {function.__name__}\n" * (name != function.__name__)
    found[name] = function, f"@triton.jit\n{source[0]}\n{alias}"
    names = inspect.getclosurevars(function)
    for name, value in {**names.globals, **names.nonlocals}.items():
        meant = getattr(value, "fn", value)
        if name in found:
            if found[name][0] is not meant:
                raise _UnclearError
        elif isinstance(value, tl.constexpr):
            found[name] = meant, f"{name} = tl.constexpr({value.value!r})"
        elif isinstance(value, types.ModuleType):
            found[name] = meant, f"import {value.__name__} as {name}"
        elif str(getattr(value, "__module__", "")).startswith("triton.language") and callable(value):
            found[name] = meant, f"from {value.__module__} import {meant.__name__} as {name}"
        elif value is not meant and isinstance(meant, types.FunctionType):
            _collect(meant, name, found)
        else:  # the compiler refuses it, whatever it is
            found[name] = meant, f"{name} = {value if isinstance(value, int | float) else None!r}"


@lru_cache(maxsize=64)
def _compile(
    text: str, name: str, signature: tuple[tuple[str, str], ...], constants: tuple[tuple[str, float], ...]
) -> list[str]:
    """The line at which the compiler stops, and why; empty if it does not, or fails in another way."""
    asked = {"text": text, "name": name, "signature": dict(signature), "constants": dict(constants)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(asked), env=compiled.with_compiler(),
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        said: list[str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return said
