"""A result as HTML, read back with a parser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from momentdetr.retrieval.types import Moment
from momentdetr.search.results import QueryResult, SearchResult
from momentdetr.web.timeline import COLOURS, clock, moment_list, timeline


class _Tree(HTMLParser):
    """Collects elements and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.found if name in (attrs.get("class") or "").split()]


def _result(*answers: QueryResult, duration_s: float = 20.0) -> SearchResult:
    return SearchResult("video", duration_s, 0.5, answers)


def _answer(query: str = "a star", *spans: tuple[float, float, float], absent: float = 0.1) -> QueryResult:
    moments = tuple(Moment("video", *span) for span in spans)
    return QueryResult(query, moments, tuple(float(i % 5) for i in range(40)), absent)


def test_moments_stand_where_they_are_in_time() -> None:
    tree = _Tree(timeline(_result(_answer("a star", (5.0, 10.0, 0.8), (0.0, 2.0, 0.1)))))
    bands = tree.of("md-band")
    assert [(band["data-start"], band["data-end"]) for band in bands] == [("5.000", "10.000"), ("0.000", "2.000")]
    assert bands[0]["style"] == "left:25.000%;width:25.000%;--score:0.800"
    assert bands[0]["aria-label"] == "play 0:05.0 to 0:10.0, score 0.80"
    assert tree.of("md-timeline")[0]["data-duration"] == "20.000"


def test_the_player_s_clock_is_passed_on() -> None:
    tree = _Tree(timeline(_result(_answer("a star", (5.0, 10.0, 0.8))), start_s=0.25))
    assert tree.of("md-timeline")[0]["data-offset"] == "0.250"
    assert tree.of("md-band")[0]["data-start"] == "5.000"


def test_the_list_has_the_same_moments_with_times_and_scores() -> None:
    tree = _Tree(moment_list(_result(_answer("a star", (5.0, 10.0, 0.8)), _answer("a heart"))))
    assert [item["data-start"] for item in tree.of("md-item")] == ["5.000"]
    assert "0:05.0\u2009–\u20090:10.0" in tree.text
    assert "5.0 s" in tree.text
    assert "80\u2009%" in tree.text
    assert "no moment" in tree.text


def test_the_curve_fills_its_row_from_its_least_to_its_greatest() -> None:
    paths = [attrs["d"] for tag, attrs in _Tree(timeline(_result(_answer()))).found if tag == "path"]
    points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+),([\d.]+)", paths[1] or "")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert (points[0][0], points[-1][0]) == (0.0, 1000.0)
    assert points[1] == (12.5, 92.0)  # the middle of the first clip of forty, the least score
    assert points[5] == (112.5, 8.0)  # the fifth clip, the greatest


@pytest.mark.parametrize("saliency", [(), (1.0,), (2.0, 2.0, 2.0)])
def test_flat_and_empty_curves_are_drawn_without_a_division_by_zero(saliency: tuple[float, ...]) -> None:
    html = timeline(_result(QueryResult("q", (), saliency, 0.0)))
    _Tree(html)
    assert "nan" not in html.lower()


def test_a_clip_that_reaches_beyond_the_end_stays_inside() -> None:
    html = timeline(SearchResult("video", 4.1, 2.0, (QueryResult("q", (), (0.0, 1.0, 2.0), 0.0),)))
    xs = [float(x) for x in re.findall(r"([\d.]+),[\d.]+", html)]
    assert max(xs) <= 1000.0


def test_absent_queries_are_marked() -> None:
    for make in (timeline, moment_list):
        tree = _Tree(make(_result(_answer(absent=0.9), _answer(absent=0.1))))
        assert len(tree.of("md-badge")) == 1
        assert len(tree.of("md-absent")) == 1
        assert "probably not in this video" in tree.text


def test_queries_have_different_colours() -> None:
    tree = _Tree(timeline(_result(*(_answer(f"query {i}") for i in range(COLOURS)))))
    assert len({row["class"] for row in tree.of("md-row")}) == COLOURS


@pytest.mark.parametrize(
    "query",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "${alert(1)} {{value}} & &lt;",
    ],
)
def test_queries_are_text_and_nothing_else(query: str) -> None:
    plain = [tag for tag, _ in _Tree(timeline(_result(_answer("q", (1.0, 2.0, 0.5))))).found]
    for make in (timeline, moment_list):
        tree = _Tree(make(_result(_answer(query, (1.0, 2.0, 0.5)))))
        assert query in tree.text
        assert not any(name.startswith("on") for _, attrs in tree.found for name in attrs)
    assert [tag for tag, _ in _Tree(timeline(_result(_answer(query, (1.0, 2.0, 0.5))))).found] == plain


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0, "0:00.0"),
        (7.46, "0:07.5"),
        (59.96, "1:00.0"),
        (725.0, "12:05.0"),
        (3723.04, "1:02:03.0"),
        (-0.001, "0:00.0"),
    ],
)
def test_clock(time_s: float, text: str) -> None:
    assert clock(time_s) == text


@pytest.mark.parametrize("duration_s", [0.04, 1.0, 37.5, 600.0, 7200.0, 40_000.0])
def test_the_axis_is_never_crowded(duration_s: float) -> None:
    ticks = re.findall(r'left:([\d.]+)%">', timeline(_result(duration_s=duration_s)))
    assert 1 <= len(ticks) <= 13
    assert all(float(tick) <= 97.0 for tick in ticks)
