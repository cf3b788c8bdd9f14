"""Videos that this program writes. Each file appears whole or not at all."""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momentdetr.errors import BadInput, StoreError
from momentdetr.features.decode_client import converse
from momentdetr.features.decode_limits import Limits
from momentdetr.features.video_container import VideoFile, open_video, printable

StrPath = str | os.PathLike[str]


def write_video(
    path: StrPath, frames: Iterable[NDArray[np.uint8]], fps: float, *, crf: int = 18, preset: str = "veryfast"
) -> Path:
    """Write pictures as an MP4 file (H.264, 4:2:0).

    Args:
        path: of the file; an existing one is replaced.
        frames: (H, W, 3) uint8 RGB, all of one size. An odd side grows by one: the last row or column is repeated.
        fps: frames per second.
        crf: constant quality, 0 (best) to 51.
        preset: the encoder's speed, x264's names.

    Returns:
        the path.

    Raises:
        BadInput: no frames, or not pictures of one size.
        StoreError: the file cannot be written.
    """
    import av

    from momentdetr.features.video_encode import VideoTrack, from_rgb

    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise BadInput(f"fps is {fps!r}, expected a number up to 1000")
    rate = Fraction(fps).limit_denominator(1001)
    pictures = _checked(frames)
    first = next(pictures, None)
    if first is None:
        raise BadInput("there are no frames to write, expected at least one")
    height, width = first.shape[0] + first.shape[0] % 2, first.shape[1] + first.shape[1] % 2
    with (
        replacing(path) as descriptor,
        os.fdopen(os.dup(descriptor), "w+b") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        track = VideoTrack(container, width, height, tick=1 / rate, rate=rate, crf=crf, preset=preset)
        for index, picture in enumerate(_chain(first, pictures)):
            container.mux(list(track.encode(from_rgb(picture), index, 1)))
        container.mux(list(track.finish()))
    return Path(path)


def cut_clip(
    path: StrPath, start_s: float, end_s: float, out: StrPath, *, salvage: bool = False, limits: Limits | None = None
) -> Path:
    """Write what a video shows from one time to another as an MP4 file (H.264, sound as AAC).

    The first picture is the one on the screen at `start_s`, the last the one before `end_s`; they keep their distances
    in time (variable frame rates too), are turned as they are shown, and begin at 0. Everything is encoded anew: a copy
    could only begin at a key frame. A sound track that does not decode is left out.

    Args:
        start_s, end_s: seconds from the first shown frame; an end after the video's is its end.
        out: an MP4 file; an existing one is replaced.
        salvage: leave out lost frames of a damaged file instead of failing.

    Returns:
        the path of the clip.

    Raises:
        BadVideo: the video cannot be read there.
        BadInput: no time lies between start and end, or the start is after the end of the video.
        StoreError: the clip cannot be written.
    """
    if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < end_s):
        raise BadInput(f"a clip from {start_s} to {end_s} s is not possible, expected 0 <= start < end")
    request = {"start_s": float(start_s), "end_s": float(end_s), "max_height": None, "crf": 18, "salvage": salvage}
    return _encode(path, out, request, limits or Limits())


def playable_proxy(
    path: StrPath, out: StrPath, *, max_height: int = 720, salvage: bool = False, limits: Limits | None = None
) -> Path:
    """Write an MP4 file that any browser plays, with the same clock: a copy if the video is one already.

    Args:
        out: an MP4 file; an existing one is replaced.
        max_height: taller pictures are scaled down to it, unless the file is copied.
        salvage: leave out lost frames of a damaged file instead of failing.

    Raises:
        BadVideo, StoreError: as `cut_clip`.
    """
    from momentdetr.features.video import probe

    limits = limits or Limits()
    info = probe(path, "pyav", limits)
    plays = info.container == "mp4" and info.codec == "h264" and info.pixel_format in ("yuv420p", "yuvj420p")
    if plays and info.complete and info.audio_codec in ("", "aac", "mp3"):
        video = open_video(path, limits)
        with video.file, replacing(out, video) as descriptor, os.fdopen(os.dup(descriptor), "wb") as file:
            shutil.copyfileobj(video.file, file, 1 << 20)
        return Path(out)
    request = {"start_s": 0.0, "end_s": None, "max_height": int(max_height), "crf": 23, "salvage": salvage}
    return _encode(path, out, request, limits)


def _encode(path: StrPath, out: StrPath, request: dict[str, Any], limits: Limits) -> Path:
    if sys.platform == "win32":
        raise StoreError("clips cannot be cut on Windows: the decoding process has no way to write them there")
    video = open_video(path, limits)
    with video.file, replacing(out, video) as descriptor:
        full_request = {"operation": "cut", "decoder": "pyav", **request}
        for _ in converse(video, full_request, limits, output=descriptor, output_bytes=limits.max_bytes):
            pass
        if os.fstat(descriptor).st_size == 0:
            raise StoreError(f"{printable(os.fspath(out))}: nothing was written")
    return Path(out)


@contextmanager
def replacing(path: StrPath, source: VideoFile | None = None) -> Iterator[int]:
    """Give a descriptor of a new file that takes the place of `path` if all goes well, and vanishes if not.

    Args:
        source: the video that is read meanwhile; it must not be replaced.

    Raises:
        StoreError: the folder does not exist, is not writable, or is full.
        BadInput: the name is not one of an MP4 file, or is that of `source`.
    """
    target = Path(path)
    name = printable(str(target))
    if target.suffix.lower() != ".mp4":
        raise BadInput(f"{name}: clips are MP4 files, expected a name that ends in .mp4")
    if source is not None and target.exists() and os.path.samestat(os.stat(target), os.fstat(source.file.fileno())):
        raise BadInput(f"{name}: this is the video itself, expected another file to write to")
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise StoreError(
            f"{name}: cannot be written: {error.strerror}; choose a folder that exists and is writable"
        ) from error
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, target)
    except OSError as error:
        if isinstance(error, StoreError) or error.errno is None:
            raise
        full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise StoreError(f"{name}: cannot be written: {full}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _checked(frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    shape = None
    for index, frame in enumerate(frames):
        picture = np.asarray(frame)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise BadInput(f"frame {index} is {picture.dtype} {picture.shape}, expected uint8 (H, W, 3)")
        if shape is not None and picture.shape != shape:
            raise BadInput(f"frame {index} has the shape {picture.shape}, the ones before have {shape}")
        shape = picture.shape
        yield picture


def _chain(first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    yield first
    yield from rest
