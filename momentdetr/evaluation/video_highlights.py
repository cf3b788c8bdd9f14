"""Highlight scores of TVSum and YouTube Highlights, as the published code of UMT and its followers computes them.

Average precision here is the area under precision over recall by trapezoids that start at precision 1, and recall
counts the true clips among the ranked ones only. Clips of equal score stand in the order in which torch's unstable sort
leaves them: the published figures depend on it (saturated scores tie often).

One model is trained and scored for each domain; papers average over domains. A video that was not predicted scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from momentdetr.errors import BadInput
from momentdetr.evaluation.moments import Annotated, Predicted, some

TVSUM_TOP = 5


class AnnotatedVideo(Annotated, Protocol):
    """A video with saliency of every clip, and its domain."""

    @property
    def domain(self) -> str: ...


@dataclass(frozen=True)
class DomainScores:
    """Mean average precision of the videos of one domain, in [0, 1], and their number."""

    mean_ap: float
    num_videos: int


@dataclass(frozen=True)
class VideoHighlightScores:
    """All scores of one set of predictions.

    Args:
        domains: name -> scores.
        notes: what a reader of the numbers must know, in words.
    """

    domains: Mapping[str, DomainScores]
    notes: tuple[str, ...] = ()

    @property
    def brief(self) -> dict[str, float]:
        """The mean over domains, by the published code's name and with its five decimals: a fraction, not percent."""
        return {"mAP": round(float(np.mean([scores.mean_ap for scores in self.domains.values()])), 5)}

    def to_dict(self) -> dict[str, Any]:
        """The published code's structure, and each domain by itself."""
        domains = {
            name: {"mAP": round(scores.mean_ap, 5), "videos": scores.num_videos}
            for name, scores in self.domains.items()
        }
        return {"brief": self.brief, "domains": domains}


def evaluate_video_highlights(
    predictions: Sequence[Predicted],
    truth: Sequence[AnnotatedVideo],
    kind: Literal["tvsum", "youtube"],
    *,
    strict_official: bool = False,
) -> VideoHighlightScores:
    """Score one saliency curve a video.

    A curve and annotations of different length are cut to the shorter, as the published code does. Of several
    predictions of one video the last counts.

    Args:
        predictions: one a video.
        truth: one a video; every clip has a row of saliency.
        kind: whose rules.
        strict_official: leave videos without any highlight out instead of scoring them 0 (YouTube Highlights), and fail
            where a video was not predicted.

    Raises:
        BadInput: nothing to score, a video without annotated clips, or a curve that is not finite.
    """
    curves = {prediction.qid: prediction.saliency for prediction in predictions}
    notes = _differences(curves, truth, strict_official)
    by_domain: dict[str, list[float]] = {}
    cut, barren = 0, []
    for record in truth:
        labels = _labels(record)
        curve = curves.get(record.qid)
        scores = by_domain.setdefault(record.domain or "all", [])
        if kind == "youtube" and not labels.any():
            barren.append(record.qid)
            if strict_official:
                continue
        if not curve:
            scores.append(0.0)
            continue
        length = min(len(curve), len(labels))
        cut += len(curve) != len(labels)
        if kind == "tvsum":
            scores.append(tvsum_average_precision(curve[:length], labels[:length]))
        else:
            scores.append(youtube_average_precision(curve[:length], labels[:length, 0]))
    if cut:
        notes.append(f"{cut} curves do not have one value a clip; cut, or judged on their first clips only")
    if barren:
        notes.append(f"{'left out' if strict_official else 'scored 0'}, no clip is a highlight: {some(barren)}")
    counted = {name: scores for name, scores in sorted(by_domain.items()) if scores}
    if not counted:
        raise BadInput("no video is left to score: none has a highlight")
    domains = {name: DomainScores(float(np.mean(scores)), len(scores)) for name, scores in counted.items()}
    return VideoHighlightScores(domains, tuple(notes))


def trapezoid_average_precision(ranked: ArrayLike) -> float:
    """Area under the curve of one ranking.

    Args:
        ranked: (T,), 1 where the clip at that rank is a highlight, best first.

    Returns:
        In [0, 1]; 0 where no clip is a highlight.
    """
    labels = np.asarray(ranked, dtype=np.float64)
    total = labels.sum()
    if total == 0:
        return 0.0
    hits = np.cumsum(labels)
    precision = np.append(1.0, hits / np.arange(1, len(labels) + 1))
    rises = labels / total
    return float((rises * (precision[:-1] + precision[1:]) / 2).sum())


def tvsum_average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """One TVSum video: the five top clips against each annotator's clips above that annotator's median, averaged.

    Args:
        scores: (T,), finite.
        labels: (T, A), each annotator's rating of each clip.
    """
    order = _ranking(scores)
    ratings = np.asarray(labels, dtype=np.float64)
    if ratings.ndim != 2 or len(ratings) != len(order):
        raise BadInput(f"TVSum needs ratings (clips, annotators) for {len(order)} clips, got {ratings.shape}")
    lower_median = np.sort(ratings, axis=0)[(len(ratings) - 1) // 2]
    liked = (ratings > lower_median)[order[:TVSUM_TOP]]
    return float(np.mean([trapezoid_average_precision(liked[:, a]) for a in range(liked.shape[1])]))


def youtube_average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """One YouTube Highlights video: the ranking of all clips. A video without any highlight scores 0.

    Args:
        scores: (T,), finite.
        labels: (T,), 1 where the clip is a highlight.
    """
    order = _ranking(scores)
    truth = np.asarray(labels, dtype=np.float64)
    if truth.shape != order.shape:
        raise BadInput(f"YouTube Highlights needs one label a clip, got {truth.shape} for {len(order)} clips")
    return trapezoid_average_precision(truth[order] > 0)


def _differences(
    curves: Mapping[int | str, Sequence[float] | None], truth: Sequence[AnnotatedVideo], strict: bool
) -> list[str]:
    annotated = {record.qid for record in truth}
    missing = [record.qid for record in truth if not curves.get(record.qid)]
    extra = sorted(set(curves) - annotated, key=str)
    if len(missing) == len(truth):
        raise BadInput(
            f"none of the {len(annotated)} annotated videos has a predicted curve; give pred_saliency_scores (or "
            "UniVTG's pred) of the same split and domain"
        )
    if strict and missing:
        raise BadInput(f"the published code has no answer for videos without a curve: {some(missing)}")
    notes = [f"ignored predictions of videos that are not annotated: {some(extra)}"] if extra else []
    return notes + ([f"scored 0, not predicted: {some(missing)}"] if missing else [])


def _labels(record: AnnotatedVideo) -> NDArray[np.float64]:
    """(T, A), the annotators' ratings."""
    if record.saliency is None or not record.saliency.scores:
        raise BadInput(f"video {record.qid!r} has no annotated clip; give annotations with 'label'")
    return np.asarray(record.saliency.scores, dtype=np.float64)


def _ranking(scores: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise BadInput(f"a video needs one finite score a clip, got shape {values.shape}")
    return torch.argsort(torch.from_numpy(values), descending=True).numpy()
