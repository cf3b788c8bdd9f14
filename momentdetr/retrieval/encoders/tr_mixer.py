"""The fusion that TR-DETR takes from VSLNet (Zhang et al., 2020): clips and words attend to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ContextQueryMixer(nn.Module):
    """Each clip beside what it reads of the words, what the words read of the clips, and the words' summary.

    Args:
        width: C.
        dropout: before the comparison.
    """

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.clip_weight, self.word_weight, self.pool_weight = (nn.Parameter(torch.empty(width, 1)) for _ in range(3))
        self.product_weight = nn.Parameter(torch.empty(1, 1, width))
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight)
        self.attended, self.summed = nn.Conv1d(4 * width, width, 1), nn.Conv1d(2 * width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, video: Tensor, text: Tensor, video_mask: Tensor, text_mask: Tensor) -> Tensor:
        """Clips (B, T, C) and words (B, W, C), True where they are real -> (B, T, C), not negative."""
        clips, words = self.dropout(video), self.dropout(text)
        likeness = clips @ self.clip_weight + (words @ self.word_weight).transpose(1, 2)
        likeness = likeness + (clips * self.product_weight) @ words.transpose(1, 2)  # (B, T, W)
        of_words = likeness.masked_fill(~text_mask[:, None], -torch.inf).softmax(2)
        of_clips = likeness.masked_fill(~video_mask[..., None], -torch.inf).softmax(1)
        read = of_words @ text
        back = of_words @ of_clips.transpose(1, 2) @ video
        mixed = _each(self.attended, torch.cat([video, read, video * read, video * back], 2))
        strength = (text @ self.pool_weight).masked_fill(~text_mask[..., None], -torch.inf)
        summary = (text * strength.softmax(1)).sum(1, keepdim=True).expand_as(mixed)
        return _each(self.summed, torch.cat([mixed, summary], 2)).relu()


def _each(layer: nn.Conv1d, values: Tensor) -> Tensor:
    """A convolution that sees one element at a time: (B, T, in) -> (B, T, out)."""
    return layer(values.transpose(1, 2)).transpose(1, 2)
