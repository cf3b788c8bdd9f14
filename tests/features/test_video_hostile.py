"""Damaged on purpose, half of it where the structure is: every file ends as pictures or as one of our errors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from video_material import faststart, make

from momentdetr.errors import BadVideo, OutOfResources
from momentdetr.features.video import Limits, read_clips

LIMITS = Limits(memory_bytes=800 << 20, stall_s=20.0, seconds_per_video_second=5.0)
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
BOXES = (b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss", b"elst", b"mdhd", b"mvhd", b"tkhd", b"trun", b"tfhd")

Mutation = Callable[[bytearray, np.random.Generator], None]


def bits(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 40))):
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))


def head(data: bytearray, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 6))):
        data[int(random.integers(min(len(data), 700)))] = int(random.integers(256))


def numbers(data: bytearray, random: np.random.Generator) -> None:
    """Put an extreme number into an index of MP4, or anywhere near the front of another container."""
    places = [at + 8 for name in BOXES if (at := data.find(name)) >= 0]
    at = int(random.choice(places)) + 4 * int(random.integers(0, 6)) if places else int(random.integers(20, 400))
    struct.pack_into(">I", data, min(at, len(data) - 4), int(random.choice(NUMBERS)))


def cut(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(1, len(data))) :]


def holes(data: bytearray, random: np.random.Generator) -> None:
    at = int(random.integers(len(data)))
    del data[at : at + int(random.integers(1, 2000))]


MUTATIONS: tuple[Mutation, ...] = (bits, head, numbers, numbers, cut, holes)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    at = tmp_path_factory.mktemp("seeds")
    return [
        faststart(make(at / "w.mp4", ticks=40, options={"bf": "2", "g": "10"}), at / "a.mp4"),
        make(at / "b.mp4", ticks=40, sound_s=1.5),
        make(at / "a.mkv", ticks=40, options={"g": "10"}),
        make(at / "a.webm", codec="libvpx-vp9", ticks=20, options={"cpu-used": "8", "g": "10"}),
        make(at / "a.avi", codec="mpeg4", ticks=40, options={"bf": "2", "g": "10"}),
        make(at / "a.ts", ticks=40, options={"bf": "2", "g": "10"}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damage_ends_as_pictures_or_as_our_error(seeds: list[Path], tmp_path: Path, seed: int) -> None:
    for index, mutate in enumerate(MUTATIONS):
        source = seeds[(seed + index) % len(seeds)]
        random = np.random.default_rng([seed, index])
        data = bytearray(source.read_bytes())
        mutate(data, random)
        path = tmp_path / f"{mutate.__name__}{index}{source.suffix}"
        path.write_bytes(data)
        try:
            batches = list(read_clips(path, clip_length_s=0.5, image_size=16, limits=LIMITS, salvage=bool(index % 2)))
        except (BadVideo, OutOfResources) as error:
            problem = str(error)
        else:
            problem = ""
            assert batches
            assert all(batch.frames.shape[1:] == (16, 16, 3) for batch in batches)
        assert not problem or (problem.startswith(str(path)) and problem.isprintable())
