"""One picture of a search: the video's frames, and below them each query's saliency curve and moments."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momentdetr.errors import BadInput, BadVideo
from momentdetr.search.files import atomic
from momentdetr.search.formats import timestamp

if TYPE_CHECKING:
    from momentdetr.retrieval.types import Moment
    from momentdetr.search.results import QueryResult, SearchResult

NUM_FRAMES = 10
FRAME_SIZE = 160
CURVE, FOUND, TRUE, INK = "#4c566a", "#2a78d6", "#2e9e5b", "#12305c"


def plot(result: SearchResult, path: Path, *, truth: Mapping[str, Sequence[tuple[float, float]]] | None = None) -> Path:
    """Draw a result into a picture file.

    Args:
        result: what was found. Frames are shown if its file can still be read.
        path: PNG, SVG, PDF, ... by its suffix; written atomically.
        truth: per query the true windows, seconds, where they are known.

    Returns:
        `path`.

    Raises:
        BadInput: no such picture format, or nothing to draw.
        StoreError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_format(path)
    if not len(result):
        raise BadInput("the result has no query, so there is nothing to draw")
    frames = _frames(result)
    heights = [1.0] * (frames is not None) + [1.5] * len(result)
    figure = Figure(figsize=(12, 0.8 + sum(heights)), dpi=120, layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    if frames is not None:
        _draw_frames(axes[0], frames, result.duration_s)
    for answer, axis in zip(result, axes[len(heights) - len(result) :], strict=True):
        _draw_answer(axis, result, answer, (truth or {}).get(answer.query, ()))
    axes[-1].set_xlabel("time")
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script that the font lacks shows as boxes
        figure.savefig(temporary)
    return path


def check_format(path: Path) -> None:
    """Check that pictures of this suffix can be written.

    Raises:
        BadInput: names the suffix and those that can.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in known:
        raise BadInput(f"{path}: cannot draw a {path.suffix or 'suffix-less'} file, expected one of {', '.join(known)}")


def _frames(result: SearchResult) -> Any:
    """Frames of the video (N, FRAME_SIZE, FRAME_SIZE, 3), evenly spaced; None if it cannot be read any more."""
    from momentdetr.features.video import read_frames

    if result.path is None:
        return None
    times = [(i + 0.5) * result.duration_s / NUM_FRAMES for i in range(NUM_FRAMES)]
    try:
        return read_frames(result.path, times, image_size=FRAME_SIZE, salvage=not result.complete).frames
    except BadVideo:  # damaged at one of these places, or gone: the curves are worth showing without
        return None


def _draw_frames(axis: Any, frames: Any, duration_s: float) -> None:
    width = duration_s / len(frames)
    for i, frame in enumerate(frames):
        axis.imshow(frame, extent=((i + 0.02) * width, (i + 0.98) * width, 0, 1), aspect="auto")
    axis.set(xlim=(0, duration_s), ylim=(0, 1))
    axis.set_axis_off()


def _draw_answer(
    axis: Any, result: SearchResult, answer: QueryResult, true_windows: Sequence[tuple[float, float]]
) -> None:
    centres = [time + result.clip_length_s / 2 for time in result.times_s]
    axis.plot(centres, answer.saliency, color=CURVE, linewidth=1.2)
    if answer.saliency_is_probability:
        axis.set_ylim(-0.04, 1.04)
    for start_s, end_s in true_windows:
        axis.axvspan(start_s, end_s, ymin=0, ymax=0.07, color=TRUE)
    best = max((moment.score for moment in answer.moments), default=0.0)
    strength = 0.12 if answer.is_probably_absent else 0.45
    for rank, moment in enumerate(answer.moments):
        alpha = strength * max(moment.score / best, 0.0) if best > 0 else 0.0  # copies and guesses fade away
        axis.axvspan(moment.start_s, moment.end_s, ymin=0.07, color=FOUND, alpha=alpha, linewidth=0)
        if rank == 0:
            _label(axis, moment, result.duration_s)
    absent = "  (probably not in this video)" if answer.is_probably_absent else ""
    shown = answer.query if len(answer.query) <= 110 else answer.query[:109] + "…"
    if true_windows:
        axis.set_title("green: true, blue: found", loc="right", fontsize=8, color=INK)
    # Queries are any text: a dollar sign must not start a formula.
    axis.set_title(" ".join(shown.split()) + absent, loc="left", fontsize=10, parse_math=False)
    axis.set(xlim=(0, result.duration_s), yticks=[])
    axis.xaxis.set_major_formatter(lambda seconds, _: timestamp(max(seconds, 0.0)))
    for side in ("top", "left", "right"):
        axis.spines[side].set_visible(False)


def _label(axis: Any, moment: Moment, duration_s: float) -> None:
    """Times and score at the top of a moment, to the side where there is room."""
    late = moment.start_s > 0.7 * duration_s
    text = axis.annotate(
        f"{timestamp(moment.start_s)} - {timestamp(moment.end_s)}  {moment.score:.2f}",
        (moment.end_s if late else moment.start_s, 0.96),
        xycoords=("data", "axes fraction"),
        ha="right" if late else "left",
        va="top",
        fontsize=8,
        color=INK,
    )
    text.set_in_layout(False)  # else a label beyond the axis would squeeze it
