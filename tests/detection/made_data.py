"""Small image data sets that tests make themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((64, 48), (40, 60), (50, 50))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random but smooth, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def document(sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, Any]:
    """Three images: with a box and a crowd, with two boxes, without any; category ids with gaps."""
    images = [{"id": 10 + i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    boxes = [(10, 7, [4, 6, 20, 30], 0), (10, 3, [0, 0, 64, 20], 1), (11, 3, [1.5, 2, 30, 40.5], 0)]
    boxes.append((11, 7, [10, 30, 30, 30.4], 0))  # reaches 0.4 pixels out
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3] / 2,
            "iscrowd": crowd,
        }
        for i, (image, category, box, crowd) in enumerate(boxes, start=1)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def write_coco(folder: Path, content: dict[str, Any] | None = None, split: str = "train") -> Path:
    """A COCO-format folder of `document`, with its images; returns the JSON file."""
    content = content or document()
    images = folder / split
    images.mkdir(parents=True, exist_ok=True)
    for index, (width, height) in enumerate(SIZES):
        picture(width, height, index).save(images / f"{index}.jpg", quality=95)
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file
