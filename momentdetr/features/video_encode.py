"""Writing H.264: one track of pictures with the times that they are given."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from momentdetr.features.video_picture import Picture

# BT.601 in limited range: what swscale makes of RGB. Untagged, players guess by the height of the picture.
_BT601 = {"color_range": 1, "color_primaries": 6, "color_trc": 6, "colorspace": 6}


def even(picture: Picture) -> Picture:
    """Repeat the last row or column where needed: H.264 with half-resolution colour has even sides."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def from_rgb(picture: Picture) -> Any:
    """Make an av.VideoFrame of a picture (H, W, 3)."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(even(picture)), format="rgb24")


class VideoTrack:
    """The video track of an MP4 file that is being written.

    Args:
        container: av.container.OutputContainer.
        width, height: pixels, even.
        tick: seconds per tick of the times that are given.
        rate: frames per second, roughly: it guides the encoder only.
        crf: x264's constant quality, 0 (lossless) to 51.
        preset: x264's speed.
        like: av.VideoFrame whose colour space the frames have; None: frames are made from RGB.
    """

    def __init__(
        self,
        container: Any,
        width: int,
        height: int,
        *,
        tick: Fraction,
        rate: Fraction,
        crf: int,
        preset: str,
        like: Any = None,
    ) -> None:
        # MP4 keeps durations in decoding order: without B-frames that is the order of showing, and they are exact.
        options = {"crf": str(crf), "preset": preset, "bf": "0"}
        self._stream = container.add_stream("libx264", rate=rate.limit_denominator(1001), options=options)
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = tick
        for name, value in _BT601.items():
            setattr(context, name, value if like is None else int(getattr(like, name)))
        self._width, self._height, self._tick = width, height, tick
        self._durations: dict[int, int] = {}
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame

    def encode(self, frame: Any, tick: int, duration: int) -> Iterator[Any]:
        """Yield the packets that are ready after one more frame.

        Args:
            frame: av.VideoFrame of any size and format.
        """
        if (frame.width, frame.height, frame.format.name) != (self._width, self._height, "yuv420p"):
            frame = self._reformatter.reformat(frame, self._width, self._height, "yuv420p", interpolation="BICUBIC")
        frame.pts, frame.time_base, frame.duration = tick, self._tick, duration
        frame.pict_type = 0  # the encoder decides, not the file that the frame came from
        self._durations[tick] = duration
        yield from self._with_durations(self._stream.encode(frame))

    def finish(self) -> Iterator[Any]:
        """Yield the packets that the encoder still holds."""
        yield from self._with_durations(self._stream.encode(None))

    def _with_durations(self, packets: list[Any]) -> Iterator[Any]:
        # The encoder does not pass durations on, and the last frame's would be a guess.
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts)
            yield packet
