"""The retriever of dense heads: its answers are the best points, and its saliency knows what points say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, to_corners
from momentdetr.retrieval.model import MomentPredictions, MomentRetriever
from momentdetr.retrieval.points import PointOutput
from momentdetr.retrieval.types import VideoText


class PointRetriever(MomentRetriever):
    """A retriever whose head predicts at points.

    Args:
        max_moments: how many of the best points are answers.
        merge: multiply saliency by the best class score over a clip, as R2-Tuning does.
        options: of `MomentRetriever`.
    """

    def __init__(self, *, max_moments: int = 50, merge: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.max_moments, self.merge = max_moments, merge

    @torch.no_grad()
    def predict(self, inputs: VideoText) -> MomentPredictions:
        """Answer a batch, best first; points that a short video does not have come last, with score 0."""
        output = self(inputs)
        said = output.output
        assert isinstance(said, PointOutput)
        scores = self.scores(at_least_float32(said.last.logits)) * said.mask
        saliency = at_least_float32(output.saliency)
        if self.merge:
            saliency = saliency * clip_scores(scores, said.points.sizes, said.num_clips, saliency.shape[1])
        best, order = scores.sort(dim=1, descending=True, stable=True)
        best, order = best[:, : self.max_moments], order[:, : self.max_moments]
        spans = to_corners(at_least_float32(said.last.boxes)).gather(1, order[..., None].expand(-1, -1, 2))
        return MomentPredictions(
            scores=best,
            spans=spans,
            saliency=saliency,
            video_mask=inputs.video_mask,
            absent=self.presence.absent(best, saliency, inputs.video_mask),
        )


def clip_scores(scores: Tensor, sizes: tuple[int, ...], num_clips: Tensor, length: int) -> Tensor:
    """The best score of any level over each clip.

    A level of n cells is stretched over t clips by t // n, not by its stride, as the official code does.

    Args:
        scores: (B, N), not negative, 0 where a point is not the video's own.
        sizes: number of points of each level.
        num_clips: (B,), of each video.
        length: T.

    Returns:
        (B, T).
    """
    best = scores.new_zeros(len(scores), length)
    clips = torch.arange(length, device=scores.device)
    for level, part in enumerate(scores.split(list(sizes), 1)):
        own = num_clips // 2**level  # cells of this video
        step = num_clips // own.clamp(min=1)
        cell = (clips // step[:, None]).minimum((own[:, None] - 1).clamp(min=0))
        best = best.maximum(part.gather(1, cell.clamp(max=part.shape[1] - 1)) * (own > 0)[:, None])
    return best
