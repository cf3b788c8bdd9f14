"""BAM-DETR (Lee and Byun, 2024): QD-DETR's encoder, and beside it features that tell where moments start and end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.boxes import at_least_float32, iou, to_corners
from momentdetr.detr.losses import matched, matched_targets
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Assignment, Predictions, Targets
from momentdetr.retrieval.encoders.qd_detr import QdDetrEncoder
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText

INSIDE, OUTSIDE = 0.1, 0.25  # a boundary reaches so far into and out of a moment, as fractions of its length
GOOD, BAD = 0.7, 0.3  # overlaps above and below are groups of their own in the quality loss


class BoundaryTower(nn.Module):
    """Three convolutions over clips, of sizes 3, 3 and 1, each with ReLU: (B, T, C) -> (B, T, C).

    Args:
        width: C.
        official_batch_faults: let padding flow into real clips, see `BamDetrEncoder`.
    """

    def __init__(self, width: int, *, official_batch_faults: bool = False) -> None:
        super().__init__()
        self.official_batch_faults = official_batch_faults
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, size, padding=size // 2) for size in (3, 3, 1))

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        clips = clips.transpose(1, 2)
        for convolution in self.convolutions:
            clips = convolution(clips if self.official_batch_faults else clips * mask[:, None]).relu()
        return clips.transpose(1, 2)


class BamDetrEncoder(QdDetrEncoder):
    """QD-DETR's, with boundary features of the fused clips in `extras["boundaries"]` (B, T, 2C).

    Args:
        boundary_loss: learn from annotated moments where boundaries are.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. Those of QD-DETR;
            and the boundaries' convolutions see padding, points of the decoder are placed in the padded video's clips
            (`BoundaryAttention`), and so are the true boundaries; padded clips count twice among those that are none.
        options: of `QdDetrEncoder`.
    """

    def __init__(
        self, *, width: int, boundary_loss: bool = True, official_batch_faults: bool = False, **options: Any
    ) -> None:
        super().__init__(width=width, official_batch_faults=official_batch_faults, **options)
        self.start_tower = BoundaryTower(width, official_batch_faults=official_batch_faults)
        self.end_tower = BoundaryTower(width, official_batch_faults=official_batch_faults)
        self.boundary_loss = boundary_loss

    def forward(self, inputs: VideoText, *, with_negatives: bool | None = None) -> Encoding:
        """Encode; with negatives (by default in training) also each video with its neighbour's query."""
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        positions, mask = grid_positions(inputs.video_mask, self.width).to(video.dtype), inputs.video_mask
        fused = self.fuse(video, positions, mask, text, words, inputs.text_mask)
        memory, saliency = self.summarize(fused, positions, mask)
        extras = {"boundaries": torch.cat([self.start_tower(fused, mask), self.end_tower(fused, mask)], -1)}
        with_negatives = self.training if with_negatives is None else with_negatives
        if with_negatives and (len(video) > 1 or self.official_batch_faults):
            extras["negative_saliency"] = self.foreign_saliency(video, positions, mask, text, words, inputs.text_mask)
        return Encoding(memory, saliency, extras, text=text, text_mask=inputs.text_mask)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """QD-DETR's saliency terms, and whether each clip is a start or an end.

        Args:
            mask: (B, T), True where a clip is real.
        """
        terms = super().losses(encoding, targets, mask)
        if self.boundary_loss:
            said = encoding.extras["boundaries"]
            terms["boundary"] = boundary_loss(said, targets.spans, mask, padded=self.official_batch_faults)
        return terms


def true_boundaries(spans: Targets, num_clips: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which clips are near a start, and which near an end.

    Args:
        spans: the moments.
        num_clips: (B,), clips of each video.
        length: T.

    Returns:
        Two of (B, T), True for clips whose middle lies in the last quarter of a moment's length before its start or in
        the first tenth after it; and likewise around its end.
    """
    edges = to_corners(spans.boxes).clamp(0, 1) * num_clips[:, None, None]  # (B, M, 2), in clips
    start, end = edges[..., None].unbind(-2)  # (B, M, 1)
    middles = torch.arange(length, device=edges.device) + 0.5
    size = end - start
    near_start = (middles >= start - OUTSIDE * size) & (middles <= start + INSIDE * size)
    near_end = (middles >= end - INSIDE * size) & (middles <= end + OUTSIDE * size)
    real = spans.mask[..., None]
    return (near_start & real).any(1), (near_end & real).any(1)


def boundary_loss(boundaries: Tensor, spans: Targets, mask: Tensor, *, padded: bool = False) -> Tensor:
    """Binary cross-entropy of the mean of tanh of the features, those of boundaries and of the rest at equal weight.

    Args:
        boundaries: (B, T, 2C), not negative.
        spans: the moments.
        mask: (B, T), True where a clip is real.
        padded: lay moments over the padded video, and count padding twice among the rest (official checkpoints).
    """
    length = mask.shape[1]
    num_clips = torch.full_like(mask[:, 0], length, dtype=torch.long) if padded else mask.sum(1)
    total = boundaries.new_zeros(len(mask))
    for side, near in zip(boundaries.chunk(2, -1), true_boundaries(spans, num_clips, length), strict=True):
        said = at_least_float32(side).tanh().mean(-1)  # (B, T)
        near = near if padded else near & mask
        truth = near.to(said.dtype)
        rest = (~near).sum(1, keepdim=True) + (~mask).sum(1, keepdim=True) if padded else (~near & mask).sum(1, True)
        weights = truth / truth.sum(1, keepdim=True).clamp(min=1) + (1 - truth) / rest.clamp(min=1)
        total = total + (F.binary_cross_entropy(said, truth, reduction="none") * weights * mask).sum(1)
    return total.mean() / 4  # the mean of both sides, and of both classes


def quality_regression(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """How far the quality is from the overlap with the best true span; good, fair and bad ones at equal weight."""
    assert predictions.quality is not None
    found = to_corners(at_least_float32(predictions.boxes.detach())).clamp(0, 1)
    true = to_corners(targets.boxes).clamp(0, 1).to(found.dtype)
    overlap = iou(found[:, :, None], true[:, None])[0].masked_fill(~targets.mask[:, None], 0).amax(-1)  # (B, Q)
    difference = (at_least_float32(predictions.quality).sigmoid() - overlap).abs()
    groups = (overlap > GOOD, (overlap <= GOOD) & (overlap > BAD), overlap <= BAD)
    return (
        sum(((difference * group).sum() / group.sum().clamp(min=1) for group in groups), difference.new_zeros(())) / 3
    )


def corner_l1(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """Absolute difference of starts and of ends, averaged."""
    said = to_corners(matched(at_least_float32(predictions.boxes), assignment))
    difference = (said - to_corners(matched_targets(targets.boxes, assignment)).clamp(0, 1)).abs()
    return difference.sum() / max(difference.numel(), 1)
