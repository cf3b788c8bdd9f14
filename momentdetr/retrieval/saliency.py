"""Losses that order clips by how well they answer the query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.types import Targets
from momentdetr.retrieval.types import MomentTargets, SaliencyTargets

_HIDDEN = -1e3  # score of a padded clip, as in the official code
_NUM_LEVELS = 12  # three annotators give 0 to 4 each: levels 1 to 11 are compared


def margin_loss(scores: Tensor, targets: SaliencyTargets, margin: float) -> Tensor:
    """Hinge over pairs of clips (Moment-DETR): the positive one should lead by `margin`.

    Args:
        scores: (B, T).
        targets: pairs; an index of -1 marks a pair that does not exist (queries that are not in the video).
        margin: 0.2 in the published models.
    """
    exists = (targets.positive >= 0) & (targets.negative >= 0)
    positive = scores.gather(1, targets.positive.clamp(min=0))
    negative = scores.gather(1, targets.negative.clamp(min=0))
    hinge = (margin + negative - positive).clamp(min=0) * exists
    return 2 * hinge.sum() / exists.sum().clamp(min=1)  # twice: the published scale


def negative_pair_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """QD-DETR's: clips should not answer a query of another video; -log(1 - sigmoid(score)), summed over clips.

    Args:
        scores: (B, T), of each video with a foreign query.
        mask: (B, T), True where a clip is real.
    """
    return (F.softplus(scores) * mask).sum(1).mean()


def clips_inside(spans: Targets, mask: Tensor) -> Tensor:
    """Whether each clip's middle is inside a moment: (B, T).

    Args:
        spans: the moments, centre and width; a sample without any has nothing inside.
        mask: (B, T), True where a clip is real.
    """
    middles = (torch.arange(mask.shape[1], device=mask.device) + 0.5) / mask.sum(1, keepdim=True)  # (B, T)
    centre, width = spans.boxes.unbind(-1)  # (B, M)
    reached = (middles[:, None] - centre[..., None]).abs() < width[..., None] / 2  # (B, M, T)
    return (reached & spans.mask[..., None]).any(1)


def relevant_clips(targets: MomentTargets, mask: Tensor) -> Tensor:
    """Which clips answer the query: those with a score, or inside a moment where none are scored: (B, T)."""
    if targets.saliency is not None and targets.saliency.scores is not None:
        return (targets.saliency.scores > 0) & mask
    return clips_inside(targets.spans, mask) & mask


def described_clips(targets: MomentTargets, mask: Tensor) -> Tensor:
    """Which clips show what the query says, also those that nobody gave a point: (B, T)."""
    if targets.saliency is not None and targets.saliency.relevant is not None:
        return targets.saliency.relevant & mask
    return relevant_clips(targets, mask)


def indicator_loss(scores: Tensor, spans: Targets, mask: Tensor) -> Tensor:
    """Whether each clip's middle is inside a moment, as UniVTG (Lin et al., 2023) asks of its foreground indicator.

    Args:
        scores: (B, T), logits.
        spans: the moments, centre and width; a sample without any has nothing inside.
        mask: (B, T), True where a clip is real.

    Returns:
        Binary cross-entropy, averaged over real clips.
    """
    inside = clips_inside(spans, mask).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores[mask], inside[mask])


def saliency_inside(scores: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
    """Mean saliency of the clips in each span; of the clip at its centre where no clip's middle is inside.

    Args:
        scores: (B, T).
        spans: (B, Q, 2), start and end as fractions of the real clips.
        mask: (B, T), True where a clip is real.

    Returns:
        (B, Q).
    """
    num_clips = mask.sum(1)[:, None]  # (B, 1)
    middles = (torch.arange(mask.shape[1], device=mask.device) + 0.5) / num_clips  # (B, T)
    start, end = spans.unbind(-1)
    inside = (middles[:, None] > start[..., None]) & (middles[:, None] < end[..., None]) & mask[:, None]  # (B, Q, T)
    centre = ((start + end) / 2 * num_clips).long().clamp(min=0).minimum(num_clips - 1)
    inside = inside | (~inside.any(-1, keepdim=True) & F.one_hot(centre, mask.shape[1]).bool())
    return (scores[:, None] * inside).sum(-1) / inside.sum(-1)


def rank_contrastive_loss(scores: Tensor, levels: Tensor, mask: Tensor, temperature: float = 0.5) -> Tensor:
    """QD-DETR's: at each level of annotated score, clips at or above it against all others.

    Args:
        scores: (B, S), own and foreign queries side by side.
        levels: (B, S), annotated scores, 0 where nobody scored.
        mask: (B, S), True where a clip is real.
        temperature: 0.5 in the published model.

    Returns:
        Scalar. The official code sums eleven levels and divides by twelve; so do we, to keep its scale.
    """
    visible = torch.where(mask, scores, torch.full_like(scores, _HIDDEN)) / temperature
    logits = visible - visible.max(1, keepdim=True).values
    log_prob = logits - (logits.exp().sum(1, keepdim=True) + 1e-6).log()
    thresholds = torch.arange(1, _NUM_LEVELS, device=scores.device)
    positive = (levels[None] >= thresholds[:, None, None]).to(scores.dtype)  # (levels, B, S)
    mean_log_prob = (positive * log_prob * mask).sum(-1) / (positive.sum(-1) + 1e-6)  # (levels, B)
    return -mean_log_prob.mean(-1).sum() / _NUM_LEVELS


def contrasted_saliency_loss(
    saliency: Tensor, negative: Tensor | None, targets: SaliencyTargets, mask: Tensor, margin: float
) -> Tensor:
    """QD-DETR's: hinge over pairs, rank contrast over annotated levels, silence for foreign queries; their plain sum.

    A query that is known not to be in its video (its pairs are -1) is a foreign one too. The published data sets have
    none, so their losses are the published ones.

    Args:
        saliency: (B, T).
        negative: (B, T), of each video with a foreign query; None where there are none.
        targets: what is true.
        mask: (B, T), True where a clip is real.
        margin: of the hinge.
    """
    scores, seen = saliency, mask
    total = margin_loss(scores, targets, margin)
    absent = (targets.positive < 0).all(1)
    if absent.any():
        total = total + absent.float().mean() * negative_pair_loss(scores[absent], mask[absent])
    if negative is not None:
        total = total + negative_pair_loss(negative, mask)
        scores, seen = torch.cat([scores, negative], 1), torch.cat([mask, mask], 1)
    if targets.scores is not None:
        levels = targets.scores
        if negative is not None:
            levels = torch.cat([levels, torch.zeros_like(levels)], 1)
        total = total + rank_contrastive_loss(scores, levels, seen)
    return total
