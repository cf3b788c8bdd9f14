"""What there is to do, found before anything starts: one job a video of folders, and one a query of annotations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import read_json_lines
from momentdetr.errors import BadInput
from momentdetr.features.layouts import LAYOUTS

SUFFIXES = frozenset(
    f".{end}"
    for end in (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "ts", "mts", "m2ts"),
        *("mpg", "mpeg", "flv", "ogv", "ogg", "asf", "wmv", "mxf", "3gp"),
    )
)
"""Files of a folder that are taken for videos; a file that is named itself may end in anything."""

LAYOUT_NAMES = tuple(
    name
    for name, layout in LAYOUTS.items()
    if any("clip" in pattern for stream in layout.video for pattern in stream)
    and "{qid}" in layout.text
    and layout.text_key == "last_hidden_state"
)
"""Layouts with a folder for CLIP's features of videos and one for those of queries."""


@dataclass(frozen=True)
class VideoJob:
    """One video to encode.

    Args:
        name: of the video, as annotations call it.
        path: of the file.
        file: where its features go, relative to the output folder.
    """

    name: str
    path: Path
    file: str
    kind: str = "video"


@dataclass(frozen=True)
class QueryJob:
    """One query to encode.

    Args:
        name: its id.
        query: the sentence.
        file: where its features go, relative to the output folder.
    """

    name: str
    query: str
    file: str
    kind: str = "query"


Job = VideoJob | QueryJob


@dataclass(frozen=True)
class Fault:
    """Something that could not be extracted, and why."""

    kind: str
    name: str
    source: str
    error: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.source}): {self.error}"


@dataclass(frozen=True)
class Plan:
    """All jobs of a run, videos first, each kind by name, and what is known to be missing already."""

    jobs: tuple[Job, ...]
    missing: tuple[Fault, ...] = ()


def make_plan(videos: Sequence[Path], annotations: Sequence[Path], layout: str) -> Plan:
    """Find the videos and queries.

    Args:
        videos: files and folders; of a folder, the files directly in it that end like videos.
        annotations: .jsonl files, each line with qid, query and vid. A video that they name and that is not among
            `videos` is missing, unless no videos are given at all.
        layout: one of `LAYOUT_NAMES`.

    Raises:
        BadInput: nothing to do, an unknown layout, unusable lines (each is named), or two videos or queries that
            would write the same file.
    """
    video_file, query_file = file_names(layout)
    paths = _video_paths(videos)
    queries, wanted = _queries(annotations)
    jobs: list[Job] = [VideoJob(name, paths[name], video_file.format(vid=name)) for name in sorted(paths)]
    jobs += [QueryJob(qid, queries[qid], query_file.format(qid=qid)) for qid in sorted(queries)]
    if not jobs:
        raise BadInput("there are neither videos nor annotations; name video files, folders of them, or --annotations")
    missing = [
        Fault("video", name, str(source), "is not among the given videos")
        for name, source in sorted(wanted.items())
        if videos and name not in paths
    ]
    return Plan(tuple(jobs), tuple(missing))


def file_names(layout: str) -> tuple[str, str]:
    """Where a layout keeps CLIP's features: patterns with "{vid}" and with "{qid}", below its root.

    Raises:
        BadInput: not one of `LAYOUT_NAMES`.
    """
    if layout not in LAYOUT_NAMES:
        raise BadInput(f"layout is {layout!r}; expected one of {', '.join(LAYOUT_NAMES)}")
    found = LAYOUTS[layout]
    video = next(pattern for stream in found.video for pattern in stream if "clip" in pattern)
    return f"{video}.npz", f"{found.text}.npz"


def _video_paths(videos: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for given in videos:
        files = [given]
        if given.is_dir():
            files = sorted(path for path in given.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
            if not files:
                raise BadInput(f"{given}: holds no videos ({', '.join(sorted(SUFFIXES))})")
        for path in files:
            before = found.setdefault(path.stem, path)
            if before.resolve() != path.resolve():
                raise BadInput(f"{before} and {path} are both called {path.stem!r}; their features would be one file")
    return found


def _queries(annotations: Iterable[Path]) -> tuple[dict[str, str], dict[str, Path]]:
    """Query ids with their sentences, and names of videos with the file that names them."""
    queries: dict[str, str] = {}
    videos: dict[str, Path] = {}
    faults = []
    for path in annotations:
        lines = read_json_lines(path)
        faults += [f"{path}: line {fault.line}: {fault.text}" for fault in lines.faults]
        for number, data in lines.objects:
            fault = _fault(data) or _clash(queries, data)
            if fault:
                faults.append(f"{path}: line {number}: {fault}")
                continue
            queries[str(data["qid"])] = data["query"]
            videos.setdefault(data["vid"], path)
    if faults:
        shown = "\n  ".join(faults[:50]) + (f"\n  and {len(faults) - 50} more" if len(faults) > 50 else "")
        raise BadInput(f"{len(faults)} lines of annotations cannot be used:\n  {shown}")
    return queries, videos


def _clash(queries: dict[str, str], data: dict[str, Any]) -> str | None:
    before = queries.get(str(data["qid"]), data["query"])
    return None if before == data["query"] else f"qid {data['qid']!r} is already the query {before!r:.60}"


def _fault(data: dict[str, Any]) -> str | None:
    """What keeps a line from being used here, or None; windows and durations do not matter."""
    qid, query, vid = data.get("qid"), data.get("query"), data.get("vid")
    if not isinstance(qid, int | str) or isinstance(qid, bool) or not _is_file_name(str(qid)):
        return f"qid is {qid!r:.60}, expected a number or text that can be a file name"
    if not isinstance(query, str) or not query.strip():
        return f"query is {query!r:.60}, expected a sentence"
    if not isinstance(vid, str) or not _is_file_name(vid):
        return f"vid is {vid!r:.60}, expected the name of a video, without folder and ending"
    return None


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
