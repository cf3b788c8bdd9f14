"""Dense and conditional attention.

Masks are True where a key may be attended to. A query all of whose keys are masked receives zeros, not NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.elementwise import kept
from momentdetr.detr.types import Memory


@dataclass(frozen=True)
class Guidance:
    """Where the queries of one decoder layer look.

    Args:
        positions: (B, Q, C), added to (or projected beside) the content.
        sine: (B, Q, C), encoding of the reference that conditional attention concatenates; None for dense attention.
        references: (B, Q, D) points or (B, Q, 2D) boxes in [0, 1]; None where the system has none.
        mask: (Q, Q), True where query i may attend to query j; None: everywhere.
    """

    positions: Tensor
    sine: Tensor | None = None
    references: Tensor | None = None
    mask: Tensor | None = None


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention over heads.

    Args:
        query: (B, Q, E), E a multiple of the number of heads.
        key: (B, N, E).
        value: (B, N, C), C a multiple of the number of heads.
        num_heads: H.
        mask: broadcasts to (B, H, Q, N), True where attention is allowed.
        dropout: probability that an attention weight is dropped.

    Returns:
        (B, Q, C).
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, H, ., .)
    if dropout and query.device.type == "cpu" and (mask is None or bool(mask.any(-1).all())):
        mixed = _attend_and_drop(query, key, value, mask, dropout)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(-2)


def _attend_and_drop(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same in plain steps, for the CPU, where torch's draws its dropout slowly; every query has a key."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, H, Q, N)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(-1)
    return (weights * kept(weights, dropout)) @ value


def key_mask(mask: Tensor | None) -> Tensor | None:
    """(B, N) to the shape that `attend` broadcasts."""
    return None if mask is None else mask[:, None, None]


def plus(content: Tensor, positions: Tensor | None) -> Tensor:
    return content if positions is None else content + positions


class Attention(nn.Module):
    """Multi-head attention with four projections (Vaswani et al., 2017): queries (B, Q, C) -> (B, Q, C)."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        mixed = attend(
            self.query(query),
            self.key(key),
            self.value(value),
            num_heads=self.num_heads,
            mask=mask,
            dropout=dropout,
        )
        return self.out(mixed)


class SelfAttention(Attention):
    """DETR's: positions are added to queries and keys, not to values."""

    def forward(self, content: Tensor, positions: Tensor | None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        placed = plus(content, positions)
        return super().forward(placed, placed, content, mask)


class CrossAttention(Attention):
    """DETR's: positions are added to queries and keys, not to values."""

    def forward(self, content: Tensor, guidance: Guidance, memory: Memory) -> Tensor:  # type: ignore[override]
        return super().forward(
            plus(content, guidance.positions),
            plus(memory.tokens, memory.positions),
            memory.tokens,
            key_mask(memory.mask),
        )


class ConditionalSelfAttention(nn.Module):
    """Conditional DETR's (Meng et al., 2021): content and position have projections of their own, then add up."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_position = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, content: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = attend(
            self.query_content(content) + self.query_position(positions),
            self.key_content(content) + self.key_position(positions),
            self.value(content),
            num_heads=self.num_heads,
            mask=mask,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(mixed)


class ConditionalCrossAttention(nn.Module):
    """Conditional DETR's (Meng et al., 2021): each head compares content with content and place with place.

    Args:
        width: C.
        num_heads: H; queries and keys are 2C wide, the halves concatenated per head.
        dropout: of the attention weights.
        adds_positions: whether content also carries positions; true in the first layer only, whose content is empty.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, *, adds_positions: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width) if adds_positions else None
        self.query_sine = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_position = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, content: Tensor, guidance: Guidance, memory: Memory) -> Tensor:
        assert guidance.sine is not None
        query, key = self.query_content(content), self.key_content(memory.tokens)
        places = memory.tokens.new_zeros(()) if memory.positions is None else memory.positions
        key_place = self.key_position(places.expand_as(memory.tokens))
        if self.query_position is not None:
            query, key = query + self.query_position(guidance.positions), key + key_place
        mixed = attend(
            self._beside(query, self.query_sine(guidance.sine)),
            self._beside(key, key_place),
            self.value(memory.tokens),
            num_heads=self.num_heads,
            mask=key_mask(memory.mask),
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(mixed)

    def _beside(self, content: Tensor, place: Tensor) -> Tensor:
        """Concatenate two (B, N, C) head by head -> (B, N, 2C)."""
        halves = [x.unflatten(-1, (self.num_heads, -1)) for x in (content, place)]
        return torch.cat(halves, -1).flatten(-2)
