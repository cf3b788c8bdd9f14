"""Which files may reach a decoder: regular local files whose first bytes are those of a known video container.

The container is decided here by content and then forced upon the decoder, so that a playlist, a script or an address
is never interpreted, whatever its name is. Playlists are the way in which a "video" reads other files of the machine.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from momentdetr.errors import BadInput, BadVideo
from momentdetr.features.decode_limits import Limits

# Our name of a container -> the name of FFmpeg's demuxer.
DEMUXERS = {
    "mp4": "mov",
    "mov": "mov",
    "mkv": "matroska",
    "webm": "matroska",
    "avi": "avi",
    "gif": "gif",
    "mpegts": "mpegts",
    "mpeg": "mpeg",
    "flv": "flv",
    "ogg": "ogg",
    "asf": "asf",
    "mxf": "mxf",
    "mp3": "mp3",
    "wav": "wav",
    "flac": "flac",
}
AUDIO_ONLY = frozenset({"mp3", "wav", "flac"})
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"})
_OTHERS = {
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a playlist",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer (the video itself was not downloaded)",
}
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass(frozen=True)
class VideoFile:
    """An open regular file that looks like a video.

    Args:
        path: as given.
        name: the path as it may be shown: without control characters.
        file: open for reading, unbuffered; closed by whoever asked for it.
        size: bytes.
        promised_size: bytes that the container announces; 0: it does not say.
        container: key of `DEMUXERS`.
    """

    path: Path
    name: str
    file: FileIO = field(repr=False)
    size: int
    promised_size: int
    container: str


def printable(text: str, limit: int = 400) -> str:
    """Replace what could move a terminal's cursor or hide text, and cut to `limit` characters."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def open_video(path: str | os.PathLike[str], limits: Limits) -> VideoFile:
    """Open a file that a decoder may see.

    Raises:
        BadVideo: missing, not a regular file, empty, too large, or not a known container.
        BadInput: the path is not a path.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise BadInput(f"video path is {path!r}, expected the name of a file")
    name = printable(text)
    file = _open_regular(text, name)
    try:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise BadVideo(f"{name}: the file is empty (0 bytes)")
        if size > limits.max_bytes:
            raise BadVideo(f"{name}: {size} bytes, the limit is {limits.max_bytes} (Limits.max_bytes)")
        head = file.read(4096)
        container = sniff(head)
        if container is None:
            raise BadVideo(f"{name}: not a video: the file holds {_describe(head)}; expected one of {_known()}")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return VideoFile(Path(text), name, file, size, promised_size(head, container), container)


def sniff(head: bytes) -> str | None:
    """Name the container of a file by its first bytes (at least 1000 for MPEG-TS), None if it is not known."""
    if head[4:8] in _BOXES:
        return "mov" if head[4:8] != b"ftyp" or head[8:12] == b"qt  " else "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "webm" if b"webm" in head[:64] else "mkv"
    if head[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WAVE": "wav"}.get(head[8:12])
    for start, container in _STARTS.items():
        if head.startswith(start):
            return container
    if head[:1] == b"\xff" and head[1:2] >= b"\xe2" and head[1:2] != b"\xff" and head[1:2] != b"\xfe":
        return "mp3"
    return "mpegts" if _is_transport_stream(head) else None


_STARTS = {
    b"GIF8": "gif",
    b"\x00\x00\x01\xba": "mpeg",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x06\x0e\x2b\x34\x02\x05": "mxf",
    b"ID3": "mp3",
    b"fLaC": "flac",
}


def promised_size(head: bytes, container: str) -> int:
    """Return how many bytes the file's first element announces, 0 if it does not say.

    Args:
        head: first bytes of the file.
    """
    if container == "avi":
        size = int.from_bytes(head[4:8], "little")
        return 0 if size in (0, 0xFFFFFFFF) else size + 8
    if container in ("mkv", "webm"):
        # The EBML header is followed by one Segment. Both have a size of one to eight bytes; all ones means unknown.
        header, start = _ebml_size(head, 4)
        segment = start + (header or 0)
        if header is not None and head[segment : segment + 4] == b"\x18\x53\x80\x67":
            size_of_segment, start = _ebml_size(head, segment + 4)
            return 0 if size_of_segment is None else start + size_of_segment
    return 0


def _ebml_size(head: bytes, position: int) -> tuple[int | None, int]:
    """Read a variable-length size; return it (None: unknown) and where it ends."""
    if position >= len(head) or head[position] == 0:
        return None, position
    length = 9 - head[position].bit_length()
    value = int.from_bytes(head[position : position + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), position + length


def _is_transport_stream(head: bytes) -> bool:
    # Packets of 188 bytes, or 192 with a time code before each; a recording may begin inside a packet.
    return any(
        len(head) > offset + 4 * length and all(head[offset + i * length] == 0x47 for i in range(5))
        for length in (188, 192)
        for offset in range(length)
    )


def _open_regular(text: str, name: str) -> FileIO:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(text, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if _ADDRESS.match(text) or "|" in text:
            raise BadVideo(f"{name}: only files on this machine are read, not addresses; download it first") from None
        raise BadVideo(f"{name}: no such file") from None
    except IsADirectoryError:
        raise BadVideo(f"{name}: this is a folder, expected a video file") from None
    except OSError as error:
        raise BadVideo(f"{name}: cannot be opened: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise BadVideo(f"{name}: this is {what}, expected a video file")
    return FileIO(descriptor, "rb")


def _describe(head: bytes) -> str:
    for start, what in _OTHERS.items():
        if head.startswith(start):
            return what
    if head[:512].isascii() and b"\0" not in head[:512]:
        return "text"
    return "an unknown format" if any(head) else "zeros only"


def _known() -> str:
    return ", ".join(name for name in DEMUXERS if name not in AUDIO_ONLY)
