"""The package's own source, shown where a lesson needs it, so that no layer is written twice."""

import ast
import inspect
import textwrap
from types import FunctionType, MethodType
from typing import Any

from normtutor.lab.machine import in_notebook


def source(obj: Any) -> str:
    """Source of a function, class or method, dedented, under a comment that names it.

    Of a docstring only the first line is kept: the lesson says the rest, and `help` has it.

    Raises:
        TypeError: ``obj`` is something else, or has no Python source.
    """
    if not isinstance(obj, type | FunctionType | MethodType):
        raise TypeError(f"expected a function, class or method, got {type(obj).__name__} {obj!r}")
    try:
        text = inspect.getsource(obj)
    except (OSError, TypeError) as error:
        raise TypeError(f"{obj.__qualname__} has no Python source that can be read") from error
    return f"# {obj.__module__}.{obj.__qualname__}\n{_short(textwrap.dedent(text)).rstrip()}"


def _short(text: str) -> str:
    """``text`` with every docstring cut to its first line."""
    lines = text.splitlines()
    for node in reversed(list(ast.walk(ast.parse(text)))):  # from the end, so that line numbers stay true
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            if last is not None and last > first + 1:
                lines[first:last] = [lines[first] + '"""']
    return "\n".join(lines)


def show_source(*objects: Any) -> None:
    """Display the source of functions, classes and methods: highlighted in a notebook, printed elsewhere.

    Raises:
        TypeError: as :func:`source`.
    """
    text = "\n\n\n".join(map(source, objects))
    if not in_notebook():
        print(text)
        return
    from IPython.display import display

    fence = "````" if "```" in text else "```"
    bundle = {"text/markdown": f"{fence}python\n{text}\n{fence}", "text/plain": text}
    display(bundle, raw=True)  # type: ignore[no-untyped-call]
