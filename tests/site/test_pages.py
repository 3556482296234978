"""Every page as a reader meets it: at phone and desktop width, light and dark."""

import pytest
from serving import HTML, THEMES, WIDTHS, Visit

pytestmark = pytest.mark.site
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for folder in ("book", "notebooks")
    for page in HTML.glob(f"{folder}/**/*.html")
)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("path", PAGES)
def test_it_loads_without_a_fault(visit: Visit, path: str, width: int, theme: str) -> None:
    page = visit(path, width, theme)
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
