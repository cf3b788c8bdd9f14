"""Faster R-CNN (Ren et al., 2015) on the levels of a pyramid, in any number of dimensions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from momentdetr.detr.anchors import DeltaCoder, Pyramid
from momentdetr.detr.assignment_dense import (
    BACKGROUND,
    Candidates,
    Shuffle,
    max_iou,
    sample_rows,
    target_corners,
)
from momentdetr.detr.boxes import to_center_size
from momentdetr.detr.losses import cross_entropy, giou_loss, judged_rows
from momentdetr.detr.pooling import pool
from momentdetr.detr.region_proposals import RegionProposals
from momentdetr.detr.types import Predictions, Supervision, Targets


class RegionHead(nn.Module):
    """Class and box of pooled regions, by two linear layers.

    Args:
        num_dims: D.
        width: C.
        num_classes: K.
        hidden: size of the linear layers.
        bins: per axis of a pooled region.
    """

    def __init__(self, num_dims: int, width: int, num_classes: int, *, hidden: int = 1024, bins: int = 7) -> None:
        super().__init__()
        self.num_dims, self.bins = num_dims, bins
        self.hidden = nn.Sequential(
            nn.Flatten(1), nn.Linear(width * bins**num_dims, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.boxes = nn.Linear(hidden, num_classes * 2 * num_dims)
        for linear, std in ((self.classes, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, *bins) -> logits (R, K + 1), the last for background, and coded boxes (R, K, 2D)."""
        hidden = self.hidden(pooled)
        return self.classes(hidden), self.boxes(hidden).unflatten(-1, (-1, 2 * self.num_dims))


class FasterRcnn(nn.Module):
    """Regions proposed, sampled, pooled and judged, as Co-DETR uses it.

    Args:
        regions: proposes.
        head: judges.
        rows: regions of a sample to train on, a quarter of them positive.
        weight: of all loss terms.
        spare: levels at the coarse end that propose, but are not pooled from.
        samples: points per bin and axis; 0: as many as a region has cells per bin.
    """

    name = "rcnn"

    def __init__(
        self,
        *,
        regions: RegionProposals,
        head: RegionHead,
        rows: int = 512,
        weight: float = 12.0,
        spare: int = 1,
        samples: int = 0,
    ) -> None:
        super().__init__()
        self.regions, self.head = regions, head
        self.rows, self.weight, self.spare, self.samples = rows, weight, spare, samples
        self.coder = DeltaCoder(0.1, 0.2)

    def forward(
        self, pyramid: Pyramid, targets: Targets, shuffle: Shuffle
    ) -> tuple[tuple[Supervision, ...], Candidates]:
        """Propose, assign, sample, pool, predict, and say what is to be judged."""
        regions, proposals = self.regions(pyramid, targets, shuffle)
        picked = [self.pick(found.corners, targets, pyramid.extents, i, shuffle) for i, found in enumerate(proposals)]
        corners, target = (torch.cat(parts) for parts in zip(*picked, strict=True))
        owner = torch.cat([torch.full_like(index, i) for i, (_, index) in enumerate(picked)])
        pooled = self.pool(pyramid, corners, owner)
        judged = self._judged(pooled, corners, owner, target, pyramid.extents, targets)
        # Samples differ in how many regions they have; the decoder may borrow as many as the poorest has.
        counts = [len(index) for _, index in picked]
        fewest, features = min(counts), pooled.flatten(2).mean(-1)
        candidates = Candidates(
            *(torch.stack([part[:fewest] for part in x.split(counts)]) for x in (corners, target, features))
        )
        return (regions, judged), candidates

    def pick(
        self, proposals: Tensor, targets: Targets, extents: Tensor, sample: int, shuffle: Shuffle
    ) -> tuple[Tensor, Tensor]:
        """Regions of one sample to train on, positives first (R, 2D), and what they answer for (R,).

        The targets themselves are proposals too, so that there are positives from the first step on.
        """
        true, place = target_corners(targets, extents, sample)
        index = max_iou(proposals, true, positive=0.5, negative=0.5)
        index = torch.cat([torch.arange(len(true), device=index.device), index])
        rows = torch.cat(sample_rows(index, self.rows, 0.25, shuffle))
        index = index[rows]
        target = torch.where(index >= 0, place[index.clamp(min=0)], index) if len(place) else index
        return torch.cat([true, proposals])[rows], target

    def pool(self, pyramid: Pyramid, corners: Tensor, owner: Tensor) -> Tensor:
        """Regions (R, 2D) to (R, C, *bins)."""
        kept = len(pyramid.levels) - self.spare
        fine = replace(pyramid, levels=pyramid.levels[:kept], strides=pyramid.strides[:kept])
        return pool(fine, corners, owner, bins=self.head.bins, samples=self.samples)

    def _judged(
        self, pooled: Tensor, corners: Tensor, owner: Tensor, target: Tensor, extents: Tensor, targets: Targets
    ) -> Supervision:
        logits, deltas = self.head(pooled)
        positive = (target > BACKGROUND).nonzero().flatten()
        labels = targets.labels[owner[positive], target[positive]]
        chosen = torch.zeros_like(target).index_copy(0, positive, labels)
        boxes = self.coder.decode(corners, deltas[torch.arange(len(chosen), device=chosen.device), chosen])
        return judged_rows(
            self.name,
            Predictions(logits, to_center_size(boxes / extents[owner].repeat(1, 2))),
            positive,
            labels,
            targets.boxes[owner[positive], target[positive]],
            count=logits.new_tensor(float(max(len(target), 1))),
            weight=self.weight,
            terms={"class": (1.0, partial(cross_entropy, background_weight=1.0)), "giou": (10.0, giou_loss)},
        )
