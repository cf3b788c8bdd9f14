"""What is done: one line a finished file, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from momentdetr.errors import BadInput, StoreError
from momentdetr.features.digest import content_hash, write_atomically

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """A file that is whole.

    Args:
        kind: "video" or "query".
        name: of the video, or id of the query.
        file: relative to the folder.
        sha256: of the file.
        source_sha256: of the video file, or of the sentence.
        spec_sha256: of the specification beside the manifest, features.json.
        shape: rows and numbers per row.
        dtype: as stored.
        clips: rows of a video; tokens of a query.
        clip_length_s: seconds of video per row; None for a query.
        duration_s: of the video; None for a query.
        complete: False for the readable part of a damaged video.
    """

    kind: str
    name: str
    file: str
    sha256: str
    source_sha256: str
    spec_sha256: str
    shape: tuple[int, int]
    dtype: str
    clips: int
    clip_length_s: float | None = None
    duration_s: float | None = None
    complete: bool = True

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name


class Manifest:
    """The finished files of a folder.

    A line is appended after its file is in place, and both are on the disk before the next; a line that a crash cut off
    is no line. One process writes at a time (the caller holds a lock).

    Args:
        folder: where `manifest.jsonl` is or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / MANIFEST
        self.entries = {entry.key: entry for entry in _read(self.path)}

    def is_done(self, wanted: Entry) -> bool:
        """Whether a file is there, whole, and made of the same source in the same way.

        Args:
            wanted: what is known beforehand: kind, name, file, source, specification and dtype.
        """
        known = self.entries.get(wanted.key)
        if known is None or any(getattr(known, name) != getattr(wanted, name) for name in _DECIDED):
            return False
        try:
            return content_hash(self.folder / known.file) == known.sha256
        except BadInput:
            return False

    def add(self, entry: Entry) -> None:
        """Append a line and wait until it is on the disk.

        Raises:
            StoreError: it cannot be written.
        """
        self.entries[entry.key] = entry
        try:
            with self.path.open("ab") as file:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}; make room and run again") from error

    def drop(self, keys: Iterable[tuple[str, str]]) -> None:
        """Forget files that must be made again."""
        for key in keys:
            self.entries.pop(key, None)

    def rewrite(self) -> None:
        """Write all lines anew, in order, so that the same files always give the same bytes.

        Raises:
            StoreError: it cannot be written.
        """
        data = b"".join(_line(self.entries[key]) for key in sorted(self.entries))
        try:
            write_atomically(self.path, data)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}; make room and run again") from error


_DECIDED = ("file", "source_sha256", "spec_sha256", "dtype")


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _read(path: Path) -> list[Entry]:
    """Every whole line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    names = {field.name for field in fields(Entry)}
    entries = []
    for line in lines[:-1]:  # what stands behind the last line feed was cut off
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict) and set(data) == names:
            entries.append(Entry(**{**data, "shape": tuple(data["shape"])}))
    return entries
