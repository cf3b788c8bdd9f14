"""Images of several sizes as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from momentdetr.errors import BadInput


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Put images into the upper left corners of equally large ones.

    Args:
        images: (C, H, W) each, of any height and width.

    Returns:
        images (B, C, H, W), zero where padded, and mask (B, H, W), True where an image is.

    Raises:
        BadInput: no image, or one that is not (C, H, W) or has no pixel or another number of channels.
    """
    if not images:
        raise BadInput("a batch needs at least one image")
    for index, image in enumerate(images):
        if image.dim() != 3 or image.numel() == 0 or image.shape[0] != images[0].shape[0]:
            raise BadInput(
                f"image {index} of the batch has shape {tuple(image.shape)}, expected "
                f"({images[0].shape[0]}, H, W) with at least one pixel"
            )
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool, device=padded.device)
    for index, image in enumerate(images):
        rows, columns = image.shape[1:]
        padded[index, :, :rows, :columns] = image
        mask[index, :rows, :columns] = True
    return padded, mask
