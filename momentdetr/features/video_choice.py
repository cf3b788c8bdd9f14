"""Which frame stands for a clip or a time: exact integer arithmetic on presentation timestamps.

Both choices say, for each position k, a `bound`: the answer is the last frame shown before that tick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from momentdetr.features.video_timeline import Timeline

_ONE_MICROSECOND = Fraction(1, 1_000_000)


class Choice(Protocol):
    """Positions 0, 1, 2, ... on a timeline, ascending in time."""

    def bound(self, k: int) -> int:
        """Return the tick before which the frame for position k is shown; it is the last such frame."""

    def opens(self, k: int) -> int:
        """Return the tick from which on a frame still belongs to position k, when a better one cannot be read."""

    def count(self, end: int) -> int:
        """Return the number of positions in a video whose last frame ends at that tick."""


@dataclass(frozen=True)
class Clips:
    """One frame per clip, as ffmpeg's filter fps=1/length chooses it.

    The filter rounds each frame's time, in clips, to the nearest whole number (halves up) and lets number n be the last
    frame whose rounded time is at most n: the last frame before the clip's middle. ffmpeg counts from the start of the
    file, which an audio stream can put some milliseconds before the first picture (`Timeline.phase`); outputs begin
    with the first picture's number. The end of the last frame, rounded likewise, is where the outputs stop. A video
    shorter than half a clip has no output in ffmpeg; here it has one clip.

    Args:
        length: seconds per clip.
        tick: seconds per tick.
        phase: ticks from the start of the file to the first picture.
    """

    length: Fraction
    tick: Fraction
    phase: int

    @property
    def _first(self) -> int:
        return self._number(0)

    def _number(self, ticks: int) -> int:
        return math.floor((ticks + self.phase) * self.tick / self.length + Fraction(1, 2))

    def bound(self, k: int) -> int:
        return math.ceil((self._first + k + Fraction(1, 2)) * self.length / self.tick) - self.phase

    def opens(self, k: int) -> int:
        return math.ceil(k * self.length / self.tick)

    def count(self, end: int) -> int:
        return max(1, self._number(end) - self._first)


@dataclass(frozen=True)
class Times:
    """The frame that is on the screen at each time.

    Args:
        times_s: ascending, seconds from the first frame. A frame that begins up to a microsecond later counts: a time
            that was once computed from ticks finds its own frame again. After the end, the last frame stays.
        tick: seconds per tick.
    """

    times_s: Sequence[float]
    tick: Fraction

    def bound(self, k: int) -> int:
        return math.floor((Fraction(self.times_s[k]) + _ONE_MICROSECOND) / self.tick) + 1

    def opens(self, k: int) -> int:
        return self.bound(k)  # only the very frame will do

    def count(self, end: int) -> int:
        return len(self.times_s)


def clips(length_s: float, timeline: Timeline) -> Clips:
    """Lay clips of that many seconds on a timeline; 2/3 and 1.5 are meant exactly, as in ffmpeg's fps=3/2."""
    return Clips(Fraction(length_s).limit_denominator(100_000), timeline.tick, timeline.phase)


def chosen(choice: Choice, timeline: Timeline, first: int = 0) -> NDArray[np.int64]:
    """Choose from a table of all frames.

    Returns:
        (K - first,) ticks of the frames for positions first .. K - 1, not descending.
    """
    bounds = np.array([choice.bound(k) for k in range(first, choice.count(timeline.end))], np.int64)
    return timeline.pts[np.maximum(np.searchsorted(timeline.pts, bounds, side="left") - 1, 0)]
