"""Exported programs answer as the model does, at other sizes than they were traced with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import picture
from tiny_detection import SIZES, folder_of_images, recipe

from detection.data.check import load_data
from detection.export import Exportable, difference, export_onnx, export_program, verify_onnx
from detection.predictor import Predictor, pixels_of
from detection.train import initial_model
from momentdetr.errors import BadInput


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("shapes"))


def predictor(images: Path, system: str) -> Predictor:
    """Tiny, its weights far from their start, so that no two queries say the same."""
    classes = load_data(images, "train").classes
    model = {"sizes": {**SIZES, "encoder_layers": 1, "decoder_layers": 1, "num_levels": 2}}
    torch.manual_seed(0)
    network = initial_model(recipe(images, system, model=model), classes.names)[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Predictor(network.eval(), classes.names, classes.category_ids, 96, 160)


@pytest.mark.parametrize("system", ["detr", "dino"])
def test_the_program_s_answers_are_the_detector_s(images: Path, system: str) -> None:
    made = predictor(images, system)
    pixels = np.asarray(picture(90, 70))
    prepared = made.prepared(pixels)[None]
    scores, labels, boxes = Exportable(made.model)(prepared, torch.ones_like(prepared[:, 0]))
    found = made.predict_pixels(pixels)
    order = np.argsort(-found.scores, kind="stable")  # DETR's own answers are in the order of its queries
    np.testing.assert_allclose(scores[0].detach().numpy(), found.scores[order], atol=1e-6)
    np.testing.assert_array_equal(labels[0].numpy(), found.labels[order])
    np.testing.assert_allclose(boxes[0].detach().numpy() * [90, 70, 90, 70], found.boxes[order], atol=1e-3)


def test_answers_of_equal_score_may_change_places_and_others_may_not() -> None:
    scores = np.array([[0.9, 0.5, 0.5, 0.1]], np.float32)
    labels = np.array([[0, 1, 2, 3]])
    boxes = np.arange(16, dtype=np.float32).reshape(1, 4, 4) / 16
    swapped = [0, 2, 1, 3]
    assert difference([scores, labels[:, swapped], boxes[:, swapped]], [scores, labels, boxes]) == (0.0, 0.0)
    wrong = boxes.copy()
    wrong[0, 0, 0] += 0.25
    assert difference([scores, labels, wrong], [scores, labels, boxes]) == (0.0, 0.25)
    assert difference([scores - 0.5, labels, boxes], [scores, labels, boxes])[0] == 0.5
    assert difference([scores, labels + 1, boxes], [scores, labels, boxes])[1] == 1.0


def test_only_onnx_is_written(images: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"ends in \.onnx"):
        export_onnx(predictor(images, "detr"), tmp_path / "model.pt")


@pytest.mark.slow
def test_the_program_of_torch_takes_other_sizes(images: Path) -> None:
    made = predictor(images, "detr")
    program = export_program(made.model).module()
    for batch, height, width in ((1, 70, 200), (3, 129, 96)):
        drawn = torch.randn(batch, 3, height, width)
        mask = torch.ones(batch, height, width)
        mask[0, :, 66:] = 0
        for found, wanted in zip(program(drawn, mask), Exportable(made.model)(drawn, mask), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["detr", "dino"])
def test_onnxruntime_and_openvino_answer_as_torch(images: Path, tmp_path: Path, system: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = predictor(images, system)
    path = export_onnx(made, tmp_path / "model.onnx")
    real = [made.prepared(pixels_of(file)) for file in sorted((images / "train").glob("*.png"))[:2]]
    found = verify_onnx(made, path, real)
    assert found.images == 5
    assert found.scores < 1e-4
    assert found.boxes < 1e-3
    openvino = pytest.importorskip("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else it computes in bfloat16 where the processor can
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", exact)
    drawn, mask = torch.randn(2, 3, 100, 130), torch.ones(2, 100, 130)
    mask[0, :, 70:] = 0
    answers = compiled({"images": drawn.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        wanted = [part.numpy() for part in Exportable(made.model)(drawn, mask)]
    off = difference([answers[name] for name in ("scores", "labels", "boxes")], wanted)
    assert off[0] < 1e-3
    assert off[1] < 1e-2
