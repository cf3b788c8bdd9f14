"""CG-DETR with its published numbers."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.encoders.cg_attention import DummyAttention, DummyFusionLayer, Prompts, drop_paths
from momentdetr.retrieval.encoders.cg_detr import CgDetrEncoder
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

_TEXT_HEADS = 8  # of the encoders of words and dummies, whatever the model's number of heads


def cg_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    fusion_layers: int = 2,
    dummy_layers: int = 2,
    sentence_layers: int = 1,
    moment_layers: int = 1,
    num_dummies: int = 45,
    num_prompts: int = 10,
    chosen_prompts: int = 1,
    alignment: float = 1.0,
    distillation: float = 1.0,
    attention: float = 1.0,
    foreign_pairs: bool = True,
    cut_videos: bool = True,
    text_positions: int = 0,
    alignment_size: int = 0,
    temperature: float = 0.07,
    moments: bool = True,
    official_batch_faults: bool = False,
) -> MomentRetriever:
    """CG-DETR (Moon et al., 2023, arXiv 2311.08835); its QVHighlights model has 3 encoder and 3 decoder layers.

    Args:
        fusion_layers: in which clips read words.
        dummy_layers: of the encoder of dummies and words.
        sentence_layers: of the encoder that sums up words, or dummies.
        moment_layers: of the encoder that sums up clips.
        num_dummies: that take attention from words.
        num_prompts: learned parts of the summary of a video.
        chosen_prompts: how many of them a sample takes.
        alignment: weight of moments against sentences.
        distillation: weight of attention as moments see words, and of the dummies' difference.
        attention: weight of attention as saliency, within the saliency term.
        foreign_pairs: see `CgDetrEncoder`.
        cut_videos: see `CgDetrEncoder`.
        text_positions: number of learned word positions; 0: words have none, as published.
        alignment_size: size of the space of a contrastive alignment; 0: none, as published.
        temperature: of the alignment.
        moments: learn moments; False for data that has saliency only (TVSum).
        official_batch_faults: see `CgDetrEncoder`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; CG-DETR has no clip indicator")
    video, text = projections(sizes)
    of_text = replace(sizes, num_heads=_TEXT_HEADS)
    fusion = text_to_video(
        sizes,
        DummyFusionLayer,
        attention=DummyAttention,
        count=fusion_layers,
        official_batch_faults=official_batch_faults,
    )
    positions = LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout) if text_positions else None
    model = MomentRetriever(
        encoder=CgDetrEncoder(
            video_projection=video,
            text_projection=text,
            fusion=fusion,
            encoder=encoder(sizes, activation=nn.PReLU),
            dummy_encoder=encoder(replace(of_text, encoder_layers=dummy_layers), activation=nn.PReLU),
            sentence_encoder=encoder(replace(of_text, encoder_layers=sentence_layers), activation=nn.PReLU),
            moment_encoder=encoder(replace(sizes, encoder_layers=moment_layers), activation=nn.PReLU),
            prompts=Prompts(num_prompts, chosen_prompts, sizes.width),
            num_dummies=num_dummies,
            width=sizes.width,
            text_positions=positions,
            saliency_margin=weights.saliency_margin,
            attention_weight=attention,
            foreign_pairs=foreign_pairs,
            cut_videos=cut_videos,
            moments=moments,
            official_batch_faults=official_batch_faults,
        ),
        head=anchor_head(sizes),
        criterion=moment_criterion(weights) if moments else None,
        weights={
            "saliency": weights.saliency,
            "align": weights.align,
            "ms_align": alignment,
            "distill": distillation,
            "orthogonal": distillation,
        },
        scores=foreground,
        align=ContrastiveAlignment(sizes.width, alignment_size, temperature) if alignment_size else None,
    )
    drop_paths(model, sizes.dropout)
    return model
