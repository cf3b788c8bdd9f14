"""Levels of time: clips encoded by deformable attention over a pyramid, at a cost that grows linearly with them.

Dense self-attention compares every clip with every other; hours of video cannot pay for that. Here each cell looks at a
few points of every level instead, and what is far away is near on a coarse level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from momentdetr.detr.encoder import Encoder, EncoderLayer
from momentdetr.detr.layers import Points, Stack, deformable_encoder
from momentdetr.detr.neck import cell_centers
from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.pyramid import Level, TemporalPyramid, line_up
from momentdetr.retrieval.stacks import Sizes, text_to_video


class Recomputed(nn.Module):
    """A layer whose inner results are forgotten, and computed again for the gradient: time for memory.

    Args:
        layer: any module.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return self.layer(*given)
        return checkpoint(self.layer, *given, use_reentrant=False)


class InPieces(nn.Module):
    """A layer that sees one token at a time, given some thousands at once: what is inside never has the whole length.

    Args:
        layer: (B, n, C) -> (B, n, C), token by token.
        size: of a piece.
    """

    def __init__(self, layer: nn.Module, size: int = 2**13) -> None:
        super().__init__()
        self.layer, self.size = Recomputed(layer), size

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.layer(piece) for piece in tokens.split(self.size, 1)], 1)


def recomputed(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Each of them wrapped in `Recomputed`."""
    return [Recomputed(module) for module in modules]


def exactly_placed(memory: Memory, levels: Sequence[Level], mask: Tensor) -> Memory:
    """The same memory with places counted in clips, where a level's last cell is only in part real.

    A fraction of the video then means the same time on every level, whatever its length divides by.

    Args:
        memory: of the levels.
        levels: L of them.
        mask: (B, T), True where a clip is real.
    """
    assert memory.references is not None
    num_clips = mask.sum(1).clamp(min=1).to(memory.references.dtype)  # (B,)
    sizes = [level.cells.shape[1] for level in levels]
    ratios = torch.stack([num_clips / (level.stride * n) for level, n in zip(levels, sizes, strict=True)], 1)[..., None]
    centers = [cell_centers((n,), ratios[:, index]) for index, n in enumerate(sizes)]
    return replace(memory, valid_ratios=ratios, references=torch.cat(centers, 1))


class TemporalLevels(nn.Module):
    """Clips to a memory of several levels.

    Args:
        pyramid: makes the levels.
        width: C.
        encoder: deformable self-attention over all cells, or None.
        recompute: the pyramid, see `Recomputed`.
    """

    def __init__(
        self, pyramid: TemporalPyramid, width: int, encoder: nn.Module | None = None, *, recompute: bool = False
    ) -> None:
        super().__init__()
        self.strides = pyramid.strides
        self.pyramid, self.encoder = Recomputed(pyramid) if recompute else pyramid, encoder
        # Only self-attention reads where a cell is; the decoder reads cells by their places.
        self.level_embedding = None if encoder is None else nn.Parameter(torch.randn(len(pyramid.strides), width))

    def forward(self, clips: Tensor, mask: Tensor) -> Memory:
        """Clips (B, T, C), True where real (B, T) -> cells (B, N, C), finest level first, zero where padded."""
        levels = self.pyramid(clips, mask)
        memory = exactly_placed(line_up(levels, mask, level_embedding=self.level_embedding), levels, mask)
        if self.encoder is not None:
            memory = self.encoder(memory)
        assert memory.mask is not None
        return memory.with_tokens(memory.tokens.masked_fill(~memory.mask[..., None], 0))


class TemporalEncoder(nn.Module):
    """Stands for the self-attention of QD-DETR's encoder: (token and clips) -> the same, encoded.

    Clips look at points of a pyramid; the global token before them reads all clips.

    Args:
        levels: of which the first must have a cell for each clip.
        summary: a `TextToVideoLayer` in which the token reads the clips.
    """

    def __init__(self, levels: TemporalLevels, summary: nn.Module) -> None:
        super().__init__()
        if levels.strides[0] != 1:
            raise ValueError(f"the finest stride is {levels.strides[0]}, but clips are to be encoded: 1")
        self.levels, self.summary = levels, summary

    def forward(self, memory: Memory) -> Memory:
        """The same memory with encoded tokens (B, 1 + T, C)."""
        assert memory.mask is not None
        assert memory.positions is not None
        (token, clips), (own, mask), (place, places) = (
            (part[:, :1], part[:, 1:]) for part in (memory.tokens, memory.mask, memory.positions)
        )
        clips = clips + self.levels(clips, mask).tokens[:, : clips.shape[1]]
        token = self.summary(token, clips, place, places, (own, mask))
        return memory.with_tokens(torch.cat([token, clips], 1))


def temporal_levels(
    sizes: Sizes, strides: Sequence[float], num_layers: int, *, num_points: int = 4, recompute: bool = False
) -> TemporalLevels:
    """A pyramid, and deformable self-attention over it.

    Args:
        strides: clips per cell of each level, finest first.
        num_layers: of self-attention; 0: none.
        num_points: per head and level.
        recompute: see `Recomputed`.
    """
    encoder = None
    if num_layers:
        stack = Stack(sizes.width, sizes.num_heads, sizes.feed_forward, num_layers, sizes.dropout)
        encoder = deformable_encoder(stack, Points(1, len(strides), num_points))
        encoder = _sparing(encoder, sizes) if recompute else encoder
    return TemporalLevels(TemporalPyramid(sizes.width, strides), sizes.width, encoder, recompute=recompute)


def _sparing(encoder: Encoder, sizes: Sizes) -> Encoder:
    """The same parts, at little memory."""
    layers = [
        EncoderLayer(
            self_attention=layer.self_attention,  # type: ignore[arg-type]
            feed_forward=InPieces(layer.feed_forward),  # type: ignore[arg-type]
            width=sizes.width,
            dropout=sizes.dropout,
        )
        for layer in encoder.layers
    ]
    return Encoder(recomputed(layers))  # type: ignore[arg-type]


def temporal_encoder(sizes: Sizes, num_levels: int, *, recompute: bool = False) -> TemporalEncoder:
    """In the place of `stacks.encoder`, for encoders that put one token before the clips."""
    levels = temporal_levels(sizes, [2**i for i in range(num_levels)], sizes.encoder_layers, recompute=recompute)
    (summary,) = text_to_video(sizes, TextToVideoLayer, count=1)
    return TemporalEncoder(levels, Recomputed(summary) if recompute else summary)
