"""Cut a long video into windows that a model can see, and put one saliency curve together again.

Unit: clips. Window `[start, stop)` holds the clips `start ... stop - 1`; clip i lasts from i to i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from momentdetr.errors import BadInput


@dataclass(frozen=True)
class Window:
    """A part of a video of `num_clips` clips.

    Args:
        start: first clip.
        stop: one past the last clip.
        num_clips: clips of the whole video.
    """

    start: int
    stop: int
    num_clips: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def cuts_start(self) -> bool:
        """The video goes on before this window."""
        return self.start > 0

    @property
    def cuts_end(self) -> bool:
        """The video goes on after this window."""
        return self.stop < self.num_clips


def cut(num_clips: int, size: int, stride: int | None = None) -> tuple[Window, ...]:
    """Cover a video with windows of equal length; the last one is moved back so that it ends with the video.

    Args:
        num_clips: clips of the video, at least 1.
        size: clips that the model sees at once.
        stride: clips from one window's start to the next; None: half a window, so that a moment of up to half a
            window is seen whole by at least one.

    Returns:
        Windows by start; a single one when the video fits.

    Raises:
        BadInput: no clips, or a size or stride that would leave clips unseen.
    """
    stride = max(size // 2, 1) if stride is None else stride
    if num_clips < 1:
        raise BadInput("the video has no clips, expected at least one; encode it again")
    if not 1 <= stride <= size:
        raise BadInput(f"window of {size} clips with stride {stride}: expected 1 <= stride <= window")
    if num_clips <= size:
        return (Window(0, num_clips, num_clips),)
    starts = [*range(0, num_clips - size, stride), num_clips - size]
    return tuple(Window(start, start + size, num_clips) for start in starts)


def average_saliency(windows: Sequence[Window], curves: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Average what overlapping windows say of the same clip.

    A window counts less towards its own cut borders, where it lacks context: the weight of a clip is its distance to
    the nearest border that cuts the video. So the curve has no jump where a window begins or ends.

    Args:
        windows: together they cover the video.
        curves: per window, one score a clip.

    Returns:
        (T,), one score a clip of the video.
    """
    num_clips = windows[0].num_clips
    if len(windows) == 1:
        return np.asarray(curves[0], dtype=np.float64)
    total, weights = np.zeros(num_clips), np.zeros(num_clips)
    for window, curve in zip(windows, curves, strict=True):
        weight = _confidence(window)
        total[window.start : window.stop] += weight * curve
        weights[window.start : window.stop] += weight
    return total / weights


def _confidence(window: Window) -> NDArray[np.float64]:
    clips = np.arange(len(window))
    before = clips + 1.0 if window.cuts_start else np.full(len(window), np.inf)
    after = len(window) - clips + 0.0 if window.cuts_end else np.full(len(window), np.inf)
    return np.minimum(np.minimum(before, after), len(window))
