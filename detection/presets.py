"""Image detectors from plain descriptions, which checkpoints store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from detection.backbone import Backbone, timm_backbone
from detection.model import ImageDetector
from momentdetr.detr import systems, systems_hybrid
from momentdetr.detr.assembly import Positions, Sizes, Task, focal_criterion, quality_criterion, softmax_criterion
from momentdetr.detr.denoising import Denoising, PairedDenoising
from momentdetr.detr.model import Detector
from momentdetr.errors import BadInput

ROWS: dict[str, Callable[..., Detector]] = {
    "detr": systems.detr,
    "conditional_detr": systems.conditional_detr,
    "deformable_detr": systems.deformable_detr,
    "dab_detr": systems.dab_detr,
    "dab_deformable_detr": systems.dab_deformable_detr,
    "dn_detr": systems.dab_detr,
    "dn_deformable_detr": systems.dab_deformable_detr,
    "dn_dino": systems.dn_dino,
    "dino": systems.dino,
    "co_deformable_detr": systems_hybrid.co_deformable_detr,
    "co_dino": systems_hybrid.co_dino,
}


def build(config: Mapping[str, Any], backbone: Backbone | None = None) -> ImageDetector:
    """Build an image detector, its weights at their start.

    Args:
        config: `system`; `num_classes`; `channels` of the maps that it uses; `backbone` (arguments of
            `timm_backbone`); and where they differ from the system's own: `sizes`, `positions`, `denoising`, `heads`
            (one-to-many ones), `options` of the system, `losses`, and of the answers `scores`, `top`, `suppress`,
            `keep` and `inside`.
        backbone: instead of the one that is described.

    Raises:
        BadInput: an unknown system.
    """
    if config["system"] not in ROWS:
        raise BadInput(f"unknown system {config['system']!r}; known are {', '.join(ROWS)}")
    task = Task(2, tuple(config["channels"]), config["num_classes"])
    sizes = Sizes(**config["sizes"]) if "sizes" in config else None
    options = dict(config.get("options", {}))
    if "positions" in config:
        options["positions"] = Positions(**config["positions"])
    if "denoising" in config:
        options["denoising"] = _denoising(task, sizes or Sizes(), **config["denoising"])
    if "heads" in config:
        options["heads"] = systems_hybrid.Heads(**config["heads"])
    detector = ROWS[config["system"]](task, sizes, **options)
    scores = config.get("scores", "sigmoid")
    if "losses" in config:
        quality_aware = quality_criterion if "loss" in config["losses"] else focal_criterion
        criterion = softmax_criterion if scores == "softmax" else quality_aware
        detector.criterion = criterion(**config["losses"])
    if backbone is None:
        backbone = timm_backbone(**config["backbone"])
    answers = {name: config[name] for name in ("top", "suppress", "keep", "inside") if name in config}
    return ImageDetector(backbone, detector, scores=scores, **answers)


def _denoising(task: Task, sizes: Sizes, *, paired: bool = False, **options: Any) -> nn.Module:
    kind = PairedDenoising if paired else Denoising
    return kind(task.num_classes, sizes.width, **options)
