"""The vocabulary of moment retrieval: D = 1, conditioned on text. Shape letters as in `momentdetr.detr.types`."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from momentdetr.detr.types import Memory, Output, Queries, Targets


@dataclass(frozen=True)
class VideoText:
    """A batch as a model sees it, made by `momentdetr.retrieval.inputs.collate`.

    Args:
        video: (B, T, Cv), normalised streams, concatenated, temporal endpoints last.
        video_mask: (B, T), True where a clip is real.
        text: (B, W, Ct), normalised token states.
        text_mask: (B, W), True where a token is real.
    """

    video: Tensor
    video_mask: Tensor
    text: Tensor
    text_mask: Tensor


@dataclass(frozen=True)
class SaliencyTargets:
    """Which clips are worth watching for the query.

    Args:
        scores: (B, T), the annotators' summed score of each clip (0 outside the windows); None where not annotated.
        positive: (B, P), indices of clips that should score higher than their partner in `negative`.
        negative: (B, P), indices of clips.
        relevant: (B, T), True where a clip shows what the query says, also where annotators gave it no point; None
            where only scores tell.
    """

    scores: Tensor | None
    positive: Tensor
    negative: Tensor
    relevant: Tensor | None = None


@dataclass(frozen=True)
class MomentTargets:
    """What is true of a batch.

    Args:
        spans: labels (B, M) (0 = foreground), boxes (B, M, 2) centre and width as fractions of the window, mask (B, M);
            a query that is not in the video has an all-False row.
        saliency: None for data sets without saliency.
        videos: name of each sample's video, so that negatives are not drawn from the same one; None where unknown.
    """

    spans: Targets
    saliency: SaliencyTargets | None = None
    videos: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Encoding:
    """What a video-text encoder hands on.

    Args:
        memory: clip tokens that know the text.
        saliency: (B, T), one score a clip.
        losses: the encoder's own loss terms are computed from this; a mapping of named tensors.
        queries: what the encoder offers the decoder (slots, event spans), or None.
        text: (B, W, C), projected token states, where a later part wants them; None otherwise.
        text_mask: (B, W), True where a token is real.
    """

    memory: Memory
    saliency: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    queries: Queries | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None


@dataclass(frozen=True)
class MomentOutput:
    """What a retriever says of a batch: moments (`output`) and one saliency score per clip (`encoding.saliency`)."""

    output: Output
    encoding: Encoding
    video_mask: Tensor

    @property
    def saliency(self) -> Tensor:
        return self.encoding.saliency


@dataclass(frozen=True)
class Moment:
    """One answer.

    Args:
        video: name of the video.
        start_s: seconds from the start of the video.
        end_s: seconds, not before `start_s`, not beyond the video.
        score: confidence in [0, 1].
    """

    video: str
    start_s: float
    end_s: float
    score: float
