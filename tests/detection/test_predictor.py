"""Answers for images of any kind, drawn and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detection import folder_of_images, recipe

import detection
from detection.checkpoint import save
from detection.data.augment import evaluation_size
from detection.data.check import ImageData, load_data
from detection.data.dataset import ImageDataset
from detection.data.records import ClassMap
from detection.drawing import draw
from detection.evaluation import category_ids_by_name
from detection.predicting import predict_all
from detection.predictor import ImageDetections, Predictor, evaluate_on
from detection.train import initial_model
from momentdetr.errors import BadInput


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def predictor(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    classes = load_data(images, "train").classes
    torch.manual_seed(2)
    model, described = initial_model(recipe(images), classes.names)
    folder = tmp_path_factory.mktemp("model")
    save(folder, described, model.state_dict(), classes.names, category_ids=classes.category_ids, input_size=(64, 96))
    return detection.load(folder, "cpu")


def test_a_file_a_picture_and_its_pixels_give_the_same(images: Path, predictor: Predictor) -> None:
    path = images / "train" / "0000.png"
    picture = Image.open(path)
    wanted = predictor.predict(path)
    for other in (str(path), picture, np.asarray(picture)):
        found = predictor.predict(other)
        np.testing.assert_array_equal(found.boxes, wanted.boxes)
        np.testing.assert_array_equal(found.scores, wanted.scores)
    assert wanted.size == (64, 64)
    assert list(wanted.scores) == sorted(wanted.scores, reverse=True)
    sure = float(wanted.scores[2])
    assert all(score >= sure for score in predictor.predict(path, threshold=sure).scores)


def test_answers_are_those_of_the_model_on_the_batch_that_is_scored(images: Path, predictor: Predictor) -> None:
    data = load_data(images, "train")
    batch = ImageDataset(data.records, evaluation_size(64, 96)).batch([3])
    found = predictor.model.predict(batch.images, batch.mask, batch.sizes)[0]
    answer = predictor.predict(data.records[3].path)
    np.testing.assert_allclose(answer.boxes, found.boxes.numpy(), atol=1e-4)
    assert [data.classes.names[label] for label in found.labels.tolist()] == list(answer.names)
    rows = predictor.rows(7, answer)
    assert {row["image_id"] for row in rows} == {7}
    assert [row["category_id"] for row in rows] == [data.classes.category_ids[one] for one in found.labels.tolist()]
    left, top, right, bottom = answer.boxes[0].tolist()
    assert rows[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-5)


def test_pictures_are_turned_as_viewers_turn_them(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    assert predictor.predict(tmp_path / "turned.png").size == (40, 90)
    grey = predictor.predict(pixels[:, :, 0])
    assert grey.size == (90, 40)
    for wrong in (pixels.astype(np.float32), pixels[:, :, :2], pixels[:0]):
        with pytest.raises(BadInput, match=r"expected uint8 of shape \(H, W, 3\)"):
            predictor.predict(wrong)


def test_drawing_marks_the_box_and_nothing_far_from_it() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    box = np.array([[20.0, 25.0, 50.0, 45.0]], np.float32)
    found = ImageDetections(box, np.array([0.5], np.float32), np.array([1]), ("dog",), (80, 60))
    drawn = draw(pixels, found)
    assert not pixels.any()  # a copy
    assert drawn[25, 21:50].any(axis=1).all()
    assert drawn[45, 21:50].any(axis=1).all()
    assert not drawn[50:].any()
    assert not drawn[:, 75:].any()


def test_images_folders_and_videos_are_answered_and_written(images: Path, predictor: Predictor, tmp_path: Path) -> None:
    from momentdetr.features.video import probe
    from momentdetr.features.video_write import write_video

    frames = [np.asarray(Image.open(images / "train" / f"{i:04}.png")) for i in range(4)]
    write_video(tmp_path / "film.mp4", frames, 2.0)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    sources = [images / "val", images / "train" / "0001.png", tmp_path / "film.mp4", tmp_path / "broken.jpg"]
    answers, problems = predict_all(predictor, sources, tmp_path / "out", threshold=0.0, fps=2.0)
    assert len(problems) == 1
    assert "broken.jpg" in problems[0]
    assert [answer.time_s for answer in answers] == [None, None, None, 0.0, 0.5, 1.0, 1.5]
    assert (tmp_path / "out" / "0001.jpg").is_file()
    assert (tmp_path / "out" / "0001-2.jpg").is_file()
    assert probe(tmp_path / "out" / "film.mp4").num_frames == 4
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {one["id"] for one in listed} == set(range(1, 8))
    assert len(rows) == sum(len(answer.found) for answer in answers)
    with pytest.raises(BadInput, match="nothing could be read"):
        predict_all(predictor, [tmp_path / "broken.jpg"], tmp_path / "none")
    with pytest.raises(BadInput, match="no such file"):
        predict_all(predictor, [tmp_path / "missing.jpg"], tmp_path / "none")


def test_classes_are_matched_by_name_and_strangers_are_named(images: Path, predictor: Predictor) -> None:
    data = load_data(images, "train")
    names, numbers = data.classes.names, data.classes.category_ids
    turned = ImageData(data.records, ClassMap((*names[::-1], "unicorn"), (*numbers[::-1], 99)))
    ids, unknown = category_ids_by_name([*names, None, "dragon"], turned)
    assert ids == [*numbers, None, None]
    assert unknown == ["unicorn"]
    with pytest.raises(BadInput, match="no class in common"):
        category_ids_by_name([None, "dragon"], data)
    scores, notes = evaluate_on(predictor, images)
    assert notes == []
    assert 0 <= scores.figures["AP"] <= 1


def test_supervision_gets_its_own_type(images: Path, predictor: Predictor) -> None:
    supervision = pytest.importorskip("supervision")
    found = predictor.predict(images / "train" / "0000.png")
    handed = found.to_supervision()
    assert isinstance(handed, supervision.Detections)
    np.testing.assert_array_equal(handed.xyxy, found.boxes)
    assert list(handed.data["class_name"]) == list(found.names)
