"""How numbers that a head puts out become boxes, relative to a reference or not."""

from __future__ import annotations

import torch
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, inverse_sigmoid


class CenterSize:
    """Boxes as logits of centres and sizes; a head's output is added to the reference's logits.

    A reference may be a box (..., 2D) or only its first coordinates, e.g. a point (..., D): what it lacks counts as
    logit 0, as in Conditional and Deformable DETR.

    Args:
        eps: of the inverse sigmoid; 1e-3 in DAB-DETR and its descendants, 1e-5 in Conditional and Deformable DETR.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        self.eps = eps

    def encode(self, boxes: Tensor) -> Tensor:
        """Boxes in [0, 1] to anchors in logits."""
        return inverse_sigmoid(boxes, self.eps)

    def to_boxes(self, anchors: Tensor) -> Tensor:
        """Anchors in logits to boxes or points in [0, 1]."""
        return at_least_float32(anchors).sigmoid()

    def refine(self, delta: Tensor, reference: Tensor | None) -> Tensor:
        """A head's output (..., 2D) and a reference (..., A) in [0, 1], or None, to boxes (..., 2D) in [0, 1]."""
        delta = at_least_float32(delta)
        if reference is None:
            return delta.sigmoid()
        known = reference.shape[-1]
        logits = inverse_sigmoid(reference, self.eps)
        if known < delta.shape[-1]:
            return torch.cat([delta[..., :known] + logits, delta[..., known:]], -1).sigmoid()
        return (delta + logits).sigmoid()
