"""The moving-shapes world as files: MP4 videos, QVHighlights and COCO annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from momentdetr.demo.drawing import draw
from momentdetr.demo.planning import make_video
from momentdetr.demo.scene import FPS, Scene
from momentdetr.demo.truth import coco_document, moment_rows


def write_dataset(folder: str | Path, seed: int, num_videos: int, split: str = "test") -> list[Scene]:
    """Draw a data set.

    Args:
        folder: gets videos/NAME.mp4, moments.jsonl (QVHighlights) and boxes.json (COCO); made if missing.
        seed: of the world.
        num_videos: how many.
        split: "test" asks for held-out combinations too, "train" and "validation" never do.

    Returns:
        The scenes, in order.
    """
    folder = Path(folder)
    scenes = [make_video(seed, index, split) for index in range(num_videos)]
    for scene in scenes:
        write_scene(scene, folder / "videos" / f"{scene.name}.mp4")
    write_moments(scenes, folder / "moments.jsonl")
    (folder / "boxes.json").write_text(json.dumps(coco_document(scenes)) + "\n", encoding="utf-8")
    return scenes


def write_scene(scene: Scene, path: Path) -> Path:
    """Draw one video as H.264 in MP4."""
    from momentdetr.features.video_write import write_video  # decoders are not needed to make up scenes

    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, draw(scene), FPS)
    return path


def write_moments(scenes: list[Scene], path: Path, first_qid: int = 0) -> int:
    """Write the queries of all scenes, numbered through, one JSON object a line; returns the next free number."""
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        rows += moment_rows(scene, first_qid + len(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return first_qid + len(rows)
