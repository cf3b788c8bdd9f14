"""Scenes as a retriever will meet them: drawn, encoded as H.264, decoded, one frame a clip."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from momentdetr.demo.captions import clip_events, frame_slots
from momentdetr.demo.dataset import write_scene
from momentdetr.demo.planning import make_video
from momentdetr.demo.scene import FRAMES_PER_CLIP, Scene
from momentdetr.features.pictures import fit

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Footage:
    """Decoded videos end to end, with what each frame shows.

    Args:
        frames: (N, side, side, 3) uint8.
        slots: (N, slots, 6) of `captions.frame_slots`.
        happening: (N, slots, 3) of `captions.clip_events`.
        first: (videos + 1,), where each video starts, and N.
    """

    frames: Frames
    slots: NDArray[np.float32]
    happening: NDArray[np.int64]
    first: NDArray[np.int64]


def shoot(scene: Scene, image_size: int) -> Frames:
    """Write a scene to a file and read it again.

    `features.video.read_clips` gives the same frames (a test says so), but starts a process of its own for every file,
    which thousands of files that we have just written ourselves are not worth.

    Returns:
        (T, image_size, image_size, 3) uint8.
    """
    import av

    kept = []
    with tempfile.TemporaryDirectory(prefix="momentdetr-") as folder:
        path = write_scene(scene, Path(folder) / f"{scene.name}.mp4")
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % FRAMES_PER_CLIP == FRAMES_PER_CLIP // 2:
                    kept.append(fit(frame.to_ndarray(format="rgb24"), image_size))
    return np.stack(kept)


def shoot_all(
    seed: int, indices: Iterable[int], split: str, image_size: int, processes: int = 1
) -> Iterator[tuple[Scene, Frames]]:
    """Many scenes, several at once."""
    work = partial(_shoot_one, seed=seed, split=split, image_size=image_size)
    if processes == 1:
        yield from map(work, indices)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(work, indices, chunksize=8)


def _shoot_one(index: int, *, seed: int, split: str, image_size: int) -> tuple[Scene, Frames]:
    scene = make_video(seed, index, split)
    return scene, shoot(scene, image_size)


def gather(shots: Iterable[tuple[Scene, Frames]]) -> Footage:
    """Put shots end to end."""
    scenes, frames = zip(*shots, strict=True)
    return Footage(
        np.concatenate(frames),
        np.concatenate([frame_slots(scene) for scene in scenes]),
        np.concatenate([clip_events(scene) for scene in scenes]),
        np.concatenate([[0], np.cumsum([scene.num_clips for scene in scenes])]),
    )
