"""What the decoder starts from: learned embeddings or learned anchors."""

from __future__ import annotations

from typing import Literal

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
    """DAB-DETR's (Liu et al., 2022): one learned anchor per query, with empty or learned content.

    Args:
        num_queries: Q.
        width: C.
        anchor_size: A, 2D for boxes, D for points.
        content: "empty", or "learned": one vector a query.
        content_size: channels of learned content, where another part adds one (DN-Deformable-DETR); None: C.
        num_patterns: learned vectors of which each is added to every query's content, which makes Q x num_patterns
            queries, pattern by pattern (Anchor DETR's idea); 0: none, and Q queries.
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        anchor_size: int,
        *,
        content: Literal["empty", "learned"] = "empty",
        content_size: int | None = None,
        num_patterns: int = 0,
    ) -> None:
        super().__init__()
        self.width = width
        self.anchors = nn.Parameter(torch.randn(num_queries, anchor_size))  # logits
        self.content = nn.Parameter(torch.randn(num_queries, content_size or width)) if content == "learned" else None
        self.patterns = nn.Parameter(torch.randn(num_patterns, width)) if num_patterns else None

    def forward(self, memory: Memory) -> Queries:
        batch, num_queries = memory.tokens.shape[0], self.anchors.shape[0]
        anchors: Tensor = self.anchors
        content: Tensor = self.anchors.new_zeros(num_queries, self.width) if self.content is None else self.content
        if self.patterns is not None:
            repeats = len(self.patterns)
            anchors = anchors.repeat(repeats, 1)  # (Q x patterns, A)
            content = content.repeat(repeats, 1) + self.patterns.repeat_interleave(num_queries, 0)
        content = content.to(memory.tokens.dtype).expand(batch, -1, -1)
        return Queries(content=content, anchors=anchors.expand(batch, -1, -1))


class PointQueries(nn.Module):
    """A learned position, and a reference point generated from it (Conditional DETR; Deformable DETR).

    Args:
        num_queries: Q.
        width: C.
        to_point: (Q, C) -> (Q, D), logits.
        learned_content: whether content is learned too (Deformable DETR), or empty (Conditional DETR).
    """

    def __init__(self, num_queries: int, width: int, *, to_point: nn.Module, learned_content: bool = False) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_queries, width))
        self.content = nn.Parameter(torch.randn(num_queries, width)) if learned_content else None
        self.to_point = to_point

    def forward(self, memory: Memory) -> Queries:
        batch = memory.tokens.shape[0]
        points: Tensor = self.to_point(self.positions)
        positions = self.positions.expand(batch, -1, -1)  # (B, Q, C)
        content = torch.zeros_like(positions) if self.content is None else self.content.expand(batch, -1, -1)
        return Queries(content.to(memory.tokens.dtype), positions, points.expand(batch, -1, -1))
