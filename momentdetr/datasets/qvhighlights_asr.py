"""Reads the captions on which Moment-DETR is pre-trained: QVHighlights' videos with automatic speech recognition.

One object a line, as QVHighlights without saliency: qid `VIDEO_NUMBER` (text), query (what is said), duration (s), vid,
relevant_windows with the one window in which it is said. The number is that of the text feature's file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from momentdetr.datasets.lines import check_lines, single_moment_of
from momentdetr.datasets.records import AnnotationReport, MomentRecord


def check_qvhighlights_asr(path: str | Path, *, videos: Collection[str] | None = None) -> AnnotationReport:
    """Read an annotation file and tell everything that is wrong with it.

    Args:
        path: .jsonl.
        videos: names of the videos that exist; None: not checked.

    Raises:
        BadInput: the file cannot be read at all.
    """
    return check_lines(path, _record, videos=videos)


def _record(data: Mapping[str, Any]) -> MomentRecord | str:
    record = single_moment_of(data)
    if isinstance(record, str):
        return record
    video, _, number = str(record.qid).rpartition("_")
    if video != record.video or not number:
        return f"qid must be the video's name and a number, such as '{record.video}_0'"
    return record
