from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import SIZES, document, picture, spoil, write_coco

from detection.data.check import check, load_data, summary
from detection.data.coco import read_coco, to_coco
from detection.data.folders import find_split, find_splits
from detection.data.records import ClassMap
from momentdetr.errors import BadInput


def test_records_are_what_the_file_says(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (report,) = check(tmp_path)
    assert report.faults == ()
    assert report.classes == ClassMap(("dog", "cat"), (3, 7))  # in the order of the ids, without gaps
    assert [(one.image_id, one.width, one.height) for one in report.records] == [
        (10 + i, *size) for i, size in enumerate(SIZES)
    ]
    first, second, third = report.records
    assert first.path == tmp_path / "train" / "0.jpg"
    assert [(one.box, one.label, one.area, one.crowd) for one in first.instances] == [
        ((4, 6, 20, 30), 1, 300, False),
        ((0, 0, 64, 20), 0, 640, True),
    ]
    assert [one.label for one in second.instances] == [0, 1]
    assert third.instances == ()  # kept


def test_the_class_map_survives_plain_values() -> None:
    classes = ClassMap(("dog", "cat"), (3, 7))
    assert ClassMap.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes
    assert classes.label_of == {3: 0, 7: 1}


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    (report,) = check(file)
    again = tmp_path / "again.json"
    again.write_text(json.dumps(to_coco(report.records, report.classes, tmp_path / "train")))
    assert read_coco(again, tmp_path / "train").records == report.records
    content, written = json.loads(file.read_text()), json.loads(again.read_text())
    assert written["annotations"] == content["annotations"]
    assert written["images"] == content["images"]


BAD_BOXES: list[tuple[dict[str, Any], str]] = [
    ({"category_id": 5}, "category 5, which is not listed"),
    ({"category_id": "cat"}, "category 'cat'"),
    ({"image_id": 99}, "image 99, which is not listed"),
    ({"image_id": "11"}, "image '11'"),
    ({"id": 1}, "annotation 1: its id stands twice"),
    ({"id": None}, "id None"),
    ({"bbox": [1, 2, 0, 5]}, "has no area"),
    ({"bbox": [1, 2, 5, -5]}, "has no area"),
    ({"bbox": [41, 2, 5, 5]}, "lies outside the image of 40x60"),
    ({"bbox": [30, 2, 15, 5]}, "reaches 5 pixels outside"),
    ({"bbox": [-2, 2, 15, 5]}, "reaches 2 pixels outside"),
    ({"bbox": [1, 2, 3]}, "four finite numbers"),
    ({"bbox": [1, 2, 3, float("nan")]}, "four finite numbers"),
    ({"bbox": "1 2 3 4"}, "four finite numbers"),
    ({"bbox": None}, "four finite numbers"),
    ({"area": float("inf")}, "area inf"),
    ({"area": -1}, "area -1"),
    ({"iscrowd": 2}, "iscrowd 2"),
]


@pytest.mark.parametrize(("change", "told"), BAD_BOXES, ids=[told for _, told in BAD_BOXES])
def test_a_bad_box_is_named_and_left_out_only_on_request(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    content = document()
    content["annotations"][2] |= change
    write_coco(tmp_path, content)
    (report,) = check(tmp_path)
    assert [fault.kind for fault in report.faults] == ["annotation"]
    assert told in str(report.faults[0])
    with pytest.raises(BadInput, match="--skip-bad"):
        load_data(tmp_path)
    with pytest.raises(BadInput, match="more than --skip-bad 24%"):
        load_data(tmp_path, skip_bad=24)
    data = load_data(tmp_path, skip_bad=25)  # one of four
    assert sum(len(record.instances) for record in data.records) == 3
    assert len(data.records) == 3
    assert data.skipped == report.faults


BAD_IMAGES: list[tuple[dict[str, Any], str]] = [
    ({"id": 10}, "its id stands 2 times"),
    ({"id": "11"}, "whole number"),
    ({"file_name": "nothing.jpg"}, "there is no such file"),
    ({"file_name": None}, "file_name None"),
    ({"file_name": "../../secret.jpg"}, "inside the folder"),
    ({"file_name": "/etc/passwd"}, "inside the folder"),
    ({"file_name": "..\\secret.jpg"}, "inside the folder"),
    ({"width": 0}, "width 0"),
    ({"height": None}, "height None"),
    ({"width": 41}, "is 40x60 pixels, annotated as 41x60"),
]


@pytest.mark.parametrize(("change", "told"), BAD_IMAGES, ids=[told for _, told in BAD_IMAGES])
def test_a_bad_image_is_named_and_goes_with_its_boxes(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    content = document()
    content["images"][1] |= change
    write_coco(tmp_path, content)
    (report,) = check(tmp_path)
    assert told in "\n".join(map(str, report.faults))
    with pytest.raises(BadInput, match="faults"):
        load_data(tmp_path)
    data = load_data(tmp_path, skip_bad=100)
    ids = {record.image_id for record in data.records}
    assert 11 not in ids or change.get("id") == "11"
    assert ids == ({12} if change.get("id") == 10 else {10, 12})


BAD_FILES: list[tuple[Any, str]] = [
    ([], "expected an object"),
    ({"images": []}, "no list 'categories'"),
    ({"images": {}, "categories": [], "annotations": []}, "no list 'images'"),
]


@pytest.mark.parametrize(("content", "told"), BAD_FILES)
def test_a_file_of_another_kind_is_told(content: Any, told: str, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=told):
        check(file)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe{}", b"", b"[" * 100000])
def test_what_is_not_json_is_told(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes(text)
    with pytest.raises(BadInput, match=r"train\.json"):
        check(tmp_path / "train.json")


@pytest.mark.parametrize(
    "categories",
    [
        [],
        [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}],
        [{"id": 3, "name": "a"}, {"id": 7, "name": "a"}],
        [{"id": 3}],
    ],
)
def test_classes_in_doubt_cannot_be_skipped(categories: list[Any], tmp_path: Path) -> None:
    write_coco(tmp_path, {**document(), "categories": categories})
    with pytest.raises(BadInput, match="categor"):
        load_data(tmp_path, skip_bad=100)


@given(data=st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_only_bad_input_comes_of_it(data: st.DataObject, tmp_path: Path) -> None:
    content = document()
    spoil(content, data.draw)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    try:
        report = read_coco(file, tmp_path)
    except BadInput:
        return
    labels = range(len(report.classes))
    for record in report.records:
        assert min(record.width, record.height) >= 1
        for one in record.instances:
            assert one.label in labels
            assert np.isfinite([*one.box, one.area]).all()
            assert min(one.box[2:]) > 0
    listed = sum(len(record.instances) for record in report.records)
    of_images = sum(fault.kind == "image" for fault in report.faults)
    assert listed + len(report.faults) >= report.num_annotations or of_images


def test_what_is_odd_but_harmless_is_remarked(tmp_path: Path) -> None:
    content = document()
    for index, annotation in enumerate(content["annotations"]):
        annotation["id"] = index
        del annotation["area"], annotation["iscrowd"]
    write_coco(tmp_path, content)
    (report,) = check(tmp_path)
    assert report.faults == ()
    assert any("annotation id 0" in remark for remark in report.remarks)
    assert any("no area is given" in remark and "4 times" in remark for remark in report.remarks)
    assert report.records[0].instances[0].area == 600


def test_a_summary_counts(tmp_path: Path) -> None:
    content = document()
    content["annotations"][3]["bbox"] = [0, 0, 0, 0]
    write_coco(tmp_path, content)
    found = summary(check(tmp_path)[0])
    assert (found["images"], found["usable_images"], found["images_without_targets"]) == (3, 3, 1)
    assert (found["annotations"], found["boxes"], found["crowds"]) == (4, 2, 1)
    assert found["long_side"] == [50, 60, 64]
    assert [(one["name"], one["category_id"], one["boxes"]) for one in found["classes"]] == [
        ("dog", 3, 1),
        ("cat", 7, 1),
    ]
    assert len(found["faults"]) == 1


def test_splits_are_compared(tmp_path: Path) -> None:
    write_coco(tmp_path, split="train2017")
    other = document()
    other["categories"] = [{"id": 1, "name": "dog"}, {"id": 3, "name": "horse"}]
    other["annotations"] = []
    write_coco(tmp_path, other, split="val2017")
    train, val = check(tmp_path)
    assert train.faults == ()
    assert [str(fault) for fault in val.faults] == ["category 3: is 'horse', which split 'train2017' has not"]
    assert "dog: other category ids" in val.remarks[0]


def test_another_splits_labels_are_those_of_the_model(tmp_path: Path) -> None:
    write_coco(tmp_path)
    classes = ClassMap(("bird", "cat", "dog"), (1, 2, 3))
    data = load_data(tmp_path, classes=classes)
    assert data.classes == classes
    assert [one.label for record in data.records for one in record.instances] == [1, 2, 2, 1]
    with pytest.raises(BadInput, match="has boxes of cat; the model knows dog"):
        load_data(tmp_path, classes=ClassMap(("dog",), (3,)))


LAYOUTS = {
    "official": ("annotations/instances_val2017.json", "val2017"),
    "split folders": ("annotations/val.json", "images/val"),
    "one folder": ("annotations/val.json", "images"),
    "without year": ("annotations/instances_val.json", "val2017"),
    "flat": ("val.json", "."),
    "roboflow": ("valid/_annotations.coco.json", "valid"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_found(layout: str, tmp_path: Path) -> None:
    file, images = (tmp_path / part for part in LAYOUTS[layout])
    images.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    for index, size in enumerate(SIZES):
        picture(*size).save(images / f"{index}.jpg")
    file.write_text(json.dumps(document()))
    (file.parent / "captions_val2017.json").write_text("{}")
    (file.parent / "results.json").write_text("[]")
    (tmp_path / "settings.json").write_text("{}")
    split = find_split(tmp_path, "val")
    assert (split.annotations, split.images) == (file, images)
    assert len(load_data(tmp_path, "val").records) == len(load_data(file).records) == 3


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    write_coco(tmp_path, split="train")
    write_coco(tmp_path, split="val")
    assert [split.name for split in find_splits(tmp_path)] == ["train", "val"]
    with pytest.raises(BadInput, match="there are train, val"):
        find_split(tmp_path, "test")
    with pytest.raises(BadInput, match="say which one"):
        load_data(tmp_path)


def test_other_layouts_are_told_how_to_convert(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        find_splits(tmp_path / "nothing")
    with pytest.raises(BadInput, match="has no COCO annotations; expected"):
        find_splits(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a]")
    with pytest.raises(BadInput, match="looks like YOLO; convert it"):
        find_splits(tmp_path)


@pytest.mark.parametrize("verify", ["decode", "header", "none"])
def test_how_much_of_the_files_is_read(verify: Any, tmp_path: Path) -> None:
    write_coco(tmp_path)
    image = tmp_path / "train" / "1.jpg"
    image.write_bytes(image.read_bytes()[:-200])  # the head is whole
    (tmp_path / "train" / "2.jpg").write_text("no image")
    seen: list[tuple[int, int]] = []
    (report,) = check(tmp_path, verify=verify, progress=lambda *step: seen.append(step))
    found = {"decode": [11, 12], "header": [12], "none": []}[verify]
    assert [fault.image_id for fault in report.faults] == found
    assert seen == ([] if verify == "none" else [(1, 3), (2, 3), (3, 3)])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("bccd", {"train": (205, 2804, 0, 0), "val": (87, 1137, 0, 0), "test": (72, 945, 0, 0)}),
        ("coco128", {"train2017": (128, 929, 0, 2), "val2017": (128, 898, 0, 0)}),
        ("coco_mini_train", {"train2017": (80, 731, 8, 0)}),
    ],
)
def test_real_sets_are_whole(folder: str, expected: dict[str, tuple[int, ...]], shared_data: Path) -> None:
    found = [summary(report) for report in check(shared_data / "detection" / folder)]
    keys = ("images", "boxes", "crowds", "images_without_targets")
    assert {one["split"]: tuple(one[key] for key in keys) for one in found} == expected
    assert not any(one["faults"] for one in found)
