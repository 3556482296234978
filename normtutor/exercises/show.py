"""Showing text: Markdown where a notebook runs, plain text elsewhere."""

import re
import sys
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


_SYMBOLS = {
    "gamma": "γ", "beta": "β", "mu": "μ", "sigma": "σ", "varepsilon": "ε", "partial": "∂", "leftarrow": "←",
    "times": "×", "cdot": "·", "sum": "Σ", "le": "≤", "ge": "≥",
    "lVert": "‖", "rVert": "‖", "nabla": "∇", "pm": "±", "ldots": "…", "mapsto": "↦",
}  # fmt: skip


def plain(text: str) -> str:
    """Markdown with simple LaTeX between dollar signs, as text that a terminal shows."""
    parts = re.split(r"(`[^`]*`|\${1,2}[^$]+\${1,2})", text)
    return "".join(_plain_formula(part.strip("$")) if part.startswith("$") else part for part in parts)


def _plain_formula(latex: str) -> str:
    latex = re.sub(r"\\hat\s*\{?(\w)\}?", "\\1\N{COMBINING CIRCUMFLEX ACCENT}", latex)
    latex = latex.replace("^2", "²").replace(r"\,", " ")
    latex = re.sub(r"\\([A-Za-z]+)", lambda found: _SYMBOLS.get(found[1], found[0]), latex)
    latex = re.sub(r"\\sqrt\{([^{}]*)\}", r"√(\1)", latex)
    latex = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", latex)
    return re.sub(r"\^\{?(\w+)\}?", r"^\1", latex)


def code(source: str, language: str = "python") -> str:
    """A fenced code block."""
    return f"```{language}\n{source.strip()}\n```"
