"""Retrievers that predict at points instead of by queries, with their published numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.attention import Attention
from momentdetr.detr.mlp import FeedForward
from momentdetr.retrieval.encoders.r2_tuning import TEMPERATURE, R2TuningEncoder, RefiningLayer, WordPooling
from momentdetr.retrieval.point_retriever import PointRetriever
from momentdetr.retrieval.points import PointCriterion, PointHead, PointTower, Pyramid
from momentdetr.retrieval.projection import Projection
from momentdetr.retrieval.stacks import LossWeights, Sizes

R2_TUNING_WEIGHTS = {"class_": 1.0, "l1": 0.2, "saliency": 0.1}
"""Of the focal loss, of distances, and of the contrast of clips."""


def r2_tuning(
    sizes: Sizes,
    weights: LossWeights,
    *,
    num_layers: int = 4,
    stored_layers: int = 4,
    num_patches: int = 50,
    strides: tuple[int, ...] = (1, 2, 4, 8),
    calibration: float = 0.1,
    temperature: float = TEMPERATURE,
    max_moments: int = 50,
    merge: bool = True,
    official_batch_faults: bool = False,
) -> PointRetriever:
    """R2-Tuning (Liu et al., 2024, arXiv 2404.00801), on stored features of a frozen CLIP's last layers.

    Of `sizes` the number of queries and of decoder layers do not count; there is one refining layer, used again for
    each of CLIP's.

    Args:
        num_layers: how many of CLIP's layers are read.
        stored_layers: how many a clip's vector holds: `video_dim` is this times patches times CLIP's width.
        num_patches: of a frame, the class token first.
        strides: of the pyramid, in clips.
        calibration: weight of contrasts between samples and between layers.
        temperature: of the contrast of clips.
        max_moments: how many of the best points are answers.
        merge: multiply saliency by class scores.
        official_batch_faults: see `R2TuningEncoder` and `Pyramid`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; R2-Tuning has no clip indicator")
    patch_dim, rest = divmod(sizes.video_dim, stored_layers * num_patches)
    word_dim, left = divmod(sizes.text_dim, stored_layers)
    if rest or left:
        raise ValueError(
            f"video_dim {sizes.video_dim} and text_dim {sizes.text_dim} do not hold {stored_layers} layers of "
            f"{num_patches} patches"
        )
    width = sizes.width
    layer = RefiningLayer(
        cross=Attention(width, sizes.num_heads, sizes.dropout),
        own=Attention(width, sizes.num_heads, sizes.dropout),
        feed_forward=FeedForward(width, sizes.feed_forward, dropout=sizes.dropout),
        width=width,
        dropout=sizes.dropout,
    )
    projected: dict[str, Any] = {"num_layers": sizes.input_layers, "dropout": sizes.input_dropout}
    encoder = R2TuningEncoder(
        video_projection=Projection(patch_dim + 2, width, **projected),
        text_projection=Projection(word_dim, width, **projected),
        layer=layer,
        pooling=WordPooling(width),
        width=width,
        num_layers=num_layers,
        stored_layers=stored_layers,
        num_patches=num_patches,
        temperature=temperature,
        official_batch_faults=official_batch_faults,
    )
    for attention in (layer.cross, layer.own):
        for linear in (attention.query, attention.key, attention.value, attention.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
    return PointRetriever(
        encoder=encoder,
        head=PointHead(
            pyramid=Pyramid(width, strides, official_batch_faults=official_batch_faults),
            classes=PointTower(width, 1),
            offsets=PointTower(width, 2),
            official_batch_faults=official_batch_faults,
        ),
        criterion=PointCriterion(class_=weights.class_, l1=weights.l1),
        weights={"saliency": weights.saliency, "video_contrast": calibration, "layer_contrast": calibration},
        scores=single_class,
        max_moments=max_moments,
        merge=merge,
    )


def single_class(logits: Tensor) -> Tensor:
    """Confidence of one sigmoid class: (B, N, 1) -> (B, N)."""
    return torch.sigmoid(logits[..., 0])
