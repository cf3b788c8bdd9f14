"""How well a score ranks what is true above what is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from momentdetr.errors import BadInput

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def auroc(scores: ArrayLike, labels: ArrayLike | Sequence[bool]) -> float:
    """Probability that a true item scores above a false one; ties count half.

    Args:
        scores: (N,), finite.
        labels: (N,), True (or 1) for the items that should score high.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        BadInput: lengths differ, a score is not finite, or all labels are the same.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if values.shape != truth.shape or values.ndim != 1:
        raise BadInput(f"AUROC needs one label a score, got {values.shape} scores and {truth.shape} labels")
    if not np.isfinite(values).all():
        raise BadInput(f"AUROC needs finite scores, got {int((~np.isfinite(values)).sum())} that are not")
    num_true = int(truth.sum())
    num_false = len(truth) - num_true
    if num_true == 0 or num_false == 0:
        raise BadInput(f"AUROC needs true and false items, got {num_true} true and {num_false} false ones")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of each distinct score, from 1
    rank_sum = mean_rank[inverse][truth].sum()
    return float((rank_sum - num_true * (num_true + 1) / 2) / (num_true * num_false))


def ranking_average_precision(scores: Floats, labels: Bools, valid: Bools) -> Floats:
    """Interpolated average precision of each row's ranking, as the QVHighlights script defines it.

    Items of equal score enter together. The precision at a threshold is the best one at this or a lower threshold; the
    result is its plain mean over the thresholds at which recall rises (not weighted by how far it rises).

    Args:
        scores: (N, T), finite where valid.
        labels: (N, T), or (N, K, T) for K judges of the same ranking.
        valid: (N, T), True where there is an item.

    Returns:
        (N,) or (N, K), in [0, 1]; 0 where no item is true, 1 where all are.
    """
    if labels.ndim == 2:
        return ranking_average_precision(scores, labels[:, None], valid)[:, 0]
    if scores.shape[1] == 0:
        return np.zeros(labels.shape[:2])
    keys = np.where(valid, -scores, np.inf)
    order = np.argsort(keys, axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, 1)
    real = np.take_along_axis(valid, order, 1)
    last_of_ties = real & np.append(keys[:, 1:] != keys[:, :-1], np.ones((len(keys), 1), dtype=bool), axis=1)
    hits = np.cumsum(np.take_along_axis(labels & valid[:, None], order[:, None], 2), axis=2, dtype=np.int32)
    precision = np.where(last_of_ties[:, None], hits / np.arange(1, scores.shape[1] + 1), 0.0)
    best_from_here = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    hits_before = np.zeros_like(hits)
    hits_before[..., 1:] = np.maximum.accumulate(np.where(last_of_ties[:, None], hits, 0), axis=2)[..., :-1]
    rises = last_of_ties[:, None] & (hits > hits_before)
    return (best_from_here * rises).sum(2) / np.maximum(rises.sum(2), 1)
