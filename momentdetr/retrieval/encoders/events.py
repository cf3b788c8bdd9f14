"""EaTR's (Jang et al., 2023) pseudo events: a video cut where the likeness of its clips to their past ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.boxes import to_corners
from momentdetr.detr.losses import matched, matched_targets
from momentdetr.detr.types import Assignment, Predictions, Targets

_EPS = 1e-8
_CERTAIN = 100.0  # score of the first and the last clip, which always are boundaries


def pseudo_events(video: Tensor, mask: Tensor, *, official_batch_faults: bool = False) -> list[Tensor]:
    """Spans between neighbouring boundaries of each video.

    Args:
        video: (B, T, Cv), as the model is given it.
        mask: (B, T), True where a clip is real.
        official_batch_faults: let padded clips lower the threshold, and begin the first span of one sample of an odd
            batch at the end of the batch's last one, so that its width is negative.

    Returns:
        B times (E, 2), centre and width as fractions of the video.
    """
    if official_batch_faults:
        return _of_batch(video, mask)
    return [
        _between(_boundaries(clips[None, real], real[None, real])[0], int(real.sum()))
        for clips, real in zip(video, mask, strict=True)
    ]


def event_targets(events: list[Tensor], like: Tensor) -> Targets:
    """B times (E, 2) as padded targets of the dtype and device of `like`."""
    mask = torch.arange(max([1, *map(len, events)])) < torch.tensor([len(spans) for spans in events])[:, None]
    mask = mask.to(like.device)
    boxes = like.new_zeros(*mask.shape, 2)
    boxes[mask] = torch.cat(events).to(like)
    return Targets(torch.zeros(mask.shape, dtype=torch.long, device=like.device), boxes, mask)


def signed_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of corners (..., 2) that broadcast, a span of negative width counting as a negative length.

    The official code compares its events of negative width in this way; for others it is `detr.boxes.giou`.
    """
    start_a, end_a = first.unbind(-1)
    start_b, end_b = second.unbind(-1)
    overlap = (torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)).clamp(min=0)
    union = (end_a - start_a) + (end_b - start_b) - overlap
    hull = (torch.maximum(end_a, end_b) - torch.minimum(start_a, start_b)).clamp(min=0)
    return overlap / union - (hull - union) / hull


def signed_giou_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Minus the signed GIoU: (Q, M)."""
    return -signed_giou(to_corners(boxes)[:, None], to_corners(target_boxes)[None])


def signed_giou_loss(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, normalize: str = "mean"
) -> Tensor:
    """1 - signed GIoU of matched pairs, the mean."""
    predicted, true = matched(predictions.boxes, assignment), matched_targets(targets.boxes, assignment)
    values = 1 - signed_giou(to_corners(predicted), to_corners(true))
    return values.sum() / max(values.numel(), 1)


def _boundaries(video: Tensor, mask: Tensor) -> Tensor:
    """Where clips before are like each other, and clips behind, but not the ones like the others: (B, T)."""
    directions = video / (video.norm(dim=2, keepdim=True) + _EPS)
    likeness = directions @ directions.transpose(1, 2)  # (B, T, T)
    side = likeness.new_tensor([1.0, 1.0, 0.0, -1.0, -1.0])
    contrast = F.conv2d(F.pad(likeness, (2, 2, 2, 2))[:, None], torch.outer(side, side)[None, None])
    score = contrast.squeeze(1).diagonal(dim1=1, dim2=2).clone()
    threshold = score.mean(1, keepdim=True)
    rows = torch.arange(len(score), device=score.device)
    score[:, 0] = _CERTAIN
    score[rows, mask.sum(1) - 1] = _CERTAIN
    peaks = (score.roll(1, -1) <= score) & (score.roll(-1, -1) <= score)
    return peaks & (threshold <= score)


def _between(boundaries: Tensor, num_clips: int) -> Tensor:
    places = boundaries.nonzero().flatten().to(torch.get_default_dtype())
    spans = torch.stack([(places[1:] + places[:-1]) / 2, places[1:] - places[:-1]], -1)
    return spans / num_clips


def _of_batch(video: Tensor, mask: Tensor) -> list[Tensor]:
    """As the official code does: neighbours in one list of all samples; those between two samples fall out only
    where the mean of the samples' numbers is no sample's number itself."""
    places = _boundaries(video, mask).nonzero()
    before = places.roll(1, 0)
    sample, centre = ((places + before) / 2).unbind(-1)
    width = places[:, 1] - before[:, 1]
    spans = torch.stack([centre, width.to(centre.dtype)], -1)
    return [spans[sample == index] / length for index, length in enumerate(mask.sum(1))]
