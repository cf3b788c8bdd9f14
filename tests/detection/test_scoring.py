from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import spoil
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.numpy import load_file

from detection.model import Detections
from detection.scoring import rows_of, score
from momentdetr.errors import BadInput

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def reference(
    truth: dict[str, Any], found: list[dict[str, Any]], kind: str = "bbox", limits: tuple[int, ...] = (1, 10, 100)
) -> COCOeval:
    """COCO's own scorer."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = copy.deepcopy(truth)
        annotated.createIndex()
        evaluation = COCOeval(annotated, annotated.loadRes(copy.deepcopy(found)), kind)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def made(seed: int, num_images: int = 12, first_id: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Random truth with crowds, areas at the edges of their ranges and empty images; detections near it, with ties."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(i), "width": 400, "height": 300} for i in rng.permutation(1000)[:num_images]]
    categories = [{"id": key, "name": f"class {key}"} for key in (3, 90, 17, 4)]  # nothing is ever of 4
    annotations: list[dict[str, Any]] = []
    found = []
    for image in images[:-2]:
        for _ in range(rng.integers(0, 9)):
            size = float(rng.choice([32, 96, 20, 150])) if rng.random() < 0.5 else float(rng.uniform(5, 200))
            box = [float(rng.uniform(0, 200)), float(rng.uniform(0, 100)), size, size]
            annotation = {
                "id": first_id + len(annotations),
                "image_id": image["id"],
                "category_id": int(rng.choice([3, 90, 17])),
                "bbox": box,
                "area": box[2] * box[3] * float(rng.choice([1, 1, 0.6])),
                "iscrowd": int(rng.random() < 0.15),
            }
            annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):
                near = [value + float(rng.normal(0, size / 12)) for value in box]
                found.append({**annotation, "bbox": near, "score": float(rng.integers(0, 10)) / 10})
    found = [{key: one[key] for key in ("image_id", "category_id", "bbox", "score")} for one in found]
    more = [{**one, "image_id": images[-1]["id"]} for one in found[:3]]  # an image without anything
    return {"images": images, "categories": categories, "annotations": annotations}, found + more


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_coco(seed: int) -> None:
    truth, found = made(seed)
    expected = reference(truth, found)
    scores = score(found, truth)
    assert list(scores.figures) == NAMES
    assert list(scores.figures.values()) == pytest.approx(list(expected.stats), abs=1e-12)
    np.testing.assert_allclose(scores.precision, expected.eval["precision"], atol=1e-12)
    np.testing.assert_allclose(scores.recall, expected.eval["recall"], atol=1e-12)
    assert scores.notes == ()


def test_each_class_is_scored_under_its_name_and_one_without_truth_is_left_out() -> None:
    truth, found = made(1)
    scores = score(found, truth)
    for name in ("class 3", "class 17", "class 90"):
        key = int(name.split()[1])
        alone = {**truth, "annotations": [one for one in truth["annotations"] if one["category_id"] == key]}
        expected = reference({**alone, "categories": [{"id": key, "name": name}]}, [*found])
        assert scores.per_class[name] == pytest.approx(expected.stats[0], abs=1e-12)
    assert set(scores.per_class) == {"class 3", "class 17", "class 90"}
    assert scores.to_dict() == {**scores.figures, "per_class": scores.per_class}


def test_two_classes_of_one_name_are_told_apart() -> None:
    truth, found = made(1)
    truth["categories"][0]["name"] = truth["categories"][2]["name"] = "dog"
    assert set(score(found, truth).per_class) == {"dog (id 3)", "dog (id 17)", "class 90"}


def test_masks_are_scored_where_there_are_no_boxes() -> None:
    outline = [[10, 10, 60, 10, 60, 60, 10, 60]]
    truth, _ = made(0, num_images=3)
    first = truth["images"][0]["id"]
    annotation = {"id": 1, "image_id": first, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
    truth["annotations"] = [{**annotation, "segmentation": outline}]
    shifted = mask.merge(mask.frPyObjects([[20, 10, 60, 10, 60, 60, 20, 60]], 300, 400))
    shifted["counts"] = shifted["counts"].decode() if isinstance(shifted["counts"], bytes) else shifted["counts"]
    found = [{"image_id": first, "category_id": 3, "score": 0.9, "segmentation": shifted}]
    scores = score(found, truth)
    assert list(scores.figures.values()) == pytest.approx(list(reference(truth, found, "segm").stats), abs=1e-12)
    assert 0 < scores.figures["AP"] < 1
    with pytest.raises(BadInput, match="bbox"):
        score(found, truth, kind="bbox")


def test_no_detections_score_nothing() -> None:
    truth, _ = made(2)
    scores = score([], truth)
    assert scores.figures["AP"] == scores.figures["AR100"] == 0
    assert set(scores.per_class.values()) == {0.0}
    assert "no detections" in scores.notes[0]


def test_nothing_to_find_is_minus_one() -> None:
    truth, found = made(2)
    truth["annotations"] = []
    scores = score(found, truth)
    assert set(scores.figures.values()) == {-1.0}
    assert scores.per_class == {}


def test_annotation_zero_is_scored_as_coco_does_and_noted() -> None:
    truth, found = made(3, first_id=0)
    scores = score(found, truth)
    assert list(scores.figures.values()) == pytest.approx(list(reference(truth, found).stats), abs=1e-12)
    assert "annotation id 0" in scores.notes[0]


def test_another_limit_of_detections() -> None:
    truth, found = made(4)
    scores = score(found, truth, max_detections=(1, 2, 3))
    expected = reference(truth, found, limits=(1, 2, 3))
    precision = expected.eval["precision"][..., 0, -1]
    assert list(scores.figures)[6:9] == ["AR1", "AR2", "AR3"]
    assert scores.figures["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert list(scores.figures.values())[1:] == pytest.approx(list(expected.stats[1:]), abs=1e-12)


def test_the_inputs_stay_as_they_are() -> None:
    truth, found = made(5)
    before = copy.deepcopy((truth, found))
    score(found, truth)
    assert (truth, found) == before


def test_what_does_not_belong_is_ignored_as_coco_does_and_noted() -> None:
    truth, found = made(0)
    stray = [{**found[0], "category_id": 1000}]
    truth["annotations"].append({**truth["annotations"][0], "id": 10**6, "image_id": 10**6})
    del truth["annotations"][0]["area"]  # COCO's scorer would fail; that of the box counts
    box = truth["annotations"][0]["bbox"]
    complete = copy.deepcopy(truth)
    complete["annotations"][0]["area"] = box[2] * box[3]
    scores = score(found + stray, truth)
    assert list(scores.figures.values()) == pytest.approx(list(reference(complete, found).stats), abs=1e-12)
    assert len(scores.notes) == 2
    assert "1000" in scores.notes[1]


def test_what_a_model_found_becomes_rows() -> None:
    found = Detections(torch.tensor([0.9, 0.5, 0.4]), torch.tensor([1, 0, 2]), torch.tensor([[1.0, 2, 4, 8]] * 3))
    rows = rows_of(7, found, [3, 90, None])
    assert [(one["image_id"], one["category_id"], one["bbox"]) for one in rows] == [
        (7, 90, [1, 2, 3, 6]),
        (7, 3, [1, 2, 3, 6]),
    ]
    assert [one["score"] for one in rows] == pytest.approx([0.9, 0.5])
    truth = {"images": [{"id": 7}], "categories": [{"id": 90, "name": "a"}, {"id": 3, "name": "b"}]}
    annotation = {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 6]}
    assert score(rows, {**truth, "annotations": [annotation]}).per_class == {"a": pytest.approx(1)}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_the_files_only_bad_input_comes_of_it(data: st.DataObject) -> None:
    truth, found = made(0, num_images=4)
    changed = {"truth": copy.deepcopy(truth), "found": copy.deepcopy(found[:6])}
    spoil(changed, data.draw)
    try:
        figures = score(changed["found"], changed["truth"]).figures
    except BadInput:
        return
    assert all(value == -1 or 0 <= value <= 1 for value in figures.values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"score": float("nan")}, "score"),
        ({"bbox": [0, 0, float("inf"), 1]}, "bbox"),
        ({"bbox": [0, 0, 1]}, "bbox"),
        ({"bbox": None}, "bbox"),
        ({"image_id": "7"}, "image_id"),
        ({"image_id": True}, "image_id"),
        ({"image_id": 10**7}, "not annotated"),
        ({"category_id": None}, "category_id"),
    ],
)
def test_a_detection_that_is_none_is_named(change: dict[str, Any], told: str) -> None:
    truth, found = made(0)
    with pytest.raises(BadInput, match=told) as caught:
        score([*found[:2], {**found[2], **change}, *found[3:]], truth)
    assert "detection 2" in str(caught.value)


def test_class_indices_instead_of_category_ids_are_told() -> None:
    truth, found = made(0)
    with pytest.raises(BadInput, match="category ids, not class indices"):
        score([{**one, "category_id": 0} for one in found], truth)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "expected an object"),
        ({"images": [], "categories": []}, "annotations"),
        ({"images": [{"id": 1}, {"id": 1}], "categories": [], "annotations": []}, "twice"),
        ({"images": [{}], "categories": [], "annotations": []}, "whole id"),
        ({"images": [], "categories": [], "annotations": [{"id": 1, "image_id": 1}]}, "annotation 1"),
    ],
)
def test_annotations_that_are_none_are_told(document: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        score([], document)


def test_files_that_are_not_json_are_told(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        score([], tmp_path / "truth.json")
    with pytest.raises(BadInput, match="cannot be read"):
        score([], tmp_path / "nothing.json")


PUBLISHED = {
    "boxes": ("instances_val2014_fakebbox100_results", "instances_val2014_100", "instances_val2014_fake100", "bbox"),
    "masks": ("instances_val2014_fakesegm100_results", "instances_val2014_100", "instances_val2014_fake100", "segm"),
    "odd": ("dt_dataset", "gt_dataset", "dt_dataset", "metrics"),
    "detector": (
        "yolox_nano_coco128_val_bbox",
        "../detection/coco128/annotations/instances_val2017",
        "yolox_nano_coco128_val_bbox",
        "metrics",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str, shared_data: Path) -> None:
    folder = shared_data / "coco_eval"
    found, truth, metrics, key = PUBLISHED[name]
    published = json.loads((folder / f"{metrics}_metrics.json").read_text())
    scores = score(folder / f"{found}.json", folder / f"{truth}.json")
    assert dict(scores.figures) == pytest.approx(published[key], abs=1e-6)
    if "per_class_AP" in published:
        assert dict(scores.per_class) == pytest.approx(published["per_class_AP"], abs=1e-6)


# pycocotools asks for AP at 100 detections, whatever the limits are, and gives -1 where there is no such limit.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 0),
    "use_cats0": ({"class_agnostic": True}, 0),
    "maxdets_1_10_300": ({"max_detections": (1, 10, 300)}, 1),
}


def test_recorded_evaluations(goldens: Path) -> None:
    folder = goldens / "eval_coco"
    recorded = json.loads(gzip.decompress((folder / "cases.json.gz").read_bytes()))
    arrays = load_file(folder / "arrays.safetensors")
    compared = set()
    for name, case in recorded["cases"].items():
        for mode, run in case["runs"].items():
            if mode == "empty_dt":  # where pycocotools fails
                assert run["error"]
                assert score([], case["gt"]).figures["AP"] == 0
                continue
            options, first = MODES[mode]
            scores = score(case["dt"], case["gt"], **options)
            assert list(scores.figures.values())[first:] == pytest.approx(run["stats"][first:], abs=1e-12)
            ours = {"precision": scores.precision, "recall": scores.recall, "scores": scores.confidence}
            for what in ours.keys() & {key.split(".")[2] for key in arrays if key.startswith(f"{name}.{mode}.")}:
                np.testing.assert_allclose(ours[what], arrays[f"{name}.{mode}.{what}"], atol=1e-12)
                compared.add(f"{name}.{mode}.{what}")
    assert set(arrays) == compared


def test_recorded_overlaps(goldens: Path) -> None:
    recorded = json.loads((goldens / "eval_coco" / "box_iou.json").read_text())
    crowd = recorded["iscrowd"]
    ours = np.asarray(mask.iou(recorded["dt_xywh"], recorded["gt_xywh"], crowd))
    np.testing.assert_allclose(ours, recorded["iou"], atol=1e-12)
    assert any(crowd)
