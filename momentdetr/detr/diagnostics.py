"""Instruments that papers of the family look through: pure functions of what a detector did.

`watch` records what each cross-attention of a decoder was given; the other functions read such a record, or outputs
and assignments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.attention import ConditionalCrossAttention, CrossAttention, Guidance
from momentdetr.detr.boxes import inverse_sigmoid
from momentdetr.detr.decoder import Decoder
from momentdetr.detr.deformable import DeformableCrossAttention
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
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1)


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


def matched_targets_of(assignment: Assignment, batch: int, num_queries: int) -> Tensor:
    """Which target each query answers for, -1 for none: (B, Q)."""
    found = torch.full((batch, num_queries), -1, dtype=torch.long, device=assignment.query.device)
    found[assignment.sample, assignment.query] = assignment.target
    return found


def instability(before: Assignment, after: Assignment, batch: int, num_queries: int) -> Tensor:
    """DN-DETR's IS (Li et al., 2022): queries whose target changed between two epochs, per sample -> (B,).

    Args:
        before: the matching of an epoch, of the same samples in the same order.
        after: the matching of a later one.
    """
    changed = matched_targets_of(before, batch, num_queries) != matched_targets_of(after, batch, num_queries)
    return changed.sum(1)


def anchor_offsets(output: Output, assignment: Assignment, targets: Targets) -> Tensor:
    """How far each layer's reference still is from its target's centre (DN-DETR, figure 5) -> (layers, P).

    Args:
        output: of a system with references; boxes or points.
        assignment: of the last layer.
    """
    true = targets.boxes[assignment.sample, assignment.target]
    num_dims = true.shape[-1] // 2
    distances = [
        (reference[assignment.sample, assignment.query, :num_dims] - true[:, :num_dims]).abs().sum(-1)
        for reference in output.references
    ]
    return torch.stack(distances)


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


def discriminability(memory: Memory, inside: Tensor, num_thresholds: int = 50) -> Discriminability:
    """Co-DETR's IoF-IoB curve (Zong et al., 2023, figure 2) of encoded tokens.

    A token's score is its norm, relative to the largest of its sample and level; the levels are judged together.

    Args:
        memory: after the encoder.
        inside: (B, N), True where a token lies in a target.
    """
    counts = [torch.Size(shape).numel() for shape in memory.level_shapes]
    levels = memory.tokens.norm(dim=-1).split(counts, 1)
    scores = torch.cat([level / level.amax(1, keepdim=True).clamp(min=1e-12) for level in levels], 1)
    valid = torch.ones_like(inside) if memory.mask is None else memory.mask
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


def freeze_queries(trained: nn.Module, fresh: nn.Module) -> list[str]:
    """DAB-DETR's experiment on why DETR converges slowly: a fresh model with trained queries that stay as they are.

    Args:
        trained: a `Detr` (or anything with `queries`) whose queries are copied.
        fresh: another of the same system, changed in place.

    Returns:
        Names of the parameters that no longer train.
    """
    fresh.queries.load_state_dict(trained.queries.state_dict())  # type: ignore[union-attr, arg-type]
    for parameter in fresh.queries.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    return [f"queries.{name}" for name, _ in fresh.queries.named_parameters()]  # type: ignore[union-attr]


def reference_logit_steps(output: Output, eps: float = 1e-3) -> Tensor:
    """How far each layer moved its reference, in logits: (layers - 1, B, Q, A)."""
    return torch.stack([inverse_sigmoid(b, eps) - inverse_sigmoid(a, eps) for a, b in _pairs(output.references)])


def _pairs(references: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(F.pad(a, (0, b.shape[-1] - a.shape[-1]), value=0.5), b) for a, b in pairwise(references)]
