"""What is true of a scene, in the formats of the field: QVHighlights for moments, COCO for boxes."""

from __future__ import annotations

from typing import Any

from momentdetr.demo.drawing import SIZE, box_of
from momentdetr.demo.scene import CLIP_LENGTH_S, FRAMES_PER_CLIP, Query, Scene
from momentdetr.demo.vocabulary import SHAPES

NUM_ANNOTATORS = 3
_SHOWN, _HIDDEN = 4, 2
"""Saliency of a clip inside a window whose frame shows the shape, and of one where it is blinked away."""

CATEGORIES = [{"id": number, "name": shape} for number, shape in enumerate(SHAPES, start=1)]


def moment_rows(scene: Scene, first_qid: int = 0) -> list[dict[str, Any]]:
    """One QVHighlights object per query: seconds, clips of half a second, three annotators who agree."""
    return [_moment_row(scene, query, first_qid + number) for number, query in enumerate(scene.queries)]


def _moment_row(scene: Scene, query: Query, qid: int) -> dict[str, Any]:
    clips = [clip for start, end in query.windows for clip in range(start, end)]
    scores = [_SHOWN if _is_shown(scene, query, clip) else _HIDDEN for clip in clips]
    return {
        "qid": qid,
        "query": query.text,
        "duration": scene.duration_s,
        "vid": scene.name,
        "relevant_windows": [[start * CLIP_LENGTH_S, end * CLIP_LENGTH_S] for start, end in query.windows],
        "relevant_clip_ids": clips,
        "saliency_scores": [[score] * NUM_ANNOTATORS for score in scores],
    }


def _is_shown(scene: Scene, query: Query, clip: int) -> bool:
    return any(query.description.fits(event.combination) and event.visible_at(clip + 0.5) for event in scene.events)


def coco_document(scenes: list[Scene], size: int = SIZE) -> dict[str, Any]:
    """Every visible shape's box in every frame.

    An image's `file_name` is "VIDEO.mp4", its `frame` counts from 0. A box is left, top, width, height in pixels;
    `area` is the box's.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        for frame in range(scene.num_frames):
            image_id = len(images) + 1
            name = f"{scene.name}.mp4"
            images.append({"id": image_id, "file_name": name, "frame": frame, "width": size, "height": size})
            for shape, box in frame_boxes(scene, frame, size):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": SHAPES.index(shape) + 1,
                        "bbox": [round(value, 3) for value in box],
                        "area": round(box[2] * box[3], 3),
                        "iscrowd": 0,
                    }
                )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def frame_boxes(scene: Scene, frame: int, size: int = SIZE) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Shape and box (left, top, width, height; pixels) of everything to be seen in one frame."""
    clips = frame / FRAMES_PER_CLIP
    found = []
    for event in scene.events:
        if event.visible_at(clips):
            left, top, right, bottom = (edge * size for edge in box_of(event.shape, event.pose_at(clips)))
            found.append((event.shape, (left, top, right - left, bottom - top)))
    return found
