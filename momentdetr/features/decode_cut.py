"""The decoding process's work on clips: decode a stretch of video and sound, encode it as MP4."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from momentdetr.errors import BadInput, BadVideo, StoreError
from momentdetr.features.decode_audio import AudioTrack, Sound, sound_between
from momentdetr.features.decode_protocol import Channel
from momentdetr.features.video_encode import VideoTrack, from_rgb
from momentdetr.features.video_picture import to_rgb
from momentdetr.features.video_pyav import CheckedFrames, Distrusted, table_frames
from momentdetr.features.video_selection import SALVAGE, Video

_UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
_FINE = 90_000  # ticks per second of a clip, at least
Timed = tuple[int, Any]  # tick, av.VideoFrame


@dataclass(frozen=True)
class Stretch:
    """What is cut out.

    Args:
        start, end: fine ticks from the first shown frame of the video.
        scale: fine ticks per tick of the video: a clip may begin and end between frames that are 1 tick apart.
        tick: seconds per fine tick.
    """

    start: int
    end: int
    scale: int
    tick: Fraction


def cut(request: Mapping[str, Any], video: Video, channel: Channel) -> None:
    """Write what is shown from start to end to the output descriptor."""
    stretch = _stretch(video, request["start_s"], request["end_s"])
    frames = _between(video, stretch, request["salvage"])
    try:
        with os.fdopen(request["output"], "w+b", closefd=False) as file, av.open(file, "w", format="mp4") as container:
            _write(container, video, frames, stretch, request)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise StoreError(f"the clip cannot be written: {error.strerror}") from error


def _stretch(video: Video, start_s: float, end_s: float | None) -> Stretch:
    timeline = video.timeline
    scale = math.ceil(_FINE * timeline.tick)
    tick, end = timeline.tick / scale, timeline.end * scale
    start = round(Fraction(start_s) / tick)
    if start >= end:
        raise BadInput(f"a clip from {start_s} s is not possible: the video is {timeline.duration_s:.3f} s long")
    if end_s is not None:
        end = min(end, max(start + 1, round(Fraction(end_s) / tick)))
    return Stretch(start, end, scale, tick)


def _between(video: Video, stretch: Stretch, salvage: bool) -> Iterator[Timed]:
    """Decode the frame shown at the start and those that begin before the end."""
    timeline = video.timeline
    fine = timeline.pts * stretch.scale
    first = max(0, int(np.searchsorted(fine, stretch.start, side="right")) - 1)
    last = max(first + 1, int(np.searchsorted(fine, stretch.end, side="left")))
    wanted = timeline.pts[first:last].tolist()
    if timeline.exact:
        try:
            for tick, frame in table_frames(video.source, timeline, wanted):
                yield tick, frame
                wanted = wanted[1:]
            return
        except Distrusted:
            pass  # on from the first frame that has not come
    yield from _checked_between(video, wanted[0], wanted[-1], salvage)


def _checked_between(video: Video, first: int, last: int, salvage: bool) -> Iterator[Timed]:
    frames = CheckedFrames(video.source, video.timeline)
    found = False
    for tick, frame in frames:
        if first <= tick <= last:
            found = True
            yield tick, frame
        if tick >= last:
            break
    lost = sum(first <= tick <= last for tick in frames.lost)
    if not found or (lost and not salvage):
        raise BadVideo(f"damaged: {lost} frames of this stretch are not readable; {SALVAGE}")


def _write(container: Any, video: Video, frames: Iterator[Timed], stretch: Stretch, request: Mapping[str, Any]) -> None:
    """Encode pictures and sound in the order of their times."""
    timeline, facts = video.timeline, video.facts
    width, height = _size(facts.orientation.size(facts.width, facts.height), request["max_height"])
    as_stored = facts.orientation.is_identity and facts.width % 2 == facts.height % 2 == 0
    timed = _with_durations(frames, stretch)
    first = next(timed)
    picture = VideoTrack(
        container,
        width,
        height,
        tick=stretch.tick,
        rate=Fraction(len(timeline.pts)) / (timeline.end * timeline.tick),
        crf=request["crf"],
        preset="veryfast",
        like=first[2] if as_stored else None,
    )
    zero_s = timeline.zero * timeline.tick
    start_s, end_s = (zero_s + ticks * stretch.tick for ticks in (stretch.start, stretch.end))
    sound = sound_between(video.source, start_s, end_s) if facts.audio_codec else None
    track = AudioTrack(container, sound) if sound else None
    for begin, duration, frame in chain([first], timed):
        ready = frame if as_stored else from_rgb(to_rgb(frame, facts.width, facts.height, facts.orientation))
        container.mux(list(picture.encode(ready, begin, duration)))
        if sound and track:
            _write_sound(container, sound, track, (begin + duration) * stretch.tick)
    container.mux(list(picture.finish()))
    if sound and track:
        _write_sound(container, sound, track, None)
        container.mux(list(track.finish()))


def _write_sound(container: Any, sound: Sound, track: AudioTrack, until_s: Fraction | None) -> None:
    while until_s is None or track.end < until_s:
        chunk = next(sound.chunks, None)
        if chunk is None:
            return
        container.mux(list(track.encode(chunk)))


def _with_durations(frames: Iterator[Timed], stretch: Stretch) -> Iterator[tuple[int, int, Any]]:
    """Yield time from the start, duration (both in fine ticks) and frame."""
    held: Timed | None = None
    for tick, frame in frames:
        if held is not None:
            begin = max(held[0] * stretch.scale, stretch.start)
            yield begin - stretch.start, tick * stretch.scale - begin, held[1]
        held = tick, frame
    if held is not None:
        begin = max(held[0] * stretch.scale, stretch.start)
        yield begin - stretch.start, stretch.end - begin, held[1]


def _size(shown: tuple[int, int], max_height: int | None) -> tuple[int, int]:
    """Return even width and height, scaled down if they are too tall."""
    width, height = shown
    if max_height is not None and height > max_height:
        return max(2, 2 * round(width * max_height / height / 2)), max_height - max_height % 2
    return width + width % 2, height + height % 2
