"""Where weights lie on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from momentdetr.weights.registry import HubSource, RemoteFile


@dataclass(frozen=True)
class Home:
    """The two folders that hold weights, and how the network may be used.

    Args:
        hub: the Hugging Face cache, in the hub's own layout, so that other programs share its files.
        plain: files from plain addresses, and the records of all files.
        endpoint: address of the hub or of a mirror, no slash at its end.
        offline: never touch the network.
    """

    hub: Path
    plain: Path
    endpoint: str = "https://huggingface.co"
    offline: bool = False

    @classmethod
    def default(cls) -> Home:
        """The folders of this user, as HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE set them."""
        from huggingface_hub import constants

        hub = Path(constants.HF_HUB_CACHE)
        # The hub reads HF_HUB_OFFLINE once, at import; a program may set it later, so the variable counts too.
        offline = bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
        return cls(hub, hub.parent / "momentdetr", constants.ENDPOINT.rstrip("/"), offline)

    def path(self, file: RemoteFile) -> Path:
        """Where the file is, or would be."""
        if isinstance(file.source, HubSource):
            repo = "models--" + file.source.repo.replace("/", "--")
            return self.hub / repo / "snapshots" / file.source.revision / file.filename
        return self.plain / file.source.folder / file.filename

    def record(self, file: RemoteFile) -> Path:
        """Where the file's digest is kept: beside it, or, for the hub's cache, which is not ours, below `plain`."""
        if isinstance(file.source, HubSource):
            repo = file.source.repo.replace("/", "--")
            return self.plain / "hub" / repo / file.source.revision / f"{file.filename}.lock.json"
        return self.plain / file.source.folder / f"{file.filename}.lock.json"

    def part(self, file: RemoteFile) -> Path:
        """Where a download grows until it is verified: on the same file system, so that a rename ends it."""
        if isinstance(file.source, HubSource):
            return self.path(file).parents[2] / "blobs" / f"{file.filename}.part"
        return self.path(file).with_name(f"{file.filename}.part")

    def url(self, file: RemoteFile) -> str:
        """Where the file is fetched from."""
        if isinstance(file.source, HubSource):
            return f"{self.endpoint}/{file.source.repo}/resolve/{file.source.revision}/{file.filename}"
        return file.source.url


_TRUE = {"1", "ON", "YES", "TRUE"}

__all__ = ["Home"]
