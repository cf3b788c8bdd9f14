"""Input that is unusual or wrong: what every row does with it.

Defined behaviour: no targets cost only background; of more targets than queries, as many are answered for as there are
queries; boxes without width, and boxes that reach outside, are learned as they are given; a single row of pixels is an
image; a sample that is all padding has finite answers and changes nothing for others; what is not finite is refused by
the sample's number; denoising can be switched off.
"""

from __future__ import annotations

import math

import pytest
import torch
from every_row import CHANNELS, CLASSES, EVERY_ROW, SIZES, build, contrastive, make_targets
from torch import Tensor

from momentdetr.detr import systems, systems_hybrid
from momentdetr.detr.assembly import Task
from momentdetr.detr.denoising import Denoising, PairedDenoising
from momentdetr.detr.losses import Losses
from momentdetr.detr.model import Detector
from momentdetr.detr.monitor import trace_not_finite
from momentdetr.detr.types import Targets

# Every row as boxes; one of each kind of decoder, query and head also as spans, and some as tubes.
KINDS = ("detr", "conditional_detr", "deformable_detr, two-stage", "dn_detr", "dino", "co_deformable_detr")
OTHERS = [*((row, 1) for row in KINDS), ("detr", 3), ("dino", 3), ("co_dino", 3)]
PLACES = [*((row, 2) for row in EVERY_ROW), *(pytest.param(*place, marks=pytest.mark.slow) for place in OTHERS)]
every_row = pytest.mark.parametrize(("row", "num_dims"), PLACES, ids=lambda value: str(value))


def test_no_row_is_forgotten() -> None:
    public = {
        name
        for module in (systems, systems_hybrid)
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and getattr(value, "__annotations__", {}).get("return") == "Detector"
        and "queries" not in value.__annotations__  # `on_levels` puts parts together
    }
    assert {row.split(",")[0] for row in EVERY_ROW} == public


def make_inputs(num_dims: int, rows: int | None = None) -> tuple[list[Tensor], Tensor]:
    """Two maps of two samples, `rows` input cells along the first stored axis, as many as always along the others."""
    generator = torch.Generator().manual_seed(4)
    side = {1: 16, 2: 16, 3: 8}[num_dims]
    shape = (rows or side, *[side] * (num_dims - 1))
    maps = [
        torch.randn(2, channels, *(math.ceil(size / stride) for size in shape), generator=generator)
        for channels, stride in zip(CHANNELS, (2, 4), strict=True)
    ]
    return maps, torch.ones(2, *shape, dtype=torch.bool)


def learn(detector: Detector, maps: list[Tensor], mask: Tensor, targets: Targets) -> Losses:
    """One step of training, whose losses and gradients must be finite."""
    losses = detector.loss(maps, mask, targets, generator=torch.Generator().manual_seed(1))
    losses.total.backward()
    broken = [name for name, value in losses.terms.items() if not value.isfinite()]
    broken += [n for n, p in detector.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not broken
    return losses


def l1_by_hand(detector: Detector, maps: list[Tensor], mask: Tensor, targets: Targets, losses: Losses) -> float:
    """Of the last layer: absolute differences of the numbers as they are given, over the number of targets."""
    with torch.no_grad():
        boxes = detector(maps, mask).last.boxes
    found = losses.assignments[""]
    pairs = zip(found.sample.tolist(), found.query.tolist(), found.target.tolist(), strict=True)
    total = sum(abs(boxes[s, q] - targets.boxes[s, t]).sum().item() for s, q, t in pairs)
    return total / int(targets.mask.sum())


@every_row
def test_a_batch_without_any_place_for_targets(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    targets = make_targets(num_dims, (0, 0))
    assert targets.boxes.shape == (2, 0, 2 * num_dims)
    losses = learn(detector, maps, mask, targets)
    assert all(value == 0 for name, value in losses.terms.items() if name.startswith(("l1", "giou")))
    assert losses.terms["class"] > 0
    assert len(losses.assignments[""].query) == 0


@every_row
def test_one_target_is_answered_for_once(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    found = learn(detector, maps, mask, make_targets(num_dims, (0, 1))).assignments[""]
    assert (found.sample.tolist(), found.target.tolist()) == ([1], [0])


@every_row
def test_of_more_targets_than_queries_each_query_answers_for_one(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    queries = SIZES.num_queries * (2 if "patterns" in row else 1)
    found = learn(detector, maps, mask, make_targets(num_dims, (queries + 2, 1))).assignments[""]
    first = found.sample == 0
    assert found.query[first].tolist() == list(range(queries))
    assert len(set(found.target[first].tolist())) == queries


@every_row
def test_boxes_without_width_are_learned(row: str, num_dims: int) -> None:
    detector, (maps, mask), targets = build(row, num_dims), make_inputs(num_dims), make_targets(num_dims)
    targets.boxes[0, 0, num_dims] = 0  # flat
    targets.boxes[1, 0, num_dims:] = 0  # a point
    losses = learn(detector, maps, mask, targets)
    assert len(losses.assignments[""].query) == 3
    expected = l1_by_hand(detector, maps, mask, targets, losses)
    assert losses.terms["l1"].item() == pytest.approx(expected, rel=1e-4)


@every_row
def test_boxes_that_reach_outside_are_learned_as_given(row: str, num_dims: int) -> None:
    detector, (maps, mask), targets = build(row, num_dims), make_inputs(num_dims), make_targets(num_dims)
    for place, (center, size) in {(0, 0): (0.95, 0.4), (0, 1): (-0.3, 0.1), (1, 0): (0.5, 1.8)}.items():
        targets.boxes[place][:num_dims], targets.boxes[place][num_dims:] = center, size
    losses = learn(detector, maps, mask, targets)
    expected = l1_by_hand(detector, maps, mask, targets, losses)
    assert losses.terms["l1"].item() == pytest.approx(expected, rel=1e-4)


@every_row
def test_one_row_of_pixels_is_an_image(row: str, num_dims: int) -> None:
    """Of one axis: a single clip, and fewer tokens than queries."""
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims, rows=1)
    assert maps[1].shape[2] == 1
    learn(detector, maps, mask, make_targets(num_dims))
    with torch.no_grad():
        said = detector.eval()(maps, mask).last
    assert said.logits.isfinite().all()
    assert ((said.boxes >= 0) & (said.boxes <= 1)).all()


@every_row
def test_a_sample_of_padding_is_finite_and_changes_nothing(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    mask[1] = False
    with trace_not_finite(detector):  # nothing is replaced on the way
        learn(detector, maps, mask, make_targets(num_dims, (2, 0)))
    maps = [values.double() for values in maps]
    with torch.no_grad():
        said = detector.double().eval()(maps, mask).last
        alone = detector([values[:1] for values in maps], mask[:1]).last
    assert said.logits.isfinite().all()
    assert said.boxes.isfinite().all()
    torch.testing.assert_close(said.boxes[:1], alone.boxes, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(said.logits[:1], alone.logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@every_row
def test_features_that_are_not_finite_are_refused_by_sample(row: str, num_dims: int, poison: float) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    maps[1][1, 0].view(-1)[-1] = poison
    with pytest.raises(ValueError, match="sample 1 are not finite"):
        detector(maps, mask)
    with pytest.raises(ValueError, match="sample 1 are not finite"):  # nothing to match, so no cost would tell
        detector.loss(maps, mask, make_targets(num_dims, (2, 0)))


@every_row
def test_targets_that_are_not_finite_are_refused_by_sample(row: str, num_dims: int) -> None:
    detector, (maps, mask), targets = build(row, num_dims), make_inputs(num_dims), make_targets(num_dims)
    targets.boxes[1, 0, -1] = math.nan
    with pytest.raises(ValueError, match="sample 1"):
        detector.loss(maps, mask, targets)


def paired(task: Task) -> Denoising:
    return PairedDenoising(task.num_classes, SIZES.width, groups=0, unknown=False)


SWITCHED_OFF = {
    "dn_detr": lambda task: systems.dn_detr(task, SIZES, groups=0),
    "dn_deformable_detr": lambda task: systems.dn_deformable_detr(task, SIZES, groups=0),
    "dn_dino": lambda task: systems.dn_dino(task, SIZES, denoising=paired(task)),
    "dino": lambda task: systems.dino(task, SIZES, denoising=contrastive(task, groups=0)),
    "co_dino": lambda task: systems_hybrid.co_dino(task, SIZES, denoising=contrastive(task, groups=0)),
}


@pytest.mark.parametrize("row", [*SWITCHED_OFF])
def test_denoising_switched_off_leaves_the_other_losses(row: str) -> None:
    torch.manual_seed(0)
    detector = SWITCHED_OFF[row](Task(2, CHANNELS, CLASSES))
    (maps, mask), targets = make_inputs(2), make_targets(2)
    losses = learn(detector, maps, mask, targets)
    assert not any("denoising" in name for name in losses.terms)
    with torch.no_grad():
        expected = detector.criterion(detector(maps, mask), targets)
    for name, value in expected.terms.items():
        torch.testing.assert_close(losses.terms[name], value)
    assert detector.detr.denoising is not None  # every process must see a gradient for each parameter
    assert all(p.grad is not None for p in detector.detr.denoising.parameters())


@pytest.mark.parametrize("wrong", [{"groups": -1}, {"groups": None, "budget": -100}])
def test_fewer_than_no_groups_are_refused(wrong: dict[str, int | None]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 \(off\) or more"):
        Denoising(CLASSES, 8, **wrong)  # type: ignore[arg-type]


def test_a_budget_of_nothing_is_off() -> None:
    assert Denoising(CLASSES, 8, groups=None, budget=0)(make_targets(1)) is None
