"""A retriever on disk: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from momentdetr.errors import BadCheckpoint, BadInput, StoreError
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presets import build
from momentdetr.strict import load_strictly, read_document

FORMAT = "momentdetr/1"


def save(
    folder: str | Path,
    config: Mapping[str, Any],
    model: MomentRetriever,
    spec: FeatureSpec,
    *,
    about: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a retriever.

    Args:
        folder: made if missing; its two files are replaced one by one, weights first.
        config: what `presets.build` made the model from.
        model: whose weights are written.
        spec: the features that it was trained on.
        about: free text for people: what it knows, its licence.
        dtype: of the floating tensors on disk; None: as they are.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = Path(folder)
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    weights = save_tensors(tensors)
    document = {
        "format": FORMAT,
        "model": dict(config),
        "features": spec.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "about": dict(about or {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "model.safetensors", weights)
        _replace(folder / "config.json", (json.dumps(document, indent=2) + "\n").encode())
    except OSError as error:
        raise StoreError(f"cannot write the model to {folder}: {error.strerror}") from error
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu") -> tuple[MomentRetriever, FeatureSpec]:
    """Read a retriever, ready to answer.

    Raises:
        BadCheckpoint: a file is missing, damaged, or of another format.
    """
    folder = Path(folder)
    document = read_config(folder)
    try:
        weights = (folder / "model.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != document["weights_sha256"]:
            raise BadCheckpoint(
                f"{folder}/model.safetensors is not the file that config.json was written with; copy both"
            )
        state = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in load_tensors(weights).items()
        }
        model = build(document["model"])
        spec = FeatureSpec.from_dict(document["features"])
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{folder} has no model.safetensors") from error
    except (SafetensorError, KeyError, BadInput) as error:
        raise BadCheckpoint(f"{folder} does not hold a usable model: {error}") from error
    load_strictly(model, state)
    return model.eval().to(device), spec


def read_config(folder: str | Path) -> dict[str, Any]:
    """The document beside the weights: "model", "features", "about".

    Raises:
        BadCheckpoint: missing, not JSON, or of another format.
    """
    return read_document(folder, FORMAT)


def _replace(path: Path, content: bytes) -> None:
    """Write beside, make it durable, then rename: a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
