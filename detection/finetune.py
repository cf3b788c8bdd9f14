"""Settings for a folder of images about which nothing is said: from its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from detection.checkpoint import read_config
from detection.data.augment import AugmentConfig
from detection.data.check import check_split
from detection.data.folders import Split, canonical, find_splits
from detection.initial import model_folder
from detection.model_config import ANSWERS, ModelConfig
from detection.recipes import DetectionConfig
from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.training.config import apply_overrides, parse_config

# Steps that a trained detector needs for new classes, and that one needs whose weights start at random.
STEPS_TRAINED, STEPS_ANEW = 3000, 30000
# The classical recipe's batch, for which its learning rate is meant.
_PUBLISHED_BATCH = 16


def recipe_for(
    folder: str | Path, model: str, overrides: list[str] | None = None, *, skip_bad: float = 0.0
) -> tuple[DetectionConfig, list[str]]:
    """A configuration for a COCO-format folder.

    Args:
        folder: with a split called train; one called val, or else test, is scored on, or else a tenth of the images.
        model: a model folder or run to begin with, or the name of a system, which then begins anew.
        overrides: "section.key=value", applied last.
        skip_bad: see `DataConfig`.

    Returns:
        The configuration, and what a person should know about it.

    Raises:
        BadInput: no such folder, no images to train on, or no such model.
        BadCheckpoint: the model is damaged.
    """
    splits = find_splits(folder)
    train = _one(splits, "train") or (splits[0] if len(splits) == 1 else None)
    if train is None:
        names = ", ".join(split.name for split in splits)
        raise BadInput(f"{folder}: has the splits {names}, and none is called train; say which: --set data.train=NAME")
    val = _one(splits, "val") or _one(splits, "test")
    number = len(check_split(train, verify="none").records)
    settings, told = _model(model)
    anew, batch = "initial" not in settings, batch_for(number)
    side, long_side = settings.pop("_size")
    epochs = epochs_for(number, batch, STEPS_ANEW if anew else STEPS_TRAINED)
    settings["data"] = {
        "folder": str(folder),
        "train": train.name,
        "val": None if val is None or val is train else val.name,
        "holdout": 0.1 if (val is None or val is train) and number >= 10 else 0.0,
        "skip_bad": skip_bad,
        "short_side": side,
        "long_side": long_side,
        "augment": AugmentConfig.at(side).model_dump(mode="json") | {"long_side": long_side},
    }
    settings["training"] = {
        "epochs": epochs,
        "batch_size": batch,
        "ema_decay": 0.999,
        "evaluate_every": max(1, epochs // 20),
        "checkpoint_every": max(1, epochs // 20),
        "patience": 8,
    }
    rate = 1e-4 * min(1.0, max(0.5, batch / _PUBLISHED_BATCH)) * (1.0 if anew else 0.5)
    groups = [{"match": r"^backbone\.", "learning_rate_scale": 0.1}] if not anew else []
    settings["optimizer"] = {"learning_rate": rate, "groups": groups}
    settings["schedule"] = {"kind": "cosine", "warmup_steps": min(200, epochs), "final_scale": 0.01}
    apply_overrides(settings, overrides or [])
    scored = f"scored on {val.name}" if val is not None and val is not train else "a tenth is kept for scoring"
    told.append(
        f"{number} images to learn from, {scored}: {epochs} epochs of {batch} images a step, at {side} pixels; "
        "--set changes any of it"
    )
    return parse_config(DetectionConfig, settings, str(folder)), told


def _model(model: str) -> tuple[dict[str, Any], list[str]]:
    """Settings of the model, among them the size of its images as "_size"; and what to tell."""
    if model in ANSWERS and not Path(model).exists():
        described = ModelConfig(
            system=model,
            backbone={"name": "resnet50", "frozen_norm": False, "frozen_stages": 0},
            **({"sizes": {"num_queries": 100, "dropout": 0.1}} if model == "detr" else {}),
        )
        told = (
            f"{model} begins with random weights, which takes many images and long; better begin with a trained "
            "model: --model FOLDER, or --set model.backbone.pretrained=true where the network is at hand"
        )
        return {"model": described.model_dump(mode="json"), "_size": (640, 1066)}, [told]
    folder = model_folder(model)
    if not folder.is_dir():
        raise BadInput(f"--model {model!r} is neither a model folder nor a system; systems are {', '.join(ANSWERS)}")
    size = read_config(folder).get("input", {"short_side": 800, "long_side": 1333})
    try:
        return {"initial": str(folder), "_size": (size["short_side"], size["long_side"])}, []
    except (KeyError, TypeError) as error:
        raise BadCheckpoint(f"{folder}/config.json: 'input' is {size!r}, expected short_side and long_side") from error


def _one(splits: tuple[Split, ...], name: str) -> Split | None:
    return next((split for split in splits if canonical(split.name) == name), None)


def batch_for(number: int) -> int:
    """Small sets get small batches, so that an epoch has some steps."""
    return max(1, min(8, number // 8))


def epochs_for(number: int, batch: int, steps: int) -> int:
    """As many as make about so many steps, between 12 and 300."""
    per_epoch = max(1, -(-number // batch))
    return min(300, max(12, round(steps / per_epoch)))


def as_yaml(config: DetectionConfig) -> str:
    """A configuration as a file that `train` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
