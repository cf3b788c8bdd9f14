"""Average precision of ranked predictions against a set of true regions, in any number of dimensions.

Whatever the regions are (spans, boxes, tubes), only their overlaps enter. All queries are judged at once: the loop runs
over the rank of a prediction, of which there are few, never over the queries.

Shape letters: N queries (or image-class pairs), P ranked predictions, M true regions, K overlap thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def match_by_rank(overlaps: Floats, predicted: Bools, true: Bools, thresholds: Floats) -> Bools:
    """Give each prediction, best first, the free true region that it overlaps most.

    A region is taken by one prediction only; among equal overlaps the last region is taken. An overlap that is not a
    number counts as the greatest, which is what comparing `overlap < threshold` amounts to in the official scripts.

    Args:
        overlaps: (N, P, M), predictions sorted by score, highest first.
        predicted: (N, P), True where there is a prediction.
        true: (N, M), True where there is a region.
        thresholds: (K,), the overlap that a match needs, inclusive.

    Returns:
        (N, K, P), True where the prediction found a region of its own.
    """
    num_queries, num_ranks, num_regions = overlaps.shape
    matches = np.zeros((num_queries, len(thresholds), num_ranks), dtype=bool)
    if num_regions == 0 or num_queries == 0:
        return matches
    overlaps = np.where(np.isnan(overlaps), np.inf, overlaps)
    free = np.repeat(true[:, None], len(thresholds), axis=1)  # (N, K, M)
    for rank in range(num_ranks):
        candidates = np.where(free, overlaps[:, None, rank], -np.inf)
        best = num_regions - 1 - candidates[..., ::-1].argmax(-1)[..., None]  # (N, K, 1)
        found = (np.take_along_axis(candidates, best, -1)[..., 0] >= thresholds) & predicted[:, None, rank]
        matches[..., rank] = found
        still_free = np.take_along_axis(free, best, -1) & ~found[..., None]
        np.put_along_axis(free, best, still_free, -1)
    return matches


def interpolated_average_precision(matches: Bools, predicted: Bools, num_true: NDArray[np.int64]) -> Floats:
    """Area under the interpolated precision-recall curve.

    Precision at a recall is the best precision at that recall or a higher one; the area is summed where recall rises.

    Args:
        matches: (N, K, P), from `match_by_rank`.
        predicted: (N, P).
        num_true: (N,), number of true regions, at least 1.

    Returns:
        (N, K), in [0, 1]; 0 for a query without predictions.
    """
    hits = np.cumsum(matches, axis=-1)
    ranks = np.maximum(np.cumsum(predicted, axis=-1), 1)[:, None]
    precision = hits / ranks
    best_from_here = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    recall = hits / num_true[:, None, None]
    rises = np.diff(recall, axis=-1, prepend=0.0)
    return (rises * best_from_here).sum(-1)
