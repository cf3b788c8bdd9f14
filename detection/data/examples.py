"""An image with its boxes, and the operations on both at once, by torchvision.transforms.v2.

Nothing here draws from a global generator: what is random is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

# Boxes that a cut leaves less of than this, in pixels of width or height, are no targets any more.
MIN_SIDE = 1.0


@dataclass(frozen=True)
class Example:
    """An image and what is in it.

    Args:
        image: (3, H, W) uint8.
        boxes: (M, 4), corners x0, y0, x1, y1 in pixels.
        labels: (M,) class indices.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]


def fitted_size(height: int, width: int, short_side: int, long_side: int | None) -> tuple[int, int]:
    """Height and width with the short side as asked, or less, so that the long one is at most `long_side`.

    Rounded as DETR's code does. A side never becomes less than a pixel, however narrow the image.
    """
    least, most = min(height, width), max(height, width)
    if long_side is not None and most / least * short_side > long_side:
        short_side = max(1, round(long_side * least / most))
        if short_side * most / least > long_side + 1:  # a strip: one pixel is more than its share
            return (long_side, 1) if height > width else (1, long_side)
    other = int(short_side * most / least)
    return (other, short_side) if height > width else (short_side, other)


def resize(example: Example, height: int, width: int) -> Example:
    """Scale to exactly this size, antialiased."""
    if example.size == (height, width):
        return example
    image = functional.resize(example.image, [height, width], antialias=True)
    boxes = functional.resize(_boxes(example), [height, width])
    return Example(image, boxes.as_subclass(Tensor), example.labels)


def crop(example: Example, top: int, left: int, height: int, width: int) -> Example:
    """Cut out a window; boxes are cut with it, and those of which nothing is left go."""
    image = functional.crop(example.image, top, left, height, width)
    boxes = functional.crop(_boxes(example), top, left, height, width)
    return clipped(Example(image, boxes.as_subclass(Tensor), example.labels), MIN_SIDE)


def flip(example: Example) -> Example:
    """Left becomes right."""
    boxes = functional.horizontal_flip(_boxes(example))
    return Example(functional.horizontal_flip(example.image), boxes.as_subclass(Tensor), example.labels)


def clipped(example: Example, min_side: float = 0.0) -> Example:
    """With boxes cut at the image's edges, without those of which nothing or less than `min_side` is left."""
    boxes = functional.clamp_bounding_boxes(_boxes(example), clamping_mode="hard").as_subclass(Tensor)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = ((sides > 0) & (sides >= min_side)).all(1)
    return Example(example.image, boxes[kept], example.labels[kept])


def cover(example: Example, height: int, width: int, zoom: float, where: tuple[float, float]) -> Example:
    """A window of exactly this size, full of image.

    Args:
        zoom: at least 1; 1: as much of the image as fits without a gap.
        where: which part is seen, from 0 (top, left) to 1 (bottom, right).
    """
    scale = zoom * max(height / example.size[0], width / example.size[1])
    # Cut first and scale then: a strip of 20,000 x 3 pixels, scaled whole, would fill the memory.
    rows, columns = (
        min(have, max(1, round(want / scale))) for have, want in zip(example.size, (height, width), strict=True)
    )
    room = (example.size[0] - rows, example.size[1] - columns)
    top, left = (round(share * free) for share, free in zip(where, room, strict=True))
    return clipped(resize(crop(example, top, left, rows, columns), height, width), MIN_SIDE)


def mosaic(examples: list[Example], side: int, centre: tuple[float, float], rng: np.random.Generator) -> Example:
    """Four images as the quarters of one.

    Args:
        examples: four, upper left, upper right, lower left, lower right.
        side: height and width of the whole.
        centre: where they meet, as fractions of height and width.
        rng: says which part of each is seen. Quarters are full of image, so that no hole needs a mask of its own.
    """
    middle, centre_column = (min(side - 1, max(1, round(side * share))) for share in centre)
    spans = [(0, middle), (middle, side)], [(0, centre_column), (centre_column, side)]
    image = examples[0].image.new_empty(3, side, side)
    boxes, labels = [], []
    for index, example in enumerate(examples):
        (top, bottom), (left, right) = spans[0][index // 2], spans[1][index % 2]
        zoom, where = rng.uniform(1, 1.5), (rng.random(), rng.random())
        part = cover(example, bottom - top, right - left, zoom, where)
        image[:, top:bottom, left:right] = part.image
        boxes.append(part.boxes + part.boxes.new_tensor([left, top, left, top]))
        labels.append(part.labels)
    return Example(image, torch.cat(boxes), torch.cat(labels))


def mixup(first: Example, second: Example, share: float) -> Example:
    """Two images of one size through each other, with the boxes of both.

    Args:
        share: of the first one, in [0, 1].
    """
    mixed = first.image.float().mul(share).add(second.image.float(), alpha=1 - share)
    image = mixed.round().to(torch.uint8)
    return Example(image, torch.cat([first.boxes, second.boxes]), torch.cat([first.labels, second.labels]))


def _boxes(example: Example) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(example.boxes, format="XYXY", canvas_size=example.size)
