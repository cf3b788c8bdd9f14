"""SG-DETR's answers (Gordeev et al., 2024): what its two heads say, fused, in whole clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, to_corners
from momentdetr.detr.fusion import fuse_boxes
from momentdetr.detr.losses import Losses
from momentdetr.detr.nms import nms
from momentdetr.detr.types import Predictions
from momentdetr.retrieval.encoders.sg_detr_head import SgDetrOutput
from momentdetr.retrieval.model import MomentPredictions, MomentRetriever
from momentdetr.retrieval.types import MomentOutput, MomentTargets, VideoText

Heads = Literal["fused", "queries", "points"]


@dataclass(frozen=True)
class AnswerRule:
    """How answers are made of what the heads say; the defaults are the official configuration's.

    Args:
        heads: whose answers: of queries alone, of points alone, or of both, fused.
        point_scores: score below which a point is no answer: before fusion, and alone.
        point_overlaps: IoU above which the worse of two points is dropped: before fusion, and alone.
        most_points: how many points are left.
        weights: of queries and of points where they are fused.
        fused_overlap: IoU above which an answer joins a fused one.
        fused_score: score below which an answer is not fused at all.
        whole_clips: move starts and ends to the nearest clip; an answer is a clip long at least.

    Raises:
        ValueError: unknown `heads`.
    """

    heads: Heads = "fused"
    point_scores: tuple[float, float] = (0.01, 0.05)
    point_overlaps: tuple[float, float] = (0.75, 0.5)
    most_points: int = 10
    weights: tuple[float, float] = (1.0, 2.5)
    fused_overlap: float = 0.8
    fused_score: float = 0.1
    whole_clips: bool = True

    def __post_init__(self) -> None:
        if self.heads not in get_args(Heads):
            raise ValueError(f"answers of {self.heads!r}, expected one of {', '.join(get_args(Heads))}")

    def __call__(self, output: SgDetrOutput, sample: int) -> tuple[Tensor, Tensor]:
        """One sample's answers, best first: starts and ends as fractions of the window (K, 2), scores (K,).

        They are ordered by the score that they show. The official code orders queries by probability alone before it
        shows the root of probability times quality.
        """
        num_clips = output.num_clips[sample]
        if self.heads == "points":
            spans, scores = self.of_points(output, sample, alone=True)
        elif self.heads == "queries":
            spans, scores = self.of_queries(output, sample)
        else:
            both = self.of_queries(output, sample), self.of_points(output, sample, alone=False)
            spans, scores = fuse_boxes(
                [spans for spans, _ in both],
                [scores for _, scores in both],
                self.weights,
                threshold=self.fused_overlap,
                min_score=self.fused_score,
            )
        order = scores.argsort(descending=True, stable=True)
        spans, scores = spans[order], scores[order]
        return whole_clips(spans, num_clips) if self.whole_clips else spans, scores

    def of_queries(self, output: SgDetrOutput, sample: int) -> tuple[Tensor, Tensor]:
        """Spans as fractions (Q, 2), scores (Q,): the root of probability times quality."""
        said, proposed = output.last, output.proposed[sample]
        assert said.quality is not None
        sure, fits = (at_least_float32(x[sample]).sigmoid() for x in (said.logits[..., 0], said.quality))
        return to_corners(at_least_float32(said.boxes[sample])).clamp(0, 1)[proposed], (sure * fits).sqrt()[proposed]

    def of_points(self, output: SgDetrOutput, sample: int, *, alone: bool) -> tuple[Tensor, Tensor]:
        """Spans as fractions (K, 2), scores (K,): the root of probability times centerness; overlaps dropped."""
        said, here = output.points, output.points_mask[sample]
        assert said.quality is not None
        sure, central = (at_least_float32(x[sample][here]).sigmoid() for x in (said.logits[..., 0], said.quality))
        scores = (sure * central).sqrt()
        start, end = (said.boxes[sample][here] / output.num_clips[sample]).clamp(0, 1).unbind(-1)
        spans = torch.stack([start, torch.maximum(start, end)], -1)
        chosen = scores > self.point_scores[alone]
        spans, scores = spans[chosen], scores[chosen]
        kept = nms(spans, scores, self.point_overlaps[alone])[: self.most_points]
        return spans[kept], scores[kept]


def whole_clips(spans: Tensor, num_clips: Tensor) -> Tensor:
    """Starts and ends (K, 2), fractions of the window, moved to the nearest clip.

    One that would be shorter than a clip is made a clip long around its middle, and moved inside where it sticks out.
    """
    start, end = (spans.clamp(0, 1) * num_clips).round().unbind(-1)
    short = end - start < 1
    inside = torch.minimum(((start + end - 1) / 2).clamp(min=0), num_clips - 1)
    start = torch.where(short, inside, start)
    return torch.stack([start, torch.where(short, start + 1, end)], -1) / num_clips


def on_host(output: SgDetrOutput) -> SgDetrOutput:
    """What answers are made of: the last layer and the points, in the CPU's memory."""
    last, points = (
        Predictions(*(None if x is None else x.cpu() for x in (said.logits, said.boxes, said.quality)))  # type: ignore[arg-type]
        for said in (output.last, output.points)
    )
    return replace(
        output,
        layers=(last,),
        points=points,
        proposed=output.proposed.cpu(),
        points_mask=output.points_mask.cpu(),
        num_clips=output.num_clips.cpu(),
    )


class SgDetr(MomentRetriever):
    """A retriever that needs to know what is true while it detects, for its collaborative queries and denoising groups.

    Args:
        answers: how answers are made.
        options: of `MomentRetriever`.
    """

    def __init__(self, *, answers: AnswerRule, **options: Any) -> None:
        super().__init__(**options)
        self.answers = answers

    def loss(self, inputs: VideoText, targets: MomentTargets, epoch: int = 0) -> Losses:
        self.at_epoch(epoch)
        encoding = self.encoder(inputs)
        output = self.head(encoding.memory, targets.spans)
        return self.judge(MomentOutput(output, encoding, inputs.video_mask), targets)

    @torch.no_grad()
    def predict(self, inputs: VideoText) -> MomentPredictions:
        """Answer a batch, best first; where a sample has fewer answers, empty ones of score 0 come last."""
        output = self(inputs)
        said, saliency = output.output, at_least_float32(output.saliency)
        assert isinstance(said, SgDetrOutput)
        said = on_host(said)  # box by box, a device would only wait
        found = [self.answers(said, sample) for sample in range(len(saliency))]
        scores = saliency.new_zeros(len(found), max([1, *(len(own) for _, own in found)]))
        spans = saliency.new_zeros(*scores.shape, 2)
        for row, (own_spans, own_scores) in enumerate(found):
            spans[row, : len(own_scores)], scores[row, : len(own_scores)] = own_spans, own_scores
        return MomentPredictions(
            scores=scores,
            spans=spans,
            saliency=saliency,
            video_mask=inputs.video_mask,
            absent=self.presence.absent(scores, saliency, inputs.video_mask),
            saliency_is_logit=True,  # it is asked which clips are relevant
        )
