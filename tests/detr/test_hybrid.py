from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from every_row import HEADS, SIZES
from torch import Tensor, nn

from momentdetr.detr.anchors import Pyramid
from momentdetr.detr.assembly import Task
from momentdetr.detr.assignment_dense import BACKGROUND, Candidates, target_corners
from momentdetr.detr.boxes import giou, to_corners
from momentdetr.detr.dense_head import AtssHead, centerness
from momentdetr.detr.hybrid import HybridHeads, PositiveQueries
from momentdetr.detr.model import Detector
from momentdetr.detr.region_proposals import RegionProposals
from momentdetr.detr.roi_head import FasterRcnn, RegionHead
from momentdetr.detr.systems_hybrid import co_deformable_detr, co_dino
from momentdetr.detr.types import Targets

CLASSES = 5
SYSTEMS = {"co_deformable_detr": co_deformable_detr, "co_dino": co_dino}


def shuffle(count: int) -> Tensor:
    return torch.arange(count - 1, -1, -1)


def pyramid_of(num_dims: int, width: int, generator: torch.Generator) -> Pyramid:
    """Two samples, of which the second ends earlier."""
    levels = [torch.randn(2, width, *[size] * num_dims, generator=generator) for size in (8, 4, 2)]
    return Pyramid(tuple(levels), (2.0, 4.0, 8.0), torch.tensor([[16.0] * num_dims, [9.0] * num_dims]))


def targets_of(num_dims: int) -> Targets:
    centers = torch.tensor([[0.3, 0.7], [0.5, 0.5]])[..., None].expand(-1, -1, num_dims)
    sizes = torch.tensor([[0.4, 0.5], [0.8, 0.1]])[..., None].expand(-1, -1, num_dims)
    mask = torch.tensor([[True, True], [True, False]])
    return Targets(torch.tensor([[1, 2], [3, 0]]), torch.cat([centers, sizes], -1), mask)


def without(targets: Targets) -> Targets:
    return Targets(targets.labels, targets.boxes, torch.zeros_like(targets.mask))


def small(make: Callable[..., Detector], num_dims: int, stride: float = 2) -> tuple[Detector, list[Tensor], Tensor]:
    """A row at small size, its weights shaken so that none of them is silent, with maps and a mask."""
    torch.manual_seed(0)
    detector = make(Task(num_dims, (8, 12), CLASSES), SIZES, heads=replace(HEADS, stride=stride))
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.2)
    maps = [torch.randn(2, 8, *[8] * num_dims), torch.randn(2, 12, *[4] * num_dims)]
    mask = torch.ones(2, *[16] * num_dims, dtype=torch.bool)
    mask[1, 12:] = False
    return detector, maps, mask


@pytest.mark.parametrize("name", SYSTEMS)
def test_rows_train_in_any_number_of_dimensions(name: str, num_dims: int) -> None:
    detector, maps, mask = small(SYSTEMS[name], num_dims)
    losses = detector.loss(maps, mask, targets_of(num_dims), generator=torch.Generator().manual_seed(1))
    losses.total.backward()
    assert losses.total.isfinite()
    silent = {n for n, p in detector.named_parameters() if p.grad is None or not p.grad.any()}
    # A level's scale learns where the level has a positive; anchors of the coarser ones are larger than this input.
    assert silent <= {f"detr.hybrid.heads.1.scales.{level}" for level in (1, 2, 3)}


@pytest.mark.parametrize("name", SYSTEMS)
def test_images_without_targets_train_safely(name: str, num_dims: int) -> None:
    detector, maps, mask = small(SYSTEMS[name], num_dims)
    losses = detector.loss(maps, mask, without(targets_of(num_dims)))
    losses.total.backward()
    assert losses.total.isfinite()
    for parameter in detector.parameters():
        assert parameter.grad is not None  # distributed training waits for every one
        assert parameter.grad.isfinite().all()
    assert losses.terms["giou_atss"] == losses.terms["giou_rcnn"] == losses.terms["l1_regions"] == 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_heads_do_not_change_what_is_predicted(name: str, num_dims: int) -> None:
    detector, maps, mask = small(SYSTEMS[name], num_dims)
    alone = detector(maps, mask)
    judged = detector(maps, mask, targets_of(num_dims))
    assert torch.allclose(alone.last.boxes, judged.last.boxes, atol=1e-6)
    assert [s.name for s in alone.supervisions] == ["proposals"]
    names = {s.name for s in judged.supervisions}
    assert {"regions", "rcnn", "atss", "queries_of_rcnn", "queries_of_rcnn_0", "queries_of_atss"} <= names


def test_a_generator_makes_training_repeatable() -> None:
    detector, maps, mask = small(co_dino, 1)
    totals = [
        detector.loss(maps, mask, targets_of(1), generator=torch.Generator().manual_seed(seed)).total.item()
        for seed in (3, 3, 4)
    ]
    assert totals[0] == totals[1] != totals[2]


def test_centerness_is_the_geometric_mean_over_axes(num_dims: int) -> None:
    # The centre lies at 2; the box reaches from 1 to 5 along every axis: 1 cell to one side, 3 to the other.
    anchors = torch.tensor([[1.0] * num_dims + [3.0] * num_dims] * 2)
    boxes = torch.tensor([[1.0] * num_dims + [5.0] * num_dims, [1.0] * num_dims + [3.0] * num_dims])
    assert torch.allclose(centerness(anchors, boxes), torch.tensor([1 / 3, 1.0]))


def test_atss_judges_the_anchors_inside_a_sample(num_dims: int, generator: torch.Generator) -> None:
    head = AtssHead(num_dims, 8, CLASSES, 3, size=2, group_norm=2)
    pyramid, targets = pyramid_of(num_dims, 8, generator), targets_of(num_dims)
    (judged,), candidates = head(pyramid, targets, shuffle)
    inner = [sum(math.ceil(extent / stride) ** num_dims for stride in (2, 4, 8)) for extent in (16, 9)]
    assert judged.predictions.logits.shape == (1, sum(inner), CLASSES)
    # What is not inside has no place, and answers for nothing.
    outside = candidates.corners.abs().sum(-1) == 0
    assert int(outside[1].sum()) == inner[0] - inner[1]
    assert (candidates.target[outside] == BACKGROUND).all()
    assert (candidates.target >= 0).any(1).all()


def test_atss_terms_equal_a_naive_loop(num_dims: int, generator: torch.Generator) -> None:
    head = AtssHead(num_dims, 8, CLASSES, 3, size=2, group_norm=2)
    pyramid, targets = pyramid_of(num_dims, 8, generator), targets_of(num_dims)
    (judged,), candidates = head(pyramid, targets, shuffle)
    said = head.predict(pyramid)
    assert said.quality is not None
    class_sum = overlap_sum = weight_sum = quality_sum = positives = 0.0
    for sample in range(2):
        corners, _ = target_corners(targets, pyramid.extents, sample)
        for row, target in enumerate(candidates.target[sample].tolist()):
            anchor = candidates.corners[sample, row]
            if not anchor.any():
                continue
            for k in range(CLASSES):
                prob = said.logits[sample, row, k].sigmoid().item()
                true = target >= 0 and k == targets.labels[sample, target]
                class_sum += -(0.25 * (1 - prob) ** 2 * math.log(prob)) if true else 0.0
                class_sum += 0.0 if true else -(0.75 * prob**2 * math.log(1 - prob))
            if target < 0:
                continue
            positives += 1
            weight = centerness(anchor[None], corners[target][None]).item()
            decoded = head.coder.decode(anchor, said.boxes[sample, row])
            overlap_sum += weight * (1 - giou(decoded, corners[target]).item())
            weight_sum += weight
            prob = said.quality[sample, row].sigmoid().item()
            quality_sum -= weight * math.log(prob) + (1 - weight) * math.log(1 - prob)
    expected = {
        "class": class_sum / positives,
        "giou": overlap_sum / max(weight_sum, 1),
        "centerness": quality_sum / positives,
    }
    assert judged.terms is not None
    assert judged.assignment is not None
    assert judged.targets is not None
    assert judged.count is not None
    assert {name: weight for name, (weight, _) in judged.terms.items()} == {"class": 1, "giou": 2, "centerness": 1}
    for name, (_, term) in judged.terms.items():
        found = term(judged.predictions, judged.targets, judged.assignment, judged.count)
        assert math.isclose(found.item(), expected[name], rel_tol=1e-4), name


def test_proposals_lie_inside_and_do_not_overlap(num_dims: int, generator: torch.Generator) -> None:
    regions = RegionProposals(num_dims, 8, size=1, per_level=40, number=30, rows=16)
    nn.init.normal_(regions.boxes.weight, std=0.2)
    pyramid = pyramid_of(num_dims, 8, generator)
    judged, proposals = regions(pyramid, targets_of(num_dims), shuffle)
    for found, extent in zip(proposals, pyramid.extents, strict=True):
        assert 0 < len(found.corners) <= 30
        assert (found.corners >= 0).all()
        assert (found.corners <= extent.repeat(2)).all()
        assert (found.scores.diff() <= 0).all()
    assert judged.predictions.logits.shape[1] == 32
    assert judged.assignment is not None
    assert len(judged.assignment.query) > 0


def test_proposals_carry_no_gradient(num_dims: int, generator: torch.Generator) -> None:
    head = FasterRcnn(
        regions=RegionProposals(num_dims, 8, per_level=40, number=30, rows=16),
        head=RegionHead(num_dims, 8, CLASSES, hidden=8, bins=2),
        rows=8,
    )
    pyramid = pyramid_of(num_dims, 8, generator)
    for level in pyramid.levels:
        level.requires_grad_()
    (regions, judged), candidates = head(pyramid, targets_of(num_dims), shuffle)
    assert not candidates.corners.requires_grad
    assert candidates.features.requires_grad
    judged.predictions.boxes.sum().backward()
    assert head.regions.boxes.weight.grad is None
    assert regions.name == "regions"


def test_targets_are_regions_from_the_first_step_on(num_dims: int, generator: torch.Generator) -> None:
    head = FasterRcnn(
        regions=RegionProposals(num_dims, 8, per_level=40, number=30, rows=16),
        head=RegionHead(num_dims, 8, CLASSES, hidden=8, bins=2),
        rows=8,
    )
    targets, pyramid = targets_of(num_dims), pyramid_of(num_dims, 8, generator)
    _, candidates = head(pyramid, targets, lambda count: torch.arange(count))
    for sample in range(2):
        corners, place = target_corners(targets, pyramid.extents, sample)
        held = candidates.corners[sample][candidates.target[sample] >= 0]
        assert len(held) >= len(place)
        assert torch.allclose(held[: len(place)], corners)


def test_a_region_is_judged_by_the_box_of_its_class(num_dims: int, generator: torch.Generator) -> None:
    head = FasterRcnn(
        regions=RegionProposals(num_dims, 8, per_level=40, number=30, rows=16),
        head=RegionHead(num_dims, 8, CLASSES, hidden=8, bins=2),
        rows=8,
    )
    with torch.no_grad():  # each class moves its boxes by its own number
        head.head.boxes.weight.zero_()
        shifts = torch.arange(CLASSES).float()[:, None] * torch.tensor([1.0] * num_dims + [0.0] * num_dims)
        head.head.boxes.bias.copy_(shifts.flatten())
    targets, pyramid = targets_of(num_dims), pyramid_of(num_dims, 8, generator)
    (_, judged), candidates = head(pyramid, targets, lambda count: torch.arange(count))
    assert judged.assignment is not None
    assert judged.targets is not None
    rows = [(i, r) for i in range(2) for r in range(len(candidates.target[i])) if candidates.target[i, r] >= 0]
    for (sample, row), query in zip(rows, judged.assignment.query.tolist(), strict=True):
        corners = candidates.corners[sample, row] / pyramid.extents[sample].repeat(2)
        lower, upper = corners.chunk(2)
        label = int(targets.labels[sample, candidates.target[sample, row]])
        expected = (lower + upper) / 2 + 0.1 * label * (upper - lower)
        assert torch.allclose(judged.predictions.boxes[0, query, :num_dims], expected, atol=1e-5)


def candidates_of(target: list[list[int]], num_dims: int, width: int) -> Candidates:
    index = torch.tensor(target)
    lower = torch.arange(index.numel()).view(*index.shape, 1).expand(-1, -1, num_dims) * 1.0
    features = torch.arange(index.numel() * width).view(*index.shape, width) * 0.01
    return Candidates(torch.cat([lower, lower + 2], -1), index, features)


def lending(num_dims: int, **options: object) -> PositiveQueries:
    torch.manual_seed(0)
    return PositiveQueries(12, num_dims, positions="anchors", features=False, **options)  # type: ignore[arg-type]


def test_positives_come_first_and_negatives_fill_up() -> None:
    rows = lending(1, least=2).pick(torch.tensor([[-1, 0, -1, 1, 0], [-1, -1, 0, -1, -1]]), shuffle)
    assert rows.tolist() == [[1, 3, 4], [2, 4, 3]]


def test_there_are_never_more_queries_than_asked_for() -> None:
    rows = lending(1, least=1, most=2).pick(torch.tensor([[0, 0, 1, -1]]), shuffle)
    assert rows.tolist() == [[2, 1]]


def test_few_negatives_come_again_and_none_become_nothing() -> None:
    queries = lending(1, least=5)
    assert queries.pick(torch.tensor([[0, -1, -1]]), shuffle).tolist() == [[0, 2, 1, 2, 1]]
    assert queries.pick(torch.tensor([[0, 1]]), shuffle).tolist() == [[0, 1, 2, 2, 2]]
    lent = queries("x", candidates_of([[0, 1]], 1, 12), torch.tensor([[8.0]]), shuffle)
    assert lent.queries.references is not None
    assert not lent.queries.references[0, 2:].any()
    assert lent.assignment.query.tolist() == [0, 1]


def test_positives_keep_their_boxes_and_targets(num_dims: int) -> None:
    queries = lending(num_dims, least=3)
    candidates = candidates_of([[BACKGROUND, 1, 0], [0, BACKGROUND, BACKGROUND]], num_dims, 12)
    extents = torch.tensor([[3.0] * num_dims, [8.0] * num_dims])
    lent = queries("x", candidates, extents, shuffle)
    assert lent.rows.tolist() == [[1, 2, 0], [0, 2, 1]]
    pairs = zip(*(part.tolist() for part in (lent.assignment.sample, lent.assignment.query)), strict=True)
    assert list(pairs) == [(0, 0), (0, 1), (1, 0)]
    assert lent.assignment.target.tolist() == [1, 0, 0]
    assert lent.queries.references is not None
    corners = to_corners(lent.queries.references) * extents.repeat(1, 2)[:, None]
    assert torch.allclose(corners[0, 0], candidates.corners[0, 1])
    assert torch.allclose(corners[0].max(), torch.tensor(4.0))  # boxes may reach beyond their sample


def test_heads_have_a_place_of_their_own() -> None:
    torch.manual_seed(0)
    candidates, extents = candidates_of([[0, 0]], 1, 12), torch.tensor([[4.0]])
    sizes = {}
    for place in ("none", "scalar", "vector"):
        queries = PositiveQueries(12, 1, positions="fixed", features=True, place=place, least=2)  # type: ignore[arg-type]
        before = queries("x", candidates, extents, shuffle).queries.positions
        assert before is not None
        if queries.place is not None:
            sizes[place] = queries.place.numel()
            with torch.no_grad():
                queries.place += 1.0
            after = queries("x", candidates, extents, shuffle).queries.positions
            assert after is not None
            assert torch.allclose(after, before + 1)
    assert sizes == {"scalar": 1, "vector": 12}


def test_the_memory_becomes_a_pyramid_again(num_dims: int) -> None:
    detector, maps, mask = small(co_dino, num_dims)
    hybrid = detector.detr.hybrid
    assert isinstance(hybrid, HybridHeads)
    memory = detector.neck(maps, mask)
    pyramid = hybrid.pyramid(memory)
    levels = detector.neck.levels(maps)
    for found, level in zip(pyramid.levels, levels, strict=False):
        assert torch.equal(found, level)
    assert len(pyramid.levels) == len(levels) + 1
    assert pyramid.strides == (2, 4, 8, 16)
    assert pyramid.extents.tolist() == [[16.0] * num_dims, [*[16.0] * (num_dims - 1), 12.0]]
