"""The pages that answer questions: claims, numbers, terms, papers, the API, versions."""

import re
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pybtex.database import parse_file
from serving import HTML, Visit
from sphinx.util.inventory import InventoryFile

import chapters
from address import ROOT
from normtutor.lab import claims

pytestmark = pytest.mark.site
CITED = re.compile(r"(?:arxiv\.org/abs/|\")(\d{4}\.\d{5})\b")


@cache
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / page).read_bytes(), "html.parser")


def words(page: str) -> str:
    return " ".join(soup(page).select_one("article").get_text().split())  # type: ignore[union-attr]


def test_every_claim_leads_to_the_cell_that_runs_it() -> None:
    links = [
        str(a["href"]).partition("#") for a in soup("book/generated/claims.html").select("article a[href]")
    ]
    targets = {anchor: page for page, _, anchor in links if anchor.startswith("claim-")}
    for name in claims.claims():
        anchor = "claim-" + name.replace("_", "-").replace(".", "-")
        assert anchor in targets, f"{name}: no link to its cell"
        cell = soup(targets[anchor].removeprefix("../../")).find(id=anchor)
        assert cell, f"{name}: its link leads nowhere"
        assert f'claims.run("{name}")' in re.sub(r"\s", "", cell.get_text())


def test_the_api_is_complete() -> None:
    with (HTML / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, location: location)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    exporting = [
        file
        for file in sorted((ROOT / "normtutor").rglob("*.py"))
        if re.search(r"^__all__ = ", file.read_text("utf8"), re.MULTILINE)
        and file.name != "interpreter.py"  # the grader's own
    ]
    assert Path(ROOT / "normtutor" / "fused.py") in exporting
    for file in exporting:
        dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = import_module(dotted)
        for name in module.__all__:
            found = getattr(module, name)
            place = f"{getattr(found, '__module__', dotted)}.{getattr(found, '__qualname__', name)}"
            home = getattr(found, "__name__", "")  # a module that the package offers
            assert {f"{dotted}.{name}", place, home} & known, f"{dotted}.{name} is not on the page"


def test_the_bibliography_has_every_paper_that_is_cited() -> None:
    entries = parse_file(str(ROOT / "book" / "references.bib")).entries
    numbers = {entry.fields.get("eprint") for entry in entries.values()}
    sources = [*chapters.scripts(), ROOT / "normtutor" / "guide.py", ROOT / "normtutor" / "catalog.py"]
    sources += sorted((ROOT / "normtutor" / "lab" / "claims").glob("*.py"))
    for file in sources:
        assert set(CITED.findall(file.read_text("utf8"))) - numbers == set(), file.name
    page = words("book/references.html")
    for key, entry in entries.items():
        assert entry.fields["title"] in page, key
        assert f"Cited for: {entry.fields['annotation']}." in page, key


def test_every_paper_leads_to_where_it_is_cited() -> None:
    entries = soup("book/references.html").select("div.citation")
    assert len(entries) > 40
    links = {}
    for entry in entries:
        _, found, _ = " ".join(entry.get_text().split()).partition(" In: ")
        label = entry.get_text().strip()[:30]
        assert found, f"{label}: nobody cites it"
        links[label] = [str(a["href"]) for a in entry.select("a[href*='.html']")]
    [roofline] = [found for label, found in links.items() if "Williams" in label]
    assert roofline == ["../notebooks/fused_kernels.html"]
    [generator] = [found for label, found in links.items() if "Radford" in label]
    assert generator == ["guide.html"]


def test_every_quoted_number_has_its_place() -> None:
    page = words("book/numbers.html")
    text = (ROOT / "normtutor" / "guide.py").read_text("utf8")
    # The rules' sentences, joined as Python joins them.
    joined = re.sub(r'"\s+f?"', "", text)
    for number in set(re.findall(r"\d+\.\d (?:%|points)", joined)):
        assert number in page, f"{number} is quoted in the guide"
    for chapter, quoted in [
        ("group_norm", "10.6 points"),
        ("layer_norm", "7 to 64 %"),
        ("choosing", "half a point"),
    ]:
        said = re.sub(r"\n# ", " ", (ROOT / "notebooks" / f"{chapter}.py").read_text("utf8"))
        assert quoted in said, f"{chapter} no longer quotes it"
        assert quoted in page


def test_every_term_leads_to_where_it_is_introduced(visit: Visit) -> None:
    terms = soup("book/glossary.html").select("dl.glossary > dd")
    assert len(terms) > 30
    assert [dd.get_text() for dd in terms if not dd.select('a[href*="../notebooks/"]')] == []
    page = visit("book/glossary.html")
    page.get_by_role("link", name="Batch Normalization: Numerics").first.click()
    page.wait_for_url("**/notebooks/batch_norm.html#numerics")
    assert page.get_by_role("heading", name="Numerics").is_visible()


def test_the_status_page_tells_times_and_versions() -> None:
    page = soup("book/status.html")
    assert re.search(r"Last verified \d{4}-\d\d-\d\d: .*built \d{4}-\d\d-\d\d", words("book/status.html"))
    rows = [[cell.get_text().strip() for cell in row.select("td")] for row in page.select("tbody tr")]
    ran = {row[0]: row for row in rows if len(row) == 3}
    assert len(ran) == len(chapters.scripts())
    assert all(row[1].isdigit() and re.fullmatch(r"\d{4}-\d\d-\d\d", row[2]) for row in ran.values())
    versions = {row[0]: row[1] for row in rows if len(row) == 2}
    for name in ("torch", "Sphinx", "myst-nb"):
        assert versions[name] == version(name)
