from __future__ import annotations

import math

import pytest
import torch

from momentdetr.detr.boxes import giou, inverse_sigmoid, iou, to_center_size, to_corners, volume


def random_corners(generator: torch.Generator, num_dims: int, count: int) -> torch.Tensor:
    points = torch.rand(count, 2, num_dims, generator=generator, dtype=torch.float64)
    return torch.cat([points.min(1).values, points.max(1).values], -1)


def naive_overlap(a: list[float], b: list[float], num_dims: int) -> tuple[float, float, float]:
    """Intersection, union and hull of two boxes, one axis at a time."""
    inter = union_a = union_b = hull = 1.0
    for axis in range(num_dims):
        low_a, high_a, low_b, high_b = a[axis], a[axis + num_dims], b[axis], b[axis + num_dims]
        inter *= max(0.0, min(high_a, high_b) - max(low_a, low_b))
        union_a *= high_a - low_a
        union_b *= high_b - low_b
        hull *= max(high_a, high_b) - min(low_a, low_b)
    return inter, union_a + union_b - inter, hull


def test_pairwise_iou_and_giou_equal_a_naive_loop(num_dims: int, generator: torch.Generator) -> None:
    first, second = random_corners(generator, num_dims, 7), random_corners(generator, num_dims, 5)
    overlap, union = iou(first[:, None], second[None])
    generalized = giou(first[:, None], second[None])
    for i, a in enumerate(first.tolist()):
        for j, b in enumerate(second.tolist()):
            inter, whole, hull = naive_overlap(a, b, num_dims)
            assert overlap[i, j].item() == pytest.approx(inter / whole, abs=1e-12)
            assert union[i, j].item() == pytest.approx(whole, abs=1e-12)
            assert generalized[i, j].item() == pytest.approx(inter / whole - (hull - whole) / hull, abs=1e-12)


def test_eps_is_added_to_what_divides(num_dims: int) -> None:
    unit = torch.cat([torch.zeros(num_dims), torch.ones(num_dims)])
    assert iou(unit, unit, eps=1.0)[0] == 0.5
    assert giou(unit, unit, eps=1.0) == 0.5
    far = unit + 2  # hull 3^D, union 2
    hull = 3.0**num_dims
    assert giou(unit, far, eps=1.0).item() == pytest.approx(-(hull - 2) / (hull + 1))


def test_corners_and_centers_are_inverse(num_dims: int, generator: torch.Generator) -> None:
    boxes = torch.rand(4, 6, 2 * num_dims, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(to_center_size(to_corners(boxes)), boxes)


def test_volume_of_a_reversed_box_is_zero(num_dims: int) -> None:
    corners = torch.cat([torch.ones(num_dims), torch.zeros(num_dims)])
    assert volume(corners) == 0


def test_empty_boxes_have_finite_overlap_and_gradient(num_dims: int) -> None:
    point = torch.full((2 * num_dims,), 0.5, requires_grad=True)
    value = giou(point, point.detach())
    value.backward()
    assert value == 0
    assert point.grad is not None
    assert point.grad.isfinite().all()
    far = torch.full((2 * num_dims,), 0.9)
    assert giou(point.detach(), far) == -1


def test_identical_boxes_score_one_and_touching_ones_zero(num_dims: int) -> None:
    unit = torch.cat([torch.zeros(num_dims), torch.ones(num_dims)])
    assert giou(unit, unit) == 1
    assert iou(unit, unit + 1)[0] == 0


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid_is_the_clamped_logit(eps: float) -> None:
    values = [-0.5, 0.0, eps / 2, 0.25, 0.5, 1 - eps / 2, 1.0, 1.5]
    for value, found in zip(
        values, inverse_sigmoid(torch.tensor(values, dtype=torch.float64), eps).tolist(), strict=True
    ):
        x = min(max(value, 0.0), 1.0)
        assert found == pytest.approx(math.log(max(x, eps) / max(1 - x, eps)), abs=1e-9)


def test_half_precision_is_widened() -> None:
    assert inverse_sigmoid(torch.tensor([0.3], dtype=torch.bfloat16), 1e-3).dtype == torch.float32
    assert inverse_sigmoid(torch.tensor([0.3], dtype=torch.float64), 1e-3).dtype == torch.float64
