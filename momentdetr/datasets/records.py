"""What an annotation says, and what may be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from momentdetr.errors import BadInput

# Annotated ends are rounded; ActivityNet Captions has ends 0.01 s beyond the duration.
END_TOLERANCE_S = 0.05


@dataclass(frozen=True)
class Saliency:
    """How much annotators liked the clips that show what the query says.

    Args:
        clips: indices of the scored clips, ascending in the official files.
        scores: one row per clip, one score per annotator (0 to 4 in QVHighlights).
        times_s: (start, end) of each scored clip, seconds, where clips overlap or differ in length; None: clip i begins
            at i times the data set's clip length.
    """

    clips: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    times_s: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class MomentRecord:
    """One query about one video.

    Args:
        qid: number or name of the query, unique in its file.
        query: the sentence.
        video: name of the video, without folder and ending.
        duration_s: length of the video, seconds.
        windows_s: (start, end) of every moment that the sentence describes, seconds; empty: the video has none, or the
            data set has saliency only.
        saliency: None where not annotated.
        domain: the kind of video, in data sets that train and score each kind by itself; else empty.
    """

    qid: int | str
    query: str
    video: str
    duration_s: float
    windows_s: tuple[tuple[float, float], ...]
    saliency: Saliency | None = None
    domain: str = ""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the line of the file (from 1; or the entry), and what is found and expected there."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class AnnotationReport:
    """What a file holds.

    Args:
        path: the file.
        records: every record that is right.
        faults: everything that is wrong, by line.
        remarks: what is odd but harmless (byte order mark, CRLF).
    """

    path: Path
    records: tuple[MomentRecord, ...]
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...] = ()

    def require_faultless(self) -> tuple[MomentRecord, ...]:
        """The records, if nothing is wrong.

        Raises:
            BadInput: names every fault (the first 50 where there are more).
        """
        if self.faults:
            raise BadInput(fault_text(self.path, self.faults))
        return self.records


def fault_text(path: Path, faults: Sequence[Fault], limit: int = 50) -> str:
    """One message that names each faulty line."""
    lines = [f"  {fault}" for fault in faults[:limit]]
    if len(faults) > limit:
        lines.append(f"  and {len(faults) - limit} more")
    return f"{path}: {len(faults)} faults; correct or remove these lines:\n" + "\n".join(lines)


def record_faults(record: MomentRecord, *, clip_length_s: float | None) -> list[str]:
    """What is wrong with one record, each in words.

    Args:
        record: with values of the right types.
        clip_length_s: seconds of a saliency clip; None: clips are not compared with the duration.
    """
    faults = []
    if not record.query.strip():
        faults.append("query is empty")
    if not (math.isfinite(record.duration_s) and record.duration_s > 0):
        return [*faults, f"duration is {record.duration_s}, expected seconds above 0"]
    for start, end in record.windows_s:
        faults += window_faults(start, end, record.duration_s)
    if record.saliency is not None:
        faults += _saliency_faults(record.saliency, record.duration_s, clip_length_s)
    return faults


def window_faults(start: float, end: float, duration_s: float) -> list[str]:
    """What is wrong with one true window; all in seconds."""
    if not (math.isfinite(start) and math.isfinite(end)):
        return [f"window [{start}, {end}] is not finite"]
    if end <= start:
        return [f"window [{start}, {end}] does not end after it starts"]
    if start < 0:
        return [f"window [{start}, {end}] starts before the video"]
    if end > duration_s + END_TOLERANCE_S:
        return [f"window [{start}, {end}] ends beyond the video's {duration_s} s"]
    return []


def _saliency_faults(saliency: Saliency, duration_s: float, clip_length_s: float | None) -> list[str]:
    faults = []
    if len(saliency.clips) != len(saliency.scores):
        faults.append(f"{len(saliency.clips)} relevant_clip_ids but {len(saliency.scores)} saliency_scores")
    if len(set(map(len, saliency.scores))) > 1 or not all(saliency.scores):
        faults.append("saliency_scores differ in the number of annotators")
    if not all(map(math.isfinite, chain.from_iterable(saliency.scores))):
        faults.append("saliency_scores are not all finite")
    if len(set(saliency.clips)) < len(saliency.clips):
        faults.append("relevant_clip_ids name a clip twice")
    num_clips = math.inf if clip_length_s is None else math.ceil(duration_s / clip_length_s - 1e-6)
    if saliency.clips and not (min(saliency.clips) >= 0 and max(saliency.clips) < num_clips):
        outside = next(clip for clip in saliency.clips if not 0 <= clip < num_clips)
        faults.append(f"relevant_clip_ids has {outside}, but the video's clips are 0 to {num_clips - 1}")
    return faults


def check_together(
    numbered: Iterable[tuple[int, MomentRecord]], videos: Collection[str] | None
) -> tuple[list[MomentRecord], list[Fault]]:
    """Faults that only show among records: duplicate queries, videos that are not there.

    Args:
        numbered: (line, record).
        videos: names that exist; None: not checked.

    Returns:
        The records without fault, and the faults.
    """
    first_line: dict[int | str, int] = {}
    kept, faults = [], []
    for line, record in numbered:
        if record.qid in first_line:
            faults.append(Fault(line, f"qid {record.qid!r} is already on line {first_line[record.qid]}"))
        elif videos is not None and record.video not in videos:
            faults.append(Fault(line, f"video {record.video!r} of qid {record.qid!r} is not there"))
        else:
            kept.append(record)
        first_line.setdefault(record.qid, line)
    return kept, faults
