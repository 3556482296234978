"""Serve the built site as GitHub Pages does, text compressed with gzip: `make serve`."""

import gzip
import shutil
import sys
from contextlib import suppress
from functools import lru_cache
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import address

HTML = Path(__file__).parents[2] / "_build" / "html"
LOST = "404.html"  # for addresses at which nothing stands
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COMPRESSED = (".html", ".css", ".js", ".svg", ".json", ".txt", ".xml")


@lru_cache(maxsize=512)
def _compressed(path: Path, changed: float) -> bytes:
    body = path.read_bytes()
    if path.name == LOST:  # its links are the public site's: here they lead to this one
        body = body.replace(address.forms(address.repository())[2].encode() + b"/", b"/")
    return gzip.compress(body, 6)


class Handler(SimpleHTTPRequestHandler):
    """Serves files as GitHub Pages does: text compressed, everything kept by the browser for ten minutes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path = path / "index.html"
        found = path.is_file()
        if not found:
            path = Path(self.directory) / LOST
        if path.suffix not in COMPRESSED or not path.is_file():
            super().do_GET()
            return
        body = _compressed(path, path.stat().st_mtime)
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=600")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A browser that leaves a page breaks off what it was loading: no fault of the server's."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(port: int = 0, folder: Path = HTML) -> tuple[ThreadingHTTPServer, str]:
    """Serve in the background; returns the server, to shut it down, and where it is."""
    server = Server(("127.0.0.1", port), lambda *a: Handler(*a, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def find_browser() -> str | None:
    """The first of ``BROWSERS`` that is here, for those that look at the served site."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


if __name__ == "__main__":
    if not (HTML / "index.html").exists():
        sys.exit("no built site: run `make book` first")
    server = Server(("127.0.0.1", 8000), lambda *a: Handler(*a, directory=str(HTML)))
    print("http://127.0.0.1:8000 (Ctrl+C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()
