from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import picture
from PIL import Image

from detection.data import convert as convert_module
from detection.data.check import check, load_data
from detection.data.convert import convert_data
from detection.data.voc import read_voc
from detection.data.yolo import read_yolo
from momentdetr.errors import BadInput, StoreError

# Of one image of 64x48: what YOLO and VOC write, and the box that it is.
YOLO_LINE, VOC_BOX, BOX = "1 0.5 0.5 0.25 0.5", (25, 13, 40, 36), (24, 12, 16, 24)


def write_image(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(*size).save(path)


def write_labels(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def yolo(folder: Path, label: str = YOLO_LINE) -> Path:
    """With data.yaml: train has an image with a box, one with an empty file and one without a file; val has one."""
    folder.mkdir(exist_ok=True)
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: dog, 1: cat}\n")
    for name in "abc":
        write_image(folder / "images" / "train" / f"{name}.jpg")
    write_image(folder / "images" / "val" / "d.png")
    write_labels(folder / "labels" / "train" / "a.txt", label)
    write_labels(folder / "labels" / "train" / "b.txt", "\n")
    write_labels(folder / "labels" / "val" / "d.txt", f"{YOLO_LINE}\n0 0.5 0.5 1 1\n")
    return folder


def test_yolo_becomes_coco(tmp_path: Path) -> None:
    convert_data(yolo(tmp_path / "in"), tmp_path / "out")
    train, val = check(tmp_path / "out")
    assert train.faults == val.faults == ()
    assert train.classes.names == ("dog", "cat")
    assert train.classes.category_ids == (1, 2)
    assert [record.path.name for record in train.records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [len(record.instances) for record in train.records] == [1, 0, 0]
    one = train.records[0].instances[0]
    assert (one.box, one.label, one.area) == (pytest.approx(BOX), 1, pytest.approx(16 * 24))
    assert [one.label for one in val.records[0].instances] == [1, 0]
    assert val.records[0].instances[1].box == pytest.approx((0, 0, 64, 48))
    document = json.loads((tmp_path / "out" / "annotations" / "instances_val.json").read_text())
    assert [one["id"] for one in document["annotations"]] == [1, 2]  # never 0
    assert not (tmp_path / "out" / "skipped.json").exists()


def test_an_outline_becomes_the_box_around_it(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in", "1 0.375 0.25 0.625 0.3 0.5 0.75")
    assert read_yolo(folder)[0].records[0].instances[0].box == pytest.approx(BOX)


def test_yolo_boxes_are_of_the_image_as_it_is_shown(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(48, 64).save(folder / "images" / "train" / "a.jpg", exif=turned)
    convert_data(folder, tmp_path / "out")
    record = load_data(tmp_path / "out", "train").records[0]
    assert (record.width, record.height) == (64, 48)
    assert record.instances[0].box == pytest.approx(BOX)


YOLO_FOLDERS: dict[str, tuple[str, str]] = {
    "images/train": ("images/train/a.jpg", "labels/train/a.txt"),
    "train/images": ("train/images/a.jpg", "train/labels/a.txt"),
    "images": ("images/a.jpg", "labels/a.txt"),
    "beside": ("a.jpg", "a.txt"),
}


@pytest.mark.parametrize("kind", YOLO_FOLDERS)
def test_yolo_folders_without_a_yaml(kind: str, tmp_path: Path) -> None:
    image, label = YOLO_FOLDERS[kind]
    write_image(tmp_path / image)
    write_labels(tmp_path / label, YOLO_LINE)
    with pytest.raises(BadInput, match="--names"):
        read_yolo(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\ncat\n\n")
    (report,) = read_yolo(tmp_path)
    assert report.name == "train"
    assert report.classes.names == ("dog", "cat")
    assert report.records[0].instances[0].box == pytest.approx(BOX)
    assert read_yolo(tmp_path, ["x", "y", "z"])[0].classes.names == ("x", "y", "z")


def test_roboflow_and_lists_of_files(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "images" / "a.jpg")
    write_labels(tmp_path / "train" / "labels" / "a.txt", YOLO_LINE)
    (tmp_path / "list.txt").write_text("train/images/a.jpg\n\n")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: list.txt\nnames: [dog, cat]\n")
    for report in read_yolo(tmp_path):
        assert report.faults == ()
        assert report.records[0].instances[0].box == pytest.approx(BOX)


BAD_LINES = [
    ("2 0.5 0.5 0.1 0.1", "class 2, expected 0 to 1"),
    ("-1 0.5 0.5 0.1 0.1", "class -1"),
    ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
    ("1 0.5 0.5 0.1", "expected 5 finite numbers"),
    ("1 0.5 0.5 0.1 nan", "expected 5 finite numbers"),
    ("1 0.5 0.5 0.1 0.1 0.9", "expected 5 finite numbers"),
    ("cat 0.5 0.5 0.1 0.1", "expected numbers"),
    ("1 0.5 0.5 0 0.1", "no area"),
    ("1 1.5 0.5 0.1 0.1", "outside"),
    ("1 32 24 16 24", "outside"),  # pixels instead of fractions
]


@pytest.mark.parametrize(("line", "told"), BAD_LINES)
def test_a_bad_line_is_named_and_stops_the_conversion(line: str, told: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in", f"{YOLO_LINE}\n{line}")
    with pytest.raises(BadInput, match=told) as caught:
        convert_data(folder, tmp_path / "out")
    assert "a.txt line 2" in str(caught.value)
    assert not (tmp_path / "out").exists()
    convert_data(folder, tmp_path / "out", skip_bad=50)
    skipped = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert told in skipped["train"][0]["text"]
    assert [len(record.instances) for record in load_data(tmp_path / "out", "train").records] == [1, 0, 0]


def test_a_broken_image_stops_the_conversion(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in")
    image = folder / "images" / "train" / "b.jpg"
    image.write_bytes(image.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"b\.jpg: is damaged"):
        convert_data(folder, tmp_path / "out")
    convert_data(folder, tmp_path / "out", skip_bad=34)
    assert [record.path.name for record in load_data(tmp_path / "out", "train").records] == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2", "YAML"),
        ("- 1", "expected names"),
        ("train: images/train\nnames: {1: a, 2: b}", "list of different names"),
        ("train: images/train\nnames: [a, a]", "list of different names"),
        ("train: nothing\nnames: [a]", "not there"),
        ("train: images/train\nnames: !!python/object/apply:os.getcwd []", "YAML"),
    ],
)
def test_a_bad_yaml_is_told(text: str, told: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in")
    (folder / "data.yaml").write_text(text)
    with pytest.raises(BadInput, match=told):
        read_yolo(folder)


def voc_object(name: str, corners: tuple[Any, ...], difficult: int = 0) -> str:
    inner = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox></object>"


def voc(folder: Path, objects: str | None = None, size: tuple[int, int] = (64, 48)) -> Path:
    objects = voc_object("cat", VOC_BOX) + voc_object("ape", (1, 1, 64, 48), 1) if objects is None else objects
    for name, inside in (("a", objects), ("b", "")):
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        head = f"<filename>{name}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        write_labels(folder / "Annotations" / f"{name}.xml", f"<annotation>{head}{inside}</annotation>")
    write_labels(folder / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    write_labels(folder / "ImageSets" / "Main" / "val.txt", "b\n")
    write_labels(folder / "ImageSets" / "Main" / "trainval.txt", "a\nb\n")
    return folder


def test_voc_becomes_coco(tmp_path: Path) -> None:
    convert_data(voc(tmp_path / "in"), tmp_path / "out")
    train, val = check(tmp_path / "out")
    assert train.faults == val.faults == ()
    assert (train.name, val.name) == ("train", "val")
    assert train.classes.names == val.classes.names == ("ape", "cat")
    first, second = train.records
    assert [(one.box, one.label, one.crowd) for one in first.instances] == [(BOX, 1, False), ((0, 0, 64, 48), 0, True)]
    assert second.instances == ()


def test_voc_of_tools_that_count_from_zero(tmp_path: Path) -> None:
    folder = voc(tmp_path, voc_object("cat", (24, 12, 40, 36)))
    assert read_voc(folder, origin=0)[0].records[0].instances[0].box == BOX
    with pytest.raises(BadInput, match="origin"):
        read_voc(folder, origin=2)


def test_voc_of_one_folder_without_splits(tmp_path: Path) -> None:
    write_image(tmp_path / "a[1].jpg")
    write_labels(tmp_path / "a[1].xml", f"<annotation>{voc_object('cat', VOC_BOX)}</annotation>")
    (report,) = read_voc(tmp_path)
    assert (report.name, report.faults) == ("train", ())
    assert report.records[0].instances[0].box == BOX
    assert read_voc(tmp_path, ["dog", "cat"])[0].records[0].instances[0].label == 1
    assert "no class is called" in str(read_voc(tmp_path, ["dog"])[0].faults[0])


BAD_XML = [
    (voc_object("cat", (10, 10, "x", 20)), "finite xmin"),
    (voc_object("cat", (10, 10, "nan", 20)), "finite xmin"),
    (voc_object("cat", (10, 10, 5, 20)), "no area"),
    (voc_object("cat", (10, 10, 100, 20)), "outside"),
    (voc_object("", (10, 10, 20, 20)), "has no name"),
    ("<object>", "is not XML"),
    ("<!DOCTYPE x>", "declares entities"),
]


@pytest.mark.parametrize(("objects", "told"), BAD_XML)
def test_bad_xml_is_named(objects: str, told: str, tmp_path: Path) -> None:
    folder = voc(tmp_path / "in", objects)
    with pytest.raises(BadInput, match=told) as caught:
        convert_data(folder, tmp_path / "out")
    assert "a.xml" in str(caught.value)


def test_voc_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = voc(tmp_path, size=(63, 48))
    (folder / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    (folder / "JPEGImages" / "b.jpg").unlink()
    train, val = read_voc(folder)
    assert "says 63x48 pixels, a.jpg has 64x48" in train.faults[0].text
    assert "no image" in train.faults[1].text
    assert "no XML file" in val.faults[0].text


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    for name in ("x/a", "y/a", "z/A"):
        write_image(tmp_path / "images" / f"{name}.jpg")
        write_labels(tmp_path / "labels" / f"{name}.txt", YOLO_LINE)
    out = tmp_path / "out"
    convert_data(tmp_path, out, layout="yolo")
    reports = check(out)
    assert sum(len(report.records) for report in reports) == 3
    assert len({record.path for report in reports for record in report.records}) == 3


def test_links_instead_of_copies(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in")
    convert_data(folder, tmp_path / "out", link=True)
    assert os.path.samefile(tmp_path / "out" / "train" / "a.jpg", folder / "images" / "train" / "a.jpg")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "in")
    (tmp_path / "out").mkdir()
    convert_data(folder, tmp_path / "out")
    with pytest.raises(BadInput, match="is not empty"):
        convert_data(folder, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []

    def copy(source: Path, target: Path) -> None:
        if copied:
            raise OSError(28, "No space left on device")
        copied.append(target)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(convert_module.shutil, "copyfile", copy)
    with pytest.raises(StoreError, match="No space left"):
        convert_data(yolo(tmp_path / "in"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_neither_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        convert_data(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(BadInput, match="neither like YOLO"):
        convert_data(tmp_path, tmp_path / "out")
    with pytest.raises(BadInput, match="expected yolo or voc"):
        convert_data(tmp_path, tmp_path / "out", layout="csv")
    assert np.asarray(list(tmp_path.iterdir())).size == 0
