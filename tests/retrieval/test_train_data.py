"""Splits of a run, on small files; what a run learns from is judged by the rules of its data set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from momentdetr.datasets.records import MomentRecord
from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.feature_files import open_published
from momentdetr.retrieval.train import train
from momentdetr.retrieval.train_data import DataConfig, hold_out, read_splits, refuse_test_split

DEBUG = Path(__file__).parents[2] / "configs" / "retrieval" / "debug.yaml"
SPEC = FeatureSpec.from_dict(yaml.safe_load(DEBUG.read_text())["features"])
CLIPS = 12


def record(qid: int, video: str, query: str = "q") -> MomentRecord:
    return MomentRecord(qid, query, video, 24.0, ((2.0, 8.0),))


def moment(qid: int, video: str) -> dict[str, Any]:
    return {"qid": qid, "query": f"q{qid}", "vid": video, "duration": 24.0, "relevant_windows": [[2.0, 8.0]]}


def highlights(video: str, domain: str) -> dict[str, Any]:
    label = [[1.0 + (clip % 5 + annotator) % 5 for annotator in range(20)] for clip in range(CLIPS)]
    return {"qid": video, "query": "t", "vid": video, "duration": CLIPS, "domain": domain, "label": label}


def write(folder: Path, dataset: str, **splits: list[dict[str, Any]]) -> dict[str, Any]:
    """Annotations and features of these lines; returns the configuration's data section."""
    folder.mkdir(exist_ok=True)
    dice = torch.Generator().manual_seed(0)
    videos, texts = {}, {}
    for split, lines in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            videos[line["vid"]] = torch.randn(CLIPS, 32, generator=dice)
            texts[str(line["qid"])] = torch.randn(5, 24, generator=dice)
    save_file(videos, folder / "video.safetensors")
    save_file(texts, folder / "text.safetensors")
    data = {split: str(folder / f"{split}.jsonl") for split in splits}
    return {"dataset": dataset, **data, **{kind: str(folder / f"{kind}.safetensors") for kind in ("video", "text")}}


def run(folder: Path, data: dict[str, Any], *overrides: str) -> Path:
    values = {**yaml.safe_load(DEBUG.read_text()), "data": data}
    values["training"] = {**values["training"], "select_by": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    train(folder / "config.yaml", overrides, folder / "run", progress=False)
    return folder / "run"


def test_held_out_videos_are_a_share_and_depend_on_names_only() -> None:
    records = [record(i, f"v{i // 3}") for i in range(300)]
    learn, kept = hold_out(records, 0.1)
    videos = {one.video for one in kept}
    assert len(videos) == 10
    assert not videos & {one.video for one in learn}
    assert len(learn) + len(kept) == 300
    again = hold_out(list(reversed(records)), 0.1)[1]
    assert {one.video for one in again} == videos
    with pytest.raises(BadInput, match="leaves nothing"):
        hold_out(records[:3], 0.1)


@pytest.mark.parametrize(
    ("name", "path", "val", "test", "message"),
    [
        ("charades", "charades_test_release.jsonl", [record(0, "a")], None, "is a test split of charades"),
        ("charades", "x.jsonl", [record(i, "a") for i in range(3720)], None, "is a test split of charades"),
        ("tacos", "val.jsonl", [record(0, "a")], [record(5, "a"), record(6, "b")], "shares 1 queries with 'test'"),
    ],
)
def test_validation_on_the_test_split_is_refused(name: str, path: str, val: Any, test: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        refuse_test_split(name, Path(path), val, test)


def test_a_validation_split_is_not_refused() -> None:
    refuse_test_split("tacos", Path("tacos_val_release.jsonl"), [record(0, "a")], [record(1, "a", "other")])


def test_real_splits(shared_data: Path) -> None:
    folder = shared_data / "annotations/charades_sta"
    from momentdetr.datasets.catalog import read_dataset

    train_split = read_dataset("charades", folder / "charades_train_release.jsonl")
    learn, kept = hold_out(train_split, 0.1)
    assert len({one.video for one in kept}) == 534
    assert 0.08 < len(kept) / (len(learn) + len(kept)) < 0.12
    test = read_dataset("charades", folder / "charades_test_release.jsonl")
    with pytest.raises(BadInput, match=r"data\.test"):
        refuse_test_split("charades", folder / "renamed.jsonl", test)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "imagenet"}, "unknown data set 'imagenet'"),
        ({"domain": "dog"}, "charades has no domain 'dog'"),
        ({"hold_out": 0.1}, "both 'val' and 'hold_out'"),
        ({"in_memory": False}, "needs 'root' and 'layout'"),
    ],
)
def test_sections_that_make_no_sense(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = {"dataset": "charades", "train": "a", "val": "b", "video": "c", "text": "d", **change}
    with pytest.raises(ValueError, match=message):
        DataConfig(**data)


def test_a_run_is_scored_by_its_data_set_and_once_on_test(tmp_path: Path) -> None:
    lines = [moment(i, f"v{i // 2}") for i in range(16)]
    data = write(tmp_path, "charades", train=lines, test=[moment(100, "w")])
    folder = run(tmp_path, {**data, "hold_out": 0.25})
    val = json.loads((folder / "val_scores.json").read_text())
    test = json.loads((folder / "test_scores.json").read_text())
    assert "MR-full-mIoU" in val["brief"]
    assert not any(name.startswith("HL") for name in val)
    assert [json.loads(line)["qid"] for line in (folder / "test_predictions.jsonl").open()] == [100]
    assert len((folder / "val_predictions.jsonl").read_text().splitlines()) == 4
    assert set(test["brief"]) == set(val["brief"])


def test_tvsum_learns_a_domain_and_is_scored_by_its_rules(tmp_path: Path) -> None:
    lines = [highlights(f"v{i}", "BK" if i % 2 else "BT") for i in range(6)]
    data = write(tmp_path, "tvsum", train=lines, val=[highlights("w", "BK"), highlights("x", "BT")])
    splits = read_splits(DataConfig(**data, domain="BK"), SPEC)
    assert [one.video for one in splits.train.records] == ["v1", "v3", "v5"]
    assert splits.val is not None
    assert [one.video for one in splits.val.records] == ["w"]
    first = highlights("v1", "BK")["label"]
    scores = splits.train.batch([0]).targets.saliency.scores
    expected = (np.sum(first, axis=1) - 20) / 80 * 12  # as published code learns them
    np.testing.assert_allclose(scores[0, :CLIPS], expected, rtol=1e-5)
    assert splits.val.records[0].saliency.scores[0] == tuple(first[0])  # what is judged is not scaled
    folder = run(tmp_path, {**data, "domain": "BK"}, "model.moments=false")
    document = json.loads((folder / "val_scores.json").read_text())
    assert document["domains"]["BK"]["videos"] == 1
    assert document["brief"]["mAP"] == document["domains"]["BK"]["mAP"]


def test_features_are_cut_to_the_annotated_clips(tmp_path: Path) -> None:
    short = {**highlights("v", "BK"), "duration": CLIPS - 2}
    short["label"] = short["label"][:-2]
    data = write(tmp_path, "tvsum", train=[short])
    assert len(read_splits(DataConfig(**data), SPEC).train[0].video) == CLIPS - 2
    shorter = {**short, "duration": 3, "label": short["label"][:3]}
    data = write(tmp_path, "tvsum", train=[shorter])
    with pytest.warns(UserWarning, match=r"differ by more than four rows .*v: 12 and 3"):
        read_splits(DataConfig(**data), SPEC)


def test_nothing_is_cut_without_being_told(tmp_path: Path) -> None:
    data = write(tmp_path, "charades", train=[moment(0, "v"), moment(1, "w")])
    spec = FeatureSpec.from_dict({**SPEC.to_dict(), "max_clips": 5})
    with pytest.warns(UserWarning, match="2 videos have more than 5 clips; the model sees only their first 10 s"):
        read_splits(DataConfig(**data), spec)
    spec = FeatureSpec.from_dict({**SPEC.to_dict(), "max_words": 4})
    with pytest.warns(UserWarning, match="2 queries have more than 4 tokens; the model sees only their first ones"):
        read_splits(DataConfig(**data), spec)


def test_features_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip_text").mkdir()
    np.savez(tmp_path / "clip" / "v.npz", features=np.ones((4, 32), np.float32))
    np.savez(tmp_path / "clip_text" / "qid1.npz", last_hidden_state=np.ones((3, 24), np.float32))
    with pytest.raises(BadInput, match=r"2 features cannot be used:\n.*'w'(.|\n)*'2'"):
        open_published(tmp_path, "lighthouse_clip", ["v", "w"], ["1", "2"], SPEC)
    videos, texts = open_published(tmp_path, "lighthouse_clip", ["v"], ["1"], SPEC)
    assert list(videos) == ["v"]
    assert torch.equal(videos["v"], torch.ones(4, 32))
    assert texts["1"].shape == (3, 24)
    with pytest.raises(KeyError):
        videos["x"]
    (tmp_path / "train.jsonl").write_text(json.dumps(moment(1, "v")) + "\n")
    data = {"dataset": "charades", "train": str(tmp_path / "train.jsonl"), "root": str(tmp_path)}
    splits = read_splits(DataConfig(**data, layout="lighthouse_clip", in_memory=False), SPEC)
    assert splits.train.batch([0]).inputs.video.shape[1] == 4
    np.savez(tmp_path / "clip" / "v.npz", features=np.ones((9, 32), np.float32))
    assert splits.train.batch([0]).inputs.video.shape[1] == 9
    np.savez(tmp_path / "clip" / "v.npz", features=np.full((9, 32), np.nan, np.float32))
    with pytest.raises(BadInput, match="NaN"):
        splits.train.batch([0])
    (tmp_path / "clip" / "v.npz").unlink()
    with pytest.raises(BadInput, match="1 features cannot be used"):
        read_splits(DataConfig(**data, layout="lighthouse_clip", in_memory=False), SPEC)
