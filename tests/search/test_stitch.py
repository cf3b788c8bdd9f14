"""Oracle: true moments, of which each window is shown exactly its part; stitching must give them back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momentdetr.search.stitch import Span, View, stitch
from momentdetr.search.windows import Window, cut

FIRST, SECOND = Window(0, 40, 60), Window(20, 60, 60)


def spans(views: list[View]) -> list[tuple[float, float]]:
    return [(span.start, span.end) for span in stitch(views)]


def test_nothing_gives_nothing() -> None:
    assert stitch([]) == []


def test_one_window_is_sorted_and_otherwise_untouched() -> None:
    whole = Window(0, 40, 40)
    views = [View(0, 10, 0.2, whole), View(1, 10, 0.9, whole), View(0, 40, 0.2, whole), View(1, 10, 0.5, whole)]
    expected = [Span(1, 10, 0.9), Span(1, 10, 0.5), Span(0, 10, 0.2), Span(0, 40, 0.2)]
    assert stitch(views) == expected


def test_a_moment_in_the_overlap_is_reported_once_by_its_better_view() -> None:
    assert stitch([View(25, 33, 0.7, FIRST), View(25.5, 33, 0.8, SECOND)]) == [Span(25.5, 33, 0.8)]


def test_a_cut_moment_takes_each_end_from_the_window_that_sees_it() -> None:
    assert stitch([View(30, 40, 0.9, FIRST), View(30.4, 48, 0.6, SECOND)]) == [Span(30, 48, 0.9)]


def test_a_moment_longer_than_a_window_is_put_together() -> None:
    windows = cut(160, 40)
    true = (10.0, 150.0)
    views = [View(max(true[0], w.start), min(true[1], w.stop), 0.5, w) for w in windows]
    assert spans(views) == [true]


def test_a_sliver_at_the_border_belongs_to_the_moment_behind_it() -> None:
    assert spans([View(39.2, 40, 0.9, FIRST), View(39.8, 50, 0.6, SECOND)]) == [(39.2, 50)]


def test_a_fragment_that_no_other_window_confirms_is_dropped() -> None:
    # The second window sees 35..40 too, and says that it is part of something longer.
    assert spans([View(30, 50, 0.9, SECOND), View(36, 40, 0.3, FIRST)]) == [(30, 50)]


def test_a_sliver_is_dropped_whatever_its_score() -> None:
    first, third = Window(0, 40, 80), Window(40, 80, 80)
    assert spans([View(40, 40.3, 0.9, third), View(30, 39.9, 0.5, first)]) == [(30, 39.9)]
    assert spans([View(40, 40.3, 0.9, third), View(10, 20, 0.5, first)]) == [(40, 40.3), (10, 20)]


def test_a_moment_within_a_longer_one_stays_when_no_border_cut_it() -> None:
    assert spans([View(22, 50, 0.9, SECOND), View(26, 31, 0.3, SECOND)]) == [(22, 50), (26, 31)]


def test_two_moments_of_one_window_are_not_united_by_a_doubtful_view_between_them() -> None:
    views = [View(24, 30, 0.9, FIRST), View(28, 34, 0.8, FIRST), View(26, 32, 0.1, SECOND)]
    assert {(24, 30), (28, 34)} <= set(spans(views))


def test_disagreeing_windows_are_both_heard() -> None:
    assert spans([View(22, 30, 0.9, FIRST), View(33, 38, 0.8, SECOND)]) == [(22, 30), (33, 38)]


def test_windows_that_share_no_clip_never_agree() -> None:
    far = Window(40, 80, 80)
    assert spans([View(30, 40, 0.9, Window(0, 40, 80)), View(40, 50, 0.8, far)]) == [(30, 40), (40, 50)]


@st.composite
def true_moments(draw: st.DrawFn, shortest: float) -> tuple[int, int, list[tuple[float, float]]]:
    """A video of some clips, a window, and moments with gaps of at least three clips between them."""
    size = draw(st.integers(10, 80))
    num_clips = draw(st.integers(1, 400))
    moments, end = [], -3.0
    for gap, length in draw(st.lists(st.tuples(st.floats(3, 60), st.floats(shortest, 200)), max_size=8)):
        start, end = end + gap, min(end + gap + length, num_clips)
        if end - start < shortest:
            break
        moments.append((start, end))
    return num_clips, size, moments


@settings(max_examples=200, deadline=None)
@given(video=true_moments(0.5), seed=st.integers(0, 2**16))
def test_exact_windows_give_back_the_truth(video: tuple[int, int, list[tuple[float, float]]], seed: int) -> None:
    num_clips, size, moments = video
    dice = random.Random(seed)
    views = [
        View(max(start, window.start), min(end, window.stop), dice.random(), window)
        for window in cut(num_clips, size)
        for start, end in moments
        if max(start, window.start) < min(end, window.stop)
    ]
    dice.shuffle(views)
    found = stitch(views)
    assert sorted((span.start, span.end) for span in found) == moments
    assert [span.score for span in found] == sorted((span.score for span in found), reverse=True)
    for span in found:
        seen = [view.score for view in views if span.start <= view.start and view.end <= span.end]
        assert span.score == max(seen)


@settings(max_examples=200, deadline=None)
@given(video=true_moments(4), seed=st.integers(0, 2**16))
def test_windows_that_err_by_less_than_half_a_clip_give_each_moment_once(
    video: tuple[int, int, list[tuple[float, float]]], seed: int
) -> None:
    num_clips, size, moments = video
    dice = random.Random(seed)
    views = []
    for window in cut(num_clips, size):
        for start, end in moments:
            noisy = (start + dice.uniform(-0.4, 0.4), end + dice.uniform(-0.4, 0.4))
            first, last = max(noisy[0], window.start), min(noisy[1], window.stop)
            sliver = min(end, window.stop) - max(start, window.start) < 1
            if first < last and not (sliver and dice.random() < 0.5):  # a model may miss what is hardly there
                views.append(View(first, last, dice.random(), window))
    found = sorted((span.start, span.end) for span in stitch(views))
    assert len(found) == len(moments)
    for (start, end), (true_start, true_end) in zip(found, moments, strict=True):
        assert start == pytest.approx(true_start, abs=1.0)
        assert end == pytest.approx(true_end, abs=1.0)


@settings(max_examples=100, deadline=None)
@given(
    num_clips=st.integers(1, 200),
    size=st.integers(2, 60),
    raw=st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 1), st.floats(0, 1)), max_size=12),
)
def test_any_views_give_moments_of_some_length_inside_the_video_and_no_more_of_them(
    num_clips: int, size: int, raw: list[tuple[float, float, float]]
) -> None:
    views = []
    for window in cut(num_clips, size):
        for start, length, score in raw:
            first = window.start + start * 0.99 * len(window)
            views.append(View(first, min(first + length * len(window), window.stop), score, window))
    found = stitch(views)
    assert len(found) <= len(views)
    assert all(0 <= span.start < span.end <= num_clips for span in found)
    assert bool(found) == bool(views)
    if views:
        assert found[0].score == max(view.score for view in views)


def test_views_that_share_less_than_half_are_two_moments() -> None:
    assert spans([View(22, 32, 0.9, FIRST), View(27, 37, 0.8, SECOND)]) == [(22, 32), (27, 37)]
