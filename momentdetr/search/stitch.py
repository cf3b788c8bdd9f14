"""One list of moments from what several overlapping windows saw.

Each window reports views. A moment that a border cuts is seen in part by one window and whole, or in another part, by
the next; a moment in the overlap is seen twice. Two views of different windows are taken for the same moment when they
agree where both windows look. Views of the same moment become one: each end comes from the most confident view whose
window did not cut it there. `docs/decisions/0004-long-videos.md` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from momentdetr.search.windows import Window

BORDER_CLIPS = 1.0
"""A view that ends this close to its window's border may go on behind it. One clip: what a model can tell apart."""

AGREEMENT = 0.6
"""IoU, in the part that both windows see, from which two views are the same moment."""


@dataclass(frozen=True)
class View:
    """A moment as one window sees it.

    Args:
        start: clips from the start of the video.
        end: clips, greater than `start`.
        score: confidence.
        window: who saw it.
    """

    start: float
    end: float
    score: float
    window: Window

    @property
    def start_is_cut(self) -> bool:
        return self.window.cuts_start and self.start <= self.window.start + BORDER_CLIPS

    @property
    def end_is_cut(self) -> bool:
        return self.window.cuts_end and self.end >= self.window.stop - BORDER_CLIPS


@dataclass(frozen=True)
class Span:
    """A moment of the whole video, in clips, with the confidence of its best view."""

    start: float
    end: float
    score: float


@dataclass(eq=False)
class _Group:
    """Views of one moment, at most one a window."""

    views: dict[Window, View]


def stitch(views: Sequence[View]) -> list[Span]:
    """Unite the views of all windows.

    With a single window nothing is united: the moments are the model's own, sorted.

    Args:
        views: in any order; equal scores keep their order.

    Returns:
        Moments by falling score.
    """
    ranked = sorted(views, key=lambda view: -view.score)
    placed: dict[Window, list[tuple[View, int]]] = {view.window: [] for view in ranked}
    owner: list[_Group] = []  # of each placed view, by its number
    neighbours = _neighbours(placed)
    for view in ranked:
        nearby = [(other, owner[i]) for window in neighbours[view.window] for other, i in placed[window]]
        agreeing = _agreeing(view, nearby) or [_Group({})]
        group = agreeing[0]
        if view.window in group.views:
            continue  # this window has already had its say about this moment
        group.views[view.window] = view
        placed[view.window].append((view, len(owner)))
        owner.append(group)
        for other in agreeing[1:]:
            if not group.views.keys() & other.views.keys():  # no window saw them as two moments
                group.views |= other.views
                owner[:] = [group if one is other else one for one in owner]
    groups = list(dict.fromkeys(owner))
    return _drop_fragments(sorted(((_unite(group), group) for group in groups), key=lambda pair: -pair[0].score))


def _neighbours(windows: Iterable[Window]) -> dict[Window, list[Window]]:
    """For each window the others that see some of the same clips."""
    ordered = sorted(windows, key=lambda window: window.start)
    found: dict[Window, list[Window]] = {window: [] for window in ordered}
    for i, window in enumerate(ordered):
        for later in ordered[i + 1 :]:
            if later.start >= window.stop:
                break
            found[window].append(later)
            found[later].append(window)
    return found


def _agreeing(view: View, others: Iterable[tuple[View, _Group]]) -> list[_Group]:
    """Groups with a view of another window that agrees with this one, the best first."""
    found: dict[_Group, float] = {}
    for other, group in others:
        agreement = _agreement(view, other)
        if agreement > 0:
            found[group] = max(agreement, found.get(group, 0.0))
    return sorted(found, key=lambda group: -found[group])


def _agreement(a: View, b: View) -> float:
    """IoU of two views in the part of the video that both windows see; 0 where they do not agree."""
    left, right = max(a.window.start, b.window.start), min(a.window.stop, b.window.stop)
    a_start, a_end = max(a.start, left), min(a.end, right)
    b_start, b_end = max(b.start, left), min(b.end, right)
    if left >= right or a_start >= a_end or b_start >= b_end:
        return 0.0
    intersection = max(min(a_end, b_end) - max(a_start, b_start), 0.0)
    iou = intersection / (max(a_end, b_end) - min(a_start, b_start))
    # Of a moment that a border cuts, only a sliver may be left, whose IoU a fraction of a clip spoils.
    is_cut = a.start_is_cut or a.end_is_cut or b.start_is_cut or b.end_is_cut
    sliver = is_cut and abs(a_start - b_start) <= BORDER_CLIPS and abs(a_end - b_end) <= BORDER_CLIPS
    return iou if iou >= AGREEMENT else max(iou, 1e-6) if sliver else 0.0


def _unite(group: _Group) -> Span:
    ranked = sorted(group.views.values(), key=lambda view: -view.score)
    best = ranked[0]
    start = next((view.start for view in ranked if not view.start_is_cut), min(view.start for view in ranked))
    end = next((view.end for view in ranked if not view.end_is_cut), max(view.end for view in ranked))
    if start >= end:  # views that agree only within a clip may cross
        start, end = best.start, best.end
    return Span(start, end, best.score)


def _drop_fragments(ranked: Sequence[tuple[Span, _Group]]) -> list[Span]:
    """Leave out what a border cut off a moment that others saw better, and that none of them confirmed.

    Others are those with a higher score; to a sliver, about which no window can be sure, all that are longer.
    """
    return [span for i, (span, group) in enumerate(ranked) if not (_is_cut(group) and _explained(i, ranked))]


def _is_cut(group: _Group) -> bool:
    return all(view.start_is_cut or view.end_is_cut for view in group.views.values())


def _explained(i: int, ranked: Sequence[tuple[Span, _Group]]) -> bool:
    span = ranked[i][0]
    length = span.end - span.start
    if length > BORDER_CLIPS:
        return any(_inside(span, other) for other, _ in ranked[:i])
    return any(_inside(span, other) for other, _ in ranked if other.end - other.start > length)


def _inside(span: Span, other: Span) -> bool:
    return other.start - BORDER_CLIPS <= span.start and span.end <= other.end + BORDER_CLIPS
