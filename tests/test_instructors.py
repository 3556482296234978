"""The page for instructors: what it tells to type, typed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat

from address import ROOT

PAGE = (ROOT / "book" / "instructors.md").read_text("utf8")
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```", PAGE)
ANSWER = """import torch
from normtutor.exercises import check

def batch_norm(x, weight, bias, eps):
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    x_hat = (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, keepdim=True, correction=1) + eps)
    return weight.view(shape) * x_hat + bias.view(shape)

check("batch_norm.forward", batch_norm)
"""


def block(language: str, word: str) -> str:
    [found] = [text for kind, text in BLOCKS if kind == language and word in text]
    return found


def test_a_folder_is_graded_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "submissions").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ANSWER)])
    nbformat.write(notebook, tmp_path / "submissions" / "ada.ipynb")
    program = f'normtutor() {{ {sys.executable} -m normtutor.cli "$@"; }}\n'
    loop = program + block("sh", "for file in")
    subprocess.run(["bash", "-ec", loop], cwd=tmp_path, check=True)
    [verdict] = json.loads((tmp_path / "submissions" / "ada.json").read_text("utf8"))
    for key in ("id", "status", "mistake", "text"):
        assert f"`{key}`" in PAGE
        assert key in verdict
    said = subprocess.run(
        [sys.executable, "-c", block("python", "Counter")], cwd=tmp_path, capture_output=True, text=True
    )
    assert "ada          0 of 1 passed" in said.stdout, said.stderr
    assert "1 × batch_norm.forward: unbiased_variance" in said.stdout


def test_a_seed_is_given_as_the_page_says() -> None:
    space: dict[str, object] = {}
    exec(ANSWER[: ANSWER.index("\ncheck(")], space)
    exec(block("python", "seed=7"), space)
    verdict = space["verdict"]
    assert not verdict
    assert "seed 7" in str(verdict.text)  # type: ignore[attr-defined]
