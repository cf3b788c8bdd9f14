"""From feature vectors to the width of the model."""

from __future__ import annotations

from torch import Tensor, nn


class Projection(nn.Module):
    """Layer norm, dropout and a linear layer, several times, with ReLU between: (..., size_in) -> (..., width).

    Args:
        size_in: of a feature vector.
        width: C.
        num_layers: 2 in all published models; at least 1.
        dropout: before each linear layer, 0.5 in all published models.
    """

    def __init__(self, size_in: int, width: int, *, num_layers: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        sizes = [size_in] + [width] * (num_layers - 1)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        self.linears = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        for index, (norm, linear) in enumerate(zip(self.norms, self.linears, strict=True)):
            features = linear(self.dropout(norm(features)))
            if index + 1 < len(self.linears):
                features = features.relu()
        return features


class LearnedTextPositions(nn.Module):
    """Moment-DETR's optional text positions: the norm of token states plus a learned embedding of their index."""

    def __init__(self, max_words: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_words, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, W, C) -> (B, W, C)."""
        return self.dropout(self.norm(tokens + self.embedding.weight[: tokens.shape[1]]))
