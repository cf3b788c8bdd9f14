"""TR-DETR (Sun et al., 2024): saliency sharpens what moments are found in, and the best moment sharpens saliency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import to_corners
from momentdetr.detr.encoder import Encoder
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory, Output
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.encoders.tr_losses import clip_text_contrast, video_text_contrast
from momentdetr.retrieval.encoders.tr_mixer import ContextQueryMixer
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import described_clips, margin_loss, rank_contrastive_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText


class TrDetrEncoder(nn.Module):
    """Fusion, text-to-video attention, then self-attention twice: plain, and with salient clips strengthened.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        mixer: the first fusion.
        fusion: layers in which clips read words.
        encoder: self-attention over T clips.
        width: C.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. Its mask of words
            is repeated head by head instead of sample by sample; its softmax of saliency, its means of clips and
            words, and its losses take padding along; and the best moment is looked up as if padded clips belonged to
            the video, and in another place where it begins before the video. Without them a sample's answer does not
            depend on its batch.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        mixer: ContextQueryMixer,
        fusion: Sequence[TextToVideoLayer],
        encoder: Encoder,
        width: int,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions, self.mixer = text_positions, mixer
        self.fusion, self.encoder = nn.ModuleList(fusion), encoder
        self.saliency_clip = nn.Linear(width, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.width, self.saliency_margin = width, saliency_margin
        self.official_batch_faults = official_batch_faults

    def forward(self, inputs: VideoText) -> Encoding:
        """Encode; the saliency is that of the first pass, until `refine` has seen what was found."""
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        mixed = self.mixer(video, text, inputs.video_mask, inputs.text_mask)
        positions = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        for layer in self.fusion:
            mixed = layer(mixed, text, positions, words, (inputs.video_mask, inputs.text_mask))
        memory = Memory(mixed, inputs.video_mask, positions, level_shapes=((mixed.shape[1],),))
        first = self.encoder(memory).tokens
        saliency = self._saliency(first)
        visible = saliency if self.official_batch_faults else saliency.masked_fill(~inputs.video_mask, -torch.inf)
        stressed = first + mixed * visible.softmax(1)[..., None]
        memory = self.encoder(memory.with_tokens(stressed))
        extras = {"video": video, "text": text, "text_mask": inputs.text_mask}
        # As in QD-DETR, a contrastive alignment of the official code sees no words.
        aligned = text[:, :0] if self.official_batch_faults else text
        return Encoding(memory, saliency, extras, text=aligned, text_mask=inputs.text_mask)

    def refine(self, encoding: Encoding, output: Output, mask: Tensor) -> Encoding:
        """Saliency again, of clips strengthened by their likeness to the best moment.

        Args:
            output: what the decoder found in the encoding's memory.
            mask: (B, T), True where a clip is real.
        """
        video = encoding.extras["video"]
        state = self.moment_state(video, *self._best_moment(output, mask), mask)
        likeness = (video @ state[..., None]).squeeze(-1)  # (B, T)
        return replace(encoding, saliency=self._saliency(encoding.memory.tokens * (1 + likeness[..., None])))

    def moment_state(self, video: Tensor, start: Tensor, stop: Tensor, mask: Tensor) -> Tensor:
        """A moment's clips (B, T, C) from `start` to before `stop` (B,), read in order, then nothing for the rest of
        the video's length, as the official code does: (B, C)."""
        steps = torch.arange(video.shape[1], device=video.device)
        clips = (start[:, None] + steps).clamp(max=video.shape[1] - 1)  # (B, T)
        inside = steps < (stop - start)[:, None]
        given = video.gather(1, clips[..., None].expand_as(video)) * inside[..., None]
        states, last = self.gru(given)
        if self.official_batch_faults:
            return last[0]
        return states[torch.arange(len(video), device=video.device), mask.sum(1) - 1]

    def _best_moment(self, output: Output, mask: Tensor) -> tuple[Tensor, Tensor]:
        """First clip of each sample's best moment and the clip behind its last: (B,), (B,)."""
        best = output.last.logits.softmax(-1)[..., 0].argmax(1)
        spans = to_corners(output.last.boxes.detach())[torch.arange(len(best), device=best.device), best]  # (B, 2)
        if not self.official_batch_faults:
            length = mask.sum(1)
            start, end = (spans * length[:, None]).floor().long().unbind(-1)
            start = start.clamp(min=0).minimum(length - 1)
            return start, (end + 1).minimum(length).maximum(start + 1)
        # Python's slices: a negative index counts from the end.
        num_clips = mask.shape[1]
        edges = (spans * num_clips).floor().long().tolist()
        slices = [slice(start, end + 1).indices(num_clips) for start, end in edges]
        start, stop, _ = torch.tensor(slices, device=mask.device).unbind(-1)
        return start, stop

    def _saliency(self, clips: Tensor) -> Tensor:
        return self.saliency_clip(clips).sum(-1) / math.sqrt(self.width)

    def summaries(self, encoding: Encoding, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the projected clips and of the projected words: (B, C) each."""
        parts = encoding.extras
        return self._mean(parts["video"], mask), self._mean(parts["text"], parts["text_mask"])

    def _mean(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.official_batch_faults:
            return tokens.mean(1)
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """Hinge over pairs and rank contrast; projected videos and clips against texts.

        Args:
            mask: (B, T), True where a clip is real.
        """
        terms = {
            "video_text": video_text_contrast(*self.summaries(encoding, mask)),
            "clip_text": clip_text_contrast(
                encoding.extras["video"],
                encoding.extras["text"],
                described_clips(targets, mask),
                mask,
                encoding.extras["text_mask"],
                padded=self.official_batch_faults,
            ),
        }
        if targets.saliency is None:
            return terms
        terms["saliency"] = margin_loss(encoding.saliency, targets.saliency, self.saliency_margin)
        if targets.saliency.scores is not None:
            ranked = rank_contrastive_loss(encoding.saliency, targets.saliency.scores, mask)
            terms["saliency"] = terms["saliency"] + ranked
        return terms
