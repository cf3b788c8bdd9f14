"""The published moment retrievers, by name, with their published numbers, and compositions of their parts.

A checkpoint's `config.json` names a preset and what differs from it: `build({"preset": "qd_detr", "sizes": {...}})`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from momentdetr.errors import BadInput
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presence import Presence
from momentdetr.retrieval.presets_bam_detr import BAM_DETR_WEIGHTS, bam_detr
from momentdetr.retrieval.presets_cg_detr import cg_detr
from momentdetr.retrieval.presets_composed import COMPOSED_WEIGHTS, COMPOSITIONS
from momentdetr.retrieval.presets_eatr import eatr
from momentdetr.retrieval.presets_flashvtg import FLASHVTG_WEIGHTS, flashvtg
from momentdetr.retrieval.presets_moment_detr import moment_detr
from momentdetr.retrieval.presets_points import R2_TUNING_WEIGHTS, r2_tuning
from momentdetr.retrieval.presets_qd_detr import qd_detr
from momentdetr.retrieval.presets_sg_detr import SG_DETR_WEIGHTS, sg_detr
from momentdetr.retrieval.presets_taskweave import taskweave
from momentdetr.retrieval.presets_tr_detr import tr_detr
from momentdetr.retrieval.presets_uvcom import uvcom
from momentdetr.retrieval.stacks import LossWeights, Sizes

PRESETS: dict[str, Callable[..., MomentRetriever]] = {
    "moment_detr": moment_detr,
    "qd_detr": qd_detr,
    "cg_detr": cg_detr,
    "tr_detr": tr_detr,
    "taskweave": taskweave,
    "bam_detr": bam_detr,
    "r2_tuning": r2_tuning,
    "flashvtg": flashvtg,
    "uvcom": uvcom,
    "eatr": eatr,
    "sg_detr": sg_detr,
    **COMPOSITIONS,
}
PUBLISHED_WEIGHTS: dict[str, dict[str, float]] = {
    "bam_detr": BAM_DETR_WEIGHTS,
    "r2_tuning": R2_TUNING_WEIGHTS,
    "flashvtg": FLASHVTG_WEIGHTS,
    "sg_detr": SG_DETR_WEIGHTS,
    **dict.fromkeys(COMPOSITIONS, COMPOSED_WEIGHTS),
}
"""Loss weights of presets whose published ones are not `LossWeights`' defaults."""


def build(config: Mapping[str, Any]) -> MomentRetriever:
    """Build a retriever from plain data.

    Args:
        config: "preset", "sizes" (see `Sizes`), optionally "weights" (see `LossWeights`), "presence" (see `Presence`),
            and the preset's own options.

    Raises:
        BadInput: an unknown preset or key, or a size that does not fit.
    """
    options = dict(config)
    name = options.pop("preset", None)
    if name not in PRESETS:
        raise BadInput(f"unknown preset {name!r}, expected one of {sorted(PRESETS)}")
    sizes = _checked(Sizes, options.pop("sizes", {}))
    weights = _checked(LossWeights, {**PUBLISHED_WEIGHTS.get(name, {}), **options.pop("weights", {})})
    presence = _checked(Presence, options.pop("presence", {}))
    try:
        model = PRESETS[name](sizes, weights, **options)
    except (TypeError, ValueError) as error:
        raise BadInput(f"preset {name!r} cannot be built from {dict(config)}: {error}") from error
    model.presence = presence
    return model


def _checked(cls: type, values: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise BadInput(f"unknown key {unknown[0]!r} for {cls.__name__}, expected some of {known}")
    try:
        return cls(**values)
    except TypeError as error:
        raise BadInput(f"{cls.__name__} is incomplete: {error}") from error
