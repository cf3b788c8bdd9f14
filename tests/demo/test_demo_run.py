"""The shipped model: that it is there, answers, and does as well as docs/demo.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from momentdetr.demo import run
from momentdetr.demo.shipping import MAX_BYTES
from momentdetr.search.loading import DEMO_FOLDER


def test_shipped_files_are_small() -> None:
    files = [path for path in DEMO_FOLDER.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.json", "model.safetensors", "open_clip_model.safetensors"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_the_demo_answers_five_queries_and_draws_them(tmp_path: Path) -> None:
    made = run.demo(tmp_path)
    assert len(made.rows) == 5
    assert [bool(row.truth_s) for row in made.rows] == [True] * 4 + [False]
    assert made.video.stat().st_size > 0
    assert made.picture.read_bytes().startswith(b"\x89PNG")
    assert all(row.right for row in made.rows)
    assert run.check() == []


@pytest.mark.slow
def test_a_fresh_world_is_answered_as_it_should_be() -> None:
    """The goals of the embedded model."""
    scores = run.evaluate(seed=77)
    assert scores["R1@0.5"] >= 90
    assert scores["R1@0.7"] >= 80
    assert scores["mAP"] >= 75
    assert scores["mAP"] >= scores["baseline"]["mAP"] + 15
    assert scores["AUROC"] >= 95
