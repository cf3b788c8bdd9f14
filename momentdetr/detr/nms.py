"""Non-maximum suppression of boxes in any number of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from momentdetr.detr.boxes import iou


def nms(corners: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None) -> Tensor:
    """Keep the best of boxes that overlap.

    Args:
        corners: (N, 2D).
        scores: (N,).
        threshold: boxes of an IoU above it with a better one are dropped.
        groups: (N,) integers; boxes of different groups do not see each other. None: all do.

    Returns:
        (K,) indices of what is kept, best first.
    """
    if groups is not None:
        members = [(groups == group).nonzero().flatten() for group in groups.unique()]
        kept = [rows[nms(corners[rows], scores[rows], threshold)] for rows in members]
        index = torch.cat(kept) if kept else groups
        return index[scores[index].argsort(descending=True, stable=True)]
    order = scores.argsort(descending=True, stable=True)
    corners = corners[order]
    above = iou(corners[:, None], corners[None])[0] > threshold
    # The greedy pass is sequential by nature; a row of bits at a time on the host.
    rows = above.triu(1).cpu()
    dropped = torch.zeros(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if not dropped[row]:
            dropped |= rows[row]
    return order[~dropped.to(order.device)]


def soft_nms(
    corners: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None, min_score: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap with better ones, linearly (Bodla et al., 2017).

    Args:
        corners: (N, 2D).
        scores: (N,).
        threshold: a score is multiplied by 1 - IoU where the IoU is above it.
        groups: as in `nms`.
        min_score: boxes that fall to it or below are dropped.

    Returns:
        (K,) indices of what is kept, best first, and their scores (K,).
    """
    scores = scores.clone()
    overlap = iou(corners[:, None], corners[None])[0]
    if groups is not None:
        overlap = overlap * (groups[:, None] == groups[None])
    damp = torch.where(overlap > threshold, 1 - overlap, torch.ones_like(overlap))
    left = scores > min_score
    kept = []
    while bool(left.any()):
        best = int(torch.where(left, scores, -torch.inf).argmax())
        kept.append(best)
        left[best] = False
        scores = torch.where(left, scores * damp[best], scores)
        left = left & (scores > min_score)
    index = torch.tensor(kept, dtype=torch.long, device=scores.device)
    return index, scores[index]
