from __future__ import annotations

import pytest
import torch

from momentdetr.detr.monitor import cardinality_error, class_error
from momentdetr.detr.types import Assignment, Predictions, Targets


def said(*classes: list[int]) -> Predictions:
    logits = torch.nn.functional.one_hot(torch.tensor(classes), 4).float()
    return Predictions(logits, torch.zeros(*logits.shape[:2], 4))


def true(labels: list[list[int]], mask: list[list[bool]]) -> Targets:
    return Targets(torch.tensor(labels), torch.zeros(len(labels), len(labels[0]), 4), torch.tensor(mask))


def test_class_error_counts_matched_queries_only() -> None:
    predictions, targets = said([0, 1, 3], [2, 2, 2]), true([[1, 2], [2, 0]], [[True, True], [True, False]])
    pairs = Assignment(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]), torch.tensor([0, 1, 0]))
    assert class_error(predictions, targets, pairs).item() == pytest.approx(100 / 3)  # only "3" for 2 is wrong


def test_class_error_without_targets_is_that_of_the_official_code() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert class_error(said([0]), true([[0]], [[False]]), Assignment(none, none, none)) == 100


def test_cardinality_error_is_the_mean_gap_between_objects_said_and_true() -> None:
    predictions, targets = said([0, 1, 3], [3, 3, 3]), true([[1, 2], [2, 0]], [[True, True], [True, False]])
    assert cardinality_error(predictions, targets).item() == 0.5  # 2 of 2, and 0 of 1
