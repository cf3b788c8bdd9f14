"""Fetch one file over HTTP: with progress, resumed after a cut, and never half in place.

One mechanism for every address, with the standard library: `urllib` honours http_proxy, https_proxy and no_proxy and
follows redirects with the Range header kept. A download grows in a ".part" file, whose validator (ETag or date of
change) is kept beside it: a server whose file has changed meanwhile sends the whole of the new one (If-Range).
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from momentdetr.errors import BadCheckpoint, StoreError, WeightsUnavailable

_BLOCK = 1 << 18
_RETRIED = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """How long to wait, seconds, and how often to try.

    Args:
        connect_s: to reach the server at all; name resolution counts.
        stall_s: without a single byte.
        attempts: in a row without a single new byte.
        pause_s: before the second attempt; doubles each time.
    """

    connect_s: float = 4.0
    stall_s: float = 30.0
    attempts: int = 4
    pause_s: float = 1.0


class _Interrupted(Exception):
    """The connection ended early; what came is kept."""


def fetch(
    url: str,
    part: Path,
    *,
    immutable: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    patience: Patience | None = None,
) -> None:
    """Bring a file to `part`, continuing what is already there.

    Args:
        url: http or https.
        part: the growing file; its folder is made.
        immutable: the bytes at this address never change (the caller knows their digest), so that a download goes on
            even where the server names no validator.
        progress: called with bytes done and bytes in all (None: the server does not say).
        patience: how long to wait.

    Raises:
        WeightsUnavailable: not reachable, refused, or cut too often. What came is kept for the next call.
        BadCheckpoint: a web page or a pointer came instead of weights.
        StoreError: the disk is full or the folder not writable.
    """
    patience = patience or Patience()
    _require_reachable(url, patience.connect_s)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        failures, pause = 0, patience.pause_s
        while True:
            before = _size(part)
            try:
                _attempt(url, part, immutable, progress, patience.stall_s)
                break
            except _Interrupted as cut:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= patience.attempts:
                    raise WeightsUnavailable(_gave_up(url, part, cut)) from cut
                time.sleep(pause if failures > 1 else 0.0)
                pause = pause * 2 if failures > 1 else patience.pause_s
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {part}: {error}. Free space, or set HF_HOME to another folder.") from error
    kind = not_weights(part)
    if kind is not None:
        _discard(part)
        raise BadCheckpoint(f"{url} sent {kind}, not weights. Open the address in a browser to see why.")
    _validator(part).unlink(missing_ok=True)


def _attempt(
    url: str, part: Path, immutable: bool, progress: Callable[[int, int | None], None] | None, stall_s: float
) -> None:
    """One request: from where `part` ends to the end of the file."""
    response = _open(url, part, immutable, stall_s)
    if response is None:
        return
    with response:
        # 200 although a part was asked for: the server ignores Range, or its file has changed. Begin again.
        done = _size(part) if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        _require_space(part, (total or 0) - done)
        _remember_validator(part, response.headers)
        with part.open("ab" if done else "wb") as stream:
            for block in _blocks(response):
                stream.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and done < total:
        raise _Interrupted(f"the connection ended after {done} of {total} bytes")


def _open(url: str, part: Path, immutable: bool, stall_s: float) -> http.client.HTTPResponse | None:
    """The answer to a request from where `part` ends, or None if the server says that this is the end of the file."""
    start, validator = _size(part), _read_validator(part)
    headers = {"User-Agent": "momentdetr", "Accept-Encoding": "identity"}
    if start and (validator or immutable):
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    elif start:
        part.unlink()  # nothing says that the server's file is still the same
    try:
        request = urllib.request.Request(url, headers=headers)
        response: http.client.HTTPResponse = _opener().open(request, timeout=stall_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return None
        if error.code == 416:
            _discard(part)
        if error.code in _RETRIED | {416}:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        raise WeightsUnavailable(f"{url} answered {error.code} {error.reason}.") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _Interrupted(str(getattr(error, "reason", None) or error)) from error
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        response.close()
        _discard(part)
        raise _Interrupted("the server sent another part of the file than was asked for")
    return response


def _blocks(response: http.client.HTTPResponse) -> Any:
    """The body, block by block."""
    while True:
        try:
            block = response.read1(_BLOCK)
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    try:
        import certifi  # some Pythons (macOS) come without authorities; the hub's client brings these
    except ImportError:
        pass
    else:
        context.load_verify_locations(certifi.where())
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))


def _require_reachable(url: str, connect_s: float) -> None:
    """Give up soon where there is no network: resolving a name has no time limit of its own, a thread gives it one."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.netloc):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (443 if address.scheme == "https" else 80)
    failure: list[str] = [f"no answer within {connect_s:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((address.hostname or "", port), timeout=connect_s).close()
            failure.clear()
        except (OSError, UnicodeError) as error:  # the latter: what can be no name at all
            failure[:] = [str(error)]

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(connect_s)
    if failure:
        raise WeightsUnavailable(f"{address.hostname} cannot be reached: {failure[0]}.")


def _require_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise StoreError(
            f"{part.parent} has {free / 1e6:.0f} MB free, but {needed / 1e6:.0f} MB are still to come. "
            "Free space, or set HF_HOME to another folder."
        )


def not_weights(path: Path) -> str | None:
    """What a file is that came instead of weights, or None if nothing speaks against it."""
    with path.open("rb") as stream:
        head = stream.read(512).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git's large-file storage"
    if head[:1] == b"<" and b"\x00" not in head:
        return "a web page (a login, a captive network, or a moved file)"
    return None if head else "an empty file"


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _gave_up(url: str, part: Path, cut: _Interrupted) -> str:
    kept = f" {_size(part)} bytes are kept in {part}; the same command goes on from there." if _size(part) else ""
    return f"the download of {url} does not get through: {cut}.{kept}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember_validator(part: Path, headers: Any) -> None:
    etag = headers.get("ETag")
    # A weak tag does not promise equal bytes.
    value = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if value:
        _validator(part).write_text(json.dumps({"validator": value}), encoding="utf-8")
    else:
        _validator(part).unlink(missing_ok=True)


def _read_validator(part: Path) -> str | None:
    try:
        return str(json.loads(_validator(part).read_text(encoding="utf-8"))["validator"])
    except (OSError, ValueError, KeyError):
        return None


__all__ = ["Patience", "fetch", "not_weights"]
