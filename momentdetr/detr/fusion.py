"""Weighted fusion of what several detectors say of one sample (Solovyev et al., 2021), in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from momentdetr.detr.boxes import iou, volume


def fuse_boxes(
    corners: Sequence[Tensor],
    scores: Sequence[Tensor],
    weights: Sequence[float],
    *,
    threshold: float = 0.55,
    min_score: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Average boxes that overlap, instead of dropping all but the best of them.

    Boxes join, best first, the fused box that they overlap most, or begin one of their own. A fused box is the mean of
    its members, weighted by their scores; its score is the mean of theirs times the share of detectors that can have
    found it, so that a box that only one of them saw is worth less.

    Args:
        corners: (N_i, 2D) of each detector; boxes without volume are left out.
        scores: (N_i,) of each detector, not negative.
        weights: what a detector's scores are multiplied by.
        threshold: IoU with a fused box above which a box joins it.
        min_score: boxes of a lower score, before weighting, are left out.

    Returns:
        (K, 2D) and (K,), best first.
    """
    kept = [(score >= min_score) & (volume(boxes) > 0) for boxes, score in zip(corners, scores, strict=True)]
    boxes = torch.cat([own[rows] for own, rows in zip(corners, kept, strict=True)])
    weighed = torch.cat([own[rows] * w for own, rows, w in zip(scores, kept, weights, strict=True)])
    order = weighed.argsort(descending=True, stable=True)
    sums, totals, counts = _clusters(boxes[order], weighed[order], threshold)
    share = counts.clamp(max=len(weights)) / sum(weights)
    fused = totals / counts.clamp(min=1) * share
    best = fused.argsort(descending=True, stable=True)
    return (sums / totals[:, None])[best], fused[best]


def _clusters(boxes: Tensor, scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes (N, 2D), best first: summed members (K, 2D), times their scores; summed scores (K,); members (K,)."""
    sums, totals, counts = boxes.new_zeros(boxes.shape), torch.zeros_like(scores), torch.zeros_like(scores)
    number = 0
    for box, score in zip(boxes, scores, strict=True):
        place = number
        if number:
            overlap, best = iou(sums[:number] / totals[:number, None], box)[0].max(0)
            place = int(best) if overlap > threshold else number
        number = max(number, place + 1)
        sums[place] += box * score
        totals[place] += score
        counts[place] += 1
    return sums[:number], totals[:number], counts[:number]
