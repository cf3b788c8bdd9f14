"""From a decoded frame to the picture that a viewer or an image tower sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Orientation:
    """How a stored picture is turned and mirrored before it is shown: one of the eight symmetries of a rectangle.

    Args:
        matrix: the nine numbers of the container's display matrix, or None: shown as stored. Its upper left 2 x 2 part
            (a b; c d) maps a point (x, y) to (a x + c y, b x + d y), y pointing down.
    """

    def __init__(self, matrix: NDArray[np.int32] | None = None) -> None:
        a, b, _, c, d = (1, 0, 0, 0, 1) if matrix is None else np.sign(matrix[:5]).tolist()
        self.swaps = bool(b and c and not a and not d)
        if self.swaps:
            self._across, self._down = c, b
        elif a and d and not b and not c:
            self._across, self._down = a, d
        else:  # any other angle is shown as stored
            self._across = self._down = 1

    @property
    def is_identity(self) -> bool:
        return not self.swaps and self._across == self._down == 1

    @property
    def degrees(self) -> int:
        """Clockwise rotation, 0, 90, 180 or 270; a mirrored picture counts as the rotation that remains."""
        if self.swaps:
            return 90 if self._down > 0 else 270
        return 180 if self._down < 0 else 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height as shown."""
        return (height, width) if self.swaps else (width, height)

    def apply(self, picture: Picture) -> Picture:
        if self.is_identity:
            return picture
        turned = picture.transpose(1, 0, 2) if self.swaps else picture
        return np.ascontiguousarray(turned[:: self._down, :: self._across])


def orientation_of(frame: Any) -> Orientation:
    """Read the display matrix that FFmpeg attaches to a frame (av.VideoFrame)."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return Orientation(np.frombuffer(bytes(data), "<i4"))
    return Orientation()


def to_rgb(frame: Any, width: int, height: int, orientation: Orientation) -> Picture:
    """Convert a decoded frame to RGB as shown.

    Args:
        frame: av.VideoFrame.
        width, height: of the stream's first frame, before turning; a stream that changes its size is scaled to it.
    """
    if (frame.width, frame.height) != (width, height):
        frame = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    return orientation.apply(frame.to_ndarray(format="rgb24"))


def square(picture: Picture, side: int, interpolation: str = "bicubic") -> Picture:
    """Resize the short side to `side` and cut out the centre, as CLIP's preprocessing does with PIL.

    Sizes and rounding are those of torchvision's Resize(int) and CenterCrop. The features that came with Moment-DETR
    were made from frames scaled by ffmpeg's own bicubic filter: the same frames and the same crop, slightly different
    grey levels.

    Args:
        picture: (H, W, 3).
        interpolation: key of `FILTERS`; both are antialiased.

    Returns:
        (side, side, 3).
    """
    height, width = picture.shape[:2]
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    if size != (width, height):
        picture = np.asarray(Image.fromarray(picture).resize(size, FILTERS[interpolation]))
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return picture[top : top + side, left : left + side]
