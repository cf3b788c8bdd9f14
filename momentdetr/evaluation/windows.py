"""Predicted windows against true ones: R1, mAP and mIoU of all queries at once, by length of the true windows.

R1 compares the first listed window with the true window that it overlaps most. mAP ranks the windows by score. mIoU and
R1 below IoU 0.5 as CG-DETR's copy of the official script adds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momentdetr.evaluation.average_precision import interpolated_average_precision, match_by_rank

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Window = Sequence[float]

MAP_THRESHOLDS = np.array([float(f"{t:.2f}") for t in np.linspace(0.5, 0.95, 10)])
R1_THRESHOLDS = np.array([float(f"{t:.2f}") for t in np.linspace(0.3, 0.95, 14)])
LENGTH_RANGES_S: Mapping[str, tuple[float, float] | None] = {
    "short": (0, 10),
    "middle": (10, 30),
    "long": (30, 150),
    "full": None,
}
BEYOND: Mapping[str, tuple[float, float] | None] = {"beyond": (150, math.inf)}
"""True windows that are in none of the official script's ranges but "full"; its videos have at most 150 seconds."""


@dataclass(frozen=True)
class WindowScores:
    """Scores over the queries that have a true window of some length, as fractions in [0, 1].

    Args:
        num_queries: how many these are.
        average_precision: (10,), at each of `MAP_THRESHOLDS`.
        recall_at_1: (14,), at each of `R1_THRESHOLDS`.
        mean_iou: of the first listed window.
    """

    num_queries: int
    average_precision: Floats
    recall_at_1: Floats
    mean_iou: float

    @property
    def mean_ap(self) -> float:
        return float(np.mean(self.average_precision))

    def to_dict(self) -> dict[str, Any]:
        """The official script's structure and names, percent with two decimals."""
        precision = {str(t): percent(v) for t, v in zip(MAP_THRESHOLDS, self.average_precision, strict=True)}
        recall = {str(t): percent(v) for t, v in zip(R1_THRESHOLDS, self.recall_at_1, strict=True)}
        return {
            "MR-mAP": {**precision, "average": percent(self.mean_ap)},
            "MR-R1": recall,
            "MR-mIoU": percent(self.mean_iou),
        }


def percent(fraction: float) -> float:
    """Percent with two decimals, rounded as the official script does."""
    return float(f"{100 * fraction:.2f}")


def evaluate_windows(
    first: Sequence[Sequence[Window]],
    ranked: Sequence[Sequence[Window]],
    truth: Sequence[Sequence[Window]],
    ranges: Mapping[str, tuple[float, float] | None] = LENGTH_RANGES_S,
) -> dict[str, WindowScores]:
    """Score N queries.

    Args:
        first: N lists of at most one window (start_s, end_s, score), the answer for R1; an empty one scores 0.
        ranked: N lists of windows for mAP, in any order; an empty one scores 0.
        truth: N lists of at least one true window (start_s, end_s).
        ranges: name -> (above, up to) seconds of the true windows that count; None: all.

    Returns:
        Name of the range -> scores; zeros of 0 queries where no true window has that length.
    """
    top, has_top = _pad(first, 3)
    windows, predicted = _by_score(*_pad(ranked, 3))
    true_windows, is_true = _pad(truth, 2)
    lengths = true_windows[..., 1] - true_windows[..., 0]
    results = {}
    for name, limits in ranges.items():
        kept = is_true if limits is None else is_true & (lengths > limits[0]) & (lengths <= limits[1])
        some = kept.any(1)
        if not some.any():
            results[name] = WindowScores(0, np.zeros(len(MAP_THRESHOLDS)), np.zeros(len(R1_THRESHOLDS)), 0.0)
            continue
        recall, mean_iou = _first_window(top[some], has_top[some], true_windows[some], kept[some])
        precision = _average_precision(windows[some], predicted[some], true_windows[some], kept[some])
        results[name] = WindowScores(int(some.sum()), precision.mean(0), recall, mean_iou)
    return results


def _average_precision(ranked: Floats, predicted: Bools, true_windows: Floats, is_true: Bools) -> Floats:
    overlaps = _iou(ranked[..., :2], true_windows)
    matches = match_by_rank(overlaps, predicted, is_true, MAP_THRESHOLDS)
    return interpolated_average_precision(matches, predicted, is_true.sum(1))


def _first_window(top: Floats, has_top: Bools, true_windows: Floats, is_true: Bools) -> tuple[Floats, float]:
    if top.shape[1] == 0:
        return np.zeros(len(R1_THRESHOLDS)), 0.0
    overlaps = np.where(is_true, _iou(top, true_windows)[:, 0], -np.inf)
    chosen = overlaps.argmax(1)  # an overlap that is not a number is chosen first, as in the official script
    iou = _hull_iou(top[:, 0], true_windows[np.arange(len(top)), chosen]) * has_top[:, 0]
    return (iou[:, None] >= R1_THRESHOLDS).mean(0), float(iou.mean())


def _iou(first: Floats, second: Floats) -> Floats:
    """Overlap of windows (N, P, 2) with windows (N, M, 2), both in seconds: (N, P, M); 0 / 0 is not a number."""
    starts = np.maximum(first[:, :, None, 0], second[:, None, :, 0])
    ends = np.minimum(first[:, :, None, 1], second[:, None, :, 1])
    shared = np.maximum(ends - starts, 0)
    lengths_1, lengths_2 = first[..., 1] - first[..., 0], second[..., 1] - second[..., 0]
    union = lengths_1[:, :, None] + lengths_2[:, None, :] - shared
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / union


def _hull_iou(first: Floats, second: Floats) -> Floats:
    """Overlap of windows (N, 2) divided by the span from the first start to the last end; 0 / 0 is 0."""
    shared = np.maximum(np.minimum(first[:, 1], second[:, 1]) - np.maximum(first[:, 0], second[:, 0]), 0)
    hull = np.maximum(first[:, 1], second[:, 1]) - np.minimum(first[:, 0], second[:, 0])
    return np.divide(shared, hull, out=np.zeros_like(shared), where=hull != 0)


def _by_score(windows: Floats, mask: Bools) -> tuple[Floats, Bools]:
    order = np.argsort(np.where(mask, -windows[..., 2], np.inf), axis=1, kind="stable")
    return np.take_along_axis(windows, order[..., None], 1), np.take_along_axis(mask, order, 1)


def _pad(rows: Sequence[Sequence[Window]], width: int) -> tuple[Floats, Bools]:
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    values = np.zeros((*mask.shape, width))
    values[mask] = np.array([window for row in rows for window in row], dtype=np.float64).reshape(-1, width)
    return values, mask
