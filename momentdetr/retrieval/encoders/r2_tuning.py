"""R2-Tuning (Liu et al., 2024): the last layers of a frozen CLIP, read from the last backwards by one small block."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.attention import Attention, key_mask
from momentdetr.detr.mlp import FeedForward
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.projection import Projection
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText

TEMPERATURE = 0.07


class RefiningLayer(nn.Module):
    """Clips read the words, then each other, then a feed-forward network; each with a residual and a layer norm."""

    def __init__(
        self, *, cross: Attention, own: Attention, feed_forward: FeedForward, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.cross, self.own, self.feed_forward = cross, own, feed_forward
        self.norm_cross, self.norm_own, self.norm_feed_forward = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, clips: Tensor, words: Tensor, positions: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, C) and (B, W, C), positions (B, T, C), masks of both -> (B, T, C)."""
        read = self.cross(clips + positions, words, words, key_mask(masks[1]))
        clips = self.norm_cross(clips + self.dropout(read))
        seen = self.own(clips + positions, clips + positions, clips, key_mask(masks[0]))
        clips = self.norm_own(clips + self.dropout(seen))
        return self.norm_feed_forward(clips + self.dropout(self.feed_forward(clips)))


class WordPooling(nn.Module):
    """One vector of a sentence: words weighted by a learned score. (B, W, C) and (B, W) -> (B, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        weights = self.score(words).masked_fill(~mask[..., None], -math.inf).softmax(1)
        return (words * weights).sum(1)


class R2TuningEncoder(nn.Module):
    """Refine clips by the words, from CLIP's last layer back to earlier ones, with the same block for all.

    Args:
        video_projection: (..., Cv + 2) -> (..., C), of a patch with the temporal endpoints of its clip.
        text_projection: (..., Ct) -> (..., C).
        layer: of the refinement.
        pooling: of words, (B, W, C) and mask -> (B, C).
        width: C.
        num_layers: K, how many of CLIP's layers are read.
        stored_layers: how many the features hold, the last ones last.
        num_patches: P, of a frame, the class token first.
        temperature: of the contrast of clips.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them, and only in
            training, because it answers one query at a time. Temporal endpoints and positions are fractions of the
            padded video; and the maximum over words sees padding.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        layer: RefiningLayer,
        pooling: WordPooling,
        width: int,
        num_layers: int = 4,
        stored_layers: int = 4,
        num_patches: int = 50,
        temperature: float = TEMPERATURE,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.layer, self.pooling = layer, pooling
        self.patch_key, self.word_query = nn.Linear(width, width), nn.Linear(width, width)
        self.scale, self.gate = nn.Parameter(torch.zeros(num_layers)), nn.Parameter(torch.zeros(num_layers - 1))
        self.width, self.num_layers, self.stored_layers = width, num_layers, stored_layers
        self.num_patches, self.temperature = num_patches, temperature
        self.official_batch_faults = official_batch_faults

    def forward(self, inputs: VideoText, **_: Any) -> Encoding:
        """Encode.

        Args:
            inputs: video (B, T, layers x patches x Cv), text (B, W, layers x Ct).
        """
        mask = inputs.video_mask
        video = inputs.video.unflatten(-1, (self.stored_layers, self.num_patches, -1)).masked_fill(
            ~mask[..., None, None, None], 0.0
        )
        text = inputs.text.masked_fill(~inputs.text_mask[..., None], 0.0).unflatten(-1, (self.stored_layers, -1))
        seen = torch.ones_like(mask) if self.official_batch_faults else mask
        positions = grid_positions(seen, self.width).to(video.dtype)
        endpoints = _endpoints(seen).to(video.dtype)[:, :, None].expand(-1, -1, self.num_patches, -1)
        clips, words = video.new_zeros(()), text
        extras: dict[str, Tensor] = {}
        skipped = self.stored_layers - self.num_layers
        for index in reversed(range(self.num_layers)):
            patches = self.video_projection(torch.cat([video[:, :, skipped + index], endpoints], -1))  # (B, T, P, C)
            words = self.text_projection(text[:, :, skipped + index])  # (B, W, C)
            frames = patches[:, :, 0]
            pooled = self._pooled(patches, words, inputs.text_mask)
            fresh = frames + pooled * self.scale[index].tanh()
            if index + 1 < self.num_layers:
                gate = self.gate[index].sigmoid()
                fresh = gate * fresh + (1 - gate) * clips
            clips = self.layer(fresh, words, positions, (mask, inputs.text_mask))
            extras |= {f"frames_{index}": frames, f"sentence_{index}": self.pooling(words, inputs.text_mask)}
        clips = clips.relu()  # the official pyramid does this in place, so everything after it sees it
        query = extras["sentence_0"]
        saliency = F.cosine_similarity(clips, query[:, None], dim=-1)
        memory = Memory(clips, mask, positions, level_shapes=((clips.shape[1],),))
        return Encoding(memory, saliency, extras, text=words, text_mask=inputs.text_mask)

    def _pooled(self, patches: Tensor, words: Tensor, text_mask: Tensor) -> Tensor:
        """What the words find among the patches of each clip: (B, T, C)."""
        match = torch.einsum("bwc,btpc->btwp", self.word_query(words), self.patch_key(patches))
        found = torch.einsum("btwp,btpc->btwc", (match / math.sqrt(self.width)).softmax(-1), patches)
        found = found + words[:, None]
        if not self.official_batch_faults:
            found = found.masked_fill(~text_mask[:, None, :, None], -math.inf)
        return found.amax(2)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """Contrast of one clip of each sample: with clips of no more saliency, with other samples, with other layers.

        The clip is the first of each sample's positive ones; samples without one do not count.

        Args:
            mask: (B, T), True where a clip is real.
        """
        if targets.saliency is None or targets.saliency.scores is None:
            return {}
        clip = targets.saliency.positive[:, 0]
        known = clip >= 0
        if not known.any():
            return {}
        rows, clip = torch.arange(len(clip), device=clip.device)[known], clip[known]
        levels = targets.saliency.scores[known]
        rivals = (levels <= levels.gather(1, clip[:, None])) & mask[known]
        similarity = encoding.saliency[known] / self.temperature
        frames = torch.stack([encoding.extras[f"frames_{i}"][rows, clip] for i in reversed(range(self.num_layers))])
        sentences = torch.stack([encoding.extras[f"sentence_{i}"][known] for i in reversed(range(self.num_layers))])
        return {
            "saliency": sampled_contrast(similarity, rivals, clip),
            "video_contrast": mutual_contrast(frames, sentences),
            "layer_contrast": mutual_contrast(frames.transpose(0, 1), sentences.transpose(0, 1)),
        }


def sampled_contrast(similarity: Tensor, rivals: Tensor, clip: Tensor) -> Tensor:
    """InfoNCE of one clip of each sample, among the sample's rivals and among the samples at that clip.

    Args:
        similarity: (B, T), over the temperature.
        rivals: (B, T), True for clips that may be compared, the clip itself among them.
        clip: (B,), indices.
    """
    logits = similarity.masked_fill(~rivals, -math.inf)
    rows = torch.arange(len(clip), device=clip.device)
    in_sample = logits.log_softmax(1)[rows, clip]
    # At clips that no sample may be compared at, all are masked: those columns are not looked at.
    across = logits[:, clip].log_softmax(0)[rows, rows]
    return -(in_sample + across).mean()


def mutual_contrast(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE in both directions of pairs (G, N, C), each among the N of its group."""
    similarity = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).transpose(-1, -2) / temperature  # (G, N, N)
    truth = torch.arange(similarity.shape[-1], device=similarity.device).expand(len(similarity), -1).flatten()
    forth = F.cross_entropy(similarity.flatten(0, 1), truth)
    back = F.cross_entropy(similarity.transpose(-1, -2).flatten(0, 1), truth)
    return (forth + back) / 2


def _endpoints(mask: Tensor) -> Tensor:
    """(B, T, 2): where each clip begins and ends, as fractions of the video."""
    index = torch.arange(mask.shape[1], device=mask.device)
    edges = torch.stack([index, index + 1], -1)
    return edges / mask.sum(1)[:, None, None]
