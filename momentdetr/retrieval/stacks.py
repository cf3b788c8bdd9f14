"""What the published retrievers have in common: sizes, loss weights, and the stacks built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from momentdetr.detr.assignment import HungarianMatcher, giou_cost, l1_cost, softmax_class_cost
from momentdetr.detr.attention import (
    Attention,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    CrossAttention,
    SelfAttention,
)
from momentdetr.detr.decoder import AnchorGuide, Decoder, DecoderLayer, FixedGuide, Head
from momentdetr.detr.elementwise import PReLU
from momentdetr.detr.encoder import DenseSelfAttention, Encoder, EncoderLayer
from momentdetr.detr.initialization import init_transformer
from momentdetr.detr.losses import Criterion, cross_entropy, giou_loss, l1
from momentdetr.detr.mlp import MLP, Activation, FeedForward
from momentdetr.detr.model import Detr
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.queries import AnchorQueries, LearnedQueries
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.projection import Projection

Fusion = TypeVar("Fusion", bound=TextToVideoLayer)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a retriever; the defaults are those of the published QVHighlights models.

    Args:
        video_dim: of a clip's vector, all streams and temporal endpoints.
        text_dim: of a token state.
        width: C.
        num_heads: H.
        feed_forward: hidden size of the feed-forward networks.
        encoder_layers: of self-attention (and of text-to-video attention, where there is one).
        decoder_layers: of the decoder.
        num_queries: Q.
        dropout: of the transformer.
        input_layers: of the projections from features to the width.
        input_dropout: of those projections.
        input_context: clips on each side that the video's projection sees; 0 in all published models.
    """

    video_dim: int
    text_dim: int
    width: int = 256
    num_heads: int = 8
    feed_forward: int = 1024
    encoder_layers: int = 2
    decoder_layers: int = 2
    num_queries: int = 10
    dropout: float = 0.1
    input_layers: int = 2
    input_dropout: float = 0.5
    input_context: int = 0


@dataclass(frozen=True)
class LossWeights:
    """Weights of loss terms and matching costs; the defaults are Moment-DETR's and QD-DETR's.

    Args:
        l1: of centre and width.
        giou: of overlap.
        class_: of foreground against background.
        saliency: of the encoder's saliency terms.
        indicator: of asking each clip whether it is inside a moment; 0 (not at all) in the published models.
        align: of the contrastive alignment, where there is one.
        background: weight of background queries within the class term.
        saliency_margin: of the saliency hinge.
        cost_l1: of the matcher.
        cost_giou: of the matcher.
        cost_class: of the matcher.
        auxiliary: judge every decoder layer.
    """

    l1: float = 10.0
    giou: float = 1.0
    class_: float = 4.0
    saliency: float = 1.0
    indicator: float = 0.0
    align: float = 0.02
    background: float = 0.1
    saliency_margin: float = 0.2
    cost_l1: float = 10.0
    cost_giou: float = 1.0
    cost_class: float = 4.0
    auxiliary: bool = True


def foreground(logits: Tensor) -> Tensor:
    """Confidence of two-class logits whose class 0 is foreground: (B, Q, 2) -> (B, Q)."""
    return logits.softmax(-1)[..., 0]


def projections(sizes: Sizes) -> tuple[Projection, Projection]:
    """Video's and text's."""
    make = partial(Projection, width=sizes.width, num_layers=sizes.input_layers, dropout=sizes.input_dropout)
    return make(sizes.video_dim, context=sizes.input_context), make(sizes.text_dim)


def feed_forward(sizes: Sizes, activation: Activation) -> FeedForward:
    if activation is nn.PReLU:
        activation = PReLU  # the same, faster
    return FeedForward(sizes.width, sizes.feed_forward, dropout=sizes.dropout, activation=activation)


def text_to_video(
    sizes: Sizes,
    layer: type[Fusion],
    *,
    attention: Callable[[int, int, float], nn.Module] = Attention,
    count: int | None = None,
    official_batch_faults: bool = False,
) -> list[Fusion]:
    """QD-DETR's layers in which clips read words, and those that grew out of them.

    Args:
        layer: `TextToVideoLayer`, or one made of it.
        attention: width, heads, dropout -> what a layer attends with.
        count: of layers; None: as many as the encoder has.
    """
    layers = [
        layer(
            attention=attention(sizes.width, sizes.num_heads, sizes.dropout),
            feed_forward=feed_forward(sizes, nn.PReLU),
            width=sizes.width,
            dropout=sizes.dropout,
            official_batch_faults=official_batch_faults,
        )
        for _ in range(sizes.encoder_layers if count is None else count)
    ]
    init_transformer(*layers)
    return layers


def encoder(sizes: Sizes, *, activation: Activation = nn.ReLU, pre_norm: bool = False) -> Encoder:
    """Self-attention layers; a final norm only where layers norm their inputs."""
    layers = [
        EncoderLayer(
            self_attention=DenseSelfAttention(sizes.width, sizes.num_heads, sizes.dropout),
            feed_forward=feed_forward(sizes, activation),
            width=sizes.width,
            dropout=sizes.dropout,
            pre_norm=pre_norm,
        )
        for _ in range(sizes.encoder_layers)
    ]
    stack = Encoder(layers, nn.LayerNorm(sizes.width) if pre_norm else None)
    init_transformer(stack)
    return stack


def dense_head(sizes: Sizes, *, pre_norm: bool, parametrization: CenterSize, box_size: int = 2) -> Detr:
    """Moment-DETR's: learned queries, dense attention, every layer predicts from scratch."""
    layers = [
        DecoderLayer(
            self_attention=SelfAttention(sizes.width, sizes.num_heads, sizes.dropout),
            cross_attention=CrossAttention(sizes.width, sizes.num_heads, sizes.dropout),
            feed_forward=feed_forward(sizes, nn.ReLU),
            width=sizes.width,
            dropout=sizes.dropout,
            pre_norm=pre_norm,
        )
        for _ in range(sizes.decoder_layers)
    ]
    init_transformer(*layers)
    decoder = Decoder(
        layers=layers,
        guide=FixedGuide(),
        heads=[Head(nn.Linear(sizes.width, 2), MLP(sizes.width, sizes.width, sizes.width, box_size))],
        norm=nn.LayerNorm(sizes.width),
        parametrization=parametrization,
    )
    return Detr(queries=LearnedQueries(sizes.num_queries, sizes.width), decoder=decoder)


def conditional_layers(sizes: Sizes) -> list[DecoderLayer]:
    """Conditional attention to queries and to clips; only the first layer adds positions to contents."""
    return [
        DecoderLayer(
            self_attention=ConditionalSelfAttention(sizes.width, sizes.num_heads, sizes.dropout),
            cross_attention=ConditionalCrossAttention(
                sizes.width, sizes.num_heads, sizes.dropout, adds_positions=index == 0
            ),
            feed_forward=feed_forward(sizes, nn.PReLU),
            width=sizes.width,
            dropout=sizes.dropout,
        )
        for index in range(sizes.decoder_layers)
    ]


def anchor_head(sizes: Sizes) -> Detr:
    """QD-DETR's and its descendants': DAB-DETR with D = 1.

    Two of their quirks: half the features per coordinate, so that attention is conditioned on centre and width, and
    references that are moved by a head of their own.
    """
    layers = conditional_layers(sizes)
    guide = AnchorGuide(1, sizes.width, attends_with="box")
    refine = MLP(sizes.width, sizes.width, sizes.width, 2)
    init_transformer(*layers, guide, refine)
    decoder = Decoder(
        layers=layers,
        guide=guide,
        heads=[Head(nn.Linear(sizes.width, 2), MLP(sizes.width, sizes.width, sizes.width, 2))],
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(eps=1e-3),
        refinement="look_forward_twice",
        refine_heads=[refine],
    )
    return Detr(queries=AnchorQueries(sizes.num_queries, sizes.width, anchor_size=2), decoder=decoder)


def moment_criterion(weights: LossWeights) -> Criterion:
    """Moment-DETR's: DETR's terms, averaged over queries and over matched numbers."""
    matcher = HungarianMatcher(
        {"class": softmax_class_cost, "l1": l1_cost, "giou": giou_cost},
        {"class": weights.cost_class, "l1": weights.cost_l1, "giou": weights.cost_giou},
    )
    return Criterion(
        matcher=matcher,
        terms={
            "l1": partial(l1, normalize="mean"),
            "giou": partial(giou_loss, normalize="mean"),
            "class": partial(cross_entropy, background_weight=weights.background, normalize="queries"),
        },
        weights={"l1": weights.l1, "giou": weights.giou, "class": weights.class_},
        auxiliary=weights.auxiliary,
    )
