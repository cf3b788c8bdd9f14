"""The retriever: an encoder of video and text, a detector of spans, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import at_least_float32, to_corners
from momentdetr.detr.losses import Criterion, Losses
from momentdetr.detr.types import Output, Targets
from momentdetr.retrieval.align import ContrastiveAlignment
from momentdetr.retrieval.boundaries import BoundaryLogits, boundary_spans, boundary_targets
from momentdetr.retrieval.presence import Presence
from momentdetr.retrieval.saliency import saliency_inside
from momentdetr.retrieval.types import Encoding, MomentOutput, MomentTargets, VideoText


@dataclass(frozen=True)
class MomentPredictions:
    """Answers to a batch, relative to its windows.

    Args:
        scores: (B, Q) in [0, 1].
        spans: (B, Q, 2), start and end as fractions of the window; may stick out of [0, 1] or be reversed.
        saliency: (B, T), only meaningful where `video_mask` is True.
        video_mask: (B, T), True where a clip is real.
        absent: (B,) in [0, 1], how sure it is that the query is not in the window.
        saliency_is_logit: whether its sigmoid is the probability that a clip is inside a moment.
    """

    scores: Tensor
    spans: Tensor
    saliency: Tensor
    video_mask: Tensor
    absent: Tensor
    saliency_is_logit: bool = False


class MomentRetriever(nn.Module):
    """Find the spans of a video that a text describes.

    Args:
        encoder: VideoText -> Encoding, with its own `losses(encoding, targets, mask)`.
        head: Memory -> Output.
        criterion: judges the moments; None for data without moments (TVSum: saliency only).
        weights: of the encoder's own terms, and of "align" where there is an alignment.
        scores: class logits (B, Q, K) to confidences (B, Q).
        indicator: whether saliency was trained to tell what is inside a moment; then it also judges what was found.
        align: optional contrastive alignment of queries and words.
        feedback: (encoding, output, video mask) -> Encoding, where what was found changes what clips say (TR-DETR).
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        head: nn.Module,
        criterion: Criterion | None,
        weights: Mapping[str, float],
        scores: Callable[[Tensor], Tensor],
        indicator: bool = False,
        align: ContrastiveAlignment | None = None,
        feedback: Callable[[Encoding, Output, Tensor], Encoding] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.align = encoder, head, align
        self.criterion, self.weights, self.scores = criterion, dict(weights), scores
        self.indicator, self.feedback = indicator, feedback
        self.presence = Presence()
        """How sure it is that a query is in the video; the builder sets another one for a calibrated model."""

    def forward(self, inputs: VideoText) -> MomentOutput:
        encoding = self.encoder(inputs)
        output = self.detect(encoding)
        if self.feedback is not None:
            encoding = self.feedback(encoding, output, inputs.video_mask)
        return MomentOutput(output, encoding, inputs.video_mask)

    def detect(self, encoding: Encoding) -> Output:
        """Moments of what the encoder gave; from the encoder's own queries, where it offers some."""
        if encoding.queries is None:
            return self.head(encoding.memory)
        return self.head.decoder(encoding.queries, encoding.memory)  # type: ignore[operator]

    def at_epoch(self, epoch: int) -> None:
        """From which epoch the next batch is, for encoders that want to know."""
        tell = getattr(self.encoder, "at_epoch", None)
        if tell is not None:
            tell(epoch)

    def loss(self, inputs: VideoText, targets: MomentTargets, epoch: int = 0) -> Losses:
        """Run the model on a batch and judge it.

        Args:
            epoch: for losses that start late.
        """
        self.at_epoch(epoch)
        return self.judge(self(inputs), targets)

    def judge(self, output: MomentOutput, targets: MomentTargets) -> Losses:
        """All terms of an output: moments of every layer, the encoder's own, alignment."""
        own = self.encoder.losses(output.encoding, targets, output.video_mask)  # type: ignore[operator]
        total = sum((self.weights[name] * value for name, value in own.items()), output.saliency.new_zeros(()))
        if self.criterion is None:
            return Losses(total, own, {})
        spans = self._parametrized(targets.spans, output)
        moments = self.criterion(output.output, spans)
        aligned = self._alignment(output, moments)
        total = total + moments.total + sum(self.weights["align"] * value for value in aligned.values())
        return Losses(total, {**moments.terms, **own, **aligned}, moments.assignments)

    @torch.no_grad()
    def predict(self, inputs: VideoText) -> MomentPredictions:
        """Answer a batch. Call `eval()` first."""
        output = self(inputs)
        last = output.output.last
        boxes = last.boxes
        if self._classifies_boundaries():
            boxes = boundary_spans(boxes, inputs.video_mask.sum(1))
        scores = self.scores(at_least_float32(last.logits))
        if last.quality is not None:
            scores = scores * at_least_float32(last.quality).sigmoid()
        saliency, spans = at_least_float32(output.saliency), to_corners(at_least_float32(boxes))
        if self.indicator:
            scores = scores * saliency_inside(saliency, spans, inputs.video_mask).sigmoid()
        return MomentPredictions(
            scores=scores,
            spans=spans,
            saliency=saliency,
            video_mask=inputs.video_mask,
            absent=self.presence.absent(scores, saliency, inputs.video_mask),
            saliency_is_logit=self.indicator,
        )

    def _classifies_boundaries(self) -> bool:
        decoder = getattr(self.head, "decoder", None)  # only a `Detr` has one
        return decoder is not None and isinstance(decoder.parametrization, BoundaryLogits)

    def _parametrized(self, spans: Targets, output: MomentOutput) -> Targets:
        if self._classifies_boundaries():
            return boundary_targets(spans, output.video_mask.sum(1))
        return replace(spans, boxes=spans.boxes.to(output.output.last.boxes.dtype))

    def _alignment(self, output: MomentOutput, moments: Losses) -> dict[str, Tensor]:
        if self.align is None:
            return {}
        text = output.encoding.text
        assert text is not None
        hidden = output.output.hidden
        names = [*map(str, range(len(hidden) - 1)), ""]  # as the criterion names its supervisions
        return {
            "align" + (f"_{name}" if name else ""): self.align(states, text, moments.assignments[name])
            for name, states in zip(names, hidden, strict=True)
            if name in moments.assignments
        }
