"""Reads TVSum in the .jsonl form of UMT and its followers: ratings of every clip, no moments.

One object a line: qid, query (the title), vid, domain, duration, label [[rating 1 to 5 of each of 20 annotators]
of each clip]. A clip has two seconds, and `duration` counts clips, not seconds, whatever its name says: the video
sTEELN-vY30 lasts 149 s and its line says 74. Here it is seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from momentdetr.datasets.lines import check_lines, ratings_of, value_fault
from momentdetr.datasets.records import AnnotationReport, MomentRecord, Saliency

CLIP_LENGTH_S = 2.0
NUM_ANNOTATORS = 20


def check_tvsum(path: str | Path, *, videos: Collection[str] | None = None) -> AnnotationReport:
    """Read an annotation file and tell everything that is wrong with it.

    Args:
        path: .jsonl.
        videos: names of the videos that exist; None: not checked.

    Raises:
        BadInput: the file cannot be read at all.
    """
    return check_lines(path, _record, videos=videos, clip_length_s=CLIP_LENGTH_S)


def learning_record(record: MomentRecord) -> MomentRecord:
    """Ratings as published models learn them: 0 for the worst, and 12 for the best of all annotators together."""
    assert record.saliency is not None
    num_annotators = len(record.saliency.scores[0])
    scores = tuple(tuple((rating - 1) * 3 / num_annotators for rating in row) for row in record.saliency.scores)
    return replace(record, saliency=replace(record.saliency, scores=scores))


def _record(data: Mapping[str, Any]) -> MomentRecord | str:
    fault = value_fault(data, ("qid", "query", "duration", "vid", "domain", "label"))
    if fault is not None:
        return fault
    if not isinstance(data["domain"], str) or not data["domain"]:
        return f"domain is {data['domain']!r}, expected text"
    ratings = ratings_of(data)
    if isinstance(ratings, str):
        return ratings
    if data["duration"] != len(ratings):
        return f"duration is {data['duration']}, expected the number of clips in label, {len(ratings)}"
    if any(len(row) != NUM_ANNOTATORS for row in ratings):
        return f"label must have the ratings of {NUM_ANNOTATORS} annotators a clip"
    if not all(1 <= rating <= 5 for row in ratings for rating in row):
        return "label has ratings outside 1 to 5"
    return MomentRecord(
        qid=data["qid"],
        query=data["query"],
        video=data["vid"],
        duration_s=len(ratings) * CLIP_LENGTH_S,
        windows_s=(),
        saliency=Saliency(tuple(range(len(ratings))), ratings),
        domain=data["domain"],
    )
