"""Classification losses that ask for the quality of the box: a query should say its class as surely as its box fits.

They differ in what a matched query should say, and in how much all others count; p is what is said, u is the IoU.

| loss | a matched query's class | weight of it | weight of everything else |
|---|---|---|---|
| quality focal (Li et al., 2020) | u | \\|p - u\\|^beta | p^beta |
| IoU-aware (Align-DETR; Cai et al., 2023) | p^alpha u^(1 - alpha) | 1 | p^gamma |
| matchability-aware (DEIM; Huang et al., 2024) | u^gamma | 1 | p^gamma |

All are summed over queries and classes and divided by the number of targets. No gradient passes through u, through
what should be said, nor through the last two rows' weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, iou, to_corners
from momentdetr.detr.losses import matched, matched_targets, one_hot_targets
from momentdetr.detr.types import Assignment, Predictions, Targets


def box_quality(predictions: Predictions, targets: Targets, assignment: Assignment) -> Tensor:
    """(B, Q, K): IoU of each matched query's box with its target, at the target's class; 0 elsewhere."""
    predicted = to_corners(matched(at_least_float32(predictions.boxes.detach()), assignment))
    overlap = iou(predicted, to_corners(matched_targets(targets.boxes, assignment)))[0]
    quality = overlap.new_zeros(predictions.logits.shape[:2])
    quality[assignment.sample, assignment.query] = overlap
    return one_hot_targets(predictions, targets, assignment) * quality[..., None]


def quality_focal(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, beta: float = 2.0
) -> Tensor:
    """Quality focal loss (Li et al., 2020), Co-DINO's."""
    logits = at_least_float32(predictions.logits)
    wanted = box_quality(predictions, targets, assignment).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return ((wanted - logits.sigmoid()).abs() ** beta * loss).sum() / count


def iou_aware(
    predictions: Predictions,
    targets: Targets,
    assignment: Assignment,
    count: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Tensor:
    """IoU-aware binary cross-entropy, "IA-BCE" (Cai et al., 2023, arXiv 2304.07527)."""
    logits = at_least_float32(predictions.logits)
    quality = box_quality(predictions, targets, assignment).to(logits.dtype)
    wanted = logits.detach().sigmoid() ** alpha * quality ** (1 - alpha)  # 0 where the quality is
    return _weighed(logits, wanted, predictions, targets, assignment, gamma) / count


def matchability_aware(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, gamma: float = 1.5
) -> Tensor:
    """Matchability-aware loss, "MAL" (Huang et al., 2024, arXiv 2412.04234)."""
    logits = at_least_float32(predictions.logits)
    wanted = box_quality(predictions, targets, assignment).to(logits.dtype) ** gamma
    return _weighed(logits, wanted, predictions, targets, assignment, gamma) / count


def _weighed(
    logits: Tensor, wanted: Tensor, predictions: Predictions, targets: Targets, assignment: Assignment, gamma: float
) -> Tensor:
    """Cross-entropy of every class, the matched ones' in full, others weighted by how surely they are said."""
    answered = one_hot_targets(predictions, targets, assignment).bool()
    weight = torch.where(answered, torch.ones((), dtype=logits.dtype), logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")
