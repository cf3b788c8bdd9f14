"""An image detector on disk: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detection.model import ImageDetector
from detection.presets import build
from momentdetr.errors import BadCheckpoint, BadInput, StoreError
from momentdetr.strict import load_strictly, read_document

FORMAT = "momentdetr-detection/1"


def save(
    folder: str | Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    labels: Sequence[str | None],
    *,
    category_ids: Sequence[int | None] | None = None,
    input_size: tuple[int, int | None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a detector.

    Args:
        folder: made if missing.
        config: what `presets.build` makes the model from.
        state: its weights.
        labels: name of each class; None where a slot stands for nothing.
        category_ids: the data set's own number of each class; None: not known.
        input_size: short side of the images that it expects, and the most of their long side, in pixels; None: those
            of the papers.
        about: free text for people: where it came from, its licence.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = Path(folder)
    document: dict[str, Any] = {"format": FORMAT, "model": dict(config), "labels": list(labels)}
    if category_ids is not None:
        document["category_ids"] = list(category_ids)
    if input_size is not None:
        document["input"] = {"short_side": input_size[0], "long_side": input_size[1]}
    document["about"] = dict(about or {})
    # Shared heads are written once for each of their names.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside, then renamed: a folder that was whole stays whole until the new files are.
        save_file(tensors, folder / ".model.safetensors")
        (folder / ".config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name in ("model.safetensors", "config.json"):
            (folder / f".{name}").replace(folder / name)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write the model to {folder}: {error}") from error
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu") -> tuple[ImageDetector, tuple[str | None, ...]]:
    """Read a detector, ready to answer, and the names of its classes.

    Raises:
        BadCheckpoint: a file is missing, damaged, or of another format.
    """
    folder = Path(folder)
    document = read_config(folder)
    try:
        state = load_file(folder / "model.safetensors")
        model = build(document["model"])
        labels = tuple(document["labels"])
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{folder} has no model.safetensors") from error
    except (OSError, SafetensorError, KeyError, TypeError, BadInput) as error:
        raise BadCheckpoint(f"{folder} does not hold a usable model: {error}") from error
    load_strictly(model, state)
    return model.eval().to(device), labels


def read_config(folder: str | Path) -> dict[str, Any]:
    """The document beside the weights: "model", "labels", "about".

    Raises:
        BadCheckpoint: missing, not JSON, or of another format.
    """
    return read_document(folder, FORMAT)
