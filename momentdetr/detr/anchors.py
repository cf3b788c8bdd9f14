"""Anchors on the levels of a pyramid, and boxes coded relative to them, in any number of dimensions.

Dense heads and RoI heads work on corners (..., 2D) in *input cells*: pixels of an image, clips of a video. One cell of
a level is `stride` input cells wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, to_center_size, to_corners

MAX_GROWTH = abs(math.log(16 / 1000))
"""How much a coded box may grow or shrink, as a logarithm (mmdetection's bound)."""


@dataclass(frozen=True)
class Pyramid:
    """Encoded feature levels.

    Args:
        levels: (B, C, *spatial) each, finest first.
        strides: input cells per cell of each level.
        extents: (B, D), each sample's size in input cells, natural order.
    """

    levels: tuple[Tensor, ...]
    strides: tuple[float, ...]
    extents: Tensor

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(level.shape[2:]) for level in self.levels)

    def rows(self) -> Tensor:
        """All cells of all levels: (B, N, C)."""
        return torch.cat([level.flatten(2).transpose(1, 2) for level in self.levels], 1)


def aspects(num_dims: int, ratio: float = 2.0) -> list[tuple[float, ...]]:
    """Shapes of equal volume: even, and stretched along each axis in turn until it is `ratio` times as long as others.

    For D = 2 these are the aspect ratios 1 : 2, 1 and 2 : 1 of Faster R-CNN, in the order of mmdetection; for D = 1
    there is only one shape.
    """
    others = ratio ** (-1 / num_dims)
    stretched = [
        tuple(ratio * others if axis == along else others for axis in range(num_dims)) for along in range(num_dims)
    ]
    even = (1.0,) * num_dims
    return list(dict.fromkeys([stretched[0], even, *stretched[1:]]))


def anchor_sizes(num_dims: int, base: float, *, octave: int = 1, ratio: float = 1.0) -> list[tuple[float, ...]]:
    """Sizes of one cell's anchors, in cells, natural order.

    Args:
        base: size of the smallest, in cells.
        octave: how many sizes before it is doubled.
        ratio: see `aspects`; 1: cubes only.
    """
    return [
        tuple(base * 2 ** (step / octave) * part for part in aspect)
        for aspect in aspects(num_dims, ratio)
        for step in range(octave)
    ]


def grid_anchors(shape: Sequence[int], stride: float, sizes: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Anchors of every cell: (prod(shape) * A, 2D) corners in input cells, cell by cell.

    They are centred at a cell's lower corner, as mmdetection's are, not at its middle.
    """
    axes = [torch.arange(size, dtype=like.dtype, device=like.device) * stride for size in shape]
    centers = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).flatten(0, -2)  # (S, D)
    lengths = torch.tensor(sizes, dtype=like.dtype, device=like.device) * stride  # (A, D)
    boxes = torch.cat(torch.broadcast_tensors(centers[:, None], lengths[None]), -1)  # (S, A, 2D)
    return to_corners(boxes).flatten(0, 1)


def inside(shape: Sequence[int], stride: float, extents: Tensor) -> Tensor:
    """Which cells of a level begin inside each sample: (B, prod(shape)), extents (B, D) in input cells."""
    limits = (extents / stride).ceil().flip(-1)  # axes as stored
    axes = [torch.arange(size, device=extents.device) for size in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # (S, D)
    return (grid[None] < limits[:, None]).all(-1)


@dataclass(frozen=True)
class DeltaCoder:
    """Boxes as shifts in units of an anchor's size, and logarithms of growth (R-CNN; Girshick et al., 2014).

    Args:
        center: what a coded shift of one means.
        size: what a coded growth of one means.
    """

    center: float = 1.0
    size: float = 1.0

    def encode(self, anchors: Tensor, corners: Tensor) -> Tensor:
        """Corners (..., 2D) relative to anchors (..., 2D)."""
        (c, s), (gc, gs) = (to_center_size(x).chunk(2, -1) for x in (anchors, corners))
        return torch.cat([(gc - c) / s / self.center, (gs / s).log() / self.size], -1)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Deltas (..., 2D) to corners (..., 2D)."""
        centers, sizes = to_center_size(anchors).chunk(2, -1)
        shift, growth = at_least_float32(deltas).chunk(2, -1)
        growth = (growth * self.size).clamp(-MAX_GROWTH, MAX_GROWTH)
        return to_corners(torch.cat([centers + sizes * shift * self.center, sizes * growth.exp()], -1))


def clip(corners: Tensor, extents: Tensor) -> Tensor:
    """Corners (..., 2D) moved into [0, extent]; extents broadcast: (..., D)."""
    return torch.minimum(corners.clamp(min=0), torch.cat([extents, extents], -1))
