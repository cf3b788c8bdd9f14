"""Windows out of similarity curves, against curves whose windows are plain to see."""

from pathlib import Path

import numpy as np
import pytest

from momentdetr.datasets.records import MomentRecord
from momentdetr.demo.baseline import (
    GRID,
    Settings,
    mean_ap,
    read_settings,
    search_settings,
    similarity,
    windows,
    write_settings,
)

CURVE = np.array([0.1, 0.1, 0.8, 0.8, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1])


def test_clips_above_the_threshold_are_windows() -> None:
    assert windows(CURVE, Settings(1, False, 0.5, 0)) == [
        (2.5, 4.0, pytest.approx(0.9)),
        (1.0, 2.0, pytest.approx(0.8)),
    ]


def test_small_gaps_are_joined() -> None:
    assert windows(CURVE, Settings(1, False, 0.5, 1)) == [(1.0, 4.0, pytest.approx(CURVE[2:8].mean()))]


def test_a_relative_threshold_does_not_mind_scale_and_offset() -> None:
    settings = Settings(1, True, 0.5, 0)
    plain, moved = windows(CURVE, settings), windows(CURVE * 0.1 + 7, settings)
    assert [window[:2] for window in plain] == [window[:2] for window in moved]


def test_smoothing_fills_a_hole() -> None:
    assert len(windows(CURVE, Settings(3, False, 0.5, 0))) == 1


def test_nothing_above_the_threshold_gives_nothing() -> None:
    assert windows(CURVE, Settings(1, False, 0.95, 0)) == []


def test_similarity_is_the_cosine() -> None:
    image = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]], np.float32)
    assert similarity(image, np.array([5.0, 0.0], np.float32)) == pytest.approx([1, 0, 2**-0.5])


def test_the_grid_search_finds_the_settings_that_fit(tmp_path: Path) -> None:
    records = [MomentRecord(0, "q", "v", 5.0, ((1.0, 2.0), (2.5, 4.0)))]
    few = [Settings(1, False, 0.5, 1), Settings(1, False, 0.5, 0), Settings(3, False, 0.5, 0)]
    settings, best = search_settings(records, [CURVE], few)
    assert best == 100
    assert mean_ap(records, [CURVE], settings) == 100
    assert mean_ap(records, [CURVE], Settings(1, False, 0.5, 1)) < 100
    assert settings == few[1]
    assert settings in GRID
    write_settings(tmp_path / "baseline.json", settings, best)
    assert read_settings(tmp_path / "baseline.json") == settings
