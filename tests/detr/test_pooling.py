from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align

from momentdetr.detr.anchors import Pyramid
from momentdetr.detr.nms import nms, soft_nms
from momentdetr.detr.pooling import pool


def read(features: Tensor, point: list[float]) -> Tensor:
    """A grid (C, *spatial) between its cells, at a point in cells, natural order; a cell beyond the border counts."""
    shape, place = features.shape[1:], list(reversed(point))
    if any(x < -1 or x > size for x, size in zip(place, shape, strict=True)):
        return torch.zeros(features.shape[0], dtype=features.dtype)
    place = [min(max(x, 0.0), size - 1.0) for x, size in zip(place, shape, strict=True)]
    total = torch.zeros(features.shape[0], dtype=features.dtype)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index = [min(math.floor(x) + step, size - 1) for x, step, size in zip(place, corner, shape, strict=True)]
        parts = [x - math.floor(x) if step else 1 - x + math.floor(x) for x, step in zip(place, corner, strict=True)]
        total = total + features[(slice(None), *index)] * math.prod(parts)
    return total


def naive_pool(features: Tensor, corners: Tensor, bins: int) -> Tensor:
    """One region of one map, point by point."""
    num_dims = len(corners) // 2
    lower = [float(x) - 0.5 for x in corners[:num_dims]]
    sizes = [float(corners[axis + num_dims] - corners[axis]) for axis in range(num_dims)]
    counts = [math.ceil(size / bins) for size in sizes]
    result = torch.zeros(features.shape[0], *[bins] * num_dims, dtype=features.dtype)
    for which in itertools.product(range(bins), repeat=num_dims):  # natural order
        points = [
            [lower[a] + sizes[a] / bins * (which[a] + (step[a] + 0.5) / counts[a]) for a in range(num_dims)]
            for step in itertools.product(*(range(count) for count in counts))
        ]
        values = torch.stack([read(features, point) for point in points]).mean(0)
        result[(slice(None), *reversed(which))] = values
    return result


def some_regions(count: int, num_dims: int, reach: float, generator: torch.Generator) -> Tensor:
    lower = torch.rand(count, num_dims, generator=generator, dtype=torch.float64) * reach - 2
    return torch.cat([lower, lower + torch.rand(count, num_dims, generator=generator) * reach], 1)


def test_pooling_equals_a_naive_loop(num_dims: int, generator: torch.Generator) -> None:
    spatial = (9, 7, 5)[:num_dims]
    features = torch.randn(2, 2, *spatial, generator=generator, dtype=torch.float64)
    corners = some_regions(5, num_dims, 8.0, generator)
    owner = torch.tensor([0, 1, 1, 0, 1])
    found = pool(Pyramid((features,), (1.0,), torch.zeros(2, num_dims)), corners, owner, bins=2)
    for region, box, sample in zip(found, corners, owner, strict=True):
        assert torch.allclose(region, naive_pool(features[sample], box, 2))


@pytest.mark.parametrize("samples", [0, 2])
def test_images_are_pooled_as_torchvision_does(samples: int, generator: torch.Generator) -> None:
    features = torch.randn(2, 3, 13, 17, generator=generator, dtype=torch.float64)
    corners, owner = some_regions(30, 2, 130.0, generator), torch.arange(30) % 2
    found = pool(Pyramid((features,), (8.0,), torch.zeros(2, 2)), corners, owner, bins=7, samples=samples)
    rows = torch.cat([owner[:, None].double(), corners], 1)
    assert torch.allclose(found, roi_align(features, rows, 7, 1 / 8, samples or -1, aligned=True))


def test_regions_are_pooled_from_the_level_of_their_size(num_dims: int) -> None:
    levels = tuple(torch.full((1, 1, *[size] * num_dims), float(i)) for i, size in enumerate((64, 32, 16)))
    sizes = torch.tensor([10.0, 14 * 2 - 0.1, 14 * 2 + 0.1, 14 * 4 + 0.1, 1000.0])
    corners = torch.cat([torch.zeros(5, num_dims), sizes[:, None].expand(-1, num_dims)], 1)
    found = pool(
        Pyramid(levels, (1.0, 2.0, 4.0), torch.zeros(1, num_dims)), corners, torch.zeros(5).long(), bins=1, samples=1
    )
    assert torch.allclose(found.flatten(1)[:4, 0], torch.tensor([0.0, 0.0, 1.0, 2.0]))


def test_empty_regions_are_zero(num_dims: int) -> None:
    pyramid = Pyramid((torch.ones(1, 2, *[4] * num_dims),), (1.0,), torch.zeros(1, num_dims))
    assert not pool(pyramid, torch.ones(1, 2 * num_dims), torch.zeros(1).long(), bins=2).any()
    assert pool(pyramid, torch.ones(0, 2 * num_dims), torch.zeros(0).long(), bins=2).shape == (0, 2, *[2] * num_dims)


def test_every_cell_read_gets_a_gradient(num_dims: int) -> None:
    features = torch.zeros(1, 1, *[4] * num_dims, requires_grad=True)
    corners = torch.tensor([[0.0] * num_dims + [4.0] * num_dims])
    pool(
        Pyramid((features,), (1.0,), torch.zeros(1, num_dims)), corners, torch.zeros(1).long(), bins=2
    ).sum().backward()
    assert features.grad is not None
    assert (features.grad > 0).all()


def iou_of(first: Tensor, second: Tensor) -> float:
    num_dims = len(first) // 2
    sides = [
        max(0.0, float(min(first[a + num_dims], second[a + num_dims]) - max(first[a], second[a])))
        for a in range(num_dims)
    ]
    volumes = [float((x[num_dims:] - x[:num_dims]).prod()) for x in (first, second)]
    return math.prod(sides) / (sum(volumes) - math.prod(sides))


@pytest.mark.parametrize("grouped", [False, True])
def test_suppression_equals_a_naive_loop(num_dims: int, grouped: bool, generator: torch.Generator) -> None:
    corners = some_regions(40, num_dims, 6.0, generator)
    scores = torch.rand(40, generator=generator)
    groups = torch.arange(40) % 3 if grouped else torch.zeros(40).long()
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if groups[i] == groups[j]]
        if all(iou_of(corners[i], corners[j]) <= 0.3 for j in rivals):
            kept.append(i)
    assert nms(corners, scores, 0.3, groups if grouped else None).tolist() == kept
    assert len(kept) < 40


def test_images_are_suppressed_as_torchvision_does(generator: torch.Generator) -> None:
    corners, scores = some_regions(200, 2, 10.0, generator), torch.rand(200, generator=generator)
    assert nms(corners, scores, 0.5).tolist() == torchvision_nms(corners.float(), scores, 0.5).tolist()


def test_soft_suppression_equals_a_naive_loop(num_dims: int, generator: torch.Generator) -> None:
    corners = some_regions(20, num_dims, 6.0, generator) / 2
    corners[:, num_dims:] += 2
    scores = torch.rand(20, generator=generator, dtype=torch.float64)
    groups = torch.arange(20) % 2
    left, expected = dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.__getitem__)
        expected.append((best, left.pop(best)))
        for other in list(left):
            overlap = iou_of(corners[best], corners[other]) if groups[best] == groups[other] else 0.0
            left[other] *= 1 - overlap if overlap > 0.2 else 1
            if left[other] <= 0.05:
                del left[other]
    index, weakened = soft_nms(corners, scores, 0.2, groups, min_score=0.05)
    assert index.tolist() == [i for i, _ in expected]
    assert torch.allclose(weakened, torch.tensor([score for _, score in expected], dtype=torch.float64))
    assert not torch.equal(weakened, scores[index])


def test_nothing_is_suppressed_of_nothing(num_dims: int) -> None:
    none, groups = torch.zeros(0, 2 * num_dims), torch.zeros(0).long()
    assert nms(none, torch.zeros(0), 0.5).shape == nms(none, torch.zeros(0), 0.5, groups).shape == (0,)
    assert soft_nms(none, torch.zeros(0), 0.5)[0].shape == (0,)
