"""The region proposals of Faster R-CNN (Ren et al., 2015), in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentdetr.detr.anchors import DeltaCoder, Pyramid, anchor_sizes, clip
from momentdetr.detr.assignment_dense import Shuffle, max_iou, sample_rows, target_corners
from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.dense_head import AnchorHead, flat
from momentdetr.detr.initialization import small_convolutions
from momentdetr.detr.losses import binary, judged_rows, l1
from momentdetr.detr.neck import CONVOLUTIONS
from momentdetr.detr.nms import nms
from momentdetr.detr.types import Predictions, Supervision, Targets


@dataclass(frozen=True)
class Regions:
    """What one sample's regions are, best first: corners (P, 2D) in input cells, scores (P,) in [0, 1]."""

    corners: Tensor
    scores: Tensor


class RegionProposals(AnchorHead):
    """Which anchors hold anything at all, and where (Ren et al., 2015).

    Args:
        num_dims: D.
        width: C.
        size: of the smallest anchor, in cells; three sizes an octave, in each of `aspects`.
        per_level: how many proposals of a level are looked at.
        number: how many proposals are kept.
        overlap: IoU above which the worse one of a level is dropped.
        rows: anchors of a sample to train on, half of them positive.
        weight: of all loss terms.
    """

    def __init__(
        self,
        num_dims: int,
        width: int,
        *,
        size: float = 4,
        per_level: int = 4000,
        number: int = 1000,
        overlap: float = 0.7,
        rows: int = 256,
        weight: float = 12.0,
    ) -> None:
        super().__init__(num_dims, anchor_sizes(num_dims, size, octave=3, ratio=2.0), DeltaCoder())
        self.per_level, self.number, self.overlap = per_level, number, overlap
        self.rows, self.weight = rows, weight
        convolution = CONVOLUTIONS[num_dims]
        self.mix = convolution(width, width, 3, padding=1)
        self.objects = convolution(width, len(self.sizes), 1)
        self.boxes = convolution(width, len(self.sizes) * 2 * num_dims, 1)
        small_convolutions(self)

    def predict(self, pyramid: Pyramid) -> Predictions:
        """Logits (B, N, 1) and coded boxes (B, N, 2D)."""
        mixed = [torch.relu(self.mix(level)) for level in pyramid.levels]
        logits = torch.cat([flat(self.objects(level), 1) for level in mixed], 1)
        return Predictions(logits, torch.cat([flat(self.boxes(level), 2 * self.num_dims) for level in mixed], 1))

    def forward(self, pyramid: Pyramid, targets: Targets, shuffle: Shuffle) -> tuple[Supervision, list[Regions]]:
        """What is to be judged, and each sample's proposals."""
        levels, valid = self.anchors(pyramid)
        said = self.predict(pyramid)
        supervision = self._judged(said, torch.cat(levels), valid, pyramid.extents, targets, shuffle)
        return supervision, [self.propose(said, levels, pyramid.extents, i) for i in range(len(valid))]

    @torch.no_grad()
    def propose(self, said: Predictions, levels: Sequence[Tensor], extents: Tensor, sample: int) -> Regions:
        """One sample's proposals: the best of each level, those that overlap with better ones of it dropped."""
        counts = [len(level) for level in levels]
        scores, corners, owner = [], [], []
        parts = zip(said.logits[sample, :, 0].split(counts), said.boxes[sample].split(counts), levels, strict=True)
        for index, (logits, deltas, anchors) in enumerate(parts):
            score, order = at_least_float32(logits).sigmoid().sort(descending=True, stable=True)
            order = order[: self.per_level]
            scores.append(score[: self.per_level])
            corners.append(clip(self.coder.decode(anchors[order], deltas[order]), extents[sample]))
            owner.append(torch.full_like(order, index))
        boxes, score, level = torch.cat(corners), torch.cat(scores), torch.cat(owner)
        lower, upper = boxes.chunk(2, -1)
        whole = (upper > lower).all(-1).nonzero().flatten()
        best = whole[nms(boxes[whole], score[whole], self.overlap, level[whole])[: self.number]]
        return Regions(boxes[best], score[best])

    def _judged(
        self,
        said: Predictions,
        anchors: Tensor,
        valid: Tensor,
        extents: Tensor,
        targets: Targets,
        shuffle: Shuffle,
    ) -> Supervision:
        logits: list[Tensor] = []
        deltas, positives, aims, count = [], [], [], 0
        for sample, here in enumerate(valid):
            corners, _ = target_corners(targets, extents, sample)
            place = here.nonzero().flatten()
            target = max_iou(anchors[place], corners, positive=0.7, negative=0.3, rescue=0.3)
            positive, negative = sample_rows(target, self.rows, 0.5, shuffle)
            rows = place[torch.cat([positive, negative])]
            positives.append(torch.arange(len(positive), device=rows.device) + sum(len(one) for one in logits))
            aims.append(self.coder.encode(anchors[place[positive]], corners[target[positive]]))
            logits.append(said.logits[sample, rows])
            deltas.append(said.boxes[sample, rows])
            count += max(len(positive), 1) + max(len(negative), 1)
        aim = torch.cat(aims)
        return judged_rows(
            "regions",
            Predictions(torch.cat(logits), torch.cat(deltas)),
            torch.cat(positives),
            torch.zeros(len(aim), dtype=torch.long, device=aim.device),
            aim,
            count=aim.new_tensor(float(count)),
            weight=self.weight,
            terms={"class": (1.0, binary), "l1": (1.0, l1)},
        )
