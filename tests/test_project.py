"""What the files around the package promise: the address, the commands, the pins, the workflows."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import address
import suite

ROOT = address.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf8")
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]
PROSE = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]


def copied(to: Path) -> Path:
    """The working tree as git could see it, in a repository of its own."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    subprocess.run(["git", "init", "-q"], cwd=to, check=True)
    return to


def test_the_address_stands_only_where_it_is_carried() -> None:
    holders = {file.relative_to(ROOT).as_posix() for file in address.holders(ROOT, address.repository())}
    notebooks = {f"notebooks/{file.name}" for file in (ROOT / "notebooks").iterdir() if file.is_file()}
    once = {"pyproject.toml", "README.md", "CITATION.cff", "book/tools/first_cell.py"}
    assert once <= holders
    assert holders - once <= notebooks


def test_every_occurrence_is_pyprojects() -> None:
    slug = address.repository().removeprefix("https://github.com/")
    owner, name = slug.split("/")
    for file in address.holders(ROOT, address.repository()):
        text = file.read_text("utf8")
        assert set(re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob", text)) <= {slug}
        assert set(re.findall(r"git\+https://github\.com/([\w.-]+/[\w.-]+)", text)) <= {slug}
        assert set(re.findall(rf"https://([\w-]+)\.github\.io/{name}\b", text)) <= {owner.lower()}
    assert (
        yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))["repository-code"] == address.repository()
    )


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_new_address_reaches_everything(tmp_path: Path, by_hand: bool) -> None:
    root, old, new = copied(tmp_path), address.repository(), "https://github.com/Me/fork-of-it"
    before = address.holders(root, old)
    if by_hand:
        pyproject = root / "pyproject.toml"
        pyproject.write_text(pyproject.read_text("utf8").replace(old, new), "utf8")
    address.carry(root, new)
    assert address.holders(root, old) == []
    assert set(address.holders(root, new)) - {root / "tests/test_project.py"} == set(before)
    assert address.repository(root) == new
    assert "https://me.github.io/fork-of-it" in (root / "README.md").read_text("utf8")


def test_an_address_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected https://github"):
        address.carry(tmp_path, "https://example.org/me/fork")


@pytest.mark.parametrize("file", PROSE, ids=lambda file: file.name)
def test_prose_names_real_things(file: Path) -> None:
    text = file.read_text("utf8")
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= TARGETS
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        assert set(re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)) <= TARGETS
    for link in re.findall(r"\]\(([^)#\s:]+)\)", text):
        # What the build generates is looked for in the built site.
        assert link.startswith("generated/") or (file.parent / link).exists(), link
    for module, names in re.findall(r"^from (normtutor[\w.]*) import (.+)$", text, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), name


def test_the_readme_holds_the_two_commands() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text("utf8"), re.DOTALL)
    assert re.findall(r"^make \w+", blocks[0], re.MULTILINE) == ["make book", "make test"]


def test_make_alone_lists_every_command() -> None:
    help_text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\S+)", help_text, re.MULTILINE)) == TARGETS - {"help"} | {"help"}


def test_the_package_asks_for_lower_bounds_only() -> None:
    assert [need for need in PROJECT["dependencies"] if not re.fullmatch(r"[\w-]+>=[\d.]+", need)] == []


def test_tools_are_pinned_and_installed_as_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    for need in [*PROJECT["dependencies"], *extras["book"], *extras["test"]]:
        assert re.match(r"[\w-]+", need)[0].lower() in pins, need  # type: ignore[index]
    if version("pytest") == pins["pytest"]:  # not where the public matrix tries other versions
        assert version("torch").split("+")[0] == pins["torch"]


def test_ci_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci" / "run").read_text("utf8").rstrip().endswith("make test")
    jobs = {
        name: yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf8"))["jobs"]
        for name in ("test", "publish")
    }
    assert {"run": "bash .ci/run"} in jobs["test"]["everything"]["steps"]
    assert {"run": "make book"} in jobs["publish"]["publish"]["steps"]
    matrix = jobs["test"]["versions"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.11", "3.12", "3.13"], "torch": ["torch==2.6.*", "torch"]}


@pytest.mark.parametrize(
    ("last", "code", "expected"),
    [
        ("===== 3 passed, 1 skipped in 0.1s =====", 0, {"passed": 3, "skipped": 1}),
        ("===== 2 failed, 3 passed, 1 error in 0.1s =====", 1, {"passed": 3, "failed": 3}),
        ("===== 3 passed in 0.1s =====", 1, {"passed": 3, "failed": 1}),
        ("All checks passed!", 0, {"passed": 1}),
        ("Found 2 errors.", 1, {"failed": 1}),
        ("no tests ran in 0.1s", 5, {"failed": 1}),
    ],
)
def test_the_suite_counts(last: str, code: int, expected: dict[str, int]) -> None:
    step = suite.Step("tried", [sys.executable, "-c", f"print({last!r}); raise SystemExit({code})"])
    step.run()
    assert dict(step.counts) == expected
    assert step.result == ("FAILED" if code else "ok")


def test_after_a_failure_the_suite_leaves_out_what_needs_it() -> None:
    good, bad = [sys.executable, "-c", "pass"], [sys.executable, "-c", "raise SystemExit(1)"]
    steps = [suite.Step("a", bad), suite.Step("b", good, needs=True), suite.Step("c", good)]
    suite.run_lane(steps)
    assert [step.result for step in steps] == ["FAILED", "not run", "ok"]
