"""Moment retrieval scored to the last digit of the official QVHighlights script, and without its crashes.

R1: the first listed window against the true window that it overlaps most. mAP: the first ten windows, re-sorted by
score, at IoU 0.5 to 0.95. Both over all queries and, by the length of the true windows, short (0, 10], middle (10, 30]
and long (30, 150] seconds. mIoU and R1 below IoU 0.5 as CG-DETR's copy of the script adds them.

The script drops queries without predictions from mAP, fails on an empty list, and on a length that no true window has.
Here all of these score 0, and `MomentScores.notes` says so; `strict_official=True` does as the script does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from momentdetr.errors import BadInput
from momentdetr.evaluation.highlights import ClipScores, HighlightScores, evaluate_highlights
from momentdetr.evaluation.windows import (
    BEYOND,
    LENGTH_RANGES_S,
    Window,
    WindowScores,
    evaluate_windows,
    percent,
)

MAX_WINDOWS = 10


class Predicted(Protocol):
    """What a model says of a query: windows (start_s, end_s, score) and one saliency score a clip; None: not said."""

    @property
    def qid(self) -> int | str: ...
    @property
    def windows(self) -> Sequence[Window] | None: ...
    @property
    def saliency(self) -> Sequence[float] | None: ...


class Annotated(Protocol):
    """What is true of a query; without windows it is not in the video."""

    @property
    def qid(self) -> int | str: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def windows_s(self) -> Sequence[Window]: ...
    @property
    def saliency(self) -> ClipScores | None: ...


@dataclass(frozen=True)
class MomentScores:
    """All scores of one set of predictions.

    Args:
        windows: "short", "middle", "long", "full" -> scores; empty where no windows were predicted.
        highlights: "Fair", "Good", "VeryGood" -> scores; empty where saliency was not predicted or not annotated.
        notes: what a reader of the numbers must know, in words.
        beyond: scores over true windows of more than 150 seconds, which are in no range of the official script but
            "full"; None where there is none.
    """

    windows: Mapping[str, WindowScores]
    highlights: Mapping[str, HighlightScores]
    notes: tuple[str, ...] = ()
    beyond: WindowScores | None = None

    @property
    def brief(self) -> dict[str, float]:
        """The headline numbers, in percent with two decimals, by the official script's names."""
        return self.to_dict()["brief"]

    def to_dict(self) -> dict[str, Any]:
        """The official script's own structure and names, percent with two decimals.

        The reference script's keys and CG-DETR's (R1 below IoU 0.5, mIoU) are all there.
        """
        ranges = {name: scores.to_dict() for name, scores in self.windows.items()}
        levels = {
            f"HL-min-{name}": {"HL-mAP": percent(scores.mean_ap), "HL-Hit1": percent(scores.hit_at_1)}
            for name, scores in self.highlights.items()
        }
        brief = dict(sorted(_brief_windows(ranges).items())) if ranges else {}
        for name, level in levels.items():
            brief |= {f"{name}-{key.removeprefix('HL-')}": value for key, value in level.items()}
        return {"brief": brief, **dict(sorted({**ranges, **levels}.items()))}


def evaluate_moments(
    predictions: Sequence[Predicted],
    truth: Sequence[Annotated],
    *,
    clip_length_s: float = 2.0,
    strict_official: bool = False,
    match_number: bool = True,
    with_highlights: bool = True,
) -> MomentScores:
    """Score predictions against annotations.

    Args:
        predictions: one per query; of several for one query the windows are joined for mAP and the last one counts for
            the rest, as in the official script.
        truth: one per query. Queries without windows (not in the video) do not count for windows.
        clip_length_s: seconds per saliency score.
        strict_official: queries without windows are left out of mAP, and what makes the official script fail raises.
        match_number: with `strict_official`, whether both sides must have the same queries; if not, only those that
            both have are scored. Without it, a query that was not answered scores 0, and one that was not asked is
            ignored.
        with_highlights: score saliency, too. False for data sets without: CG-DETR's copy of the script scores those,
            and gives 0 where the original fails on a length that no true window has.

    Raises:
        BadInput: nothing to score, the same query annotated twice, or (strict) what the official script fails on.
    """
    notes: list[str] = []
    predictions, truth = _pair(predictions, truth, strict_official, match_number, notes)
    _require_finite(predictions)
    joined, last = _join(predictions, notes)
    windows: dict[str, WindowScores] = {}
    highlights: dict[str, HighlightScores] = {}
    beyond = None
    if _says(predictions, "windows", strict_official):
        windows, beyond = _evaluate_windows(joined, last, truth, strict_official, with_highlights, notes)
    if with_highlights and _says(predictions, "saliency", strict_official):
        highlights = _evaluate_saliency(last, truth, clip_length_s, strict_official, notes)
    return MomentScores(windows, highlights, tuple(notes), beyond)


def _pair(
    predictions: Sequence[Predicted],
    truth: Sequence[Annotated],
    strict: bool,
    match_number: bool,
    notes: list[str],
) -> tuple[Sequence[Predicted], Sequence[Annotated]]:
    annotated = Counter(record.qid for record in truth)
    twice = [qid for qid, count in annotated.items() if count > 1]
    if twice:
        raise BadInput(f"annotations name {some(twice)} more than once; give each query one line")
    predicted = {prediction.qid for prediction in predictions}
    missing = [qid for qid in annotated if qid not in predicted]
    extra = sorted(predicted - set(annotated), key=str)
    if not predicted or len(missing) == len(annotated):
        raise BadInput(
            f"none of the {len(annotated)} annotated queries is answered by the {len(predicted)} predicted ones; "
            "give predictions of the same split (the query ids must be equal, including text or number)"
        )
    if strict and match_number and (missing or extra):
        raise BadInput(
            f"queries differ: not predicted {some(missing) or 'none'}; not annotated {some(extra) or 'none'}"
        )
    if extra:
        notes.append(f"ignored predictions of queries that are not annotated: {some(extra)}")
    if strict:
        truth = [record for record in truth if record.qid in predicted]
    elif missing:
        notes.append(f"scored 0, not predicted: {some(missing)}")
    return [prediction for prediction in predictions if prediction.qid in annotated], truth


def _join(
    predictions: Sequence[Predicted], notes: list[str]
) -> tuple[dict[int | str, list[Window]], dict[int | str, Predicted]]:
    joined: dict[int | str, list[Window]] = {}
    for prediction in predictions:
        joined.setdefault(prediction.qid, []).extend((prediction.windows or ())[:MAX_WINDOWS])
    last = {prediction.qid: prediction for prediction in predictions}
    if len(last) < len(predictions):
        counts = Counter(prediction.qid for prediction in predictions)
        twice = [qid for qid, count in counts.items() if count > 1]
        notes.append(f"predicted more than once (windows joined for mAP, else the last one): {some(twice)}")
    return joined, last


def _require_finite(predictions: Sequence[Predicted]) -> None:
    def finite(prediction: Predicted) -> bool:
        windows = all(math.isfinite(value) for window in prediction.windows or () for value in window)
        return windows and all(map(math.isfinite, () if prediction.saliency is None else prediction.saliency))

    faulty = [prediction.qid for prediction in predictions if not finite(prediction)]
    if faulty:
        raise BadInput(f"predictions of {some(faulty)} are not finite numbers; correct the model or leave them out")


def _says(predictions: Sequence[Predicted], what: str, strict: bool) -> bool:
    if strict:  # the script looks at the first line only
        return getattr(predictions[0], what) is not None
    return any(getattr(prediction, what) is not None for prediction in predictions)


def _evaluate_windows(
    joined: Mapping[int | str, list[Window]],
    last: Mapping[int | str, Predicted],
    truth: Sequence[Annotated],
    strict: bool,
    empty_range_fails: bool,
    notes: list[str],
) -> tuple[dict[str, WindowScores], WindowScores | None]:
    absent = [record.qid for record in truth if not record.windows_s]
    if absent:
        if strict:
            raise BadInput(f"the official script fails on annotations without windows: {some(absent)}")
        notes.append(f"{len(absent)} queries without a true window do not count for windows")
        truth = [record for record in truth if record.windows_s]
    empty = [record.qid for record in truth if record.qid in last and not last[record.qid].windows]
    if empty:
        if strict:
            raise BadInput(f"the official script fails on queries without predicted windows: {some(empty)}")
        notes.append(f"scored 0, no window predicted: {some(empty)}")
    first = [((last[record.qid].windows or ())[:1] if record.qid in last else ()) for record in truth]
    ranked = [joined.get(record.qid, ()) for record in truth]
    backwards = sum(window[1] < window[0] for windows in ranked for window in windows)
    if backwards:
        notes.append(
            f"{backwards} predicted windows end before they start; they are scored as the official script does"
        )
    results = evaluate_windows(first, ranked, [record.windows_s for record in truth], {**LENGTH_RANGES_S, **BEYOND})
    beyond = results.pop("beyond")
    if beyond.num_queries:
        notes.append(
            f"{beyond.num_queries} queries have true windows of more than 150 s: in no range but full and beyond"
        )
    lacking = [name for name, scores in results.items() if scores.num_queries == 0]
    if lacking:
        if strict and empty_range_fails:
            raise BadInput(f"the official script fails because no true window is {' or '.join(lacking)}")
        notes.append(f"no true window is {' or '.join(lacking)}: these scores are 0")
    return results, beyond if beyond.num_queries else None


def _evaluate_saliency(
    last: Mapping[int | str, Predicted],
    truth: Sequence[Annotated],
    clip_length_s: float,
    strict: bool,
    notes: list[str],
) -> dict[str, HighlightScores]:
    scored = [(record, record.saliency) for record in truth if record.saliency is not None and record.saliency.clips]
    if strict and len(scored) < len(truth):
        raise BadInput("the official script fails on annotations without a scored clip")
    if not scored:
        notes.append("no highlight scores: the annotations have no saliency")
        return {}
    if len(scored) < len(truth):
        notes.append(f"{len(truth) - len(scored)} queries without a scored clip do not count for highlights")
    curves = [last[record.qid].saliency if record.qid in last else None for record, _ in scored]
    num_clips = [int(record.duration_s / clip_length_s) for record, _ in scored]
    silent = [record.qid for (record, _), curve in zip(scored, curves, strict=True) if not curve]
    if silent:
        if strict:
            raise BadInput(f"the official script fails on queries without saliency scores: {some(silent)}")
        notes.append(f"highlights scored 0, no saliency predicted: {some(silent)}")
    unequal = sum(len(curve) != length for curve, length in zip(curves, num_clips, strict=True) if curve)
    if unequal:
        notes.append(f"{unequal} saliency curves do not have one value a clip; filled with zeros or cut")
    return evaluate_highlights(curves, [saliency for _, saliency in scored], num_clips)


def _brief_windows(ranges: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    brief = {f"MR-{name}-mAP": ranges[name]["MR-mAP"]["average"] for name in LENGTH_RANGES_S}
    brief |= {f"MR-full-mAP@{t}": ranges["full"]["MR-mAP"][t] for t in ("0.5", "0.75")}
    brief |= {f"MR-full-R1@{t}": ranges["full"]["MR-R1"][t] for t in ("0.3", "0.5", "0.7")}
    return {**brief, "MR-full-mIoU": ranges["full"]["MR-mIoU"]}


def some(qids: Sequence[int | str], limit: int = 10) -> str:
    """The first of them, and how many more there are, for a message."""
    shown = ", ".join(f"{qid!r}" for qid in qids[:limit])
    return shown + (f" and {len(qids) - limit} more" if len(qids) > limit else "")
