"""Instruments that papers of the family look through: pure functions of what a detector did.

`watch` records what each cross-attention of a decoder was given; the other functions read such a record, or outputs
and assignments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.attention import ConditionalCrossAttention, CrossAttention, Guidance
from momentdetr.detr.decoder import Decoder
from momentdetr.detr.deformable import DeformableCrossAttention
from momentdetr.detr.model import Detector, Detr
from momentdetr.detr.types import Assignment, Memory, Output, Targets


@dataclass(frozen=True)
class Glance:
    """What one cross-attention was given.

    Args:
        attention: the module.
        content: (B, Q, C).
        guidance: where its queries look.
        memory: what they look at.
    """

    attention: nn.Module
    content: Tensor
    guidance: Guidance
    memory: Memory


@contextmanager
def watch(decoder: Decoder) -> Iterator[list[Glance]]:
    """Record every layer's cross-attention while the block runs: `with watch(decoder) as glances: model(...)`."""
    glances: list[Glance] = []
    handles = [
        layer.cross_attention.register_forward_pre_hook(lambda module, args: glances.append(Glance(module, *args)))  # type: ignore[union-attr]
        for layer in decoder.layers
    ]
    try:
        yield glances
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class AttentionMaps:
    """Where each head looks, each (B, H, Q, N), summing to one over the memory.

    Args:
        content: by what it looks for.
        spatial: by where it looks.
        combined: by both, as the model does.
    """

    content: Tensor
    spatial: Tensor
    combined: Tensor

    def on_grid(self, shape: Sequence[int]) -> AttentionMaps:
        """The same maps as (B, H, Q, *spatial), of a memory of one level."""
        return AttentionMaps(*(x.unflatten(-1, tuple(shape)) for x in (self.content, self.spatial, self.combined)))


def attention_maps(glance: Glance) -> AttentionMaps:
    """Split dense or conditional cross-attention into content and place (Conditional DETR, figures 1 and 5).

    Raises:
        ValueError: deformable attention has no such maps; see `sampling`.
    """
    if isinstance(glance.attention, ConditionalCrossAttention):
        content, spatial = _conditional_scores(glance.attention, glance)
    elif isinstance(glance.attention, CrossAttention):
        return _dense_maps(glance.attention, glance)
    else:
        raise ValueError(f"{type(glance.attention).__name__} has no attention maps; deformable attention has points")
    mask = glance.memory.mask
    return AttentionMaps(_softmax(content, mask), _softmax(spatial, mask), _softmax(content + spatial, mask))


def _conditional_scores(attention: ConditionalCrossAttention, glance: Glance) -> tuple[Tensor, Tensor]:
    assert glance.memory.positions is not None
    assert glance.guidance.sine is not None
    query, key = attention.query_content(glance.content), attention.key_content(glance.memory.tokens)
    place = attention.key_position(glance.memory.positions)
    if attention.query_position is not None:
        query, key = query + attention.query_position(glance.guidance.positions), key + place
    # Both halves share the scale of a head that is twice as wide.
    scale = (2 * query.shape[-1] / attention.num_heads) ** -0.5
    heads = attention.num_heads
    return (
        _scores(query, key, heads) * scale,
        _scores(attention.query_sine(glance.guidance.sine), place, heads) * scale,
    )


def _dense_maps(attention: CrossAttention, glance: Glance) -> AttentionMaps:
    """DETR adds content and place before projecting; each alone is what the other's absence leaves."""
    positions, memory = glance.guidance.positions, glance.memory
    assert memory.positions is not None
    scale = (positions.shape[-1] / attention.num_heads) ** -0.5

    def looked(query: Tensor, key: Tensor) -> Tensor:
        return _softmax(_scores(attention.query(query), attention.key(key), attention.num_heads) * scale, memory.mask)

    return AttentionMaps(
        content=looked(glance.content, memory.tokens),
        spatial=looked(positions, memory.positions),
        combined=looked(glance.content + positions, memory.tokens + memory.positions),
    )


def _scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    query, key = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key))
    return query @ key.transpose(-1, -2)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores.softmax(-1)
    # A sample that is all padding is looked at nowhere, as in `attention.attend`.
    return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1).nan_to_num()


@dataclass(frozen=True)
class Sampling:
    """Where deformable attention looks.

    Args:
        locations: (B, Q, H, L, P, D), fractions of each level's padded grid.
        weights: (B, Q, H, L, P), summing to one over levels and points.
    """

    locations: Tensor
    weights: Tensor


def sampling(glance: Glance) -> Sampling:
    """Points and weights of a deformable cross-attention.

    Raises:
        ValueError: it is not deformable.
    """
    attention = glance.attention
    if not isinstance(attention, DeformableCrossAttention):
        raise ValueError(f"{type(attention).__name__} samples no points; see `attention_maps`")
    assert glance.guidance.references is not None
    queries = glance.content + glance.guidance.positions
    split = (attention.num_heads, attention.num_levels, attention.num_points)
    offsets = attention.offsets(queries).unflatten(-1, (*split, attention.num_dims))
    weights = attention.weights(queries).unflatten(-1, (split[0], -1)).softmax(-1).unflatten(-1, split[1:])
    return Sampling(attention.locations(offsets, glance.guidance.references, glance.memory), weights)


def match(detector: Detector, features: Sequence[Tensor], mask: Tensor, targets: Targets) -> Assignment:
    """Who answers for what, as a detector's last layer is judged; evaluated as at inference."""
    training = detector.training
    try:
        with torch.no_grad():
            said = detector.eval()(features, mask).last
    finally:
        detector.train(training)
    return detector.criterion.matcher(said, targets)


def matched_targets_of(assignment: Assignment, batch: int, num_queries: int) -> Tensor:
    """Which target each query answers for, -1 for none: (B, Q)."""
    found = torch.full((batch, num_queries), -1, dtype=torch.long, device=assignment.query.device)
    found[assignment.sample, assignment.query] = assignment.target
    return found


def instability(before: Assignment, after: Assignment, batch: int, num_queries: int) -> Tensor:
    """DN-DETR's IS (Li et al., 2022): queries whose target changed between two epochs, per sample -> (B,).

    Args:
        before: the matching of an epoch or checkpoint, of the same samples in the same order; see `match`.
        after: the matching of a later one.
    """
    changed = matched_targets_of(before, batch, num_queries) != matched_targets_of(after, batch, num_queries)
    return changed.sum(1)


def anchor_offsets(output: Output, assignment: Assignment, targets: Targets) -> Tensor:
    """From the anchor that each layer starts from to the box that it should find: (layers, P, A), signed.

    A is D for points and 2D for boxes. DN-DETR's figure is the mean distance of the first layer's centres.

    Args:
        assignment: of the last layer.

    Raises:
        ValueError: the system has no anchors.
    """
    true = targets.boxes[assignment.sample, assignment.target]
    anchors = [anchor[assignment.sample, assignment.query] for anchor in _anchors(output)]
    return torch.stack([true[:, : anchor.shape[-1]] - anchor for anchor in anchors])


def box_offsets(output: Output) -> Tensor:
    """From the anchor that each layer starts from to the box that it predicts: (layers, B, Q, A), signed.

    Raises:
        ValueError: the system has no anchors.
    """
    pairs = zip(_anchors(output), output.layers, strict=True)
    return torch.stack([said.boxes[..., : anchor.shape[-1]] - anchor for anchor, said in pairs])


def _anchors(output: Output) -> list[Tensor]:
    """Each layer's, cut to the coordinates that all of them have."""
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
    """Co-DETR's score of each cell of the finest level (B, N_0): how long its feature is, compared with the longest.

    The norms of a level are divided by the largest of the sample's valid ones; levels are brought to the finest grid
    and averaged.
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
    """Co-DETR's IoF-IoB curve (Zong et al., 2023, figure 2) of encoded tokens, over all cells of a batch.

    Args:
        memory: after the encoder, with references.
        targets: whose insides are the foreground.
    """
    scores = feature_scores(memory)
    count = scores.shape[1]
    inside = tokens_inside(memory, targets)[:, :count]
    valid = torch.ones_like(inside) if memory.mask is None else memory.mask[:, :count]
    thresholds = torch.linspace(0, 1, num_thresholds, device=scores.device)
    above = scores[None] > thresholds[:, None, None]
    front, back = inside & valid, ~inside & valid
    return Discriminability(
        thresholds,
        (above & front).sum((1, 2)) / front.sum().clamp(min=1),
        (above & back).sum((1, 2)) / back.sum().clamp(min=1),
    )


def tokens_inside(memory: Memory, targets: Targets) -> Tensor:
    """Which tokens' centres lie in a target: (B, N)."""
    assert memory.references is not None
    centers, sizes = targets.boxes[:, None].chunk(2, -1)  # (B, 1, M, D)
    distance = (memory.references[:, :, None] - centers).abs()
    return ((distance <= sizes / 2).all(-1) & targets.mask[:, None]).any(-1)


def freeze_queries(trained: Detr, fresh: Detr) -> list[str]:
    """DAB-DETR's experiment on why DETR converges slowly: a fresh model with trained queries that stay as they are.

    Args:
        trained: whose queries are copied.
        fresh: another of the same system, changed in place.

    Returns:
        Names of the parameters that no longer train.
    """
    fresh.queries.load_state_dict(trained.queries.state_dict())
    fresh.queries.requires_grad_(False)
    return [f"queries.{name}" for name, _ in fresh.queries.named_parameters()]
