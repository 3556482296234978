"""Notebooks: NAME.py is the truth, NAME.ipynb is generated from it.

python book/tools/chapters.py [NAME …]     regenerate notebooks/NAME.ipynb, all of them by default
"""

import re
import sys
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
from jupytext.combine import map_outputs_to_inputs
from nbformat import NotebookNode

import executed
from address import ROOT

FIRST_CELL = Path(__file__).with_name("first_cell.py")
CHECKED = "nbval-check-output"
METADATA = {
    "accelerator": "GPU",
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts(root: Path = ROOT) -> list[Path]:
    """The percent scripts, one per chapter."""
    return sorted((root / "notebooks").glob("*.py"))


def notebook_of(script: Path) -> NotebookNode:
    """What the script says, as a notebook without outputs; cells keep the ids that NAME.ipynb has."""
    notebook = jupytext.read(script)
    notebook.metadata, notebook.nbformat_minor = nbformat.from_dict(METADATA), 5
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)  # jupytext's note about the script's blank lines
    generated = script.with_suffix(".ipynb")
    if generated.exists():
        old = nbformat.read(generated, as_version=4)
        for cell, match in zip(notebook.cells, map_outputs_to_inputs(notebook.cells, old.cells), strict=True):
            if match is not None:
                cell.id = old.cells[match].id
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_checked(cell: NotebookNode) -> bool:
    """Whether nbval compares this cell's output with the stored one."""
    return CHECKED in cell.metadata.get("tags", [])


def put_first_cell(script: Path) -> None:
    """Replace the script's first code cell by the template, which readers of the site need not see."""
    text, old = script.read_text("utf8"), code_cells(jupytext.read(script))[0].source
    new = '# %% tags=["remove-cell"]\n' + FIRST_CELL.read_text("utf8").strip()
    mended = re.sub(r"# %%.*\n" + re.escape(old), lambda _: new, text, count=1)
    if mended != text:
        script.write_text(mended, "utf8")


def regenerate(script: Path) -> None:
    """Write NAME.ipynb: the script's cells, and the fresh outputs of those whose outputs are checked."""
    put_first_cell(script)
    notebook = notebook_of(script)
    place = {"metadata": {"path": script.parent}}
    start = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=600, record_timing=False, resources=place).execute()
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel added its own version
    executed.store(ROOT, script.with_suffix(".ipynb"), notebook, time.perf_counter() - start)
    for cell in code_cells(notebook):
        if is_checked(cell):
            problems = unstable(cell)
            if problems:
                raise SystemExit(f"{script.name}: a cell tagged {CHECKED} {problems}:\n{cell.source}")
        else:
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def unstable(cell: NotebookNode) -> str:
    """Why an executed cell's output cannot be compared: '' if it can."""
    kinds = {kind for output in cell.outputs for kind in output.get("data", {"text/plain": ""})}
    text = "".join(
        output.get("text", "") + "".join(map(str, output.get("data", {}).values())) for output in cell.outputs
    )
    if not cell.outputs:
        return "has no output"
    if kinds - {"text/plain", "text/markdown"}:
        return f"has output that is not text: {sorted(kinds)}"
    if re.search(r"\bat 0x[0-9a-f]{6,}|<Figure ", text):
        return "shows a memory address or a figure"
    return ""


def stale(script: Path) -> list[str]:
    """How NAME.ipynb differs from what the script says, and what nbval would silently not compare."""
    generated = script.with_suffix(".ipynb")
    if not generated.exists():
        return ["not generated yet"]
    expected, actual = notebook_of(script), nbformat.read(generated, as_version=4)
    problems = []
    if actual.metadata != expected.metadata:
        problems.append("its metadata differs")
    if len(actual.cells) != len(expected.cells):
        problems.append(f"has {len(actual.cells)} cells, the script {len(expected.cells)}")
    for number, (ours, theirs) in enumerate(zip(expected.cells, actual.cells, strict=False)):
        for key in ("cell_type", "source", "metadata"):
            if ours[key] != theirs[key]:
                problems.append(f"cell {number}: its {key} differs")
    for number, cell in enumerate(code_cells(actual), start=1):
        if is_checked(cell) and (not cell.outputs or cell.execution_count != number):
            problems.append(f"code cell {number}: checked, but without stored output or count")
        if not is_checked(cell) and (cell.outputs or cell.execution_count is not None):
            problems.append(f"code cell {number}: not checked, but with stored output or count")
    return problems


NOT_PORTABLE = {
    r"^(`{3,}|~{3,}|:{3,})\s*\{": "a directive fence",
    r"^:::": "a colon fence",
    r"\{[\w:-]+\}`": "a role",
    r"^\([\w-]+\)=": "a label",
    r"^%": "a MyST comment",
    r"^> *\[!": "a GitHub alert",
    r"\[\^": "a footnote",
    r"\\[(\[]": "mathematics in \\( or \\[: write $…$ or $$…$$",
    r"^```math|\$`": "GitHub's own mathematics: write $…$ or $$…$$",
    r"<(?!/?(?:details|summary|br|sub|sup|kbd)\b|https?:)[a-z/]": "HTML other than <details>",
    r"</summary>(?! *\n[ \t]*\n)": "a <summary> with no blank line after it: its Markdown would not render",
    r"\$\$": "an unpaired $$",
}


def not_portable(markdown: str) -> list[str]:
    """What in a Markdown cell renders differently in Jupyter Book, Colab and GitHub."""
    text = re.sub(
        r"(?ms)^(```|~~~)([^\n]*)\n.*?^\1", r"\1\2", markdown + "\n\n"
    )  # code, but not the fence's head
    text = re.sub(r"(?<![`$}])`[^`\n]+`(?!`)", "", text)
    text = re.sub(r"(?s)\$\$(?!`).+?\$\$|\$(?!`)[^$\n]+\$", "", text)
    return [name for pattern, name in NOT_PORTABLE.items() if re.search(pattern, text, re.MULTILINE)]


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for script in scripts():
        if not wanted or script.stem in wanted:
            print(f"executing {script.relative_to(ROOT)} …", flush=True)
            regenerate(script)
