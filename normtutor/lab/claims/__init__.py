"""Published claims, put to the test: each one an experiment, a band that decides, and its record.

``make claims`` runs every experiment in full and records it in ``normtutor/results/claims.json``; a notebook
runs the short version and shows the record beside it.
"""

import json
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from normtutor.catalog import CHAPTERS
from normtutor.lab.text import markdown_table
from normtutor.lab.training import one_thread
from normtutor.networks import Norm

Measured = dict[str, Any]
RECORD = "claims.json"
NOT_MEASURED = "not measured yet (make claims)."
_PAGE = """# Published claims, put to the test

The course tests {count} claims of the literature, each with an experiment small enough for a laptop. What
counts as "reproduces" is a band wide enough that a seed does not decide, fixed before the result was known
(where it was not, the chapter says so); each run prints it. A claim that does not reproduce here may well
hold at the paper's scale: the chapter says what is missing. `make claims` repeats all of them."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and the experiment that tests it.

    Attributes:
        name: ``chapter.claim``.
        technique: the catalog row under test, or "weight".
        paper, url, where: the source, and the section, figure or table that makes the claim.
        says: the claim, in one sentence.
        measure: runs the experiment, ``measure(norm, full)``: ``norm`` is the normalization under test,
            ``full`` the long version; returns plain numbers.
        holds: whether the measured numbers lie in the band that excludes the opposite outcome.
        tells: the measured numbers in one sentence.
        caveat: what this scale cannot show.
        reproduces: the verdict that the chapter tells; a record or a run that says otherwise is a failure.
        control: what to put in the place of ``technique`` to see the opposite verdict; None where the verdict
            rests on wall time, which no test and no notebook asserts.
    """

    name: str
    technique: str
    paper: str
    url: str
    where: str
    says: str
    measure: Callable[[Norm, bool], Measured]
    holds: Callable[[Measured], bool]
    tells: Callable[[Measured], str]
    caveat: str = ""
    reproduces: bool = True
    control: Norm | None = "none"

    @property
    def band(self) -> str:
        """The band in words, as the function that decides describes itself."""
        return " ".join((self.holds.__doc__ or "").split())


@dataclass(frozen=True)
class Outcome:
    """What one run of a claim's experiment gave."""

    claim: Claim
    measured: Measured
    seconds: float
    full: bool

    @property
    def holds(self) -> bool:
        return self.claim.holds(self.measured)

    def __str__(self) -> str:
        return "\n".join(
            [
                _labelled("Claim", f"{self.claim.says} ({self.claim.paper}, {self.claim.where})"),
                _labelled("Measured", self.claim.tells(self.measured)),
                _labelled("Holds if", self.claim.band),
                _labelled("Verdict", f"{'reproduces' if self.holds else 'does NOT reproduce'} here"),
                *([_labelled("Caveat", self.claim.caveat)] if self.claim.caveat else []),
            ]
        )


def _labelled(label: str, text: str) -> str:
    """``text`` in lines short enough for a page, behind its label."""
    return textwrap.fill(text, 86, initial_indent=f"{label + ':':10}", subsequent_indent=" " * 10)


def claims() -> dict[str, Claim]:
    """Every claim by name, in the order of the chapters."""
    modules = [import_module(f"normtutor.lab.claims.{chapter}") for chapter in CHAPTERS]
    return {claim.name: claim for module in modules for claim in module.CLAIMS}


def run(name: str, norm: Norm | None = None, full: bool = False) -> Outcome:
    """Run the experiment called ``name``, by default with the technique it is about.

    Raises:
        ValueError: no claim has that name; the message suggests the nearest.
    """
    claim = _find(name)
    start = time.perf_counter()
    with one_thread():
        measured = claim.measure(claim.technique if norm is None else norm, full)
    return Outcome(claim, measured, time.perf_counter() - start, full)


def _find(name: str) -> Claim:
    known = claims()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise ValueError(f"unknown claim {name!r}: {hint}")
    return known[name]


def recorded(name: str, folder: Path | None = None) -> str:
    """The full run on record (in ``folder``; by default the package's), with its provenance.

    Raises:
        ValueError: no claim has that name; the message suggests the nearest.
    """
    _find(name)
    record = _record(folder)
    if name not in record["claims"]:
        return _labelled("Full run", NOT_MEASURED)
    entry = record["claims"][name]
    verdict = "reproduces" if entry["holds"] else "does NOT reproduce"
    return _labelled("Full run", f"{entry['tells']}; {verdict}. Recorded {_provenance(record)}.")


def page() -> str:
    """The page of the book that lists every claim with what was measured, as Markdown."""
    record = _record()
    rows = []
    for name, claim in claims().items():
        chapter = name.partition(".")[0]
        entry = record["claims"].get(name)
        rows.append(
            (
                f"[{claim.paper}]({claim.url}), {claim.where}",
                claim.says,
                entry["tells"] if entry else NOT_MEASURED,
                ("reproduces" if entry["holds"] else "**does not reproduce**") if entry else "",
                f"[{CHAPTERS[chapter]}](../../notebooks/{chapter}.ipynb)",
            )
        )
    header = ("source", "claim", "measured here, in full", "verdict", "chapter")
    by = f"Recorded {_provenance(record)}." if record["claims"] else ""
    return f"{_PAGE.format(count=len(rows))}\n\n{by}\n\n{markdown_table(header, rows)}\n"


def _record(folder: Path | None = None) -> dict[str, Any]:
    path = (resources.files("normtutor") / "results" if folder is None else folder) / RECORD
    record: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"claims": {}}
    )
    return record


def _provenance(record: dict[str, Any]) -> str:
    by = record["provenance"]
    where = f"{by['device']}, torch {by['versions']['torch']}, commit {by['commit'][:10]}"
    return f"{by['date'][:10]} on {where}"
