"""Moment-DETR (Lei et al., 2021): video and text side by side in one self-attention encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentdetr.detr.encoder import Encoder
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Memory
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import margin_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText


class MomentDetrEncoder(nn.Module):
    """Encode clips and words together; saliency is a linear reading of the encoded clips.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        encoder: self-attention over T + W tokens.
        width: C.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        encoder: Encoder,
        width: int,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions, self.encoder = text_positions, encoder
        self.saliency = nn.Linear(width, 1)
        self.width, self.saliency_margin = width, saliency_margin

    def forward(self, inputs: VideoText) -> Encoding:
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        clips = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        tokens = torch.cat([video, text], 1)  # (B, T + W, C)
        positions = torch.cat([clips, words], 1)
        mask = torch.cat([inputs.video_mask, inputs.text_mask], 1)
        num_clips = video.shape[1]
        memory = self.encoder(Memory(tokens, mask, positions, level_shapes=((num_clips,),)))
        return Encoding(
            memory=memory,
            saliency=self.saliency(memory.tokens[:, :num_clips]).squeeze(-1),  # (B, T)
            text=memory.tokens[:, num_clips:],
            text_mask=inputs.text_mask,
        )

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """The hinge over saliency pairs; nothing for data without saliency.

        Args:
            mask: (B, T), True where a clip is real.
        """
        if targets.saliency is None:
            return {}
        return {"saliency": margin_loss(encoding.saliency, targets.saliency, self.saliency_margin)}
