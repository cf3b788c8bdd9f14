from __future__ import annotations

import itertools

import pytest
import torch

from momentdetr.detr.assignment import (
    HungarianMatcher,
    focal_class_cost,
    giou_cost,
    l1_cost,
    softmax_class_cost,
)
from momentdetr.detr.types import Predictions, Targets

COSTS = {"class": softmax_class_cost, "l1": l1_cost, "giou": giou_cost}
WEIGHTS = {"class": 1.0, "l1": 5.0, "giou": 2.0}


def make_batch(num_dims: int, counts: list[int], num_queries: int = 4) -> tuple[Predictions, Targets]:
    generator = torch.Generator().manual_seed(num_dims)
    batch, most = len(counts), max(counts, default=0)

    def boxes(count: int) -> torch.Tensor:
        return torch.rand(batch, count, 2 * num_dims, generator=generator) * 0.5 + 0.1

    logits = torch.randn(batch, num_queries, 4, generator=generator)
    labels = torch.randint(0, 3, (batch, most), generator=generator)
    mask = torch.arange(most)[None] < torch.tensor(counts)[:, None]
    return Predictions(logits, boxes(num_queries)), Targets(labels, boxes(most), mask)


def test_it_finds_the_cheapest_assignment_of_all(num_dims: int) -> None:
    predictions, targets = make_batch(num_dims, [3, 0, 1])
    found = HungarianMatcher(COSTS, WEIGHTS)(predictions, targets)
    for sample in range(3):
        count = int(targets.mask[sample].sum())
        cost = sum(
            WEIGHTS[name]
            * function(
                predictions.logits[sample],
                predictions.boxes[sample],
                targets.labels[sample, :count],
                targets.boxes[sample, :count],
            )
            for name, function in COSTS.items()
        )
        rows = found.sample == sample
        mine = sum(cost[q, t].item() for q, t in zip(found.query[rows], found.target[rows], strict=True))
        best = min(
            sum(cost[q, t].item() for t, q in enumerate(choice)) for choice in itertools.permutations(range(4), count)
        )
        assert mine == pytest.approx(best, abs=1e-6)
        assert sorted(found.target[rows].tolist()) == list(range(count))


def test_padding_of_targets_is_never_matched_even_in_the_middle() -> None:
    predictions, targets = make_batch(1, [3])
    hole = Targets(targets.labels, targets.boxes, torch.tensor([[True, False, True]]))
    assert sorted(HungarianMatcher(COSTS, WEIGHTS)(predictions, hole).target.tolist()) == [0, 2]


def test_more_targets_than_queries(num_dims: int) -> None:
    predictions, targets = make_batch(num_dims, [6], num_queries=4)
    found = HungarianMatcher(COSTS, WEIGHTS)(predictions, targets)
    assert sorted(found.query.tolist()) == [0, 1, 2, 3]
    assert len(set(found.target.tolist())) == 4


def test_a_batch_without_targets_is_an_empty_assignment() -> None:
    predictions, targets = make_batch(2, [0, 0])
    assert HungarianMatcher(COSTS, WEIGHTS)(predictions, targets).query.shape == (0,)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_predictions_are_named(poison: float) -> None:
    predictions, targets = make_batch(1, [1, 2])
    predictions.boxes[1, 0, 0] = poison
    with pytest.raises(ValueError, match=r"'l1' of sample 1 is not finite"):
        HungarianMatcher(COSTS, WEIGHTS)(predictions, targets)


def test_half_precision_is_matched_in_float32() -> None:
    predictions, targets = make_batch(2, [2, 3])
    half = Predictions(predictions.logits.bfloat16(), predictions.boxes.bfloat16())
    exact = Predictions(half.logits.float(), half.boxes.float())
    matcher = HungarianMatcher(COSTS, WEIGHTS)
    assert matcher(half, targets).query.tolist() == matcher(exact, targets).query.tolist()


def test_focal_cost_is_the_loss_of_saying_minus_that_of_denying() -> None:
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    p = logits.sigmoid()
    say = -0.25 * (1 - p) ** 2 * p.log()
    deny = -0.75 * p**2 * (1 - p).log()
    found = focal_class_cost(logits, torch.zeros(1, 2), torch.tensor([0, 1]), torch.zeros(2, 2))
    torch.testing.assert_close(found, say - deny, atol=1e-6, rtol=0)


def test_costs_and_weights_must_agree() -> None:
    with pytest.raises(ValueError, match="same names"):
        HungarianMatcher(COSTS, {"class": 1.0})
