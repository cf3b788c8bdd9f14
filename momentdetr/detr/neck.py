"""From feature maps of any number of axes to the tokens of a memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.kernels.reference import exact_type
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory

# What torch calls a convolution of that many axes.
CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def resize_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *spatial) to another grid by the nearest cell, as the whole family does."""
    return F.interpolate(mask[:, None].float(), size=tuple(shape))[:, 0].bool()


def valid_ratios(mask: Tensor) -> Tensor:
    """The part of a grid that is valid, per coordinate in natural order: (B, *spatial) -> (B, D)."""
    parts = []
    for axis in range(1, mask.dim()):
        line = mask
        for other in reversed(range(1, mask.dim())):
            if other != axis:
                line = line.select(other, 0)
        parts.append(line.float().mean(1))
    return torch.stack(parts[::-1], -1)


EXACT_FROM = 4096
"""Cells along an axis beyond which a float32 fraction of it may be off by a ten-thousandth of a cell."""


def cell_centers(shape: Sequence[int], ratios: Tensor) -> Tensor:
    """Centre of each cell as a fraction of the valid part: (B, prod(shape), D), natural order."""
    axes = [(torch.arange(size, dtype=ratios.dtype, device=ratios.device) + 0.5) / size for size in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).flatten(0, -2)  # (S, D)
    # A sample that is all padding has no valid part; its cells, which nothing looks at, keep finite places.
    return grid[None] / ratios.masked_fill(ratios == 0, 1)[:, None]


class Neck(nn.Module):
    """Project each feature map to the width of the model, add coarser ones, and line all cells up.

    Args:
        num_dims: D.
        channels: of each feature map, finest first.
        width: C.
        num_levels: L; levels beyond the maps are made by strided convolutions, the first from the last *map*.
        group_norm: groups of the norm behind each projection; 0: none (DETR).
        bias: of the projections (mmdetection's have none).
        level_embedding: whether each level adds a learned vector to its positions.
        temperature: of the sine positions; 20 in DAB-DETR and its descendants.
        offset: of the sine positions; -0.5 in Deformable DETR.
        positions: (B, *spatial) masks -> (B, *spatial, C), instead of sines.
    """

    def __init__(
        self,
        num_dims: int,
        channels: Sequence[int],
        width: int,
        *,
        num_levels: int | None = None,
        group_norm: int = 32,
        bias: bool = True,
        level_embedding: bool = True,
        temperature: float | Sequence[float] = 10000.0,
        offset: float = 0.0,
        positions: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.width, self.temperature, self.offset = width, temperature, offset
        num_levels = len(channels) if num_levels is None else num_levels
        convolution = CONVOLUTIONS[num_dims]
        self.projections = nn.ModuleList()
        for level in range(num_levels):
            if level < len(channels):
                project = convolution(channels[level], width, kernel_size=1, bias=bias)
            else:
                size = channels[-1] if level == len(channels) else width
                project = convolution(size, width, kernel_size=3, stride=2, padding=1, bias=bias)
            nn.init.xavier_uniform_(project.weight)
            if project.bias is not None:
                nn.init.zeros_(project.bias)
            norm = nn.GroupNorm(group_norm, width) if group_norm else nn.Identity()
            self.projections.append(nn.Sequential(project, norm))
        self.num_maps = len(channels)
        self.level_embedding = nn.Parameter(torch.randn(num_levels, width)) if level_embedding else None

    def levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The last maps (B, channels, *spatial), as many as the neck has channels for, to L levels (B, C, *spatial)."""
        features = features[-self.num_maps :]
        found: list[Tensor] = []
        for level, project in enumerate(self.projections):
            if level < self.num_maps:
                source = features[level]
            else:
                source = features[-1] if level == self.num_maps else found[-1]
            found.append(project(source))
        return found

    def forward(self, features: Sequence[Tensor], mask: Tensor) -> Memory:
        """Feature maps and the mask of the input (B, *spatial), True where it is real."""
        return self.line_up(self.levels(features), mask)

    def encode(self, mask: Tensor) -> Tensor:
        """Positions of a level's cells: (B, *spatial) -> (B, *spatial, C)."""
        if self.positions is not None:
            return self.positions(mask)
        return grid_positions(mask, self.width, temperature=self.temperature, offset=self.offset)

    def line_up(self, levels: Sequence[Tensor], mask: Tensor) -> Memory:
        """Levels (B, C, *spatial) to one sequence of tokens with positions, masks and references."""
        masks = [resize_mask(mask, level.shape[2:]) for level in levels]
        ratios = torch.stack([valid_ratios(m) for m in masks], 1)  # (B, L, D)
        dtype = levels[0].dtype
        positions = []
        for index, level_mask in enumerate(masks):
            flat = self.encode(level_mask).flatten(1, -2).to(dtype)
            positions.append(flat if self.level_embedding is None else flat + self.level_embedding[index])
        shapes = tuple(tuple(level.shape[2:]) for level in levels)
        real = exact_type(mask.device) if max(map(max, shapes)) > EXACT_FROM else torch.float32
        centers = [cell_centers(shape, ratios[:, i].to(real)) for i, shape in enumerate(shapes)]
        return Memory(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1),
            mask=torch.cat([m.flatten(1) for m in masks], 1),
            positions=torch.cat(positions, 1),
            level_shapes=shapes,
            valid_ratios=ratios,
            references=torch.cat(centers, 1),
            extents=(valid_ratios(mask) * torch.tensor(mask.shape[1:], device=mask.device).flip(0)).clamp(min=1),
        )
