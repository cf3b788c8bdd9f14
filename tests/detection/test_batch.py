from __future__ import annotations

import pytest
import torch

from detection.batch import pad_images
from momentdetr.errors import BadInput


def test_images_lie_in_the_upper_left_and_the_rest_is_zero() -> None:
    images = [torch.rand(3, 4, 7) + 1, torch.rand(3, 6, 2) + 1, torch.rand(3, 1, 1) + 1]
    padded, mask = pad_images(images)
    assert padded.shape == (3, 3, 6, 7)
    for index, image in enumerate(images):
        for row in range(6):
            for column in range(7):
                real = row < image.shape[1] and column < image.shape[2]
                assert mask[index, row, column] == real
                expected = image[:, row, column] if real else torch.zeros(3)
                assert torch.equal(padded[index, :, row, column], expected)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([], "at least one image"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 0, 4)], "image 1"),
        ([torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)], "image 1"),
        ([torch.zeros(4, 4)], "image 0"),
    ],
    ids=["none", "no row", "other channels", "flat"],
)
def test_what_is_no_image_is_named(images: list[torch.Tensor], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        pad_images(images)
