"""Masks of objects in any number of dimensions: their boxes, and the loss of predicted ones."""

from __future__ import annotations

import torch
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The smallest box around each mask.

    Args:
        masks: (N, *spatial), other than zero where an object is.

    Returns:
        (N, 2D) corners in cells, natural order: the first and the last cell that is touched, as in DETR's code; zeros
        for an empty mask.
    """
    num_dims = masks.dim() - 1
    boxes = masks.new_zeros(len(masks), 2 * num_dims, dtype=torch.float32)
    for along in range(num_dims):
        stored = num_dims - along  # axes are stored last coordinate first
        others = [axis for axis in range(1, num_dims + 1) if axis != stored]
        touched = masks.bool().any(others) if others else masks.bool()  # (N, size)
        size = touched.shape[1]
        if size == 0:
            continue
        first = touched.long().argmax(1)
        last = size - 1 - touched.flip(1).long().argmax(1)
        some = touched.any(1)
        boxes[:, along] = first * some
        boxes[:, num_dims + along] = last * some
    return boxes


def dice_loss(logits: Tensor, truth: Tensor, count: Tensor) -> Tensor:
    """1 - Dice coefficient of predicted masks (Milletari et al., 2016), one added above and below, divided by `count`.

    Args:
        logits: (N, ...) of matched queries' masks.
        truth: (N, ...) in [0, 1].
        count: what the sum over masks is divided by.
    """
    said, true = at_least_float32(logits).sigmoid().flatten(1), truth.flatten(1)
    overlap = 2 * (said * true).sum(1)
    return (1 - (overlap + 1) / (said.sum(1) + true.sum(1) + 1)).sum() / count
