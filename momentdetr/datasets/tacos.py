"""Reads TACoS: the .json files that 2D-TAN published, or the .jsonl form that the DETR family shares.

The .json is video -> {timestamps [[first, last frame], ...], sentences [...], num_frames, fps}: frames there, seconds
here. A query is named `VIDEO_NUMBER`, counted from 0 in its video, as in the .jsonl. This split is not that of the
original TACoS. Entries are named by their place, from 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from momentdetr.datasets.entries import pairs_and_sentences, read_entries
from momentdetr.datasets.jsonl import is_number
from momentdetr.datasets.lines import check_lines, report, single_moment_of
from momentdetr.datasets.records import AnnotationReport, MomentRecord


def check_tacos(path: str | Path, *, videos: Collection[str] | None = None) -> AnnotationReport:
    """Read an annotation file and tell everything that is wrong with it.

    Args:
        path: .json or .jsonl.
        videos: names of the videos that exist; None: not checked.

    Raises:
        BadInput: the file cannot be read at all.
    """
    if Path(path).suffix != ".json":
        return check_lines(path, single_moment_of, videos=videos)
    return report(Path(path), _records(path), [], videos=videos)


def _records(path: str | Path) -> Iterator[tuple[int, object, MomentRecord | str]]:
    for number, (name, entry) in enumerate(read_entries(path).items(), start=1):
        video = name.removesuffix(".avi")
        said = pairs_and_sentences(entry) if isinstance(entry, dict) else "is no object"
        if isinstance(said, str):
            yield number, None, f"video {video!r}: {said}"
            continue
        frames, fps = entry.get("num_frames"), entry.get("fps")
        if not is_number(frames) or not is_number(fps) or not frames > 0 or not fps > 0:
            yield number, None, f"video {video!r}: num_frames is {frames!r} and fps {fps!r}, expected numbers above 0"
            continue
        for i, ((first, last), sentence) in enumerate(said):
            qid = f"{video}_{i}"
            window = (first / fps, last / fps)
            yield number, qid, MomentRecord(qid, sentence.strip(), video, frames / fps, (window,))
