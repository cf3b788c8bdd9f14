"""Turning, resizing and cropping, against PIL, torchvision and a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, InterpolationMode, Resize

from momentdetr.features.video_picture import Orientation, square

RANDOM = np.random.default_rng(0)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size",
    [(96, 128), (128, 96), (101, 333), (333, 101), (224, 224), (64, 65), (65, 64), (30, 31), (1, 7), (720, 1280)],
)
@pytest.mark.parametrize("side", [32, 64, 33])
def test_square_is_clips_preprocessing(size: tuple[int, int], side: int, interpolation: str) -> None:
    picture = noise(*size)
    image = Image.fromarray(picture)
    image = Resize(side, InterpolationMode(interpolation))(image)
    expected = np.asarray(CenterCrop(side)(image))
    assert np.array_equal(square(picture, side, interpolation), expected)


MATRICES = [
    (1, 0, 0, 1),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (0, -1, 1, 0),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_orientation_moves_each_pixel_where_the_matrix_says(matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    picture = noise(3, 5)
    orientation = Orientation(np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int32))
    turned = orientation.apply(picture)
    points = {(a * x + c * y, b * x + d * y): picture[y, x] for x in range(5) for y in range(3)}
    left, top = min(x for x, _ in points), min(y for _, y in points)
    for (x, y), colour in points.items():
        assert np.array_equal(turned[y - top, x - left], colour)
    assert turned.shape[1::-1] == orientation.size(5, 3)
    assert orientation.is_identity == (matrix == (1, 0, 0, 1))
    assert turned.flags.c_contiguous


def test_no_matrix_or_another_angle_is_shown_as_stored() -> None:
    assert Orientation().is_identity
    for a, b, c, d in ((46341, 46341, -46341, 46341), (-46341, 46341, -46341, -46341), (0, 0, 0, 0)):
        assert Orientation(np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)).is_identity
