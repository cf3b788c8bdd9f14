"""Scenes as pictures to learn from: one frame a clip, with the traces that compression leaves."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from momentdetr.demo.captions import frame_slots
from momentdetr.demo.drawing import draw_frame, paint_background
from momentdetr.demo.planning import make_video
from momentdetr.demo.scene import FRAMES_PER_CLIP, Scene
from momentdetr.features.pictures import fit

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Footage:
    """Frames of videos end to end, with what each frame shows.

    Args:
        frames: (N, side, side, 3) uint8.
        slots: (N, slots, 6) of `captions.frame_slots`.
    """

    frames: Frames
    slots: NDArray[np.float32]


def shoot(scene: Scene, image_size: int) -> Frames:
    """Draw the frame of each clip, and pass it through JPEG.

    Frames that were written as H.264 and read again by `features.video` differ from these only by the grain of another
    codec, and take several times as long to make.

    Returns:
        (T, image_size, image_size, 3) uint8.
    """
    rng = np.random.default_rng(scene.background.seed)
    wall = paint_background(scene.background)
    pictures = []
    for clip in range(scene.num_clips):
        frame = clip * FRAMES_PER_CLIP + FRAMES_PER_CLIP // 2
        picture = Image.fromarray(draw_frame(scene, frame / FRAMES_PER_CLIP, wall))
        with io.BytesIO() as file:
            picture.save(file, "JPEG", quality=int(rng.integers(70, 98)))
            pictures.append(fit(np.asarray(Image.open(file)), image_size))
    return np.stack(pictures)


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
    )
