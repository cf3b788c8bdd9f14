"""Reads the QVHighlights annotation format, which the moving-shapes world and most moment data sets share.

One object a line: qid, query, duration (s), vid, relevant_windows [[start, end], ...] (s), and where annotated
relevant_clip_ids [clip, ...] with saliency_scores [[score of each annotator], ...].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import are_numbers
from momentdetr.datasets.lines import check_lines, moment_of, short
from momentdetr.datasets.records import AnnotationReport, MomentRecord, Saliency


def read_qvhighlights(
    path: str | Path, *, videos: Collection[str] | None = None, clip_length_s: float | None = 2.0
) -> list[MomentRecord]:
    """Read an annotation file that must be right.

    Args:
        path: a .jsonl file.
        videos: names of the videos that exist; None: not checked.
        clip_length_s: seconds of a saliency clip.

    Raises:
        BadInput: one report that names each faulty line.
    """
    report = check_qvhighlights(path, videos=videos, clip_length_s=clip_length_s)
    return list(report.require_faultless())


def check_qvhighlights(
    path: str | Path, *, videos: Collection[str] | None = None, clip_length_s: float | None = 2.0
) -> AnnotationReport:
    """Read an annotation file and tell everything that is wrong with it. Arguments as `read_qvhighlights`.

    Raises:
        BadInput: the file cannot be read at all.
    """
    return check_lines(path, _record, videos=videos, clip_length_s=clip_length_s)


def to_qvhighlights(record: MomentRecord) -> dict[str, Any]:
    """The record as an object of the official format; the inverse of reading it."""
    data: dict[str, Any] = {
        "qid": record.qid,
        "query": record.query,
        "duration": record.duration_s,
        "vid": record.video,
        "relevant_windows": [list(window) for window in record.windows_s],
    }
    if record.saliency is not None:
        data["relevant_clip_ids"] = list(record.saliency.clips)
        data["saliency_scores"] = [list(row) for row in record.saliency.scores]
    return data


def _record(data: Mapping[str, Any]) -> MomentRecord | str:
    """The record, or in words which value is missing or of the wrong type."""
    record = moment_of(data)
    if isinstance(record, str):
        if "relevant_windows" not in data and "vid" in data:
            return f"{record} (QVHighlights' ground truth for test is in highlight_test_with_gt.jsonl)"
        return record
    saliency = _saliency(data)
    return saliency if isinstance(saliency, str) else replace(record, saliency=saliency)


def _saliency(data: Mapping[str, Any]) -> Saliency | str | None:
    clips, scores = data.get("relevant_clip_ids"), data.get("saliency_scores")
    if clips is None and scores is None:
        return None
    if not isinstance(clips, list) or not set(map(type, clips)) <= {int} or not are_numbers(clips):
        return f"relevant_clip_ids is {short(clips)}, expected whole numbers"
    rows_are_right = isinstance(scores, list) and set(map(type, scores)) <= {list}
    if not isinstance(scores, list) or not rows_are_right or not are_numbers(list(chain.from_iterable(scores))):
        return f"saliency_scores is {short(scores)}, expected one list of numbers a clip"
    return Saliency(tuple(clips), tuple(map(tuple, scores)))
