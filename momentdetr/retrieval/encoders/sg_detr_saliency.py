"""SG-DETR's saliency (Gordeev et al., 2024): how like the sentence each clip is; attention to words guided by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.attention import attend, key_mask
from momentdetr.detr.encoder import Encoder
from momentdetr.detr.mlp import FeedForward
from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.cg_attention import DummyAttention

TEMPERATURE = 3.0  # logarithm of what cosines are multiplied by, at the start


class PoolingLayer(nn.Module):
    """A query reads the words (Touvron et al., 2021), without projections; then a feed-forward network.

    Args:
        attention: (query, key, value, mask, number of dummies) -> (B, 1, C) and weights.
        feed_forward: (B, 1, C) -> (B, 1, C).
        width: C.
    """

    def __init__(self, *, attention: DummyAttention, feed_forward: FeedForward, width: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm_words, self.norm_query = nn.LayerNorm(width), nn.LayerNorm(width)
        for linear in (attention.out, feed_forward.expand, feed_forward.contract):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Query (B, 1, C), words (B, W, C) and which are real (B, W) -> (B, 1, C)."""
        words = self.norm_words(words)
        query = query + self.attention(query, words, words, key_mask(mask), 0)[0]
        found: Tensor = query + self.feed_forward(self.norm_query(query))
        return found


class LearnedPooling(nn.Module):
    """A learned vector becomes a sentence by reading its words, layer by layer: (B, W, C) -> (B, C).

    Args:
        layers: at least one; a norm that they share stands between them, not behind the last.
        width: C.
    """

    def __init__(self, layers: Sequence[PoolingLayer], width: int) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(width)
        self.query = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        query = self.query.expand(len(words), 1, -1)
        for index, layer in enumerate(self.layers):
            query = layer(query if index == 0 else self.norm(query), words, mask)
        return query[:, 0]


class LocalSaliency(nn.Module):
    """How like the sentence each clip is on its own: a cosine, stretched and shifted by learned numbers.

    Args:
        pooling: of words into a sentence.
    """

    def __init__(self, pooling: LearnedPooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.temperature, self.offset = nn.Parameter(torch.tensor(TEMPERATURE)), nn.Parameter(torch.tensor(0.0))

    def forward(self, clips: Tensor, sentence: Tensor) -> Tensor:
        """Clips (B, T, C), sentence (B, C) -> logits (B, T)."""
        likeness = (F.normalize(clips, dim=-1) * F.normalize(sentence, dim=-1)[:, None]).sum(-1)
        return likeness * self.temperature.exp() + self.offset


class GuidedAttention(nn.Module):
    """Clips read words as far as they are salient; there is an output projection and no other.

    Args:
        width: C.
        num_heads: H.
        dropout: of the attention weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, words: Tensor, mask: Tensor, salient: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (B, T, C).
            words: (B, W, C), keys and values.
            mask: (B, W), True where a word is real.
            salient: (B, T) in [0, 1], what a clip's attention weights add up to.
        """
        dropout = self.dropout if self.training else 0.0
        read = attend(query, words, words, num_heads=self.num_heads, mask=key_mask(mask), dropout=dropout)
        return self.out(read * salient[..., None])


class GuidedLayer(nn.Module):
    """Saliency-guided cross-attention, then a feed-forward network.

    The norms stand where the official code has them: none behind the attention, two behind the network.

    Args:
        attention: of clips to words.
        feed_forward: (B, T, C) -> (B, T, C).
        width: C.
        dropout: of both branches.
    """

    def __init__(
        self, *, attention: GuidedAttention, feed_forward: FeedForward, width: int, dropout: nn.Module
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward, self.dropout = attention, feed_forward, dropout
        self.norm_branch, self.norm_sum = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, clips: Tensor, words: Tensor, positions: Tensor, mask: Tensor, salient: Tensor) -> Tensor:
        """Clips (B, T, C), words (B, W, C), positions of clips, mask of words, saliency (B, T) -> (B, T, C)."""
        clips = clips + self.dropout(self.attention(clips + positions, words, mask, salient))
        return self.norm_sum(clips + self.dropout(self.norm_branch(self.feed_forward(clips))))


class GuidedFusion(nn.Module):
    """Layers in which clips read words; one norm serves clips and words after each, and clips once more at the end.

    Args:
        layers: at least one; words pass them by.
        width: C.
    """

    def __init__(self, layers: Sequence[GuidedLayer], width: int) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(width)

    def forward(self, clips: Tensor, words: Tensor, positions: Tensor, mask: Tensor, salient: Tensor) -> Tensor:
        """As a layer's."""
        for layer in self.layers:
            clips = self.norm(layer(clips, words, positions, mask, salient))
            words = self.norm(words)
        return self.norm(clips)


class Summary(nn.Module):
    """A learned token that sums up a sequence by self-attention; only losses ask for it.

    Args:
        encoder: self-attention over the token and the sequence.
        width: C.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.token, self.position = nn.Parameter(torch.randn(1, width)), nn.Parameter(torch.randn(1, width))

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C), positions, and which are seen (B, N) -> the summary (B, C), tokens as seen (B, N, C)."""
        batch = len(tokens)
        seen = self.encoder(
            Memory(
                torch.cat([self.token.expand(batch, 1, -1), tokens], 1),
                torch.cat([mask.new_ones(batch, 1), mask], 1),
                torch.cat([self.position.expand(batch, 1, -1), positions], 1),
            )
        ).tokens
        return seen[:, 0], seen[:, 1:]
