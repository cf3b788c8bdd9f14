"""The dense transformer encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from momentdetr.detr.attention import SelfAttention, key_mask
from momentdetr.detr.mlp import FeedForward


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with a residual and a layer norm.

    Args:
        self_attention: maps (content, positions, mask) to (B, N, C).
        feed_forward: maps (B, N, C) to (B, N, C).
        width: C.
        dropout: of both branches.
        pre_norm: norm the branch's input instead of the sum.
    """

    def __init__(
        self,
        *,
        self_attention: SelfAttention,
        feed_forward: FeedForward,
        width: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention, self.feed_forward = self_attention, feed_forward
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, N, C), (B, N, C) and (B, N), True where a token is real -> (B, N, C)."""
        allowed = key_mask(mask)
        if self.pre_norm:
            tokens = tokens + self.dropout(self.self_attention(self.norm_attention(tokens), positions, allowed))
            return tokens + self.dropout(self.feed_forward(self.norm_feed_forward(tokens)))
        tokens = self.norm_attention(tokens + self.dropout(self.self_attention(tokens, positions, allowed)))
        return self.norm_feed_forward(tokens + self.dropout(self.feed_forward(tokens)))


class Encoder(nn.Module):
    """Layers, then a norm if there is one (pre-norm stacks need it)."""

    def __init__(self, layers: Sequence[EncoderLayer], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, positions, mask)
        return tokens if self.norm is None else self.norm(tokens)
