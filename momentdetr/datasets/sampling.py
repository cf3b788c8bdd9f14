"""What a training step takes from a record: some of its windows, pairs of clips to rank, and one score a clip.

Every draw comes from a generator made of (seed, epoch, index), so that a run can be resumed, or its samples looked at,
without any stored state. The choices are those of the official QVHighlights loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from momentdetr.datasets.records import MomentRecord, Saliency

MAX_TRAIN_WINDOWS = 5
NUM_PAIRS = 2
NO_CLIP = -1


@dataclass(frozen=True)
class ClipPairs:
    """Clips to rank: `positive[i]` should score above `negative[i]`; both are -1 where there is no such pair.

    Args:
        positive: (2,), indices of clips.
        negative: (2,), indices of clips.
    """

    positive: tuple[int, ...]
    negative: tuple[int, ...]


NO_PAIRS = ClipPairs((NO_CLIP,) * NUM_PAIRS, (NO_CLIP,) * NUM_PAIRS)


def generator_of(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The source of all draws for one sample in one epoch; all arguments at least 0."""
    return np.random.default_rng((seed, epoch, index))


def draw_windows(
    windows: Sequence[tuple[float, float]], rng: np.random.Generator, limit: int = MAX_TRAIN_WINDOWS
) -> list[tuple[float, float]]:
    """All windows, or a random choice of `limit` where there are more."""
    if len(windows) <= limit:
        return list(windows)
    return [windows[i] for i in rng.choice(len(windows), size=limit, replace=False)]


def windows_seen(
    windows: Sequence[tuple[float, float]], num_clips: int, clip_length_s: float, *, truncated: bool
) -> list[tuple[float, float]]:
    """What is left of the windows in the first `num_clips` clips.

    Args:
        windows: (start, end), seconds.
        num_clips: how many clips the model sees.
        clip_length_s: seconds per clip.
        truncated: whether the video goes on after them. If not, a window may end a little after the last whole clip and
            is kept as annotated, as in the official loaders.
    """
    seen_s = num_clips * clip_length_s
    left = [(start, end) for start, end in windows if start < seen_s]
    return [(start, min(end, seen_s)) for start, end in left] if truncated else left


def clip_scores(record: MomentRecord, num_clips: int, clip_length_s: float) -> NDArray[np.float32]:
    """One score a clip: the annotators' sum, or 1 inside the windows where saliency is not annotated.

    Returns:
        (num_clips,), 0 for clips that do not show the query.
    """
    scores = np.zeros(num_clips, dtype=np.float32)
    if record.saliency is None:
        scores[_clips_inside(record.windows_s, num_clips, clip_length_s)] = 1
    else:
        clips, sums = _seen(record.saliency, num_clips)
        scores[clips] = sums
    return scores


def draw_pairs(record: MomentRecord, num_clips: int, clip_length_s: float, rng: np.random.Generator) -> ClipPairs:
    """Two pairs of clips to rank.

    With annotated saliency: the best against the worst of the relevant clips (hard), and a random relevant clip against
    a random other one (easy; the hard pair again where every clip is relevant). Without: two random clips inside the
    windows against two outside.

    Returns:
        Pairs of -1 for a query that is not in the video, or where one side is empty.
    """
    if record.saliency is None:
        inside = _clips_inside(record.windows_s, num_clips, clip_length_s)
        outside = np.setdiff1d(np.arange(num_clips), inside)
        if not len(inside) or not len(outside):
            return NO_PAIRS
        return ClipPairs(_choose(inside, NUM_PAIRS, rng), _choose(outside, NUM_PAIRS, rng))
    clips, sums = _seen(record.saliency, num_clips)
    if not len(clips):
        return NO_PAIRS
    by_score = clips[np.argsort(sums, kind="stable")]
    best, worst = int(by_score[-1]), int(by_score[0])
    others = np.setdiff1d(np.arange(num_clips), clips)
    if not len(others):
        return ClipPairs((best, best), (worst, worst))
    return ClipPairs((best, int(rng.choice(clips))), (worst, int(rng.choice(others))))


def _seen(saliency: Saliency, num_clips: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    clips = np.asarray(saliency.clips, dtype=np.int64)
    sums = np.array([sum(row) for row in saliency.scores], dtype=np.float32)
    return clips[clips < num_clips], sums[clips < num_clips]


def _clips_inside(windows: Sequence[tuple[float, float]], num_clips: int, clip_length_s: float) -> NDArray[np.int64]:
    """Clips from each window's start to before its end, at least one a window that starts within the clips."""
    inside = np.zeros(num_clips, dtype=bool)
    for start, end in windows:
        first = int(start / clip_length_s)
        inside[first : max(int(end / clip_length_s), first + 1)] = True
    return np.flatnonzero(inside)


def _choose(clips: NDArray[np.int64], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    chosen = rng.choice(clips, size=count, replace=len(clips) < count)
    return tuple(int(clip) for clip in chosen)
