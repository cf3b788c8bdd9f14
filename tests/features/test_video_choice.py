"""The choice of frames, against libavfilter's fps filter and against naive search."""

from __future__ import annotations

import bisect
from fractions import Fraction

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from momentdetr.features.video_choice import Clips, Times, chosen, clips
from momentdetr.features.video_timeline import Timeline

LENGTHS = [Fraction(2), Fraction(1), Fraction(1, 2), Fraction(3, 2), Fraction(2, 3), Fraction(1, 30)]


def timeline(pts: list[int], end: int, tick: Fraction, phase: int = 0) -> Timeline:
    return Timeline(
        pts=np.array(pts, np.int64),
        end=end,
        starts=np.zeros(1, np.int64),
        tick=tick,
        zero=0,
        phase=phase,
        groups_closed=True,
        exact=True,
        ordinal=False,
        promised=len(pts),
        complete=True,
        flaw="",
    )


def filter_choice(line: Timeline, length: Fraction) -> list[int]:
    """Push tiny frames with these times through the real filter; the brightness says which came out."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=16, height=16, format="gray16le", time_base=line.tick)
    fps = graph.add("fps", f"{length.denominator}/{length.numerator}")
    sink = graph.add("buffersink")
    source.link_to(fps)
    fps.link_to(sink)
    graph.configure()
    out: list[int] = []

    def pull() -> None:
        while True:
            try:
                out.append(int(sink.pull().to_ndarray()[0, 0]))
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    pts = line.pts.tolist()
    for index, (begin, end) in enumerate(zip(pts, [*pts[1:], line.end], strict=True)):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), index, np.uint16), format="gray16le")
        frame.pts, frame.time_base, frame.duration = begin + line.phase, line.tick, end - begin
        source.push(frame)
        pull()
    source.push(None)
    pull()
    return out


def our_choice(line: Timeline, length: Fraction) -> list[int]:
    return np.searchsorted(line.pts, chosen(clips(float(length), line), line)).tolist()


@pytest.mark.parametrize(
    ("tick", "step"),
    [(Fraction(1, 25), 1), (Fraction(1, 12800), 512), (Fraction(1001, 30000), 1), (Fraction(1, 1000), 33)],
)
@pytest.mark.parametrize("phase_ms", [0, 7, 23, 400, 1000, 2600])
def test_constant_rate_is_chosen_as_by_libavfilter(tick: Fraction, step: int, phase_ms: int) -> None:
    for count in (1, 30, 113):
        pts = [index * step for index in range(count)]
        line = timeline(pts, count * step, tick, round(Fraction(phase_ms, 1000) / tick))
        for length in LENGTHS:
            expected = filter_choice(line, length)
            ours = our_choice(line, length)
            # ffmpeg has no output for a video shorter than half a clip; we have one clip.
            assert ours == (expected or [our_choice(line, length)[0]])
            assert len(ours) == max(1, len(expected))


@pytest.mark.parametrize("seed", range(12))
def test_variable_rate_is_chosen_as_by_libavfilter(seed: int) -> None:
    random = np.random.default_rng(seed)
    tick = Fraction(1, int(random.choice([600, 1000, 12800, 90000])))
    gaps = np.maximum(1, (random.exponential(0.2, 60) / float(tick)).astype(int))
    pts = np.concatenate([[0], np.cumsum(gaps)])
    line = timeline(pts[:-1].tolist(), int(pts[-1]), tick, int(random.integers(0, int(1 / tick))))
    for length in LENGTHS:
        assert our_choice(line, length) == filter_choice(line, length)


def test_frame_in_the_middle_of_a_clip_goes_to_the_next() -> None:
    line = timeline([0, 24, 25, 26], 50, Fraction(1, 25))
    assert our_choice(line, Fraction(2)) == [1]  # 25 / 25 s is the middle of clip 0: rounded up, so it is not its frame
    assert our_choice(line, Fraction(1)) == [0, 3]


def test_a_video_shorter_than_half_a_clip_has_one() -> None:
    line = timeline([0, 1, 2], 3, Fraction(1, 25))
    assert filter_choice(line, Fraction(2)) == []
    assert our_choice(line, Fraction(2)) == [2]


def test_two_thirds_are_exact() -> None:
    assert clips(2 / 3, timeline([0], 1, Fraction(1))).length == Fraction(2, 3)


def test_times_find_the_frame_on_the_screen() -> None:
    random = np.random.default_rng(0)
    tick = Fraction(1, 12800)
    pts: list[int] = np.cumsum(np.concatenate([[0], random.integers(200, 9000, 80)])).tolist()
    line = timeline(pts, pts[-1] + 500, tick)
    times: NDArray[np.float64] = np.sort(random.uniform(0, float(pts[-1] * tick) + 1, 300))
    expected = [pts[bisect.bisect_right(pts, time / float(tick)) - 1] for time in times]
    assert chosen(Times(times.tolist(), tick), line).tolist() == expected


def test_a_frames_own_time_finds_it_again_in_spite_of_rounding() -> None:
    for tick in (Fraction(1, 30), Fraction(1001, 30000), Fraction(1, 12800), Fraction(1, 90000), Fraction(1, 1000)):
        pts = list(range(0, 3000, 7))
        line = timeline(pts, 3000, tick)
        assert chosen(Times([line.seconds(each) for each in pts], tick), line).tolist() == pts


def test_own_interval_begins_at_the_clip() -> None:
    choice = Clips(Fraction(3, 2), Fraction(1, 1000), 0)
    assert [choice.opens(k) for k in range(3)] == [0, 1500, 3000]
