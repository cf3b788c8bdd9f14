"""QD-DETR (Moon et al., 2023): each clip reads the query by cross-attention before clips attend to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from momentdetr.detr.attention import key_mask
from momentdetr.detr.elementwise import Dropout
from momentdetr.detr.encoder import Encoder
from momentdetr.detr.mlp import FeedForward
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import contrasted_saliency_loss, indicator_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText


class TextToVideoLayer(nn.Module):
    """Clips attend to words, then a feed-forward network; each with a residual and a layer norm.

    Args:
        attention: queries are clips, keys and values are words.
        feed_forward: (B, T, C) -> (B, T, C).
        width: C.
        dropout: of both branches.
        official_batch_faults: repeat the mask head by head instead of sample by sample, see `QdDetrEncoder`.
    """

    def __init__(
        self,
        *,
        attention: nn.Module,
        feed_forward: FeedForward,
        width: int,
        dropout: float = 0.0,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout: nn.Module = Dropout(dropout)
        self.official_batch_faults = official_batch_faults

    def forward(
        self, video: Tensor, text: Tensor, positions: Tensor, text_positions: Tensor, masks: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Clips (B, T, C) and words (B, W, C), their positions and masks, True where real -> (B, T, C)."""
        read = self.attention(video + positions, text + text_positions, text, self._allowed(*masks))
        return self._add(video, read)

    def _add(self, video: Tensor, read: Tensor) -> Tensor:
        video = video + self.dropout(read)
        # The residual passes the first norm by, unlike in the self-attention layers; so it is in the official code.
        return self.norm_feed_forward(video + self.dropout(self.feed_forward(self.norm_attention(video))))

    def _allowed(self, video_mask: Tensor, text_mask: Tensor) -> Tensor:
        allowed = key_mask(text_mask)
        assert allowed is not None
        if not self.official_batch_faults:
            return allowed  # (B, 1, 1, W)
        heads: int = self.attention.num_heads  # type: ignore[assignment]
        both_padded = ~video_mask[:, :, None] & ~text_mask[:, None, :]  # (B, T, W)
        wrong_order = both_padded.repeat(heads, 1, 1).unflatten(0, (-1, heads))  # (B, H, T, W)
        return allowed & ~wrong_order


class QdDetrEncoder(nn.Module):
    """Text-to-video cross-attention, then self-attention of clips with a global token that saliency is measured by.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        fusion: layers in which clips read words.
        encoder: self-attention over the global token and T clips.
        width: C.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
        indicator: also ask each clip whether it is inside a moment; no published model does.
        official_batch_faults: reproduce four faults of the official code; only its checkpoints want them. Its mask of
            words is repeated head by head instead of sample by sample, so that in a padded batch a sample ignores
            words that are padding in *another* sample; a batch of one gets its own query as the negative; a foreign
            query keeps the word positions of the own one; and a contrastive alignment is given no words. Without them a
            sample's answer does not depend on its batch.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        fusion: Sequence[TextToVideoLayer],
        encoder: Encoder,
        width: int,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        indicator: bool = False,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions = text_positions
        self.fusion, self.encoder = nn.ModuleList(fusion), encoder
        self.global_token = nn.Parameter(torch.randn(width))
        self.global_position = nn.Parameter(torch.randn(width))
        self.saliency_clip, self.saliency_global = nn.Linear(width, width), nn.Linear(width, width)
        self.width, self.saliency_margin, self.indicator = width, saliency_margin, indicator
        self.official_batch_faults = official_batch_faults

    def forward(self, inputs: VideoText, *, with_negatives: bool | None = None) -> Encoding:
        """Encode; with negatives (by default in training) also each video with its neighbour's query.

        A batch of one has no neighbour and gets no negative.
        """
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        positions = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        memory, saliency = self._encode(video, positions, inputs.video_mask, text, words, inputs.text_mask)
        extras = {}
        with_negatives = self.training if with_negatives is None else with_negatives
        if with_negatives and (len(video) > 1 or self.official_batch_faults):
            given = (video, positions, inputs.video_mask, text, words, inputs.text_mask)
            extras["negative_saliency"] = self.foreign_saliency(*given)
        # The official code takes the words from a memory that holds clips only, so its alignment sees none.
        aligned = text[:, :0] if self.official_batch_faults else text
        return Encoding(memory, saliency, extras, text=aligned, text_mask=inputs.text_mask)

    def _encode(
        self, video: Tensor, positions: Tensor, video_mask: Tensor, text: Tensor, words: Tensor, text_mask: Tensor
    ) -> tuple[Memory, Tensor]:
        """Memory of clips, and saliency (B, T)."""
        fused = self.fuse(video, positions, video_mask, text, words, text_mask)
        return self.summarize(fused, positions, video_mask)

    def fuse(
        self, video: Tensor, positions: Tensor, video_mask: Tensor, text: Tensor, words: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Clips that have read the words: (B, T, C)."""
        for layer in self.fusion:
            video = layer(video, text, positions, words, (video_mask, text_mask))
        return video

    def summarize(self, video: Tensor, positions: Tensor, video_mask: Tensor) -> tuple[Memory, Tensor]:
        """Clips that have seen each other, and saliency (B, T) by the global token."""
        batch, num_clips, width = video.shape
        tokens = torch.cat([self.global_token.expand(batch, 1, -1), video], 1)  # (B, 1 + T, C)
        places = torch.cat([self.global_position.expand(batch, 1, -1), positions], 1)
        mask = torch.cat([video_mask.new_ones(batch, 1), video_mask], 1)
        tokens = self.encoder(Memory(tokens, mask, places)).tokens
        summary, clips = tokens[:, :1], tokens[:, 1:]
        saliency = (self.saliency_clip(clips) * self.saliency_global(summary)).sum(-1) / math.sqrt(width)
        return Memory(clips, video_mask, positions, level_shapes=((num_clips,),)), saliency

    def foreign_saliency(
        self, video: Tensor, positions: Tensor, video_mask: Tensor, text: Tensor, words: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Saliency (B, T) of each video for its neighbour's query."""
        foreign = [x.roll(-1, 0) for x in (text, words, text_mask)]
        if self.official_batch_faults:
            foreign[1] = words
        return self._encode(video, positions, video_mask, *foreign)[1]

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """Hinge over pairs, rank contrast over annotated levels, and silence for foreign queries; their plain sum.

        Args:
            mask: (B, T), True where a clip is real.
        """
        extra = {"indicator": indicator_loss(encoding.saliency, targets.spans, mask)} if self.indicator else {}
        if targets.saliency is None:
            return extra
        negative = encoding.extras.get("negative_saliency")
        total = contrasted_saliency_loss(encoding.saliency, negative, targets.saliency, mask, self.saliency_margin)
        return {"saliency": total, **extra}
