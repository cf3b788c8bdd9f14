"""List, fetch, check and find the files of a named model.

Every function takes the registry and the folders as arguments, so that a program can bring its own models; without
them it is `REGISTRY` and the Hugging Face cache of this user. A model that is not here is an error that says how to get
it; no other model ever answers in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from momentdetr.errors import BadCheckpoint, WeightsUnavailable
from momentdetr.weights.download import Patience, fetch, not_weights
from momentdetr.weights.home import Home
from momentdetr.weights.record import (
    read_record,
    require_digest,
    sha256_of,
    unchanged,
    write_record,
)
from momentdetr.weights.registry import REGISTRY, ModelCard, RemoteFile, card

Progress = Callable[[RemoteFile, int, int | None], None]
"""Called with the file, the bytes done, and the bytes in all or None."""


@dataclass(frozen=True)
class FileStatus:
    """One file on this machine.

    Args:
        file: its entry in the registry.
        path: where it is, or would be.
        present: whether it is there.
        sha256: its digest, where one is published or was recorded.
        digest_origin: "published", "recorded at first download" or "not known yet".
    """

    file: RemoteFile
    path: Path
    present: bool
    sha256: str | None
    digest_origin: str


@dataclass(frozen=True)
class ModelStatus:
    """One model on this machine."""

    card: ModelCard
    files: tuple[FileStatus, ...]

    @property
    def ready(self) -> bool:
        """Whether every file is there (not whether it is whole: see `verify`)."""
        return all(file.present for file in self.files)


@dataclass(frozen=True)
class ResolvedModel:
    """Files that are there and have the digest that they should.

    Args:
        card: what the model is.
        encoder: weights of the image and text towers.
        retriever: the moment-retrieval checkpoint; None for an encoder alone.
    """

    card: ModelCard
    encoder: Path
    retriever: Path | None


def list_models(*, registry: dict[str, ModelCard] | None = None, home: Home | None = None) -> list[ModelStatus]:
    """Every known model and whether it is here; nothing is opened, hashed or fetched."""
    home = home or Home.default()
    cards = (REGISTRY if registry is None else registry).values()
    return [ModelStatus(one, tuple(_status(file, home) for file in one.files)) for one in cards]


def path(name: str, *, registry: dict[str, ModelCard] | None = None, home: Home | None = None) -> ResolvedModel:
    """The model's files, without the network.

    Raises:
        BadInput: no such model.
        WeightsUnavailable: a file is not here; says how to get it.
        BadCheckpoint: a file has changed since its digest was taken, or is not the published one.
    """
    home, one = home or Home.default(), card(name, registry)
    missing = [file for file in one.files if _present(file, home, name) is None]
    if missing:
        raise WeightsUnavailable(_how_to_get(one, missing, home, "they were not fetched yet"))
    return _resolved(one, home)


def pull(
    name: str,
    progress: Progress | None = None,
    *,
    registry: dict[str, ModelCard] | None = None,
    home: Home | None = None,
    patience: Patience | None = None,
) -> ResolvedModel:
    """Fetch what is missing, check it, and put it in place.

    Args:
        name: a model of the registry.
        progress: called as each file grows.
        registry: another table than `REGISTRY`.
        home: other folders than the user's.
        patience: how long to wait for the network.

    Raises:
        BadInput: no such model.
        WeightsUnavailable: not reachable, or HF_HUB_OFFLINE is set; says the command and the way without network.
        BadCheckpoint: the file is not the one it should be; names both digests.
        StoreError: no room, or the folder is not writable.
    """
    home, one = home or Home.default(), card(name, registry)
    for file in one.files:
        if _present(file, home, name) is None:
            try:
                _download(file, home, name, progress, patience)
            except WeightsUnavailable as error:
                missing = [other for other in one.files if not home.path(other).exists()]
                raise WeightsUnavailable(_how_to_get(one, missing, home, str(error).rstrip("."))) from error
    return _resolved(one, home)


def resolve(
    name: str,
    progress: Progress | None = None,
    *,
    download: bool = True,
    registry: dict[str, ModelCard] | None = None,
    home: Home | None = None,
    patience: Patience | None = None,
) -> ResolvedModel:
    """What a program needs to load the model: cached files, fetched first where `download` allows it.

    Raises:
        As `pull` and `path`.
    """
    if download:
        return pull(name, progress, registry=registry, home=home, patience=patience)
    return path(name, registry=registry, home=home)


def verify(
    name: str,
    progress: Progress | None = None,
    *,
    registry: dict[str, ModelCard] | None = None,
    home: Home | None = None,
) -> ModelStatus:
    """Hash every file again, whatever its size and time of change say.

    Raises:
        BadInput: no such model.
        WeightsUnavailable: a file is not here.
        BadCheckpoint: a file is not what it should be; names both digests. The file is set aside as "*.bad".
    """
    home, one = home or Home.default(), card(name, registry)
    missing = [file for file in one.files if not home.path(file).exists()]
    if missing:
        raise WeightsUnavailable(_how_to_get(one, missing, home, "they were not fetched yet"))
    for file in one.files:
        _check(file, home, name, progress)
    return ModelStatus(one, tuple(_status(file, home) for file in one.files))


def _present(file: RemoteFile, home: Home, name: str) -> Path | None:
    """The file if it is here and what it should be; None if it is not here."""
    where = home.path(file)
    if not where.exists():
        return None
    record = read_record(home.record(file))
    known = record is not None and unchanged(record, where) and file.sha256 in (None, record.sha256)
    return where if known else _check(file, home, name)


def _check(file: RemoteFile, home: Home, name: str, progress: Progress | None = None) -> Path:
    """Hash a file that is here, compare, and write the record."""
    where, record = home.path(file), read_record(home.record(file))
    kind = not_weights(where)
    if kind is not None:
        raise BadCheckpoint(f"{where} is {kind}, not weights. Delete it and run: momentdetr weights pull {name}")
    size = where.stat().st_size
    found = sha256_of(where, None if progress is None else lambda done: progress(file, done, size))
    require_digest(where, found, file, record, _remedy(file, home, name))
    write_record(home.record(file), file, where, found, record.url if record else "found in the cache")
    return where


def _download(file: RemoteFile, home: Home, name: str, progress: Progress | None, patience: Patience | None) -> None:
    """Fetch, check, put in place; of two processes one fetches and the other waits for it."""
    from filelock import FileLock

    if home.offline:
        raise WeightsUnavailable("HF_HUB_OFFLINE is set")
    part, where, record_at = home.part(file), home.path(file), home.record(file)
    record_at.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record_at.with_name(f"{file.filename}.pull")):
        if where.exists():
            return
        report = None if progress is None else (lambda done, total: progress(file, done, total or file.size))
        fetch(home.url(file), part, immutable=file.sha256 is not None, progress=report, patience=patience)
        found = sha256_of(part)
        require_digest(part, found, file, read_record(record_at), _remedy(file, home, name))
        where.parent.mkdir(parents=True, exist_ok=True)
        part.replace(where)
        write_record(record_at, file, where, found, home.url(file))


def _resolved(one: ModelCard, home: Home) -> ResolvedModel:
    return ResolvedModel(one, home.path(one.encoder), None if one.retriever is None else home.path(one.retriever))


def _status(file: RemoteFile, home: Home) -> FileStatus:
    record = read_record(home.record(file))
    digest = file.sha256 or (record.sha256 if record else None)
    origin = "published" if file.sha256 else record.origin if record else "not known yet"
    where = home.path(file)
    return FileStatus(file, where, where.exists(), digest, origin)


def _remedy(file: RemoteFile, home: Home, name: str) -> str:
    again = f"Fetch it again: momentdetr weights pull {name}"
    if file.sha256 is None:
        again += f" (if its author has replaced the file and you trust the new one, delete {home.record(file)} first)"
    return again


def _how_to_get(one: ModelCard, missing: list[RemoteFile], home: Home, reason: str) -> str:
    """The way with network, the way without, and the way around."""
    lines = [
        f"the weights of {one.name!r} are not on this machine: {reason}.",
        f"With a network:     momentdetr weights pull {one.name}",
        "Without a network:  fetch on another machine and copy",
    ]
    for file in missing:
        size = file.size or file.about_bytes
        about = f" ({'' if file.size else 'about '}{size / 1e6:.0f} MB)" if size else ""
        lines.append(f"    {home.url(file)}{about}\n      to {home.path(file)}")
    lines.append("Or give a model of your own: --model FOLDER. No other model answers in its place.")
    return "\n".join(lines)


__all__ = [
    "FileStatus",
    "ModelStatus",
    "Progress",
    "ResolvedModel",
    "list_models",
    "path",
    "pull",
    "resolve",
    "verify",
]
