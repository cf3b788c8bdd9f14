from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from momentdetr.detr.boxes import giou, to_corners
from momentdetr.detr.losses import Criterion, cross_entropy, focal, giou_loss, l1
from momentdetr.detr.types import Assignment, Output, Predictions, Supervision, Targets


def batch(num_dims: int, num_classes: int) -> tuple[Predictions, Targets, Assignment]:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 3, num_classes, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 3, 2 * num_dims, generator=generator, dtype=torch.float64)
    target_boxes = torch.rand(2, 2, 2 * num_dims, generator=generator, dtype=torch.float64)
    targets = Targets(torch.tensor([[1, 0], [0, 0]]), target_boxes, torch.tensor([[True, True], [True, False]]))
    assignment = Assignment(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), torch.tensor([1, 0, 0]))
    return Predictions(logits, boxes), targets, assignment


COUNT = torch.tensor(3.0)  # targets of `batch`


def empty() -> Assignment:
    none = torch.zeros(0, dtype=torch.long)
    return Assignment(none, none, none)


@pytest.mark.parametrize("normalize", ["weights", "queries"])
def test_cross_entropy_equals_a_naive_loop(normalize: str) -> None:
    predictions, targets, assignment = batch(1, 3)
    truth = [[0, 2, 1], [2, 0, 2]]  # by hand: the assigned labels, else the last class
    total = weight_sum = 0.0
    for b in range(2):
        for q in range(3):
            weight = 0.1 if truth[b][q] == 2 else 1.0
            log_prob = predictions.logits[b, q].log_softmax(0)[truth[b][q]].item()
            total -= weight * log_prob
            weight_sum += weight
    expected = total / (weight_sum if normalize == "weights" else 6)
    found = cross_entropy(predictions, targets, assignment, COUNT, background_weight=0.1, normalize=normalize)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_focal_equals_a_naive_loop() -> None:
    predictions, targets, assignment = batch(1, 2)
    positives = {(0, 0, 0), (0, 2, 1), (1, 1, 0)}  # by hand: (sample, query, class)
    total = 0.0
    for b in range(2):
        for q in range(3):
            for k in range(2):
                p = 1 / (1 + math.exp(-predictions.logits[b, q, k].item()))
                if (b, q, k) in positives:
                    total -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    total -= 0.75 * p**2 * math.log(1 - p)
    assert focal(predictions, targets, assignment, COUNT).item() == pytest.approx(total / 3, abs=1e-12)


@pytest.mark.parametrize("normalize", ["boxes", "mean"])
def test_box_losses_equal_a_naive_loop(num_dims: int, normalize: str) -> None:
    predictions, targets, assignment = batch(num_dims, 2)
    distance = overlap = 0.0
    for b, q, t in [(0, 0, 1), (0, 2, 0), (1, 1, 0)]:
        predicted, true = predictions.boxes[b, q], targets.boxes[b, t]
        distance += sum(abs(x - y) for x, y in zip(predicted.tolist(), true.tolist(), strict=True))
        overlap += 1 - giou(to_corners(predicted), to_corners(true)).item()
    per_pair = 2 * num_dims if normalize == "mean" else 1
    found = l1(predictions, targets, assignment, COUNT, normalize=normalize)
    assert found.item() == pytest.approx(distance / 3 / per_pair, abs=1e-12)
    found = giou_loss(predictions, targets, assignment, COUNT, normalize=normalize)
    assert found.item() == pytest.approx(overlap / 3, abs=1e-12)


@pytest.mark.parametrize("normalize", ["boxes", "mean"])
def test_no_targets_cost_nothing_and_keep_the_gradient(num_dims: int, normalize: str) -> None:
    predictions, targets, _ = batch(num_dims, 2)
    boxes = predictions.boxes.clone().requires_grad_()
    nothing = Targets(targets.labels, targets.boxes, torch.zeros(2, 2, dtype=torch.bool))
    loss = l1(Predictions(predictions.logits, boxes), nothing, empty(), torch.ones(()), normalize=normalize)
    loss = loss + giou_loss(
        Predictions(predictions.logits, boxes), nothing, empty(), torch.ones(()), normalize=normalize
    )
    loss.backward()
    assert loss == 0
    assert boxes.grad is not None
    assert (boxes.grad == 0).all()


def test_half_precision_losses_are_computed_in_float32() -> None:
    predictions, targets, assignment = batch(2, 3)
    half = Predictions(predictions.logits.bfloat16(), predictions.boxes.bfloat16())
    exact = Predictions(half.logits.double(), half.boxes.double())
    for term in (cross_entropy, focal, l1, giou_loss):
        found = term(half, targets, assignment, COUNT)
        assert found.item() == pytest.approx(term(exact, targets, assignment, COUNT).item(), rel=1e-5)


def test_the_criterion_adds_every_supervision_once() -> None:
    predictions, targets, assignment = batch(1, 3)
    other = Predictions(predictions.logits.flip(1), predictions.boxes.flip(1))
    calls: list[Predictions] = []

    def matcher(said: Predictions, true: Targets) -> Assignment:
        calls.append(said)
        return assignment

    terms = {"class": cross_entropy, "l1": partial(l1, normalize="mean")}
    weights = {"class": 2.0, "l1": 5.0}
    hidden = torch.zeros(2, 2, 3, 4)
    extra = Supervision("rank", other, assignment=empty(), weight=0.5)
    output = Output((other, predictions), hidden, supervisions=(extra,))
    found = Criterion(matcher=matcher, terms=terms, weights=weights)(output, targets)

    assert calls == [predictions, other]  # the last layer first; the extra one brought its own assignment
    assert set(found.terms) == {"class", "l1", "class_0", "l1_0", "class_rank", "l1_rank"}
    expected = sum(
        weight
        * (2.0 * cross_entropy(said, targets, who, COUNT) + 5.0 * l1(said, targets, who, COUNT, normalize="mean"))
        for said, who, weight in [(predictions, assignment, 1), (other, assignment, 1), (other, empty(), 0.5)]
    )
    torch.testing.assert_close(found.total.double(), expected, atol=1e-6, rtol=0)

    last_only = Criterion(matcher=matcher, terms=terms, weights=weights, auxiliary=False)(output, targets)
    assert set(last_only.terms) == {"class", "l1", "class_rank", "l1_rank"}


def test_a_supervision_may_bring_its_own_targets_count_and_terms() -> None:
    predictions, targets, assignment = batch(2, 3)
    own = Targets(targets.labels.flip(0), targets.boxes.flip(0), targets.mask)
    terms = {"class": focal, "l1": l1}
    criterion = Criterion(matcher=lambda said, true: empty(), terms=terms, weights={"class": 1.0, "l1": 5.0})
    extras = (
        Supervision("own", predictions, assignment, targets=own, count=torch.tensor(7.0)),
        Supervision("agnostic", predictions, assignment, class_agnostic=True),
        Supervision("boxes", predictions, assignment, only=("l1",)),
        Supervision("early", predictions, assignment, auxiliary=True),
    )
    output = Output((predictions,), torch.zeros(1, 2, 3, 4), supervisions=extras)
    found = criterion(output, targets).terms
    torch.testing.assert_close(found["l1_own"], l1(predictions, own, assignment, torch.tensor(7.0)))
    zeros = Targets(torch.zeros_like(targets.labels), targets.boxes, targets.mask)
    torch.testing.assert_close(found["class_agnostic"], focal(predictions, zeros, assignment, COUNT))
    assert not torch.isclose(found["class_agnostic"], focal(predictions, targets, assignment, COUNT))
    assert "l1_boxes" in found
    assert "class_boxes" not in found

    criterion.auxiliary = False
    assert set(criterion(output, targets).terms) == set(found) - {"class_early", "l1_early"}


def test_gradients_agree_with_finite_differences(num_dims: int) -> None:
    predictions, targets, assignment = batch(num_dims, 3)
    logits, boxes = predictions.logits.clone().requires_grad_(), predictions.boxes.clone().requires_grad_()
    for term in (cross_entropy, focal, l1, giou_loss):
        torch.autograd.gradcheck(
            lambda x, y, term=term: term(Predictions(x, y), targets, assignment, COUNT) + 0 * (x.sum() + y.sum()),
            (logits, boxes),
        )


def test_cross_entropy_is_torch_s_own_for_one_layer() -> None:
    predictions, targets, assignment = batch(2, 3)
    classes = torch.tensor([[0, 2, 1], [2, 0, 2]])
    weights = torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)
    expected = F.cross_entropy(predictions.logits.flatten(0, 1), classes.flatten(), weights)
    torch.testing.assert_close(cross_entropy(predictions, targets, assignment, COUNT), expected)
