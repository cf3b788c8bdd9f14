"""Multi-scale deformable attention (Zhu et al., 2021) in any number of dimensions.

Points and boxes list their coordinates in natural order (x before y); grids list their axes as torch stores them (rows
before columns), so the last axis belongs to the first coordinate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from momentdetr.detr.attention import Guidance, plus
from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.kernels import deformable_attention, sample_points
from momentdetr.detr.types import Memory


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Read a grid between its cells by multilinear interpolation; what lies outside counts as zero.

    Args:
        features: (B, *spatial, C).
        points: (B, P, D), fractions of the grid in natural order; the centre of the first cell is half a cell.

    Returns:
        (B, P, C).
    """
    locations = at_least_float32(points)[:, :, None, None, None]  # one head, level and point for each query
    ones = locations.new_ones(locations.shape[:-1])
    return sample_points(features.flatten(1, -2)[:, :, None], [features.shape[1:-1]], locations, ones)[:, :, 0]


def attend_points(value: Tensor, level_shapes: Sequence[Sequence[int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of points sampled on every level.

    Args:
        value: (B, S, H, E), the levels one after another.
        level_shapes: one D-tuple a level.
        locations: (B, Q, H, L, P, D), fractions of each level.
        weights: (B, Q, H, L, P), summing to one over levels and points.

    Returns:
        (B, Q, H * E).
    """
    return sample_points(value, level_shapes, locations, weights).flatten(2)


def directions(num_heads: int, num_dims: int) -> Tensor:
    """Where each head's points start to look: the directions of a cell's neighbours, spread evenly -> (H, D).

    For D = 2 they are the paper's: around the circle, from the first axis towards the second. For D = 1 heads look
    ahead and behind in turn; for more axes the plane of the first two comes first.
    """
    steps = [step for step in itertools.product((0, 1, -1), repeat=num_dims) if any(step)]
    ring = sorted(steps, key=lambda step: (*map(abs, step[2:]), math.atan2(sum(step[1:2]), step[0]) % (2 * math.pi)))
    spread = max(num_heads, len(ring))  # more heads than neighbours go round again
    chosen = [ring[head * spread // num_heads % len(ring)] for head in range(num_heads)]
    return torch.tensor(chosen, dtype=torch.float32)


class DeformableAttention(nn.Module):
    """Each query looks at a few points around its reference, on every level.

    Args:
        num_dims: D.
        width: C.
        num_heads: H.
        num_levels: L.
        num_points: per head and level.
    """

    def __init__(self, num_dims: int, width: int, num_heads: int, num_levels: int, num_points: int = 4) -> None:
        super().__init__()
        self.num_dims, self.num_heads = num_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        self.offsets = nn.Linear(width, num_heads * num_levels * num_points * num_dims)
        self.weights = nn.Linear(width, num_heads * num_levels * num_points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points on rays from the reference, all equally weighted."""
        nn.init.zeros_(self.offsets.weight)
        reach = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        rays = directions(self.num_heads, self.num_dims).view(self.num_heads, 1, 1, -1) * reach
        with torch.no_grad():
            self.offsets.bias.copy_(rays.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for linear in (self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, C), positions included.
            references: (B, Q, D) points or (B, Q, 2D) boxes, fractions of the valid part.
            memory: tokens, mask, level shapes and valid ratios; its positions are not used.

        Returns:
            (B, Q, C).
        """
        value = self.value(memory.tokens)
        if memory.mask is not None:
            value = value.masked_fill(~memory.mask[..., None], 0)
        split = (self.num_heads, self.num_levels, self.num_points)
        value = value.unflatten(-1, (self.num_heads, -1))
        offsets = self.offsets(queries).unflatten(-1, (*split, self.num_dims))
        logits = self.weights(queries).unflatten(-1, split)
        references = self.on_levels(references, memory)
        mixed = deformable_attention(value, memory.level_shapes, references, offsets, logits)
        return self.out(mixed.flatten(2))

    def on_levels(self, references: Tensor, memory: Memory) -> Tensor:
        """References (B, Q, A), fractions of the valid part, to those of each level (B, Q, L, A); float32 at least."""
        references = at_least_float32(references)
        if memory.valid_ratios is None:
            ratios = references.new_ones(len(references), self.num_levels, self.num_dims)
        else:
            ratios = memory.valid_ratios.to(references.dtype)
        repeats = references.shape[-1] // self.num_dims
        return references[:, :, None] * ratios.repeat(1, 1, repeats)[:, None]

    def locations(self, offsets: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Offsets (B, Q, H, L, P, D) around references (B, Q, A) to fractions of each level.

        The operator does the same inside; this is for those who want to see. Float32 at least.
        """
        offsets, scaled = at_least_float32(offsets), self.on_levels(references, memory)
        centers, sizes = scaled[..., : self.num_dims], scaled[..., self.num_dims :]
        if sizes.shape[-1]:
            reach = offsets / self.num_points * sizes[:, :, None, :, None] * 0.5
        else:
            shapes = [tuple(reversed(shape)) for shape in memory.level_shapes]
            reach = offsets / torch.tensor(shapes, dtype=offsets.dtype, device=offsets.device)[:, None]
        return centers[:, :, None, :, None] + reach


class DeformableSelfAttention(DeformableAttention):
    """The encoder's: every token looks around its own place."""

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        assert memory.references is not None
        return super().forward(plus(tokens, memory.positions), memory.references, memory.with_tokens(tokens))


class DeformableCrossAttention(DeformableAttention):
    """The decoder's: every query looks around its reference."""

    def forward(self, content: Tensor, guidance: Guidance, memory: Memory) -> Tensor:  # type: ignore[override]
        assert guidance.references is not None
        return super().forward(plus(content, guidance.positions), guidance.references, memory)
