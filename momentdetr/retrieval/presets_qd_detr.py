"""QD-DETR with its published numbers."""

from __future__ import annotations

from typing import Any

from torch import nn

from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.encoders.qd_detr import QdDetrEncoder, TextToVideoLayer
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
from momentdetr.retrieval.temporal import Recomputed, recomputed, temporal_encoder


def qd_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    text_positions: int = 0,
    alignment_size: int = 0,
    temperature: float = 0.07,
    moments: bool = True,
    levels: int = 0,
    recompute: bool = False,
    official_batch_faults: bool = False,
) -> MomentRetriever:
    """QD-DETR (Moon et al., 2023, arXiv 2303.13874); with audio, `sizes.video_dim` includes it.

    Args:
        text_positions: number of learned word positions; 0: words have none, as published.
        alignment_size: size of the space of a contrastive alignment; 0: none, as published.
        temperature: of the alignment.
        moments: learn moments; False for data that has saliency only (TVSum).
        levels: of a pyramid over which clips attend to each other, at a cost that grows linearly with their number;
            0: they all attend to all, as published.
        recompute: forget the inner results of layers whose cost grows with the video, and compute them again for the
            gradient.
        official_batch_faults: see `QdDetrEncoder`; for official checkpoints only.
    """
    video: Any
    fusion: Any
    own: Any
    video, text = projections(sizes)
    fusion = text_to_video(sizes, TextToVideoLayer, official_batch_faults=official_batch_faults)
    if recompute:
        video, fusion = Recomputed(video), recomputed(fusion)
    own = temporal_encoder(sizes, levels, recompute=recompute) if levels else encoder(sizes, activation=nn.PReLU)
    return MomentRetriever(
        encoder=QdDetrEncoder(
            video_projection=video,
            text_projection=text,
            fusion=fusion,
            encoder=own,
            width=sizes.width,
            text_positions=LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout)
            if text_positions
            else None,
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
