"""CG-DETR (Moon et al., 2023): dummies take the attention of clips that the query does not describe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.encoder import Encoder
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.cg_attention import DummyFusionLayer, Prompts
from momentdetr.retrieval.encoders.cg_losses import (
    attention_negative_loss,
    distillation_loss,
    has_foreign_neighbour,
    membership_loss,
    orthogonality_loss,
    sentence_contrast,
)
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import margin_loss, negative_pair_loss, rank_contrastive_loss, relevant_clips
from momentdetr.retrieval.types import Encoding, MomentTargets, SaliencyTargets, VideoText


class CgDetrEncoder(nn.Module):
    """Dummies made from the query, attention of clips to dummies and words, then self-attention with a summary.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        fusion: layers in which clips read words.
        encoder: self-attention over the summary and T clips.
        dummy_encoder: self-attention over D dummies and W words; the dummies are what is kept.
        sentence_encoder: self-attention over a summary and words, or dummies; losses only.
        moment_encoder: self-attention over a summary and relevant clips, or the others; losses only.
        prompts: makes the summary of clips.
        num_dummies: D.
        width: C.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge losses.
        attention_weight: of the losses of attention within the saliency term.
        foreign_pairs: whether clips must not answer another video's query (not on YouTube Highlights).
        cut_videos: whether names of samples tell which video they were cut from, as in QVHighlights; two samples of the
            same video are not foreign to each other.
        moments: learn moments; False for data that has saliency only, which then is the only loss.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. Its mask of words
            is repeated head by head instead of sample by sample, so that a sample's answer depends on its batch; its
            losses average over padded clips and words; and one lone sample whose neighbour is of the same video is not
            ranked.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        fusion: Sequence[DummyFusionLayer],
        encoder: Encoder,
        dummy_encoder: Encoder,
        sentence_encoder: Encoder,
        moment_encoder: Encoder,
        prompts: Prompts,
        num_dummies: int,
        width: int,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        attention_weight: float = 1.0,
        foreign_pairs: bool = True,
        cut_videos: bool = True,
        moments: bool = True,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions, self.prompts = text_positions, prompts
        self.fusion, self.encoder, self.dummy_encoder = nn.ModuleList(fusion), encoder, dummy_encoder
        self.sentence_encoder, self.moment_encoder = sentence_encoder, moment_encoder
        self.token_types = nn.Embedding(2, width)  # words, clips
        self.dummies = nn.Parameter(torch.randn(num_dummies, width))
        self.dummy_positions = nn.Parameter(torch.randn(num_dummies, width))
        self.sentence_token, self.sentence_position = (nn.Parameter(torch.randn(width)) for _ in range(2))
        self.moment_token, self.moment_position = (nn.Parameter(torch.randn(width)) for _ in range(2))
        self.saliency_clip, self.saliency_global = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.normal_(self.token_types.weight, std=0.02)
        self.num_dummies, self.width, self.saliency_margin = num_dummies, width, saliency_margin
        self.attention_weight, self.foreign_pairs, self.moments = attention_weight, foreign_pairs, moments
        self.cut_videos, self.official_batch_faults = cut_videos, official_batch_faults

    def forward(self, inputs: VideoText) -> Encoding:
        words_type, clips_type = self.token_types.weight
        video = self.video_projection(inputs.video, inputs.video_mask) + clips_type
        words = self.text_projection(inputs.text) + words_type
        word_positions = torch.zeros_like(words) if self.text_positions is None else self.text_positions(words)
        positions = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        text, text_positions, text_mask = self._with_dummies(words, word_positions, inputs.text_mask)
        extras = {
            "video": video,
            "text": text,
            "text_positions": text_positions,
            "text_mask": text_mask,
            "positions": positions,
        }
        memory, saliency, weights, summary = self.fuse(extras, inputs.video_mask)
        extras |= {"attention": weights, "summary": summary}
        # As in QD-DETR, a contrastive alignment of the official code sees no words.
        aligned = words[:, :0] if self.official_batch_faults else words
        return Encoding(memory, saliency, extras, text=aligned, text_mask=inputs.text_mask)

    def _with_dummies(self, words: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Dummies that have seen the words, in front of the words: tokens, positions, mask."""
        batch = len(words)
        dummies = self.dummies.expand(batch, -1, -1)
        positions = torch.cat([self.dummy_positions.expand(batch, -1, -1), positions], 1)  # (B, D + W, C)
        mask = torch.cat([mask.new_ones(batch, self.num_dummies), mask], 1)
        seen = self.dummy_encoder(Memory(torch.cat([dummies, words], 1), mask, positions)).tokens
        return torch.cat([seen[:, : self.num_dummies], words], 1), positions, mask

    def fuse(self, parts: dict[str, Tensor], video_mask: Tensor) -> tuple[Memory, Tensor, Tensor, Tensor]:
        """Memory of clips, saliency (B, T), attention (B, T, D + W), and the encoded summary (B, C)."""
        clips, positions, total = parts["video"], parts["positions"], 0.0
        masks = (video_mask, parts["text_mask"])
        for layer in self.fusion:
            clips, weights = layer(clips, parts["text"], positions, parts["text_positions"], masks, self.num_dummies)
            total = total + weights
        attention = torch.as_tensor(total) / len(self.fusion)
        summary = self.prompts(parts["video"], video_mask, attention[..., self.num_dummies :].sum(-1))
        for layer in self.fusion:
            assert isinstance(layer, DummyFusionLayer)
            summary = layer.alone(summary)
        batch, num_clips, width = clips.shape
        tokens = torch.cat([summary, clips], 1)  # (B, 1 + T, C)
        places = torch.cat([self.prompts.position.expand(batch, 1, -1), positions], 1)
        mask = torch.cat([video_mask.new_ones(batch, 1), video_mask], 1)
        tokens = self.encoder(Memory(tokens, mask, places)).tokens
        summary, clips = tokens[:, :1], tokens[:, 1:] + tokens[:, :1]
        saliency = (self.saliency_clip(clips) * self.saliency_global(summary)).sum(-1) / math.sqrt(width)
        memory = Memory(clips, video_mask, positions, level_shapes=((num_clips,),))
        return memory, saliency, attention, summary[:, 0]

    def foreign(self, encoding: Encoding, mask: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The parts of these samples (B,), each with its neighbour's query, and the mask of their clips."""
        parts = dict(encoding.extras)
        for name in ("text", "text_mask"):
            parts[name] = parts[name].roll(-1, 0)
        kept = ("video", "text", "text_mask", "text_positions", "positions")
        return {name: parts[name][rows] for name in kept} | {"video_mask": mask[rows]}

    def foreign_rows(self, targets: MomentTargets, mask: Tensor) -> Tensor:
        """Which samples' neighbours are of another video: (B,)."""
        return has_foreign_neighbour(targets.videos, len(mask), cut=self.cut_videos).to(mask.device)

    def attended(self, attention: Tensor, text_mask: Tensor) -> Tensor:
        """How much of each clip's attention went to real words: (B, T) in [0, 1]."""
        words = slice(self.num_dummies, None)
        return (attention[..., words] * text_mask[:, None, words]).sum(-1).clamp(0, 1)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """Saliency of clips and of their attention; moments against sentences; attention as moments see words; dummies.

        Args:
            mask: (B, T), True where a clip is real.
        """
        terms = {} if targets.saliency is None else {"saliency": self._saliency(encoding, targets, mask)}
        if not self.moments:
            return terms
        sentence, dummy, tokens = self.sentences(encoding)
        moment, other, frames, likeness = self.moment_summaries(encoding, targets, mask, tokens)
        inside = relevant_clips(targets, mask)
        faults = self.official_batch_faults
        terms["ms_align"] = sentence_contrast(moment, other, sentence, dummy) + membership_loss(
            moment, frames, inside, mask, padded=faults
        )
        text_mask = encoding.extras["text_mask"]
        terms["distill"] = distillation_loss(encoding.extras["attention"], likeness, inside, text_mask, padded=faults)
        terms["orthogonal"] = orthogonality_loss(self.prompts.tokens)
        if self.num_dummies > 1:
            dummies = encoding.extras["text"][:, : self.num_dummies]
            terms["orthogonal"] = terms["orthogonal"] + orthogonality_loss(dummies)
        return terms

    def sentences(self, encoding: Encoding) -> tuple[Tensor, Tensor, Tensor]:
        """Summaries of words and of dummies (B, C), and dummies and words as they were seen there (B, D + W, C)."""
        parts, count = encoding.extras, self.num_dummies
        summaries, tokens = [], []
        for part in (slice(count, None), slice(0, count)):
            given = (parts["text"][:, part], parts["text_positions"][:, part], parts["text_mask"][:, part])
            summary, seen = _summarised(self.sentence_encoder, self.sentence_token, self.sentence_position, *given)
            summaries.append(summary)
            tokens.append(seen)
        return summaries[0], summaries[1], torch.cat([tokens[1], tokens[0]], 1)

    def moment_summaries(
        self, encoding: Encoding, targets: MomentTargets, mask: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Summaries of relevant and of other clips (B, C), each clip as seen in its own group (B, T, C), and how like
        those of the relevant group are to dummies and words (B, T, D + W)."""
        parts, inside = encoding.extras, relevant_clips(targets, mask)
        token = (self.moment_encoder, self.moment_token, self.moment_position, parts["video"], parts["positions"])
        moment, frames = _summarised(*token, inside)
        other, other_frames = _summarised(*token, ~inside & mask)
        likeness = frames @ tokens.transpose(1, 2)
        return moment, other, torch.where(inside[..., None], frames, other_frames), likeness

    def _saliency(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> Tensor:
        assert targets.saliency is not None
        saliency, attention = encoding.saliency, encoding.extras["attention"]
        values = self.attended(attention, encoding.extras["text_mask"])
        foreign = self.foreign_rows(targets, mask)
        negative, negative_values = None, None
        total, of_attention = saliency.new_zeros(()), saliency.new_zeros(())
        if foreign.any():
            parts = self.foreign(encoding, mask, foreign)
            _, negative, weights, _ = self.fuse(parts, parts["video_mask"])
            negative_values = self.attended(weights, parts["text_mask"])
            if self.foreign_pairs:
                total = total + negative_pair_loss(negative, mask[foreign])
                of_attention = of_attention + attention_negative_loss(negative_values, mask[foreign])
        absent = (targets.saliency.positive < 0).all(1)  # as in QD-DETR; no published data set has such queries
        if absent.any():
            total = total + absent.float().mean() * negative_pair_loss(saliency[absent], mask[absent])
        total = total + self._ordered(saliency, negative, foreign, targets.saliency, mask)
        of_attention = of_attention + self._ordered(values, negative_values, foreign, targets.saliency, mask)
        if targets.saliency.scores is not None:
            scored = targets.saliency.scores.clamp(0, 1)
            seen = torch.ones_like(mask) if self.official_batch_faults else mask
            of_attention = of_attention + F.binary_cross_entropy(values[seen], scored[seen])
        return total + self.attention_weight * of_attention

    def _ordered(
        self, scores: Tensor, negative: Tensor | None, foreign: Tensor, targets: SaliencyTargets, mask: Tensor
    ) -> Tensor:
        """The hinge over pairs, and the rank contrast of samples with and without foreign queries."""
        total = margin_loss(scores, targets, self.saliency_margin)
        levels = targets.scores
        if levels is None:
            return total
        if negative is not None:
            pair = (torch.cat([scores[foreign], negative], 1), mask[foreign].repeat(1, 2))
            graded = torch.cat([levels[foreign], torch.zeros_like(levels[foreign])], 1)
            total = total + rank_contrastive_loss(pair[0], graded, pair[1])
        rest = ~foreign
        # The official code adds an axis to a lone sample, so that each of its clips is compared with itself.
        lone = self.official_batch_faults and negative is not None and int(rest.sum()) == 1
        if rest.any() and not lone:
            total = total + rank_contrastive_loss(scores[rest], levels[rest], mask[rest])
        return total


def _summarised(
    encoder: Encoder, token: Tensor, position: Tensor, tokens: Tensor, positions: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode tokens with a summary in front: the summary (B, C) and the tokens (B, N, C)."""
    batch = len(tokens)
    seen = encoder(
        Memory(
            torch.cat([token.expand(batch, 1, -1), tokens], 1),
            torch.cat([mask.new_ones(batch, 1), mask], 1),
            torch.cat([position.expand(batch, 1, -1), positions], 1),
        )
    ).tokens
    return seen[:, 0], seen[:, 1:]
