"""The built site on a local port, compressed as GitHub Pages does, and what its tests share."""

import gzip
from collections.abc import Callable
from functools import lru_cache
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import address

HTML = address.ROOT / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = {"phone": 390, "desktop": 1400}
THEMES = ("light", "dark")
COMPRESSED = (".html", ".css", ".js", ".svg", ".json", ".txt", ".xml")
# What the browser would do of its own accord on the network.
QUIET = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
Visit = Callable[..., Any]


@lru_cache(maxsize=512)
def _compressed(path: Path, changed: float) -> bytes:
    return gzip.compress(path.read_bytes(), 6)


class Handler(SimpleHTTPRequestHandler):
    """Serves files as GitHub Pages does: text compressed with gzip."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path = path / "index.html"
        if path.suffix not in COMPRESSED or not path.is_file():
            super().do_GET()
            return
        body = _compressed(path, path.stat().st_mtime)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
