"""Moment-DETR's optional contrastive alignment of matched queries with the words they answer for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.types import Assignment


class ContrastiveAlignment(nn.Module):
    """Matched queries should be nearer to the text than unmatched ones.

    The similarity of a query is the sum over *all* tokens, padded ones included, as published.

    Args:
        width: C.
        shared: size of the space where both are compared.
        temperature: 0.07 as published.
    """

    def __init__(self, width: int, shared: int = 64, temperature: float = 0.07) -> None:
        super().__init__()
        self.query, self.text = nn.Linear(width, shared), nn.Linear(width, shared)
        self.temperature = temperature

    def project(self, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder states (..., Q, C) and words (B, W, C) as unit vectors of the shared space."""
        return F.normalize(self.query(hidden), dim=-1), F.normalize(self.text(text), dim=-1)

    def forward(self, hidden: Tensor, text: Tensor, assignment: Assignment) -> Tensor:
        """One layer's loss: hidden (B, Q, C), text (B, W, C) -> scalar; a sample without matches costs nothing."""
        queries, words = self.project(hidden, text)
        logits = (queries @ words.transpose(1, 2)).sum(-1) / self.temperature  # (B, Q)
        positive = torch.zeros_like(logits)
        positive[assignment.sample, assignment.query] = 1
        count = positive.sum(1)
        loss = logits.logsumexp(1) - (positive * logits).sum(1) / count.clamp(min=1)
        return (loss * (count > 0)).mean()
