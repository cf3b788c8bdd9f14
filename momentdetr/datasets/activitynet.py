"""Reads ActivityNet Captions: the released .json files, or the .jsonl form that the DETR family shares.

The .json is video -> {duration, timestamps [[start, end], ...], sentences [...]}, seconds. Its queries have no number;
they are counted from 0 over the file, in its order. Entries are named by their place, from 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from momentdetr.datasets.entries import pairs_and_sentences, read_entries
from momentdetr.datasets.jsonl import is_number
from momentdetr.datasets.lines import check_lines, report, single_moment_of
from momentdetr.datasets.records import AnnotationReport, MomentRecord


def check_activitynet(path: str | Path, *, videos: Collection[str] | None = None) -> AnnotationReport:
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
    qid = 0
    for number, (video, entry) in enumerate(read_entries(path).items(), start=1):
        said = pairs_and_sentences(entry) if isinstance(entry, dict) else "is no object"
        if isinstance(said, str):
            yield number, None, f"video {video!r}: {said}"
        elif not is_number(entry.get("duration")):
            yield number, None, f"video {video!r}: duration is {entry.get('duration')!r}, expected seconds"
        else:
            for window, sentence in said:
                yield number, qid, MomentRecord(qid, sentence.strip(), video, float(entry["duration"]), (window,))
                qid += 1
