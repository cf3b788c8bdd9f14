"""A search result as HTML: curves and moments on a time line, and the list of moments.

Everything that a person wrote (queries, file names) is escaped. Colours are classes, so that the style sheet can give
them other shades in the dark.
"""

from __future__ import annotations

from html import escape

from momentdetr.retrieval.types import Moment
from momentdetr.search.results import QueryResult, SearchResult

COLOURS = 8
"""Number of colours in the style sheet; a ninth query has the first one's."""

_WIDTH, _HEIGHT, _MARGIN = 1000.0, 100.0, 8.0


def clock(time_s: float) -> str:
    """Seconds as people write them: "0:07.5", "12:03.0", "1:02:03.0"."""
    tenths = round(max(time_s, 0.0) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{seconds}" if hours else f"{minutes}:{seconds}"


def timeline(result: SearchResult, start_s: float = 0.0) -> str:
    """One row a query, with its saliency curve and its moments, over one axis of time.

    Args:
        result: what was found; its seconds count from the first picture.
        start_s: where the first picture stands on the player's clock, for the script that moves the player.
    """
    rows = "".join(_row(number, answer, result) for number, answer in enumerate(result))
    return (
        f'<div class="md-timeline" data-duration="{result.duration_s:.3f}" data-offset="{start_s:.3f}">'
        f'<div class="md-rows">{rows}</div>{_axis(result.duration_s)}</div>'
    )


def moment_list(result: SearchResult) -> str:
    """For each query its moments, best first, with times and scores."""
    return f'<div class="md-list">{"".join(_card(number, answer) for number, answer in enumerate(result))}</div>'


def _row(number: int, answer: QueryResult, result: SearchResult) -> str:
    duration_s = max(result.duration_s, 1e-9)
    bands = "".join(_band(rank, moment, duration_s) for rank, moment in enumerate(answer.moments, start=1))
    absent = " md-absent" if answer.is_probably_absent else ""
    return (
        f'<div class="md-row md-c{number % COLOURS}{absent}">'
        f'<div class="md-query"><span class="md-dot"></span><span class="md-text" dir="auto">{escape(answer.query)}'
        f"</span>{_badge(answer)}</div>"
        f'<div class="md-track" data-track title="how well each part shows the query; click to go there">'
        f"{_curve(answer, result.clip_length_s / duration_s)}{bands}</div></div>"
    )


def _band(rank: int, moment: Moment, duration_s: float) -> str:
    left = 100 * moment.start_s / duration_s
    width = 100 * (moment.end_s - moment.start_s) / duration_s
    says = f"{clock(moment.start_s)} to {clock(moment.end_s)}, score {moment.score:.2f}"
    return (
        f'<button type="button" class="md-band" {_times(moment)} aria-label="play {says}" title="{says}" '
        f'style="left:{left:.3f}%;width:{width:.3f}%;--score:{_unit(moment.score):.3f}"><span>{rank}</span></button>'
    )


def _card(number: int, answer: QueryResult) -> str:
    items = "".join(_item(rank, moment) for rank, moment in enumerate(answer.moments, start=1))
    if not items:
        items = '<p class="md-none">no moment</p>'
    absent = " md-absent" if answer.is_probably_absent else ""
    return (
        f'<section class="md-card md-c{number % COLOURS}{absent}">'
        f'<h3><span class="md-dot"></span><span class="md-text" dir="auto">{escape(answer.query)}</span></h3>'
        f"{_badge(answer)}{items}</section>"
    )


def _item(rank: int, moment: Moment) -> str:
    length = f"{moment.end_s - moment.start_s:.1f} s"
    return (
        f'<button type="button" class="md-item" {_times(moment)} style="--score:{_unit(moment.score):.3f}">'
        f'<span class="md-rank">{rank}</span>'
        f'<span class="md-time">{clock(moment.start_s)}&thinsp;–&thinsp;{clock(moment.end_s)}</span>'
        f'<span class="md-length">{length}</span>'
        f'<span class="md-score" title="score {moment.score:.4f}"><i></i></span>'
        f'<span class="md-number">{100 * _unit(moment.score):.0f}&thinsp;%</span></button>'
    )


def _badge(answer: QueryResult) -> str:
    if not answer.is_probably_absent:
        return ""
    return (
        f'<span class="md-badge" title="how sure the model is: {100 * answer.absent:.0f} %">'
        "probably not in this video</span>"
    )


def _times(moment: Moment) -> str:
    return f'data-start="{moment.start_s:.3f}" data-end="{moment.end_s:.3f}"'


def _unit(score: float) -> float:
    return min(max(score, 0.0), 1.0)


def _curve(answer: QueryResult, clip_fraction: float) -> str:
    """The curve as an area: from 0 to 1 if it is a probability, else filling its row, as its scale is the model's own.

    Args:
        answer: with one score a clip.
        clip_fraction: length of a clip as a part of the video; the last clip may reach beyond the end.
    """
    saliency = answer.saliency
    if not saliency:
        return ""
    low, high = (0.0, 1.0) if answer.saliency_is_probability else (min(saliency), max(saliency))
    spread = (high - low) or 1.0
    points = []
    for i, score in enumerate(saliency):
        x = min((i + 0.5) * clip_fraction, 1.0) * _WIDTH
        y = _HEIGHT - _MARGIN - (score - low) / spread * (_HEIGHT - 2 * _MARGIN)
        points.append((x, y))
    points = [(0.0, points[0][1]), *points, (_WIDTH, points[-1][1])]
    line = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<svg class="md-curve" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="md-area" d="M0,{_HEIGHT:.0f}L{line}L{_WIDTH:.0f},{_HEIGHT:.0f}Z"/>'
        f'<path class="md-line" d="M{line}"/></svg>'
    )


def _axis(duration_s: float) -> str:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((step for step in steps if duration_s / step <= 8), steps[-1])
    ticks = []
    for i in range(int(duration_s // step) + 1):
        at = i * step
        # The last tick is left out where its label would stand beyond the edge.
        if at / max(duration_s, 1e-9) <= 0.97:
            ticks.append(f'<span style="left:{100 * at / max(duration_s, 1e-9):.3f}%">{clock(at)[:-2]}</span>')
    return f'<div class="md-axis" aria-hidden="true">{"".join(ticks)}</div>'


__all__ = ["COLOURS", "clock", "moment_list", "timeline"]
