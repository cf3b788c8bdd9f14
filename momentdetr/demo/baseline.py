"""What one gets without a retriever: the similarity of query and frame, smoothed and cut at a threshold.

The tiny CLIP was trained to tell whether a frame shows what a sentence speaks of, so this is a strong baseline for
what a single frame can tell; what it cannot see is motion. Smoothing, threshold and gap are chosen by grid search on
training videos, see `search_settings`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from momentdetr.datasets.predictions import MomentPrediction
from momentdetr.datasets.records import MomentRecord
from momentdetr.demo.scene import CLIP_LENGTH_S
from momentdetr.evaluation.moments import evaluate_moments

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How a similarity curve becomes windows.

    Args:
        smoothing: clips of the moving average, odd.
        relative: whether the threshold lies between the curve's own lowest (0) and highest (1) value, or is a cosine.
        threshold: clips at or above it are inside.
        gap: clips; windows with no more than so many between them are joined.
    """

    smoothing: int
    relative: bool
    threshold: float
    gap: int


GRID = tuple(
    Settings(smoothing, relative, threshold, gap)
    for smoothing, (relative, threshold), gap in product(
        (1, 3, 5),
        [(True, round(0.1 * step, 2)) for step in range(2, 10)]
        + [(False, round(0.05 * step, 2)) for step in range(2, 17)],
        (0, 1, 3),
    )
)


def similarity(image: NDArray[np.float32], text: NDArray[np.float32]) -> Curve:
    """Cosine of each frame's embedding (T, C) with the query's (C,) -> (T,)."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    return np.asarray(image @ (text / np.linalg.norm(text)), np.float64)


def windows(curve: Curve, settings: Settings) -> list[tuple[float, float, float]]:
    """Cut a curve into windows.

    Returns:
        (start_s, end_s, score) by falling score, the mean similarity inside.
    """
    smooth = _smooth(curve, settings.smoothing)
    threshold = settings.threshold
    if settings.relative:
        threshold = smooth.min() + threshold * (smooth.max() - smooth.min())
    edges = np.flatnonzero(np.diff(np.concatenate([[False], smooth >= threshold, [False]]).astype(int)))
    spans = [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] <= settings.gap:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    scored = [(start * CLIP_LENGTH_S, end * CLIP_LENGTH_S, float(curve[start:end].mean())) for start, end in joined]
    return sorted(scored, key=lambda window: -window[2])


def _smooth(curve: Curve, width: int) -> Curve:
    padded = np.pad(curve, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def mean_ap(records: Sequence[MomentRecord], curves: Sequence[Curve], settings: Settings) -> float:
    """mAP in percent over the queries that have windows."""
    predictions = [
        MomentPrediction(record.qid, tuple(windows(curve, settings)))
        for record, curve in zip(records, curves, strict=True)
    ]
    return evaluate_moments(predictions, records, clip_length_s=CLIP_LENGTH_S).brief["MR-full-mAP"]


def search_settings(
    records: Sequence[MomentRecord], curves: Sequence[Curve], grid: Sequence[Settings] = GRID
) -> tuple[Settings, float]:
    """The settings with the highest mAP on these queries (of training videos), and that mAP in percent."""
    scored = [(mean_ap(records, curves, settings), settings) for settings in grid]
    best, settings = max(scored, key=lambda pair: pair[0])
    return settings, best


def write_settings(path: Path, settings: Settings, mean_ap_on_training: float) -> None:
    document = {"settings": asdict(settings), "mAP_on_training_videos": mean_ap_on_training}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_settings(path: Path) -> Settings:
    return Settings(**json.loads(path.read_text(encoding="utf-8"))["settings"])
