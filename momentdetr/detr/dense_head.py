"""Heads that predict at every anchor of a pyramid, in any number of dimensions, among them ATSS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.anchors import DeltaCoder, Pyramid, anchor_sizes, grid_anchors, inside
from momentdetr.detr.assignment_dense import BACKGROUND, Candidates, Shuffle, atss, target_corners
from momentdetr.detr.boxes import at_least_float32, giou, to_center_size, to_corners
from momentdetr.detr.initialization import prior_bias, small_convolutions
from momentdetr.detr.losses import focal, judged_rows, matched, matched_targets, over_processes
from momentdetr.detr.neck import CONVOLUTIONS
from momentdetr.detr.types import Assignment, Predictions, Supervision, Targets


def flat(maps: Tensor, channels: int) -> Tensor:
    """One row an anchor: (B, A * channels, *spatial) -> (B, cells * A, channels)."""
    return maps.movedim(1, -1).reshape(len(maps), -1, channels)


class AnchorHead(nn.Module):
    """What dense heads share: anchors on every level.

    Args:
        num_dims: D.
        sizes: of one cell's anchors, in cells.
        coder: of boxes.
    """

    def __init__(self, num_dims: int, sizes: Sequence[Sequence[float]], coder: DeltaCoder) -> None:
        super().__init__()
        self.num_dims, self.sizes, self.coder = num_dims, sizes, coder

    def anchors(self, pyramid: Pyramid) -> tuple[list[Tensor], Tensor]:
        """Per level (N_l, 2D) corners in input cells, and which of all lie inside each sample (B, N)."""
        grids = list(zip(pyramid.shapes, pyramid.strides, strict=True))
        anchors = [grid_anchors(shape, stride, self.sizes, pyramid.extents) for shape, stride in grids]
        valid = torch.cat([inside(shape, stride, pyramid.extents) for shape, stride in grids], 1)
        return anchors, valid.repeat_interleave(len(self.sizes), 1)


def centerness(anchors: Tensor, corners: Tensor) -> Tensor:
    """How central an anchor's centre lies in its box: 1 in the middle, 0 at an edge (FCOS; Tian et al., 2019).

    Per axis the nearer edge's distance over the farther one's; the geometric mean over axes, in any D.

    Args:
        anchors: (P, 2D).
        corners: (P, 2D), each around its anchor's centre.
    """
    center = to_center_size(anchors).chunk(2, -1)[0]
    lower, upper = corners.chunk(2, -1)
    edges = torch.stack([center - lower, upper - center])
    return (edges.amin(0) / edges.amax(0)).clamp(min=0).prod(-1) ** (1 / center.shape[-1])


def central_giou(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, weights: Tensor
) -> Tensor:
    """1 - GIoU of matched pairs, weighted (P,), divided by the sum of weights, at least 1."""
    predicted, true = matched(predictions.boxes, assignment), matched_targets(targets.boxes, assignment)
    return ((1 - giou(to_corners(predicted), to_corners(true))) * weights).sum() / over_processes(weights.sum())


def quality_loss(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, truth: Tensor
) -> Tensor:
    """Binary cross-entropy of matched qualities with what they should say (P,)."""
    assert predictions.quality is not None
    said = at_least_float32(matched(predictions.quality, assignment))
    return F.binary_cross_entropy_with_logits(said, truth, reduction="sum") / count


class AtssHead(AnchorHead):
    """One anchor a cell; class, box and centerness (Zhang et al., 2020), as Co-DETR uses it.

    Args:
        num_dims: D.
        width: C.
        num_classes: K.
        num_levels: of the pyramid.
        size: of an anchor, in cells.
        stacked: convolutions before the predictions.
        group_norm: groups of their norms.
        weight: of all loss terms.
        nearest: candidates per target and level.
    """

    name = "atss"

    def __init__(
        self,
        num_dims: int,
        width: int,
        num_classes: int,
        num_levels: int,
        *,
        size: float = 8,
        stacked: int = 1,
        group_norm: int = 32,
        weight: float = 12.0,
        nearest: int = 9,
    ) -> None:
        super().__init__(num_dims, anchor_sizes(num_dims, size), DeltaCoder(0.1, 0.2))
        self.weight, self.nearest = weight, nearest
        convolution = CONVOLUTIONS[num_dims]

        def tower() -> nn.Sequential:
            convolutions = [convolution(width, width, 3, padding=1, bias=False) for _ in range(stacked)]
            parts = [nn.Sequential(one, nn.GroupNorm(group_norm, width), nn.ReLU()) for one in convolutions]
            return nn.Sequential(*parts)

        self.class_tower, self.box_tower = tower(), tower()
        self.classes = convolution(width, num_classes, 3, padding=1)
        self.boxes = convolution(width, 2 * num_dims, 3, padding=1)
        self.centerness = convolution(width, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in range(num_levels)])
        small_convolutions(self)
        prior_bias(self.classes)

    def predict(self, pyramid: Pyramid) -> Predictions:
        """Logits (B, N, K), coded boxes (B, N, 2D), centerness logits (B, N)."""
        logits, boxes, central = [], [], []
        for level, scale in zip(pyramid.levels, self.scales, strict=True):
            spatial = self.box_tower(level)
            logits.append(flat(self.classes(self.class_tower(level)), self.classes.out_channels))
            boxes.append(flat(self.boxes(spatial) * scale, 2 * self.num_dims))
            central.append(flat(self.centerness(spatial), 1)[..., 0])
        return Predictions(torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(central, 1))

    def forward(
        self, pyramid: Pyramid, targets: Targets, shuffle: Shuffle
    ) -> tuple[tuple[Supervision, ...], Candidates]:
        """Predict, assign, and say what is to be judged; nothing is drawn at random here."""
        levels, valid = self.anchors(pyramid)
        anchors, extents = torch.cat(levels), pyramid.extents
        target = torch.full_like(valid, BACKGROUND, dtype=torch.long)
        for sample, here in enumerate(valid):
            true, place = target_corners(targets, extents, sample)
            per_level = [int(part.sum()) for part in here.split([len(level) for level in levels])]
            index = atss(anchors[here], per_level, true, nearest=self.nearest)
            target[sample, here] = torch.where(index >= 0, place[index] if len(place) else index, index)
        # The anchors of padding are no training samples; as candidates they are background without a place.
        corners = anchors * valid[..., None]
        return (self._judged(pyramid, anchors, valid, target, targets),), Candidates(corners, target, pyramid.rows())

    def _judged(
        self, pyramid: Pyramid, anchors: Tensor, valid: Tensor, target: Tensor, targets: Targets
    ) -> Supervision:
        said, extents = self.predict(pyramid), pyramid.extents.repeat(1, 2)
        assert said.quality is not None
        boxes = to_center_size(self.coder.decode(anchors, said.boxes) / extents[:, None])
        rows = valid.nonzero(as_tuple=True)
        positive = (target[rows] >= 0).nonzero().flatten()
        sample, anchor = (index[positive] for index in rows)
        true = targets.boxes[sample, target[sample, anchor]]
        central = centerness(anchors[anchor], to_corners(true) * extents[sample])
        return judged_rows(
            self.name,
            Predictions(said.logits[rows], boxes[rows], said.quality[rows]),
            positive,
            targets.labels[sample, target[sample, anchor]],
            true,
            count=over_processes((target >= 0).sum(1).clamp(min=1).sum().float()),
            weight=self.weight,
            terms={
                "class": (1.0, focal),
                "giou": (2.0, partial(central_giou, weights=central)),
                "centerness": (1.0, partial(quality_loss, truth=central)),
            },
        )
