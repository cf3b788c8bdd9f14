"""Input that is unusual or wrong: what is done with it, in one, two and three dimensions.

Defined behaviour: no targets cost only background; of more targets than queries, as many are answered for as there are
queries; boxes without width, and boxes that reach outside, are learned as they are given; a single row of pixels is an
image; a sample that is all padding has finite answers and changes nothing for others; what is not finite is refused by
the sample's number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from momentdetr.detr import systems, systems_hybrid
from momentdetr.detr.assembly import Sizes, Task
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.losses import Losses
from momentdetr.detr.model import Detector
from momentdetr.detr.systems_hybrid import Heads
from momentdetr.detr.types import Targets

CLASSES = 3
SIZES = Sizes(
    width=24,
    num_heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=6,
    num_levels=3,
    num_points=2,
    group_norm=4,
)
HEADS = Heads(stride=2, hidden=16, bins=2, proposals=20, per_level=50, anchors=16, regions=12)
Row = Callable[[Task, Sizes], Detector]


def contrastive(task: Task) -> Denoising:
    return Denoising(task.num_classes, SIZES.width, groups=2, contrastive=True, indicator=False)


ROWS: dict[str, Row] = {
    "detr": systems.detr,
    "conditional_detr": systems.conditional_detr,
    "deformable_detr_two_stage": lambda t, s: systems.deformable_detr(t, s, refine=True, two_stage=True),
    "dn_detr": lambda t, s: systems.dn_detr(t, s, groups=2),
    "dino": lambda t, s: systems.dino(t, s, denoising=contrastive(t)),
    "co_dino": lambda t, s: systems_hybrid.co_dino(t, s, heads=HEADS),
}

pytestmark = pytest.mark.parametrize("row", ROWS)


def build(row: str, num_dims: int, sizes: Sizes = SIZES) -> Detector:
    torch.manual_seed(0)
    detector = ROWS[row](Task(num_dims, (5, 7), CLASSES), replace(sizes, dropout=0.0))
    with torch.no_grad():  # away from heads that start at zero
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


def make_inputs(num_dims: int, rows: int | None = None) -> tuple[list[Tensor], Tensor]:
    """Two maps of two samples, `rows` input cells along the first stored axis, as many as always along the others."""
    generator = torch.Generator().manual_seed(4)
    side = {1: 16, 2: 16, 3: 8}[num_dims]
    shape = (rows or side, *[side] * (num_dims - 1))
    maps = [
        torch.randn(2, channels, *(math.ceil(size / stride) for size in shape), generator=generator)
        for channels, stride in ((5, 2), (7, 4))
    ]
    return maps, torch.ones(2, *shape, dtype=torch.bool)


def make_targets(num_dims: int, counts: tuple[int, int]) -> Targets:
    generator = torch.Generator().manual_seed(6)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    boxes = torch.rand(*mask.shape, 2 * num_dims, generator=generator) * 0.4 + 0.3
    return Targets(torch.randint(0, CLASSES, mask.shape, generator=generator), boxes, mask)


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


def test_a_batch_without_any_place_for_targets(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    targets = make_targets(num_dims, (0, 0))
    assert targets.boxes.shape == (2, 0, 2 * num_dims)
    losses = learn(detector, maps, mask, targets)
    assert all(value == 0 for name, value in losses.terms.items() if name.startswith(("l1", "giou")))
    assert losses.terms["class"] > 0
    assert len(losses.assignments[""].query) == 0


def test_one_target_is_answered_for_once(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    found = learn(detector, maps, mask, make_targets(num_dims, (0, 1))).assignments[""]
    assert (found.sample.tolist(), found.target.tolist()) == ([1], [0])


def test_of_more_targets_than_queries_each_query_answers_for_one(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims, replace(SIZES, num_queries=3)), make_inputs(num_dims)
    found = learn(detector, maps, mask, make_targets(num_dims, (5, 1))).assignments[""]
    first = found.sample == 0
    assert found.query[first].tolist() == [0, 1, 2]
    assert len(set(found.target[first].tolist())) == 3


@pytest.mark.parametrize("flat", ["one side", "all sides"])
def test_boxes_without_width_are_learned(row: str, num_dims: int, flat: str) -> None:
    detector, (maps, mask), targets = build(row, num_dims), make_inputs(num_dims), make_targets(num_dims, (2, 1))
    targets.boxes[:, 0, num_dims : num_dims + 1 if flat == "one side" else None] = 0
    losses = learn(detector, maps, mask, targets)
    assert len(losses.assignments[""].query) == 3
    expected = l1_by_hand(detector, maps, mask, targets, losses)
    assert losses.terms["l1"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("center", "size"), [(0.95, 0.4), (-0.3, 0.1), (0.5, 1.8)])
def test_boxes_that_reach_outside_are_learned_as_given(row: str, num_dims: int, center: float, size: float) -> None:
    detector, (maps, mask), targets = build(row, num_dims), make_inputs(num_dims), make_targets(num_dims, (2, 1))
    targets.boxes[:, 0, :num_dims], targets.boxes[:, 0, num_dims:] = center, size
    losses = learn(detector, maps, mask, targets)
    expected = l1_by_hand(detector, maps, mask, targets, losses)
    assert losses.terms["l1"].item() == pytest.approx(expected, rel=1e-4)


def test_one_row_of_pixels_is_an_image(row: str, num_dims: int) -> None:
    """Of one axis: a single clip, and fewer tokens than queries."""
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims, rows=1)
    assert maps[1].shape[2] == 1
    learn(detector, maps, mask, make_targets(num_dims, (2, 1)))
    with torch.no_grad():
        said = detector.eval()(maps, mask).last
    assert said.logits.isfinite().all()
    assert ((said.boxes >= 0) & (said.boxes <= 1)).all()


def test_a_sample_of_padding_is_finite_and_changes_nothing(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    mask[1] = False
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
def test_features_that_are_not_finite_are_refused_by_sample(row: str, num_dims: int, poison: float) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    maps[1][1, 0].view(-1)[-1] = poison
    with pytest.raises(ValueError, match="sample 1 are not finite"):
        detector(maps, mask)
    with pytest.raises(ValueError, match="sample 1 are not finite"):  # nothing to match, so no cost would tell
        detector.loss(maps, mask, make_targets(num_dims, (2, 0)))


def test_targets_that_are_not_finite_are_refused_by_sample(row: str, num_dims: int) -> None:
    detector, (maps, mask), targets = build(row, num_dims), make_inputs(num_dims), make_targets(num_dims, (2, 1))
    targets.boxes[1, 0, -1] = math.nan
    with pytest.raises(ValueError, match="sample 1"):
        detector.loss(maps, mask, targets)
