"""UVCOM with its published numbers."""

from __future__ import annotations

from torch import nn

from momentdetr.detr.attention import Attention
from momentdetr.detr.decoder import Decoder
from momentdetr.detr.initialization import init_transformer
from momentdetr.detr.model import Detr
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.encoders.slots import SlotAttention
from momentdetr.retrieval.encoders.uvcom import UvcomEncoder
from momentdetr.retrieval.encoders.uvcom_parts import MovedDecoder
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import (
    LossWeights,
    Sizes,
    anchor_head,
    encoder,
    feed_forward,
    foreground,
    moment_criterion,
    projections,
)


def uvcom(
    sizes: Sizes,
    weights: LossWeights,
    *,
    num_topics: int = 5,
    num_clusters: int = 30,
    cluster_iterations: int = 5,
    slot_iterations: int = 5,
    slot_size: int = 1024,
    likeness_size: int = 1024,
    similarity: float = 1.0,
    hard_negatives_from: int = 80,
    text_positions: int = 0,
    inverted_walk: bool = True,
    moments: bool = True,
    official_batch_faults: bool = False,
) -> MomentRetriever:
    """UVCOM (Xiao et al., 2024, arXiv 2311.16464); its models have 3 encoder and 3 decoder layers and 30 queries.

    Args:
        num_topics: clusters of words.
        num_clusters: of clips.
        cluster_iterations: of both.
        slot_iterations: in which the queries' content is found.
        slot_size: between the layers of the slots' network.
        likeness_size: between the layers of the networks that compare videos and texts.
        similarity: weight of that comparison.
        hard_negatives_from: see `UvcomEncoder`.
        text_positions: number of learned word positions; 0: words have none, as published.
        inverted_walk: see `UvcomEncoder`; False for Lighthouse's checkpoints only.
        moments: learn moments; False for data that has saliency only (TVSum).
        official_batch_faults: see `UvcomEncoder`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; UVCOM has no clip indicator")
    video, text = projections(sizes)
    slots = SlotAttention(
        sizes.width,
        hidden=(slot_size, slot_size),
        iterations=slot_iterations,
        official_batch_faults=official_batch_faults,
    )
    own = UvcomEncoder(
        video_projection=video,
        text_projection=text,
        fusion=_fusion(sizes, official_batch_faults),
        words_fusion=_fusion(sizes, official_batch_faults),
        encoder=encoder(sizes, activation=nn.PReLU),
        slots=slots,
        width=sizes.width,
        num_queries=sizes.num_queries,
        num_topics=num_topics,
        num_clusters=num_clusters,
        cluster_iterations=cluster_iterations,
        likeness_size=likeness_size,
        hard_negatives_from=hard_negatives_from,
        text_positions=LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout)
        if text_positions
        else None,
        saliency_margin=weights.saliency_margin,
        inverted_walk=inverted_walk,
        official_batch_faults=official_batch_faults,
    )
    init_transformer(slots, own.sentence, own.local, own.video_likeness, own.text_likeness)
    return MomentRetriever(
        encoder=own,
        head=Detr(queries=nn.Identity(), decoder=_moved(anchor_head(sizes).decoder)),  # the encoder gives the queries
        criterion=moment_criterion(weights) if moments else None,
        weights={"saliency": weights.saliency, "similarity": similarity},
        scores=foreground,
    )


def _fusion(sizes: Sizes, official_batch_faults: bool) -> list[TextToVideoLayer]:
    layers = [
        TextToVideoLayer(
            attention=Attention(sizes.width, sizes.num_heads, sizes.dropout),
            feed_forward=feed_forward(sizes, nn.PReLU),
            width=sizes.width,
            dropout=sizes.dropout,
            official_batch_faults=official_batch_faults,
        )
        for _ in range(sizes.encoder_layers)
    ]
    init_transformer(*layers)
    return layers


def _moved(usual: Decoder) -> MovedDecoder:
    """The same parts, put together in the other way."""
    return MovedDecoder(
        layers=list(usual.layers),
        guide=usual.guide,
        heads=list(usual.heads),  # type: ignore[arg-type]
        norm=usual.norm,
        parametrization=usual.parametrization,
        refinement=usual.refinement,
        refine_heads=None if usual.refine_heads is None else list(usual.refine_heads),
    )
