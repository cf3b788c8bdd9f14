"""Reads Charades-STA: the released .txt files, or the .jsonl form that the DETR family shares.

A line of the .txt is `VIDEO START END##SENTENCE`, seconds. It names no duration: those are in Charades' own
Charades_v1_train.csv and Charades_v1_test.csv (columns id and length). Queries have no number there; they are counted
from 0.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from momentdetr.datasets.lines import check_lines, report, single_moment_of
from momentdetr.datasets.records import AnnotationReport, MomentRecord
from momentdetr.errors import BadInput


def check_charades(
    path: str | Path, *, videos: Collection[str] | None = None, durations: Mapping[str, float] | None = None
) -> AnnotationReport:
    """Read an annotation file and tell everything that is wrong with it.

    Args:
        path: .txt or .jsonl.
        videos: names of the videos that exist; None: not checked.
        durations: seconds of each video, needed for .txt (see `read_durations`).

    Raises:
        BadInput: the file cannot be read at all, or a .txt is given without durations.
    """
    if Path(path).suffix != ".txt":
        return check_lines(path, single_moment_of, videos=videos)
    if durations is None:
        raise BadInput(f"{path}: names no durations; give them too, from Charades_v1_train.csv or Charades_v1_test.csv")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    filled = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not filled:
        raise BadInput(f"{path}: is empty; expected lines like 'AO8RW 0.0 6.9##a sentence'")
    parsed = ((number, qid, _record(qid, line, durations)) for qid, (number, line) in enumerate(filled))
    return report(Path(path), parsed, [], videos=videos)


def read_durations(path: str | Path) -> dict[str, float]:
    """Seconds of each video, from one of Charades' own tables.

    Raises:
        BadInput: the table cannot be read, or has no columns id and length.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return {row["id"]: float(row["length"]) for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"{path}: is no table of Charades with columns id and length ({error!r})") from error


def _record(qid: int, line: str, durations: Mapping[str, float]) -> MomentRecord | str:
    head, mark, query = line.partition("##")
    parts = head.split()
    if not mark or len(parts) != 3:
        return "is not 'VIDEO START END##SENTENCE'"
    video = parts[0]
    if video not in durations:
        return f"the duration of video {video!r} is not known"
    try:
        window = float(parts[1]), float(parts[2])
    except ValueError:
        return f"start and end are {parts[1]!r} and {parts[2]!r}, expected seconds"
    return MomentRecord(qid, query.strip(), video, durations[video], (window,))
