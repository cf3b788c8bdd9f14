"""What `momentdetr demo` does: draw a video, ask it five questions, show the answers beside the truth."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from momentdetr.demo.dataset import write_scene
from momentdetr.demo.evaluation import evaluate
from momentdetr.demo.planning import QUERIES_PER_VIDEO, ask_more, make_video
from momentdetr.demo.scene import CLIP_LENGTH_S, Query, Scene
from momentdetr.errors import MomentDETRError
from momentdetr.search.loading import load
from momentdetr.search.results import QueryResult, SearchResult

KNOWS = (
    "This small model knows the moving-shapes world only: coloured shapes that stay, move, spin, grow, shrink or "
    "blink. For other videos use published weights: momentdetr weights list."
)
SEED = 0
"""Of the video that the demo draws when nobody names another, and that `check` is done on."""
NUM_PRESENT = 4
_IOU = 0.5


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table.

    Args:
        query: the sentence.
        truth_s: true windows (start, end) in seconds; empty if it is not in the video.
        found_s: the best moment, seconds; None if the model says that it is not in the video.
        score: of that moment, or of the best one that was not believed.
        absent: how sure the model is that it is not in the video, in [0, 1].
        right: whether the moment overlaps a true one with IoU 0.5 or more, or rightly was not believed.
    """

    query: str
    truth_s: tuple[tuple[float, float], ...]
    found_s: tuple[float, float] | None
    score: float
    absent: float
    right: bool


@dataclass(frozen=True)
class Demo:
    """What a demo made.

    Args:
        rows: one per query.
        video: the MP4 file that was drawn.
        picture: frames, saliency curves, true and found spans.
        result: the search behind it.
        knows: what must be said about the model.
    """

    rows: tuple[DemoRow, ...]
    video: Path
    picture: Path
    result: SearchResult
    knows: str = KNOWS


def demo(out: str | Path, seed: int = SEED) -> Demo:
    """Draw a video into a folder, ask it five queries of which one is not in it, and draw the answers.

    Args:
        out: gets moving_shapes.mp4 and moving_shapes.png; made if missing.
        seed: another one gives another video.
    """
    from momentdetr.search.plots import plot

    out = Path(out)
    scene = choose_scene(seed)
    video = write_scene(scene, out / "moving_shapes.mp4")
    retriever = load("demo", device="cpu", cache=False)
    result = retriever.search(retriever.encode(video), [query.text for query in scene.queries])
    rows = tuple(_row(query, answer) for query, answer in zip(scene.queries, result, strict=True))
    truth = {row.query: row.truth_s for row in rows}
    picture = plot(result, out / "moving_shapes.png", truth=truth)
    return Demo(rows, video, picture, result)


def choose_scene(seed: int) -> Scene:
    """The first video of a world with four different things to ask for, and five queries, the last one absent."""
    for index in range(10_000):
        scene = make_video(seed, index)
        more = ask_more(scene, np.random.default_rng(seed)).queries
        present = _different([query for query in more if query.windows])
        if len(present) >= NUM_PRESENT:
            return replace(scene, queries=(*present[:NUM_PRESENT], scene.queries[QUERIES_PER_VIDEO]))
    raise AssertionError(f"world {seed} has no video with {NUM_PRESENT} things to ask for")


def _different(queries: Sequence[Query]) -> list[Query]:
    """Queries of which no two mean the same windows."""
    kept: list[Query] = []
    for query in queries:
        if all(query.windows != other.windows for other in kept):
            kept.append(query)
    return kept


def _row(query: Query, answer: QueryResult) -> DemoRow:
    truth = tuple((start * CLIP_LENGTH_S, end * CLIP_LENGTH_S) for start, end in query.windows)
    best = answer.moments[0] if answer.moments else None
    found = None if best is None or answer.is_probably_absent else (best.start_s, best.end_s)
    if truth:
        right = found is not None and max(_overlap(found, window) for window in truth) >= _IOU
    else:
        right = found is None
    return DemoRow(query.text, truth, found, best.score if best else 0.0, answer.absent, right)


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """IoU of two spans."""
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def check() -> list[str]:
    """Run the demo on its own video in a temporary folder.

    Returns:
        What is wrong, in words; empty if all is right.
    """
    with tempfile.TemporaryDirectory(prefix="momentdetr-") as folder:
        try:
            made = demo(folder)
        except MomentDETRError as error:
            return [str(error)]
        problems = [_complaint(row) for row in made.rows if not row.right]
        for path in (made.video, made.picture):
            if not path.is_file() or not path.stat().st_size:
                problems.append(f"{path.name} was not written")
    return problems


def _complaint(row: DemoRow) -> str:
    said = "not in the video" if row.found_s is None else f"{row.found_s[0]:.1f} - {row.found_s[1]:.1f} s"
    truth = ", ".join(f"{start:.1f} - {end:.1f} s" for start, end in row.truth_s) or "not in the video"
    return f"{row.query!r}: answered {said}, expected {truth}"


__all__ = ["KNOWS", "Demo", "DemoRow", "check", "choose_scene", "demo", "evaluate"]
