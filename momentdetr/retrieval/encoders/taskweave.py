"""TaskWeave (Yang et al., 2024): moments and highlights have memories of their own, and one task feeds the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.boxes import to_corners
from momentdetr.detr.encoder import Encoder
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import contrasted_saliency_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText

Direction = Literal["highlights_first", "moments_first"]
"""Which task helps the other: highlights moments (hd2mr), or moments highlights (mr2hd)."""

POOLED = 5  # clips that max-pooling and the moments' convolution see


@dataclass(frozen=True)
class _Sequences:
    """Projected clips and words, their positions and masks."""

    video: Tensor
    video_mask: Tensor
    positions: Tensor
    text: Tensor
    text_positions: Tensor
    text_mask: Tensor


class ClipNorm(nn.Module):
    """Layer norm over the channels of (B, C, T)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1))  # as the official code shapes them
        self.bias = nn.Parameter(torch.zeros(1, width, 1))

    def forward(self, clips: Tensor) -> Tensor:
        normed = F.layer_norm(clips.transpose(1, 2), clips.shape[1:2], self.weight.flatten(), self.bias.flatten())
        return normed.transpose(1, 2)


def pool_clips(clips: Tensor, mask: Tensor | None) -> Tensor:
    """Each channel's maximum over five neighbouring clips, by which TaskWeave widens what a clip knows.

    Args:
        clips: (B, T, C).
        mask: (B, T), True where a clip is real; None: padding counts too (official checkpoints).
    """
    if mask is None:
        return F.max_pool1d(clips.transpose(1, 2), POOLED, 1, POOLED // 2).transpose(1, 2)
    hidden = clips.masked_fill(~mask[..., None], -math.inf).transpose(1, 2)
    pooled = F.max_pool1d(hidden, POOLED, 1, POOLED // 2).transpose(1, 2)
    return pooled.masked_fill(~mask[..., None], 0.0)


def covered_clips(spans: Tensor, num_clips: Tensor, length: int) -> Tensor:
    """How often each clip is covered by the found spans, as a vector of length 1.

    A clip has two halves, and a span covers every half that it touches.

    Args:
        spans: (B, Q, 2), centre and width as fractions of the video.
        num_clips: (B,), clips of each video.
        length: T, at least as many.

    Returns:
        (B, T), float32; zero beyond a video's end.
    """
    halves = 2 * num_clips[:, None]
    start, end = to_corners(spans).unbind(-1)
    first = (start * halves).minimum(halves - 1).clamp(min=0).int()  # (B, Q)
    last = (end * halves).minimum(halves - 1).clamp(min=0).int()
    index = torch.arange(2 * length, device=spans.device)
    covered = (first[..., None] <= index) & (last[..., None] >= index)  # (B, Q, 2T)
    counts = covered.sum(1, dtype=torch.float32).unflatten(1, (length, 2)).mean(-1)
    return F.normalize(counts, dim=1)


class TaskWeaveEncoder(nn.Module):
    """Text-to-video attention, then one shared encoder for both tasks, gated by what each task sees for itself.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        fusion: layers in which clips read words.
        encoder: self-attention over clips, run for either task.
        width: C.
        direction: "highlights_first": clips of more than average saliency are doubled, and all is encoded again;
            "moments_first": clips that the found moments cover count more for saliency.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. The mask of words
            is repeated in the wrong order (see `QdDetrEncoder`); maxima over neighbouring clips and the average
            saliency see padding; the moments' convolution is multiplied by the mask of padded clips, so that for real
            ones it is zero and never learns; found moments are laid over the padded video; a batch of one gets its own
            query as the negative, and a foreign query keeps the own one's word positions.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        fusion: Sequence[TextToVideoLayer],
        encoder: Encoder,
        width: int,
        direction: Direction = "highlights_first",
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions = text_positions
        self.fusion, self.encoder = nn.ModuleList(fusion), encoder
        self.moments, self.highlights = nn.Linear(width, width), nn.Linear(width, width)
        self.moment_convolution = nn.Conv1d(width, width, POOLED, padding=POOLED // 2, groups=width, bias=False)
        self.moment_norm = ClipNorm(width)
        self.moment_gate = nn.Conv1d(width, width, 1)
        self.saliency_clip, self.saliency_local = nn.Linear(width, width), nn.Conv1d(width, width, 1)
        self.saliency = nn.Linear(width, 1)
        self.width, self.saliency_margin, self.direction = width, saliency_margin, direction
        self.official_batch_faults = official_batch_faults

    def forward(self, inputs: VideoText, *, coupled: bool = True, with_negatives: bool | None = None) -> Encoding:
        """Encode; with negatives (by default in training) also each video with its neighbour's query.

        Args:
            coupled: whether highlights already help moments. Moments help highlights in `feed_back`.
        """
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        positions = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        own = _Sequences(video, inputs.video_mask, positions, text, words, inputs.text_mask)
        moments, highlights = self.weave(own)
        saliency = self.rate(highlights)
        if coupled and self.direction == "highlights_first":
            lit = self._above_average(saliency, inputs.video_mask)
            moments, _ = self.weave(replace(own, video=video + video * lit[..., None]))
        extras = {"highlights": highlights}
        with_negatives = self.training if with_negatives is None else with_negatives
        if with_negatives and (len(video) > 1 or self.official_batch_faults):
            extras["negative_saliency"] = self.rate(self.weave(self._foreign(own))[1])
        memory = Memory(moments, inputs.video_mask, positions, level_shapes=((video.shape[1],),))
        return Encoding(memory, saliency, extras, text=text, text_mask=inputs.text_mask)

    def feed_back(self, encoding: Encoding, spans: Tensor) -> Encoding:
        """The encoding with the saliency that found spans (B, Q, 2) lead to."""
        highlights, mask = encoding.extras["highlights"], encoding.memory.mask
        assert mask is not None
        length = mask.shape[1]
        num_clips = torch.full_like(mask[:, 0], length, dtype=torch.long)
        if not self.official_batch_faults:
            num_clips = mask.sum(1)
        covered = covered_clips(spans.detach(), num_clips, length).to(highlights.dtype)
        return replace(encoding, saliency=self.rate(highlights, highlights * covered[..., None]))

    def rate(self, highlights: Tensor, more: Tensor | float = 0.0) -> Tensor:
        """Saliency (B, T) of the highlights' memory (B, T, C); what is `more` counts for the learned part only."""
        local = self.saliency_local(self.saliency_clip(highlights + more).transpose(1, 2)).transpose(1, 2)
        return self.saliency(local).squeeze(-1) + highlights.sum(-1) / math.sqrt(self.width)

    def weave(self, given: _Sequences) -> tuple[Tensor, Tensor]:
        """Memories of moments and of highlights, both (B, T, C)."""
        video, mask = given.video, given.video_mask
        for layer in self.fusion:
            video = layer(video, given.text, given.positions, given.text_positions, (mask, given.text_mask))
        seen = None if self.official_batch_faults else mask
        pooled = pool_clips(video, seen)
        moments, highlights = self.moments(pooled), self.highlights(pooled)
        shared = [
            pool_clips(self.encoder(Memory(tokens, mask, given.positions)).tokens, seen)
            for tokens in (moments, highlights)
        ]
        gate = self.moment_gate(self.moment_norm(self._convolved(moments.transpose(1, 2), mask[:, None])))
        return gate.transpose(1, 2) * shared[0], highlights * shared[1]

    def _convolved(self, moments: Tensor, mask: Tensor) -> Tensor:
        """(B, C, T) and (B, 1, T) -> (B, C, T)."""
        if self.official_batch_faults:
            return self.moment_convolution(moments) * ~mask
        return self.moment_convolution(moments * mask) * mask

    def _above_average(self, saliency: Tensor, mask: Tensor) -> Tensor:
        """(B, T), True for clips of more than their video's average saliency."""
        if self.official_batch_faults:
            return saliency > saliency.mean(1, keepdim=True)
        return saliency > (saliency * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)

    def _foreign(self, own: _Sequences) -> _Sequences:
        """Each video with its neighbour's query."""
        words = own.text_positions if self.official_batch_faults else own.text_positions.roll(-1, 0)
        text, mask = own.text.roll(-1, 0), own.text_mask.roll(-1, 0)
        return replace(own, text=text, text_positions=words, text_mask=mask)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """QD-DETR's: hinge over pairs, rank contrast, and silence for foreign queries.

        Args:
            mask: (B, T), True where a clip is real.
        """
        if targets.saliency is None:
            return {}
        negative = encoding.extras.get("negative_saliency")
        loss = contrasted_saliency_loss(encoding.saliency, negative, targets.saliency, mask, self.saliency_margin)
        return {"saliency": loss}
