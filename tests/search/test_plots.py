"""Oracle: the picture's own pixels, measured along the time axis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from momentdetr.errors import BadInput, StoreError
from momentdetr.features.video_write import write_video
from momentdetr.retrieval.types import Moment
from momentdetr.search.plots import plot
from momentdetr.search.results import QueryResult, SearchResult

RESULT = SearchResult(
    video="film",
    duration_s=100.0,
    clip_length_s=2.0,
    queries=(QueryResult("it costs $5 and $6 \n[red]", (Moment("film", 25.0, 50.0, 1.0),), (0.5,) * 50, 0.9),),
)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def extent(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int) -> tuple[float, float]:
    """First and last column that hold a colour, as fractions of the time axis (the longest dark line)."""
    line = max((picture.sum(2) < 60), key=lambda row: row.sum())
    first, last = np.flatnonzero(line)[[0, -1]]
    columns = np.flatnonzero((abs(picture - np.array(colour)).max(2) <= tolerance).sum(0) > 3)
    return (columns[0] - first) / (last - first), (columns[-1] - first) / (last - first)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("absent", "opacity"), [(0.1, 0.45), (0.9, 0.12)], ids=["believed", "probably absent"])
def test_moments_and_truth_stand_at_their_times(tmp_path: Path, absent: float, opacity: float) -> None:
    weak = Moment("film", 5.0, 15.0, 0.01)  # a guess, too faint to be seen
    answer = replace(RESULT[0], absent=absent, moments=(*RESULT[0].moments, weak))
    path = plot(replace(RESULT, queries=(answer,)), tmp_path / "picture.png", truth={answer.query: [(60.0, 80.0)]})
    picture = pixels(path)
    red, green, blue = (round(255 - opacity * (255 - value)) for value in (0x2A, 0x78, 0xD6))
    assert extent(picture, (red, green, blue), 4) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01))
    assert extent(picture, (0x2E, 0x9E, 0x5B), 4) == (pytest.approx(0.6, abs=0.01), pytest.approx(0.8, abs=0.01))


@pytest.mark.filterwarnings("error")
def test_frames_of_the_file_are_shown_and_a_lost_file_is_no_error(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_video(film, (np.full((64, 64, 3), (250, 20, 30), np.uint8) for _ in range(20)), 10)
    answer = replace(RESULT[0], moments=(Moment("film", 1.8, 2.0, 0.5),))
    shown = replace(RESULT, path=film, duration_s=2.0, queries=(answer,))
    red = (250, 20, 30)
    with_frames = pixels(plot(shown, tmp_path / "with.png"))
    assert (abs(with_frames - np.array(red)).max(2) < 12).sum() > 10_000
    film.unlink()
    without = pixels(plot(shown, tmp_path / "without.png"))
    assert (abs(without - np.array(red)).max(2) < 12).sum() == 0


@pytest.mark.parametrize("name", ["picture.svg", "picture.pdf", "picture.JPG"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    assert plot(RESULT, tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("name", ["picture", "picture.docx", "picture.mp4"])
def test_what_is_no_picture_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="expected one of"):
        plot(RESULT, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_result_without_queries_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no query"):
        plot(replace(RESULT, queries=()), tmp_path / "picture.png")


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(StoreError, match="cannot write"):
        plot(RESULT, tmp_path / "file" / "picture.png")
