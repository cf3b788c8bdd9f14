"""Compositions: the text-video encoder of one model with the decoder of another, over a pyramid of clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from momentdetr.detr import assembly
from momentdetr.detr.types import Output
from momentdetr.retrieval.composed import ComposedRetriever, TemporalHead
from momentdetr.retrieval.decoding import DECODERS, Decoding, detector, span_criterion
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presets_bam_detr import bam_detr
from momentdetr.retrieval.presets_cg_detr import cg_detr
from momentdetr.retrieval.presets_eatr import eatr
from momentdetr.retrieval.presets_flashvtg import flashvtg
from momentdetr.retrieval.presets_moment_detr import moment_detr
from momentdetr.retrieval.presets_points import single_class
from momentdetr.retrieval.presets_qd_detr import qd_detr
from momentdetr.retrieval.presets_taskweave import taskweave
from momentdetr.retrieval.presets_tr_detr import tr_detr
from momentdetr.retrieval.presets_uvcom import uvcom
from momentdetr.retrieval.stacks import LossWeights, Sizes
from momentdetr.retrieval.temporal import temporal_levels
from momentdetr.retrieval.types import Encoding

COMPOSED_WEIGHTS = {"l1": 5.0, "giou": 2.0, "class_": 1.0, "cost_l1": 5.0, "cost_giou": 2.0, "cost_class": 2.0}
"""DINO's."""

LONG = 7
"""Levels for videos of hours: a cell of the coarsest is 64 clips."""

Feedback = Callable[[Encoding, Output, Tensor], Encoding]


def composed(
    sizes: Sizes,
    weights: LossWeights,
    *,
    encoder: str = "qd_detr",
    encoder_options: Mapping[str, Any] | None = None,
    decoder: str = "dino",
    decoding: Mapping[str, Any] | None = None,
    strides: Sequence[float] = (1, 2, 4, 8),
    level_layers: int = 2,
    num_points: int = 4,
    recompute: bool = False,
) -> ComposedRetriever:
    """Any text-video encoder with any decoder of the family.

    The encoder keeps its own losses and their weights; moments have one class, "foreground".

    Args:
        encoder: a name of `ENCODERS`.
        encoder_options: of its preset.
        decoder: a name of `DECODERS`.
        decoding: what differs from that row, see `Decoding`.
        strides: of the pyramid's levels, in clips; where attention is deformable.
        level_layers: of deformable self-attention over all levels, before decoding; 0: none.
        num_points: that deformable attention looks at, per head and level.
        recompute: forget the inner results of layers whose cost grows with the video, and compute them again for the
            gradient; of the head. (`qd_detr` has the same option for the encoder.)
    """
    row = _row(decoder, decoding or {}, strides)
    base = _base(encoder, sizes, weights, encoder_options or {})
    levels = None
    if row.attention == "deformable":
        levels = temporal_levels(sizes, strides, level_layers, num_points=num_points, recompute=recompute)
    detr = detector(row, _of_decoder(sizes, len(strides), num_points), float(strides[0]))
    return ComposedRetriever(
        encoder=base.encoder,
        head=TemporalHead(detr, levels),
        criterion=span_criterion(row, weights),
        weights=base.weights,
        scores=single_class,
        indicator=base.indicator,
        feedback=None if base.feedback is None else _as_two_classes(base.feedback),
    )


def _woven(sizes: Sizes, weights: LossWeights, **options: Any) -> MomentRetriever:
    """TaskWeave without its balance of losses and without its late start: highlights help moments, or the other way."""
    base = taskweave(sizes, weights, **options)
    base.weights = {"saliency": weights.saliency}
    if base.encoder.direction == "moments_first":
        base.feedback = lambda encoding, output, mask: base.encoder.feed_back(encoding, output.last.boxes)
    return base


def _without_queries(sizes: Sizes, weights: LossWeights, **options: Any) -> MomentRetriever:
    """UVCOM; its slots and anchors start its own decoder, and would never learn in front of another one."""
    base = uvcom(sizes, weights, **options)
    base.encoder.slots.requires_grad_(False)
    for unused in (base.encoder.anchors, base.encoder.query_content):
        unused.requires_grad_(False)
    return base


ENCODERS: dict[str, Callable[..., MomentRetriever]] = {
    "moment_detr": moment_detr,
    "qd_detr": qd_detr,
    "cg_detr": cg_detr,
    "tr_detr": tr_detr,
    "uvcom": _without_queries,
    "eatr": eatr,
    "taskweave": _woven,
    "bam_detr": bam_detr,
    "flashvtg": flashvtg,
}
"""The models whose encoder can be had."""

COMPOSITIONS: dict[str, Callable[..., ComposedRetriever]] = {
    "composed": composed,
    "qd_dab": partial(composed, encoder="qd_detr", decoder="dab"),
    "qd_dn": partial(composed, encoder="qd_detr", decoder="dn"),
    "qd_deformable": partial(composed, encoder="qd_detr", decoder="deformable"),
    "qd_dino": partial(composed, encoder="qd_detr", decoder="dino"),
    "qd_co_dino": partial(composed, encoder="qd_detr", decoder="co_dino"),
    "cg_dino": partial(composed, encoder="cg_detr", decoder="dino"),
    "cg_co_dino": partial(composed, encoder="cg_detr", decoder="co_dino"),
    "linear_dino": partial(
        composed,
        encoder="qd_detr",
        encoder_options={"levels": LONG, "recompute": True},
        decoder="dino",
        strides=tuple(2**level for level in range(LONG)),
        level_layers=0,
        recompute=True,
    ),
}
"""Preset -> builder. `linear_dino` is for videos of hours: all its parts cost linearly."""


def _base(name: str, sizes: Sizes, weights: LossWeights, options: Mapping[str, Any]) -> MomentRetriever:
    """The model whose encoder, losses and weights are taken."""
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}, expected one of {', '.join(ENCODERS)}")
    return ENCODERS[name](sizes, weights, **options)


def _row(name: str, changes: Mapping[str, Any], strides: Sequence[float]) -> Decoding:
    known = [field.name for field in fields(Decoding)]
    unknown = sorted(set(changes) - set(known))
    if name not in DECODERS or unknown:
        wrong, right = (f"decoder {name!r}", DECODERS) if name not in DECODERS else (f"decoding {unknown[0]!r}", known)
        raise ValueError(f"unknown {wrong}, expected one of {', '.join(right)}")
    row = replace(DECODERS[name], **changes)
    if row.collaborative and any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ValueError(f"collaborative heads need strides that double, found {tuple(strides)}")
    return row


def _of_decoder(sizes: Sizes, num_levels: int, num_points: int) -> assembly.Sizes:
    return assembly.Sizes(
        sizes.width,
        sizes.num_heads,
        sizes.feed_forward,
        decoder_layers=sizes.decoder_layers,
        num_queries=sizes.num_queries,
        dropout=sizes.dropout,
        num_levels=num_levels,
        num_points=num_points,
        group_norm=math.gcd(32, sizes.width, sizes.width // 8),  # of eight channels, as at 256
    )


def _as_two_classes(feedback: Feedback) -> Feedback:
    """What was written for foreground and background, given one class."""

    def told(encoding: Encoding, output: Output, mask: Tensor) -> Encoding:
        *earlier, last = output.layers
        logits = torch.cat([last.logits, torch.zeros_like(last.logits)], -1)  # softmax of these is the sigmoid
        return feedback(encoding, replace(output, layers=(*earlier, replace(last, logits=logits))), mask)

    return told
