"""A web server on this machine that misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from momentdetr.weights import Home


@dataclass
class Page:
    """What the server does with one address.

    Args:
        body: the bytes.
        etag: None: the server names no validator.
        ranges: whether it understands Range.
        cut_after: bytes of body after which the next answers end, one entry per answer; then answers are whole.
        status: answers with these codes first, one per request; then normally.
        pause_s: between blocks of 64 kB.
        length: whether Content-Length is sent.
        redirect: send the client elsewhere.
    """

    body: bytes = b""
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    pause_s: float = 0.0
    length: bool = True
    redirect: str | None = None


@dataclass
class Server:
    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)
    """Path, Range header and status of each answer."""

    def add(self, path: str, body: bytes = b"", **options: Any) -> str:
        """Serve `body` at `path`; the options are those of `Page`. Returns the address."""
        self.pages[path] = Page(body, **options)
        return self.url + path


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        page = self.server_state.pages.get(self.path)
        if page is None:
            return self._answer(404, b"<html>not found</html>")
        if page.status:
            return self._answer(page.status.pop(0), b"try later")
        if page.redirect is not None:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            self.end_headers()
            return None
        return self._body(page)

    def _answer(self, status: int, body: bytes) -> None:
        self.server_state.requests.append((self.path, self.headers.get("Range"), status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self, page: Page) -> None:
        asked, start, status = self.headers.get("Range"), 0, 200
        fresh = self.headers.get("If-Range") in (None, page.etag)
        if asked and page.ranges and fresh:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
        if start >= len(page.body) and start:
            self.server_state.requests.append((self.path, asked, 416))
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(page.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = page.body[start:]
        self.server_state.requests.append((self.path, asked, status))
        self.send_response(status)
        if page.length:
            self.send_header("Content-Length", str(len(body)))
        if page.etag:
            self.send_header("ETag", page.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        self.end_headers()
        self._send(body[: page.cut_after.pop(0)] if page.cut_after else body, page.pause_s)

    def _send(self, body: bytes, pause_s: float) -> None:
        for first in range(0, len(body), 1 << 16):
            if pause_s:
                time.sleep(pause_s)
            try:
                self.wfile.write(body[first : first + (1 << 16)])
            except OSError:
                return
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    state = Server(f"http://127.0.0.1:{http.server_address[1]}")
    http.RequestHandlerClass = type("Handler", (_Handler,), {"server_state": state})
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def home(tmp_path: Path, server: Server) -> Home:
    return Home(tmp_path / "hub", tmp_path / "momentdetr", endpoint=server.url)
