"""EaTR with its published numbers."""

from __future__ import annotations

from torch import nn

from momentdetr.detr.attention import ConditionalCrossAttention, ConditionalSelfAttention
from momentdetr.detr.decoder import DecoderLayer, Head
from momentdetr.detr.initialization import init_transformer, zero_last_layer
from momentdetr.detr.mlp import MLP
from momentdetr.detr.model import Detr
from momentdetr.detr.parametrization import CenterSize
from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.encoders.eatr import EatrEncoder, event_matcher
from momentdetr.retrieval.encoders.eatr_decoder import EventDecoder, GatedDecoderLayer, ScaledGuide
from momentdetr.retrieval.encoders.slots import SlotAttention
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.projection import LearnedTextPositions
from momentdetr.retrieval.stacks import (
    LossWeights,
    Sizes,
    encoder,
    feed_forward,
    foreground,
    moment_criterion,
    projections,
)


def eatr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    slot_iterations: int = 3,
    events: float = 3.0,
    text_positions: int = 0,
    alignment_size: int = 0,
    temperature: float = 0.07,
    official_batch_faults: bool = False,
) -> MomentRetriever:
    """EaTR (Jang et al., 2023, arXiv 2308.06947); its official model has 3 encoder and 3 decoder layers.

    Args:
        slot_iterations: in which events are found.
        events: weight of the pseudo events, times the weights of the spans' terms.
        text_positions: number of learned word positions; 0: words have none, as published.
        alignment_size: size of the space of a contrastive alignment; 0: none, as published.
        temperature: of the alignment.
        official_batch_faults: see `EatrEncoder`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; EaTR has no clip indicator")
    video, text = projections(sizes)
    slots = SlotAttention(
        sizes.width, hidden=(sizes.width,), iterations=slot_iterations, official_batch_faults=official_batch_faults
    )
    init_transformer(slots)
    own = EatrEncoder(
        video_projection=video,
        text_projection=text,
        encoder=encoder(sizes),
        slots=slots,
        event_matcher=event_matcher(weights.cost_l1, weights.cost_giou, signed=official_batch_faults),
        width=sizes.width,
        num_queries=sizes.num_queries,
        text_positions=LearnedTextPositions(text_positions, sizes.width, sizes.input_dropout)
        if text_positions
        else None,
        saliency_margin=weights.saliency_margin,
        official_batch_faults=official_batch_faults,
    )
    zero_last_layer(own.event_spans)
    return MomentRetriever(
        encoder=own,
        head=Detr(queries=nn.Identity(), decoder=_decoder(sizes)),  # the encoder gives the queries
        criterion=moment_criterion(weights),
        weights={
            "saliency": weights.saliency,
            "align": weights.align,
            "event_span": events * weights.l1,
            "event_giou": events * weights.giou,
        },
        scores=foreground,
        align=ContrastiveAlignment(sizes.width, alignment_size, temperature) if alignment_size else None,
    )


def _decoder(sizes: Sizes) -> EventDecoder:
    layers = [_layer(sizes, index) for index in range(sizes.decoder_layers)]
    guide = ScaledGuide(1, sizes.width)
    init_transformer(*layers, guide)
    spans = MLP(sizes.width, sizes.width, sizes.width, 2)
    zero_last_layer(spans)
    return EventDecoder(
        layers=layers,
        guide=guide,
        heads=[Head(nn.Linear(sizes.width, 2), spans)],
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(eps=1e-3),
        refinement="look_forward_twice",
    )


def _layer(sizes: Sizes, index: int) -> DecoderLayer:
    make = GatedDecoderLayer if index == 0 else DecoderLayer
    return make(
        self_attention=ConditionalSelfAttention(sizes.width, sizes.num_heads, sizes.dropout),
        cross_attention=ConditionalCrossAttention(
            sizes.width, sizes.num_heads, sizes.dropout, adds_positions=index == 0
        ),
        feed_forward=feed_forward(sizes, nn.ReLU),
        width=sizes.width,
        dropout=sizes.dropout,
    )
