"""Frames of a video by time in seconds.

One clock everywhere: 0 is the first shown frame, and times come from presentation timestamps. Files are decoded in a
process of their own (`decode_client`), so a hostile or damaged file costs an exception and never this process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momentdetr.errors import BadInput, BadVideo, OutOfResources
from momentdetr.features.decode_client import DecoderCrashed, Message, converse
from momentdetr.features.decode_limits import Limits
from momentdetr.features.video_container import VideoFile, open_video, printable

DECODERS = ("auto", "decord", "pyav")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Args:
        path: as given.
        duration_s: from the first shown frame to the end of the last.
        width, height: of the pictures as shown, after rotation; pixels (not stretched to square ones).
        codec: FFmpeg's canonical name, e.g. "h264".
        container: "mp4", "mov", "mkv", "webm", "avi", "gif", "mpegts", "mpeg", "flv", "ogg", "asf", "mxf".
        average_fps: frames per second over the whole duration; the rate may vary.
        rotation: degrees clockwise that the stored pictures are turned before they are shown.
        decoder: back end that reads the frames, "decord" or "pyav".
        why_not_decord: why it is not decord; empty if it is.
        pixel_format: FFmpeg's name, e.g. "yuv420p".
        num_frames: shown frames that are readable.
        audio_codec: of the sound track, e.g. "aac"; empty: no sound.
        start_s: where the first frame stands on a player's clock: an earlier sound track can put it a little after 0.
        complete: False if the file holds less than it announces (truncated); the other numbers are of what it holds.
        flaw: what is missing, in words; empty if complete.
    """

    path: Path
    duration_s: float
    width: int
    height: int
    codec: str
    container: str
    average_fps: float
    rotation: int
    decoder: str
    why_not_decord: str
    pixel_format: str
    num_frames: int
    audio_codec: str
    start_s: float
    complete: bool
    flaw: str


@dataclass(frozen=True)
class FrameBatch:
    """Pictures and when they are shown.

    Args:
        frames: (N, H, W, 3) uint8, RGB, as shown.
        times_s: (N,) float64, seconds from the first shown frame: the frames' own timestamps.
        complete: False if the file is truncated, or a frame stands in for one that is lost (see `read_clips`).
    """

    frames: NDArray[np.uint8]
    times_s: NDArray[np.float64]
    complete: bool


def probe(path: str | os.PathLike[str], decoder: str = "auto", limits: Limits | None = None) -> VideoInfo:
    """Find out what a video is, by decoding its first frame and reading all its timestamps.

    Args:
        decoder: "auto", "decord" or "pyav".

    Raises:
        BadVideo: not a readable video. A truncated one is described (`complete` False).
    """
    limits = limits or Limits()
    video = open_video(path, limits)
    with video.file:
        for message in _converse(video, {"operation": "probe", "decoder": check_decoder(decoder)}, limits):
            return _info(video.path, message.values)
    raise BadVideo(f"{video.name}: the decoder said nothing")


def read_clips(
    path: str | os.PathLike[str],
    *,
    clip_length_s: float,
    image_size: int | None = None,
    interpolation: str = "bicubic",
    decoder: str = "auto",
    chunk: int = 32,
    limits: Limits | None = None,
    salvage: bool = False,
) -> Iterator[FrameBatch]:
    """Read one frame per clip, the very frames that `ffmpeg -vf fps=1/clip_length_s` picks.

    Memory stays bounded however long the video is. A damaged file is treated by one rule: a frame counts only if it and
    all that it is built upon decode without complaint. If the frame for a clip is lost but an earlier frame of the same
    clip is readable, that one stands in and its batch is marked incomplete; if the clip has no readable frame, or the
    file is truncated, reading fails, unless `salvage` is set: then the readable part is returned, marked incomplete,
    and a clip without a frame repeats the last readable one.

    Args:
        clip_length_s: seconds per clip.
        image_size: side of the square that the pictures are resized and cropped to, in the decoding process: short side
            to it (antialiased), then the centre. None: the pictures as they are.
        interpolation: "bicubic" or "bilinear".
        decoder: "auto" (decord where it is known to return the right frames, else PyAV), "decord" or "pyav". All give
            the same frames.
        chunk: most frames in a batch; large pictures come in smaller batches.

    Yields:
        batches in order, together one frame per clip, at least one: clip k lasts from k to k + 1 times clip_length_s.

    Raises:
        BadVideo: the file is missing, damaged, or not a video.
        BadInput: an argument makes no sense.
        OutOfResources: a limit was reached.
    """
    limits = limits or Limits()
    request = {
        "operation": "clips",
        "clip_length_s": _positive("clip_length_s", clip_length_s),
        "chunk": int(_positive("chunk", chunk)),
        **_common(decoder, image_size, interpolation, salvage),
    }
    if round(clip_length_s, 5) == 0:
        raise BadInput(f"clip_length_s is {clip_length_s}, expected at least 0.00001")
    return _batches(open_video(path, limits), request, limits)


def read_frames(
    path: str | os.PathLike[str],
    times_s: Sequence[float] | NDArray[np.float64],
    *,
    decoder: str = "auto",
    image_size: int | None = None,
    interpolation: str = "bicubic",
    limits: Limits | None = None,
    salvage: bool = False,
) -> FrameBatch:
    """Read the frame that is on the screen at each time.

    Args:
        times_s: seconds from the first frame, in any order, repeats allowed; after the end, the last frame stays.
        salvage: take the nearest readable frame before where the right one is lost, instead of failing.
        decoder, image_size, interpolation: as in `read_clips`.

    Returns:
        one frame per time, in the order of `times_s`.

    Raises:
        BadVideo, BadInput, OutOfResources: as `read_clips`.
    """
    limits = limits or Limits()
    times = np.asarray(times_s, np.float64).reshape(-1)
    if not np.isfinite(times).all() or (times < 0).any():
        raise BadInput("times_s holds a time that is negative or not a number, expected seconds from the first frame")
    unique, where = np.unique(times, return_inverse=True)
    request = {
        "operation": "frames",
        "times_s": unique.tolist(),
        "chunk": 32,
        **_common(decoder, image_size, interpolation, salvage),
    }
    batches: list[FrameBatch] = []
    for batch in _batches(open_video(path, limits), request, limits):
        batches.append(batch)
        if sum(each.frames.nbytes for each in batches) > limits.memory_bytes:
            raise OutOfResources(
                f"{printable(os.fspath(path))}: {len(times)} frames of this size exceed Limits.memory_bytes; "
                "ask for fewer times, or give image_size"
            )
    if not batches:
        side = image_size or 0
        return FrameBatch(np.zeros((0, side, side, 3), np.uint8), np.zeros(0), True)
    frames = np.concatenate([batch.frames for batch in batches])
    shown = np.concatenate([batch.times_s for batch in batches])
    return FrameBatch(frames[where], shown[where], all(batch.complete for batch in batches))


def _batches(video: VideoFile, request: Mapping[str, Any], limits: Limits) -> Iterator[FrameBatch]:
    with video.file:
        for message in _converse(video, request, limits):
            if message.kind == "frames":
                yield _batch(video, message)


def _converse(video: VideoFile, request: Mapping[str, Any], limits: Limits) -> Iterator[Message]:
    """Talk to a decoding process; if decord's library crashes it, go on with PyAV where it stood."""
    received = 0
    try:
        for message in converse(video, {"first": 0, **request}, limits):
            received += len(message.values.get("times_s", ()))
            yield message
    except DecoderCrashed:
        if request["decoder"] != "auto":
            raise
        yield from converse(video, {**request, "first": received, "decoder": "pyav"}, limits)


def _info(path: Path, values: Mapping[str, Any]) -> VideoInfo:
    return VideoInfo(
        path=path,
        duration_s=float(values["duration_s"]),
        width=int(values["width"]),
        height=int(values["height"]),
        codec=printable(str(values["codec"])),
        container=printable(str(values["container"])),
        average_fps=float(values["average_fps"]),
        rotation=int(values["rotation"]),
        decoder=printable(str(values["decoder"])),
        why_not_decord=printable(str(values["why_not_decord"])),
        pixel_format=printable(str(values["pixel_format"])),
        num_frames=int(values["num_frames"]),
        audio_codec=printable(str(values["audio_codec"])),
        start_s=float(values["start_s"]),
        complete=bool(values["complete"]),
        flaw=printable(str(values["flaw"])),
    )


def _batch(video: VideoFile, message: Message) -> FrameBatch:
    shape = [int(length) for length in message.values["shape"]]
    times = np.array(message.values["times_s"], np.float64)
    if len(shape) != 4 or shape[3] != 3 or math.prod(shape) != message.payload.size or len(times) != shape[0]:
        raise BadVideo(f"{video.name}: the decoder returned pictures of an impossible shape")
    return FrameBatch(message.payload.reshape(shape), times, bool(message.values["complete"]))


def _common(decoder: str, image_size: int | None, interpolation: str, salvage: bool) -> dict[str, Any]:
    if interpolation not in INTERPOLATIONS:
        raise BadInput(f"interpolation is {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
    if image_size is not None and not 1 <= image_size <= 8192:
        raise BadInput(f"image_size is {image_size!r}, expected 1 to 8192 pixels")
    return {
        "decoder": check_decoder(decoder),
        "image_size": image_size,
        "interpolation": interpolation,
        "salvage": bool(salvage),
    }


def check_decoder(decoder: str) -> str:
    """Return the name of a decoder.

    Raises:
        BadInput: there is none of that name.
    """
    if decoder not in DECODERS:
        raise BadInput(f"decoder is {decoder!r}, expected one of {', '.join(DECODERS)}")
    return decoder


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{name} is {value!r}, expected a positive number")
    return float(value)


__all__ = [
    "FrameBatch",
    "Limits",
    "VideoInfo",
    "probe",
    "read_clips",
    "read_frames",
]
