from __future__ import annotations

import math

import pytest
import torch

from momentdetr.detr.types import Targets
from momentdetr.retrieval.saliency import (
    indicator_loss,
    margin_loss,
    negative_pair_loss,
    rank_contrastive_loss,
    saliency_inside,
)
from momentdetr.retrieval.types import SaliencyTargets


def test_margin_loss_equals_a_naive_loop_and_skips_absent_pairs() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.0], [9.0, -9.0, 0.0]], dtype=torch.float64)
    targets = SaliencyTargets(None, torch.tensor([[1, 0], [0, 2], [-1, -1]]), torch.tensor([[0, 2], [1, 0], [-1, -1]]))
    hinges = [max(0, 0.2 + n - p) for p, n in [(0.9, 0.1), (0.1, 0.3), (0.5, 0.2), (0.0, 0.5)]]
    assert margin_loss(scores, targets, 0.2).item() == pytest.approx(2 * sum(hinges) / 4)


def test_margin_loss_of_no_pairs_is_zero() -> None:
    none = torch.full((1, 2), -1)
    assert margin_loss(torch.zeros(1, 3), SaliencyTargets(None, none, none), 0.2) == 0


def test_negative_pair_loss_is_minus_log_of_silence_and_survives_large_scores() -> None:
    scores = torch.tensor([[0.5, -1.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    expected = -sum(math.log(1 - 1 / (1 + math.exp(-s))) for s in (0.5, -1.0))
    assert negative_pair_loss(scores, mask).item() == pytest.approx(expected)
    assert negative_pair_loss(torch.full((1, 1), 200.0), torch.ones(1, 1, dtype=torch.bool)) == 200


def test_indicator_loss_asks_each_real_clip_whether_its_middle_is_inside() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 6, dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    # Of five clips the first moment covers 1 and 2, the second less than half of 4; the other row has none.
    boxes = torch.tensor([[[0.4, 0.4], [0.96, 0.08]], [[0.5, 1.0], [0.5, 1.0]]], dtype=torch.float64)
    spans = Targets(torch.zeros(2, 2, dtype=torch.long), boxes, torch.tensor([[True, True], [False, False]]))
    inside = [[0, 1, 1, 0, 0], [0] * 6]
    terms = [
        -math.log(p if i else 1 - p)
        for row, flags in zip(scores.sigmoid().tolist(), inside, strict=True)
        for p, i in zip(row, flags, strict=False)
    ]
    assert indicator_loss(scores, spans, mask).item() == pytest.approx(sum(terms) / 11)


def test_saliency_inside_is_the_mean_of_the_clips_in_a_span() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0, 8.0, 99.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    mask = torch.tensor([[True] * 4 + [False], [True] * 5])
    spans = torch.tensor([[[0.0, 0.5], [0.9, 1.7], [0.3, 0.3]], [[-1.0, 2.0], [0.31, 0.49], [0.8, 0.2]]])
    # Of four clips: the first two; the last (no middle is inside, 1.3 is beyond it); the second (an empty span).
    # Of five: all; the third (no middle is inside, 0.4 is its start); the third again (the span is reversed).
    expected = torch.tensor([[1.5, 8.0, 2.0], [3.0, 3.0, 3.0]])
    torch.testing.assert_close(saliency_inside(scores, spans, mask), expected)


def test_rank_contrastive_loss_equals_a_naive_loop() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 5, dtype=torch.float64)
    levels = torch.tensor([[0.0, 3.0, 11.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, False], [True, True, True, True, True]])
    total = 0.0
    for threshold in range(1, 12):
        for b in range(2):
            positive = [t for t in range(5) if levels[b, t] >= threshold]
            if not positive:
                continue
            seen = [scores[b, t].item() / 0.5 if mask[b, t] else -1e3 / 0.5 for t in range(5)]
            top = max(seen)
            denominator = math.log(sum(math.exp(s - top) for s in seen) + 1e-6)
            log_prob = sum((seen[t] - top - denominator) for t in positive if mask[b, t])
            total -= log_prob / (len(positive) + 1e-6) / 2  # mean over the batch of two
    assert rank_contrastive_loss(scores, levels, mask).item() == pytest.approx(total / 12, rel=1e-9)
