"""CG-DETR's (Moon et al., 2023) attention: dummies take the attention that no word deserves, and give nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.decoder import DecoderLayer
from momentdetr.detr.encoder import EncoderLayer
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer


class DummyAttention(nn.Module):
    """Queries attend to dummies and words, and read words only; there is an output projection and no other.

    Args:
        width: C.
        num_heads: H.
        dropout: of the attention weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, num_dummies: int
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            query: (B, T, C).
            key: (B, D + W, C), dummies first.
            value: (B, D + W, C).
            mask: broadcasts to (B, H, T, D + W), True where attention is allowed.
            num_dummies: D.

        Returns:
            What was read, (B, T, C), and the attention weights, averaged over heads, (B, T, D + W).
        """
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value[:, num_dummies:]))
        query, key, value = heads
        logits = query / query.shape[-1] ** 0.5 @ key.transpose(-1, -2)
        weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)  # (B, H, T, D + W)
        kept = F.dropout(weights, self.dropout, self.training)[..., num_dummies:]
        return self.out((kept @ value).transpose(1, 2).flatten(-2)), weights.mean(1)


class DropPath(nn.Module):
    """Drop a whole branch of a sample (Huang et al., 2016); CG-DETR's layers do this instead of dropping numbers.

    Args:
        probability: that a sample's branch is dropped in training.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), kept samples scaled up so that the mean stays."""
        if not self.training or self.probability == 0:
            return branch
        kept = 1 - self.probability
        shape = (len(branch), *(1,) * (branch.dim() - 1))
        return branch * torch.bernoulli(branch.new_full(shape, kept)) / kept


def drop_paths(model: nn.Module, probability: float) -> None:
    """Drop whole branches of samples in a model's self-attention and decoder layers, as CG-DETR's code does."""
    for module in model.modules():
        if isinstance(module, EncoderLayer | DecoderLayer):
            module.dropout = DropPath(probability)  # type: ignore[assignment]


class DummyFusionLayer(TextToVideoLayer):
    """QD-DETR's layer, with dummies before the words and a `DummyAttention`, whose weights are wanted, too.

    Args:
        dropout: probability that a sample's branch is dropped, see `DropPath`.
        parts: as `TextToVideoLayer`'s.
    """

    attention: DummyAttention

    def __init__(self, *, dropout: float = 0.0, **parts: Any) -> None:
        super().__init__(**parts)
        self.dropout = DropPath(dropout)

    def forward(  # type: ignore[override]
        self,
        video: Tensor,
        text: Tensor,
        positions: Tensor,
        text_positions: Tensor,
        masks: tuple[Tensor, Tensor],
        num_dummies: int,
    ) -> tuple[Tensor, Tensor]:
        """Clips (B, T, C), dummies and words (B, D + W, C), their positions and masks -> (B, T, C), (B, T, D + W)."""
        read, weights = self.attention(
            video + positions, text + text_positions, text, self._allowed(*masks), num_dummies
        )
        return self._add(video, read), weights

    def alone(self, token: Tensor) -> Tensor:
        """A token (B, 1, C) passes through the layer and finds nothing to read."""
        return self._add(token, self.attention.out.bias.expand_as(token))


class Prompts(nn.Module):
    """A summary of the clips that the words point at: the most similar of a few learned prompts, added to their mean.

    Args:
        num_prompts: P, learned.
        chosen: how many of them a sample takes.
        width: C.
    """

    def __init__(self, num_prompts: int, chosen: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_prompts, width))
        self.position = nn.Parameter(torch.randn(1, width))
        self.chosen = chosen

    def forward(self, video: Tensor, mask: Tensor, importance: Tensor) -> Tensor:
        """Summarise.

        Args:
            video: (B, T, C).
            mask: (B, T), True where a clip is real.
            importance: (B, T), how much of a clip's attention went to words; no gradient passes.

        Returns:
            (B, 1, C).
        """
        real = mask[..., None]
        mean = ((video * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)).detach()  # (B, 1, C)
        likeness = F.normalize(video - mean, dim=-1) @ F.normalize(self.tokens, dim=-1).T  # (B, T, P)
        share = importance.detach() * mask
        share = share / share.sum(1, keepdim=True)
        strength = (likeness.softmax(-1) * share[..., None]).sum(1)  # (B, P)
        best = strength.topk(self.chosen, 1)
        return (best.values[..., None] * self.tokens[best.indices]).sum(1, keepdim=True) + mean
