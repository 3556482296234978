"""What the tests of the built site share; book/tools/serve.py serves it."""

from collections.abc import Callable
from typing import Any

from serve import HTML

WIDTHS = {"phone": 390, "desktop": 1400}
THEMES = ("light", "dark")
# What the browser would do of its own accord on the network.
QUIET = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
Visit = Callable[..., Any]
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for folder in ("book", "notebooks")
    for page in HTML.glob(f"{folder}/**/*.html")
)
FRONT = "book/introduction.html"
