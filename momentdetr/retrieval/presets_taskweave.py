"""TaskWeave with its published numbers."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from momentdetr.detr.initialization import init_transformer
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.encoders.taskweave import Direction, TaskWeaveEncoder
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
from momentdetr.retrieval.taskweave import TaskWeave

SHARED_LAYERS = 2  # the official code builds two, whatever its options say


def taskweave(
    sizes: Sizes,
    weights: LossWeights,
    *,
    direction: Direction = "highlights_first",
    start_epoch: int = 100,
    text_positions: int = 0,
    moments: bool = True,
    official_batch_faults: bool = False,
) -> TaskWeave:
    """TaskWeave (Yang et al., 2024, arXiv 2404.09263); of the loss weights only the matcher's and background's count.

    Args:
        direction: "highlights_first" (published as hd2mr) or "moments_first" (mr2hd).
        start_epoch: the first epoch in which one task helps the other.
        text_positions: number of learned word positions; 0: words have none, as published.
        moments: learn moments; False for data that has saliency only (TVSum).
        official_batch_faults: see `TaskWeaveEncoder`; for official checkpoints only.
    """
    if direction not in ("highlights_first", "moments_first"):
        raise ValueError(f"direction {direction!r} is neither 'highlights_first' nor 'moments_first'")
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; TaskWeave has no clip indicator")
    video, text = projections(sizes)
    fusion = text_to_video(sizes, TextToVideoLayer, official_batch_faults=official_batch_faults)
    both = TaskWeaveEncoder(
        video_projection=video,
        text_projection=text,
        fusion=fusion,
        encoder=encoder(replace(sizes, encoder_layers=SHARED_LAYERS), activation=nn.PReLU),
        width=sizes.width,
        direction=direction,
        text_positions=LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout)
        if text_positions
        else None,
        saliency_margin=weights.saliency_margin,
        official_batch_faults=official_batch_faults,
    )
    init_transformer(*fusion, both.moments, both.highlights, both.moment_convolution, both.moment_gate)
    return TaskWeave(
        encoder=both,
        start_epoch=start_epoch,
        head=anchor_head(sizes),
        criterion=moment_criterion(replace(weights, l1=1.0, giou=1.0, class_=1.0)) if moments else None,
        scores=foreground,
    )
