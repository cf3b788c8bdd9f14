"""Oracle: the colours of the frames, one a second, read back from the clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from momentdetr.errors import BadInput, BadVideo, StoreError
from momentdetr.features.video import read_clips
from momentdetr.features.video_write import write_video
from momentdetr.retrieval.types import Moment
from momentdetr.search.results import QueryResult, SearchResult


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Ten seconds, each 25 grey levels brighter than the one before."""
    film = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(film, (np.full((64, 64, 3), 25 * (i // 10), np.uint8) for i in range(100)), 10)
    answers = (
        QueryResult(
            "Ein Hund / läuft: *../\\..*", (Moment("film", 2.0, 5.0, 0.9), Moment("film", 9.0, 9.5, 0.1)), (), 0.1
        ),
        QueryResult("???", (Moment("film", 0.0, 1.0, 0.5),), (), 0.1),
    )
    return SearchResult("film", 10.0, 1.0, answers, film)


def seconds(path: Path) -> list[int]:
    """Which second each second of a clip is from."""
    frames = [frame for batch in read_clips(path, clip_length_s=1.0) for frame in batch.frames]
    return [round(float(frame.mean()) / 25) for frame in frames]


def test_each_moment_becomes_a_file_of_its_frames(result: SearchResult, tmp_path: Path) -> None:
    clips = result.save_clips(tmp_path / "new" / "clips")
    assert [clip.name for clip in clips] == [
        "1-1_ein-hund-läuft_2.0s-5.0s.mp4",
        "1-2_ein-hund-läuft_9.0s-9.5s.mp4",
        "2-1_query_0.0s-1.0s.mp4",
    ]
    assert sorted(clips) == sorted((tmp_path / "new" / "clips").iterdir())
    assert seconds(clips[0]) == [2, 3, 4]
    assert seconds(clips[2]) == [0]


def test_clips_need_a_file(result: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file to cut"):
        replace(result, path=None).save_clips(tmp_path)
    with pytest.raises(BadVideo, match=r"gone\.mp4"):
        replace(result, path=tmp_path / "gone.mp4").save_clips(tmp_path / "clips")


def test_a_folder_that_cannot_be_made_is_one_clear_error(result: SearchResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(StoreError, match="cannot write"):
        result.save_clips(tmp_path / "file")
