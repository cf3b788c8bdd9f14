"""TR-DETR with its published numbers."""

from __future__ import annotations

from torch import nn

from momentdetr.detr.losses import Criterion
from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.encoders.tr_detr import TrDetrEncoder
from momentdetr.retrieval.encoders.tr_losses import two_class_focal
from momentdetr.retrieval.encoders.tr_mixer import ContextQueryMixer
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import (
    LossWeights,
    Sizes,
    anchor_head,
    encoder,
    foreground,
    moment_criterion,
    projections,
    text_to_video,
)


def tr_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    video_text: float = 0.3,
    clip_text: float = 0.5,
    text_positions: int = 0,
    alignment_size: int = 0,
    temperature: float = 0.07,
    moments: bool = True,
    official_batch_faults: bool = False,
) -> MomentRetriever:
    """TR-DETR (Sun et al., 2024, arXiv 2401.02309), as rewritten in its repository in 2025.

    Args:
        video_text: weight of videos against texts.
        clip_text: weight of clips against texts.
        text_positions: number of learned word positions; 0: words have none, as published.
        alignment_size: size of the space of a contrastive alignment; 0: none, as published.
        temperature: of the alignment.
        moments: learn moments; False for data that has saliency only (TVSum).
        official_batch_faults: see `TrDetrEncoder`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; TR-DETR has no clip indicator")
    video, text = projections(sizes)
    fusion = text_to_video(sizes, TextToVideoLayer, official_batch_faults=official_batch_faults)
    own = TrDetrEncoder(
        video_projection=video,
        text_projection=text,
        mixer=ContextQueryMixer(sizes.width, sizes.dropout),
        fusion=fusion,
        encoder=encoder(sizes, activation=nn.PReLU),
        width=sizes.width,
        text_positions=LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout)
        if text_positions
        else None,
        saliency_margin=weights.saliency_margin,
        official_batch_faults=official_batch_faults,
    )
    return MomentRetriever(
        encoder=own,
        head=anchor_head(sizes),
        criterion=_criterion(weights) if moments else None,
        weights={
            "saliency": weights.saliency,
            "align": weights.align,
            "video_text": video_text,
            "clip_text": clip_text,
        },
        scores=foreground,
        align=ContrastiveAlignment(sizes.width, alignment_size, temperature) if alignment_size else None,
        feedback=own.refine,
    )


def _criterion(weights: LossWeights) -> Criterion:
    """The usual terms, but for the class: a focal loss without a weight of the background."""
    usual = moment_criterion(weights)
    return Criterion(
        matcher=usual.matcher,
        terms={**usual.terms, "class": two_class_focal},
        weights=usual.weights,
        auxiliary=usual.auxiliary,
    )
