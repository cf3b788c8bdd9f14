"""TR-DETR's (Sun et al., 2024) losses: clips and videos against texts before they are fused, and its class term."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.losses import class_targets
from momentdetr.detr.types import Assignment, Predictions, Targets

_TEMPERATURE = 0.07


def video_text_contrast(video: Tensor, text: Tensor) -> Tensor:
    """Each video should be most like its own text, and each text like its own video, among those of the batch.

    Args:
        video: (B, C), mean of the clips.
        text: (B, C), mean of the words.
    """
    likeness = F.normalize(text, dim=1) @ F.normalize(video, dim=1).T / _TEMPERATURE  # (B, B)
    own = torch.arange(len(video), device=video.device)
    return (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2


def clip_text_contrast(
    video: Tensor, text: Tensor, inside: Tensor, mask: Tensor, text_mask: Tensor, *, padded: bool
) -> Tensor:
    """Relevant clips should be like the mean of the words' directions, others unlike it.

    Args:
        video: (B, T, C).
        text: (B, W, C).
        inside: (B, T), True where a clip is relevant.
        mask: (B, T), True where a clip is real.
        text_mask: (B, W), True where a word is real.
        padded: count padded clips as undecided ones (a fault of the official code).
    """
    words = F.normalize(text, dim=2) * text_mask[..., None]
    whole = words.sum(1) / text_mask.sum(1, keepdim=True)  # (B, C)
    logits = (F.normalize(video, dim=2) @ whole[..., None]).squeeze(-1) * mask / _TEMPERATURE
    seen = torch.ones_like(mask) if padded else mask
    return F.binary_cross_entropy_with_logits(logits[seen], inside[seen].to(logits.dtype))


def two_class_focal(
    predictions: Predictions,
    targets: Targets,
    assignment: Assignment,
    count: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017) of foreground and background, each with a logit of its own; the mean."""
    logits = at_least_float32(predictions.logits)
    classes = class_targets(predictions, targets, assignment, background=logits.shape[-1] - 1)
    truth = F.one_hot(classes, logits.shape[-1]).to(logits.dtype)
    prob = logits.sigmoid()
    unlike = prob * (1 - truth) + (1 - prob) * truth
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    return (balance * unlike**gamma * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")).mean()
