"""What the loss of a step does where something is not finite, without any process group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_detection import folder_of_images, recipe

from detection.data.check import load_data
from detection.data.dataset import ImageDataset
from detection.losses import image_loss
from detection.train import initial_model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("system", ["detr", "dino", "co_dino"])
def test_the_loss_is_the_model_s_own(images: Path, system: str) -> None:
    data, config = load_data(images, "train"), recipe(images, system)
    model = initial_model(config, data.classes.names)[0].train()
    batch = ImageDataset(data.records, config.data.augment).batch([0, 1])
    torch.manual_seed(4)
    wanted = model.loss(batch.images, batch.mask, batch.targets)
    for normalisers in ("all", "official"):
        torch.manual_seed(4)
        total, terms = image_loss(model, batch, normalisers)  # type: ignore[arg-type]
        torch.testing.assert_close(total, wanted.total)
        assert set(terms) == set(wanted.terms)


@pytest.mark.parametrize("where", ["images", "weights"])
def test_what_is_not_finite_gives_nan_and_no_exception(images: Path, where: str) -> None:
    data, config = load_data(images, "train"), recipe(images)
    model = initial_model(config, data.classes.names)[0].train()
    batch = ImageDataset(data.records, config.data.augment).batch([0, 1])
    if where == "images":
        batch.images[1, :, 5, 5] = torch.inf
    else:
        with torch.no_grad():
            model.detector.detr.decoder.heads[0].classes.bias.fill_(torch.nan)
    total, terms = image_loss(model, batch)
    assert bool(total.isnan())
    assert list(terms) == ["features" if where == "images" else "predictions"]
