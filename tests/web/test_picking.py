"""What a page shows of what was found."""

from __future__ import annotations

from momentdetr.retrieval.types import Moment
from momentdetr.search.results import QueryResult, SearchResult
from momentdetr.web.picking import pick


def _shown(*spans: tuple[float, float, float], most: int = 5, absent: float = 0.0) -> list[tuple[float, float]]:
    moments = tuple(Moment("video", *span) for span in spans)
    result = SearchResult("video", 60.0, 1.0, (QueryResult("q", moments, (0.0,) * 60, absent),))
    return [(moment.start_s, moment.end_s) for moment in pick(result, most)[0].moments]


def test_distinct_moments_stay_in_order() -> None:
    spans = [(10.0, 20.0, 0.9), (40.0, 50.0, 0.5), (22.0, 30.0, 0.2)]
    assert _shown(*spans) == [(10.0, 20.0), (40.0, 50.0), (22.0, 30.0)]


def test_copies_of_a_better_moment_go() -> None:
    # Against the first: 8 of 10 seconds in common (0.8), 5 of 10 (0.5, not more than that), 10 of 30 (0.33).
    spans = [(10.0, 20.0, 0.9), (10.0, 18.0, 0.8), (10.0, 15.0, 0.7), (0.0, 30.0, 0.6)]
    assert _shown(*spans) == [(10.0, 20.0), (10.0, 15.0), (0.0, 30.0)]


def test_a_copy_of_a_copy_is_compared_with_what_is_shown() -> None:
    assert _shown((0.0, 10.0, 0.9), (2.0, 12.0, 0.8), (5.0, 15.0, 0.7)) == [(0.0, 10.0), (5.0, 15.0)]


def test_guesses_go_unless_there_is_nothing_better() -> None:
    assert _shown((0.0, 5.0, 0.9), (10.0, 15.0, 0.09)) == [(0.0, 5.0)]
    assert _shown((0.0, 5.0, 0.05), (10.0, 15.0, 0.04)) == [(0.0, 5.0)]
    assert _shown() == []


def test_a_guess_about_something_that_is_not_there_is_not_shown() -> None:
    assert _shown((0.0, 5.0, 0.05), absent=0.9) == []
    assert _shown((0.0, 5.0, 0.6), absent=0.9) == [(0.0, 5.0)]


def test_no_more_than_asked_for() -> None:
    assert len(_shown(*((10.0 * i, 10.0 * i + 5, 0.9 - 0.1 * i) for i in range(6)), most=4)) == 4


def test_moments_without_length_are_copies_of_what_they_touch() -> None:
    assert _shown((3.0, 3.0, 0.9), (3.0, 3.0, 0.8)) == [(3.0, 3.0)]
