"""UVCOM (Xiao et al., 2024): topics of the text gather clips, and slots of the video start the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.encoder import Encoder
from momentdetr.detr.mlp import MLP
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory, Queries
from momentdetr.retrieval.encoders.qd_detr import TextToVideoLayer
from momentdetr.retrieval.encoders.slots import SlotAttention
from momentdetr.retrieval.encoders.uvcom_parts import LocalConvolution, cluster, random_walk, similarity_loss
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import margin_loss, negative_pair_loss, rank_contrastive_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText


class UvcomEncoder(nn.Module):
    """Clips read words and words read clips; both are clustered, and clips walk between the topics of the text.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        fusion: layers in which clips read words.
        words_fusion: layers in which words read clips.
        encoder: self-attention over the most telling cluster of clips, and T clips.
        slots: turns the sentence into queries.
        width: C.
        num_queries: Q.
        num_topics: clusters of words.
        num_clusters: of clips.
        cluster_iterations: of both.
        likeness_size: between the layers of the networks that compare videos and texts.
        hard_negatives_from: epoch from which on the least similar query of the batch is the foreign one, not the
            neighbour's.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
        inverted_walk: see `random_walk`; False for Lighthouse's checkpoints only.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. Its masks are
            repeated head by head instead of sample by sample; clustering, the sentence's mean, slots, convolution and
            losses take padding along; and a batch of one gets its own query as the foreign one. Without them a sample's
            answer does not depend on its batch.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        fusion: Sequence[TextToVideoLayer],
        words_fusion: Sequence[TextToVideoLayer],
        encoder: Encoder,
        slots: SlotAttention,
        width: int,
        num_queries: int,
        num_topics: int = 5,
        num_clusters: int = 30,
        cluster_iterations: int = 5,
        likeness_size: int = 1024,
        hard_negatives_from: int = 80,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        inverted_walk: bool = True,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions, self.slots = text_positions, slots
        self.fusion, self.words_fusion, self.encoder = nn.ModuleList(fusion), nn.ModuleList(words_fusion), encoder
        self.sentence = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.local = LocalConvolution(width, official_batch_faults=official_batch_faults)
        self.text_centres, self.video_centres = (
            nn.Parameter(torch.empty(n, width)) for n in (num_topics, num_clusters)
        )
        self.video_likeness, self.text_likeness = (MLP(width, likeness_size, likeness_size, width) for _ in range(2))
        self.anchors = nn.Parameter(torch.randn(num_queries, 2))  # logits
        self.query_content = nn.Parameter(torch.empty(num_queries, width))
        for start in (self.text_centres, self.video_centres, self.query_content):
            nn.init.xavier_uniform_(start)
        self.global_position = nn.Parameter(torch.randn(width))
        self.saliency_clip, self.saliency_global = nn.Linear(width, width), nn.Linear(width, width)
        self.width, self.saliency_margin, self.cluster_iterations = width, saliency_margin, cluster_iterations
        self.hard_negatives_from, self.epoch = hard_negatives_from, 0
        self.inverted_walk, self.official_batch_faults = inverted_walk, official_batch_faults

    def at_epoch(self, epoch: int) -> None:
        """From which epoch the next batch is."""
        self.epoch = epoch

    def forward(self, inputs: VideoText, *, with_negatives: bool | None = None) -> Encoding:
        """Encode; with negatives (by default in training) also each video with a foreign query.

        A batch of one has no foreign query.
        """
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        positions = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        own = self.encode(video, positions, inputs.video_mask, text, words, inputs.text_mask)
        with_negatives = self.training if with_negatives is None else with_negatives
        if with_negatives and (len(video) > 1 or self.official_batch_faults):
            other = self.foreign_queries(own)
            foreign = self.encode(video, positions, inputs.video_mask, text[other], words, inputs.text_mask[other])
            own.extras["negative_saliency"] = foreign.saliency
        return own

    def foreign_queries(self, own: Encoding) -> Tensor:
        """Which query is foreign to each video: its neighbour's, or later the least similar one: (B,)."""
        videos, clips = own.extras["videos"], own.extras["clips_to_texts"]
        if self.epoch >= self.hard_negatives_from:
            return (videos.softmax(-1) + clips.softmax(-1)).argmin(-1)
        return torch.arange(len(videos), device=videos.device).roll(-1)

    def encode(
        self, video: Tensor, positions: Tensor, mask: Tensor, text: Tensor, words: Tensor, text_mask: Tensor
    ) -> Encoding:
        """Projected clips and words, their positions and masks -> everything but the negatives."""
        seen = torch.ones_like(mask) if self.official_batch_faults else mask
        seen_text = torch.ones_like(text_mask) if self.official_batch_faults else text_mask
        clips, read = video, text
        for layer in self.fusion:
            clips = layer(clips, text, positions, words, (mask, text_mask))
        for layer in self.words_fusion:
            read = layer(read, video, words, positions, (text_mask, mask))
        sentence = _mean(self.sentence(read), seen_text)  # (B, C)
        topics = cluster(self.text_centres, read, seen_text, self.cluster_iterations)
        clusters = cluster(self.video_centres, clips, seen, self.cluster_iterations)
        telling = (F.normalize(clusters, dim=-1) @ F.normalize(topics, dim=-1).transpose(1, 2)).mean(-1).argmax(1)
        summary = clusters[torch.arange(len(clusters), device=clusters.device), telling][:, None]  # (B, 1, C)
        walked = random_walk(clips + self.local(clips, mask), topics, seen, inverted=self.inverted_walk)
        clips = clips + walked
        memory, whole, saliency = self._together(summary, clips, positions, mask)
        extras = self._likeness(sentence, whole, clips, seen) | {"summary": summary}
        slots = self.slots(memory.tokens, mask, sentence[:, None].expand(-1, len(self.anchors), -1))
        queries = Queries(slots + self.query_content, anchors=self.anchors.expand(len(slots), -1, -1))
        return Encoding(memory, saliency, extras, queries, text=text, text_mask=text_mask)

    def _together(
        self, summary: Tensor, clips: Tensor, positions: Tensor, mask: Tensor
    ) -> tuple[Memory, Tensor, Tensor]:
        """Memory of clips, their encoded summary (B, C), and saliency (B, T)."""
        batch, num_clips, width = clips.shape
        tokens = torch.cat([summary, clips], 1)  # (B, 1 + T, C)
        places = torch.cat([self.global_position.expand(batch, 1, -1), positions], 1)
        tokens = self.encoder(Memory(tokens, torch.cat([mask.new_ones(batch, 1), mask], 1), places)).tokens
        whole, clips = tokens[:, 0], tokens[:, 1:]
        saliency = (self.saliency_clip(clips) * self.saliency_global(whole)[:, None]).sum(-1) / math.sqrt(width)
        return Memory(clips, mask, positions, level_shapes=((num_clips,),)), whole, saliency

    def _likeness(self, sentence: Tensor, whole: Tensor, clips: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Of clips to their text (B, T), of videos to all texts (B, B), of clips' mean to all texts (B, B)."""
        text = F.normalize(self.text_likeness(sentence), dim=-1)
        each = F.normalize(self.video_likeness(clips), dim=-1)
        return {
            "clips": (each @ text[..., None]).squeeze(-1),
            "videos": F.normalize(self.video_likeness(whole), dim=-1) @ text.T,
            "clips_to_texts": _mean(each @ text.T, seen),
            "fused": clips,
        }

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """QD-DETR's saliency, and the likeness of videos and clips to texts.

        Args:
            mask: (B, T), True where a clip is real.
        """
        likeness = (encoding.extras["clips"], encoding.extras["videos"])
        terms = {
            "similarity": similarity_loss(*likeness, targets.spans, mask, padded=self.official_batch_faults),
        }
        if targets.saliency is None:
            return terms
        scores, seen = encoding.saliency, mask
        total = margin_loss(scores, targets.saliency, self.saliency_margin)
        absent = (targets.saliency.positive < 0).all(1)  # as in QD-DETR; no published data set has such queries
        if absent.any():
            total = total + absent.float().mean() * negative_pair_loss(scores[absent], mask[absent])
        negative = encoding.extras.get("negative_saliency")
        levels = targets.saliency.scores
        if negative is not None:
            total = total + negative_pair_loss(negative, mask)
            scores, seen = torch.cat([scores, negative], 1), torch.cat([mask, mask], 1)
            levels = None if levels is None else torch.cat([levels, torch.zeros_like(levels)], 1)
        if levels is not None:
            total = total + rank_contrastive_loss(scores, levels, seen)
        return {"saliency": total, **terms}


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Of the tokens (B, N, C) that take part (B, N): (B, C)."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
