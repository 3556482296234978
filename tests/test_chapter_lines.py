"""One line per chapter, in one place: the README says the same."""

import re

import address
from chapter_lines import LINES
from normtutor.catalog import CHAPTERS


def test_every_chapter_has_its_line() -> None:
    assert list(LINES) == list(CHAPTERS), "give each chapter one line in book/tools/chapter_lines.py"


def test_the_readme_lists_the_same_chapters_with_the_same_lines() -> None:
    readme = (address.ROOT / "README.md").read_text("utf8")
    rows = re.findall(r"^\| \[(.+?)\]\(notebooks/(\w+)\.ipynb\) \| (.+?) \|", readme, re.MULTILINE)
    assert rows == [(CHAPTERS[name], name, line) for name, line in LINES.items()]
