"""Oracles: the annotations themselves, the readers of published features, and the simulator that came first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simulated import simulate, statistics

from momentdetr.features.layouts import read_array
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.feature_files import read_published

SPEC = FeatureSpec((Stream("clip", 512, "official"),), Stream("clip_text", 512, "official"), 2.0)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes(annotations: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        simulate(annotations, tmp_path / name, train=20, val=10, seed=seed)
    one, again, other = (bytes_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert set(one) == set(other)
    assert all(one[name] != other[name] for name in one if name.endswith(".npz"))


def test_the_readers_of_published_features_read_it(annotations: Path, tmp_path: Path) -> None:
    simulate(annotations, tmp_path, train=20, val=0, seed=0)
    lines = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 60
    names, qids = [line["vid"] for line in lines], [str(line["qid"]) for line in lines]
    videos, texts = read_published(tmp_path, "moment_detr_clip", names, qids, SPEC)
    assert {len(video) for video in videos.values()} == {75}
    assert {len(text) for text in texts.values()} == {10}  # eight words and two marks


def test_clips_that_are_relevant_look_like_the_query(annotations: Path, tmp_path: Path) -> None:
    simulate(annotations, tmp_path, train=20, val=60, seed=0)
    found = statistics(tmp_path)
    assert found["relevant above other"] > 0.9
    assert found["similarity, relevant clips"] > 0.3
    assert abs(found["similarity, other clips"]) < 0.1
    assert found["norm of a clip"] == pytest.approx(10, abs=0.01)


def test_a_video_is_the_same_whatever_else_is_written(annotations: Path, tmp_path: Path) -> None:
    simulate(annotations, tmp_path / "few", train=4, val=4, seed=0)
    simulate(annotations, tmp_path / "many", train=40, val=40, seed=0)
    for name, data in bytes_of(tmp_path / "few" / "clip_features").items():
        assert (tmp_path / "many" / "clip_features" / name).read_bytes() == data


@pytest.mark.slow
def test_it_is_as_hard_as_the_reference(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means over three seeds each: within one simulator, seeds differ by up to .02."""
    reference = shared_data.parent / "tools" / "simulate_qvhighlights.py"
    if not reference.is_file():
        pytest.skip(f"not run: needs {reference}")
    official = shared_data / "annotations" / "qvhighlights"
    found: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}
    for seed in (1, 2, 3):
        theirs, ours = tmp_path / f"reference{seed}", tmp_path / f"ours{seed}"
        arguments = ("--annotations", official, "--out", theirs, "--train", 20, "--val", 400, "--seed", seed)
        subprocess.run([sys.executable, str(reference), *map(str, arguments)], check=True, capture_output=True)
        simulate(official, ours, train=20, val=400, seed=seed)
        found["reference"].append(statistics(theirs))
        found["ours"].append(statistics(ours))
        assert set(bytes_of(theirs)) == set(bytes_of(ours))
        for path in ours.rglob("*.npz"):
            for key in ("features",) if path.parent.name == "clip_features" else ("last_hidden_state", "pooler_output"):
                one, two = (read_array(root / path.relative_to(ours), key) for root in (ours, theirs))
                assert (one.shape, one.dtype) == (two.shape, two.dtype), path.name
    means = {
        who: {name: float(np.mean([one[name] for one in many])) for name in many[0]} for who, many in found.items()
    }
    with capsys.disabled():
        print()
        for name, value in means["reference"].items():
            print(f"  {name:28} reference {value:8.4f}  ours {means['ours'][name]:8.4f}")
    for name, value in means["reference"].items():
        assert means["ours"][name] == pytest.approx(value, abs=0.015), name
