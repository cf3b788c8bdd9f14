"""Spans as two classifications over clips: Moment-DETR's `span_loss_type="ce"`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.losses import matched, matched_targets
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.types import Assignment, Predictions, Targets


class BoundaryLogits(CenterSize):
    """A head puts out one logit per clip for the first clip of a moment and one for its last: (..., 2 * max_clips)."""

    def refine(self, delta: Tensor, reference: Tensor | None) -> Tensor:
        if reference is not None:
            raise ValueError("boundary logits have no reference to refine; use them with learned queries")
        return delta


def boundary_targets(targets: Targets, num_clips: Tensor) -> Targets:
    """Spans as fractions (B, M, 2) to indices of the first and the last clip, given clips per sample (B,)."""
    centers, widths = targets.boxes.unbind(-1)
    clips = num_clips[:, None].to(centers.dtype)
    first = ((centers - widths / 2) * clips).round().clamp(min=0)
    last = ((centers + widths / 2) * clips).round() - 1
    last = torch.minimum(torch.maximum(last, first), clips - 1)
    return Targets(targets.labels, torch.stack([first, last], -1), targets.mask)


def boundary_spans(boxes: Tensor, num_clips: Tensor) -> Tensor:
    """The likeliest first and last clip of each query as spans: (B, Q, 2 * max_clips) -> (B, Q, 2) centre and width."""
    logits = boxes.unflatten(-1, (2, -1))
    seen = torch.arange(logits.shape[-1], device=boxes.device) < num_clips[:, None, None, None]
    first, last = logits.masked_fill(~seen, -torch.inf).argmax(-1).unbind(-1)
    start, end = first, torch.maximum(last, first) + 1
    clips = num_clips[:, None].to(boxes.dtype)
    return torch.stack([(start + end) / 2 / clips, (end - start) / clips], -1)


def boundary_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Minus the probabilities of the true first and last clip: (Q, 2 * max_clips), (M, 2) -> (Q, M)."""
    prob = boxes.unflatten(-1, (2, -1)).softmax(-1)
    first, last = target_boxes.long().unbind(-1)
    return -prob[:, 0][:, first] - prob[:, 1][:, last]


def boundary_loss(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """Cross-entropy of both boundaries, averaged over matched queries."""
    logits = matched(predictions.boxes, assignment).unflatten(-1, (2, -1)).transpose(1, 2)  # (P, clips, 2)
    true = matched_targets(targets.boxes, assignment).long()  # (P, 2)
    return F.cross_entropy(logits, true, reduction="sum") / max(true.numel(), 1)


def zero_loss(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """The overlap term, which classified boundaries do not have."""
    return predictions.boxes.new_zeros(())
