"""How each data set is scored, by name.

| protocol | what counts |
|---|---|
| qvhighlights | R1 and mAP of windows, full and by length; highlights at three levels (the official script) |
| charades, tacos, activitynet | R1 at IoU .3, .5, .7 and mIoU of the first window; mAP beside them |
| tvsum | five best clips of each video against twenty annotators, mean over domains |
| youtube | ranking of all clips, mean over domains |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from momentdetr.errors import BadInput
from momentdetr.evaluation.moments import evaluate_moments


@dataclass(frozen=True)
class Protocol:
    """The rules of one data set.

    Args:
        judges: "moments" (with highlights where annotated), "windows" (moments only) or "clips" (highlights only).
        headline: names of the brief scores that papers report.
        select_by: the one that tells the best checkpoint.
    """

    judges: Literal["moments", "windows", "clips"]
    headline: tuple[str, ...]
    select_by: str


_WINDOWS = Protocol(
    "windows",
    ("MR-full-R1@0.3", "MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mIoU", "MR-full-mAP"),
    "MR-full-R1@0.7",
)
_CLIPS = Protocol("clips", ("mAP",), "mAP")

PROTOCOLS: dict[str, Protocol] = {
    "qvhighlights": Protocol(
        "moments",
        (
            "MR-full-R1@0.3",
            "MR-full-R1@0.5",
            "MR-full-R1@0.7",
            "MR-full-mAP@0.5",
            "MR-full-mAP@0.75",
            "MR-full-mAP",
            "MR-short-mAP",
            "MR-middle-mAP",
            "MR-long-mAP",
            "MR-full-mIoU",
            "HL-min-VeryGood-mAP",
            "HL-min-VeryGood-Hit1",
        ),
        "MR-full-mAP",
    ),
    "charades": _WINDOWS,
    "tacos": _WINDOWS,
    "activitynet": _WINDOWS,
    "tvsum": _CLIPS,
    "youtube": _CLIPS,
}


@dataclass(frozen=True)
class Scores:
    """What a protocol says of one set of predictions.

    Args:
        official: the published script's own structure and names; "brief" holds its headline numbers.
        notes: what a reader of the numbers must know, in words.
        counts: what was judged: range of lengths -> queries, or domain -> videos.
        beyond: scores over true windows of more than 150 seconds, in the same structure; None where there is none.
    """

    official: Mapping[str, Any]
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    beyond: Mapping[str, Any] | None = None

    @property
    def brief(self) -> dict[str, float]:
        return dict(self.official["brief"])


def protocol(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise BadInput(f"unknown protocol {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def evaluate(
    name: str,
    predictions: Sequence[Any],
    truth: Sequence[Any],
    *,
    clip_length_s: float = 2.0,
    strict_official: bool = False,
) -> Scores:
    """Score predictions by the rules of a data set.

    Args:
        name: of `PROTOCOLS`.
        predictions: as `moments.Predicted`.
        truth: as `moments.Annotated`, with a domain for "tvsum" and "youtube".
        clip_length_s: seconds per saliency score, where moments are judged.
        strict_official: fail and leave out what the published script fails on and leaves out.

    Raises:
        BadInput: nothing to score, or (strict) what the published script fails on.
    """
    judges = protocol(name).judges
    if judges == "clips":
        from momentdetr.evaluation.video_highlights import evaluate_video_highlights  # needs torch, the others do not

        kind: Literal["tvsum", "youtube"] = "tvsum" if name == "tvsum" else "youtube"
        videos = evaluate_video_highlights(predictions, truth, kind, strict_official=strict_official)
        counts = {domain: scores.num_videos for domain, scores in videos.domains.items()}
        return Scores(videos.to_dict(), videos.notes, counts)
    moments = evaluate_moments(
        predictions,
        truth,
        clip_length_s=clip_length_s,
        strict_official=strict_official,
        with_highlights=judges == "moments",
    )
    return Scores(
        moments.to_dict(),
        moments.notes,
        {length: scores.num_queries for length, scores in moments.windows.items()},
        None if moments.beyond is None else moments.beyond.to_dict(),
    )
