"""Frames to the pictures that an image tower takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from momentdetr.errors import BadInput
from momentdetr.features.spec import Preprocessing

Frames = np.ndarray[Any, np.dtype[np.uint8]]

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def check_frames(frames: Frames) -> None:
    """Check that `frames` is what a video reader gives.

    Raises:
        BadInput: not uint8, or not (N, H, W, 3) with H and W at least 1.
    """
    found = f"{getattr(frames, 'dtype', type(frames).__name__)} {tuple(getattr(frames, 'shape', ()))}"
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise BadInput(f"frames are {found}; expected a numpy array of uint8, RGB in 0..255")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:]:
        raise BadInput(f"frames are {found}; expected (N, H, W, 3)")


def fit(frame: Frames, image_size: int, interpolation: str = "bicubic") -> Frames:
    """Resize the short side of a frame to `image_size` (antialiased) and cut out the centre square.

    Args:
        frame: (H, W, 3) uint8.

    Returns:
        (image_size, image_size, 3) uint8; the frame itself if it already has that size.
    """
    height, width = frame.shape[:2]
    if height == width == image_size:
        return frame
    short = min(height, width)
    width, height = int(image_size * width / short), int(image_size * height / short)
    picture = Image.fromarray(frame).resize((width, height), _RESAMPLING[interpolation])
    # Rounded as torchvision's CenterCrop does, so that a picture is the one that open_clip's own transform makes.
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return np.asarray(picture.crop((left, top, left + image_size, top + image_size)))


def to_pictures(frames: Frames, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Frames as the image tower takes them: fitted, scaled to [0, 1], mean subtracted, divided by std.

    Args:
        frames: (N, H, W, 3) uint8 RGB.

    Returns:
        (N, 3, image_size, image_size) float32 on `device`.
    """
    fitted = np.stack([fit(frame, preprocessing.image_size, preprocessing.interpolation) for frame in frames])
    images = torch.from_numpy(fitted).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return (images - mean) / std
