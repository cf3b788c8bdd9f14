"""A detector's answers for annotated images, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from detection.data.augment import evaluation_size
from detection.data.check import ImageData
from detection.data.coco import to_coco
from detection.data.dataset import ImageDataset
from detection.model import ImageDetector
from detection.scoring import DetectionScores, rows_of, score
from momentdetr.errors import BadInput
from momentdetr.training import distributed
from momentdetr.training.loading import Key, batches

Progress = Callable[[int, int], None]


def detect(
    model: ImageDetector,
    data: ImageData,
    category_ids: Sequence[int | None],
    *,
    short_side: int = 800,
    long_side: int | None = 1333,
    batch_size: int = 1,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Detect in every image; in a process group, each process takes its share, and all get everything.

    Args:
        model: on the device where it runs.
        data: images.
        category_ids: the data set's number of each label of the model; None: no class of it.
        short_side: of the images as the model sees them, pixels.
        long_side: the most that their long side may get.
        batch_size: images at once; what is padded may change what is found a little.
        workers: processes that read images.
        progress: called with (images done, of how many).

    Returns:
        detections in COCO's result format.
    """
    dataset = ImageDataset(data.records, evaluation_size(short_side, long_side))
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    keys = [Key(tuple(own[i : i + batch_size]), 0) for i in range(0, len(own), batch_size)]
    device = next(model.parameters()).device
    was_training, rows, done = model.training, list[dict[str, Any]](), 0
    model.eval()
    with torch.no_grad():
        for batch in batches(dataset, keys, 0, workers):
            moved = batch.to(device)
            for record, found in zip(batch.records, model.predict(moved.images, moved.mask, moved.sizes), strict=True):
                rows += rows_of(record.image_id, found, category_ids)
            done += len(batch.records)
            if progress is not None:
                progress(done, len(own))
    model.train(was_training)
    return [row for part in distributed.gathered(rows) for row in part]


def evaluate(rows: Sequence[dict[str, Any]], data: ImageData) -> DetectionScores:
    """Score detections by COCO's rules; crowds and images without targets count as they do there."""
    return score(rows, to_coco(data.records, data.classes))


def category_ids_by_name(labels: Sequence[str | None], data: ImageData) -> tuple[list[int | None], list[str]]:
    """The data set's number of each label of a model, and the names of its classes that the model does not know.

    Raises:
        BadInput: the two have no class in common.
    """
    number = dict(zip(data.classes.names, data.classes.category_ids, strict=True))
    ids = [None if name is None else number.get(name) for name in labels]
    if not any(one is not None for one in ids):
        known = ", ".join(name for name in labels if name) or "no name at all"
        raise BadInput(
            f"the model and the data have no class in common: the model knows {known}; the data has "
            f"{', '.join(data.classes.names)}"
        )
    return ids, [name for name in number if name not in labels]
