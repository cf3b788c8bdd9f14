"""Annotations in the official format, and the folder of the benchmarks on the path of imports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))


@pytest.fixture(scope="session")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the official format: 60 queries, two a video, each with a window of its own."""
    folder = tmp_path_factory.mktemp("annotations")
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(200)]
    for split, first in (("train", 0), ("val", 1000)):
        lines = []
        for number in range(60):
            start = int(rng.integers(0, 60)) // 20 * 20 + (number % 2) * 70
            clips = list(range(start // 2, start // 2 + 5))
            row = {
                "qid": first + number,
                "query": " ".join(rng.choice(words, 8)),
                "duration": 150,
                "vid": f"{split}{number // 2}_0.0_150.0",
                "relevant_windows": [[start, start + 10]],
                "relevant_clip_ids": clips,
                "saliency_scores": [[2, 3, 4]] * 5,
            }
            lines.append(json.dumps(row) + "\n")
        (folder / f"highlight_{split}_release.jsonl").write_text("".join(lines), "utf-8")
    return folder
