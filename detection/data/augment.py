"""How training images vary: functions of (seed, epoch, index) and of nothing else.

A run that is killed and continued, or looked at again with other workers, therefore sees the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from detection.data.examples import Example, clipped, cover, crop, fitted_size, flip, mixup, mosaic, resize
from momentdetr.training.config import Section
from momentdetr.training.order import derived_seed

# Images longer than this many times the short side before the cut-out are scaled down further.
_STRIP = 4


class AugmentConfig(Section):
    """How images are made for training.

    Args:
        geometry: "detr": a random short side, or first a random cut-out; "jitter": large-scale jitter; "resize": the
            largest of `short_sides`, nothing random.
        short_sides: pixels that the short side may get.
        long_side: the most that the long side may get; the short one then gets less.
        cut_from: short sides before the cut-out of "detr"; empty: no cut-out.
        cut_sides: least and greatest side of the cut-out, pixels.
        jitter: least and greatest scale of "jitter", 1 being the image that just fits into `jitter_side`.
        jitter_side: the most that either side has after it; what is smaller is padded in the batch, and masked.
        flip: probability of mirroring.
        mosaic: probability that four images become one (dense one-to-one).
        mixup: probability that two images are blended.
        mixup_share: least and greatest share of the first of them.
        mosaic_side: height and width of a mosaic before it is scaled like any image.
        dense_epochs: first epoch with mosaic and mixup, and the first without again; None: to the end.
    """

    geometry: Literal["detr", "jitter", "resize"] = "detr"
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    long_side: int | None = Field(default=1333, ge=1)
    cut_from: tuple[int, ...] = (400, 500, 600)
    cut_sides: tuple[int, int] = (384, 600)
    jitter: tuple[float, float] = (0.1, 2.0)
    jitter_side: int = Field(default=1024, ge=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    mosaic: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0, le=1)
    mixup_share: tuple[float, float] = (0.45, 0.55)
    mosaic_side: int = Field(default=800, ge=2)
    dense_epochs: tuple[int, int | None] = (0, None)

    @model_validator(mode="after")
    def _sides(self) -> AugmentConfig:
        if not self.short_sides or min((*self.short_sides, *self.cut_from, *self.cut_sides)) < 1:
            raise ValueError("short_sides, cut_from and cut_sides must be pixels of at least 1")
        for name in ("cut_sides", "jitter", "mixup_share"):
            least, most = getattr(self, name)
            if not 0 < least <= most:
                raise ValueError(f"{name} must be the least, above 0, and then the greatest")
        return self

    @classmethod
    def at(cls, side: int, **options: object) -> AugmentConfig:
        """The recipe of 800 pixels at another greatest short side, all its numbers in proportion."""
        published = cls()
        scale = side / 800

        def scaled(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(dict.fromkeys(max(1, round(value * scale)) for value in values))

        least, most = (max(1, round(value * scale)) for value in published.cut_sides)
        numbers = {
            "short_sides": scaled(published.short_sides),
            "long_side": round(1333 * scale),
            "cut_from": scaled(published.cut_from),
            "cut_sides": (least, most),
            "jitter_side": round(published.jitter_side * scale),
            "mosaic_side": max(2, side),
        }
        return cls.model_validate({**numbers, **options})


def evaluation_size(short_side: int = 800, long_side: int | None = 1333) -> AugmentConfig:
    """Nothing random: one size, as images are evaluated."""
    return AugmentConfig(geometry="resize", short_sides=(short_side,), long_side=long_side, flip=0.0)


def generator_of(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The source of all draws for one image in one epoch."""
    return np.random.default_rng(derived_seed("image", seed, epoch, index))


def augmented(
    index: int,
    load: Callable[[int], Example],
    num_images: int,
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
) -> Example:
    """The image of this index as this epoch shows it.

    Args:
        index: of the image.
        load: index -> the image as it is; mosaic and mixup load others.
        num_images: that there are to draw others from.
        config: how images vary.
        seed: of the run.
        epoch: from 0.
    """
    rng = generator_of(seed, epoch, index)
    example = clipped(load(index))
    first, end = config.dense_epochs
    if epoch >= first and (end is None or epoch < end):
        if config.mosaic and rng.random() < config.mosaic:
            others = [_drawn(load, num_images, config, rng) for _ in range(3)]
            centre = (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))
            example = mosaic([example, *others], config.mosaic_side, centre, rng)
        if config.mixup and rng.random() < config.mixup:
            other = cover(_drawn(load, num_images, config, rng), *example.size, 1.0, (rng.random(), rng.random()))
            example = mixup(example, other, rng.uniform(*config.mixup_share))
    if config.flip and rng.random() < config.flip:
        example = flip(example)
    return _GEOMETRIES[config.geometry](example, config, rng)


def _drawn(load: Callable[[int], Example], num_images: int, config: AugmentConfig, rng: np.random.Generator) -> Example:
    example = clipped(load(int(rng.integers(num_images))))
    return flip(example) if rng.random() < config.flip else example


def _detr(example: Example, config: AugmentConfig, rng: np.random.Generator) -> Example:
    """DETR's: half of the images are first scaled to one of `cut_from`, and a window is cut out of them."""
    if config.cut_from and rng.random() < 0.5:
        # The official code sets no limit here, and a strip of an image then fills the memory.
        limit = _STRIP * max(config.cut_from)
        example = resize(example, *fitted_size(*example.size, int(rng.choice(config.cut_from)), limit))
        least, most = config.cut_sides
        height, width = (int(rng.integers(min(least, side), min(most, side) + 1)) for side in example.size)
        top, left = (
            int(rng.integers(side - part + 1)) for side, part in zip(example.size, (height, width), strict=True)
        )
        example = crop(example, top, left, height, width)
    return resize(example, *fitted_size(*example.size, int(rng.choice(config.short_sides)), config.long_side))


def _jitter(example: Example, config: AugmentConfig, rng: np.random.Generator) -> Example:
    """Large-scale jitter (Ghiasi et al., 2021): any scale, then a window where the image has become too large."""
    side = config.jitter_side
    scale = rng.uniform(*config.jitter) * side / max(example.size)
    height, width = (max(1, round(old * scale)) for old in example.size)
    example = resize(example, height, width)
    top, left = (int(rng.integers(max(0, old - side) + 1)) for old in (height, width))
    return crop(example, top, left, min(height, side), min(width, side))


def _resize(example: Example, config: AugmentConfig, rng: np.random.Generator) -> Example:
    return resize(example, *fitted_size(*example.size, max(config.short_sides), config.long_side))


_GEOMETRIES = {"detr": _detr, "jitter": _jitter, "resize": _resize}
