"""Encodings of grids and of boxes (Vaswani et al., 2017; DETR; DAB-DETR), in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def sine_features(values: Tensor, num_features: int, temperature: float) -> Tensor:
    """Encode each value by interleaved sines and cosines of geometrically spaced frequencies.

    Args:
        values: (...), already in radians (a fraction times 2 pi).
        num_features: even number of features per value.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., num_features), in the dtype of `values`.
    """
    index = torch.arange(num_features, dtype=torch.float32, device=values.device)
    # The official codes make the wavelengths in float32, whatever the model's dtype; so do we, to give their numbers.
    wavelengths = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    angles = values[..., None] / wavelengths
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)


def grid_positions(
    mask: Tensor,
    num_features: int,
    *,
    temperature: float | Sequence[float] = 10000.0,
    offset: float = 0.0,
) -> Tensor:
    """Encode every cell of a padded grid by its index among the valid cells of each axis.

    Args:
        mask: (B, *spatial), True where a cell is real.
        num_features: C, divided equally among the D axes; the axes' parts are concatenated in the order of the grid.
        temperature: one for all axes, or one per axis (DAB-DETR: 20 and 20).
        offset: added to the index before normalisation (Deformable DETR: -0.5, the centre of a cell).

    Returns:
        (B, *spatial, C), float32.

    Raises:
        ValueError: C is not divisible by twice the number of axes.
    """
    num_dims = mask.dim() - 1
    per_axis, rest = divmod(num_features, num_dims)
    if rest or per_axis % 2:
        raise ValueError(f"{num_features} features cannot be divided into an even number for each of {num_dims} axes")
    temperatures = [temperature] * num_dims if isinstance(temperature, int | float) else list(temperature)
    parts = []
    for axis, axis_temperature in enumerate(temperatures, start=1):
        index = mask.cumsum(axis, dtype=torch.float32)
        last = index.narrow(axis, -1, 1)
        radians = (index + offset) / (last + 1e-6) * (2 * math.pi)
        parts.append(sine_features(radians, per_axis, axis_temperature))
    return torch.cat(parts, -1)


class LearnedPositions(nn.Module):
    """Each axis has a table of learned vectors; a cell's are concatenated (DETR's other encoding).

    Args:
        num_dims: D.
        num_features: C, divided equally among the axes, natural order.
        size: cells of the longest axis.
    """

    def __init__(self, num_dims: int, num_features: int, size: int = 50) -> None:
        super().__init__()
        if num_features % num_dims:
            raise ValueError(f"{num_features} features cannot be divided equally among {num_dims} axes")
        tables = [nn.Parameter(torch.rand(size, num_features // num_dims)) for _ in range(num_dims)]
        self.tables = nn.ParameterList(tables)  # in the order of the grid's axes

    def forward(self, mask: Tensor) -> Tensor:
        """(B, *spatial) -> (B, *spatial, C); only the shape counts, padded cells have positions too.

        Raises:
            ValueError: an axis is longer than its table.
        """
        shape, longest = mask.shape[1:], len(self.tables[0])
        if max(shape) > longest:
            raise ValueError(f"a grid of {tuple(shape)} cells, but positions are learned for {longest} an axis")
        parts = []
        for axis, (table, length) in enumerate(zip(self.tables, shape, strict=True)):
            line = [1] * len(shape) + [table.shape[1]]
            line[axis] = length
            parts.append(table[:length].reshape(line).expand(*shape, -1))
        return torch.cat(parts[::-1], -1).expand(len(mask), *shape, -1)


def box_features(boxes: Tensor, features_per_coordinate: int, temperature: float = 10000.0) -> Tensor:
    """Encode each coordinate of boxes or points, natural order: (..., A) -> (..., A, features_per_coordinate)."""
    return sine_features(boxes * (2 * math.pi), features_per_coordinate, temperature)
