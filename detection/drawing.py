"""Boxes drawn into images."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detection.predictor import ImageDetections


def draw(pixels: NDArray[np.uint8], found: ImageDetections) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) with a frame around each detection, its class and its score; the surest on top."""
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    short = min(picture.size)
    width = max(1, round(short / 250))
    font = ImageFont.load_default(size=max(10, short // 40))
    for index in reversed(range(len(found))):
        colour = colour_of(int(found.labels[index]))
        left, top, right, bottom = (float(edge) for edge in found.boxes[index])
        # Pillow refuses boxes that end before they start.
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
        text = f"{found.names[index]} {found.scores[index]:.2f}"
        frame = pen.textbbox((0, 0), text, font=font)
        above = top - frame[3] - 2 if top > frame[3] + 2 else top
        pen.rectangle((left, above, left + frame[2] + 4, above + frame[3] + 2), fill=colour)
        pen.text((left + 2, above), text, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def colour_of(label: int) -> tuple[int, int, int]:
    """A light colour for each class, neighbours far apart on the wheel."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
