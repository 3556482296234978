"""Executed notebooks, kept between runs: nbval fills the cache, the book is built from it.

As a pytest plugin (``-p executed``) it stores each notebook that nbval has run without a failure.
"""

import copy
import hashlib
import sys
from collections.abc import Generator
from pathlib import Path

import nbformat
import pytest
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbval.plugin import IPyNbCell

outputs = pytest.StashKey[dict[int, list[nbformat.NotebookNode]]]()
seconds = pytest.StashKey[float]()


def cache_path(root: Path) -> Path:
    """The cache's folder, named by what outputs depend on besides the cells: the package and the pins.

    jupyter-cache compares the cells only; under another name it starts empty, and Sphinx, which sees
    a changed setting, reads every page again.
    """
    digest = hashlib.sha256(sys.version.encode())
    package = [file for file in (root / "normtutor").rglob("*") if file.suffix in {".py", ".json"}]
    for file in [root / "constraints.txt", *sorted(package)]:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return root / "_build" / "executed" / digest.hexdigest()[:16]


def store(root: Path, path: Path, notebook: nbformat.NotebookNode, seconds: float) -> None:
    """Put an executed notebook, and how long it ran, where the book's build finds it."""
    bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
    get_cache(cache_path(root)).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collect a passed cell's outputs; once all of a notebook's cells have passed, store it."""
    report = yield
    if isinstance(item, IPyNbCell) and call.when == "call" and not report.failed:
        done = item.parent.stash.setdefault(outputs, {})
        done[item.cell_num] = item.test_outputs or []
        stash = item.parent.stash
        stash[seconds] = stash.get(seconds, 0.0) + call.duration
        notebook = copy.deepcopy(item.parent.nb)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if len(done) == len(cells):
            for count, cell in enumerate(cells):
                cell.outputs, cell.execution_count = done[count], count + 1
            store(item.config.rootpath, item.path, notebook, stash[seconds])
    return report
