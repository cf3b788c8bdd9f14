from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from momentdetr.detr import systems
from momentdetr.detr.assembly import Sizes, Task
from momentdetr.detr.model import Detector
from momentdetr.detr.monitor import cardinality_error, class_error, trace_not_finite
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


def make_detector() -> tuple[Detector, list[Tensor], Tensor]:
    torch.manual_seed(0)
    sizes = Sizes(8, 2, 8, encoder_layers=1, decoder_layers=2, num_queries=3, num_levels=1, group_norm=2)
    detector = systems.dab_detr(Task(1, (4,), 2), sizes)
    return detector, [torch.randn(2, 4, 6)], torch.ones(2, 12, dtype=torch.bool)


def test_a_parameter_that_is_not_finite_is_named() -> None:
    detector, maps, mask = make_detector()
    with torch.no_grad():
        detector.detr.decoder.layers[1].feed_forward.expand.bias[2] = torch.inf
    with (
        pytest.raises(
            ValueError, match=r"infinity of sample 0 arises in 'detr\.decoder\.layers\.1\.feed_forward\.expand'.*'bias'"
        ),
        trace_not_finite(detector),
    ):
        detector(maps, mask)


def test_an_overflow_is_named_where_it_arises() -> None:
    detector, maps, mask = make_detector()
    maps[0][1, 0, 3] = 3e38  # finite, as a detector wants its features
    with torch.no_grad():
        detector.neck.projections[0][0].weight.fill_(2)
    detector(maps, mask)  # says nothing
    with (
        pytest.raises(ValueError, match=r"infinity of sample 1 arises in 'neck\.projections\.0\.0' \(Conv1d\).*3e\+38"),
        trace_not_finite(detector),
    ):
        detector(maps, mask)
    detector(maps, mask)  # the trace ends with the block


class Between(nn.Module):
    """Takes a logarithm between two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.first(values).log())


def test_what_arises_between_modules_is_told_by_the_next_one() -> None:
    model = nn.Sequential(Between())
    values = torch.ones(3, 2, 2)
    values[2, 1, 1] = -1
    with pytest.raises(ValueError, match=r"NaN of sample 2 arises in '0', before '0\.second'"), trace_not_finite(model):
        model(values)
    with (
        pytest.raises(ValueError, match=r"infinity of row 1 arises in what is given to 'Sequential'"),
        trace_not_finite(model),
    ):
        model(torch.tensor([[1.0], [torch.inf]]))
    with trace_not_finite(model):
        assert model(torch.ones(1, 1)).item() == 0
