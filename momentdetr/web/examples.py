"""Example videos for the page, drawn on first use by the demo's own moving-shapes world."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from momentdetr.errors import BadInput

SEED = 2026
"""Of the world; its videos were never trained on."""
SIDE = 320
"""Side of the square pictures, pixels."""


@dataclass(frozen=True)
class Example:
    """A video and questions to ask about it, the last of which is about something that is not in it."""

    path: Path
    queries: tuple[str, ...]


class Examples:
    """A few videos, the same for all visitors, each drawn once.

    Args:
        folder: where they are kept; is made.
        count: how many there are.
    """

    def __init__(self, folder: Path, count: int = 3) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self.count = count

    def get(self, number: object) -> Example:
        """Draw a video, or take it from the folder.

        Args:
            number: from 0.

        Raises:
            BadInput: there is no such example.
        """
        if not isinstance(number, int) or not 0 <= number < self.count:
            raise BadInput(f"there is no example {number!r}; there are {self.count}")
        from momentdetr.demo.drawing import draw
        from momentdetr.demo.scene import FPS
        from momentdetr.demo.world import make_video
        from momentdetr.features.video_write import write_video

        scene = make_video(SEED, number)
        path = self._folder / f"example_{number + 1}.mp4"
        with self._lock:
            if not path.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_name(f"unfinished_{path.name}")
                write_video(unfinished, draw(scene, SIDE), FPS)
                unfinished.replace(path)
        present = [query.text for query in scene.queries if query.windows]
        absent = [query.text for query in scene.queries if not query.windows]
        return Example(path, (*present[:3], *absent[:1]))


__all__ = ["Example", "Examples"]
