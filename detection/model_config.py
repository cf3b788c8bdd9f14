"""What a configuration says about a model, checked name by name before anything is built."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import Field

from detection.backbone import Backbone, timm_backbone
from detection.model import ImageDetector
from detection.presets import ROWS, build
from momentdetr.detr import assembly
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.systems_hybrid import Heads
from momentdetr.errors import BadInput
from momentdetr.training.config import Section

# How each system's published code answers; see `ImageDetector`.
ANSWERS: dict[str, dict[str, Any]] = {
    "detr": {"scores": "softmax"},
    "conditional_detr": {"top": 100},
    "deformable_detr": {"top": 100},
    "dab_detr": {"top": 300},
    "dab_deformable_detr": {"top": 300},
    "dn_detr": {"top": 300},
    "dn_deformable_detr": {"top": 300},
    "dn_dino": {"top": 300},
    "dino": {"top": 300},
    "co_deformable_detr": {"top": 100},
    "co_dino": {"top": 900, "suppress": 0.8, "keep": 300, "inside": True},
}
# What a row does not do of itself, but its published system does.
_DENOISING: dict[str, dict[str, Any]] = {"dn_detr": {"groups": 5}, "dn_deformable_detr": {"groups": 5}}
# Made by the row, and no options of it.
_PARTS = {"task", "sizes", "positions", "denoising", "heads", "hybrid"}


class ModelConfig(Section):
    """A detector to build; what is left out is as its paper has it.

    Args:
        system: a name of `presets.ROWS`.
        backbone: arguments of `timm_backbone`.
        sizes: of `assembly.Sizes`; what is left out there is its default, not the paper's.
        positions: of `assembly.Positions`.
        denoising: of `Denoising`.
        heads: of `systems_hybrid.Heads`.
        options: of the system's function.
        losses: of its criterion, such as class_weight, or `loss` for a quality-aware one.
        answers: scores, top, suppress, keep, inside: see `ImageDetector`.
    """

    system: str
    backbone: dict[str, Any] = Field(default_factory=lambda: {"name": "resnet50"})
    sizes: dict[str, Any] = Field(default_factory=dict)
    positions: dict[str, Any] = Field(default_factory=dict)
    denoising: dict[str, Any] = Field(default_factory=dict)
    heads: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    losses: dict[str, Any] = Field(default_factory=dict)
    answers: dict[str, Any] = Field(default_factory=dict)


def build_model(config: ModelConfig, num_classes: int) -> tuple[ImageDetector, dict[str, Any]]:
    """A detector with its weights at their start, and the description that checkpoints store.

    Raises:
        BadInput: a name or value that does not fit; names the closest known one.
    """
    check_names(config)
    backbone = _backbone(config.backbone)
    stored: dict[str, Any] = {"system": config.system, "num_classes": num_classes, "channels": list(backbone.channels)}
    stored["backbone"] = {key: value for key, value in config.backbone.items() if key != "pretrained"}
    denoising = {**_DENOISING.get(config.system, {}), **config.denoising}
    for key, values in (("sizes", config.sizes), ("positions", config.positions), ("denoising", denoising)):
        if values:
            stored[key] = values
    for key in ("heads", "options", "losses"):
        if getattr(config, key):
            stored[key] = getattr(config, key)
    stored |= {**ANSWERS[config.system], **config.answers}
    return build_described(stored, backbone), stored


def build_described(stored: Mapping[str, Any], backbone: Backbone | None = None) -> ImageDetector:
    """`presets.build`, with what its parts object to as an error of the user's.

    Raises:
        BadInput: a value that a part cannot be built with.
    """
    try:
        return build(stored, backbone)
    except BadInput:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise BadInput(f"model: {stored.get('system')} cannot be built with these values: {error}") from error


def check_names(config: ModelConfig) -> None:
    """Refuse unknown names in the open sections.

    Raises:
        BadInput: names the closest known one.
    """
    _require("model.system", [config.system], ROWS)
    row = ROWS[config.system]
    known: dict[str, Iterable[str]] = {
        "sizes": _keywords(assembly.Sizes),
        "positions": _keywords(assembly.Positions),
        "denoising": [*_keywords(Denoising), "paired"],
        "heads": _keywords(Heads),
        "options": [name for name in _keywords(row) if name not in _PARTS],
        "losses": [*_losses(config), "loss"],
        "answers": ("scores", "top", "suppress", "keep", "inside"),
    }
    for section, names in known.items():
        _require(f"model.{section}", getattr(config, section), names)
    for section in ("positions", "denoising", "heads"):
        if getattr(config, section) and section not in _keywords(row):
            raise BadInput(f"model.{section}: {config.system} has no {section}")
    if "name" not in config.backbone:
        raise BadInput("model.backbone: has no name; give one of timm's, such as resnet50")


def _losses(config: ModelConfig) -> list[str]:
    softmax = {**ANSWERS[config.system], **config.answers}.get("scores") == "softmax"
    own = assembly.softmax_criterion if softmax else assembly.focal_criterion
    common = [name for name in _keywords(assembly._criterion) if name not in ("terms", "cost")]
    return [*_keywords(own), *common]


def _keywords(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds]


def _require(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
            raise BadInput(f"unknown key {where + '.' + str(name)!r}; {hint}")


def _backbone(options: Mapping[str, Any]) -> Backbone:
    try:
        return timm_backbone(**options)
    except BadInput:
        raise
    except OSError as error:  # of the network, which fetches pretrained weights
        name = options["name"]
        raise BadInput(
            f"model.backbone: the weights of {name} cannot be fetched ({type(error).__name__}); "
            "start from random ones: --set model.backbone.pretrained=false"
        ) from error
