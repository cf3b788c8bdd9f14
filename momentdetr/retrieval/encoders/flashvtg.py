"""FlashVTG (Cao et al., 2025): CG-DETR's attention with dummies, for a head that predicts at points of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.encoder import Encoder
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.cg_attention import DummyFusionLayer
from momentdetr.retrieval.encoders.cg_losses import attention_negative_loss, has_foreign_neighbour
from momentdetr.retrieval.encoders.r2_tuning import TEMPERATURE, WordPooling, sampled_contrast
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import margin_loss, negative_pair_loss, rank_contrastive_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, SaliencyTargets, VideoText


@dataclass(frozen=True)
class _Sequences:
    """Projected clips, and dummies with words behind them; their positions and masks."""

    video: Tensor
    video_mask: Tensor
    positions: Tensor
    text: Tensor
    text_positions: Tensor
    text_mask: Tensor


class FlashVtgEncoder(nn.Module):
    """Dummies read the words, clips read dummies and words, then each other.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        dummy_encoder: self-attention over D dummies and W words.
        fusion: layers in which clips read dummies and words.
        encoder: self-attention over clips.
        pooling: of words, (B, W, C) and mask -> (B, C).
        width: C.
        num_dummies: D.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
        attention_weight: of the attention that words get, as a saliency of its own.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. The mask of words
            is repeated in the wrong order (see `QdDetrEncoder`); the video's summary, the binary loss of attention and
            the score loss see padding; a sample that alone has no foreign query loses its rank contrast; and a foreign
            query keeps the own one's word positions.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        dummy_encoder: Encoder,
        fusion: Sequence[DummyFusionLayer],
        encoder: Encoder,
        pooling: WordPooling,
        width: int,
        num_dummies: int,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        attention_weight: float = 1.0,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions, self.pooling = text_positions, pooling
        self.dummy_encoder, self.fusion, self.encoder = dummy_encoder, nn.ModuleList(fusion), encoder
        self.kinds = nn.Parameter(0.02 * torch.randn(2, width))  # of words, of clips
        self.dummies = nn.Parameter(torch.randn(num_dummies, width))
        self.dummy_positions = nn.Parameter(torch.randn(num_dummies, width))
        self.saliency_clip, self.saliency_global = nn.Linear(width, width), nn.Linear(width, width)
        self.width, self.num_dummies = width, num_dummies
        self.saliency_margin, self.attention_weight = saliency_margin, attention_weight
        self.official_batch_faults = official_batch_faults

    def forward(self, inputs: VideoText) -> Encoding:
        """Encode. What foreign queries are paired with later is kept in `extras`."""
        mask = inputs.video_mask
        video = self.video_projection(inputs.video, mask) + self.kinds[1]
        words = self.text_projection(inputs.text) + self.kinds[0]
        places = torch.zeros_like(words) if self.text_positions is None else self.text_positions(words)
        positions = grid_positions(mask, self.width).to(video.dtype)
        own = _Sequences(video, mask, positions, *self._with_dummies(words, places, inputs.text_mask))
        clips, saliency, attended = self._encode(own)
        extras = {"attended": attended, "dummies": own.text[:, : self.num_dummies]}
        extras["sentence"] = self.pooling(words, inputs.text_mask)
        extras |= {"video": own.video, "words": own.text, "places": own.text_positions, "word_mask": own.text_mask}
        # The official pyramid applies ReLU in place, so that everything after saliency sees it.
        memory = Memory(clips.relu(), mask, positions, level_shapes=((clips.shape[1],),))
        return Encoding(memory, saliency, extras, text=words, text_mask=inputs.text_mask)

    def _with_dummies(self, words: Tensor, places: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Dummies that have read the words, before the words; positions and mask of both."""
        batch, count = len(words), self.num_dummies
        positions = torch.cat([self.dummy_positions.expand(batch, -1, -1), places], 1)
        whole = torch.cat([mask.new_ones(batch, count), mask], 1)
        tokens = torch.cat([self.dummies.expand(batch, -1, -1), words], 1)
        dummies = self.dummy_encoder(Memory(tokens, whole, positions)).tokens[:, :count]
        return torch.cat([dummies, words], 1), positions, whole

    def foreign(self, encoding: Encoding, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Saliency (R, T) and attention to words (R, T) of some videos with their neighbours' queries.

        Args:
            encoding: of the batch.
            mask: (B, T), True where a clip is real.
            rows: (B,), True for R of them.
        """
        video, words, places, word_mask = (encoding.extras[name] for name in ("video", "words", "places", "word_mask"))
        places = places if self.official_batch_faults else places.roll(-1, 0)
        positions = encoding.memory.positions
        assert positions is not None
        given = (video, mask, positions, words.roll(-1, 0), places, word_mask.roll(-1, 0))
        _, saliency, attended = self._encode(_Sequences(*(part[rows] for part in given)))
        return saliency, attended

    def _encode(self, given: _Sequences) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, T, C), saliency (B, T), and how much of its attention each clip gave to words (B, T), in [0, 1]."""
        video, mask, looked = given.video, given.video_mask, given.video.new_zeros(())
        for layer in self.fusion:
            masks = (mask, given.text_mask)
            video, weights = layer(video, given.text, given.positions, given.text_positions, masks, self.num_dummies)
            looked = looked + weights / len(self.fusion)
        clips = self.encoder(Memory(video, mask, given.positions)).tokens
        words = given.text_mask[:, None, self.num_dummies :]
        attended = (looked[..., self.num_dummies :] * words).sum(2).clamp(0, 1)
        return clips, self._rate(clips, mask), attended

    def _rate(self, clips: Tensor, mask: Tensor) -> Tensor:
        whole = clips.mean(1) if self.official_batch_faults else _mean(clips, mask)
        return (self.saliency_clip(clips) * self.saliency_global(whole)[:, None]).sum(-1) / math.sqrt(self.width)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """QD-DETR's saliency terms for saliency and for attention to words; contrast of clips with the sentence.

        A neighbour that is another cut of the same video is no foreign query.

        Args:
            mask: (B, T), True where a clip is real.
        """
        if targets.saliency is None or targets.saliency.scores is None:
            return {}
        truth, levels = targets.saliency, targets.saliency.scores
        known = truth.positive[:, 0] >= 0
        rows = has_foreign_neighbour(targets.videos, len(mask)).to(mask.device) & self.training
        saliency, attended = self.foreign(encoding, mask, rows) if rows.any() else (None, None)
        total = self._ordered(encoding.saliency, truth, mask, rows, saliency)
        alone = ~rows
        # The official code counts a sample that is the only one without a foreign query along the wrong axis.
        if alone.any() and not (self.official_batch_faults and alone.sum() == 1 and len(alone) > 1):
            total = total + rank_contrastive_loss(encoding.saliency[alone], levels[alone], mask[alone])
        if saliency is not None:
            total = total + negative_pair_loss(saliency, mask[rows])
        attention = self._attention_loss(encoding.extras["attended"], attended, truth, mask, rows)
        terms = {"saliency": total + self.attention_weight * attention}
        if known.any():
            terms["contrast"] = self._contrast(encoding, truth, mask, known)
        return terms

    def _ordered(
        self, scores: Tensor, truth: SaliencyTargets, mask: Tensor, rows: Tensor, negative: Tensor | None
    ) -> Tensor:
        """The hinge, and rank contrast of samples that have a foreign query: (B, T), and (R, T) with that."""
        total = margin_loss(scores, truth, self.saliency_margin)
        if negative is None:
            return total
        assert truth.scores is not None
        levels = truth.scores[rows]
        both = torch.cat([scores[rows], negative], 1)
        seen = torch.cat([mask[rows], mask[rows]], 1)
        return total + rank_contrastive_loss(both, torch.cat([levels, torch.zeros_like(levels)], 1), seen)

    def _attention_loss(
        self, attended: Tensor, negative: Tensor | None, truth: SaliencyTargets, mask: Tensor, rows: Tensor
    ) -> Tensor:
        """As of saliency; and a clip looks at words if it was scored at all, and at no foreign ones."""
        assert truth.scores is not None
        total = self._ordered(attended, truth, mask, rows, negative)
        if len(mask) == 1:
            total = total + rank_contrastive_loss(attended, truth.scores, mask)
        counted = torch.ones_like(mask) if self.official_batch_faults else mask
        total = total + F.binary_cross_entropy(attended[counted], truth.scores.clamp(0, 1)[counted])
        if negative is None:
            return total
        return total + attention_negative_loss(negative, mask[rows])

    def _contrast(self, encoding: Encoding, truth: SaliencyTargets, mask: Tensor, known: Tensor) -> Tensor:
        """One clip of each sample, against clips of no more saliency and against other samples."""
        assert truth.scores is not None
        clip, levels = truth.positive[known, 0], truth.scores[known]
        rivals = (levels <= levels.gather(1, clip[:, None])) & mask[known]
        tokens = encoding.memory.tokens[known]
        likeness = F.cosine_similarity(tokens, encoding.extras["sentence"][known][:, None], dim=-1)
        return sampled_contrast(likeness / TEMPERATURE, rivals, clip)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over real clips: (B, T, C), (B, T) -> (B, C)."""
    return (values * mask[..., None]).sum(1) / mask.sum(1)[:, None]
