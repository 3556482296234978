"""The built site, served on this machine, in a real browser: fixtures for the tests beside this file."""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import pytest
from serving import HTML, QUIET, WIDTHS, Visit

from serve import BROWSERS, find_browser, serve


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Where the built site is served: ``http://127.0.0.1:PORT``."""
    if not (HTML / "index.html").exists():
        pytest.fail("no built site: run `make book` first")
    server, address = serve()
    yield address
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; without one the test is skipped, but never where CI is set."""
    found = find_browser()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI is set, so a browser is needed: none of {', '.join(BROWSERS)} is here")
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *QUIET])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Visit]:
    """``visit("book/introduction.html", width=390, theme="dark")``: the page, loaded, in its own context.

    ``page.problems`` lists what went wrong so far: console errors, failed requests, requests elsewhere.
    """
    contexts = []

    def open_page(path: str, width: int = WIDTHS["desktop"], theme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            has_touch=width < 800,
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.problems = problems = []
        page.on("console", lambda said: said.type == "error" and problems.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on(
            "response", lambda got: got.status >= 400 and problems.append(f"status {got.status}: {got.url}")
        )

        def elsewhere(request: Any) -> None:
            url = urlparse(request.url)
            if url.scheme in ("http", "https", "ws", "wss") and url.netloc != urlparse(site).netloc:
                problems.append(f"elsewhere: {request.url}")

        page.on("request", elsewhere)
        page.goto(f"{site}/{path}", wait_until="load")
        page.wait_for_function("document.fonts.status === 'loaded'")
        return page

    yield open_page
    for context in contexts:
        context.close()
