"""Begin with a trained detector, whose classes may be others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detection.checkpoint import read_config
from detection.model import ImageDetector
from detection.model_config import build_described
from detection.presets import build
from momentdetr.errors import BadCheckpoint
from momentdetr.strict import load_strictly

# Where a training run keeps the model that it made.
IN_RUN = "detector"


def model_folder(path: str | Path) -> Path:
    """The model's folder: the one that is given, or the one in it where a whole run is given."""
    path = Path(path)
    inside = path / IN_RUN
    return inside if not (path / "config.json").exists() and (inside / "config.json").exists() else path


def begin_with(
    path: str | Path, labels: Sequence[str], config: Mapping[str, Any] | None = None
) -> tuple[ImageDetector, dict[str, Any], list[str]]:
    """A trained detector for these classes.

    Args:
        path: its folder.
        labels: the classes that it shall know.
        config: of the model to build; None: the trained one's.

    Returns:
        The model, its description, and the names of the tensors that start anew because the classes are others.

    Raises:
        BadCheckpoint: no model, or one that does not fit `config` in more than its classes.
    """
    folder = model_folder(path)
    document = read_config(folder)
    try:
        state = load_file(folder / "model.safetensors")
        trained, old = dict(document["model"]), list(document["labels"])
        described = {**(dict(config) if config is not None else trained), "num_classes": len(labels)}
        if "label_rows" in described.get("denoising", {}):  # of the trained classes
            described["denoising"] = {k: v for k, v in described["denoising"].items() if k != "label_rows"}
        model = build_described(described)
        same = old == list(labels)
        anew = [] if same else sorted(class_tensors(described))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{folder} has no model.safetensors") from error
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{folder} does not hold a usable model: {error}") from error
    load_strictly(model, _with_fresh(state, model.state_dict(), anew))
    return model, described, anew


def class_tensors(config: Mapping[str, Any]) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        one, other = (build({**config, "num_classes": config["num_classes"] + more}).state_dict() for more in (0, 1))
    return {name for name, tensor in one.items() if tensor.shape != other[name].shape}


def _with_fresh(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {**state, **{name: fresh[name] for name in names if name in fresh}}
