"""`momentdetr data check` on small data sets with one thing wrong each, laid out by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from momentdetr.cli import main
from momentdetr.errors import BadInput
from momentdetr.retrieval.data_check import check_data

CLIPS = 15
SPEC = {
    "video": [{"name": "slowfast", "dim": 6, "model": "official"}, {"name": "clip", "dim": 4, "model": "official"}],
    "text": {"name": "clip_text", "dim": 5, "model": "official"},
    "clip_length_s": 2.0,
    "max_clips": 20,
    "max_words": 8,
}


def line(split: str, number: int) -> dict[str, Any]:
    return {
        "qid": {"train": 0, "val": 100, "test": 200}[split] + number,
        "query": f"query {number}",
        "vid": f"{split}{number // 2}",
        "duration": 30.0,
        "relevant_windows": [[2.0, 9.5]],
    }


def save(folder: Path, split: str, lines: list[dict[str, Any]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))


def write_rows(path: Path, key: str, rows: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{key: rows})


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two splits of four queries about two videos each, in Lighthouse's layout, and the configuration."""
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = [line(split, number) for number in range(4)]
        save(tmp_path, split, lines)
        for one in lines:
            write_rows(tmp_path / "clip_text" / f"qid{one['qid']}.npz", "last_hidden_state", dice.normal(size=(6, 5)))
            write_rows(tmp_path / "slowfast" / f"{one['vid']}.npz", "features", dice.normal(size=(CLIPS, 6)))
            write_rows(tmp_path / "clip" / f"{one['vid']}.npz", "features", dice.normal(size=(CLIPS, 4)))
    data = {"dataset": "charades", "root": str(tmp_path), "layout": "lighthouse"}
    data |= {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "val")}
    values = {"data": data, "features": SPEC, "model": {"preset": "qd_detr"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def faults(world: Path, *overrides: str) -> list[str]:
    return check_data(world / "config.yaml", overrides=overrides).faults


def test_what_is_right(world: Path) -> None:
    report = check_data(world / "config.yaml")
    assert report.faults == []
    text = "\n".join(report.lines())
    for expected in (
        "4 queries of 2 videos",
        "train and val share no video",
        "videos: 2 of 2 can be used",
        "queries: 4 of 4 can be used",
        "rows a video: 15 to 15, median 15; clips of 2 s",
        "slowfast: rows of length",
        "not normalised",
        "protocol charades: MR-full-R1@0.3",
        "no faults",
    ):
        assert expected in text


def rewrite(world: Path, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    (key, rows), *_ = np.load(world / name).items()
    np.savez(world / name, **{key: change(rows)})


def with_nan(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(np.arange(len(rows))[:, None] == 3, np.nan, rows)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clip/train0.npz", with_nan, "row 3 of features holds NaN"),
        ("clip/train0.npz", lambda rows: rows[:, :3], "clip has shape (15, 3), expected (length, 4)"),
        ("clip/train0.npz", lambda rows: rows[:10], "streams of train0 have (15, 10) rows"),
        ("clip/train0.npz", lambda rows: rows.astype(object), "holds Python objects"),
        ("clip/train0.npz", lambda rows: rows.astype(int), "expected floating-point rows"),
        ("clip/train0.npz", lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True), "normalised in 1 files"),
        ("clip_text/qid2.npz", with_nan, "row 3 of last_hidden_state holds NaN"),
        ("clip_text/qid2.npz", lambda rows: rows[:, :2], "text has shape (6, 2), expected (length, 5)"),
    ],
)
def test_each_fault_of_a_file_is_named(world: Path, name: str, change: Any, message: str) -> None:
    rewrite(world, name, change)
    (fault,) = faults(world)
    assert message in fault
    assert fault.startswith("features, train")


@pytest.mark.parametrize(
    ("name", "message"),
    [("clip/train1.npz", "vid 'train1'"), ("slowfast/val0.npz", "vid 'val0'"), ("clip_text/qid101.npz", "qid '101'")],
)
def test_what_is_missing_is_named(world: Path, name: str, message: str) -> None:
    (world / name).unlink()
    (fault,) = faults(world)
    assert message in fault
    assert "no features" in fault


def test_another_clock(world: Path) -> None:
    (fault, again) = faults(world, "features.clip_length_s=1.0")
    assert "2 of 2 videos are on another clock than clips of 1 s (the median is 2 s a row)" in fault
    assert "features, val" in again


def test_all_that_is_cut_is_told(world: Path) -> None:
    report = check_data(world / "config.yaml", overrides=("features.max_clips=10", "features.max_words=5"))
    assert report.faults == []
    text = "\n".join(report.remarks)
    assert "2 videos have more than 10 clips and are cut to their first 20 s: train0, train1" in text
    assert "4 queries have more than 5 tokens and are cut: 100, 101, 102, 103" in text


def test_rows_of_zeros_are_remarked(world: Path) -> None:
    rewrite(world, "clip/val1.npz", lambda rows: rows * (np.arange(len(rows)) > 2)[:, None])
    assert any(
        "rows of zeros in 1 files: val1 (clip)" in remark for remark in check_data(world / "config.yaml").remarks
    )


def test_leaks_between_splits(world: Path) -> None:
    save(world, "val", [line("val", 0), {**line("train", 1), "qid": 101}])
    write_rows(world / "clip_text" / "qid101.npz", "last_hidden_state", np.ones((3, 5)))
    (fault,) = faults(world)
    assert "train and val share 1 videos and 1 queries about them: train0" in fault


def test_validation_on_the_test_split(world: Path) -> None:
    (world / "val.jsonl").rename(world / "charades_test_release.jsonl")
    (fault,) = faults(world, f"data.val={world / 'charades_test_release.jsonl'}")
    assert "is a test split of charades" in fault
    assert "hold_out" in fault


def test_faulty_annotations_and_missing_files(world: Path) -> None:
    save(world, "train", [line("train", 0), {**line("train", 1), "relevant_windows": [[9, 3]]}])
    (world / "val.jsonl").unlink()
    first, second = faults(world)
    assert "line 2: qid 1: window [9.0, 3.0] does not end after it starts" in first
    assert "val.jsonl: cannot be read" in second


def test_a_sample_reads_less_and_says_so(world: Path) -> None:
    (world / "clip" / "train1.npz").unlink()
    report = check_data(world / "config.yaml", sample=1)
    assert report.faults == []
    assert "only 1 of 2 videos and 1 of 4 queries were read" in "\n".join(report.remarks)


def test_highlights_have_a_row_a_clip(world: Path, tmp_path: Path) -> None:
    label = [[3.0] * 20 for _ in range(CLIPS)]
    videos = [
        {"qid": q, "query": "q", "vid": v, "duration": CLIPS, "domain": "BK", "label": label}
        for q, v in ((0, "train0"), (2, "train1"))
    ]
    save(tmp_path, "train", videos)
    overrides = ["data.dataset=tvsum", "data.val=null", "features.clip_length_s=7.0"]
    assert faults(world, *overrides) == []
    save(tmp_path, "train", [{**one, "duration": CLIPS - 6, "label": label[6:]} for one in videos])
    (fault,) = faults(world, *overrides)
    assert "2 videos do not have a row an annotated clip: train0 (15 rows, 9 clips)" in fault


def manifest(world: Path) -> dict[str, Any]:
    splits = {name: {"file": f"{name}.jsonl", "queries": 4} for name in ("train", "val")}
    features = {"both": {"root": ".", "layout": "lighthouse", "spec": SPEC}}
    about = {"dataset": "charades", "title": "t", "paper": "p", "licence": "l"}
    return {**about, "splits": splits, "features": features}


def test_a_folder_with_a_manifest(world: Path) -> None:
    (world / "manifest.json").write_text(json.dumps(manifest(world)))
    report = check_data(world)
    assert report.faults == []
    assert ("both, val", "queries: 4 of 4 can be used") in report.facts
    save(world, "val", [line("val", 0)])
    assert any("has 1 queries, 4 were released" in remark for remark in check_data(world).remarks)


def test_a_folder_need_not_hold_all_that_was_published(world: Path) -> None:
    about = manifest(world)
    about["splits"]["test"] = {"file": "test.jsonl"}
    about["features"]["other"] = {"root": ".", "layout": "sg_detr", "spec": SPEC}
    (world / "manifest.json").write_text(json.dumps(about))
    report = check_data(world)
    assert report.faults == []
    assert {"annotations that are not there: test", "features that are not there: other"} <= set(report.remarks)
    (world / "clip").rename(world / "elsewhere")
    assert any("there are no features" in fault for fault in check_data(world).faults)


def test_a_file_that_is_not_the_released_one(world: Path) -> None:
    about = manifest(world)
    digest = hashlib.sha256((world / "train.jsonl").read_bytes()).hexdigest()
    about["splits"]["train"]["sha256"], about["splits"]["val"]["sha256"] = digest, digest
    (world / "manifest.json").write_text(json.dumps(about))
    (remark,) = check_data(world).remarks
    assert "val.jsonl: is not the file that was released" in remark


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "imagenet"}, "unknown data set"),
        ({"splits": {"train": {"flie": "x"}}}, "flie"),
        ({"features": {"a": {"root": ".", "layout": "none", "spec": SPEC}}}, "unknown feature layout"),
        ({"features": {"a": {"root": ".", "layout": "lighthouse", "spec": {}}}}, "features 'a'"),
    ],
)
def test_manifests_that_cannot_be_used(world: Path, change: dict[str, Any], message: str) -> None:
    (world / "manifest.json").write_text(json.dumps({**manifest(world), **change}))
    with pytest.raises(BadInput, match=message):
        check_data(world)


def test_no_manifest_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"manifest\.json as in data/NAME"):
        check_data(tmp_path)
    with pytest.raises(BadInput, match="cannot be read"):
        check_data(tmp_path / "none.yaml")


def test_the_command(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(world / "config.yaml")]) == 0
    assert "no faults" in capsys.readouterr().out
    assert main(["data", "check", str(world / "config.yaml"), "--json", "--set", "features.clip_length_s=1"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert len(document["faults"]) == 2
    assert main(["data", "check", str(world / "none.yaml")]) == 2
    assert "error:" in capsys.readouterr().err
