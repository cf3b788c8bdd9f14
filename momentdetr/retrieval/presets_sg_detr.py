"""SG-DETR with its published numbers.

No recording of the official model was to be had. The parts are proved one by one against plain loops written from its
description, and the sizes by the published count of parameters; the whole has not been compared with the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from momentdetr.detr.attention import ConditionalCrossAttention
from momentdetr.detr.decoder import DecoderLayer, Head
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.encoder import EncoderLayer
from momentdetr.detr.initialization import init_transformer, prior_bias, zero_last_layer
from momentdetr.detr.losses import Criterion, giou_loss
from momentdetr.detr.mlp import MLP
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.proposals import ProposalHead, ProposedQueries, by_first_class
from momentdetr.detr.types import LossTerm
from momentdetr.retrieval.encoders.cg_attention import DropPath, DummyAttention
from momentdetr.retrieval.encoders.sg_detr import SgDetrEncoder
from momentdetr.retrieval.encoders.sg_detr_answers import AnswerRule, Heads, SgDetr
from momentdetr.retrieval.encoders.sg_detr_head import ChainedSelfAttention, QualityDecoder, ScaledGuide, SgDetrHead
from momentdetr.retrieval.encoders.sg_detr_losses import (
    QualityMatcher,
    background_binary,
    claimed_quality,
    edge_l1,
    smooth_l1,
)
from momentdetr.retrieval.encoders.sg_detr_points import LentQueries, SpanHead
from momentdetr.retrieval.encoders.sg_detr_saliency import (
    GuidedAttention,
    GuidedFusion,
    GuidedLayer,
    LearnedPooling,
    LocalSaliency,
    PoolingLayer,
    Summary,
)
from momentdetr.retrieval.presets_points import single_class
from momentdetr.retrieval.pyramid import TemporalPyramid
from momentdetr.retrieval.stacks import LossWeights, Sizes, encoder, feed_forward, projections

SG_DETR_WEIGHTS = {"class_": 5.0, "saliency_margin": 0.15}
"""Of the class term and of the saliency hinge; the others are `LossWeights`' own."""

STRIDES = (0.5, 1.0, 2.0, 4.0)  # clips per cell of each level
PROPOSED = (0.05, 0.2, 0.4, 0.85)  # width of each level's proposals
ANCHORS = (4.0, 16.0, 32.0, 64.0)  # clips of each level's anchors
EPS = 1e-3  # of the inverse sigmoid
MARGIN = 0.0125  # how near to 0 or 1 a proposal's centre or width may be
SHARED = 0.5  # weight of proposals, collaborative queries and denoising groups
POINT_TERMS = {"class": 2.0, "giou": 2.0, "span": 0.1, "centerness": 0.5}


def sg_detr(
    sizes: Sizes,
    weights: LossWeights,
    *,
    fusion_layers: int = 2,
    pooling_layers: int = 2,
    summary_layers: int = 1,
    drop_path: float = 0.15,
    prior: float = 0.35,
    nearest: int = 12,
    quality: float = 1.0,
    alignment: float = 1.0,
    membership: float = 3.0,
    collaborative: bool = True,
    denoising: bool = False,
    cut_videos: bool = True,
    answers: Heads = "fused",
    official_batch_faults: bool = False,
) -> SgDetr:
    """SG-DETR (Gordeev et al., 2024, arXiv 2410.01615); its QVHighlights model has 3 encoder and 3 decoder layers and
    25 queries.

    Args:
        fusion_layers: in which clips read words.
        pooling_layers: in which a sentence reads its words.
        summary_layers: of the encoders that sum up words, and clips; losses only.
        drop_path: probability that a sample's branch is dropped; `sizes.dropout` is of attention weights and within
            feed-forward networks.
        prior: probability of a moment at the start.
        nearest: candidates per moment and level of the one-to-many head.
        quality: weight of the quality that queries claim, in the loss and in the matching cost.
        alignment: weight of moments against sentences.
        membership: weight of clips against their moment.
        collaborative: lend the decoder what the one-to-many head found.
        denoising: also restore noised moments; off in the published configurations.
        cut_videos: see `SgDetrEncoder`.
        answers: of which heads, see `AnswerRule`.
        official_batch_faults: see `SgDetrEncoder`, `TemporalPyramid` and `SpanHead`; for official checkpoints only.
    """
    if weights.indicator:
        raise ValueError("weights.indicator is for qd_detr; SG-DETR has no clip indicator")
    options = {"cut_videos": cut_videos, "official_batch_faults": official_batch_faults}
    model = SgDetr(
        encoder=_encoder(sizes, weights, fusion_layers, pooling_layers, summary_layers, drop_path, options),
        head=SgDetrHead(
            pyramid=TemporalPyramid(sizes.width, STRIDES, official_batch_faults=official_batch_faults),
            queries=_proposed_queries(sizes, prior),
            decoder=_decoder(sizes, prior),
            points=SpanHead(
                sizes.width,
                STRIDES,
                ANCHORS,
                nearest=nearest,
                prior=prior,
                weights=POINT_TERMS,
                official_batch_faults=official_batch_faults,
            ),
            lending=LentQueries(sizes.width, CenterSize(EPS)) if collaborative else None,
            denoising=_denoising(sizes.width) if denoising else None,
            lent_terms=_plain_terms(weights, edge_l1),
            denoising_terms=_plain_terms(weights, smooth_l1),
        ),
        criterion=_criterion(weights, quality),
        weights={"saliency": weights.saliency, "ms_align": alignment, "momcls": membership},
        scores=single_class,
        answers=AnswerRule(answers),
    )
    _start_layers(model, drop_path)
    return model


def _encoder(
    sizes: Sizes,
    weights: LossWeights,
    fusion_layers: int,
    pooling_layers: int,
    summary_layers: int,
    drop_path: float,
    options: Mapping[str, bool],
) -> SgDetrEncoder:
    video, text = projections(sizes)
    _start_all(video.linears)
    _start_all(text.linears)
    pooling = [
        PoolingLayer(
            attention=DummyAttention(sizes.width, sizes.num_heads, sizes.dropout),
            feed_forward=feed_forward(sizes, nn.PReLU),
            width=sizes.width,
        )
        for _ in range(pooling_layers)
    ]
    fusion = [
        GuidedLayer(
            attention=GuidedAttention(sizes.width, sizes.num_heads, sizes.dropout),
            feed_forward=feed_forward(sizes, nn.PReLU),
            width=sizes.width,
            dropout=DropPath(drop_path),
        )
        for _ in range(fusion_layers)
    ]
    init_transformer(*fusion)
    sentence, moment = (
        Summary(encoder(replace(sizes, encoder_layers=summary_layers), activation=nn.PReLU), sizes.width)
        for _ in range(2)
    )
    return SgDetrEncoder(
        video_projection=video,
        text_projection=text,
        local=LocalSaliency(LearnedPooling(pooling, sizes.width)),
        fusion=GuidedFusion(fusion, sizes.width),
        encoder=encoder(sizes, activation=nn.PReLU),
        sentence=sentence,
        moment=moment,
        width=sizes.width,
        saliency_margin=weights.saliency_margin,
        **options,
    )


def _proposed_queries(sizes: Sizes, prior: float) -> ProposedQueries:
    width = sizes.width
    head = ProposalHead(
        width,
        classes=_rare(width, prior),
        boxes=_spans(width),
        quality=_rare(width, prior),
        size=PROPOSED,
        margin=MARGIN,
    )
    _start(head.project)
    assert isinstance(head.quality, nn.Linear)
    nn.init.constant_(head.quality.bias, 2 * math.log(prior / (1 - prior)))  # so the official code starts it
    return ProposedQueries(
        sizes.num_queries, width, 1, head=head, ranking=by_first_class, selection="features", weight=SHARED
    )


def _decoder(sizes: Sizes, prior: float) -> QualityDecoder:
    width = sizes.width
    attention = (width, sizes.num_heads, sizes.dropout)
    layers = [
        DecoderLayer(
            self_attention=ChainedSelfAttention(*attention),
            cross_attention=ConditionalCrossAttention(*attention, adds_positions=False),
            feed_forward=feed_forward(sizes, nn.PReLU),
            width=width,
        )
        for _ in range(sizes.decoder_layers)
    ]
    guide, quality = ScaledGuide(width), MLP(2 * width, width, width, 1)
    init_transformer(*layers)
    for part in (quality, *guide.modules()):
        if isinstance(part, MLP):
            _start_all(part.layers)
    return QualityDecoder(
        layers=layers,
        guide=guide,
        heads=[Head(_rare(width, prior), _spans(width))],
        norm=nn.LayerNorm(width),
        parametrization=CenterSize(EPS),
        refine_heads=[_spans(width)],
        quality=quality,
    )


def _denoising(width: int) -> Denoising:
    """Of about three hundred queries, half of them to be refused; all begin from one learned vector."""
    denoising = Denoising(
        1,
        width,
        groups=None,
        budget=150,
        contrastive=True,
        label_noise=0.0,
        box_noise=0.5,
        outer=1.25,
        indicator=False,
        unknown=False,
        label_rows=1,
        parametrization=CenterSize(EPS),
    )
    nn.init.normal_(denoising.labels.weight, std=0.01)
    return denoising


def _criterion(weights: LossWeights, quality: float) -> Criterion:
    return Criterion(
        matcher=QualityMatcher(l1=weights.cost_l1, giou=weights.cost_giou, class_=weights.cost_class, quality=quality),
        terms={
            "span": smooth_l1,
            "giou": partial(giou_loss, normalize="mean"),
            "class": partial(background_binary, background=weights.background),
            "quality": claimed_quality,
        },
        weights={"span": weights.l1, "giou": weights.giou, "class": weights.class_, "quality": quality},
        auxiliary=weights.auxiliary,
    )


def _plain_terms(weights: LossWeights, span: LossTerm) -> dict[str, tuple[float, LossTerm]]:
    """What judges queries that know their moment: their quality is not asked for, and background weighs as much."""
    return {
        "span": (weights.l1, span),
        "giou": (weights.giou, partial(giou_loss, normalize="mean")),
        "class": (weights.class_, partial(background_binary, background=1.0)),
    }


def _rare(width: int, prior: float) -> nn.Linear:
    classifier = nn.Linear(width, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    prior_bias(classifier, prior)
    return classifier


def _spans(width: int) -> MLP:
    """A box head that starts at its reference."""
    head = MLP(width, width, width, 2)
    _start_all(head.layers)
    zero_last_layer(head)
    return head


def _start(linear: nn.Module, gain: float = 1.0) -> None:
    assert isinstance(linear, nn.Linear)
    nn.init.xavier_uniform_(linear.weight, gain=gain)
    nn.init.zeros_(linear.bias)


def _start_all(linears: nn.ModuleList) -> None:
    """Linear layers with ReLU between."""
    *hidden, last = linears
    for linear in hidden:
        _start(linear, nn.init.calculate_gain("relu"))
    _start(last)


def _start_layers(model: SgDetr, drop_path: float) -> None:
    """Drop whole branches of samples; start feed-forward networks for their PReLU, and all layers of a stack alike."""
    kinds = (EncoderLayer, DecoderLayer, GuidedLayer, PoolingLayer)
    for stack in model.modules():
        if not isinstance(stack, nn.ModuleList) or not all(isinstance(layer, kinds) for layer in stack):
            continue
        for layer in stack:
            if isinstance(layer, EncoderLayer | DecoderLayer | GuidedLayer):
                layer.dropout = DropPath(drop_path)
                _start(layer.feed_forward.expand, nn.init.calculate_gain("leaky_relu", 0.25))
                _start(layer.feed_forward.contract)
            layer.load_state_dict(stack[0].state_dict())
