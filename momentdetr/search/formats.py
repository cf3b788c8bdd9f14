"""A search result as JSON, CSV, SRT, a table or a QVHighlights submission."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from momentdetr.errors import BadInput

if TYPE_CHECKING:
    from momentdetr.search.results import SearchResult

COLUMNS = ("query", "rank", "start_s", "end_s", "score", "absent")


def rows(result: SearchResult) -> list[tuple[str, int, float, float, float, float]]:
    """One row a moment, in the order of `COLUMNS`; seconds and scores rounded to 4 decimals."""
    return [
        (answer.query, rank, _round(m.start_s), _round(m.end_s), _round(m.score), _round(answer.absent))
        for answer in result
        for rank, m in enumerate(answer.moments, start=1)
    ]


def to_dict(result: SearchResult) -> dict[str, Any]:
    """Everything, in types that JSON has."""
    return {
        "video": result.video,
        "path": None if result.path is None else str(result.path),
        "duration_s": _round(result.duration_s),
        "clip_length_s": result.clip_length_s,
        "complete": result.complete,
        "model": result.model,
        "queries": [
            {
                "query": answer.query,
                "absent": _round(answer.absent),
                "moments": [
                    {"start_s": _round(m.start_s), "end_s": _round(m.end_s), "score": _round(m.score)}
                    for m in answer.moments
                ],
                "saliency": {
                    "times_s": [_round(time) for time in result.times_s],
                    "scores": [_round(score) for score in answer.saliency],
                },
            }
            for answer in result
        ],
    }


def to_json(result: SearchResult) -> str:
    """`to_dict` as text; NaN cannot occur in it."""
    return json.dumps(to_dict(result), ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def to_csv(result: SearchResult) -> str:
    """One row a moment, with a header; lines end with a bare newline."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(result))
    return text.getvalue()


def to_srt(result: SearchResult) -> str:
    """Subtitles that say, while a moment plays, which query it answers; in order of time."""
    cues = sorted((m.start_s, m.end_s, m.score, answer.query) for answer in result for m in answer.moments)
    return "".join(
        f"{number}\n{_timecode(start)} --> {_timecode(end)}\n{_one_line(query)} ({score:.2f})\n\n"
        for number, (start, end, score, query) in enumerate(cues, start=1)
    )


def to_qvhighlights(result: SearchResult, qids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
    """Lines of an official QVHighlights submission.

    Args:
        result: what was found.
        qids: the identity of each query; None: 0, 1, ...

    Returns:
        One dictionary a query: qid, query, vid, pred_relevant_windows [[start, end, score]] by falling score,
        pred_saliency_scores (one a clip).

    Raises:
        BadInput: not one qid a query.
    """
    qids = range(len(result)) if qids is None else qids
    if len(qids) != len(result):
        raise BadInput(f"{len(qids)} qids for {len(result)} queries, expected one each")
    return [
        {
            "qid": qid,
            "query": answer.query,
            "vid": result.video,
            "pred_relevant_windows": [[_round(m.start_s), _round(m.end_s), _round(m.score)] for m in answer.moments],
            "pred_saliency_scores": [_round(score) for score in answer.saliency],
        }
        for qid, answer in zip(qids, result, strict=True)
    ]


def timestamp(seconds: float) -> str:
    """mm:ss.s, or h:mm:ss.s from one hour on: 75.04 -> "01:15.0"."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    clock = f"{minutes % 60:02d}:{tenths // 10:02d}.{tenths % 10}"
    return clock if minutes < 60 else f"{minutes // 60}:{clock}"


def _timecode(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def _one_line(text: str) -> str:
    # An empty line ends a cue and an arrow begins one.
    return " ".join(text.split()).replace("-->", "->")


def _round(value: float) -> float:
    return round(float(value), 4)
