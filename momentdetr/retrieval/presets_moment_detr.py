"""Moment-DETR with its published numbers."""

from __future__ import annotations

from momentdetr.detr.assignment import HungarianMatcher, softmax_class_cost
from momentdetr.detr.losses import Criterion
from momentdetr.detr.parametrization import CenterSize
from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.boundaries import BoundaryLogits, boundary_cost, boundary_loss, zero_loss
from momentdetr.retrieval.encoders.moment_detr import MomentDetrEncoder
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import (
    LossWeights,
    Sizes,
    dense_head,
    encoder,
    foreground,
    moment_criterion,
    projections,
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
            text_positions=LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout)
            if text_positions
            else None,
            saliency_margin=weights.saliency_margin,
        ),
        head=dense_head(sizes, pre_norm=pre_norm, parametrization=parametrization, box_size=2 * boundary_clips or 2),
        criterion=_boundary_criterion(weights) if boundary_clips else moment_criterion(weights),
        weights={"saliency": weights.saliency, "align": weights.align},
        scores=foreground,
        align=align,
    )


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
