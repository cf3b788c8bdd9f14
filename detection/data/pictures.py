"""Image files to pixels, in the frame that the boxes are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from momentdetr.errors import BadInput

# What is read, by content and not by name. Everything else that Pillow knows is either a document, which it hands to
# other programs, or too rare to be worth its parser.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

_ORIENTATION = 0x0112
_SWAPPED = {5, 6, 7, 8}


@dataclass(frozen=True)
class PictureFacts:
    """What the head of a file says.

    Args:
        width: pixels as stored.
        height: likewise.
        orientation: of EXIF, 1 (upright as stored) to 8.
        mode: how pixels are stored, in Pillow's words.
    """

    width: int
    height: int
    orientation: int
    mode: str

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as a viewer shows it."""
        return (self.height, self.width) if self.orientation in _SWAPPED else (self.width, self.height)


def read_facts(path: str | Path) -> PictureFacts:
    """Read the head of an image file.

    Raises:
        BadInput: missing, no image, or too large.
    """
    with _opened(Path(path)) as image:
        return _facts(image)


def read_picture(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image.

    Args:
        path: the file.
        size: width and height in the frame of the annotated boxes. Where it is that of the stored pixels and not that
            of the rotated ones, EXIF rotation does not count (COCO's own images); else, and where the two sizes are the
            same, the image is turned as viewers show it. None: turned.

    Returns:
        (H, W, 3) RGB.

    Raises:
        BadInput: missing, damaged, no image, too large, of floating-point pixels, or not of this size.
    """
    path = Path(path)
    with _opened(path) as image:
        facts = _facts(image)
        if size is not None and size not in (facts.upright, (facts.width, facts.height)):
            raise BadInput(f"{path}: {size_fault(facts, *size)}")
        try:
            if size is None or size == facts.upright:
                image = ImageOps.exif_transpose(image)
            return _rgb(image, path)
        except BadInput:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
            raise BadInput(f"{path}: is damaged ({error}); replace it") from error


def size_fault(facts: PictureFacts, width: int, height: int) -> str:
    """In words: the file has another size than annotated."""
    turned = f" ({facts.upright[0]}x{facts.upright[1]} turned)" if facts.orientation in _SWAPPED else ""
    return f"is {facts.width}x{facts.height} pixels{turned}, annotated as {width}x{height}"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if not path.is_file():
            raise BadInput(f"{path}: there is no such file")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise BadInput(f"{path}: is too large ({error}); make it smaller") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{path}: is no image of {', '.join(FORMATS)}; replace it") from error
    except BadInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); replace it") from error


def _facts(image: Image.Image) -> PictureFacts:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError):  # damaged EXIF says nothing
        found = 1
    orientation = found if isinstance(found, int) and 1 <= found <= 8 else 1
    return PictureFacts(image.width, image.height, orientation, image.mode)


def _rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise BadInput(f"{path}: has floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits: their high byte, as other readers do, where Pillow would cut at 255
        deep: NDArray[Any] = np.asarray(image).astype(np.int64)
        if deep.min(initial=0) < 0 or deep.max(initial=0) > 65535:
            raise BadInput(f"{path}: has pixels of more than 16 bits; save it with 8 or 16")
        grey = (deep >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":  # a palette may hold transparency
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
