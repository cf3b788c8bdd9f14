"""Which of the found moments a person wants to see.

A model of this family answers with all its queries: after the moments that it means come near copies of them, and
guesses that it gives no score. Evaluation wants them all; on a page they hide the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from momentdetr.retrieval.types import Moment
from momentdetr.search.results import SearchResult

LEAST_SCORE = 0.1
"""A moment with less is a guess, shown only if there is no better one and the query is probably in the video."""

MOST_OVERLAP = 0.5
"""A moment whose overlap (intersection over union) with a better one is greater is a copy of it."""


def pick(result: SearchResult, most: int) -> SearchResult:
    """Leave out copies and guesses.

    Args:
        result: what was found.
        most: moments per query to keep, at most.

    Returns:
        The same answers with some of their moments, in the same order.
    """
    picked = (_picked(answer.moments, not answer.is_probably_absent) for answer in result)
    answers = (replace(answer, moments=tuple(moments[:most])) for answer, moments in zip(result, picked, strict=True))
    return replace(result, queries=tuple(answers))


def _picked(moments: Sequence[Moment], keep_best: bool) -> list[Moment]:
    kept: list[Moment] = []
    for moment in moments:
        needed = keep_best and not kept
        if (needed or moment.score >= LEAST_SCORE) and all(_overlap(moment, better) <= MOST_OVERLAP for better in kept):
            kept.append(moment)
    return kept


def _overlap(one: Moment, other: Moment) -> float:
    """Intersection over union of two moments, in [0, 1]."""
    both = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    union = max(one.end_s, other.end_s) - min(one.start_s, other.start_s)
    return max(both, 0.0) / union if union > 0 else 1.0


__all__ = ["LEAST_SCORE", "MOST_OVERLAP", "pick"]
