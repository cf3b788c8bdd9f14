"""Small image data sets that tests make themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
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


ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.lists(st.one_of(st.integers(-5, 100), st.floats()), min_size=3, max_size=5),
)


def spoil(content: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Replace or remove a few values anywhere in a JSON document, in place."""
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while True:
            key = draw(st.sampled_from(sorted(place, key=str) if isinstance(place, dict) else range(len(place))))
            inner = place[key]
            if not (isinstance(inner, (dict, list)) and inner) or draw(st.integers(0, 5)) == 0:
                break
            place = inner
        if draw(st.booleans()):
            place[key] = draw(ODD_VALUES)
        elif isinstance(place, list) or place is not content:
            del place[key]
