"""A fork, really made: one command changes the address in the sources and in the site built from them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import address

ROOT = address.ROOT
BIN = str(Path(sys.executable).parent)
# Put together, so that in the fork this file is no holder of its address.
OWNER, NAME = "Somebody-Else", "taught.norms"
FORK = f"https://github.com/{OWNER}/{NAME}"
SITE = f"https://{OWNER.lower()}.github.io/{NAME}/"
# Whatever names the old owner in an address; the package's own name is everywhere, and stays.
OLD_OWNER, OLD_NAME = address.repository().removeprefix("https://github.com/").split("/")
OLD = re.compile(
    rf"github\.com/{OLD_OWNER}/|/github/{OLD_OWNER}/|{OLD_OWNER}\.github\.io|{OLD_OWNER}/{OLD_NAME}\b", re.I
)


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as git could see it, cloned, after `make address URL=…`."""
    here, folder = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("fork") / "clone"
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, here / name)
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is now"]):
        run("git", *who, *command, cwd=here)
    run("git", "clone", "-q", here.as_uri(), str(folder), cwd=here)
    # What the command runs, with the Python that is here: `make` would make an environment first.
    recipe = re.search(
        r"^address:.*\n\t@\$\(BIN\)/python (.+) \$\(URL\)$", (folder / "Makefile").read_text(), re.M
    )
    assert recipe, "the Makefile runs it otherwise now"
    run(sys.executable, recipe[1], FORK, cwd=folder)
    return folder


def holders(folder: Path, names: list[str]) -> dict[str, list[str]]:
    """The files in which the old address is left, with the places."""
    found = {name: OLD.findall((folder / name).read_bytes().decode("utf8", "replace")) for name in names}
    return {name: places for name, places in found.items() if places}


def test_no_tracked_file_holds_the_old_address(fork: Path) -> None:
    tracked = run("git", "ls-files", cwd=fork).splitlines()
    assert len(tracked) > 100
    assert holders(fork, tracked) == {}
    checks = ["-q", "-p", "no:cacheprovider", "tests/test_project.py", "-k", "address"]
    run(sys.executable, "-m", "pytest", *checks, cwd=fork)


@pytest.mark.slow
def test_a_site_built_from_it_knows_the_new_address_only(fork: Path) -> None:
    """Every page, the notebooks not executed."""
    config = fork / "_config.yml"
    config.write_text(config.read_text().replace("execute_notebooks: cache", "execute_notebooks: off"))
    tools = {"PYTHONPATH": f"{fork}{os.pathsep}{fork / 'book' / 'tools'}"}
    run(shutil.which("jupyter-book", path=BIN) or "", "build", ".", cwd=fork, **tools)

    html = fork / "_build" / "html"
    written = [path.relative_to(html).as_posix() for path in html.rglob("*") if path.is_file()]
    assert holders(html, written) == {}
    for name in ("index.html", "404.html", "robots.txt", "sitemap.xml", "book/introduction.html"):
        assert SITE in (html / name).read_text("utf8"), name
    page = (html / "notebooks" / "choosing.html").read_text("utf8")
    colab = f"https://colab.research.google.com/github/{OWNER}/{NAME}/blob/main/notebooks/choosing.ipynb"
    assert page.count(f'href="{colab}"') == 2, "under the title, and in the theme's menu"
    assert f'href="{FORK}"' in page
    for kind in ("og:url", "og:image"):
        assert re.search(rf'property="{kind}" content="{SITE}', page)
    assert f"git+{FORK}" in (html / "_sources" / "notebooks" / "choosing.ipynb").read_text("utf8")
