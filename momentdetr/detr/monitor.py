"""What is logged beside the losses: numbers that nothing is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from momentdetr.detr.losses import matched, matched_targets
from momentdetr.detr.types import Assignment, Predictions, Targets


@torch.no_grad()
def class_error(predictions: Predictions, targets: Targets, assignment: Assignment) -> Tensor:
    """Per cent of matched queries whose likeliest class, "no object" included, is not their target's.

    Returns:
        scalar in [0, 100]; 100 where nothing is matched, as in DETR's code.
    """
    said = matched(predictions.logits, assignment).argmax(-1)
    if not len(said):
        return predictions.logits.new_full((), 100.0, dtype=torch.float32)
    right = said == matched_targets(targets.labels, assignment)
    return 100 - 100 * right.double().mean()


@torch.no_grad()
def cardinality_error(predictions: Predictions, targets: Targets) -> Tensor:
    """How far the number of queries that do not choose the last class is from the number of targets, on average.

    The last class is "no object" where DETR's softmax has one. Systems with sigmoid scores have none, and their
    official code logs this number all the same.
    """
    chosen = predictions.logits.argmax(-1) != predictions.logits.shape[-1] - 1
    return (chosen.sum(1) - targets.mask.sum(1)).abs().double().mean()
