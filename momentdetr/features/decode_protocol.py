"""How the decoding process and its parent talk: messages of one JSON header and, for pictures, raw bytes.

Layout: four bytes (big-endian) with the header's length, the header, then as many bytes as its key "bytes" says.
Nothing is pickled: the process on the other end has read a stranger's file and may not be trusted.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct(">I")
_MAX_HEADER = 1 << 24
_HEARTBEAT_S = 0.5


class ProtocolError(Exception):
    """The other process said something that is not a message."""


class Channel:
    """The decoding process's way back to its parent."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._next_sign = 0.0

    def send(self, kind: str, payload: NDArray[np.uint8] | None = None, **values: Any) -> None:
        """Send one message.

        Args:
            kind: "ready" (the libraries are loaded), "info", "frames", "alive", "error" or "done".
            payload: contiguous bytes of any shape.
            values: JSON values.
        """
        send(self._stream, {"kind": kind, **values}, payload)

    def progress(self) -> None:
        """Give a sign of life, at most twice a second."""
        now = time.monotonic()
        if now >= self._next_sign:
            self._next_sign = now + _HEARTBEAT_S
            self.send("alive")


def send(stream: IO[bytes], header: Mapping[str, Any], payload: NDArray[np.uint8] | None = None) -> None:
    """Write one message and flush.

    Args:
        header: JSON values.
        payload: contiguous bytes of any shape.
    """
    head = json.dumps({**header, "bytes": 0 if payload is None else payload.nbytes}).encode()
    stream.write(_LENGTH.pack(len(head)) + head)
    if payload is not None and payload.nbytes:
        stream.write(payload.data.cast("B"))
    stream.flush()


def receive(stream: IO[bytes], max_bytes: int) -> tuple[dict[str, Any], NDArray[np.uint8]] | None:
    """Read one message.

    Args:
        max_bytes: largest payload that is believed.

    Returns:
        header and payload (N,), or None at the end of the stream (also when it ends inside a message: the other
        process died).

    Raises:
        ProtocolError: the bytes are not a message.
    """
    start = _exactly(stream, _LENGTH.size)
    if start is None:
        return None
    (length,) = _LENGTH.unpack(bytes(start))
    if length > _MAX_HEADER:
        raise ProtocolError(f"a header of {length} bytes")
    head = _exactly(stream, length)
    if head is None:
        return None
    try:
        header = json.loads(bytes(head))
        size = int(header["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"not a header: {error}") from error
    if not 0 <= size <= max_bytes:
        raise ProtocolError(f"a payload of {size} bytes")
    payload = _exactly(stream, size)
    return None if payload is None else (header, payload)


def _exactly(stream: IO[bytes], size: int) -> NDArray[np.uint8] | None:
    buffer = np.empty(size, np.uint8)
    view = buffer.data
    filled = 0
    while filled < size:
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            return None
        filled += count
    return buffer
