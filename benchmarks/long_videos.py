"""What windows cost: videos of the moving-shapes world joined end to end, searched with several strides and merges.

    python benchmarks/long_videos.py --seed 5 --films 6 --scenes 12

Every film is SCENES videos long (about 28 s each) and is asked what each of them was asked; a query's truth is every
place of the film where it is true. Prints a table: stride, merge, R1@0.5, R1@0.7, mAP (percent), windows per film. The
last line is the upper bound: the same queries asked of their own video alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from momentdetr import load
from momentdetr.datasets.predictions import MomentPrediction
from momentdetr.datasets.records import MomentRecord
from momentdetr.demo.footage import shoot
from momentdetr.demo.planning import make_video
from momentdetr.demo.scene import CLIP_LENGTH_S, Event, Query, Scene, windows_of
from momentdetr.evaluation.moments import evaluate_moments
from momentdetr.search.encoding import EncodedVideo
from momentdetr.search.retriever import Retriever, views_of
from momentdetr.search.stitch import Span, View, stitch
from momentdetr.search.windows import Window, cut

TOP_K = 10


@dataclass(frozen=True)
class Film:
    """Scenes end to end, their features, and for each query where in the film it is true (clips)."""

    video: EncodedVideo
    queries: tuple[Query, ...]
    truth: tuple[tuple[tuple[int, int], ...], ...]


def join(scenes: Sequence[Scene], features: Sequence[torch.Tensor], retriever: Retriever) -> Film:
    """One film of several scenes."""
    events: list[Event] = []
    asked: list[Query] = []
    offset = 0
    for scene in scenes:
        events += [replace(event, start=event.start + offset, end=event.end + offset) for event in scene.events]
        asked += [query for query in scene.queries if query.windows]
        offset += scene.num_clips
    truth = tuple(windows_of(query.description, tuple(events)) for query in asked)
    joined = torch.cat(list(features))
    assert len(joined) == offset
    video = EncodedVideo(scenes[0].name, joined, CLIP_LENGTH_S, offset * CLIP_LENGTH_S, retriever.spec)
    return Film(video, tuple(asked), truth)


def nothing(views: Sequence[View]) -> list[Span]:
    """Every window's moments, sorted."""
    return [Span(view.start, view.end, view.score) for view in sorted(views, key=lambda view: -view.score)]


def suppress(threshold: float) -> Callable[[Sequence[View]], list[Span]]:
    """Non-maximum suppression: a moment goes if a better one overlaps it with more than `threshold` IoU."""

    def run(views: Sequence[View]) -> list[Span]:
        kept: list[Span] = []
        for span in nothing(views):
            if all(_iou(span, other) <= threshold for other in kept):
                kept.append(span)
        return kept

    return run


def _iou(a: Span, b: Span) -> float:
    shared = max(min(a.end, b.end) - max(a.start, b.start), 0.0)
    return shared / (a.end - a.start + b.end - b.start - shared)


def score(films: Sequence[Film], found: Sequence[Sequence[list[Span]]]) -> dict[str, float]:
    """R1 and mAP of all films' queries; windows are rounded to clips as the official evaluation does."""
    records: list[MomentRecord] = []
    predictions: list[MomentPrediction] = []
    for film, answers in zip(films, found, strict=True):
        for query, truth, spans in zip(film.queries, film.truth, answers, strict=True):
            qid = len(records)
            windows = tuple((start * CLIP_LENGTH_S, end * CLIP_LENGTH_S) for start, end in truth)
            records.append(MomentRecord(qid, query.text, film.video.name, film.video.duration_s, windows))
            rounded = [(round(span.start), max(round(span.end), round(span.start) + 1), span.score) for span in spans]
            moments = tuple(
                (start * CLIP_LENGTH_S, end * CLIP_LENGTH_S, value) for start, end, value in rounded[:TOP_K]
            )
            predictions.append(MomentPrediction(qid, moments))
    brief = evaluate_moments(predictions, records, clip_length_s=CLIP_LENGTH_S).brief
    return {name: brief[f"MR-full-{name}"] for name in ("R1@0.5", "R1@0.7", "mAP")}


def views(retriever: Retriever, film: Film, windows: Sequence[Window]) -> list[list[View]]:
    """What every window reports, per query."""
    answers = retriever.answers(film.video, windows, [query.text for query in film.queries])
    return [
        [view for window, answer in zip(windows, per_query, strict=True) for view in views_of(window, answer)]
        for per_query in answers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--films", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    retriever = load(options.model, "cpu", cache=False)
    preprocessing = retriever.spec.video[0].preprocessing
    assert preprocessing is not None
    films, alone = [], []
    for film in range(options.films):
        scenes = [make_video(options.seed, film * options.scenes + i) for i in range(options.scenes)]
        features = [retriever.encoder.encode_frames(shoot(scene, preprocessing.image_size)) for scene in scenes]
        films.append(join(scenes, features, retriever))
        alone += [join([scene], [rows], retriever) for scene, rows in zip(scenes, features, strict=True)]
    size = retriever.spec.max_clips
    merges = {"none": nothing, "NMS 0.5": suppress(0.5), "NMS 0.7": suppress(0.7), "stitch": stitch}
    print(f"{options.films} films of {options.scenes} scenes, seed {options.seed}, windows of {size} clips")
    print(f"{'stride':>8} {'merge':>8} {'R1@0.5':>7} {'R1@0.7':>7} {'mAP':>7} {'windows':>8}")
    for stride in (size, 3 * size // 4, size // 2, size // 4):
        seen = [views(retriever, film, cut(len(film.video.features), size, stride)) for film in films]
        count = len(cut(len(films[0].video.features), size, stride))
        for name, merge in merges.items():
            figures = score(films, [[merge(per_query) for per_query in film] for film in seen])
            print(f"{stride:>8} {name:>8} " + " ".join(f"{value:7.2f}" for value in figures.values()) + f" {count:>8}")
    seen = [views(retriever, film, cut(len(film.video.features), size)) for film in alone]
    figures = score(alone, [[nothing(per_query) for per_query in film] for film in seen])
    print(f"{'-':>8} {'alone':>8} " + " ".join(f"{value:7.2f}" for value in figures.values()) + f" {1:>8}")


if __name__ == "__main__":
    main()
