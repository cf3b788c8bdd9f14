"""Highlight detection scored as the official QVHighlights script does: mAP and HIT@1 at three levels of agreement.

Each clip has one score per annotator (0 to 4); a clip is a highlight for an annotator who gave at least the level's
score. Average precision is averaged over annotators and queries; HIT@1 asks whether any annotator called the
top-scored clip a highlight. Papers report VeryGood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from momentdetr.errors import BadInput
from momentdetr.evaluation.ranking import ranking_average_precision

Floats = NDArray[np.float64]

LEVELS: Mapping[str, int] = {"Fair": 2, "Good": 3, "VeryGood": 4}


class ClipScores(Protocol):
    """What annotators said: `clips` are indices of the scored clips, `scores` one row per such clip."""

    @property
    def clips(self) -> Sequence[int]: ...
    @property
    def scores(self) -> Sequence[Sequence[float]]: ...


@dataclass(frozen=True)
class HighlightScores:
    """Scores of one level, as fractions in [0, 1]."""

    mean_ap: float
    hit_at_1: float


def evaluate_highlights(
    predicted: Sequence[Sequence[float] | None], truth: Sequence[ClipScores], num_clips: Sequence[int]
) -> dict[str, HighlightScores]:
    """Score one saliency curve per query.

    A curve that is shorter than the video is filled with zeros, a longer one is cut, as the official script does; a
    missing or empty one (None, []) scores 0.

    Args:
        predicted: N curves, one finite value per clip.
        truth: N annotations.
        num_clips: N numbers of clips.

    Returns:
        Level name ("Fair", "Good", "VeryGood") -> scores.

    Raises:
        BadInput: the queries have different numbers of annotators.
    """
    labels, valid = _true_scores(truth, num_clips)  # (N, T, A), (N, T)
    scores, best = _curves(predicted, valid)
    present = best >= 0
    results = {}
    for name, level in LEVELS.items():
        positive = labels >= level
        precision = ranking_average_precision(scores, positive.transpose(0, 2, 1), valid)
        inside = present & (best < np.asarray(num_clips))
        hits = positive[np.arange(len(best)), np.where(inside, best, 0)].any(-1) & inside
        mean_ap = float((precision * present[:, None]).mean())
        results[name] = HighlightScores(mean_ap=mean_ap, hit_at_1=float(hits.mean()))
    return results


def _true_scores(truth: Sequence[ClipScores], num_clips: Sequence[int]) -> tuple[Floats, NDArray[np.bool_]]:
    annotators = {len(row) for saliency in truth for row in saliency.scores} or {1}
    if len(annotators) > 1:
        raise BadInput(f"saliency needs the same number of annotators everywhere, got {sorted(annotators)}")
    longest = max([1, *num_clips])
    scores = np.zeros((len(truth), longest, annotators.pop()))
    for row, saliency, length in zip(scores, truth, num_clips, strict=True):
        clips = np.asarray(saliency.clips, dtype=np.int64)
        if len(clips):
            inside = clips < length
            row[clips[inside]] = np.asarray(saliency.scores, dtype=np.float64)[inside]
    valid = np.arange(longest) < np.asarray(num_clips)[:, None]
    return scores, valid


def _curves(predicted: Sequence[Sequence[float] | None], valid: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.int64]]:
    """Curves cut and filled to (N, T), and the index of each whole curve's maximum, -1 without a curve."""
    scores, best = np.zeros(valid.shape), np.full(len(predicted), -1)
    for i, curve in enumerate(predicted):
        if curve is not None and len(curve):
            values = np.asarray(curve, dtype=np.float64)
            best[i] = values.argmax()
            scores[i, : len(values)] = values[: valid.shape[1]]
    return scores, best
