"""SG-DETR (Gordeev et al., 2024): clips that resemble the sentence read its words, and count for more in the memory.

There is no recording of the official model to compare with; each part is proved against its description on its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.encoder import Encoder
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.cg_losses import has_foreign_neighbour, membership_loss
from momentdetr.retrieval.encoders.sg_detr_losses import alignment_loss, graded_loss
from momentdetr.retrieval.encoders.sg_detr_saliency import GuidedFusion, LocalSaliency, Summary
from momentdetr.retrieval.projection import Projection
from momentdetr.retrieval.saliency import relevant_clips
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText


class SgDetrEncoder(nn.Module):
    """Local saliency guides the reading of words; global saliency corrects it; both amplify what is remembered.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        local: saliency of a clip on its own.
        fusion: in which clips read words.
        encoder: self-attention over clips.
        sentence: sums up words; losses only.
        moment: sums up relevant clips, or the others; losses only.
        width: C.
        saliency_margin: of the hinge losses.
        cut_videos: whether names of samples tell which video they were cut from, as in QVHighlights; two samples of the
            same video are not foreign to each other.
        official_batch_faults: reproduce faults of the official losses: a clip's kind is added before it is compared
            with a foreign sentence, though not with its own; the loss of membership averages over padded clips; and one
            lone sample whose neighbour is of the same video is not ranked.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        local: LocalSaliency,
        fusion: GuidedFusion,
        encoder: Encoder,
        sentence: Summary,
        moment: Summary,
        width: int,
        saliency_margin: float = 0.15,
        cut_videos: bool = True,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.local, self.fusion, self.encoder = local, fusion, encoder
        self.sentence, self.moment = sentence, moment
        self.token_types = nn.Embedding(2, width)  # words, clips
        nn.init.normal_(self.token_types.weight, std=0.02)
        self.global_saliency = nn.Linear(width, 1)
        nn.init.zeros_(self.global_saliency.weight)
        nn.init.zeros_(self.global_saliency.bias)
        self.width, self.saliency_margin = width, saliency_margin
        self.cut_videos, self.official_batch_faults = cut_videos, official_batch_faults

    def forward(self, inputs: VideoText) -> Encoding:
        video = self.video_projection(inputs.video, inputs.video_mask)
        words = self.text_projection(inputs.text)
        sentence = self.local.pooling(words, inputs.text_mask)
        words_type, clips_type = self.token_types.weight
        parts = {
            "video": video,
            "clips": video + clips_type,
            "words": words + words_type,
            "text_mask": inputs.text_mask,
            "sentence": sentence,
            "positions": grid_positions(inputs.video_mask, self.width).to(video.dtype),
            "local": self.local(video, sentence),
        }
        encoded, saliency = self.fuse(parts, inputs.video_mask)
        return Encoding(
            memory=Memory(
                encoded * (1 + saliency.sigmoid())[..., None],
                inputs.video_mask,
                parts["positions"],
                level_shapes=((video.shape[1],),),
            ),
            saliency=saliency,
            extras=parts,
            text=parts["words"],
            text_mask=inputs.text_mask,
        )

    def fuse(self, parts: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Clips that have read the words and each other (B, T, C), and global saliency (B, T), logits.

        Args:
            parts: "clips", "words", "text_mask", "positions", and "local" saliency.
            mask: (B, T), True where a clip is real.
        """
        local = parts["local"]
        names = ("clips", "words", "positions", "text_mask")
        clips = self.fusion(*(parts[name] for name in names), local.sigmoid())
        encoded = self.encoder(Memory(clips, mask, parts["positions"])).tokens
        amplified = encoded * (1 + local.sigmoid())[..., None]
        return encoded, local + self.global_saliency(amplified).squeeze(-1)

    def foreign(self, encoding: Encoding, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Local and global saliency (F, T) of these samples (B,), each with its neighbour's query."""
        parts = dict(encoding.extras)
        for name in ("words", "text_mask", "sentence"):
            parts[name] = parts[name].roll(-1, 0)
        parts = {name: value[rows] for name, value in parts.items()}
        parts["local"] = self.local(parts["clips" if self.official_batch_faults else "video"], parts["sentence"])
        return parts["local"], self.fuse(parts, mask[rows])[1]

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """Both saliencies; moments against sentences; clips against their moment.

        Args:
            mask: (B, T), True where a clip is real.
        """
        relevant = relevant_clips(targets, mask)
        sentence, moment, frames = self.summaries(encoding, relevant, mask)
        return {
            "saliency": self._saliency(encoding, targets, relevant, mask),
            "ms_align": alignment_loss(moment, sentence),
            "momcls": membership_loss(
                moment * self.width**-0.5, frames, relevant, mask, padded=self.official_batch_faults
            ),
        }

    def summaries(self, encoding: Encoding, relevant: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summaries of words and of relevant clips (B, C), and each clip as seen among its kind (B, T, C)."""
        parts = encoding.extras
        sentence, _ = self.sentence(parts["words"], torch.zeros_like(parts["words"]), parts["text_mask"])
        moment, inside = self.moment(parts["clips"], parts["positions"], relevant)
        _, outside = self.moment(parts["clips"], parts["positions"], ~relevant & mask)
        return sentence, moment, torch.where(relevant[..., None], inside, outside) * mask[..., None]

    def _saliency(self, encoding: Encoding, targets: MomentTargets, relevant: Tensor, mask: Tensor) -> Tensor:
        rows = has_foreign_neighbour(targets.videos, len(mask), cut=self.cut_videos).to(mask.device)
        negatives = self.foreign(encoding, mask, rows) if rows.any() else (None, None)
        options: dict[str, Any] = {"margin": self.saliency_margin, "lone": not self.official_batch_faults}
        of_both = [
            graded_loss(scores, negative, rows, relevant, targets.saliency, mask, **options)
            for scores, negative in zip((encoding.extras["local"], encoding.saliency), negatives, strict=True)
        ]
        return of_both[0] + of_both[1]
