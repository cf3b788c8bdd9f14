from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from momentdetr.detr.anchors import DeltaCoder, anchor_sizes, aspects, clip, grid_anchors, inside
from momentdetr.detr.assignment_dense import (
    BACKGROUND,
    IGNORED,
    as_assignment,
    atss,
    choose,
    max_iou,
    sample_rows,
    target_corners,
)
from momentdetr.detr.types import Targets


def overlap_of(first: Tensor, second: Tensor) -> float:
    """IoU of two boxes, one axis at a time."""
    num_dims = len(first) // 2
    shared = own = other = 1.0
    for axis in range(num_dims):
        a, b, c, d = (float(x[axis + k * num_dims]) for x in (first, second) for k in (0, 1))
        shared *= max(0.0, min(b, d) - max(a, c))
        own, other = own * (b - a), other * (d - c)
    return shared / (own + other - shared)


def some_boxes(count: int, num_dims: int, generator: torch.Generator, size: float = 0.4) -> Tensor:
    lower = torch.rand(count, num_dims, generator=generator, dtype=torch.float64)
    return torch.cat([lower, lower + size * torch.rand(count, num_dims, generator=generator) + 0.1], 1)


def shuffle(count: int) -> Tensor:
    return torch.arange(count - 1, -1, -1)


@pytest.mark.parametrize("rescues", [False, True])
def test_max_iou_equals_a_naive_loop(num_dims: int, rescues: bool, generator: torch.Generator) -> None:
    priors, targets = some_boxes(40, num_dims, generator), some_boxes(3, num_dims, generator)
    table = [[overlap_of(p, t) for t in targets] for p in priors]
    ranked = sorted(max(row) for row in table)
    positive, negative = ranked[37], ranked[30]  # the more dimensions, the less boxes overlap
    rescue = negative if rescues else None
    expected = []
    for row in table:
        best = max(row)
        expected.append(
            row.index(best) if best >= positive - 1e-9 else BACKGROUND if best < negative - 1e-9 else IGNORED
        )
    if rescue is not None:
        for j in range(3):
            most = max(row[j] for row in table)
            for i, row in enumerate(table):
                if row[j] == most >= rescue:
                    expected[i] = j
    found = max_iou(priors, targets, positive=positive - 1e-9, negative=negative - 1e-9, rescue=rescue)
    assert found.tolist() == expected
    assert len(set(expected)) > 2  # the case shows more than background


def test_atss_equals_a_naive_loop(num_dims: int, generator: torch.Generator) -> None:
    per_level = [50, 20, 2]
    priors, targets = some_boxes(72, num_dims, generator), some_boxes(4, num_dims, generator, size=0.8)
    wanted: dict[int, tuple[float, int]] = {}
    for j, target in enumerate(targets):
        candidates: list[int] = []
        for level, start in zip(per_level, (0, 50, 70), strict=True):
            centers = (priors[:, :num_dims] + priors[:, num_dims:]) / 2
            aim = (target[:num_dims] + target[num_dims:]) / 2
            distances = [math.dist(centers[i], aim) for i in range(start, start + level)]
            candidates += [start + k for k in sorted(range(level), key=distances.__getitem__)[:5]]
        overlaps = [overlap_of(priors[i], target) for i in candidates]
        mean = sum(overlaps) / len(overlaps)
        spread = math.sqrt(sum((x - mean) ** 2 for x in overlaps) / (len(overlaps) - 1))
        for i, overlap in zip(candidates, overlaps, strict=True):
            inner = all(
                target[axis] + 0.01 < centers[i, axis] < target[axis + num_dims] - 0.01 for axis in range(num_dims)
            )
            if overlap >= mean + spread and inner and overlap > wanted.get(i, (-1.0, 0))[0]:
                wanted[i] = overlap, j
    found = atss(priors, per_level, targets, nearest=5)
    assert {i: j for i, j in enumerate(found.tolist()) if j != BACKGROUND} == {i: j for i, (_, j) in wanted.items()}
    assert wanted


def test_nothing_to_assign(num_dims: int) -> None:
    priors, none = torch.rand(5, 2 * num_dims), torch.zeros(0, 2 * num_dims)
    assert max_iou(priors, none, positive=0.5, negative=0.5).tolist() == [BACKGROUND] * 5
    assert atss(priors, [3, 2], none).tolist() == [BACKGROUND] * 5
    assert max_iou(none, priors, positive=0.5, negative=0.5).shape == (0,)


def test_empty_targets_get_no_prior(num_dims: int) -> None:
    priors = torch.cat([torch.zeros(1, num_dims), torch.ones(1, num_dims)], 1)
    point = torch.full((1, 2 * num_dims), 0.5)
    assert atss(priors, [1], point).tolist() == [BACKGROUND]
    assert max_iou(priors, point, positive=0.5, negative=0.3, rescue=0.3).tolist() == [BACKGROUND]


def test_a_batch_of_indices_becomes_pairs() -> None:
    found = as_assignment([torch.tensor([BACKGROUND, 1, 0]), torch.tensor([IGNORED, BACKGROUND, 2])])
    assert (found.sample.tolist(), found.query.tolist(), found.target.tolist()) == ([0, 0, 1], [1, 2, 2], [1, 0, 2])


def test_choosing_takes_all_or_the_first_of_the_shuffled() -> None:
    rows = torch.tensor([3, 5, 8, 9])
    assert choose(rows, 4, shuffle).tolist() == [3, 5, 8, 9]
    assert choose(rows, 2, shuffle).tolist() == [8, 9]


def test_sampling_fills_up_with_background() -> None:
    target = torch.tensor([0, 0, 1, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND])
    positive, negative = sample_rows(target, 4, 0.5, shuffle)
    assert positive.tolist() == [1, 2]
    assert negative.tolist() == [5, 6]


def test_targets_are_measured_in_input_cells(num_dims: int) -> None:
    boxes = torch.full((1, 2, 2 * num_dims), 0.5)
    targets = Targets(torch.zeros(1, 2, dtype=torch.long), boxes, torch.tensor([[False, True]]))
    extents = torch.arange(8.0, 8 + num_dims)[None]
    corners, place = target_corners(targets, extents, 0)
    assert place.tolist() == [1]
    assert corners.tolist() == [[*(extents[0] * 0.25).tolist(), *(extents[0] * 0.75).tolist()]]


def test_aspects_have_equal_volume_and_the_ratio(num_dims: int) -> None:
    shapes = aspects(num_dims, 2.0)
    assert len(shapes) == (1 if num_dims == 1 else num_dims + 1)
    for shape in shapes:
        assert math.isclose(math.prod(shape), 1.0)
        assert math.isclose(max(shape) / min(shape), 1.0) or math.isclose(max(shape) / min(shape), 2.0)


def test_images_get_the_anchors_of_faster_r_cnn() -> None:
    sizes = anchor_sizes(2, 4, octave=3, ratio=2.0)
    # Published sizes at stride 8: areas 32^2, 40.3^2, 50.8^2, as wide as twice their height, square, and the other way.
    root = math.sqrt(2)
    for (width, height), (side, wide) in zip(
        sizes, itertools.product((root, 1.0, 1 / root), (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))), strict=True
    ):
        assert math.isclose(width, wide * side)
        assert math.isclose(height, wide / side)


def test_anchors_stand_at_the_lower_corner_of_each_cell(num_dims: int) -> None:
    shape = tuple(range(2, 2 + num_dims))
    anchors = grid_anchors(shape, 4.0, anchor_sizes(num_dims, 8), torch.zeros(1))
    cells = list(itertools.product(*(range(size) for size in shape)))
    assert len(anchors) == len(cells)
    for anchor, cell in zip(anchors, cells, strict=True):
        natural = [4.0 * index for index in reversed(cell)]
        assert anchor.tolist() == [*(x - 16 for x in natural), *(x + 16 for x in natural)]


def test_cells_that_begin_inside_count(num_dims: int) -> None:
    extents = torch.tensor([[9.0] * num_dims, [4.0] * num_dims])
    found = inside((4,) * num_dims, 4.0, extents)
    assert found.sum(1).tolist() == [3**num_dims, 1]


def test_coding_goes_there_and_back(num_dims: int, generator: torch.Generator) -> None:
    anchors, boxes = some_boxes(6, num_dims, generator), some_boxes(6, num_dims, generator)
    coder = DeltaCoder(0.1, 0.2)
    deltas = coder.encode(anchors, boxes)
    assert torch.allclose(coder.decode(anchors, deltas), boxes)
    size = anchors[0, num_dims] - anchors[0, 0]
    shift = (boxes[0, num_dims] + boxes[0, 0] - anchors[0, num_dims] - anchors[0, 0]) / 2 / size / 0.1
    assert torch.isclose(deltas[0, 0], shift)
    growth = ((boxes[0, num_dims] - boxes[0, 0]) / size).log() / 0.2
    assert torch.isclose(deltas[0, num_dims], growth)


def test_growth_is_bounded_and_corners_clipped() -> None:
    anchors = torch.tensor([[0.0, 2.0]])
    grown = DeltaCoder().decode(anchors, torch.tensor([[0.0, 100.0]]))
    assert torch.allclose(grown[0, 1] - grown[0, 0], torch.tensor(2 / 0.016))
    assert clip(grown, torch.tensor([[5.0]])).tolist() == [[0.0, 5.0]]
