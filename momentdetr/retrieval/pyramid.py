"""A temporal feature pyramid: clips (B, T, C) to levels of finer and coarser cells, each with its own mask.

Padding never leaks: a cell is real where any of its clips is, convolutions see zeros beyond a sample's end, as they do
beyond a sequence's, and a sample has the same cells alone and in a batch of longer ones. Cost grows linearly with T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.initialization import small_convolutions
from momentdetr.detr.kernels.reference import exact_type
from momentdetr.detr.neck import EXACT_FROM, cell_centers, valid_ratios
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Args:
        cells: (B, N, C); what padded cells hold means nothing.
        mask: (B, N), True where a cell is real.
        stride: clips per cell; below 1 on levels finer than the clips.
    """

    cells: Tensor
    mask: Tensor
    stride: float


def level_mask(mask: Tensor, stride: float) -> Tensor:
    """Which cells of a level are real: (B, T) -> (B, N), N = ceil(T / stride).

    Args:
        mask: True where a clip is real.
        stride: a power of two; a coarser cell is real where any of its clips is (max-pooling), a finer one where its
            clip is (repetition).
    """
    if stride < 1:
        return mask.repeat_interleave(round(1 / stride), 1)
    size = round(stride)
    return F.pad(mask, (0, -mask.shape[1] % size)).unflatten(1, (-1, size)).any(-1)


class SeparableConvolution(nn.Module):
    """A convolution of three cells in each channel, then a mix of channels, both without bias: (B, N, C) -> (B, M, C).

    Args:
        width: C.
        stride: M = ceil(N / stride).
    """

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, cells: Tensor, mask: Tensor | None) -> Tensor:
        """Cells, and which of them are real (B, N); None: all are."""
        cells = cells if mask is None else cells.masked_fill(~mask[..., None], 0)
        mixed: Tensor = self.pointwise(self.depthwise(cells.transpose(1, 2)))
        return mixed.transpose(1, 2)


class PyramidBlock(nn.Module):
    """What makes one level: convolution (maybe strided), layer norm, GELU, convolution, layer norm.

    Args:
        width: C.
        repeat: cells made of each given one, before the convolutions (nearest neighbour).
        stride: given cells per made one.
        activate: apply GELU first, where the given cells are another block's output.
    """

    def __init__(self, width: int, *, repeat: int = 1, stride: int = 1, activate: bool = False) -> None:
        super().__init__()
        self.first, self.second = SeparableConvolution(width, stride), SeparableConvolution(width)
        self.norm_first, self.norm_second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.repeat, self.activate = repeat, activate

    def forward(self, cells: Tensor, given: Tensor | None, made: Tensor | None) -> Tensor:
        """Cells (B, N, C) to cells (B, M, C).

        Args:
            given: (B, N * repeat), which cells of the first convolution are real; None: all are.
            made: (B, M), which of the made ones are.
        """
        cells = cells.repeat_interleave(self.repeat, 1)
        cells = F.gelu(cells) if self.activate else cells
        hidden = F.gelu(self.norm_first(self.first(cells, given)))
        found: Tensor = self.norm_second(self.second(hidden, made))
        return found


class TemporalPyramid(nn.Module):
    """Clips at several strides (SG-DETR's: separable convolutions, no lateral and no top-down sums).

    Levels finer than the clips, as fine, and the first coarser one are made from the clips, each further one from the
    one before it.

    Args:
        width: C.
        strides: clips per cell of each level, finest first: powers of two, each at most twice the one before it where
            it is above 1; e.g. (0.5, 1, 2, 4).
        official_batch_faults: let padding into cells near a sample's end, as the official code does.

    Raises:
        ValueError: other strides.
    """

    def __init__(
        self, width: int, strides: Sequence[float] = (0.5, 1, 2, 4), *, official_batch_faults: bool = False
    ) -> None:
        super().__init__()
        self.strides, self.official_batch_faults = tuple(float(stride) for stride in strides), official_batch_faults
        self._refuse_gaps()
        self.blocks = nn.ModuleList(
            PyramidBlock(
                width,
                repeat=round(1 / stride) if stride < 1 else 1,
                stride=2 if stride > 1 else 1,
                activate=stride > 2,
            )
            for stride in self.strides
        )
        small_convolutions(self)

    def forward(self, clips: Tensor, mask: Tensor) -> list[Level]:
        """Clips (B, T, C) and which are real (B, T) -> one level per stride, finest first."""
        levels: list[Level] = []
        for stride, block in zip(self.strides, self.blocks, strict=True):
            source = levels[-1].cells if stride > 2 else clips
            given = level_mask(mask, stride / 2 if stride > 1 else stride)
            made = level_mask(mask, stride)
            seen = (None, None) if self.official_batch_faults else (given, made)
            levels.append(Level(block(source, *seen), made, stride))
        return levels

    def _refuse_gaps(self) -> None:
        before = 1.0
        for stride in self.strides:
            whole = stride > 0 and math.log2(stride).is_integer()
            if not whole or stride > 2 * before:
                raise ValueError(
                    f"strides {self.strides} of a pyramid: expected powers of two, finest first, without gaps above 1"
                )
            before = max(stride, 1.0)
        if sorted(set(self.strides)) != list(self.strides):
            raise ValueError(f"strides {self.strides} of a pyramid are not in order, finest first")


def line_up(
    levels: Sequence[Level], mask: Tensor, *, temperature: float = 10000.0, level_embedding: Tensor | None = None
) -> Memory:
    """Levels to one sequence of tokens, finest level first, with everything that deformable attention asks for.

    Args:
        levels: L of them.
        mask: (B, T), True where a clip is real.
        temperature: of the sine positions of cells, counted level by level.
        level_embedding: (L, C), added to the positions; None: levels are not told apart by them.

    Returns:
        tokens (B, N, C), zero where padded; references (B, N, 1), the middle of each cell as a fraction of its level's
        real cells; valid ratios (B, L, 1); extents (B, 1), the sample's length in clips.
    """
    width, dtype = levels[0].cells.shape[-1], levels[0].cells.dtype
    ratios = torch.stack([valid_ratios(level.mask) for level in levels], 1)  # (B, L, 1)
    shapes = tuple((level.cells.shape[1],) for level in levels)
    real = exact_type(mask.device) if max(map(max, shapes)) > EXACT_FROM else torch.float32
    positions = [grid_positions(level.mask, width, temperature=temperature).to(dtype) for level in levels]
    if level_embedding is not None:
        positions = [part + own for part, own in zip(positions, level_embedding, strict=True)]
    whole = torch.cat([level.mask for level in levels], 1)
    return Memory(
        tokens=torch.cat([level.cells for level in levels], 1).masked_fill(~whole[..., None], 0),
        mask=whole,
        positions=torch.cat(positions, 1),
        level_shapes=shapes,
        valid_ratios=ratios,
        references=torch.cat([cell_centers(shape, ratios[:, i].to(real)) for i, shape in enumerate(shapes)], 1),
        extents=mask.sum(1, keepdim=True).float().clamp(min=1),
    )
