"""A detector small enough to train in a test, and the configuration that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection.data.generated import write_generated
from detection.recipes import DetectionConfig

SIZES = {
    "width": 16,
    "num_heads": 2,
    "feed_forward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
    "group_norm": 4,
}
BACKBONE = {"name": "test_resnet", "frozen_norm": False, "frozen_stages": 0}
SIDE = 64


def folder_of_images(folder: Path, count: int = 8) -> Path:
    """A COCO-format folder of the moving-shapes world, made once."""
    if not (folder / "annotations").exists():
        write_generated(folder, count, size=SIDE)
    return folder


def recipe(images: Path, system: str = "dino", **changes: Any) -> DetectionConfig:
    """A run of a few steps; sections given as keywords are merged."""
    heads = {"stride": 8, "hidden": 16, "proposals": 20, "per_level": 20, "regions": 8, "most": 4}
    values: dict[str, Any] = {
        "data": {
            "folder": str(images),
            "short_side": SIDE,
            "long_side": SIDE,
            "augment": {"geometry": "resize", "short_sides": [SIDE], "long_side": SIDE},
        },
        "model": {
            "system": system,
            "backbone": BACKBONE,
            "sizes": {**SIZES, **({"num_levels": 4} if system == "co_dino" else {})},
            **({"heads": heads} if system.startswith("co_") else {}),
        },
        "training": {"epochs": 2, "batch_size": 4, "log_every": 1},
        "optimizer": {"learning_rate": 1e-3},
        "device": "cpu",
    }
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
    return DetectionConfig.model_validate(values)
