"""Pooling of regions of any size into grids of one size (RoIAlign; He et al., 2017), in any number of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from momentdetr.detr.anchors import Pyramid
from momentdetr.detr.deformable import sample


def pool_region(features: Tensor, corners: Tensor, counts: tuple[int, ...], bins: int) -> Tensor:
    """Pool regions of one map, all sampled equally often.

    Points outside the map by less than a cell read its border; those further away count as zero.

    Args:
        features: (C, *spatial).
        corners: (R, 2D) in cells of the map, natural order.
        counts: per axis, natural order: points in each bin.
        bins: per axis of the result.

    Returns:
        (R, C, *[bins] * D), axes as stored.
    """
    lower, upper = (corners - 0.5).chunk(2, -1)  # the middle of the first cell is 0
    size = (upper - lower).clamp(min=0)
    axes = [(torch.arange(bins * n, dtype=corners.dtype, device=corners.device) + 0.5) / (bins * n) for n in counts]
    steps = torch.stack(torch.meshgrid(*axes[::-1], indexing="ij")[::-1], -1)  # (*grid, D)
    grid = steps.shape[:-1]
    cells = lower[:, None] + steps.flatten(0, -2) * size[:, None]  # (R, points, D)
    shape = torch.tensor(features.shape[1:][::-1], dtype=cells.dtype, device=cells.device)
    near = ((cells >= -1) & (cells <= shape)).all(-1, keepdim=True)
    inner = torch.minimum(cells.clamp(min=0), shape - 1)
    points = ((inner + 0.5) / shape).flatten(0, 1)[None]
    values = sample(features.movedim(0, -1)[None], points)[0] * near.flatten(0, 1)  # (R * points, C)
    values = values.view(len(corners), *grid, -1).movedim(-1, 1)  # (R, C, *grid)
    for axis, count in enumerate(reversed(counts), start=2):
        values = values.unflatten(axis, (bins, count)).mean(axis + 1)
    return values


def pool(
    pyramid: Pyramid, corners: Tensor, owner: Tensor, *, bins: int = 7, samples: int = 0, reach: float = 14
) -> Tensor:
    """Pool each region from the level that suits its size.

    Args:
        pyramid: the levels to pool from.
        corners: (R, 2D) in input cells.
        owner: (R,) the sample that each region lies in.
        bins: per axis of the result.
        samples: points per bin and axis; 0: as many as the region has cells per bin.
        reach: regions up to twice this many cells of the finest level are pooled from that; each further doubling
            goes a level up. (Faster R-CNN with feature pyramids: 56 pixels at stride 4.)

    Returns:
        (R, C, *[bins] * D).
    """
    first = pyramid.levels[0]
    num_dims = first.dim() - 2
    lower, upper = corners.chunk(2, -1)
    scale = (upper - lower).clamp(min=0).prod(-1) ** (1 / num_dims)
    level = torch.log2(scale / (reach * pyramid.strides[0]) + 1e-6).floor().clamp(0, len(pyramid.levels) - 1).long()
    strides = corners.new_tensor(pyramid.strides)[level]
    cells = corners / strides[:, None]
    if samples:
        counts = torch.full_like(lower, samples, dtype=torch.long)
    else:
        counts = ((cells[:, num_dims:] - cells[:, :num_dims]) / bins).ceil().long().clamp(min=0)
    pooled = first.new_zeros(len(corners), first.shape[1], *[bins] * num_dims)
    keys = torch.cat([owner[:, None], level[:, None], counts], 1)
    for key in keys.unique(dim=0):
        which, at, *count = key.tolist()
        if min(count) == 0:
            continue  # an empty region has no points, and stays zero
        rows = (keys == key).all(1).nonzero().flatten()
        pooled = pooled.index_copy(0, rows, pool_region(pyramid.levels[at][which], cells[rows], tuple(count), bins))
    return pooled
