"""From a scene to frames: backgrounds, and shapes as smooth-edged polygons."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from momentdetr.demo.scene import FRAMES_PER_CLIP, Background, Event, Pose, Scene

SIZE = 160
"""Side of the square videos, pixels."""
_SUPERSAMPLE = 4


def draw(scene: Scene, size: int = SIZE) -> Iterator[NDArray[np.uint8]]:
    """Draw every frame.

    Returns:
        (size, size, 3) uint8 RGB each, `scene.num_frames` of them at `scene.FPS`.
    """
    wall = paint_background(scene.background, size)
    for frame in range(scene.num_frames):
        yield draw_frame(scene, frame / FRAMES_PER_CLIP, wall)


def draw_frame(scene: Scene, clips: float, wall: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw the frame at a time counted in clips, over a wall from `paint_background`."""
    picture = wall.copy()
    for event in scene.events:
        if event.visible_at(clips):
            _paint(picture, event, event.pose_at(clips))
    return (picture * 255 + 0.5).astype(np.uint8)


def outline(shape: str, pose: Pose) -> NDArray[np.float64]:
    """Corners of a shape in a pose.

    Returns:
        (corners, 2), x and y as fractions of the picture's side.
    """
    turn = np.deg2rad(pose.angle)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return _unit_outline(shape) @ rotation * pose.radius + (pose.x, pose.y)


def box_of(shape: str, pose: Pose) -> tuple[float, float, float, float]:
    """Left, top, right, bottom as fractions of the picture's side."""
    corners = outline(shape, pose)
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    return float(left), float(top), float(right), float(bottom)


@cache
def _unit_outline(shape: str) -> NDArray[np.float64]:
    """Corners in the unit circle, clockwise on the screen, upright."""
    if shape == "disc":
        return _ring(np.ones(64))
    if shape == "square":
        return _ring(np.ones(4), first=45.0)
    if shape == "triangle":
        return _ring(np.ones(3))
    if shape == "star":
        return _ring(np.tile([1.0, 0.42], 5))
    if shape == "cross":
        arm, half = 0.94, 0.32
        quarter = np.array([[-half, -arm], [half, -arm], [half, -half]])
        turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
        return np.concatenate([quarter @ turn for turn in turns])
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, -y - 2.5], 1) / 17.0
    raise ValueError(f"no shape is called {shape!r}")


def _ring(radii: NDArray[np.float64], first: float = 0.0) -> NDArray[np.float64]:
    angles = np.deg2rad(first) + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.sin(angles), -np.cos(angles)], 1) * radii[:, None]


def _paint(picture: NDArray[np.float32], event: Event, pose: Pose) -> None:
    """Blend one shape into the picture, in place."""
    size = len(picture)
    corners = outline(event.shape, pose) * size
    low = np.clip(np.floor(corners.min(0)).astype(int), 0, size)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, size)
    width, height = high - low
    if width <= 0 or height <= 0:
        return
    mask = Image.new("L", (int(width) * _SUPERSAMPLE, int(height) * _SUPERSAMPLE))
    # PIL fills a pixel when the polygon passes through its centre, which it takes to be at whole numbers.
    points = [(float(x), float(y)) for x, y in (corners - low) * _SUPERSAMPLE - 0.5]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    fine = np.asarray(mask, np.float32).reshape(height, _SUPERSAMPLE, width, _SUPERSAMPLE)
    cover = fine.mean((1, 3))[..., None] / 255
    patch = picture[low[1] : high[1], low[0] : high[0]]
    patch += cover * (np.asarray(event.rgb, np.float32) - patch)


def paint_background(background: Background, size: int = SIZE) -> NDArray[np.float32]:
    """Paint the wall.

    Returns:
        (size, size, 3) float32 RGB in [0, 1].
    """
    mix = _texture(background, size)[..., None].astype(np.float32)
    dark, light = (np.asarray(colour, np.float32) for colour in (background.dark, background.light))
    return np.clip(dark + mix * (light - dark), 0, 1)


def _texture(background: Background, size: int) -> NDArray[np.float64]:
    """How much of the light colour there is at each pixel, (size, size) in [0, 1]."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    along = np.cos(background.angle) * x + np.sin(background.angle) * y
    wave = 2 * np.pi / background.period
    if background.kind == "plain":
        return np.zeros((size, size))
    if background.kind == "gradient":
        return (along - along.min()) / (along.max() - along.min())
    if background.kind == "stripes":
        return 0.5 + 0.5 * np.sin(wave * along)
    if background.kind == "checks":
        return 0.5 + 0.5 * np.sign(np.sin(wave * x) * np.sin(wave * y))
    if background.kind == "dots":
        return np.clip(4 * np.sin(wave * x) * np.sin(wave * y) - 2, 0, 1)
    if background.kind == "noise":
        coarse = np.random.default_rng(background.seed).random((12, 12), np.float32)
        smooth = Image.fromarray(coarse, "F").resize((size, size), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(smooth, np.float64), 0, 1)
    raise ValueError(f"no background is called {background.kind!r}")
