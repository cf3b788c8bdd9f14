"""Heads that predict at every anchor of a pyramid: ATSS, and the region proposals of Faster R-CNN; in any number of dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.anchors import DeltaCoder, Pyramid, anchor_sizes, clip, grid_anchors, inside
from momentdetr.detr.assignment_dense import BACKGROUND, IGNORED, atss, max_iou
from momentdetr.detr.boxes import at_least_float32, giou, to_center_size, to_corners
from momentdetr.detr.initialization import prior_bias
from momentdetr.detr.losses import binary, focal, judged_rows, l1, matched, matched_targets, over_processes
from momentdetr.detr.neck import CONVOLUTIONS
from momentdetr.detr.nms import nms
from momentdetr.detr.types import Assignment, Predictions, Supervision, Targets

Shuffle = Callable[[int], Tensor]
"""How heads choose at random: a number n -> a permutation of range(n)."""


@dataclass(frozen=True)
class Candidates:
    """Boxes that a head trained on, for the decoder to borrow.

    Args:
        corners: (B, R, 2D) in input cells.
        target: (B, R), the target that each answers for, or BACKGROUND.
        features: (B, R, C).
    """

    corners: Tensor
    target: Tensor
    features: Tensor


def target_corners(targets: Targets, extents: Tensor, sample: int) -> tuple[Tensor, Tensor]:
    """One sample's targets (M, 2D) as corners in input cells, and where they stand among the padded ones (M,)."""
    place = targets.mask[sample].nonzero().flatten()
    return to_corners(at_least_float32(targets.boxes[sample, place])) * extents[sample].repeat(2), place


def choose(rows: Tensor, count: int, shuffle: Shuffle) -> Tensor:
    """At most `count` of the rows (n,), at random, in order."""
    if len(rows) <= count:
        return rows
    return rows[shuffle(len(rows)).to(rows.device)[:count]].sort().values


def sample_rows(target: Tensor, number: int, share: float, shuffle: Shuffle) -> tuple[Tensor, Tensor]:
    """Rows to train on: positives up to a share, the rest background (Ren et al., 2015); both in order."""
    positive = choose((target >= 0).nonzero().flatten(), int(number * share), shuffle)
    negative = choose((target == BACKGROUND).nonzero().flatten(), number - len(positive), shuffle)
    return positive, negative


def _flat(maps: Tensor, channels: int) -> Tensor:
    """(B, A * channels, *spatial) -> (B, cells * A, channels)."""
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
        _start(self)
        prior_bias(self.classes)

    def predict(self, pyramid: Pyramid) -> Predictions:
        """Logits (B, N, K), coded boxes (B, N, 2D), centerness logits (B, N)."""
        logits, boxes, central = [], [], []
        for level, scale in zip(pyramid.levels, self.scales, strict=True):
            spatial = self.box_tower(level)
            logits.append(_flat(self.classes(self.class_tower(level)), self.classes.out_channels))
            boxes.append(_flat(self.boxes(spatial) * scale, 2 * self.num_dims))
            central.append(_flat(self.centerness(spatial), 1)[..., 0])
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
        _start(self)

    def predict(self, pyramid: Pyramid) -> Predictions:
        """Logits (B, N, 1) and coded boxes (B, N, 2D)."""
        mixed = [torch.relu(self.mix(level)) for level in pyramid.levels]
        logits = torch.cat([_flat(self.objects(level), 1) for level in mixed], 1)
        return Predictions(logits, torch.cat([_flat(self.boxes(level), 2 * self.num_dims) for level in mixed], 1))

    def forward(self, pyramid: Pyramid, targets: Targets, shuffle: Shuffle) -> tuple[Supervision, list[Tensor]]:
        """What is to be judged, and each sample's proposals (P, 2D), corners in input cells, best first."""
        levels, valid = self.anchors(pyramid)
        said = self.predict(pyramid)
        supervision = self._judged(said, torch.cat(levels), valid, pyramid.extents, targets, shuffle)
        return supervision, [self.propose(said, levels, pyramid.extents, i) for i in range(len(valid))]

    @torch.no_grad()
    def propose(self, said: Predictions, levels: Sequence[Tensor], extents: Tensor, sample: int) -> Tensor:
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
        return boxes[whole][nms(boxes[whole], score[whole], self.overlap, level[whole])[: self.number]]

    def _judged(
        self,
        said: Predictions,
        anchors: Tensor,
        valid: Tensor,
        extents: Tensor,
        targets: Targets,
        shuffle: Shuffle,
    ) -> Supervision:
        logits, deltas, positives, aims, count = [], [], [], [], 0
        for sample, here in enumerate(valid):
            corners, _ = target_corners(targets, extents, sample)
            place = here.nonzero().flatten()
            target = max_iou(anchors[place], corners, positive=0.7, negative=0.3, rescue=0.3)
            positive, negative = sample_rows(target, self.rows, 0.5, shuffle)
            rows = place[torch.cat([positive, negative])]
            positives.append(torch.arange(len(positive), device=rows.device) + sum(map(len, logits)))
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


def _start(head: nn.Module) -> None:
    """Convolutions start small, as in the one-stage detectors."""
    for module in head.modules():
        if isinstance(module, tuple(CONVOLUTIONS.values())):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


__all__ = [
    "IGNORED",
    "AnchorHead",
    "AtssHead",
    "Candidates",
    "RegionProposals",
    "Shuffle",
    "centerness",
    "choose",
    "sample_rows",
    "target_corners",
]
