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
from normtutor.lab.training import one_thread
from normtutor.networks import Norm

Measured = dict[str, Any]
RECORD = "claims.json"
NOT_MEASURED = "not measured yet (make claims)."
_PAGE = """# Published claims, put to the test

The course tests {count} claims of the literature, each with an experiment small enough for a laptop. What
counts as "reproduces" is a band wide enough that a seed does not decide; each run prints it. Some bands were
set after a first, exploratory run, and then held on further seeds. A claim that does not reproduce here may
well hold at the paper's scale: the chapter says what is missing. `make claims` repeats all of them.

{summary}"""


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
    entry = _record(folder).get(name)
    if entry is None:
        return _labelled("Full run", NOT_MEASURED)
    return _labelled("Full run", f"{entry['tells']}; {_verdict(entry)}. Recorded {_where(entry)}.")


def page() -> str:
    """The page of the book that lists every claim with what was measured, as Markdown."""
    record = _record()
    parts = [_PAGE.format(count=len(claims()), summary=_summary(record))]
    for chapter, title in CHAPTERS.items():
        mine = [claim for name, claim in claims().items() if name.partition(".")[0] == chapter]
        if mine:
            parts.append(f"## [{title}](../../notebooks/{chapter}.ipynb)")
            parts += [_paragraph(claim, record.get(claim.name)) for claim in mine]
    return "\n\n".join(parts) + "\n"


def _summary(record: dict[str, Measured]) -> str:
    """How many of the claims on record reproduce, and which do not."""
    known = {name: record[name]["holds"] for name in claims() if name in record}
    failed = [f"{{ref}}`{name} <claim-{name}>`" for name, holds in known.items() if not holds]
    told = f"Of the {len(known)} on record, {sum(known.values())} reproduce here"
    return f"{told}. These do not: {', '.join(failed)}." if failed else f"{told}."


def _paragraph(claim: Claim, entry: Measured | None) -> str:
    source = f"[{claim.paper}]({claim.url}), {claim.where}"
    lines = [f"**{claim.says}** ({source})", f"Holds if: {claim.band}"]
    if entry is None:
        lines.append(f"Measured: {NOT_MEASURED}")
    else:
        lines.append(f"Measured: {entry['tells']}")
        lines.append(f"Verdict: **{_verdict(entry)}** here. Recorded {_where(entry)}.")
    lines += [f"Caveat: {claim.caveat}."] * bool(claim.caveat)
    # The book's Sphinx extension knows which cell of the chapter runs it.
    lines.append(f"Code and short run: {{ref}}`claim-{claim.name}`")
    return "\n\n".join([lines[0], "\n".join(f"- {line}" for line in lines[1:])])


def _record(folder: Path | None = None) -> dict[str, Measured]:
    path = (resources.files("normtutor") / "results" if folder is None else folder) / RECORD
    record: dict[str, Measured] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def _verdict(entry: Measured) -> str:
    return "reproduces" if entry["holds"] else "does NOT reproduce"


def _where(entry: Measured) -> str:
    by = entry["provenance"]
    return f"{by['date'][:10]} on {by['device']}, torch {by['versions']['torch']}, commit {by['commit'][:10]}"
