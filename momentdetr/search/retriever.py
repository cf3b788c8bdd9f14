"""Ask a video many questions: encode it once, search it as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.features.encoder import FeatureEncoder, check_queries
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.inputs import collate
from momentdetr.retrieval.types import Moment, VideoText
from momentdetr.search.encoding import EncodedVideo, Progress, encode_video
from momentdetr.search.results import QueryResult, SearchResult
from momentdetr.search.stitch import View, stitch
from momentdetr.search.windows import Window, average_saliency, cut

if TYPE_CHECKING:
    from momentdetr.features.store import FeatureStore
    from momentdetr.retrieval.model import MomentPredictions

BATCH_SIZE = 32
"""Pairs of window and query that the model sees at once: bounds the memory whatever the length of the video."""

SHORTEST_S = 0.001
"""A moment shorter than this after clamping has no content: it is left out."""


class Predictor(Protocol):
    """What a search needs of a model; `momentdetr.retrieval.model.MomentRetriever` is one."""

    def predict(self, batch: VideoText) -> MomentPredictions: ...


@dataclass(frozen=True)
class WindowAnswer:
    """What the model says of one window and one query: scores (Q,), spans (Q, 2), saliency (T,), absent."""

    scores: NDArray[np.float64]
    spans: NDArray[np.float64]
    saliency: NDArray[np.float64]
    absent: float


class Retriever:
    """A model together with the encoder that makes its features.

    Args:
        model: answers batches of windows and queries; in evaluation mode, on `device`.
        encoder: turns frames and queries into features.
        name: what results say who answered.
        spec: the features that the model was trained on; None: the encoder's.
        store: keeps features of videos that were seen before; None: nothing is kept.
        device: where the model is.
        about: what its maker says of it, for people: "knows", "licence", ...

    Raises:
        BadCheckpoint: the encoder does not make the features that the model was trained on.
    """

    def __init__(
        self,
        model: Predictor,
        encoder: FeatureEncoder,
        name: str = "",
        *,
        spec: FeatureSpec | None = None,
        store: FeatureStore | None = None,
        device: str | torch.device = "cpu",
        about: dict[str, str] | None = None,
    ) -> None:
        self.spec = encoder.spec if spec is None else spec
        self._require_fit(encoder.spec)
        self.model = model
        self.encoder = encoder
        self.name = name
        self.store = store
        self.device = torch.device(device)
        self.about = dict(about or {})

    def encode(
        self,
        path: str | Path,
        *,
        progress: Progress | None = None,
        decoder: str = "auto",
        salvage: bool = False,
    ) -> EncodedVideo:
        """Turn a video file into features, or take them from the store; see `encoding.encode_video`."""
        return encode_video(
            Path(path), self.encoder, store=self.store, progress=progress, decoder=decoder, salvage=salvage
        )

    def search(
        self,
        video: EncodedVideo,
        queries: str | Sequence[str],
        top_k: int = 5,
        *,
        progress: Progress | None = None,
    ) -> SearchResult:
        """Find the moments that each query describes.

        Args:
            video: of any length; what the model cannot see at once is cut into overlapping windows.
            queries: one or several sentences.
            top_k: moments per query, at most.
            progress: called with pairs of window and query, done and in all.

        Returns:
            One answer a query, in their order.

        Raises:
            BadInput: no usable query, `top_k` below 1, or features that are not finite.
            BadCheckpoint: features of another encoder, or a model that answers with NaN.
        """
        queries = check_queries([queries] if isinstance(queries, str) else queries)
        if not queries:
            raise BadInput("no query, expected at least one sentence that says what to find")
        if top_k < 1:
            raise BadInput(f"top_k is {top_k}, expected at least 1 moment per query")
        self._require_fit(video.spec)
        if not bool(torch.isfinite(video.features).all()):
            raise BadInput(
                f"{video.name}: its features hold NaN or infinity. Encode the video again without the cache."
            )
        windows = cut(len(video.features), self.spec.max_clips)
        answers = self.answers(video, windows, queries, progress)
        found = tuple(_gather(query, video, windows, answers[i], top_k) for i, query in enumerate(queries))
        return SearchResult(
            video.name, video.duration_s, video.clip_length_s, found, video.path, self.name, video.complete
        )

    def _require_fit(self, features: FeatureSpec) -> None:
        """Compare what features were made of; how they are scaled and windowed for the model is the model's own."""
        spec = self.spec
        self.spec.require_same(
            replace(
                features,
                normalize=spec.normalize,
                tef=spec.tef,
                max_clips=spec.max_clips,
                max_words=spec.max_words,
            )
        )

    @torch.inference_mode()
    def answers(
        self,
        video: EncodedVideo,
        windows: Sequence[Window],
        queries: Sequence[str],
        progress: Progress | None = None,
    ) -> list[list[WindowAnswer]]:
        """What the model says before windows are put together: per query, one answer a window.

        Windows of all queries share batches of bounded size.
        """
        text = self.encoder.encode_text(queries)
        pairs = list(product(windows, range(len(queries))))
        answers: list[list[WindowAnswer]] = [[] for _ in queries]
        for done in range(0, len(pairs), BATCH_SIZE):
            chunk = pairs[done : done + BATCH_SIZE]
            batch = collate(
                [video.features[window.start : window.stop] for window, _ in chunk],
                [text[query] for _, query in chunk],
                self.spec,
            )
            predictions = self.model.predict(_to_device(batch, self.device))
            for (_, query), answer in zip(
                chunk, _split(predictions, [len(window) for window, _ in chunk]), strict=True
            ):
                answers[query].append(answer)
            if progress is not None:
                progress(done + len(chunk), len(pairs))
        return answers


def _to_device(batch: VideoText, device: torch.device) -> VideoText:
    return replace(batch, **{field.name: getattr(batch, field.name).to(device) for field in fields(batch)})


def _split(predictions: MomentPredictions, num_clips: Sequence[int]) -> list[WindowAnswer]:
    """One answer a sample, without padding.

    Raises:
        BadCheckpoint: a number is not finite. A NaN would sort before every honest score.
    """
    scores, spans, saliency, absent = (
        _numpy(tensor) for tensor in (predictions.scores, predictions.spans, predictions.saliency, predictions.absent)
    )
    answers = [
        WindowAnswer(scores[i], spans[i], saliency[i, :length], float(absent[i])) for i, length in enumerate(num_clips)
    ]
    for answer in answers:
        for name, value in vars(answer).items():
            if not np.isfinite(value).all():
                raise BadCheckpoint(
                    f"the model's {name} hold NaN or infinity, expected finite numbers. Its weights are damaged or do "
                    "not fit: verify or convert them again, or use another model."
                )
    if predictions.saliency_is_logit:
        answers = [replace(answer, saliency=expit(answer.saliency)) for answer in answers]
    return answers


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _gather(
    query: str, video: EncodedVideo, windows: Sequence[Window], answers: Sequence[WindowAnswer], top_k: int
) -> QueryResult:
    """One query's answer from all windows. It is absent from the video as far as from its likeliest window."""
    views = [view for window, answer in zip(windows, answers, strict=True) for view in views_of(window, answer)]
    moments = []
    for span in stitch(views):
        start_s = max(span.start * video.clip_length_s, 0.0)
        end_s = min(span.end * video.clip_length_s, video.duration_s)
        if end_s - start_s >= SHORTEST_S:
            moments.append(Moment(video.name, start_s, end_s, span.score))
    saliency = average_saliency(windows, [answer.saliency for answer in answers])
    return QueryResult(query, tuple(moments[:top_k]), tuple(saliency.tolist()), min(a.absent for a in answers))


def views_of(window: Window, answer: WindowAnswer) -> list[View]:
    """A window's spans in clips of the video. Reversed ones are put in order, those without length left out.

    A span may reach out of its window: beyond the video's own end it is clamped later, in seconds; beyond a cut border
    nobody looked, so it ends there and its neighbour says how it goes on.
    """
    views = []
    for score, (one, other) in zip(answer.scores.tolist(), answer.spans.tolist(), strict=True):
        start = window.start + min(one, other) * len(window)
        end = window.start + max(one, other) * len(window)
        start = max(start, float(window.start)) if window.cuts_start else start
        end = min(end, float(window.stop)) if window.cuts_end else end
        if start < end:
            views.append(View(start, end, score, window))
    return views


__all__ = ["EncodedVideo", "Retriever"]
