"""Reads YouTube Highlights in the .jsonl form of UMT and its followers: a label for every clip, no moments.

One object a line: qid, query (the domain's name), vid, domain, duration (s), frames, fps, clip [[first, last frame],
...], match (-1, 0 or 1 a clip) and label [[1 where match is 1, else 0], ...]. Clips have about a hundred frames and
overlap by half: they are no grid of equal clips, so that each has its own seconds here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import is_number
from momentdetr.datasets.lines import check_lines, ratings_of, short, value_fault
from momentdetr.datasets.records import AnnotationReport, MomentRecord, Saliency

DURATION_TOLERANCE_S = 0.1


def check_youtube_highlights(path: str | Path, *, videos: Collection[str] | None = None) -> AnnotationReport:
    """Read an annotation file and tell everything that is wrong with it.

    Args:
        path: .jsonl.
        videos: names of the videos that exist; None: not checked.

    Raises:
        BadInput: the file cannot be read at all.
    """
    return check_lines(path, _record, videos=videos)


def _record(data: Mapping[str, Any]) -> MomentRecord | str:
    fault = value_fault(data, ("qid", "query", "duration", "vid", "domain", "label", "clip", "match", "frames", "fps"))
    if fault is not None:
        return fault
    if not isinstance(data["domain"], str) or not data["domain"]:
        return f"domain is {data['domain']!r}, expected text"
    labels = ratings_of(data)
    if isinstance(labels, str):
        return labels
    times = _times(data)
    if isinstance(times, str):
        return times
    match = data["match"]
    if not isinstance(match, list) or not len(match) == len(times) == len(labels):
        return f"label, match and clip differ in length: {len(labels)}, {len(match or ())}, {len(times)}"
    if any(row != (float(found == 1),) for row, found in zip(labels, match, strict=True)):
        return "label must be 1 where match is 1, else 0"
    return MomentRecord(
        qid=data["qid"],
        query=data["query"],
        video=data["vid"],
        duration_s=float(data["duration"]),
        windows_s=(),
        saliency=Saliency(tuple(range(len(labels))), labels, times),
        domain=data["domain"],
    )


def _times(data: Mapping[str, Any]) -> tuple[tuple[float, float], ...] | str:
    """Seconds of each clip; a last clip that ends a few frames after the video ends with it."""
    frames, fps, clips = data["frames"], data["fps"], data["clip"]
    if not is_number(fps) or not is_number(frames) or not (math.isfinite(fps) and fps > 0 and frames > 0):
        return f"frames is {frames!r} and fps {fps!r}, expected numbers above 0"
    duration = data["duration"]
    if not abs(frames / fps - duration) <= DURATION_TOLERANCE_S:
        return f"duration is {duration} s, but {frames} frames at {fps} a second are {frames / fps:.2f} s"
    if not isinstance(clips, list) or not all(
        isinstance(clip, list) and len(clip) == 2 and all(map(is_number, clip)) and 0 <= clip[0] < clip[1]
        for clip in clips
    ):
        return f"clip is {short(clips)}, expected [[first, last frame], ...]"
    if any(clip[0] >= frames for clip in clips):
        return f"clip has one that begins after the video's {frames} frames"
    return tuple((first / fps, min(last, frames) / fps) for first, last in clips)
