"""Features of videos on disk, addressed by what they were made of.

A key is the digest of the video's bytes and of everything that turned them into numbers, so that a changed file, model
or clip length never meets old features. The store is a cache: a folder that cannot be written, a full disk or a damaged
file costs time, not results.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.features.digest import cache_folder, content_hash, tensor_digest, write_atomically
from momentdetr.features.spec import FeatureSpec

_FORMAT = "momentdetr-features/1"
_STALE_TEMPORARY_S = 3_600.0


@dataclass(frozen=True)
class EncodedFeatures:
    """A video as its encoder saw it.

    Args:
        features: (T, C) float32 or float16, a row a clip, streams concatenated in the order of `spec`, not normalised.
        duration_s: of the video, seconds.
        clip_length_s: seconds between rows.
        spec: how the rows were made.
    """

    features: Tensor
    duration_s: float
    clip_length_s: float
    spec: FeatureSpec

    def __post_init__(self) -> None:
        dim = sum(stream.dim for stream in self.spec.video)
        shape = tuple(self.features.shape)
        if len(shape) != 2 or shape[1] != dim or self.features.dtype not in (torch.float32, torch.float16):
            raise BadInput(f"features are {self.features.dtype} {shape}; expected float32 or float16 (T, {dim})")
        bad = (~torch.isfinite(self.features).all(1)).nonzero()
        if len(bad):
            raise BadInput(
                f"features hold NaN or infinity, first in row {int(bad[0])}; they would rank first everywhere"
            )
        if not (math.isfinite(self.duration_s) and self.duration_s >= 0):
            raise BadInput(f"duration_s is {self.duration_s}; expected seconds")
        if self.clip_length_s != self.spec.clip_length_s:
            raise BadInput(
                f"clip_length_s is {self.clip_length_s}, and {self.spec.clip_length_s} in the features' specification"
            )


def feature_key(content_sha256: str, spec: FeatureSpec, dtype: str = "float32") -> str:
    """Return the key of a video's features.

    Args:
        content_sha256: of the video file (`content_hash`).
        dtype: precision that the encoder computed in; other roundings are other features.

    Raises:
        BadInput: the weights behind the features are unknown, so that no key could tell them apart.
    """
    unknown = [stream.name for stream in spec.video if stream.weights_sha256 is None]
    if unknown:
        raise BadInput(f"stream {unknown[0]!r} has no weights digest; its features cannot be cached safely")
    what = {"format": _FORMAT, "content": content_sha256, "spec": spec.to_dict(), "dtype": dtype}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class FeatureStore:
    """A folder of feature files with a bound on its size.

    Safe for several processes at once: files appear whole or not at all, and the last writer of a key wins with the
    same content as the first.

    Args:
        folder: None for `features` in the cache folder (MOMENTDETR_CACHE, else the user's).
        max_bytes: when a new file takes the folder beyond this, the files that were not used for longest go.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = 2 * 1024**3) -> None:
        if max_bytes < 0:
            raise BadInput(f"max_bytes is {max_bytes}; expected 0 or more")
        self.folder = Path(folder).expanduser() if folder is not None else cache_folder() / "features"
        self.max_bytes = max_bytes
        self._warned = False

    def get(self, key: str) -> EncodedFeatures | None:
        """Return the features of a key, or None when they must be made.

        A file that is damaged or not what its name says is reported with a warning and not served.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(f"cannot be read ({error.strerror or error})")
            return None
        try:
            found = _unpack(data, key)
        except (SafetensorError, BadCheckpoint, BadInput, KeyError, ValueError, TypeError) as error:
            warnings.warn(f"{path}: damaged feature file, made anew ({str(error).splitlines()[0]:.150})", stacklevel=2)
            return None
        with suppress(OSError):
            os.utime(path)  # used now: goes last
        return found

    def put(self, key: str, features: EncodedFeatures) -> bool:
        """Keep features under a key.

        Returns:
            Whether they were kept: not when the folder cannot be written (said once) or they alone exceed its bound.
        """
        path = self._path(key)
        data = _pack(key, features)
        if len(data) > self.max_bytes:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
            self._evict(keep=path)
        except OSError as error:
            self._warn_once(f"cannot be written ({error.strerror or error})")
            return False
        return True

    def size(self) -> int:
        """Return the bytes that the kept features take."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, key: str) -> Path:
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise BadInput(f"key is {key!r:.80}; expected what feature_key returns")
        return self.folder / f"{key}.safetensors"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, path) of each file, sweeping up what crashed writers left."""
        entries = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as files:
            for file in files:
                with suppress(FileNotFoundError):  # another process may evict, too
                    state = file.stat()
                    if file.name.endswith(".safetensors"):
                        entries.append((state.st_mtime, state.st_size, Path(file.path)))
                    elif file.name.endswith(".tmp") and time.time() - state.st_mtime > _STALE_TEMPORARY_S:
                        os.unlink(file.path)
        return sorted(entries)

    def _evict(self, keep: Path) -> None:
        entries = self._entries()
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in entries:
            if excess <= 0:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size

    def _warn_once(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"feature cache {self.folder} {what}: going on without it. Set MOMENTDETR_CACHE to a writable folder.",
                stacklevel=3,
            )


def _pack(key: str, features: EncodedFeatures) -> bytes:
    values = features.features.detach().cpu().contiguous()
    about = {
        "format": _FORMAT,
        "key": key,
        "duration_s": features.duration_s,
        "clip_length_s": features.clip_length_s,
        "spec": features.spec.to_dict(),
    }
    return save({"features": values}, {"about": json.dumps(about), "sha256": _seal(about, values)})


def _unpack(data: bytes, key: str) -> EncodedFeatures:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about, seal = json.loads(header["__metadata__"]["about"]), header["__metadata__"]["sha256"]
    if about["format"] != _FORMAT or about["key"] != key:
        raise BadCheckpoint("holds the features of another file or format")
    values = load(data)["features"]
    if _seal(about, values) != seal:
        raise BadCheckpoint("its bytes have changed since they were written")
    return EncodedFeatures(values, about["duration_s"], about["clip_length_s"], FeatureSpec.from_dict(about["spec"]))


def _seal(about: dict[str, Any], values: Tensor) -> str:
    """Digest of all that a file says: safetensors itself does not notice a flipped bit."""
    return hashlib.sha256(f"{json.dumps(about, sort_keys=True)} {tensor_digest(values)}".encode()).hexdigest()


__all__ = ["EncodedFeatures", "FeatureStore", "content_hash", "feature_key"]
