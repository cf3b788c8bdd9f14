"""A folder and a trained model, and nothing else said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_detection import folder_of_images, recipe
from typer.testing import CliRunner

from detection.__main__ import app
from detection.checkpoint import read_config, save
from detection.data.check import load_data
from detection.finetune import as_yaml, batch_for, epochs_for, recipe_for
from detection.initial import begin_with, class_tensors
from detection.recipes import DetectionConfig
from detection.train import initial_model, train
from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.training.config import load_config


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("shapes"), 16)


def trained(images: Path, folder: Path, system: str = "dino", labels: tuple[str, ...] | None = None) -> Path:
    """A model folder as a run leaves it, its weights made up."""
    names = labels or load_data(images, "train").classes.names
    torch.manual_seed(5)
    model, described = initial_model(recipe(images, system), names)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return save(folder, described, model.state_dict(), names, input_size=(64, 64))


def test_the_same_classes_keep_every_weight(images: Path, tmp_path: Path) -> None:
    names = load_data(images, "train").classes.names
    folder = trained(images, tmp_path)
    model, _, anew = begin_with(folder, names)
    assert anew == []
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("system", ["dino", "detr", "dn_detr", "co_dino"])
@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")], ids=["same-count", "other-count"])
def test_other_classes_start_anew_and_nothing_else_does(
    images: Path, tmp_path: Path, system: str, labels: tuple[str, ...]
) -> None:
    folder = trained(images, tmp_path, system, ("x", "y"))
    model, described, anew = begin_with(folder, labels)
    assert described["num_classes"] == len(labels)
    assert read_config(folder)["labels"] == ["x", "y"]
    stored, now = load_file(folder / "model.safetensors"), model.state_dict()
    kept = {name for name in now if now[name].shape == stored[name].shape and torch.equal(now[name], stored[name])}
    parts = ("classes", "denoising.labels", "heads.0.head.boxes")  # Faster R-CNN has boxes for each class
    assert all(any(part in name for part in parts) for name in anew), anew
    assert any("decoder.heads.0.classes" in name for name in anew)
    assert ("denoising" in "".join(anew)) == (system != "detr")
    assert set(now) - kept <= set(anew)
    assert not kept & {name for name in anew if name.endswith("weight")}


def test_what_depends_on_the_classes_is_found_by_shape(images: Path) -> None:
    described = initial_model(recipe(images), ("a", "b"))[1]
    names = class_tensors(described)
    assert "detector.detr.denoising.labels.weight" in names
    assert not any("self_attention" in name or name.startswith("backbone") for name in names)


def test_a_folder_and_a_model_are_enough(images: Path, tmp_path: Path) -> None:
    folder = trained(images, tmp_path / "model", labels=("x", "y"))
    changes = ["training.max_steps=2", "device=cpu"]
    config, told = recipe_for(images, str(folder), changes)
    assert config.initial == str(folder)
    assert (config.data.train, config.data.val, config.data.short_side) == ("train", "val", 64)
    assert "16 images" in told[-1]
    said: list[str] = []
    done = train(config, tmp_path / "run", progress=False, say=said.append)
    assert done.steps == 2
    assert any("start anew" in text and "decoder.heads.0.classes.weight" in text for text in said)
    assert json.loads((done.folder / "config.json").read_text())["model"]["num_classes"] != 2
    # A run is as good a beginning as its model folder, and the settings are a file that train takes.
    again, _ = recipe_for(images, str(tmp_path / "run"), changes)
    assert again.initial == str(tmp_path / "run" / "detector")
    (tmp_path / "again.yaml").write_text(as_yaml(again))
    assert load_config(DetectionConfig, tmp_path / "again.yaml") == again


def test_the_command_line_takes_a_folder_and_a_model(images: Path, tmp_path: Path) -> None:
    folder = trained(images, tmp_path / "model")
    arguments = ["train", "--data", str(images), "--model", str(folder), "--output", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--set", "training.max_steps=1", "--set", "device=cpu"])
    assert result.exit_code == 0, result.output
    assert "AP50" in json.loads(result.stdout)
    assert "16 images to learn from" in result.stderr
    assert "start anew" not in result.stderr
    for wrong in (["train"], ["train", "some.yaml", "--data", str(images)]):
        refused = CliRunner().invoke(app, wrong)
        assert isinstance(refused.exception, BadInput)
        assert "either a CONFIG or --data" in str(refused.exception)


def test_settings_follow_the_size_of_the_data(images: Path) -> None:
    steps, before = [], 10**9
    for number in (16, 80, 500, 5000, 118000):
        batch = batch_for(number)
        epochs = epochs_for(number, batch, 3000)
        steps.append(epochs * -(-number // batch))
        assert epochs <= before
        before = epochs
    assert batch_for(16) < batch_for(80)
    assert steps == sorted(steps)  # more images are never trained on for shorter
    assert min(steps) >= 2000
    assert recipe_for(images, "dino")[0].model is not None
    assert "random weights" in recipe_for(images, "dino")[1][0]


def test_without_images_to_be_scored_on_some_are_held_out(images: Path, tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images", 16)
    (folder / "annotations" / "instances_val.json").unlink()
    config, _ = recipe_for(folder, str(trained(images, tmp_path / "model")))
    assert (config.data.val, config.data.holdout) == (None, 0.1)


def test_what_cannot_be_begun_with_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither a model folder nor a system"):
        recipe_for(images, str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        recipe_for(images, str(tmp_path / "empty"))
    folder = trained(images, tmp_path / "model")
    changed = recipe(images, model={"sizes": {"num_queries": 9}}, initial=str(folder))
    with pytest.raises((BadCheckpoint, BadInput)):
        initial_model(changed, ("a", "b"))
