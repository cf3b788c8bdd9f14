from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.deformable import DeformableAttention, attend_points, directions, sample
from momentdetr.detr.neck import cell_centers, valid_ratios
from momentdetr.detr.types import Memory

SHAPE = (4, 3, 5)


def naive_sample(grid: Tensor, point: list[float]) -> Tensor:
    """Corner by corner; `point` in natural order, the grid's axes as stored."""
    shape = grid.shape[:-1]
    cells = [position * size - 0.5 for position, size in zip(reversed(point), shape, strict=True)]
    total = torch.zeros(grid.shape[-1], dtype=grid.dtype)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index = [math.floor(cell) + step for cell, step in zip(cells, corner, strict=True)]
        weight = math.prod(1 - abs(cell - place) for cell, place in zip(cells, index, strict=True))
        if all(0 <= place < size for place, size in zip(index, shape, strict=True)):
            total += weight * grid[tuple(index)]
    return total


def test_sampling_equals_a_naive_loop(num_dims: int, generator: torch.Generator) -> None:
    shape = SHAPE[:num_dims]
    grid = torch.randn(2, *shape, 3, generator=generator, dtype=torch.float64)
    points = torch.rand(2, 40, num_dims, generator=generator, dtype=torch.float64) * 1.6 - 0.3  # some lie outside
    found = sample(grid, points)
    for batch, index in itertools.product(range(2), range(40)):
        torch.testing.assert_close(found[batch, index], naive_sample(grid[batch], points[batch, index].tolist()))


def test_sampling_equals_torch_s_own_in_two_and_three_dimensions(generator: torch.Generator) -> None:
    for num_dims in (2, 3):
        grid = torch.randn(1, *SHAPE[:num_dims], 3, generator=generator, dtype=torch.float64)
        points = torch.rand(1, 50, num_dims, generator=generator, dtype=torch.float64) * 1.6 - 0.3
        places = (2 * points - 1).reshape(1, *[1] * (num_dims - 1), 50, num_dims)
        twin = F.grid_sample(grid.movedim(-1, 1), places, align_corners=False)
        torch.testing.assert_close(sample(grid, points), twin.flatten(2).transpose(1, 2))


def test_sampling_is_differentiable_in_features_and_points(num_dims: int, generator: torch.Generator) -> None:
    grid = torch.randn(1, *SHAPE[:num_dims], 2, generator=generator, dtype=torch.float64, requires_grad=True)
    points = torch.rand(1, 3, num_dims, generator=generator, dtype=torch.float64) * 0.6 + 0.21
    torch.autograd.gradcheck(sample, (grid, points.requires_grad_()))


def test_the_centers_of_cells_read_the_cells(num_dims: int) -> None:
    shape = SHAPE[:num_dims]
    grid = torch.arange(math.prod(shape), dtype=torch.float32).reshape(1, *shape, 1)
    centers = cell_centers(shape, torch.ones(1, num_dims))
    torch.testing.assert_close(sample(grid, centers).flatten(), torch.arange(math.prod(shape)).float())


def test_attention_is_the_weighted_sum_of_samples(num_dims: int, generator: torch.Generator) -> None:
    shapes = [SHAPE[:num_dims], (2,) * num_dims]
    counts = [math.prod(shape) for shape in shapes]
    value = torch.randn(2, sum(counts), 2, 3, generator=generator, dtype=torch.float64)
    places = torch.rand(2, 4, 2, 2, 3, num_dims, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 4, 2, 2, 3, generator=generator, dtype=torch.float64)
    found = attend_points(value, shapes, places, weights).unflatten(-1, (2, 3))
    levels = value.split(counts, 1)
    for batch, query, head in itertools.product(range(2), range(4), range(2)):
        expected = sum(
            weights[batch, query, head, level, point]
            * naive_sample(
                levels[level][batch, :, head].reshape(*shapes[level], 3),
                places[batch, query, head, level, point].tolist(),
            )
            for level, point in itertools.product(range(2), range(3))
        )
        torch.testing.assert_close(found[batch, query, head], expected)


def make(num_dims: int) -> tuple[DeformableAttention, Memory]:
    """Two levels; the second sample is smaller along the last axis, by half."""
    torch.manual_seed(0)
    attention = DeformableAttention(num_dims, 16, num_heads=4, num_levels=2, num_points=3).double()
    torch.nn.init.normal_(attention.offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.weights.weight)
    masks = []
    for shape in ((4,) * num_dims, (2,) * num_dims):
        mask = torch.ones(2, *shape, dtype=torch.bool)
        mask[1, ..., shape[-1] // 2 :] = False
        masks.append(mask)
    shapes = tuple(tuple(mask.shape[1:]) for mask in masks)
    ratios = torch.stack([valid_ratios(mask) for mask in masks], 1).double()
    flat = torch.cat([mask.flatten(1) for mask in masks], 1)
    memory = Memory(torch.randn(2, flat.shape[1], 16).double(), flat, level_shapes=shapes, valid_ratios=ratios)
    return attention, memory


@pytest.mark.parametrize("boxes", [False, True])
def test_what_lies_in_the_padding_does_not_matter(num_dims: int, boxes: bool) -> None:
    attention, memory = make(num_dims)
    queries = torch.randn(2, 5, 16, dtype=torch.float64)
    references = torch.rand(2, 5, num_dims * (1 + boxes), dtype=torch.float64)
    assert memory.mask is not None
    noise = torch.randn_like(memory.tokens) * ~memory.mask[..., None]
    expected = attention(queries, references, memory)
    torch.testing.assert_close(attention(queries, references, memory.with_tokens(memory.tokens + noise)), expected)


@pytest.mark.parametrize("boxes", [False, True])
def test_a_padded_sample_answers_as_it_does_alone(num_dims: int, boxes: bool) -> None:
    """Points of references count from the valid part, so half a map is the same as the map of half the size."""
    attention, memory = make(num_dims)
    with torch.no_grad():
        # Offsets of points are counted in cells, and reach over the edge into padding, which counts as zero either way.
        attention.offsets.bias.mul_(0.3)
    queries = torch.randn(2, 5, 16, dtype=torch.float64)
    references = torch.rand(2, 5, num_dims * (1 + boxes), dtype=torch.float64)
    batched = attention(queries, references, memory)
    assert memory.mask is not None
    shapes = tuple((*shape[:-1], shape[-1] // 2) for shape in memory.level_shapes)
    alone = Memory(memory.tokens[1:, memory.mask[1]], None, level_shapes=shapes)
    torch.testing.assert_close(batched[1:], attention(queries[1:], references[1:], alone))


def test_heads_start_to_look_in_all_directions(num_dims: int) -> None:
    neighbours = 3**num_dims - 1
    found = directions(neighbours, num_dims)
    assert len({tuple(row) for row in found.tolist()}) == neighbours
    assert (found.abs().amax(1) == 1).all()
    assert torch.equal(found.sum(0), torch.zeros(num_dims))


@pytest.mark.parametrize("num_heads", [4, 8])
def test_in_two_dimensions_they_are_the_paper_s_circle(num_heads: int) -> None:
    angles = torch.arange(num_heads) * 2 * math.pi / num_heads
    circle = torch.stack([angles.cos(), angles.sin()], -1)
    torch.testing.assert_close(directions(num_heads, 2), circle / circle.abs().amax(1, keepdim=True))


def test_points_start_on_rays_equally_weighted(num_dims: int) -> None:
    attention = DeformableAttention(num_dims, 16, num_heads=2, num_levels=2, num_points=3)
    rays = attention.offsets.bias.reshape(2, 2, 3, num_dims)
    for point in range(3):
        torch.testing.assert_close(rays[:, :, point], rays[:, :, 0] * (point + 1))
    assert attention.offsets.weight.abs().sum() == attention.weights.weight.abs().sum() == 0
