"""The transformer encoder, dense or deformable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from momentdetr.detr.attention import Attention, key_mask, plus
from momentdetr.detr.elementwise import Dropout
from momentdetr.detr.mlp import FeedForward
from momentdetr.detr.types import Memory


class DenseSelfAttention(Attention):
    """Every token looks at every other: (tokens, memory) -> (B, N, C); positions and mask are the memory's."""

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        placed = plus(tokens, memory.positions)
        return super().forward(placed, placed, tokens, key_mask(memory.mask))


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with a residual and a layer norm.

    Args:
        self_attention: maps (tokens, memory) to (B, N, C).
        feed_forward: maps (B, N, C) to (B, N, C).
        width: C.
        dropout: of both branches.
        pre_norm: norm the branch's input instead of the sum.
    """

    def __init__(
        self,
        *,
        self_attention: nn.Module,
        feed_forward: FeedForward,
        width: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention, self.feed_forward = self_attention, feed_forward
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(self, memory: Memory) -> Tensor:
        """The memory's tokens, encoded: (B, N, C)."""
        tokens = memory.tokens
        if self.pre_norm:
            tokens = tokens + self.dropout(self.self_attention(self.norm_attention(tokens), memory))
            return tokens + self.dropout(self.feed_forward(self.norm_feed_forward(tokens)))
        tokens = self.norm_attention(tokens + self.dropout(self.self_attention(tokens, memory)))
        return self.norm_feed_forward(tokens + self.dropout(self.feed_forward(tokens)))


class Encoder(nn.Module):
    """Layers, then a norm if there is one (pre-norm stacks need it).

    Args:
        layers: each maps a memory to new tokens.
        norm: of the result.
        position_scale: (B, N, C) -> (B, N, C), by which each layer multiplies the positions (DAB-DETR); None: as
            they are.
    """

    def __init__(
        self,
        layers: Sequence[EncoderLayer],
        norm: nn.Module | None = None,
        position_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm, self.position_scale = norm, position_scale

    def forward(self, memory: Memory) -> Memory:
        """The same memory with encoded tokens; its positions stay as given."""
        tokens = memory.tokens
        for layer in self.layers:
            seen = memory.with_tokens(tokens)
            if self.position_scale is not None:
                assert memory.positions is not None
                seen = seen.with_positions(memory.positions * self.position_scale(tokens))
            tokens = layer(seen)
        return memory.with_tokens(tokens if self.norm is None else self.norm(tokens))
