"""A small COCO-format folder of the moving-shapes world, to try things out without any download."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from momentdetr.demo.drawing import draw_frame, paint_background
from momentdetr.demo.planning import make_video
from momentdetr.demo.scene import FRAMES_PER_CLIP
from momentdetr.demo.truth import CATEGORIES, frame_boxes
from momentdetr.errors import StoreError


def write_generated(folder: str | Path, count: int, *, size: int = 64) -> Path:
    """Write `count` images to learn from and a quarter as many to be scored on, each of another video.

    Args:
        folder: made if missing; gets annotations/instances_{train,val}.json, train/ and val/.
        count: of training images.
        size: height and width in pixels.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        for split, stream, number in (("train", "train", count), ("val", "validation", max(1, count // 4))):
            document = _write_split(folder / split, stream, number, size)
            path = folder / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write generated images to {folder}: {error.strerror}") from error
    return folder


def _write_split(folder: Path, stream: str, count: int, size: int) -> dict[str, list[dict[str, object]]]:
    folder.mkdir(exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        scene = make_video(0, index, stream)
        # The frame that shows the most; the first one of several.
        frame = max(range(0, scene.num_frames, FRAMES_PER_CLIP), key=lambda at: len(frame_boxes(scene, at, size)))
        pixels = draw_frame(scene, frame / FRAMES_PER_CLIP, paint_background(scene.background, size))
        Image.fromarray(pixels).save(folder / f"{index:04}.png")
        images.append({"id": index + 1, "file_name": f"{index:04}.png", "width": size, "height": size})
        for shape, (left, top, width, height) in frame_boxes(scene, frame, size):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": next(one["id"] for one in CATEGORIES if one["name"] == shape),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    return {"images": images, "categories": list(CATEGORIES), "annotations": annotations}
