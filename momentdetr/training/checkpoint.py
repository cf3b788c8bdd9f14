"""Checkpoints that are whole or not there, checked tensor by tensor before they are used.

A run's folder holds `checkpoints/step-00001200/` with model.safetensors, optimizer.safetensors, average.safetensors
(where weights are averaged), state.json (position, counters, configuration) and manifest.json (SHA-256 of every tensor
and of state.json). It is written under a temporary name, flushed to the disk and renamed, so that a crash leaves the
old ones as they were. Kept are the last, the one before it and the best.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from momentdetr.errors import BadCheckpoint, StoreError

FORMAT = "momentdetr-training/1"
_TEMPORARY, _DAMAGED = ".writing-", "damaged-"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Args:
        step: steps done.
        tensors: part ("model", "optimizer", "average") -> name -> tensor on the CPU.
        state: position, counters and configuration; plain JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they are; made on the first save.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending; damaged ones included until they are found out."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint, best_step: int | None = None) -> Path:
        """Write a checkpoint, then remove those that are neither last, previous nor best.

        Raises:
            StoreError: the disk refuses; the earlier checkpoints stay.
        """
        final = self.path(checkpoint.step)
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            self.sweep()
            temporary.mkdir(parents=True)
            _write_all(temporary, checkpoint)
            os.rename(temporary, final)
            _flush_folder(self.folder)
            self._prune(best_step)
        except OSError as error:
            raise StoreError(
                f"{final}: checkpoint could not be written ({error.strerror or error}); earlier ones are kept in "
                f"{self.folder}. Make room or choose another folder, then resume."
            ) from error
        return final

    def load(self, step: int) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            BadCheckpoint: names the first file or tensor that is missing or differs from the manifest.
        """
        path = self.path(step)
        manifest = _json(path / "manifest.json")
        if manifest.get("format") != FORMAT:
            raise BadCheckpoint(f"{path}: format is {manifest.get('format')!r}, expected {FORMAT!r}")
        state_bytes = _bytes(path / "state.json")
        if hashlib.sha256(state_bytes).hexdigest() != manifest["state"]:
            raise BadCheckpoint(f"{path / 'state.json'}: differs from its manifest")
        tensors = {
            part: _verified(path / f"{part}.safetensors", digests) for part, digests in manifest["parts"].items()
        }
        return Checkpoint(step, tensors, json.loads(state_bytes))

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with newer ones, which are set aside.

        Raises:
            BadCheckpoint: there are checkpoints, but none is whole.
        """
        self.sweep()
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), problems
            except (BadCheckpoint, KeyError, TypeError) as error:
                problems.append(f"{error}" if isinstance(error, BadCheckpoint) else f"{self.path(step)}: {error!r}")
                self._set_aside(self.path(step))
        if problems:
            raise BadCheckpoint("no checkpoint is whole: " + "; ".join(problems) + ". Start anew in another folder.")
        return None, problems

    def sweep(self) -> None:
        """Remove what a crash left half-written or half-removed."""
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path)

    def _prune(self, best_step: int | None) -> None:
        kept = {*self.steps()[-2:], best_step}
        removed = [self.path(step) for step in self.steps() if step not in kept]
        for path in removed:  # renamed first: a half-removed one must not look like a checkpoint
            path.rename(self.folder / f"{_TEMPORARY}removed-{path.name}")
        self.sweep()

    def _set_aside(self, path: Path) -> None:
        target = path.with_name(_DAMAGED + path.name)
        if target.exists():
            shutil.rmtree(target)
        path.rename(target)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and bytes."""
    flat = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{flat.dtype} {tuple(flat.shape)} ".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_all(folder: Path, checkpoint: Checkpoint) -> None:
    parts = {}
    for part, tensors in checkpoint.tensors.items():
        # Cloned: tied parameters share memory, which the format does not know.
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        parts[part] = {name: tensor_digest(tensor) for name, tensor in copies.items()}
        _write(folder / f"{part}.safetensors", save(copies))
    state = json.dumps(checkpoint.state, indent=1, sort_keys=True, allow_nan=False).encode()
    _write(folder / "state.json", state)
    manifest = {"format": FORMAT, "state": hashlib.sha256(state).hexdigest(), "parts": parts}
    _write(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
    _flush_folder(folder)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verified(path: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error})") from error
    if set(tensors) != set(digests):
        differing = sorted(set(tensors) ^ set(digests))
        raise BadCheckpoint(f"{path}: tensor {differing[0]!r} is in the file or in the manifest only")
    for name, tensor in tensors.items():
        if tensor_digest(tensor) != digests[name]:
            raise BadCheckpoint(f"{path}: tensor {name!r} differs from its manifest")
    return tensors


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_bytes(path))
    except ValueError as error:
        raise BadCheckpoint(f"{path}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise BadCheckpoint(f"{path}: holds {type(data).__name__}, expected an object")
    return data
