"""A small data set that the extraction tests make themselves: videos with moving squares, and queries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from momentdetr.features.video_write import write_video


def make_videos(folder: Path, names: list[str], seconds: float = 2.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        frames = []
        for index in range(int(seconds * 10)):
            frame = np.full((64, 96, 3), 40 + 20 * number % 200, np.uint8)
            left = (3 * index + 7 * number) % 70
            frame[10:30, left : left + 20] = (250, 60 * number % 256, 30)
            frames.append(frame)
        write_video(folder / f"{name}.mp4", iter(frames), 10)
    return folder


def make_annotations(path: Path, rows: list[tuple[int | str, str, str]]) -> Path:
    lines = (json.dumps({"qid": qid, "query": query, "vid": vid}) + "\n" for qid, query, vid in rows)
    path.write_text("".join(lines), "utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
