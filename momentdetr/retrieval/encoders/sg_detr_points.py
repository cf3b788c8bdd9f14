"""SG-DETR's one-to-many head (Gordeev et al., 2024): ATSS on spans of clips, and the queries that it lends the decoder.

One anchor a cell, in clips; classes, spans and centerness from convolutions that all levels share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.assignment_dense import BACKGROUND, Shuffle, atss, target_corners
from momentdetr.detr.boxes import at_least_float32, giou, to_center_size, to_corners
from momentdetr.detr.dense_head import centerness, quality_loss
from momentdetr.detr.hybrid import Lent
from momentdetr.detr.initialization import prior_bias, small_convolutions
from momentdetr.detr.losses import focal, judged_rows, matched, matched_targets, over_processes
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.types import Assignment, Predictions, Queries, Supervision, Targets
from momentdetr.retrieval.pyramid import Level

MAX_GROWTH = math.log(1000 / 16)
"""How much a coded span may grow, as a logarithm."""

_MARGIN = 1e-7  # how far inside a moment an anchor's middle must lie, in clips


def span_anchors(counts: Sequence[int], strides: Sequence[float], sizes: Sequence[float], like: Tensor) -> Tensor:
    """One anchor a cell, level by level: (N, 2) starts and ends in clips, around the middle of its cell.

    Args:
        counts: cells of each level.
        strides: clips per cell of each level.
        sizes: clips that an anchor holds, counted as the official code counts them: from the first to the last one, so
            that its end lies `size - 1` clips behind its start.
    """
    rows = []
    for count, stride, size in zip(counts, strides, sizes, strict=True):
        middle = (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * stride
        rows.append(torch.stack([middle - (size - 1) / 2, middle + (size - 1) / 2], -1))
    return torch.cat(rows)


class SpanCoder:
    """Spans as shifts and growths relative to anchors; both count a clip more than lies between start and end.

    So the official code has it, without a reason; its weights want it.
    """

    center, size = 0.1, 0.2

    def encode(self, anchors: Tensor, corners: Tensor) -> Tensor:
        """Starts and ends (..., 2) relative to anchors (..., 2), in clips."""
        (middle, length), (true_middle, true_length) = (to_center_size(x).unbind(-1) for x in (anchors, corners))
        shift = (true_middle - middle) / (length + 1) / self.center
        return torch.stack([shift, ((true_length + 1) / (length + 1)).log() / self.size], -1)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Deltas (..., 2) to starts and ends (..., 2); a small one may end before it starts."""
        middle, length = to_center_size(anchors).unbind(-1)
        shift, growth = at_least_float32(deltas).unbind(-1)
        wide = (growth * self.size).clamp(max=MAX_GROWTH).exp() * (length + 1) - 1
        return to_corners(torch.stack([middle + shift * self.center * (length + 1), wide], -1))


def _central_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of values (P,); 0 where there are none."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def central_giou(said: Predictions, targets: Targets, pairs: Assignment, count: Tensor, *, weights: Tensor) -> Tensor:
    """1 - GIoU of matched pairs, their mean weighted by centerness (P,)."""
    predicted, true = matched(said.boxes, pairs), matched_targets(targets.boxes, pairs)
    return _central_mean(1 - giou(to_corners(predicted), to_corners(true)), weights)


def central_smooth_l1(
    said: Predictions, targets: Targets, pairs: Assignment, count: Tensor, *, weights: Tensor
) -> Tensor:
    """Smooth L1 of starts and ends, summed, in clips; their mean weighted by centerness (P,)."""
    predicted, true = to_corners(matched(said.boxes, pairs)), to_corners(matched_targets(targets.boxes, pairs))
    return _central_mean(F.smooth_l1_loss(predicted, true, reduction="none").sum(-1), weights)


class SpanTower(nn.Module):
    """Convolutions of three cells without bias, each with a layer norm and ReLU; padding is never seen."""

    def __init__(self, width: int, stacked: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1, bias=False) for _ in range(stacked))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(stacked))

    def forward(self, cells: Tensor, mask: Tensor | None) -> Tensor:
        """Cells (B, N, C), and which are real (B, N); None: all are."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            cells = norm(convolve(convolution, cells, mask)).relu()
        return cells


def convolve(convolution: nn.Module, cells: Tensor, mask: Tensor | None) -> Tensor:
    """Of cells (B, N, C), those that are not real taken for zeros: (B, N, K)."""
    cells = cells if mask is None else cells.masked_fill(~mask[..., None], 0)
    found: Tensor = convolution(cells.transpose(1, 2))
    return found.transpose(1, 2)


@dataclass(frozen=True)
class Assigned:
    """Which moment each cell answers for.

    Args:
        anchors: (N, 2), in clips.
        target: (B, N), index of a target or BACKGROUND.
        mask: (B, N), True where a cell counts.
        num_clips: (B, 1), float.
    """

    anchors: Tensor
    target: Tensor
    mask: Tensor
    num_clips: Tensor


class SpanHead(nn.Module):
    """Class, span and centerness at every cell of a pyramid (ATSS; Zhang et al., 2020).

    Args:
        width: C.
        strides: clips per cell of each level.
        sizes: clips of each level's anchors, see `span_anchors`.
        stacked: convolutions before the predictions.
        nearest: candidates per moment and level.
        prior: probability of a moment at the start.
        weights: of the terms "class", "giou", "span" and "centerness".
        official_batch_faults: let padding into cells near a sample's end, and judge padded cells as background.
    """

    name = "points"

    def __init__(
        self,
        width: int,
        strides: Sequence[float],
        sizes: Sequence[float],
        *,
        stacked: int = 3,
        nearest: int = 12,
        prior: float = 0.35,
        weights: dict[str, float],
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.sizes, self.nearest, self.weights = tuple(strides), tuple(sizes), nearest, dict(weights)
        self.official_batch_faults, self.coder = official_batch_faults, SpanCoder()
        self.class_tower, self.span_tower = SpanTower(width, stacked), SpanTower(width, stacked)
        self.classes, self.spans, self.centerness = (nn.Conv1d(width, size, 3, padding=1) for size in (1, 2, 1))
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        small_convolutions(self)
        prior_bias(self.classes, prior)

    def forward(self, levels: Sequence[Level]) -> Predictions:
        """Logits (B, N, 1), coded spans (B, N, 2), centerness logits (B, N)."""
        logits, spans, central = [], [], []
        for level, scale in zip(levels, self.scales, strict=True):
            mask = None if self.official_batch_faults else level.mask
            seen = self.span_tower(level.cells, mask)
            logits.append(convolve(self.classes, self.class_tower(level.cells, mask), mask))
            spans.append(convolve(self.spans, seen, mask) * scale)
            central.append(convolve(self.centerness, seen, mask).squeeze(-1))
        return Predictions(torch.cat(logits, 1), torch.cat(spans, 1), torch.cat(central, 1))

    def anchors(self, levels: Sequence[Level], like: Tensor) -> Tensor:
        """(N, 2), in clips."""
        return span_anchors([level.cells.shape[1] for level in levels], self.strides, self.sizes, like)

    @torch.no_grad()
    def assign(self, levels: Sequence[Level], targets: Targets, num_clips: Tensor) -> Assigned:
        """Which cells answer for which moment (B, M); nothing is drawn at random here."""
        anchors = self.anchors(levels, at_least_float32(targets.boxes))
        mask = torch.cat([level.mask for level in levels], 1)
        mask = torch.ones_like(mask) if self.official_batch_faults else mask
        extents, counts = num_clips[:, None].to(anchors.dtype), [level.mask.shape[1] for level in levels]
        target = torch.full_like(mask, BACKGROUND, dtype=torch.long)
        for sample, here in enumerate(mask):
            true, place = target_corners(targets, extents, sample)
            per_level = [int(part.sum()) for part in here.split(counts)]
            index = atss(anchors[here], per_level, true, nearest=self.nearest, margin=_MARGIN)
            target[sample, here] = torch.where(index >= 0, place[index] if len(place) else index, index)
        return Assigned(anchors, target, mask, extents)

    def judged(self, said: Predictions, targets: Targets, assigned: Assigned) -> Supervision:
        """What cells say, against what they should; spans in clips."""
        assert said.quality is not None
        rows = assigned.mask.nonzero(as_tuple=True)
        positive = (assigned.target[rows] >= 0).nonzero().flatten()
        sample, cell = (index[positive] for index in rows)
        target = assigned.target[sample, cell]
        true = at_least_float32(targets.boxes)[sample, target] * assigned.num_clips[sample]
        central = centerness(assigned.anchors[cell], to_corners(true))
        spans = to_center_size(self.coder.decode(assigned.anchors, said.boxes))
        return judged_rows(
            self.name,
            Predictions(said.logits[rows], spans[rows], said.quality[rows]),
            positive,
            targets.labels[sample, target],
            true,
            count=over_processes(central.new_tensor(float(len(positive)))),
            terms={
                "class": (self.weights["class"], focal),
                "giou": (self.weights["giou"], partial(central_giou, weights=central)),
                "span": (self.weights["span"], partial(central_smooth_l1, weights=central)),
                "centerness": (self.weights["centerness"], partial(quality_loss, truth=central)),
            },
        )


class LentQueries(nn.Module):
    """The cells that answer for a moment as queries, padded with cells that do not.

    Content is what the pyramid holds there, projected, with gradient; the decoder starts from the cell's anchor.

    Args:
        width: C.
        parametrization: of the decoder's anchors.
    """

    def __init__(self, width: int, parametrization: CenterSize) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        nn.init.normal_(self.project.weight, std=0.01)
        self.parametrization = parametrization

    def forward(self, name: str, cells: Tensor, assigned: Assigned, shuffle: Shuffle) -> Lent | None:
        """Borrow cells (B, N, C); None where no cell of the batch answers for anything."""
        rows = lent_rows(assigned, shuffle)
        if not rows.shape[1]:
            return None
        content = self.norm(self.project(cells.gather(1, rows[..., None].expand(-1, -1, cells.shape[-1]))))
        boxes = to_center_size(assigned.anchors[rows]) / assigned.num_clips[..., None]
        target = assigned.target.gather(1, rows)
        sample, slot = (target >= 0).nonzero(as_tuple=True)
        queries = Queries(content, anchors=self.parametrization.encode(boxes))
        return Lent(name, queries, Assignment(sample, slot, target[sample, slot]), rows)


def lent_rows(assigned: Assigned, shuffle: Shuffle) -> Tensor:
    """Cells (B, Q): all that answer for a moment, then others at random; Q is the most that a sample has of the former.

    Where a sample has too few others they come more than once.
    """
    found = [((row >= 0) & here).nonzero().flatten() for row, here in zip(assigned.target, assigned.mask, strict=True)]
    number = max(map(len, found))
    picked = []
    for row, here, own in zip(assigned.target, assigned.mask, found, strict=True):
        others = ((row < 0) & here).nonzero().flatten()
        others = others[shuffle(len(others)).to(others.device)] if len(others) else own
        missing = number - len(own)
        picked.append(torch.cat([own, others.repeat(-(-missing // max(len(others), 1)))[:missing]]))
    return torch.stack(picked)
