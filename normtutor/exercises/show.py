"""Showing text: Markdown where a notebook runs, plain text elsewhere."""

import sys
from collections.abc import Sequence
from importlib import import_module


def show(text: str, markdown: str | None = None) -> None:
    """Display ``text`` once; a notebook shows ``markdown`` instead, if given, as Markdown."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        display = import_module("IPython.display").display
        display({"text/plain": text, "text/markdown": markdown or text}, raw=True)
        return
    try:
        print(text)
    except UnicodeEncodeError:  # a terminal without ✓ or γ
        print(text.encode("ascii", "replace").decode())


def code(source: str, language: str = "python") -> str:
    """A fenced code block."""
    return f"```{language}\n{source.strip()}\n```"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
