"""Highlight scores of TVSum and YouTube Highlights, as the published code of UMT and its followers computes them.

Average precision here is the area under precision over recall by trapezoids that start at precision 1, and recall
counts the true clips among the ranked ones only. Clips of equal score stand in the order in which torch's unstable sort
leaves them: the published figures depend on it (saturated scores tie often).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from momentdetr.errors import BadInput

TVSUM_TOP = 5


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


def _ranking(scores: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise BadInput(f"a video needs one finite score a clip, got shape {values.shape}")
    return torch.argsort(torch.from_numpy(values), descending=True).numpy()
