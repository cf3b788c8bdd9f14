"""Frames become the pictures that open_clip's own preprocessing makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from open_clip import image_transform
from PIL import Image

from momentdetr.errors import BadInput
from momentdetr.features.pictures import check_frames, fit, to_pictures
from momentdetr.features.spec import Preprocessing

MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.25, 0.3)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(72, 128, 32), (128, 72, 32), (32, 32, 32), (33, 32, 32), (20, 31, 64), (45, 45, 64), (7, 100, 16), (90, 61, 37)],
)
def test_equal_to_open_clip(height: int, width: int, size: int, interpolation: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    transform = image_transform(size, is_train=False, mean=MEAN, std=STD, interpolation=interpolation)
    expected = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
    found = to_pictures(frames, Preprocessing(size, MEAN, STD, interpolation), torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_fitting_frame_is_left_alone() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert fit(frame, 24) is frame


def test_strided_frames() -> None:
    """A decoder may hand out views."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 50, 60, 3), dtype=np.uint8)
    view = frames[::2, ::-1, :, ::-1]
    assert np.array_equal(fit(view[0], 20), fit(np.ascontiguousarray(view[0]), 20))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((2, 0, 4, 3), np.uint8),
        torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        None,
    ],
    ids=["float", "one frame", "channels first", "no rows", "torch", "nothing"],
)
def test_what_is_no_batch_of_frames_is_refused(frames: Any) -> None:
    with pytest.raises(BadInput, match=r"frames are .*; expected"):
        check_frames(frames)
