"""Nothing of the founding document is lost: every item has a successor, and every successor exists."""

import pydoc

import pytest

import seed
from normtutor import guide
from normtutor.catalog import CHAPTERS

TEXT = seed.SEED.read_text("utf8")
ITEMS = [*seed.definitions(TEXT), *seed.headings(TEXT)]


def test_the_document_is_read_whole() -> None:
    assert sum(item.startswith("class ") for item in ITEMS) == 13
    assert sum(item.startswith("def ") for item in ITEMS) == 13
    assert len(seed.headings(TEXT)) == 29


def test_every_item_has_an_account_and_no_account_is_invented() -> None:
    assert sorted(set(ITEMS) - set(seed.ACCOUNTS)) == []
    assert sorted(set(seed.ACCOUNTS) - set(ITEMS)) == []


@pytest.mark.parametrize("item", seed.ACCOUNTS)
def test_every_successor_exists(item: str) -> None:
    account = seed.ACCOUNTS[item]
    assert account.now
    assert account.change.endswith(".")
    for name in account.now:
        chapter, colon, heading = name.partition(": ")
        if colon:
            assert chapter in CHAPTERS
            assert heading in seed.sections(chapter)
        else:
            assert pydoc.locate(name) is not None, name


def test_a_gap_would_be_seen() -> None:
    more = TEXT + "\n## Spectral Normalization\n\n```python\nclass SpectralNorm:\n    pass\n```\n"
    assert "Spectral Normalization" in seed.headings(more)
    assert "class SpectralNorm" in seed.definitions(more)


def test_the_page_shows_every_item() -> None:
    page = seed.page()
    assert all(item in page for item in ITEMS)
    assert all(line.text in page and line.says in page for line in guide.SEED)
