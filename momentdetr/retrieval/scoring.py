"""Scores a file of predictions against a file of annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from momentdetr.datasets.catalog import read_dataset
from momentdetr.datasets.predictions import MomentPrediction, read_predictions
from momentdetr.errors import BadInput
from momentdetr.evaluation.nms import temporal_nms
from momentdetr.evaluation.protocols import Scores, evaluate, protocol

NMS_WINDOWS = 10  # published code looks at so many windows before and after


@dataclass(frozen=True)
class ScoreReport:
    """The scores of one file.

    Args:
        protocol: name of the rules.
        raw: scores of the predictions as they are.
        nms: scores after temporal NMS; None where not asked for.
        threshold: of the NMS.
    """

    protocol: str
    raw: Scores
    nms: Scores | None = None
    threshold: float | None = None

    def headline(self) -> dict[str, Any]:
        """What papers report, raw and after NMS."""
        names = protocol(self.protocol).headline
        shown: dict[str, Any] = {name: self.raw.brief[name] for name in names if name in self.raw.brief}
        if "domains" in self.raw.official:
            shown["domains"] = {name: values["mAP"] for name, values in self.raw.official["domains"].items()}
        if self.nms is not None:
            brief = self.nms.brief
            shown[f"NMS {self.threshold:g}"] = {name: brief[name] for name in names if name in brief}
        return shown

    def to_dict(self) -> dict[str, Any]:
        """The published script's own structure; under "nms" the same after NMS, under "momentdetr" what is ours."""
        ours: dict[str, Any] = {
            "protocol": self.protocol,
            "counts": dict(self.raw.counts),
            "notes": list(self.raw.notes),
        }
        if self.raw.beyond is not None:
            ours["beyond"] = dict(self.raw.beyond)
        document: dict[str, Any] = dict(self.raw.official)
        if self.nms is not None:
            document["nms"] = {"threshold": self.threshold, **self.nms.official}
        return {**document, "momentdetr": ours}


def score(
    predictions: str | Path,
    ground_truth: str | Path,
    *,
    protocol_name: str = "qvhighlights",
    nms: float | None = None,
    strict_official: bool = False,
    domain: str | None = None,
) -> ScoreReport:
    """Score a file of predictions.

    Args:
        predictions: .jsonl, as QVHighlights submissions; UniVTG's files of curves too.
        ground_truth: annotations of the protocol's data set.
        protocol_name: of `evaluation.protocols.PROTOCOLS`.
        nms: threshold of temporal NMS, for a second set of scores.
        strict_official: fail and leave out what the published script fails on and leaves out.
        domain: judge only this kind of video (TVSum, YouTube Highlights).

    Raises:
        BadInput: a file is faulty (every line is named), nothing to score, or (strict) what the script fails on.
    """
    judges = protocol(protocol_name).judges
    if domain is not None and judges != "clips":
        raise BadInput(f"--domain is for tvsum and youtube; {protocol_name} has no domains")
    if nms is not None and judges == "clips":
        raise BadInput(f"--nms is for moments; {protocol_name} judges highlights only")
    said = read_predictions(predictions)
    truth = read_dataset(protocol_name, ground_truth, domain=domain)

    def judge(some: Sequence[MomentPrediction]) -> Scores:
        return evaluate(protocol_name, some, truth, strict_official=strict_official)

    if nms is None:
        return ScoreReport(protocol_name, judge(said))
    temporal_nms((), nms)  # a threshold that makes no sense is refused before any work
    return ScoreReport(protocol_name, judge(said), judge([_suppressed(one, nms) for one in said]), nms)


def _suppressed(prediction: MomentPrediction, threshold: float) -> MomentPrediction:
    if prediction.windows is None:
        return prediction
    kept = temporal_nms(prediction.windows[:NMS_WINDOWS], threshold, limit=NMS_WINDOWS)
    return replace(prediction, windows=tuple((window[0], window[1], window[2]) for window in kept))
