"""Trains a tiny detector in float64 in one process or in one of a group, from a JSON of `recipe`'s arguments.

python grouped_training.py IMAGES OUT CHANGES
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_detection import recipe

from detection.data.check import load_data
from detection.data.dataset import ImageBatch, ImageDataset
from detection.losses import image_loss
from detection.train import initial_model
from momentdetr.training import distributed
from momentdetr.training.loop import fit
from momentdetr.training.task import Task


def doubled(batch: ImageBatch) -> ImageBatch:
    targets = replace(batch.targets, boxes=batch.targets.boxes.double())
    return replace(batch, images=batch.images.double(), targets=targets)


def main() -> None:
    torch.set_num_threads(1)
    images, out, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    config = recipe(images, changes.pop("system"), **changes)
    data = load_data(images, "train")
    with distributed.process_group("cpu"):
        model = initial_model(config, data.classes.names)[0].double()

        def loss(network: Any, batch: ImageBatch, epoch: int) -> Any:
            return image_loss(network, batch, config.normalisers)

        samples = ImageDataset(data.records, config.data.augment)
        task = Task(model=model, samples=samples, loss=loss, names=lambda b: b.sample_ids, place=doubled)
        fit(task, config.training, config.optimizer, config.schedule, out, progress=False)
        weights = torch.cat([parameter.flatten() for parameter in model.parameters()])
        torch.save(weights, out.with_name(f"{out.name}-{distributed.rank()}.pt"))


if __name__ == "__main__":
    main()
