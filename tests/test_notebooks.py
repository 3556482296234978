"""Every notebook is generated, portable and compared; one is proved to run anywhere."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

import address
import chapters
import executed
from normtutor.exercises.exercise import Exercise
from normtutor.exercises.registry import exercises

ROOT = address.ROOT
SCRIPTS = [pytest.param(script, id=script.stem) for script in chapters.scripts()]
PROVED = ROOT / "notebooks" / "batch_norm.py"
NBVAL = [sys.executable, "-m", "pytest", "-p", "executed", "--nbval-lax", "--nbval-current-env"]
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON", "COV"))
}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command to its end; its output, which is shown if it fails."""
    env = ENVIRONMENT | environment
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_ipynb_is_what_the_script_says(script: Path) -> None:
    assert chapters.stale(script) == [], "run `make notebooks`"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_cell_is_the_template(script: Path) -> None:
    first = chapters.code_cells(jupytext.read(script))[0]
    assert first.source == chapters.FIRST_CELL.read_text("utf8").strip(), "run `make notebooks`"
    assert first.metadata.get("tags") == ["remove-cell"], "a reader of the site does not need it"


@pytest.mark.parametrize("exercise", exercises().values(), ids=list(exercises()))
def test_every_exercise_stands_in_its_notebook_as_registered(exercise: Exercise) -> None:
    script = ROOT / "notebooks" / f"{exercise.id.partition('.')[0]}.py"
    cells = [cell.source for cell in chapters.code_cells(jupytext.read(script))]
    at = cells.index(f'statement("{exercise.id}")')
    assert ast.dump(ast.parse(cells[at + 1])) == ast.dump(ast.parse(exercise.starter))
    assert cells[at + 2] == f'check("{exercise.id}", {exercise.answer})'


@pytest.mark.parametrize("script", SCRIPTS)
def test_nbval_has_something_to_compare(script: Path) -> None:
    assert sum(map(chapters.is_checked, chapters.code_cells(jupytext.read(script)))) >= 5


@pytest.mark.parametrize("script", SCRIPTS)
def test_markdown_renders_alike_everywhere(script: Path) -> None:
    texts = [cell.source for cell in jupytext.read(script).cells if cell.cell_type == "markdown"]
    assert {text: chapters.not_portable(text) for text in texts if chapters.not_portable(text)} == {}
    titles = [line for text in texts for line in text.splitlines() if line.startswith("# ")]
    assert len(titles) == 1, "a page has one title"
    for link in re.findall(r"\]\(([^)#\s]+)", "\n".join(texts)):
        assert link.startswith(("https://", "http://")) or (script.parent / link).exists(), link


@pytest.mark.parametrize(
    "text",
    [
        "```{note}\nhello\n```",
        ":::{tip}\nhello\n:::",
        "see {doc}`other`",
        "(label)=\n## Heading",
        "% hidden",
        "> [!NOTE]\n> hello",
        "text[^1]",
        r"\(x\)",
        r"\[x\]",
        "```math\nx\n```",
        "$`x`$",
        '<div class="x">',
        "<details>\n<summary>more</summary>\ntext\n</details>",
        "$$\nx\n",
    ],
)
def test_what_is_not_portable_is_seen(text: str) -> None:
    assert chapters.not_portable(text) != []


def test_what_is_portable_passes() -> None:
    text = (
        "# Title\n\nInline $a<b$, `{role}` and [a link](x.md), <https://example.org>.\n\n"
        "$$\nx_i \\\\[4pt] y\n$$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```python\nx[^1] < y  # % (a)= {x}`y`\n```\n\n"
        "<details>\n<summary>more</summary>\n\nHidden $x$.\n\n</details>"
    )
    assert chapters.not_portable(text) == []


def test_staleness_is_seen(tmp_path: Path) -> None:
    cells = '# %% [markdown]\n# # Title\n\n# %% tags=["nbval-check-output"]\n1 + 1\n'
    script = tmp_path / "tiny.py"
    script.write_text(cells)
    assert chapters.stale(script) == ["not generated yet"]
    notebook = chapters.notebook_of(script)
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    assert chapters.stale(script) == ["code cell 1: checked, but without stored output or count"]
    checked = notebook.cells[1]
    checked.execution_count = 1
    checked.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    assert chapters.stale(script) == []
    for before, after in [("1 + 1", "1 + 2"), ("# # Title", "# # Other"), ("nbval-check", "no-check")]:
        script.write_text(cells.replace(before, after))
        assert chapters.stale(script) != [], after
    script.write_text(cells + "\n# %%\n2\n")
    assert chapters.stale(script) != []


def test_cells_keep_their_ids(tmp_path: Path) -> None:
    script = tmp_path / "tiny.py"
    script.write_text("# %%\na = 1\n\n# %%\nb = 2\n")
    old = chapters.notebook_of(script)
    nbformat.write(old, script.with_suffix(".ipynb"))
    script.write_text("# %%\nnew = 0\n\n# %%\na = 1\n\n# %%\nb = 2\n")
    assert [cell.id for cell in chapters.notebook_of(script).cells][1:] == [cell.id for cell in old.cells]


@pytest.mark.slow
def test_nbval_is_the_only_execution_until_the_package_changes(tmp_path: Path) -> None:
    """In a small course of its own: nbval, then two builds; the second one after a change in the package."""
    (tmp_path / "normtutor").mkdir()
    (tmp_path / "normtutor" / "__init__.py").write_text("")
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    script = tmp_path / "index.py"
    script.write_text("# %% [markdown]\n# # Title\n\n# %%\n1 + 1\n")
    nbformat.write(chapters.notebook_of(script), script.with_suffix(".ipynb"))
    script.unlink()
    (tmp_path / "only_cache.py").write_text(
        "from pathlib import Path\nimport executed\n\n"
        "def setup(app):\n"
        "    app.connect('config-inited', lambda app, config: setattr(\n"
        "        config, 'nb_execution_cache_path', str(executed.cache_path(Path(app.srcdir)))))\n"
    )
    tools = {"PYTHONPATH": f"{ROOT / 'book' / 'tools'}:{tmp_path}"}
    sphinx = [sys.executable, "-m", "sphinx", "-C", "-W", "-D", "extensions=myst_nb,only_cache"]
    sphinx += ["-D", "nb_execution_mode=cache", "-D", "exclude_patterns=_build,.*", ".", "_build/html"]

    run(*NBVAL, "index.ipynb", cwd=tmp_path, **tools)
    log = run(*sphinx, cwd=tmp_path, **tools)
    assert "Using cached notebook" in log
    assert "Executing notebook" not in log
    assert "no targets are out of date" in run(*sphinx, cwd=tmp_path, **tools)

    (tmp_path / "normtutor" / "__init__.py").write_text("changed = True\n")
    assert "Executing notebook" in run(*sphinx, cwd=tmp_path, **tools)


def test_a_failed_notebook_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "normtutor").mkdir()
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    script = tmp_path / "broken.py"
    script.write_text("# %%\n1 + 1\n\n# %%\n1 / 0\n")
    nbformat.write(chapters.notebook_of(script), script.with_suffix(".ipynb"))
    with pytest.raises(AssertionError, match="1 failed, 1 passed"):
        run(*NBVAL, "broken.ipynb", cwd=tmp_path, PYTHONPATH=str(ROOT / "book" / "tools"))
    assert not executed.cache_path(tmp_path).exists()


@pytest.mark.slow
def test_runs_as_a_plain_script_without_notebook_libraries(tmp_path: Path) -> None:
    """Without IPython, rich and jupyterquiz: a finder that comes before all others does not find them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'IPython', 'ipykernel', 'jupyterquiz', 'rich'}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    (tmp_path / "work").mkdir()
    run(sys.executable, PROVED, cwd=tmp_path / "work", PYTHONPATH=str(tmp_path), MPLBACKEND="Agg")


@pytest.fixture(scope="module")
def public_address(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """git's settings under which the public address leads to the working tree, as one commit."""
    served = tmp_path_factory.mktemp("served")
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (served / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, served / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is now"]):
        run("git", *author, *command, cwd=served)
    key = f"url.{served.as_uri()}.insteadOf"
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": address.repository()}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The site-packages of a new environment that sees the libraries installed here, but not the package.

    A .pth file inside a folder that a .pth file names is not followed: the package's editable
    installation is one of those.
    """
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    (site / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return site


@pytest.mark.slow
def test_an_old_torch_stays_and_the_first_cell_says_so(
    tmp_path: Path, site: Path, public_address: dict[str, str]
) -> None:
    (site / "torch-2.5.0.dist-info").mkdir()
    (site / "torch-2.5.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.5.0\n"
    )
    with pytest.raises(AssertionError, match=r"RuntimeError: Installing .* Is torch 2\.6 or newer\?"):
        run(tmp_path / "venv/bin/python", chapters.FIRST_CELL, cwd=tmp_path, **public_address)
    assert {path.name for path in site.iterdir()} == {"installed.pth", "torch-2.5.0.dist-info"}


@pytest.mark.slow
def test_runs_from_an_empty_folder_as_on_colab(
    tmp_path: Path, site: Path, public_address: dict[str, str]
) -> None:
    """Nothing but the .ipynb, Colab's IPython, an installed torch, and a public address that leads here."""
    folder, python = tmp_path / "folder", tmp_path / "venv/bin/python"
    folder.mkdir()
    shutil.copy(PROVED.with_suffix(".ipynb"), folder)
    run(python, "-m", "pip", "install", "-q", "ipython==7.34.0", "ipykernel==6.17.1", cwd=folder)

    spec = {"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    spec |= {"display_name": "Colab", "language": "python"}
    (tmp_path / "kernels" / "colab").mkdir(parents=True)
    (tmp_path / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))
    kernels = KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")], ensure_native_kernel=False)
    notebook = nbformat.read(folder / PROVED.with_suffix(".ipynb").name, as_version=4)
    notebook.cells.append(
        nbformat.v4.new_code_cell(
            "import IPython, normtutor, numpy, torch\n"
            "print(IPython.__version__, *(m.__file__ for m in (normtutor, numpy, torch)), sep='\\n')"
        )
    )
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        km=AsyncKernelManager(kernel_name="colab", kernel_spec_manager=kernels),
        resources={"metadata": {"path": folder}},
    ).execute(env=ENVIRONMENT | public_address)
    ipython, package, *libraries = notebook.cells[-1].outputs[0].text.splitlines()
    assert ipython == "7.34.0"
    assert Path(package).is_relative_to(site)
    assert not any(Path(library).is_relative_to(site) for library in libraries), "torch or numpy was replaced"
