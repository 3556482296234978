"""Aligned text: what the instruments print in a notebook, a terminal and a page alike."""

from collections.abc import Sequence
from typing import Any


def number(value: Any) -> str:
    """Short text of a table's cell: None is empty, a float has 3 digits, a shape reads 16×64×32×32."""
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return "×".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.0f}" if 100 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
    return str(value)


def seeds_of(runs: Sequence[object]) -> str:
    """How many runs a number stands for."""
    return f"{len(runs)} seed{'s' * (len(runs) != 1)}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, separated by two spaces; columns of numbers to the right."""
    rows = [list(head), *(list(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = [all(line[i][:1] in "0123456789.-" for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )


def size(count: float) -> str:
    """Bytes with a binary unit: 1536 → "1.5 KiB"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1000 and power + 1 < len(units):
        count, power = count / 1024, power + 1
    return f"{count:.3g} {units[power]}"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rows = [list(head), ["---"] * len(head), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
