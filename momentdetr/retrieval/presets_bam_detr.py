"""BAM-DETR with its published numbers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from momentdetr.detr.assignment import HungarianMatcher, giou_cost, l1_cost, softmax_class_cost
from momentdetr.detr.boxes import to_center_size, to_corners
from momentdetr.detr.initialization import init_transformer, zero_last_layer
from momentdetr.detr.losses import Criterion, cross_entropy, giou_loss
from momentdetr.detr.mlp import MLP
from momentdetr.detr.types import LossTerm, Output
from momentdetr.retrieval.boundary_decoder import AnchoredSpanGuide, BoundaryAttention, BoundaryLayer, DualDecoder
from momentdetr.retrieval.encoders.bam_detr import BamDetrEncoder, corner_l1, quality_regression
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import (
    LossWeights,
    Sizes,
    conditional_layers,
    encoder,
    feed_forward,
    foreground,
    projections,
    text_to_video,
)
from momentdetr.retrieval.types import Encoding

BAM_DETR_WEIGHTS = {"class_": 0.0, "cost_class": 0.0}
"""Where the published weights differ from the others': nothing is learnt from classes, and nothing matched by them."""


class BamDetr(MomentRetriever):
    """A retriever whose decoder also reads the encoder's boundary features."""

    def detect(self, encoding: Encoding) -> Output:
        return self.head(encoding.memory, encoding.extras["boundaries"])


def bam_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    quality: float = 2.0,
    boundary: float = 1.0,
    text_positions: int = 0,
    moments: bool = True,
    official_batch_faults: bool = False,
) -> BamDetr:
    """BAM-DETR (Lee and Byun, 2024, arXiv 2312.00083).

    Args:
        quality: weight of predicting each span's overlap, by which spans are then ranked; 0: not predicted, and spans
            are ranked by class.
        boundary: weight of the boundary loss; 0: none.
        text_positions: number of learned word positions; 0: words have none, as published.
        moments: learn moments; False for data that has saliency only (TVSum).
        official_batch_faults: see `BamDetrEncoder`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; BAM-DETR has no clip indicator")
    return BamDetr(
        encoder=_encoder(sizes, weights, boundary > 0 and moments, text_positions, official_batch_faults),
        head=_head(sizes, quality > 0, official_batch_faults),
        criterion=_criterion(weights, quality) if moments else None,
        weights={"saliency": weights.saliency, "boundary": boundary},
        scores=_all_alike if quality else foreground,
    )


def _all_alike(logits: Tensor) -> Tensor:
    """Classes say nothing where the quality ranks: (B, Q, 2) -> (B, Q) ones."""
    return torch.ones_like(logits[..., 0])


def _encoder(
    sizes: Sizes, weights: LossWeights, boundary: bool, text_positions: int, official_batch_faults: bool
) -> BamDetrEncoder:
    video, text = projections(sizes)
    fusion = text_to_video(sizes, TextToVideoLayer, official_batch_faults=official_batch_faults)
    words = LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout) if text_positions else None
    both = BamDetrEncoder(
        video_projection=video,
        text_projection=text,
        fusion=fusion,
        encoder=encoder(sizes, activation=nn.PReLU),
        width=sizes.width,
        text_positions=words,
        saliency_margin=weights.saliency_margin,
        boundary_loss=boundary,
        official_batch_faults=official_batch_faults,
    )
    init_transformer(*fusion, both.start_tower, both.end_tower)
    return both


def _head(sizes: Sizes, quality: bool, official_batch_faults: bool) -> DualDecoder:
    layers = conditional_layers(sizes)

    def boundary_layer() -> BoundaryLayer:
        attention = BoundaryAttention(sizes.width, sizes.num_heads, official_batch_faults=official_batch_faults)
        network = feed_forward(sizes, nn.PReLU)
        return BoundaryLayer(attention=attention, feed_forward=network, width=sizes.width, dropout=sizes.dropout)

    pairs = [(boundary_layer(), boundary_layer()) for _ in layers]
    guide = AnchoredSpanGuide(sizes.width)
    init_transformer(*layers, *(layer for pair in pairs for layer in pair), guide)
    decoder = DualDecoder(
        layers=layers,
        boundary_layers=pairs,
        guide=guide,
        num_queries=sizes.num_queries,
        width=sizes.width,
        quality=quality,
    )
    for move in decoder.moves.modules():
        if isinstance(move, MLP):
            zero_last_layer(move)
    return decoder


def _clipped(boxes: Tensor) -> Tensor:
    """Spans cut off at the ends of the video; centre and width, before and after."""
    return to_center_size(to_corners(boxes).clamp(0, 1))


def _corner_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    clipped = to_corners(boxes).clamp(0, 1), to_corners(target_boxes).clamp(0, 1)
    return l1_cost(logits, clipped[0], labels, clipped[1])


def _overlap_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    return giou_cost(logits, _clipped(boxes), labels, _clipped(target_boxes))


def _criterion(weights: LossWeights, quality: float) -> Criterion:
    """Spans by their ends; matched by what lies within the video; quality of every span."""
    matcher = HungarianMatcher(
        {"class": softmax_class_cost, "l1": _corner_cost, "giou": _overlap_cost},
        {"class": weights.cost_class, "l1": weights.cost_l1, "giou": weights.cost_giou},
    )
    terms: dict[str, LossTerm] = {
        "l1": corner_l1,
        "giou": partial(giou_loss, normalize="mean"),
        "class": partial(cross_entropy, background_weight=weights.background, normalize="queries"),
    }
    values = {"l1": weights.l1, "giou": weights.giou, "class": weights.class_}
    if quality:
        terms, values = {**terms, "quality": quality_regression}, {**values, "quality": quality}
    return Criterion(matcher=matcher, terms=terms, weights=values, auxiliary=weights.auxiliary)
