"""The progress file: one small JSON file beside the learner's work."""

import json
import os
import tempfile
from pathlib import Path

from normtutor.exercises.verdict import Verdict

FORMAT = "normtutor progress 1"


def path() -> Path:
    """Where progress is kept: ``NORMTUTOR_PROGRESS``, or a file in the current directory."""
    return Path(os.environ.get("NORMTUTOR_PROGRESS") or "normtutor_progress.json")


def load() -> dict[str, str]:
    """Status by exercise id; empty where no readable progress file exists."""
    try:
        return _parse(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


_said: set[Path] = set()  # the files about whose failure the learner knows


def record(verdict: Verdict) -> str | None:
    """Note a verdict. What was passed once stays passed.

    Returns:
        what the learner should know, if anything: a damaged file was set aside, or (said once) nothing can
        be written. It raises nothing: a read-only folder must not stand between a learner and a verdict.
    """
    if verdict.status == "unattempted":
        return None
    file = Path(os.path.realpath(path()))  # through a link, to keep the link
    try:
        kept = _record(file, verdict)
    except OSError as error:
        if file in _said:
            return None
        _said.add(file)
        return f"Your progress cannot be saved in {file}: {error.strerror or type(error).__name__}."
    return f"{file} was not a progress file; it is kept as {kept.name}." if kept else None


def _record(file: Path, verdict: Verdict) -> Path | None:
    """Returns the name under which a file that is not ours was kept."""
    kept = None
    try:
        statuses = _parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        statuses = {}
    except ValueError:  # not ours, or damaged: keep it under another name
        kept = _set_aside(file)
        statuses = {}
    if statuses.get(verdict.id) in ("passed", verdict.status):
        return kept
    statuses[verdict.id] = verdict.status
    text = json.dumps({"format": FORMAT, "exercises": statuses}, indent=1)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, prefix=file.name, suffix=".tmp", delete=False
    ) as new:
        new.write(text + "\n")
    try:
        os.replace(new.name, file)
    except OSError:
        os.unlink(new.name)
        raise
    return kept


def _parse(text: str) -> dict[str, str]:
    """Raises ValueError unless ``text`` is a progress file of ours."""
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError("not a progress file")
    statuses = data.get("exercises")
    if not isinstance(statuses, dict) or not all(isinstance(status, str) for status in statuses.values()):
        raise ValueError("not a progress file")
    return statuses


def _set_aside(file: Path) -> Path:
    """Give ``file`` the first free name; a hard link first, since a rename would overwrite."""
    number = 1
    while True:
        kept = file.with_name(f"{file.stem}.kept-{number}{file.suffix}")
        try:
            os.link(file, kept)
        except FileExistsError:
            number += 1
            continue
        file.unlink()
        return kept
