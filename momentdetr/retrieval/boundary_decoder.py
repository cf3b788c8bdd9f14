"""BAM-DETR's decoder: an anchor and its distances to both ends of a moment, each refined from what lies there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.attention import Guidance
from momentdetr.detr.boxes import at_least_float32, inverse_sigmoid, to_center_size
from momentdetr.detr.decoder import DecoderLayer
from momentdetr.detr.mlp import MLP, FeedForward
from momentdetr.detr.positions import box_features
from momentdetr.detr.types import Memory, Output, Predictions

EPS = 1e-3  # of inverse sigmoids, as in DAB-DETR
MIN_LENGTH = 1e-6


def clipped_ends(references: Tensor) -> Tensor:
    """Anchor and distances to both ends (..., 3) -> start and end within the video (..., 2)."""
    anchor, left, right = references.unbind(-1)
    return torch.stack([(anchor - left).clamp(min=0), (anchor + right).clamp(max=1)], -1)


def spans_of(references: Tensor) -> Tensor:
    """Anchor and distances (..., 3) -> centre and width (..., 2), which may stick out of the video."""
    anchor, left, right = references.unbind(-1)
    return to_center_size(torch.stack([anchor - left, anchor + right], -1))


class BoundaryAttention(nn.Module):
    """Each head reads a few points around a boundary, linearly between clips (after Zhu et al., 2021).

    Args:
        width: C.
        num_heads: H.
        num_points: P, of each head.
        official_batch_faults: place the points in the padded video's clips, see `BamDetrEncoder`.
    """

    def __init__(self, width: int, num_heads: int, num_points: int = 4, *, official_batch_faults: bool = False) -> None:
        super().__init__()
        self.num_heads, self.official_batch_faults = num_heads, official_batch_faults
        self.weights = nn.Linear(width, num_heads * num_points)
        self.offsets = nn.Linear(width, num_heads * num_points)
        self.value, self.out = nn.Linear(2 * width, width), nn.Linear(width, width)
        with torch.no_grad():
            self.offsets.bias.copy_(torch.arange(1.0, num_points + 1).repeat(num_heads))
            self.weights.bias.zero_()

    def forward(self, queries: Tensor, features: Tensor, points: Tensor, mask: Tensor) -> Tensor:
        """Read.

        Args:
            queries: (B, Q, C).
            features: (B, T, 2C).
            points: (B, Q), fractions of the video.
            mask: (B, T), True where a clip is real.

        Returns:
            (B, Q, C).
        """
        heads = self.num_heads
        offsets = self.offsets(queries).unflatten(-1, (heads, -1))  # (B, Q, H, P), in clips
        weights = self.weights(queries).unflatten(-1, (heads, -1)).softmax(-1)
        num_clips = mask.sum(1).to(offsets.dtype)[:, None, None, None]
        places = points[..., None, None] + offsets / num_clips
        last = mask.shape[1] - 1
        if self.official_batch_faults:
            places = (places * (num_clips / (last + 1))).clamp(0, 1)
        else:
            places = places.clamp(0, 1) * (num_clips - 1) / max(last, 1)
        grid = torch.stack([2 * places - 1, torch.zeros_like(places)], -1).transpose(1, 2)  # (B, H, Q, P, 2)
        values = self.value(features).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)  # (B, H, C / H, T)
        read = F.grid_sample(values.flatten(0, 1)[:, :, None], grid.flatten(0, 1).to(values.dtype), align_corners=True)
        mixed = (read.unflatten(0, (-1, heads)) * weights.transpose(1, 2)[:, :, None]).sum(-1)  # (B, H, C / H, Q)
        # Heads end up innermost, so that a head's channels are not neighbours; so it is in the official code.
        return self.out(mixed.permute(0, 3, 2, 1).flatten(-2))


class BoundaryLayer(nn.Module):
    """Attention around a boundary, then a feed-forward network; each with a residual and a layer norm."""

    def __init__(
        self, *, attention: BoundaryAttention, feed_forward: FeedForward, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, content: Tensor, features: Tensor, points: Tensor, mask: Tensor) -> Tensor:
        """As `BoundaryAttention`; (B, Q, C)."""
        content = self.norm_attention(content + self.dropout(self.attention(content, features, points, mask)))
        return self.norm_feed_forward(content + self.dropout(self.feed_forward(content)))


class AnchoredSpanGuide(nn.Module):
    """DAB-DETR's guidance by the centre and length of a span: attention is conditioned on the centre."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.to_positions = MLP(2 * width, 2 * width, width)
        self.query_scale, self.wanted_size = MLP(width, width, width), MLP(width, width, 1)

    def forward(self, content: Tensor, span: Tensor, layer: int) -> Guidance:
        """Content (B, Q, C) and spans (B, Q, 2) -> where to look."""
        encoded = box_features(span, self.width).to(content.dtype)  # (B, Q, 2, C)
        sine = encoded[..., 0, :] * (1.0 if layer == 0 else self.query_scale(content))
        ratio = self.wanted_size(content).sigmoid() / span[..., 1:].clamp(min=MIN_LENGTH)
        return Guidance(self.to_positions(encoded.flatten(-2)), (sine * ratio).to(content.dtype), span)


class DualDecoder(nn.Module):
    """Refine anchors and boundaries in turn.

    A query is an anchor and its distances to the moment's start and end, and has a content for each. In each layer the
    anchor's content reads the whole memory and moves the anchor; then the boundaries' contents read around the start
    and the end, and move the distances.

    Args:
        layers: of the anchors.
        boundary_layers: for each layer one of starts and one of ends.
        guide: of the anchors.
        num_queries: Q.
        width: C.
        quality: predict how well each span fits.
    """

    def __init__(
        self,
        *,
        layers: Sequence[DecoderLayer],
        boundary_layers: Sequence[tuple[BoundaryLayer, BoundaryLayer]],
        guide: AnchoredSpanGuide,
        num_queries: int,
        width: int,
        quality: bool = True,
    ) -> None:
        super().__init__()
        self.layers, self.guide = nn.ModuleList(layers), guide
        self.boundary_layers = nn.ModuleList(nn.ModuleList(pair) for pair in boundary_layers)
        self.anchors = nn.Parameter(torch.randn(num_queries, 3))  # logits
        self.content = nn.Parameter(torch.randn(num_queries, 3 * width))
        self.classes = nn.ModuleList(nn.Linear(3 * width, 2) for _ in layers)
        self.moves = nn.ModuleList(nn.ModuleList(MLP(width, width, width, 1) for _ in range(3)) for _ in self.layers)
        self.quality = MLP(3 * width, width, width, 1) if quality else None

    def forward(self, memory: Memory, boundaries: Tensor) -> Output:
        """Decode.

        Args:
            memory: (B, T, C), with a mask.
            boundaries: (B, T, 2C), what tells starts, then what tells ends.

        Returns:
            `hidden` holds two states a layer, all contents side by side: after the anchors' part, after the
            boundaries'; `references` the anchors with distances (B, Q, 3), as they start and as each layer leaves them.
        """
        batch, mask = len(memory.tokens), memory.mask
        assert mask is not None
        sides = [torch.cat([memory.tokens, side], -1) for side in boundaries.chunk(2, -1)]
        own, *ends = self.content.to(memory.tokens.dtype).expand(batch, -1, -1).chunk(3, -1)
        reference = at_least_float32(self._start()).sigmoid().expand(batch, -1, -1)
        references, hidden, predictions = [reference], [], []
        for index, layer in enumerate(self.layers):
            moves: Any = self.moves[index]
            boundary_layers: Any = self.boundary_layers[index]
            own = layer(own, self.guide(own, to_center_size(clipped_ends(reference)), index), memory)
            hidden.append(torch.cat([own, *ends], -1))
            anchor, used = self._moved(reference, [moves[0](own), None, None])
            points = clipped_ends(used).unbind(-1)
            pairs = zip(boundary_layers, ends, sides, points, strict=True)
            ends = [end_layer(end, side, point, mask) for end_layer, end, side, point in pairs]
            hidden.append(torch.cat([own, *ends], -1))
            steps = [move(end) for move, end in zip(moves[1:], ends, strict=True)]
            moved, reference = self._moved(used, [None, *steps])
            judged = torch.cat([anchor[..., :1], moved[..., 1:]], -1)
            references.append(judged)
            predictions.append(self._said(index, judged, own, ends))
        return Output(tuple(predictions), torch.stack(hidden), tuple(references))

    def _start(self) -> Tensor:
        """Anchors whose distances stay in the video; the gradient passes as if nothing had been clamped."""
        anchor, left, right = self.anchors.detach().unbind(-1)
        room = inverse_sigmoid(1 - anchor.sigmoid(), EPS)
        kept = torch.stack([anchor, left.minimum(anchor), right.minimum(room)], -1)
        return self.anchors + (kept - self.anchors.detach())

    def _moved(self, reference: Tensor, steps: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """References after a step of some of their coordinates: to be judged, and for use without gradient."""
        logits = inverse_sigmoid(reference, EPS)
        moved = [
            part if step is None else part + at_least_float32(step)
            for part, step in zip(logits.split(1, -1), steps, strict=True)
        ]
        new = torch.cat(moved, -1).sigmoid()
        return new, new.detach()

    def _said(self, index: int, judged: Tensor, own: Tensor, ends: Sequence[Tensor]) -> Predictions:
        logits = self.classes[index](torch.cat([own, *ends], -1))
        quality = None
        if self.quality is not None:
            quality = self.quality(torch.cat([own, *(end - own for end in ends)], -1)).squeeze(-1)
        return Predictions(logits, spans_of(judged), quality)
