"""Small real videos, and a page that is being served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

FPS = 10


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float, int], Path]:
    """Draws an H.264 file of that name, length in seconds and grey level; a bar shows how far it has come."""
    from momentdetr.features.video_write import write_video

    folder = tmp_path_factory.mktemp("videos")

    def make(name: str, duration_s: float, grey: int) -> Path:
        num_frames = round(duration_s * FPS)

        def frames() -> Iterator[np.ndarray]:
            for i in range(num_frames):
                frame = np.full((96, 128, 3), grey, np.uint8)
                frame[:, : (128 * i) // num_frames] //= 2
                yield frame

        path = folder / f"{duration_s}-{grey}" / name
        if not path.exists():
            path.parent.mkdir()
            write_video(path, frames(), FPS)
        return path

    return make


@pytest.fixture
def video(make_video: Callable[[str, float, int], Path]) -> Path:
    return make_video("twelve seconds.mp4", 12.0, 200)
