"""From feature vectors to the width of the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.elementwise import Dropout


class Projection(nn.Module):
    """Layer norm, dropout and a linear layer, several times, with ReLU between: (B, N, size_in) -> (B, N, width).

    Args:
        size_in: of a feature vector.
        width: C.
        num_layers: 2 in all published models; at least 1.
        dropout: before each linear layer, 0.5 in all published models.
        context: vectors on each side that the first linear layer sees beside a vector's own; 0 in all published models.
            Features of single frames carry no motion; with their neighbours a linear layer can read it.
    """

    def __init__(
        self, size_in: int, width: int, *, num_layers: int = 2, dropout: float = 0.5, context: int = 0
    ) -> None:
        super().__init__()
        sizes = [size_in] + [width] * (num_layers - 1)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        seen = [size_in * (2 * context + 1), *sizes[1:]]
        self.linears = nn.ModuleList(nn.Linear(size, width) for size in seen)
        self.dropout = Dropout(dropout)
        self.context = context

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project.

        Args:
            mask: (B, N), True where a vector is real; only a context asks for it.
        """
        for index, (norm, linear) in enumerate(zip(self.norms, self.linears, strict=True)):
            features = norm(features)
            if index == 0 and self.context:
                features = self._beside_neighbours(features, mask)
            features = linear(self.dropout(features))
            if index + 1 < len(self.linears):
                features = features.relu()
        return features

    def _beside_neighbours(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Each vector between its neighbours, oldest first; zeros beyond the ends: (B, N, (2 context + 1) size_in)."""
        if mask is not None:
            features = features * mask[..., None]
        length = features.shape[1]
        padded = F.pad(features, (0, 0, self.context, self.context))
        return torch.cat([padded[:, shift : shift + length] for shift in range(2 * self.context + 1)], -1)


class LearnedTextPositions(nn.Module):
    """Moment-DETR's optional text positions: the norm of token states plus a learned embedding of their index."""

    def __init__(self, max_words: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_words, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, W, C) -> (B, W, C)."""
        return self.dropout(self.norm(tokens + self.embedding.weight[: tokens.shape[1]]))
