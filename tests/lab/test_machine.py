"""Provenance names machine, versions and commit, and nothing private."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from normtutor.lab import machine, provenance


def test_provenance_is_complete_and_json() -> None:
    found = json.loads(json.dumps(provenance("make bench", "cpu")))
    assert found["command"] == "make bench"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert found["kind"] == "cpu"
    assert found["device"]
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["versions"].keys() == {"python", "torch", "cuda", "triton", "numpy", "normtutor"}
    assert found["threads"] == torch.get_num_threads()
    assert str(Path.home()) not in json.dumps(found)


def test_the_commit_is_the_repositorys_and_dirt_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.hooksPath="]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(machine, "ROOT", tmp_path.resolve())
    monkeypatch.setenv("NORMTUTOR_COMMIT", "abc")
    assert (provenance("x")["commit"], provenance("x")["dirty"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    assert provenance("x")["dirty"] is True
    (tmp_path / "inner").mkdir()  # an environment inside somebody's repository
    monkeypatch.setattr(machine, "ROOT", (tmp_path / "inner").resolve())
    assert (provenance("x")["commit"], provenance("x")["dirty"]) == ("abc", None)
    monkeypatch.delenv("NORMTUTOR_COMMIT")
    assert provenance("x")["commit"] == "unknown"


def test_the_cache_size_says_where_it_comes_from() -> None:
    size, source = machine.last_level_cache(torch.device("cpu"))
    assert 64 << 10 <= size <= 8 << 30
    assert source
