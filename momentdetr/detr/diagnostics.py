"""Instruments that papers of the family look through: pure functions of what a detector did.

Who answers for whom, and how that changes; how far anchors are from boxes; what the encoder's features tell apart;
training with frozen queries. What attention looks at stands in `diagnostics_attention`, and can be imported from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.diagnostics_attention import (
    AttentionMaps,
    Glance,
    Sampling,
    attention_maps,
    sampling,
    watch,
)
from momentdetr.detr.model import Detector, Detr
from momentdetr.detr.types import Assignment, Memory, Output, Targets

__all__ = [
    "AttentionMaps",
    "Discriminability",
    "Glance",
    "Sampling",
    "anchor_offsets",
    "attention_maps",
    "box_offsets",
    "discriminability",
    "feature_scores",
    "freeze_queries",
    "instability",
    "match",
    "sampling",
    "target_of_query",
    "tokens_inside",
    "watch",
]


def match(detector: Detector, features: Sequence[Tensor], mask: Tensor, targets: Targets) -> Assignment:
    """Who answers for what, by the last layer's predictions and the criterion's matcher, evaluated as at inference.

    Args:
        features: maps (B, channels, *spatial), finest first.
        mask: (B, *spatial) of the input, True where real.
        targets: M of each sample.

    Returns:
        the assignment; the detector stays in the mode that it was in.
    """
    training = detector.training
    try:
        with torch.no_grad():
            said = detector.eval()(features, mask).last
    finally:
        detector.train(training)
    return detector.criterion.matcher(said, targets)


def target_of_query(assignment: Assignment, batch: int, num_queries: int) -> Tensor:
    """DN-DETR's index vector V: which target each query answers for, -1 for none -> (B, Q)."""
    found = torch.full((batch, num_queries), -1, dtype=torch.long, device=assignment.query.device)
    found[assignment.sample, assignment.query] = assignment.target
    return found


def instability(before: Assignment, after: Assignment, batch: int, num_queries: int) -> Tensor:
    """DN-DETR's IS (Li et al., 2022, arXiv 2203.01305): queries whose target changed between two epochs -> (B,).

    The paper's number of an epoch is the mean over all samples of a validation set. A target that moves from one query
    to another counts twice: one query lost it, one gained it.

    Args:
        before: the matching of an epoch or checkpoint; see `match`.
        after: the matching of a later one, of the same samples in the same order.
        batch: B.
        num_queries: Q.
    """
    changed = target_of_query(before, batch, num_queries) != target_of_query(after, batch, num_queries)
    return changed.sum(1)


def anchor_offsets(output: Output, assignment: Assignment, targets: Targets) -> Tensor:
    """From the anchor that each layer starts from to the target that it should find.

    The nearer the first anchors, the more locally the queries search, which DN-DETR says denoising teaches.

    Args:
        output: of a system with anchors or reference points.
        assignment: P pairs, of the last layer; see `match`.
        targets: M of each sample.

    Returns:
        (layers, P, A), target minus anchor in fractions of the input; A is D where a layer has points, else 2D.

    Raises:
        ValueError: the system has no anchors.
    """
    true = targets.boxes[assignment.sample, assignment.target]
    anchors = [anchor[assignment.sample, assignment.query] for anchor in _anchors(output)]
    return torch.stack([true[:, : anchor.shape[-1]] - anchor for anchor in anchors])


def box_offsets(output: Output) -> Tensor:
    """From the anchor that each layer starts from to the box that it predicts: what each layer adds.

    Returns:
        (layers, B, Q, A), box minus anchor in fractions of the input; A as in `anchor_offsets`.

    Raises:
        ValueError: the system has no anchors.
    """
    pairs = zip(_anchors(output), output.layers, strict=True)
    return torch.stack([said.boxes[..., : anchor.shape[-1]] - anchor for anchor, said in pairs])


def _anchors(output: Output) -> list[Tensor]:
    """Each layer's (B, Q, A), cut to the coordinates that all of them have."""
    if not output.references:
        raise ValueError("this system has no anchors: its queries carry positions only")
    size = min(anchor.shape[-1] for anchor in output.references)
    return [anchor[..., :size] for anchor in output.references]


@dataclass(frozen=True)
class Discriminability:
    """How well the encoder's features tell foreground from background.

    Args:
        thresholds: (S,) of the score.
        foreground: (S,) part of the foreground above each threshold (IoF).
        background: (S,) part of the background above it (IoB).
    """

    thresholds: Tensor
    foreground: Tensor
    background: Tensor


INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""What torch calls interpolation between the cells of a grid of that many axes."""


def feature_scores(memory: Memory) -> Tensor:
    """Co-DETR's discriminability score of each cell: how long its feature is, compared with the longest.

    The norms of a level are divided by the largest of the sample's valid ones; levels are brought to the finest grid
    (in the paper: to the image's pixels) by linear interpolation, and averaged.

    Args:
        memory: tokens (B, N, C) of all levels, after the encoder; padding counts as length zero.

    Returns:
        (B, N_0) in [0, 1], of the finest level's cells.
    """
    counts = [math.prod(shape) for shape in memory.level_shapes]
    valid = torch.ones_like(memory.tokens[..., 0], dtype=torch.bool) if memory.mask is None else memory.mask
    lengths = memory.tokens.norm(dim=-1).masked_fill(~valid, 0)
    scores = []
    for level, shape in zip(lengths.split(counts, 1), memory.level_shapes, strict=True):
        level = level / level.amax(1, keepdim=True).clamp(min=torch.finfo(level.dtype).tiny)
        mode, grid = INTERPOLATIONS[len(shape)], level.unflatten(1, shape)[:, None]
        scores.append(F.interpolate(grid, memory.level_shapes[0], mode=mode)[:, 0].flatten(1))
    return torch.stack(scores).mean(0)


def discriminability(memory: Memory, targets: Targets, num_thresholds: int = 51) -> Discriminability:
    """Co-DETR's IoF-IoB curve (Zong et al., 2023, arXiv 2211.12860) of encoded tokens, over all valid cells of a batch.

    A cell belongs to the foreground where its centre lies in a target's box. Thresholds are 0 and S - 1 of the cells'
    own scores, evenly by rank: encoders that end in a layer norm give lengths that differ by a few per cent only, and
    thresholds evenly from 0 to 1 would miss the curve.

    Args:
        memory: after the encoder, with references.
        targets: whose insides are the foreground.
        num_thresholds: S.
    """
    scores = feature_scores(memory)
    count = scores.shape[1]
    inside = tokens_inside(memory, targets)[:, :count]
    valid = torch.ones_like(inside) if memory.mask is None else memory.mask[:, :count]
    ranked = scores[valid].sort().values
    ranks = torch.linspace(0, max(len(ranked) - 1, 0), num_thresholds - 1, device=scores.device).round().long()
    thresholds = torch.cat([scores.new_zeros(1), ranked[ranks] if len(ranked) else scores.new_ones(len(ranks))])
    above = scores[None] > thresholds[:, None, None]
    front, back = inside & valid, ~inside & valid
    return Discriminability(
        thresholds,
        (above & front).sum((1, 2)) / front.sum().clamp(min=1),
        (above & back).sum((1, 2)) / back.sum().clamp(min=1),
    )


def tokens_inside(memory: Memory, targets: Targets) -> Tensor:
    """Which tokens' centres lie in a target's box, its edges included: (B, N)."""
    assert memory.references is not None
    centers, sizes = targets.boxes[:, None].chunk(2, -1)  # (B, 1, M, D)
    distance = (memory.references[:, :, None] - centers).abs()
    return ((distance <= sizes / 2).all(-1) & targets.mask[:, None]).any(-1)


def freeze_queries(trained: Detr, fresh: Detr) -> list[str]:
    """DAB-DETR's experiment on why DETR converges slowly: a fresh model with trained queries that stay as they are.

    If learning the queries were what takes so long, this model would converge faster (Liu et al., 2022, figure 3).

    Args:
        trained: whose queries are copied.
        fresh: another of the same system and sizes, changed in place.

    Returns:
        names of the parameters that no longer train.

    Raises:
        RuntimeError: the two have other queries.
    """
    fresh.queries.load_state_dict(trained.queries.state_dict())
    fresh.queries.requires_grad_(False)
    return [f"queries.{name}" for name, _ in fresh.queries.named_parameters()]
