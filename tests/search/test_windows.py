"""Oracle: counting clip by clip, and averages worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momentdetr.errors import BadInput
from momentdetr.search.windows import Window, average_saliency, cut


def test_a_video_that_fits_is_one_window() -> None:
    assert cut(75, 75) == (Window(0, 75, 75),)
    assert cut(1, 75) == (Window(0, 1, 1),)


def test_the_last_window_is_moved_back_to_end_with_the_video() -> None:
    assert [(w.start, w.stop) for w in cut(100, 40)] == [(0, 40), (20, 60), (40, 80), (60, 100)]
    assert [(w.start, w.stop) for w in cut(90, 40)] == [(0, 40), (20, 60), (40, 80), (50, 90)]


@settings(deadline=None)
@given(num_clips=st.integers(1, 500), size=st.integers(2, 90))
def test_every_clip_and_every_moment_of_half_a_window_is_seen_whole(num_clips: int, size: int) -> None:
    windows = cut(num_clips, size)
    assert all(len(window) == min(size, num_clips) for window in windows)
    assert len(set(windows)) == len(windows)
    half = max(size // 2, 1)
    for start in range(num_clips):
        stop = min(start + half, num_clips)
        assert any(window.start <= start and stop <= window.stop for window in windows)


@settings(deadline=None)
@given(num_clips=st.integers(1, 500), size=st.integers(1, 90))
def test_only_the_ends_of_the_video_are_no_cuts(num_clips: int, size: int) -> None:
    for window in cut(num_clips, size):
        assert window.cuts_start == (window.start != 0)
        assert window.cuts_end == (window.stop != num_clips)


@pytest.mark.parametrize(("num_clips", "size", "stride"), [(0, 75, None), (10, 0, None), (10, 4, 5), (10, 4, 0)])
def test_windows_that_would_leave_clips_unseen_are_refused(num_clips: int, size: int, stride: int | None) -> None:
    with pytest.raises(BadInput, match="expected"):
        cut(num_clips, size, stride)


def test_one_window_keeps_its_curve_bit_for_bit() -> None:
    curve = np.random.default_rng(0).normal(size=7)
    assert np.array_equal(average_saliency(cut(7, 75), [curve]), curve)


def test_overlapping_windows_are_weighted_by_distance_to_the_cut() -> None:
    windows = cut(6, 4)  # clips 0-3 and 2-5
    first, second = np.array([1.0, 1.0, 1.0, 1.0]), np.array([4.0, 4.0, 4.0, 4.0])
    # Clip 2 is 2 clips from the end of the first window, 1 from the start of the second; clip 3 the other way round.
    expected = [1.0, 1.0, (2 * 1 + 1 * 4) / 3, (1 * 1 + 2 * 4) / 3, 4.0, 4.0]
    assert average_saliency(windows, [first, second]) == pytest.approx(expected)


@settings(deadline=None)
@given(num_clips=st.integers(1, 300), size=st.integers(2, 80), seed=st.integers(0, 99))
def test_windows_that_agree_change_nothing(num_clips: int, size: int, seed: int) -> None:
    curve = np.random.default_rng(seed).normal(size=num_clips)
    windows = cut(num_clips, size)
    assert average_saliency(windows, [curve[w.start : w.stop] for w in windows]) == pytest.approx(curve, abs=1e-12)


@settings(deadline=None)
@given(num_clips=st.integers(2, 300), size=st.integers(2, 80), seed=st.integers(0, 99))
def test_the_average_lies_between_what_the_windows_say(num_clips: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    windows = cut(num_clips, size)
    curves = [random.normal(size=len(window)) for window in windows]
    average = average_saliency(windows, curves)
    for clip in range(num_clips):
        said = [curve[clip - w.start] for w, curve in zip(windows, curves, strict=True) if w.start <= clip < w.stop]
        assert min(said) - 1e-12 <= average[clip] <= max(said) + 1e-12
