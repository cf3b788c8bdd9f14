"""Moments predicted at every point of a pyramid of clips, without queries (R2-Tuning; after ActionFormer and FCOS)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.boxes import at_least_float32, to_center_size, to_corners
from momentdetr.detr.losses import Losses
from momentdetr.detr.types import Memory, Output, Predictions, Targets

RADIUS = 1.5  # points this many strides around a moment's middle answer for it
DIGITS = 3  # edges are compared in clips to a thousandth; fractions of a video lose more than whole clips may


@dataclass(frozen=True)
class Points:
    """The points of all levels, one after the other.

    Args:
        positions: (N,), in clips.
        low: (N,), the shortest distance to a moment's far end that a point answers for, in clips.
        high: (N,), the longest.
        strides: (N,), of the point's level, in clips.
        sizes: number of points of each level.
    """

    positions: Tensor
    low: Tensor
    high: Tensor
    strides: Tensor
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, sizes: Sequence[int], strides: Sequence[int], like: Tensor) -> Points:
        """Points at the first clip of each cell.

        Args:
            sizes: number of cells of each level.
            strides: of all levels; those that have no cells are at the end and not in `sizes`.
        """
        bounds = [0.0, *map(float, strides[1:]), math.inf]
        rows = [
            torch.tensor([cell * stride, bounds[level], bounds[level + 1], stride], dtype=torch.float32)
            for level, (size, stride) in enumerate(zip(sizes, strides, strict=False))
            for cell in range(size)
        ]
        table = torch.stack(rows).to(like.device, at_least_float32(like).dtype)
        positions, low, high, stride = table.unbind(1)
        return cls(positions, low, high, stride, tuple(sizes))


@dataclass(frozen=True)
class PointOutput(Output):
    """What points say.

    Args:
        points: where they are.
        offsets: (B, N, 2), distances to start and end in strides of the level.
        mask: (B, N), True where a point is one of the video's own.
        num_clips: (B,), of each video.
    """

    points: Points = field(kw_only=True)
    offsets: Tensor = field(kw_only=True)
    mask: Tensor = field(kw_only=True)
    num_clips: Tensor = field(kw_only=True)


class Pyramid(nn.Module):
    """Clips at several strides: each halving is a convolution of two clips, a layer norm and ReLU.

    Args:
        width: C.
        strides: powers of two, from 1.
        official_batch_faults: let padding into cells that are partly real, and count those (official checkpoints).
    """

    def __init__(
        self, width: int, strides: Sequence[int] = (1, 2, 4, 8), *, official_batch_faults: bool = False
    ) -> None:
        super().__init__()
        self.strides, self.official_batch_faults = tuple(strides), official_batch_faults
        halvings = [int(math.log2(stride)) for stride in strides]
        self.convolutions = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(width, width, 2, stride=2) for _ in range(count)) for count in halvings
        )
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(width) for _ in range(count)) for count in halvings)

    def forward(self, clips: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Clips (B, T, C), not negative, and mask -> cells (B, T // stride, C) and mask, of each level that has any."""
        levels = []
        for stride, convolutions, norms in zip(self.strides, self.convolutions, self.norms, strict=True):
            if clips.shape[1] < stride:
                continue
            cells = clips
            for convolution, norm in zip(convolutions, norms, strict=True):  # type: ignore[call-overload]
                cells = norm(convolution(cells.transpose(1, 2)).transpose(1, 2)).relu()
            levels.append((cells, self._real(mask, stride)))
        return levels

    def _real(self, mask: Tensor, stride: int) -> Tensor:
        whole = mask[:, : mask.shape[1] // stride * stride].unflatten(1, (-1, stride))
        return whole.any(-1) if self.official_batch_faults else whole.all(-1)


class PointTower(nn.Module):
    """Two convolutions over three cells, ReLU between: (B, N, C) -> (B, N, K)."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Conv1d(width, num_outputs, 3, padding=1)

    def forward(self, cells: Tensor, mask: Tensor | None) -> Tensor:
        """Cells, and which are real; None: all are."""
        for convolution in (self.hidden, self.out):
            cells = cells if mask is None else cells * mask[..., None]
            cells = convolution(cells.transpose(1, 2)).transpose(1, 2)
            cells = cells.relu() if convolution is self.hidden else cells
        return cells


class PointHead(nn.Module):
    """Class and distances at every point.

    Args:
        pyramid: of clips.
        classes: (cells, mask) -> (B, N, 1).
        offsets: (cells, mask) -> (B, N, 2), logarithms of distances.
        official_batch_faults: let padding into the towers, see `Pyramid`.
    """

    def __init__(
        self, *, pyramid: Pyramid, classes: nn.Module, offsets: nn.Module, official_batch_faults: bool = False
    ) -> None:
        super().__init__()
        self.pyramid, self.classes, self.offsets = pyramid, classes, offsets
        self.scales = nn.Parameter(torch.ones(len(pyramid.strides)))
        self.official_batch_faults = official_batch_faults

    def forward(self, memory: Memory) -> PointOutput:
        """Clips (B, T, C), not negative -> moments."""
        assert memory.mask is not None
        levels = self.pyramid(memory.tokens, memory.mask)
        logits, offsets = [], []
        for scale, (cells, mask) in zip(self.scales, levels, strict=False):
            seen = None if self.official_batch_faults else mask
            logits.append(self.classes(cells, seen))
            offsets.append(at_least_float32(self.offsets(cells, seen)).exp() * scale)
        points = Points.of([cells.shape[1] for cells, _ in levels], self.pyramid.strides, memory.tokens)
        return points_said(torch.cat(logits, 1), torch.cat(offsets, 1), points, levels, memory.mask)


def points_said(
    logits: Tensor, offsets: Tensor, points: Points, levels: Sequence[tuple[Tensor, Tensor]], mask: Tensor
) -> PointOutput:
    """Logits (B, N, 1) and distances (B, N, 2) at points, as an output; mask (B, T) of the clips."""
    num_clips = mask.sum(1)
    start = points.positions - offsets[..., 0] * points.strides
    end = points.positions + offsets[..., 1] * points.strides
    boxes = to_center_size(torch.stack([start, end], -1) / num_clips[:, None, None])
    cells = torch.cat([cells for cells, _ in levels], 1)
    return PointOutput(
        (Predictions(logits, boxes),),
        cells[None],
        points=points,
        offsets=offsets,
        mask=torch.cat([real for _, real in levels], 1),
        num_clips=num_clips,
    )


def point_targets(points: Points, spans: Targets, num_clips: Tensor) -> tuple[Tensor, Tensor]:
    """What each point should say: the shortest moment that it is near the middle of, and of a length for its level.

    Args:
        spans: the moments, as fractions of the video.
        num_clips: (B,).

    Returns:
        whether it answers for a moment (B, N), and distances to start and end (B, N, 2) in strides.
    """
    edges = (to_corners(spans.boxes) * num_clips[:, None, None]).round(decimals=DIGITS).to(points.positions.dtype)
    start, end = edges[:, None].unbind(-1)  # (B, 1, M)
    here, stride = points.positions[:, None], points.strides[:, None]  # (N, 1)
    distances = torch.stack([here - start, end - here], -1)  # (B, N, M, 2)
    middle = (start + end) / 2
    first, last = (middle - stride * RADIUS).maximum(start), (middle + stride * RADIUS).minimum(end)
    farther = distances.amax(-1)
    fits = (here >= first) & (here <= last) & (farther >= points.low[:, None]) & (farther <= points.high[:, None])
    fits = fits & spans.mask[:, None]
    shortest = (end - start).expand_as(fits).masked_fill(~fits, math.inf).argmin(-1)  # (B, N)
    chosen = distances.gather(2, shortest[..., None, None].expand(-1, -1, 1, 2)).squeeze(2)
    return fits.any(-1), chosen / stride


def dense_focal(logits: Tensor, truth: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss without class balance (Lin et al., 2017), averaged over real points (B, N)."""
    logits, truth = at_least_float32(logits), truth.to(at_least_float32(logits).dtype)
    prob = logits.sigmoid()
    unlike = prob * (1 - truth) + (1 - prob) * truth
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * unlike**gamma
    return (loss * mask).sum() / mask.sum().clamp(min=1)


class PointCriterion:
    """Focal loss of all real points, L1 of the distances of those that answer for a moment.

    Args:
        class_: weight of the first.
        l1: weight of the second.
    """

    auxiliary = False

    def __init__(self, *, class_: float = 1.0, l1: float = 0.2) -> None:
        self.class_, self.l1 = class_, l1

    def __call__(self, output: PointOutput, targets: Targets) -> Losses:
        answers, distances = point_targets(output.points, targets, output.num_clips)
        difference = (output.offsets - distances).abs() * answers[..., None]
        l1 = difference.sum() / (2 * answers.sum()).clamp(min=1)
        class_ = dense_focal(output.last.logits[..., 0], answers, output.mask)
        return Losses(self.class_ * class_ + self.l1 * l1, {"class": class_, "l1": l1}, {})
