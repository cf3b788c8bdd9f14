"""Which bytes made which numbers: digests of files and of weights, and the folder where such knowledge is kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from momentdetr.errors import BadInput

_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Return where caches go: MOMENTDETR_CACHE, else the user's cache folder of the XDG convention."""
    own = os.environ.get("MOMENTDETR_CACHE")
    if own:
        return Path(own).expanduser()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user and Path(user).is_absolute() else Path.home() / ".cache") / "momentdetr"


def content_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal, read in chunks.

    Raises:
        BadInput: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); expected a readable file") from error
    return digest.hexdigest()


def known_content_hash(path: str | Path) -> str:
    """Return `content_hash`, remembered by path, size and time of change, so that large files are read once.

    Meant for weights. A file that is changed without changing its size and its time of change keeps its old digest.
    The memory is a folder of small files; where it cannot be written, the digest is computed again.

    Raises:
        BadInput: the file cannot be read.
    """
    path = Path(path).resolve()
    try:
        state = path.stat()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); expected a readable file") from error
    identity = f"{path}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}"
    note = cache_folder() / "digests" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        digest = note.read_text("ascii").strip()
        if len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            return digest
    digest = content_hash(path)
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, digest.encode("ascii"))
    return digest


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader or a crash finds the old content or the new one, never a part.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:16]}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    values = tensor.detach().cpu().contiguous()
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return a digest of named tensors that does not depend on their order; for weights that are no file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tensor_digest(state[name])}\n".encode())
    return digest.hexdigest()
