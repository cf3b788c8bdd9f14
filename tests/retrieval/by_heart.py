"""Retrievers that learn a few samples by heart: what all overfit tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from momentdetr.detr.boxes import iou, to_corners
from momentdetr.detr.losses import Losses
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.generated import generate
from momentdetr.retrieval.model import MomentPredictions, MomentRetriever
from momentdetr.retrieval.types import MomentTargets, VideoText


def learn(
    model: MomentRetriever,
    inputs: VideoText,
    targets: MomentTargets,
    *,
    steps: int = 220,
    learning_rate: float = 6e-3,
    last: float = 0.05,
) -> Losses:
    """The losses of the last step.

    Args:
        last: part of the learning rate that is left at the end.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = model.loss(inputs, targets)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return losses


def best_overlaps(found: MomentPredictions, targets: MomentTargets, sample: int) -> torch.Tensor:
    """IoU of each true moment of a sample with the nearest of as many best answers."""
    true = to_corners(targets.spans.boxes[sample, targets.spans.mask[sample]])
    best = found.spans[sample, found.scores[sample].topk(len(true)).indices]
    return iou(best[:, None], true[None])[0].max(0).values


def finds_all_and_nothing_else(found: MomentPredictions, targets: MomentTargets, samples: Sequence[int]) -> None:
    """Answers of a score above one half cover the true moments of these samples, one by one."""
    for sample in samples:
        true = to_corners(targets.spans.boxes[sample, targets.spans.mask[sample]])
        overlap = iou(found.spans[sample, found.scores[sample] > 0.5][:, None], true[None])[0]
        assert overlap.max(0).values.min() > 0.8
        assert overlap.max(1).values.min() > 0.8


def eight_samples(spec: FeatureSpec) -> tuple[VideoText, MomentTargets]:
    """Generated ones; the last query is not in its video."""
    world = generate(8, spec, 1)
    batch = MomentDataset(world.records, world.videos, world.texts, spec).batch(range(8))
    return batch.inputs, batch.targets
