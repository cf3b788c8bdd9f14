"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from momentdetr.errors import StoreError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Offer a temporary file beside `path`, and move it there when the block ends well.

    A reader never meets half a file, and a failure leaves what was there before.

    Args:
        path: where the file shall be; its folder is made. Its suffix is kept, because writers look at it.

    Raises:
        StoreError: the folder cannot be made, or the file not written or moved.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}. Choose another place.") from error
    try:
        yield temporary
        os.replace(temporary, path)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}. Choose another place.") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror or error}. Choose another folder.") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; raises StoreError as `atomic` does.

    A file name that is no valid text, which the system allows, becomes a backslash escape (that of JSON, too).
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
