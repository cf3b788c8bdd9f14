"""How well the demo's model finds moments in a freshly seeded world, beside the baseline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from momentdetr.datasets.predictions import MomentPrediction
from momentdetr.datasets.records import MomentRecord
from momentdetr.demo.baseline import Curve, Settings, read_settings, similarity, windows
from momentdetr.demo.dataset import write_scene
from momentdetr.demo.planning import QUERIES_PER_VIDEO, SHORT, make_video
from momentdetr.demo.scene import CLIP_LENGTH_S, Query, Scene
from momentdetr.demo.vocabulary import HELD_OUT
from momentdetr.errors import BadInput
from momentdetr.evaluation.moments import evaluate_moments
from momentdetr.evaluation.ranking import auroc
from momentdetr.retrieval.types import Moment
from momentdetr.search.loading import DEMO_FOLDER, load
from momentdetr.search.retriever import Retriever

TOP_K = 10


@dataclass(frozen=True)
class Answered:
    """One query with what both say of it.

    Args:
        scene, query: where it comes from.
        moments: the retriever's, best first.
        absent: how sure the retriever is that it is not in the video.
        curve: (T,) similarity of the query to each frame.
    """

    scene: Scene
    query: Query
    moments: tuple[Moment, ...]
    absent: float
    curve: Curve


def evaluate(
    seed: int, num_queries: int = 200, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score the demo's model on videos that nobody has seen.

    Args:
        seed: of the world; any.
        num_queries: that are in their videos; as many that are not are asked for AUROC.
        progress: called with videos done and in all.

    Returns:
        "R1@0.5", "R1@0.7", "mAP", "AUROC" and "baseline" in percent, the same for parts of the queries, and what the
        queries were like. R1 and mAP as in QVHighlights, its rounding to whole clips included; "without_rounding" has
        them for the moments as `momentdetr search` gives them.
    """
    if num_queries < 1:
        raise BadInput(f"num_queries is {num_queries}, expected at least 1")
    retriever = load("demo", device="cpu", cache=False)
    num_videos = -(-num_queries // QUERIES_PER_VIDEO)
    answered: list[Answered] = []
    for index in range(num_videos):
        answered += answer_scene(retriever, make_video(seed, index))
        if progress is not None:
            progress(index + 1, num_videos)
    present = [answer for answer in answered if answer.query.windows][:num_queries]
    absent = [answer for answer in answered if not answer.query.windows][:num_queries]
    return {"seed": seed, **_report(present, absent)}


def answer_scene(retriever: Retriever, scene: Scene) -> list[Answered]:
    """Draw a video, and ask it all its queries."""
    with tempfile.TemporaryDirectory(prefix="momentdetr-") as folder:
        video = retriever.encode(write_scene(scene, Path(folder) / f"{scene.name}.mp4"))
    texts = [query.text for query in scene.queries]
    result = retriever.search(video, texts, top_k=TOP_K)
    projected = project_queries(retriever, texts)
    return [
        Answered(
            scene,
            query,
            found.moments,
            found.absent,
            similarity(video.features.numpy(), text),
        )
        for query, found, text in zip(scene.queries, result, projected, strict=True)
    ]


def on_whole_clips(moment: Moment) -> Moment:
    """Round start and end to clips, as QVHighlights' official code rounds its windows; at least one clip is left."""
    start = round(moment.start_s / CLIP_LENGTH_S)
    end = max(round(moment.end_s / CLIP_LENGTH_S), start + 1)
    return Moment(moment.video, start * CLIP_LENGTH_S, end * CLIP_LENGTH_S, moment.score)


def project_queries(retriever: Retriever, texts: Sequence[str]) -> list[NDArray[np.float32]]:
    """Queries as CLIP compares them with frames: the last token's state, projected."""
    projection = load_file(DEMO_FOLDER / "clip" / "open_clip_model.safetensors")["text_projection"].float()
    return [np.asarray(states[-1] @ projection, np.float32) for states in retriever.encoder.encode_text(texts)]


def _report(present: Sequence[Answered], absent: Sequence[Answered]) -> dict[str, Any]:
    settings = read_settings(DEMO_FOLDER / "baseline.json")
    parts = {
        "short": [answer for answer in present if _is_short(answer)],
        "with_distractor": [answer for answer in present if _has_distractor(answer)],
        "held_out": [answer for answer in present if _is_held_out(answer)],
        "several_windows": [answer for answer in present if len(answer.query.windows) > 1],
    }
    scores = [answer.absent for answer in (*absent, *present)]
    truly_absent = [True] * len(absent) + [False] * len(present)
    return {
        **_scores(present, _rounded(present)),
        "AUROC": round(100 * auroc(scores, truly_absent), 2),
        "baseline": _scores(present, [_cut(answer, settings) for answer in present]),
        "without_rounding": _scores(present, [answer.moments for answer in present]),
        "parts": {name: {"queries": len(part), **_scores(part, _rounded(part))} for name, part in parts.items()},
        "queries": len(present),
        "absent_queries": len(absent),
    }


def _rounded(answers: Sequence[Answered]) -> list[tuple[Moment, ...]]:
    return [tuple(on_whole_clips(moment) for moment in answer.moments) for answer in answers]


def _cut(answer: Answered, settings: Settings) -> tuple[Moment, ...]:
    return tuple(Moment(answer.scene.name, *window) for window in windows(answer.curve, settings))


def _scores(answers: Sequence[Answered], moments: Sequence[tuple[Moment, ...]]) -> dict[str, float]:
    if not answers:
        return {}
    truth = [record_of(number, answer) for number, answer in enumerate(answers)]
    predictions = [
        MomentPrediction(number, tuple((moment.start_s, moment.end_s, moment.score) for moment in found))
        for number, found in enumerate(moments)
    ]
    brief = evaluate_moments(predictions, truth, clip_length_s=CLIP_LENGTH_S).brief
    return {"R1@0.5": brief["MR-full-R1@0.5"], "R1@0.7": brief["MR-full-R1@0.7"], "mAP": brief["MR-full-mAP"]}


def record_of(number: int, answer: Answered) -> MomentRecord:
    """The truth of one query."""
    return MomentRecord(
        number,
        answer.query.text,
        answer.scene.name,
        answer.scene.duration_s,
        tuple((start * CLIP_LENGTH_S, end * CLIP_LENGTH_S) for start, end in answer.query.windows),
    )


def _is_short(answer: Answered) -> bool:
    return all(end - start < SHORT * answer.scene.num_clips for start, end in answer.query.windows)


def _has_distractor(answer: Answered) -> bool:
    return any(answer.query.description.shares_two(event.combination) for event in answer.scene.events)


def _is_held_out(answer: Answered) -> bool:
    description = answer.query.description
    return (description.colour, description.shape, description.motion) in HELD_OUT


__all__ = ["Answered", "answer_scene", "evaluate", "on_whole_clips"]
