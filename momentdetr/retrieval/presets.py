"""The published moment retrievers, by name, with their published numbers.

A checkpoint's `config.json` names a preset and what differs from it: `build({"preset": "qd_detr", "sizes": {...}})`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from momentdetr.detr.assignment import HungarianMatcher, softmax_class_cost
from momentdetr.detr.losses import Criterion
from momentdetr.detr.parametrization import CenterSize
from momentdetr.errors import BadInput
from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.boundaries import BoundaryLogits, boundary_cost, boundary_loss, zero_loss
from momentdetr.retrieval.encoders.moment_detr import MomentDetrEncoder
from momentdetr.retrieval.encoders.qd_detr import QdDetrEncoder, TextToVideoLayer
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presence import Presence
from momentdetr.retrieval.presets_bam_detr import BAM_DETR_WEIGHTS, bam_detr
from momentdetr.retrieval.presets_cg_detr import cg_detr
from momentdetr.retrieval.presets_eatr import eatr
from momentdetr.retrieval.presets_flashvtg import FLASHVTG_WEIGHTS, flashvtg
from momentdetr.retrieval.presets_points import R2_TUNING_WEIGHTS, r2_tuning
from momentdetr.retrieval.presets_sg_detr import SG_DETR_WEIGHTS, sg_detr
from momentdetr.retrieval.presets_taskweave import taskweave
from momentdetr.retrieval.presets_tr_detr import tr_detr
from momentdetr.retrieval.presets_uvcom import uvcom
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import (
    LossWeights,
    Sizes,
    anchor_head,
    dense_head,
    encoder,
    foreground,
    moment_criterion,
    projections,
    text_to_video,
)


def moment_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    pre_norm: bool = False,
    text_positions: int = 0,
    boundary_clips: int = 0,
    alignment_size: int = 0,
    temperature: float = 0.07,
) -> MomentRetriever:
    """Moment-DETR (Lei et al., 2021, arXiv 2107.09609).

    Args:
        pre_norm: norm the inputs of branches instead of their sums.
        text_positions: number of learned word positions; 0: words have none, as published.
        boundary_clips: predict the first and last of this many clips by classification; 0: regress, as published.
        alignment_size: size of the space of the contrastive alignment; 0: none.
        temperature: of the alignment.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; Moment-DETR has no clip indicator")
    video, text = projections(sizes)
    parametrization = BoundaryLogits() if boundary_clips else CenterSize(eps=1e-3)
    align = ContrastiveAlignment(sizes.width, alignment_size, temperature) if alignment_size else None
    return MomentRetriever(
        encoder=MomentDetrEncoder(
            video_projection=video,
            text_projection=text,
            encoder=encoder(sizes, pre_norm=pre_norm),
            width=sizes.width,
            text_positions=_text_positions(sizes, text_positions),
            saliency_margin=weights.saliency_margin,
        ),
        head=dense_head(sizes, pre_norm=pre_norm, parametrization=parametrization, box_size=2 * boundary_clips or 2),
        criterion=_boundary_criterion(weights) if boundary_clips else moment_criterion(weights),
        weights={"saliency": weights.saliency, "align": weights.align},
        scores=foreground,
        align=align,
    )


def qd_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    text_positions: int = 0,
    alignment_size: int = 0,
    temperature: float = 0.07,
    moments: bool = True,
    official_batch_faults: bool = False,
) -> MomentRetriever:
    """QD-DETR (Moon et al., 2023, arXiv 2303.13874); with audio, `sizes.video_dim` includes it.

    Args:
        text_positions: number of learned word positions; 0: words have none, as published.
        alignment_size: size of the space of a contrastive alignment; 0: none, as published.
        temperature: of the alignment.
        moments: learn moments; False for data that has saliency only (TVSum).
        official_batch_faults: see `QdDetrEncoder`; for official checkpoints only.
    """
    video, text = projections(sizes)
    fusion = text_to_video(sizes, TextToVideoLayer, official_batch_faults=official_batch_faults)
    return MomentRetriever(
        encoder=QdDetrEncoder(
            video_projection=video,
            text_projection=text,
            fusion=fusion,
            encoder=encoder(sizes, activation=nn.PReLU),
            width=sizes.width,
            text_positions=_text_positions(sizes, text_positions),
            saliency_margin=weights.saliency_margin,
            indicator=weights.indicator > 0,
            official_batch_faults=official_batch_faults,
        ),
        head=anchor_head(sizes),
        criterion=moment_criterion(weights) if moments else None,
        weights={"saliency": weights.saliency, "indicator": weights.indicator, "align": weights.align},
        scores=foreground,
        indicator=weights.indicator > 0,
        align=ContrastiveAlignment(sizes.width, alignment_size, temperature) if alignment_size else None,
    )


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
}
PUBLISHED_WEIGHTS: dict[str, dict[str, float]] = {
    "bam_detr": BAM_DETR_WEIGHTS,
    "r2_tuning": R2_TUNING_WEIGHTS,
    "flashvtg": FLASHVTG_WEIGHTS,
    "sg_detr": SG_DETR_WEIGHTS,
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


def _text_positions(sizes: Sizes, max_words: int) -> LearnedTextPositions | None:
    return LearnedTextPositions(max_words, sizes.width, sizes.input_dropout) if max_words else None


def _boundary_criterion(weights: LossWeights) -> Criterion:
    regression = moment_criterion(weights)
    matcher = HungarianMatcher(
        {"class": softmax_class_cost, "l1": boundary_cost},
        {"class": weights.cost_class, "l1": weights.cost_l1},
    )
    return Criterion(
        matcher=matcher,
        terms={**regression.terms, "l1": boundary_loss, "giou": zero_loss},
        weights=regression.weights,
        auxiliary=weights.auxiliary,
    )
