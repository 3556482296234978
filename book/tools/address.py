"""The repository's public address: read from pyproject.toml, and carried to every file that needs it.

python book/tools/address.py                            carry pyproject.toml's address everywhere
python book/tools/address.py https://github.com/me/fork   change it, then the same
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BRANCH = "main"
PLAIN = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")


def repository(root: Path = ROOT) -> str:
    """The address, https://github.com/OWNER/NAME."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    return str(project["urls"]["Repository"])


def forms(url: str) -> tuple[str, str, str]:
    """The ways an address is written: on GitHub, as Colab's link to it, and the site's own."""
    owner, name = url.removeprefix("https://github.com/").split("/")
    return (
        f"github.com/{owner}/{name}",
        f"/github/{owner}/{name}/",
        f"https://{owner.lower()}.github.io/{name}",
    )


def on_colab(url: str, notebook: str) -> str:
    """Colab's address of a notebook in the repository."""
    return f"https://colab.research.google.com{forms(url)[1]}blob/{BRANCH}/{notebook}"


def holders(root: Path, url: str) -> list[Path]:
    """The tracked files (and those that git could track) in which the address stands, in any form."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    files = [root / name for name in names if name and (root / name).is_file()]
    return [file for file in files if any(form.encode() in file.read_bytes() for form in forms(url))]


def carry(root: Path, new: str) -> list[Path]:
    """Write ``new`` wherever the address was; return the files that changed.

    What the address was is read from the notebooks' first cell, the copy that nobody edits by hand,
    so that an address changed by hand in pyproject.toml is carried as well.
    """
    if not PLAIN.fullmatch(new):
        raise ValueError(f"expected https://github.com/OWNER/NAME, got {new!r}")
    cell = (root / "book/tools/first_cell.py").read_text("utf8")
    found = PLAIN.search(cell)
    assert found, "first_cell.py names no address"
    changed = []
    for old in {found[0], repository(root)} - {new}:
        for file in holders(root, old):
            text = file.read_text("utf8")
            for before, after in zip(forms(old), forms(new), strict=True):
                text = re.sub(re.escape(before) + r"(?![\w-])" * (before[-1] != "/"), after, text)
            file.write_text(text, "utf8")
            changed.append(file)
    return changed


if __name__ == "__main__":
    changed = carry(ROOT, sys.argv[1].rstrip("/") if len(sys.argv) > 1 else repository())
    print(*(f"changed {file.relative_to(ROOT)}" for file in changed), sep="\n")
