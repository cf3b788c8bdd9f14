"""Training, from a configuration to a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detection import folder_of_images, recipe
from torch import Tensor
from typer.testing import CliRunner

from detection import checkpoint
from detection.__main__ import app
from detection.checkpointing import recompute_layers
from detection.data.check import load_data
from detection.data.dataset import ImageDataset
from detection.evaluation import detect, evaluate
from detection.losses import image_loss
from detection.recipes import DetectionConfig
from detection.train import initial_model, train
from momentdetr.errors import BadInput
from momentdetr.training.checkpoint import CheckpointFolder
from momentdetr.training.config import load_config
from momentdetr.training.task import TrainingDiverged

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "detection"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("shapes"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def small_batch(images: Path, indices: tuple[int, ...] = (0, 1)) -> Any:
    config = recipe(images)
    data = load_data(images, "train")
    return ImageDataset(data.records, config.data.augment).batch(indices)


def test_a_run_leaves_a_model_its_classes_and_its_scores(images: Path, tmp_path: Path) -> None:
    done = train(recipe(images, about={"licence": "none"}), tmp_path / "run", progress=False)
    assert done.steps == 4
    document = json.loads((done.folder / "config.json").read_text())
    truth = json.loads((images / "annotations" / "instances_train.json").read_text())
    named = sorted((one["id"], one["name"]) for one in truth["categories"])
    assert document["labels"] == [name for _, name in named]
    assert document["category_ids"] == [number for number, _ in named]
    assert document["input"] == {"short_side": 64, "long_side": 64}
    assert document["about"]["licence"] == "none"
    state = CheckpointFolder(tmp_path / "run" / "checkpoints").load(4).state
    assert state["config"]["classes"] == {"names": document["labels"], "category_ids": document["category_ids"]}
    assert state["config"]["model"]["backbone"]["name"] == "test_resnet"
    # What is written as the score is the score of what is written.
    model, _ = checkpoint.load(done.folder, torch.device("cpu"))
    val = load_data(images, "val")
    rows = detect(model, val, document["category_ids"], short_side=64, long_side=64)
    written = json.loads((tmp_path / "run" / "val_scores.json").read_text())
    assert written["AP"] == evaluate(rows, val).figures["AP"]
    assert json.loads((tmp_path / "run" / "val_detections.json").read_text()) == rows


@pytest.mark.parametrize(
    "system", ["detr", "conditional_detr", "deformable_detr", "dab_detr", "dn_detr", "dino", "co_dino"]
)
def test_every_system_learns_two_images_by_heart(images: Path, system: str) -> None:
    config = recipe(images, system, training={"seed": 1})
    torch.manual_seed(0)
    model, _ = initial_model(config, load_data(images, "train").classes.names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch, totals = small_batch(images), []
    for _ in range(25):
        total, _ = image_loss(model.train(), batch)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])


def test_recomputing_layers_changes_nothing_but_memory(images: Path) -> None:
    config = recipe(
        images,
        model={
            "sizes": {
                "num_queries": 5,
                "width": 16,
                "num_heads": 2,
                "dropout": 0.3,
                "group_norm": 4,
                "encoder_layers": 2,
                "decoder_layers": 2,
            }
        },
    )
    batch = small_batch(images)

    def gradients(recompute: bool) -> tuple[Tensor, list[Tensor]]:
        model, _ = initial_model(config, load_data(images, "train").classes.names)
        if recompute:
            recompute_layers(model)
        torch.manual_seed(3)
        total, _ = image_loss(model.train(), batch)
        total.backward()
        return total, [p.grad for p in model.parameters() if p.grad is not None]

    (plain, wanted), (again, found) = gradients(False), gradients(True)
    torch.testing.assert_close(again, plain)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_precision_averages_and_accumulation_work_together(images: Path, tmp_path: Path) -> None:
    training = {"precision": "bf16", "ema_decay": 0.9, "accumulate": 2, "max_steps": 2, "workers": 1}
    done = train(recipe(images, training=training, checkpoint_activations=True), tmp_path, progress=False)
    assert done.steps == 2
    assert done.skipped == 0
    tensors = CheckpointFolder(tmp_path / "checkpoints").load(2).tensors
    assert set(tensors) == {"model", "optimizer", "average"}


def test_batches_do_not_depend_on_workers(images: Path, tmp_path: Path) -> None:
    augment = {"short_sides": [48, 64], "long_side": 64, "cut_from": [64], "cut_sides": [40, 64]}
    hashes = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        config = recipe(images, training={"workers": workers, "max_steps": 3}, data={"augment": augment})
        train(config, folder, progress=False)
        hashes.append([line.get("loss") for line in lines(folder)])
    assert hashes[0] == hashes[1]


def test_steps_that_are_not_finite_are_skipped_named_and_end_the_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ImageDataset.batch

    def poisoned(self: ImageDataset, indices: Any, *, seed: int = 0, epoch: int = 0) -> Any:
        batch = whole(self, indices, seed=seed, epoch=epoch)
        if epoch == 0:
            batch.images[0, 0, 0, 0] = torch.nan
        return batch

    monkeypatch.setattr(ImageDataset, "batch", poisoned)
    done = train(recipe(images, data={"val": None}), tmp_path / "some", progress=False)
    assert (done.steps, done.skipped) == (4, 2)
    events = [line for line in lines(tmp_path / "some") if line.get("event") == "step skipped"]
    assert len(events) == 2
    assert all(len(event["samples"]) == 4 and ".png" in event["samples"][0] for event in events)
    with pytest.raises(TrainingDiverged, match=r"diverged at step 2.*\.png"):
        train(recipe(images, training={"max_skipped": 2}, data={"val": None}), tmp_path / "all", progress=False)


def test_a_resumed_run_must_be_the_same_but_for_its_workers(images: Path, tmp_path: Path) -> None:
    train(recipe(images, training={"max_steps": 1}), tmp_path, progress=False)
    again = train(recipe(images, training={"max_steps": 1, "workers": 1}), tmp_path, resume=True, progress=False)
    assert again.steps == 1
    with pytest.raises(BadInput, match="already holds a training run"):
        train(recipe(images, training={"max_steps": 1}), tmp_path, progress=False)
    with pytest.raises(BadInput, match="optimizer"):
        train(recipe(images, optimizer={"learning_rate": 1.0}), tmp_path, resume=True, progress=False)


def test_held_out_images_are_not_trained_on(images: Path, tmp_path: Path) -> None:
    from detection.train import image_data

    learn, check = image_data(recipe(images, data={"val": None, "holdout": 0.25}).data, tmp_path)
    again = image_data(recipe(images, data={"val": None, "holdout": 0.25}).data, tmp_path)[1]
    assert check is not None
    assert check == again
    ids = [record.image_id for record in (*learn.records, *check.records)]
    assert len(check.records) == 2
    assert sorted(ids) == list(range(1, 9))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_configurations_are_read_and_say_their_figure(path: Path) -> None:
    from detection.model_config import check_names

    config = load_config(DetectionConfig, path)
    assert config.model is not None
    check_names(config.model)
    heading = path.read_text().split("data:")[0]
    assert all(line.startswith("#") for line in heading.splitlines())
    assert f"{path.name}" in heading
    if not path.stem.startswith(("bccd", "debug")):
        assert "not run here" in heading
        assert f"_{config.training.epochs}ep" in path.stem


def test_unknown_keys_name_their_neighbour(tmp_path: Path) -> None:
    path = CONFIGS / "debug.yaml"
    for change, hint in (
        ("training.epoch=3", "epochs"),
        ("data.fodler=x", "folder"),
        ("data.augment.flipp=1", "flip"),
    ):
        with pytest.raises(BadInput, match=f"did you mean '{hint}'"):
            load_config(DetectionConfig, path, [change])
    for change, hint in (
        ("model.sizes.num_query=3", "num_queries"),
        ("model.system=dyno", "dino"),
        ("model.denoising.group=3", "groups"),
        ("model.options.two_stages=true", "two_stage"),
        ("model.losses.class_wait=1", "class_weight"),
    ):
        with pytest.raises(BadInput, match=f"did you mean '{hint}'"):
            train(load_config(DetectionConfig, path, [change]), tmp_path / "run", progress=False)


def test_the_debug_configuration_runs_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["train", str(CONFIGS / "debug.yaml"), "--output", str(tmp_path), "--json", "--set", "device=cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) >= {"AP", "AP50", "per_class"}
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [1, 2, 3]
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.full((50, 90, 3), 120, np.uint8)).save(photo)
    arguments = ["predict", str(photo), "--model", str(tmp_path), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--threshold", "0"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["width"] == 90
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path), str(tmp_path / "generated"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["AP"] == json.loads((tmp_path / "val_scores.json").read_text())["AP"]
