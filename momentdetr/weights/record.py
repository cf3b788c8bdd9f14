"""Digests: what a file was when it came, and whether it still is.

Hashing 600 MB takes seconds, so the digest that was once computed is written down with the file's size and time of
change. While both are the same the file is taken for the same; otherwise, and on `verify`, it is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from momentdetr.errors import BadCheckpoint, StoreError
from momentdetr.weights.registry import RemoteFile

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Record:
    """What is known of a file on this machine.

    Args:
        sha256: 64 hexadecimal digits.
        size: bytes.
        mtime_ns: time of the last change, nanoseconds.
        origin: "published" if the registry names this digest, else "recorded at first download": then it says that the
            file has not changed since, and nothing of what its author made.
        url: where it came from.
        recorded: when, ISO 8601.
    """

    sha256: str
    size: int
    mtime_ns: int
    origin: str
    url: str
    recorded: str


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Digest of a file.

    Args:
        path: any readable file.
        progress: called with the bytes read so far.

    Returns:
        64 hexadecimal digits.
    """
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def read_record(where: Path) -> Record | None:
    """The record at `where`; None if there is none or it is not readable (the file is then hashed again)."""
    try:
        return Record(**json.loads(where.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(where: Path, file: RemoteFile, path: Path, digest: str, url: str) -> Record:
    """Write down what `path` is now.

    Args:
        where: the record's own path.
        file: its entry in the registry.
        path: the weights.
        digest: their sha256.
        url: where they came from, or "copied by hand".

    Raises:
        StoreError: the folder cannot be written.
    """
    status = path.stat()
    origin = "published" if file.sha256 else "recorded at first download"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(digest, status.st_size, status.st_mtime_ns, origin, url, now)
    temporary = where.with_name(where.name + f".{os.getpid()}.tmp")
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        temporary.replace(where)
    except OSError as error:
        raise StoreError(f"cannot write {where}: {error}. Free the folder, or set HF_HOME to another.") from error
    return record


def unchanged(record: Record, path: Path) -> bool:
    """Whether size and time of change are those that were recorded: cheap, and blind to a forged time."""
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)


def expected_digest(file: RemoteFile, record: Record | None) -> tuple[str | None, str]:
    """The digest that the file must have, and who says so."""
    if file.sha256 is not None:
        return file.sha256, "the published digest"
    if record is not None:
        return record.sha256, f"the digest recorded on {record.recorded[:10]} at the first download"
    return None, "no digest is known"


def require_digest(path: Path, found: str, file: RemoteFile, record: Record | None, remedy: str) -> None:
    """Check a digest; a file that fails is renamed to "*.bad", so that it cannot be loaded by mistake.

    Args:
        path: the file that `found` was computed from.
        found: its sha256.
        file: its entry in the registry.
        record: what is known of it on this machine, or None.
        remedy: what the user should do, a sentence.

    Raises:
        BadCheckpoint: names both digests.
    """
    expected, says = expected_digest(file, record)
    if expected is None or found == expected:
        return
    bad = quarantine(path)
    raise BadCheckpoint(
        f"{file.filename} is damaged or not the expected file: its SHA-256 is {found}, but {says} is {expected}. "
        f"It was set aside as {bad}. {remedy}"
    )


def quarantine(path: Path) -> Path:
    """Rename a bad file out of the way; the hub's cache may point to it by a link, which goes too."""
    target = path.resolve()
    bad = target.with_name(target.name + ".bad")
    target.replace(bad)
    if path.is_symlink():
        path.unlink()
    return bad


__all__ = [
    "Record",
    "expected_digest",
    "quarantine",
    "read_record",
    "require_digest",
    "sha256_of",
    "unchanged",
    "write_record",
]
