"""A model whose answers are known: it reads the truth from a table and shows each window its part.

A clip's only feature is its number; a query's only token is its place in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.model import MomentPredictions
from momentdetr.retrieval.types import VideoText
from momentdetr.search.encoding import EncodedVideo

NUM_SPANS = 6
SPEC = FeatureSpec(
    video=(Stream("clip", 1, "known"),),
    text=Stream("clip_text", 1, "known"),
    clip_length_s=2.0,
    normalize="none",
    tef=False,
    max_clips=40,
)


def video(num_clips: int, duration_s: float | None = None) -> EncodedVideo:
    features = torch.arange(num_clips, dtype=torch.float32)[:, None]
    return EncodedVideo("film", features, 2.0, 2.0 * num_clips if duration_s is None else duration_s, SPEC)


class KnownEncoder:
    """Query -> its place among the queries of the truth."""

    spec = SPEC

    def __init__(self, queries: Sequence[str]) -> None:
        self.queries = list(queries)
        self.asked: list[list[str]] = []

    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        self.asked.append(list(queries))
        return [torch.tensor([[float(self.queries.index(query))]]) for query in queries]

    def encode_frames(self, frames: np.ndarray) -> Tensor:
        raise AssertionError("the tests that use this encoder bring features")


class KnownModel:
    """The parts of the true moments that lie in a window; saliency 1 inside them; absent where there are none.

    Args:
        truth: query -> moments (start, end, score), clips of the whole video.
    """

    def __init__(self, truth: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
        self.truth = list(truth.values())
        self.batch_sizes: list[int] = []

    def predict(self, batch: VideoText) -> MomentPredictions:
        self.batch_sizes.append(len(batch.video))
        size, length = batch.video_mask.shape
        scores, spans = torch.zeros(size, NUM_SPANS), torch.zeros(size, NUM_SPANS, 2)
        saliency, absent = torch.zeros(size, length), torch.ones(size)
        for i in range(size):
            num_clips = int(batch.video_mask[i].sum())
            first = float(batch.video[i, 0, 0])
            seen = []
            for start, end, score in self.truth[int(batch.text[i, 0, 0])]:
                start, end = max(start - first, 0.0), min(end - first, float(num_clips))
                if start < end:
                    seen.append((score, start / num_clips, end / num_clips))
                    centres = torch.arange(length) + 0.5
                    saliency[i, (centres > start) & (centres < end)] = 1.0
            for q, (score, start, end) in enumerate(seen):
                scores[i, q], spans[i, q] = score, torch.tensor([start, end])
            absent[i] = 1 - max((score for score, *_ in seen), default=0.0)
        return MomentPredictions(scores, spans, saliency, batch.video_mask, absent)


class FixedModel:
    """The same answer to every window.

    Args:
        scores: (Q,).
        spans: (Q, 2), fractions of the window.
    """

    def __init__(self, scores: Sequence[float], spans: Sequence[tuple[float, float]], absent: float = 0.5) -> None:
        self.scores, self.spans = torch.tensor(scores), torch.tensor(spans).reshape(-1, 2)
        self.absent = absent
        self.saliency = 0.25

    def predict(self, batch: VideoText) -> MomentPredictions:
        size, length = batch.video_mask.shape
        return MomentPredictions(
            self.scores.expand(size, -1),
            self.spans.expand(size, -1, -1),
            torch.full((size, length), self.saliency),
            batch.video_mask,
            torch.full((size,), self.absent),
        )
