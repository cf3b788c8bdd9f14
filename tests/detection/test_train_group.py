"""Two processes train as one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_detection import group_of
from tiny_detection import SIZES, folder_of_images

SCRIPT = Path(__file__).with_name("grouped_training.py")
FROZEN = {"name": "test_resnet", "frozen_norm": True, "frozen_stages": 0}  # batch statistics would be of other batches


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("shapes"))


def run(images: Path, out: Path, size: int, **changes: Any) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """Lines of metrics, and every process's weights."""
    given = [str(images), str(out), json.dumps(changes)]
    assert group_of(SCRIPT, [given] * size) == [0] * size
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return lines, [torch.load(out.with_name(f"{out.name}-{rank}.pt"), weights_only=True) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_have_the_losses_and_weights_of_one(images: Path, tmp_path: Path, accumulate: int) -> None:
    model = {"backbone": FROZEN, "sizes": {**SIZES, "dropout": 0.0}, "options": {"refine": True}}
    common: dict[str, Any] = {"system": "deformable_detr", "model": model}
    training = {"epochs": 2, "batch_size": 4, "log_every": 1}
    one, (wanted,) = run(images, tmp_path / "one", 1, **common, training=training)
    two, (first, second) = run(images, tmp_path / "two", 2, **common, training={**training, "accumulate": accumulate})
    assert torch.equal(first, second)
    assert len(one) == len(two) == 4
    if accumulate == 2:  # parts in time are normalised by their own number of targets
        return
    for ours, alone in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], abs=1e-9)
        for name, value in alone["terms"].items():
            assert ours["terms"][name] == pytest.approx(value, abs=1e-9), name
    torch.testing.assert_close(first, wanted, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["dino", "dn_detr", "co_dino"])
@pytest.mark.parametrize("normalisers", ["all", "official"])
def test_a_process_whose_images_are_empty_holds_nobody_up(
    images: Path, tmp_path: Path, system: str, normalisers: str
) -> None:
    folder = folder_of_images(tmp_path / "images")
    file = folder / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] > 5]
    file.write_text(json.dumps(document))
    training = {"epochs": 2, "batch_size": 2, "log_every": 1}
    lines, (first, second) = run(folder, tmp_path / "run", 2, system=system, training=training, normalisers=normalisers)
    assert len(lines) == 8
    assert torch.equal(first, second)
