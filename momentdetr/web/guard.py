"""In front of every request: headers that keep the browser at this server, and a limit on all uploads together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from momentdetr.web.limits import Limits

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]

# Gradio compiles its templates in the browser, which needs 'unsafe-eval'. No address but this server's is allowed, so
# that not even a fault in the page could send anything out.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class _Guard:
    """Adds the headers, and answers uploads with 507 while the folder is full."""

    def __init__(self, app: Any, folder: Path, limits: Limits) -> None:
        self._app, self._folder, self._limits = app, folder, limits

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in _HEADERS if pair[0] not in given)]
            await send(message)

        if scope["path"].endswith("/upload") and self._full():
            await send_with_headers({"type": "http.response.start", "status": 507, "headers": []})
            await send({"type": "http.response.body", "body": b"no room for more uploads; try again later"})
            return
        await self._app(scope, receive, send_with_headers)

    def _full(self) -> bool:
        used = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        return used >= self._limits.disk_bytes


def guard(folder: Path, limits: Limits) -> list[Middleware]:
    """The middleware for a page that keeps its files in `folder`."""
    return [Middleware(_Guard, folder=folder, limits=limits)]


__all__ = ["guard"]
