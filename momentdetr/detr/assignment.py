"""Who answers for what: assigners turn predictions and targets into an `Assignment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, giou, to_corners
from momentdetr.detr.types import Assignment, Predictions, Targets


class Cost(Protocol):
    """How unlike one sample's predictions and targets are: logits (Q, K), boxes (Q, .), labels (M,), boxes (M, .)."""

    def __call__(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """(Q, M), lower is better."""
        ...


def softmax_class_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Minus the probability of the target's class (DETR)."""
    return -logits.softmax(-1)[:, labels]


def focal_class_cost(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, alpha: float = 0.25
) -> Tensor:
    """Focal loss of saying the class minus that of denying it, gamma 2 (Deformable DETR and later)."""
    prob = logits.sigmoid()[:, labels]
    deny = (1 - alpha) * prob**2 * -(1 - prob + 1e-8).log()
    say = alpha * (1 - prob) ** 2 * -(prob + 1e-8).log()
    return say - deny


def l1_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Sum of absolute differences of centres and sizes."""
    return torch.cdist(boxes, target_boxes, p=1)


def giou_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, eps: float = 0.0) -> Tensor:
    """Minus the generalised IoU; `eps` as in `boxes.iou`."""
    return -giou(to_corners(boxes)[:, None], to_corners(target_boxes)[None], eps)


class HungarianMatcher:
    """The assignment of least total cost, one query a target, sample by sample (Carion et al., 2020).

    Args:
        costs: name -> cost function.
        weights: name -> weight, the same names.
    """

    def __init__(self, costs: Mapping[str, Cost], weights: Mapping[str, float]) -> None:
        if set(costs) != set(weights):
            raise ValueError(f"costs {sorted(costs)} and weights {sorted(weights)} must have the same names")
        self.costs, self.weights = dict(costs), dict(weights)

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Match the predictions of one layer.

        Raises:
            ValueError: a cost is not finite; the message names it and the sample.
        """
        pairs = []
        for sample in range(predictions.logits.shape[0]):
            valid = targets.mask[sample]
            cost = self._sample_cost(
                at_least_float32(predictions.logits[sample]),
                at_least_float32(predictions.boxes[sample]),
                targets.labels[sample][valid],
                targets.boxes[sample][valid],
                sample,
            )
            rows, columns = linear_sum_assignment(cost.cpu().numpy())
            pairs.append((rows, torch.nonzero(valid).flatten().cpu()[columns]))
        return _as_assignment(pairs, predictions.logits.device)

    def _sample_cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, sample: int) -> Tensor:
        total = logits.new_zeros(logits.shape[0], labels.shape[0])
        for name, cost in self.costs.items():
            value = cost(logits, boxes, labels, target_boxes)
            if not value.isfinite().all():
                raise ValueError(
                    f"matching cost {name!r} of sample {sample} is not finite: its predictions or targets hold NaN or "
                    "infinity; look at this sample's features and annotations, or at the step before for divergence"
                )
            total = total + self.weights[name] * value
        return total


def _as_assignment(pairs: Sequence[tuple], device: torch.device) -> Assignment:
    query = torch.cat([torch.as_tensor(rows, dtype=torch.long) for rows, _ in pairs])
    target = torch.cat([columns for _, columns in pairs])
    sample = torch.cat([torch.full((len(rows),), i, dtype=torch.long) for i, (rows, _) in enumerate(pairs)])
    return Assignment(sample.to(device), query.to(device), target.to(device))
