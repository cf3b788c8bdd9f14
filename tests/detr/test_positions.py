from __future__ import annotations

import itertools
import math

import pytest
import torch

from momentdetr.detr.positions import box_features, grid_positions, sine_features


def naive_features(value: float, num_features: int, temperature: float) -> list[float]:
    features = []
    for index in range(num_features):
        angle = value / temperature ** (2 * (index // 2) / num_features)
        features.append(math.sin(angle) if index % 2 == 0 else math.cos(angle))
    return features


def test_sine_features_equal_the_formula() -> None:
    values = torch.tensor([0.0, 0.3, 2.5, 6.2], dtype=torch.float64)
    expected = torch.tensor([naive_features(v, 8, 20.0) for v in values.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sine_features(values, 8, 20.0), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("offset", "temperature"), [(0.0, 10000.0), (-0.5, 10000.0), (0.0, 20.0)])
def test_grid_positions_count_valid_cells_along_each_axis(num_dims: int, offset: float, temperature: float) -> None:
    shape = (3, 4, 5)[:num_dims]
    valid = (2, 4, 3)[:num_dims]  # a padded corner region, as images of unequal size leave it
    mask = torch.zeros(1, *shape, dtype=torch.bool)
    mask[(0, *(slice(0, n) for n in valid))] = True
    features = 4 * num_dims
    found = grid_positions(mask, features, temperature=temperature, offset=offset)
    for cell in itertools.product(*(range(n) for n in valid)):
        expected = []
        for axis, index in enumerate(cell):
            radians = (index + 1 + offset) / (valid[axis] + 1e-6) * 2 * math.pi
            expected += naive_features(radians, 4, temperature)
        torch.testing.assert_close(found[(0, *cell)], torch.tensor(expected), atol=1e-5, rtol=0)


def test_each_axis_may_have_its_own_temperature() -> None:
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    found = grid_positions(mask, 8, temperature=(20.0, 10000.0))
    torch.testing.assert_close(found[..., :4], grid_positions(mask, 8, temperature=20.0)[..., :4])
    torch.testing.assert_close(found[..., 4:], grid_positions(mask, 8, temperature=10000.0)[..., 4:])


def test_uneven_features_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        grid_positions(torch.ones(1, 2, 2, 2, dtype=torch.bool), 16)


def test_box_features_keep_natural_order(num_dims: int) -> None:
    boxes = torch.rand(2, 3, 2 * num_dims, dtype=torch.float64)
    found = box_features(boxes, 6)
    assert found.shape == (2, 3, 2 * num_dims, 6)
    expected = naive_features(boxes[1, 2, -1].item() * 2 * math.pi, 6, 10000.0)
    torch.testing.assert_close(found[1, 2, -1], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
