"""FlashVTG with its published numbers."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from momentdetr.retrieval.encoders.cg_attention import DummyAttention, DummyFusionLayer, drop_paths
from momentdetr.retrieval.encoders.flashvtg import FlashVtgEncoder
from momentdetr.retrieval.encoders.r2_tuning import WordPooling
from momentdetr.retrieval.mixed_points import ConfidenceTower, FlashVtg, MixedPointHead
from momentdetr.retrieval.points import PointCriterion, PointTower, Pyramid
from momentdetr.retrieval.presets_points import single_class
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import LossWeights, Sizes, encoder, projections, text_to_video

FLASHVTG_WEIGHTS = {"class_": 5.0, "l1": 1.0, "saliency": 0.8}
"""Of the focal loss, of distances, and of saliency (QVHighlights, SlowFast and CLIP features)."""


def flashvtg(
    sizes: Sizes,
    weights: LossWeights,
    *,
    num_dummies: int = 40,
    dummy_layers: int = 2,
    dummy_heads: int = 8,
    fusion_layers: int = 6,
    strides: tuple[int, ...] = (1, 2, 4, 8),
    num_convolutions: int = 3,
    num_linear: int = 3,
    kernel: int = 3,
    contrast: float = 0.1,
    score: float = 4.0,
    attention: float = 1.0,
    text_positions: int = 0,
    max_moments: int = 50,
    official_batch_faults: bool = False,
) -> FlashVtg:
    """FlashVTG (Cao et al., 2025, arXiv 2412.13441).

    Of `sizes` the number of queries and of decoder layers do not count.

    Args:
        num_dummies: tokens that take the attention that no word deserves.
        dummy_layers: in which dummies read the words.
        dummy_heads: of those layers.
        fusion_layers: in which clips read dummies and words.
        strides: of the pyramid, in clips.
        num_convolutions: of the class towers.
        num_linear: of the class towers.
        kernel: of the class towers.
        contrast: weight of the contrast of clips with the sentence.
        score: weight of learning annotated scores.
        attention: weight of attention to words within the saliency loss.
        text_positions: number of learned word positions; 0: words have none, as published.
        max_moments: how many of the best points are answers.
        official_batch_faults: see `FlashVtgEncoder` and `Pyramid`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; FlashVTG has no clip indicator")
    width = sizes.width
    video, text = projections(sizes)
    fusion = text_to_video(
        sizes,
        DummyFusionLayer,
        attention=DummyAttention,
        count=fusion_layers,
        official_batch_faults=official_batch_faults,
    )
    clips = encoder(sizes, activation=nn.PReLU)
    for stack in (*fusion, clips):
        for parameter in stack.parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
    words = LearnedTextPositions(text_positions, width, sizes.input_dropout) if text_positions else None

    def tower() -> ConfidenceTower:
        return ConfidenceTower(width, num_convolutions=num_convolutions, num_linear=num_linear, kernel=kernel)

    model = FlashVtg(
        encoder=FlashVtgEncoder(
            video_projection=video,
            text_projection=text,
            dummy_encoder=encoder(
                replace(sizes, encoder_layers=dummy_layers, num_heads=dummy_heads), activation=nn.PReLU
            ),
            fusion=fusion,
            encoder=clips,
            pooling=WordPooling(width),
            width=width,
            num_dummies=num_dummies,
            text_positions=words,
            saliency_margin=weights.saliency_margin,
            attention_weight=attention,
            official_batch_faults=official_batch_faults,
        ),
        head=MixedPointHead(
            pyramid=Pyramid(width, strides, official_batch_faults=official_batch_faults),
            classes=tower(),
            confidence=tower(),
            offsets=PointTower(width, 2),
            official_batch_faults=official_batch_faults,
        ),
        criterion=PointCriterion(class_=weights.class_, l1=weights.l1),
        weights={"saliency": weights.saliency, "contrast": contrast},
        scores=single_class,
        max_moments=max_moments,
        score_weight=score,
    )
    drop_paths(model, sizes.dropout)
    return model
