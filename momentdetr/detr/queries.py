"""What the decoder starts from: learned embeddings or learned anchors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentdetr.detr.types import Memory, Queries


class LearnedQueries(nn.Module):
    """DETR's (Carion et al., 2020): empty content and one learned position per query.

    Args:
        num_queries: Q.
        width: C.
    """

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_queries, width))

    def forward(self, memory: Memory) -> Queries:
        positions = self.positions.expand(memory.tokens.shape[0], -1, -1)  # (B, Q, C)
        return Queries(content=torch.zeros_like(positions, dtype=memory.tokens.dtype), positions=positions)


class AnchorQueries(nn.Module):
    """DAB-DETR's (Liu et al., 2022): empty content and one learned anchor per query.

    Args:
        num_queries: Q.
        width: C.
        anchor_size: A, 2D for boxes, D for points.
    """

    def __init__(self, num_queries: int, width: int, anchor_size: int) -> None:
        super().__init__()
        self.width = width
        self.anchors = nn.Parameter(torch.randn(num_queries, anchor_size))  # logits

    def forward(self, memory: Memory) -> Queries:
        anchors = self.anchors.expand(memory.tokens.shape[0], -1, -1)  # (B, Q, A)
        content = memory.tokens.new_zeros(*anchors.shape[:2], self.width)
        return Queries(content=content, anchors=anchors)


class PointQueries(nn.Module):
    """Conditional DETR's (Meng et al., 2021): a learned position, and a reference point generated from it."""

    def __init__(self, num_queries: int, width: int, num_dims: int, *, to_point: nn.Module) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_queries, width))
        self.to_point = to_point  # (Q, C) -> (Q, D), logits
        self.num_dims = num_dims

    def forward(self, memory: Memory) -> Queries:
        batch = memory.tokens.shape[0]
        points: Tensor = self.to_point(self.positions)
        positions = self.positions.expand(batch, -1, -1)  # (B, Q, C)
        content = torch.zeros_like(positions, dtype=memory.tokens.dtype)
        return Queries(content=content, positions=positions, anchors=points.expand(batch, -1, -1))
