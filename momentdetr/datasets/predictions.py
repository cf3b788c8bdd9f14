"""Reads and writes predictions in the format of QVHighlights submissions.

One object a line: qid, query, vid, pred_relevant_windows [[start, end, score], ...] (s) and pred_saliency_scores
[score of each clip, ...]; either of the last two may be absent. UniVTG's highlight files have vid and pred instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import is_number, read_json_lines
from momentdetr.datasets.records import Fault, fault_text
from momentdetr.errors import BadInput


@dataclass(frozen=True)
class MomentPrediction:
    """What a model says of one query.

    Args:
        qid: number or name of the query.
        windows: (start_s, end_s, score), best first; None where moments were not predicted.
        saliency: one score a clip; None where not predicted.
        query: the sentence; may be empty.
        video: name of the video; may be empty.
    """

    qid: int | str
    windows: tuple[tuple[float, float, float], ...] | None
    saliency: tuple[float, ...] | None = None
    query: str = ""
    video: str = ""


def read_predictions(path: str | Path) -> list[MomentPrediction]:
    """Read a submission file.

    Raises:
        BadInput: one report that names each faulty line.
    """
    lines = read_json_lines(path)
    predictions, faults = [], list(lines.faults)
    for number, data in lines.objects:
        prediction = _prediction(data)
        if isinstance(prediction, str):
            faults.append(Fault(number, prediction))
        else:
            predictions.append(prediction)
    if faults:
        raise BadInput(fault_text(Path(path), sorted(faults, key=lambda fault: fault.line)))
    return predictions


def write_predictions(path: str | Path, predictions: Iterable[MomentPrediction]) -> None:
    """Write a submission file (times and scores with four decimals, as the official code writes them)."""
    lines = [json.dumps(_object(prediction)) + "\n" for prediction in predictions]
    Path(path).write_text("".join(lines), encoding="utf-8")


def _object(prediction: MomentPrediction) -> dict[str, Any]:
    data: dict[str, Any] = {"qid": prediction.qid, "query": prediction.query, "vid": prediction.video}
    if prediction.windows is not None:
        data["pred_relevant_windows"] = [[round(value, 4) for value in window] for window in prediction.windows]
    if prediction.saliency is not None:
        data["pred_saliency_scores"] = [round(value, 4) for value in prediction.saliency]
    return data


def _prediction(data: Mapping[str, Any]) -> MomentPrediction | str:
    """The prediction, or in words what is wrong with it."""
    if "qid" not in data and "vid" in data and "pred" in data:
        data = {"qid": data["vid"], "vid": data["vid"], "pred_saliency_scores": data["pred"]}
    qid = data.get("qid")
    if not isinstance(qid, int | str) or isinstance(qid, bool):
        return f"qid is {qid!r}, expected a whole number or text"
    windows, saliency = data.get("pred_relevant_windows"), data.get("pred_saliency_scores")
    if windows is None and saliency is None:
        return f"qid {qid!r}: has neither pred_relevant_windows nor pred_saliency_scores"
    if windows is not None and not _are_windows(windows):
        return f"qid {qid!r}: pred_relevant_windows must be [[start, end, score], ...] of finite numbers"
    if saliency is not None and not _are_numbers(saliency):
        return f"qid {qid!r}: pred_saliency_scores must be a list of finite numbers"
    return MomentPrediction(
        qid=qid,
        windows=None if windows is None else tuple((window[0], window[1], window[2]) for window in windows),
        saliency=None if saliency is None else tuple(saliency),
        query=str(data.get("query", "")),
        video=str(data.get("vid", "")),
    )


def _are_windows(value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(window, list) and len(window) == 3 for window in value):
        return False
    return _are_numbers(list(chain.from_iterable(value)))


def _are_numbers(value: object) -> bool:
    if not isinstance(value, list):
        return False
    if set(map(type, value)) == {float} and math.isfinite(sum(value)):
        return True  # the usual case, fast: a sum is finite only if all its terms are
    return all(is_number(number) and math.isfinite(number) for number in value)
