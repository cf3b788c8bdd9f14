from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from momentdetr.detr.assembly import QUALITY_LOSSES, quality_criterion
from momentdetr.detr.boxes import iou, to_corners
from momentdetr.detr.types import Assignment, Output, Predictions, Targets

CLASSES = 5


def batch(num_dims: int, generator: torch.Generator) -> tuple[Predictions, Targets, Assignment]:
    logits = torch.randn(1, 4, CLASSES, generator=generator, dtype=torch.float64)
    boxes = torch.rand(1, 4, 2 * num_dims, generator=generator, dtype=torch.float64) * 0.5 + 0.25
    targets = Targets(torch.tensor([[2, 0]]), boxes[:, :2] * 0.9 + 0.05, torch.ones(1, 2, dtype=torch.bool))
    return Predictions(logits, boxes), targets, Assignment(torch.zeros(2).long(), torch.tensor([1, 3]), torch.arange(2))


def entropy(p: float, wanted: float) -> float:
    return -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)


# Of one number: what is said, the IoU (0 where nothing is answered for), and whether it answers for a target.
NAIVE: dict[str, Callable[[float, float, bool], float]] = {
    "quality_focal": lambda p, u, answers: abs(p - u) ** 2 * entropy(p, u),
    "iou_aware": lambda p, u, answers: entropy(p, p**0.25 * u**0.75) if answers else p**2 * entropy(p, 0),
    "matchability_aware": lambda p, u, answers: entropy(p, u**1.5) if answers else p**1.5 * entropy(p, 0),
}


@pytest.mark.parametrize("name", NAIVE)
def test_a_loss_equals_a_naive_loop(name: str, num_dims: int, generator: torch.Generator) -> None:
    predictions, targets, assignment = batch(num_dims, generator)
    total = 0.0
    for q in range(4):
        for k in range(CLASSES):
            answers, u = False, 0.0
            for query, target in ((1, 0), (3, 1)):
                if q == query and k == targets.labels[0, target]:
                    answers = True
                    u = iou(to_corners(predictions.boxes[0, q]), to_corners(targets.boxes[0, target]))[0].item()
            total += NAIVE[name](predictions.logits[0, q, k].sigmoid().item(), u, answers)
    found = QUALITY_LOSSES[name](predictions, targets, assignment, torch.tensor(3.0))
    assert found.item() == pytest.approx(total / 3, rel=1e-9)


@pytest.mark.parametrize("name", NAIVE)
def test_boxes_get_no_gradient_and_logits_a_finite_one(name: str, generator: torch.Generator) -> None:
    predictions, targets, assignment = batch(2, generator)
    predictions.logits.requires_grad_()
    predictions.boxes.requires_grad_()
    far = Targets(targets.labels, torch.zeros_like(targets.boxes), targets.mask)  # an IoU of 0, a box without width
    for true in (targets, far):
        loss = QUALITY_LOSSES[name](predictions, true, assignment, torch.tensor(2.0))
        logits, boxes = torch.autograd.grad(loss, [predictions.logits, predictions.boxes], allow_unused=True)
        assert boxes is None
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAIVE)
def test_without_targets_only_the_background_counts(name: str, generator: torch.Generator) -> None:
    predictions, _, _ = batch(1, generator)
    targets = Targets(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.bool))
    losses = quality_criterion(loss=name)(Output((predictions,), predictions.logits[None]), targets)
    said = predictions.logits.sigmoid().flatten().tolist()
    expected = sum(NAIVE[name](p, 0.0, False) for p in said)
    assert losses.terms["class"].item() == pytest.approx(expected, rel=1e-9)
    assert losses.terms["l1"] == losses.terms["giou"] == 0


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="quality_focal, iou_aware, matchability_aware"):
        quality_criterion(loss="sharp")
