"""The packages that Colab has, from the list it publishes: what the weekly workflow installs and checks.

python book/tools/colab_environment.py python os-info.txt           Colab's Python, as 3.13
python book/tools/colab_environment.py constraints pip-freeze.txt   its packages, as a constraints file
python book/tools/colab_environment.py needs pip-freeze.txt         what the course and its kernel need
python book/tools/colab_environment.py compare pip-freeze.txt       fail if other versions are installed

The lists are the files of those names in github.com/googlecolab/backend-info. Nothing beyond Python's own
library is imported: the script runs before anything is installed.
"""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
# What executes a notebook on Colab: its kernel, nbclient in place of its front end, and the pip that the
# first cell calls.
KERNEL = ("ipykernel", "ipython", "nbclient", "pip")
PINNED = re.compile(r"([\w.-]+)==([\w.!+-]+)")
# A wheel's name is NAME-VERSION-…; its address is usually quoted, so that "+cpu" is "%2Bcpu".
WHEEL = re.compile(r"([\w.-]+) @ https://\S*/[^/-]+-([^/-]+)-[^/]+\.whl\b\S*")
# Without a GPU nothing needs them, and as constraints they contradict what another build of torch asks for.
GPU_ONLY = re.compile(r"(nvidia|cuda)-.*|.*-cu\d+")


def normal(name: str) -> str:
    """The name as package indexes compare it: en_core_web_sm is en-core-web-sm."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(frozen: str) -> dict[str, str]:
    """What pip's freeze says, name → version, as far as somebody else can install it.

    Left out is what only Colab has: files of its image, source archives and checkouts ("name @ file://…",
    "name @ git+https://…"), editable packages. A build for a GPU or from an index of its own
    ("2.6.0+cu126") becomes the plain version, which the CPU build satisfies.
    """
    found = {}
    for line in frozen.splitlines():
        match = PINNED.fullmatch(line.strip()) or WHEEL.fullmatch(line.strip())
        if match and not GPU_ONLY.fullmatch(normal(match[1])):
            found[normal(match[1])] = unquote(match[2]).partition("+")[0]
    return found


def python_version(os_info: str) -> str:
    """Major and minor: the newest patch release may not be among those that the workflow can install."""
    found = re.search(r"^Python (\d+\.\d+)", os_info, re.MULTILINE)
    if not found:
        raise SystemExit("Colab's list names no Python version")
    return found[1]


def needs(available: dict[str, str], root: Path = ROOT) -> list[str]:
    """The course's dependencies and the kernel; the first cell would have to download what Colab lacks."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    names = [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in project["dependencies"]]
    missing = [name for name in [*names, *KERNEL] if normal(name) not in available]
    if missing:
        raise SystemExit(f"Colab's list lacks {', '.join(missing)}")
    return [*names, *KERNEL]


def differences(available: dict[str, str], installed: dict[str, str]) -> list[str]:
    """The packages installed in another version than Colab's. More packages are no difference: pip insists
    on dependencies of the kernel that Colab does without."""
    plain = {name: version.partition("+")[0] for name, version in installed.items()}
    return [
        f"{name} is {plain[name]} here, {available[name]} on Colab"
        for name in sorted(plain.keys() & available.keys())
        if plain[name] != available[name]
    ]


def main(what: str, path: str) -> None:
    text = Path(path).read_text("utf8")
    if what == "python":
        print(python_version(text))
        return
    available = versions(text)
    if what == "constraints":
        print(*(f"{name}=={version}" for name, version in available.items()), sep="\n")
    elif what == "needs":
        print(*needs(available), sep="\n")
    else:
        here = {normal(package.name): package.version for package in importlib.metadata.distributions()}
        different = differences(available, here)
        print(*different or ["every package has Colab's version"], sep="\n")
        raise SystemExit(bool(different))


if __name__ == "__main__":
    main(*sys.argv[1:])
