"""Centre-size algebra of boxes in any number of dimensions.

A box is `(..., 2D)`: D centres, then D sizes. Corners are `(..., 2D)`: D lower, then D upper coordinates.
Everything is written over the last axis, so a span (D = 1), a box (D = 2) and a tube (D = 3) share each line.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision is widened; float32 and float64 stay. Box arithmetic is never done in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def to_corners(boxes: Tensor) -> Tensor:
    """Centres and sizes (..., 2D) to lower and upper corners (..., 2D)."""
    centers, sizes = boxes.chunk(2, -1)
    return torch.cat([centers - 0.5 * sizes, centers + 0.5 * sizes], -1)


def to_center_size(corners: Tensor) -> Tensor:
    """Lower and upper corners (..., 2D) to centres and sizes (..., 2D)."""
    lower, upper = corners.chunk(2, -1)
    return torch.cat([0.5 * (lower + upper), upper - lower], -1)


def volume(corners: Tensor) -> Tensor:
    """Length, area or volume of corners (..., 2D) -> (...); 0 where an upper corner lies before its lower one."""
    lower, upper = corners.chunk(2, -1)
    return (upper - lower).clamp(min=0).prod(-1)


def iou(first: Tensor, second: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Intersection over union of corners that broadcast against each other.

    Args:
        first: (..., 2D) corners; add an axis for all pairs: `iou(a[:, None], b[None])`.
        second: (..., 2D) corners.
        eps: added to the union where it divides; 1e-6 in DAB-DETR, DN-DETR and DINO, 0 elsewhere.

    Returns:
        iou (...) in [0, 1], 0 where both boxes are empty, and union (...).
    """
    lower_a, upper_a = first.chunk(2, -1)
    lower_b, upper_b = second.chunk(2, -1)
    overlap = (torch.minimum(upper_a, upper_b) - torch.maximum(lower_a, lower_b)).clamp(min=0).prod(-1)
    union = volume(first) + volume(second) - overlap
    return overlap / _divisor(union + eps), union


def giou(first: Tensor, second: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of corners that broadcast: IoU - (hull - union) / hull.

    Args:
        first: (..., 2D) corners.
        second: (..., 2D) corners.
        eps: added to union and hull where they divide, see `iou`.

    Returns:
        (...) in [-1, 1]; for two empty boxes 0 if they coincide, else -1.
    """
    overlap, union = iou(first, second, eps)
    lower_a, upper_a = first.chunk(2, -1)
    lower_b, upper_b = second.chunk(2, -1)
    hull = (torch.maximum(upper_a, upper_b) - torch.minimum(lower_a, lower_b)).clamp(min=0).prod(-1)
    return overlap - (hull - union) / _divisor(hull + eps)


def _divisor(whole: Tensor) -> Tensor:
    """1 instead of nothing, so that nothing of nothing is 0 and its gradient finite, also of a box flat on one side."""
    return whole.masked_fill(whole == 0, 1).clamp(min=torch.finfo(whole.dtype).tiny)


def inverse_sigmoid(values: Tensor, eps: float) -> Tensor:
    """Logit of values in [0, 1], kept finite by clamping both `x` and `1 - x` to at least `eps`.

    The family disagrees on eps (1e-5: Conditional, Deformable; 1e-3: DAB, DN, DINO and all moment models) and boxes
    shift by up to 3e-3 with it, so there is no default.
    """
    values = at_least_float32(values).clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))
