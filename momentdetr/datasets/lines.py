"""What all annotation files of one JSON object a line have in common: faults by line, and values of the right kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import is_number, read_json_lines
from momentdetr.datasets.records import AnnotationReport, Fault, MomentRecord, check_together, record_faults

Parse = Callable[[Mapping[str, Any]], MomentRecord | str]
"""Makes a record of a line, or says in words what is wrong with it."""


def check_lines(
    path: str | Path, parse: Parse, *, videos: Collection[str] | None = None, clip_length_s: float | None = None
) -> AnnotationReport:
    """Read a .jsonl file and tell everything that is wrong with it.

    Args:
        path: the file.
        parse: makes a record of each line.
        videos: names of the videos that exist; None: not checked.
        clip_length_s: seconds of a saliency clip; None: clips are not compared with the duration.

    Raises:
        BadInput: the file cannot be read at all.
    """
    lines = read_json_lines(path)
    parsed = ((number, data.get("qid"), parse(data)) for number, data in lines.objects)
    return report(Path(path), parsed, list(lines.faults), lines.remarks, videos=videos, clip_length_s=clip_length_s)


def report(
    path: Path,
    parsed: Iterable[tuple[int, object, MomentRecord | str]],
    faults: list[Fault],
    remarks: tuple[str, ...] = (),
    *,
    videos: Collection[str] | None = None,
    clip_length_s: float | None = None,
) -> AnnotationReport:
    """Check records one by one and together.

    Args:
        path: where they are from.
        parsed: (line, query id or None, record or what is wrong).
        faults: what is already known to be wrong.
        remarks: what is odd but harmless.
        videos: as `check_lines`.
        clip_length_s: as `check_lines`.
    """
    numbered: list[tuple[int, MomentRecord]] = []
    faults = list(faults)
    for number, qid, record in parsed:
        found = [record] if isinstance(record, str) else record_faults(record, clip_length_s=clip_length_s)
        faults += [Fault(number, text if qid is None else f"qid {qid!r}: {text}") for text in found]
        if not isinstance(record, str):
            numbered.append((number, record))
    faulty = {fault.line for fault in faults}
    records, more = check_together(numbered, videos)
    wrong = {id(record) for number, record in numbered if number in faulty}
    return AnnotationReport(
        path,
        tuple(record for record in records if id(record) not in wrong),
        tuple(sorted(faults + more, key=lambda fault: fault.line)),
        remarks,
    )


def value_fault(data: Mapping[str, Any], keys: Collection[str]) -> str | None:
    """What is wrong with qid, query, vid and duration, and which of `keys` is not there; None: nothing."""
    missing = [key for key in keys if key not in data]
    if missing:
        return f"has no {', '.join(missing)}"
    if not isinstance(data["qid"], int | str) or isinstance(data["qid"], bool):
        return f"qid is {data['qid']!r}, expected a whole number or text"
    for key in ("query", "vid"):
        if not isinstance(data[key], str):
            return f"{key} is {data[key]!r}, expected text"
    if not is_number(data["duration"]):
        return f"duration is {data['duration']!r}, expected seconds"
    return None


def windows_of(value: object) -> tuple[tuple[float, float], ...] | str:
    """(start, end) pairs, or in words what they should be."""
    if not isinstance(value, list) or not all(_is_pair(window) for window in value):
        return f"relevant_windows is {short(value)}, expected [[start, end], ...] in seconds"
    return tuple((float(start), float(end)) for start, end in value)


def moment_of(data: Mapping[str, Any]) -> MomentRecord | str:
    """A line that has windows and no saliency."""
    fault = value_fault(data, ("qid", "query", "duration", "vid", "relevant_windows"))
    if fault is not None:
        return fault
    windows = windows_of(data["relevant_windows"])
    if isinstance(windows, str):
        return windows
    return MomentRecord(data["qid"], data["query"], data["vid"], float(data["duration"]), windows)


def single_moment_of(data: Mapping[str, Any]) -> MomentRecord | str:
    """A line of a data set that has exactly one window a query."""
    record = moment_of(data)
    if not isinstance(record, str) and len(record.windows_s) != 1:
        return f"has {len(record.windows_s)} relevant_windows, expected exactly one"
    return record


def ratings_of(data: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | str:
    """One row of numbers a clip under "label", all of the same length, or in words what is wrong."""
    rows = data.get("label")
    right = isinstance(rows, list) and all(isinstance(row, list) and row and all(map(is_number, row)) for row in rows)
    if not isinstance(rows, list) or not right or not rows:
        return f"label is {short(rows)}, expected one list of numbers a clip"
    return tuple(tuple(float(value) for value in row) for row in rows)


def short(value: object) -> str:
    """What a value looks like, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(number) for number in value)
