"""Reads the QVHighlights annotation format, which the moving-shapes world and most moment data sets share.

One object a line: qid, query, duration (s), vid, relevant_windows [[start, end], ...] (s), and where annotated
relevant_clip_ids [clip, ...] with saliency_scores [[score of each annotator], ...].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import is_number, read_json_lines
from momentdetr.datasets.records import (
    AnnotationReport,
    Fault,
    MomentRecord,
    Saliency,
    check_together,
    record_faults,
)


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
    lines = read_json_lines(path)
    numbered: list[tuple[int, MomentRecord]] = []
    faults = list(lines.faults)
    for number, data in lines.objects:
        record = _record(data)
        found = [record] if isinstance(record, str) else record_faults(record, clip_length_s=clip_length_s)
        faults += [Fault(number, _named(data, text)) for text in found]
        if not isinstance(record, str):
            numbered.append((number, record))
    faulty = {fault.line for fault in faults}
    records, more = check_together(numbered, videos)
    wrong = {id(record) for number, record in numbered if number in faulty}
    return AnnotationReport(
        Path(path),
        tuple(record for record in records if id(record) not in wrong),
        tuple(sorted(faults + more, key=lambda fault: fault.line)),
        lines.remarks,
    )


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


def _named(data: Mapping[str, Any], text: str) -> str:
    return f"qid {data['qid']!r}: {text}" if "qid" in data else text


def _record(data: Mapping[str, Any]) -> MomentRecord | str:
    """The record, or in words which value is missing or of the wrong type."""
    missing = [key for key in ("qid", "query", "duration", "vid", "relevant_windows") if key not in data]
    if missing:
        return f"has no {', '.join(missing)}"
    if not isinstance(data["qid"], int | str) or isinstance(data["qid"], bool):
        return f"qid is {data['qid']!r}, expected a whole number or text"
    for key in ("query", "vid"):
        if not isinstance(data[key], str):
            return f"{key} is {data[key]!r}, expected text"
    if not is_number(data["duration"]):
        return f"duration is {data['duration']!r}, expected seconds"
    windows = data["relevant_windows"]
    if not isinstance(windows, list) or not all(_is_pair(window) for window in windows):
        return f"relevant_windows is {_short(windows)}, expected [[start, end], ...] in seconds"
    saliency = _saliency(data)
    if isinstance(saliency, str):
        return saliency
    return MomentRecord(
        qid=data["qid"],
        query=data["query"],
        video=data["vid"],
        duration_s=float(data["duration"]),
        windows_s=tuple((float(start), float(end)) for start, end in windows),
        saliency=saliency,
    )


def _saliency(data: Mapping[str, Any]) -> Saliency | str | None:
    clips, scores = data.get("relevant_clip_ids"), data.get("saliency_scores")
    if clips is None and scores is None:
        return None
    if not isinstance(clips, list) or not all(isinstance(clip, int) and is_number(clip) for clip in clips):
        return f"relevant_clip_ids is {_short(clips)}, expected whole numbers"
    rows_are_right = isinstance(scores, list) and all(
        isinstance(row, list) and all(is_number(score) for score in row) for row in scores
    )
    if not isinstance(scores, list) or not rows_are_right:
        return f"saliency_scores is {_short(scores)}, expected one list of numbers a clip"
    return Saliency(tuple(clips), tuple(tuple(row) for row in scores))


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(number) for number in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
