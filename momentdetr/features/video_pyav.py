"""Frames by PyAV: the reference back end, and the one that can say what a damaged file still holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import av

from momentdetr.features.video_keyframes import heals
from momentdetr.features.video_source import Source, decoded
from momentdetr.features.video_timeline import Timeline

_NEVER = 1 << 62
_FAR_S = 30.0  # what lies between is skipped by seeking; nearer frames by reading on
_SEEKABLE = frozenset({"mp4", "mov", "mkv", "webm"})


class Distrusted(Exception):
    """A way of reading cannot vouch for its frames; a more careful one must be taken."""


def table_frames(source: Source, timeline: Timeline, wanted: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Decode the frames that the timeline names, and skip groups of pictures that hold none of them.

    Args:
        timeline: exact.
        wanted: ascending ticks, each in `timeline.pts`.

    Yields:
        tick and av.VideoFrame for each wanted tick.

    Raises:
        Distrusted: something did not decode, or a frame did not come: the file is damaged or its table is wrong.
    """
    queue = deque(wanted)
    container, stream = source.open()
    stream.thread_type = "AUTO"
    # With frame threads FFmpeg now and then returns a repaired frame without its mark; this makes it an error instead.
    stream.codec_context.options = {"err_detect": "explode"}
    with container:
        position = 0  # everything before this tick has been read or can be left out
        while queue:
            start = timeline.start_for(queue[0])
            if (start - position) * timeline.tick > _FAR_S and source.container in _SEEKABLE:
                container.seek(start + timeline.zero, stream=stream)
            before = len(queue)
            yield from _run(container, stream, source, timeline, queue)
            if len(queue) == before:
                raise Distrusted(f"the frame at {timeline.seconds(queue[0]):.3f} s cannot be reached")
            position = start


def _run(
    container: Any, stream: Any, source: Source, timeline: Timeline, queue: deque[int]
) -> Iterator[tuple[int, Any]]:
    """Decode on from the container's position, until the next wanted frame is far ahead or all are found."""
    starts = frozenset(timeline.starts.tolist())
    reached = -_NEVER  # the latest start that was decoded
    decoding = False
    for packet in container.demux(stream):
        source.progress()
        tick = None if packet.pts is None else packet.pts - timeline.zero
        if tick is not None and tick in starts and packet.is_keyframe:
            if not decoding and tick == timeline.start_for(queue[0]):
                stream.codec_context.flush_buffers()
                decoding = True
            reached = tick
        if not decoding:
            continue
        for frame in _decode(packet):
            shown = frame.pts - timeline.zero
            if queue and shown > queue[0]:
                raise Distrusted(f"the frame at {timeline.seconds(queue[0]):.3f} s did not come")
            if queue and shown == queue[0]:
                yield queue.popleft(), frame
        if not queue:
            return
        start = timeline.start_for(queue[0])
        if start > reached:
            decoding = False
            if (start - reached) * timeline.tick > _FAR_S:
                return


def _decode(packet: Any) -> list[Any]:
    try:
        frames = packet.decode()
    except MemoryError:
        raise
    except (av.error.FFmpegError, EOFError) as error:
        raise Distrusted(f"a packet does not decode: {error}") from error
    if any(frame.pts is None or frame.is_corrupt for frame in frames):
        raise Distrusted("a frame is damaged or has no time")
    return list(frames)


class CheckedFrames:
    """A whole stream, decoded in order, without the frames that cannot be trusted.

    After a packet that fails, or a frame that the decoder repaired, the pictures that are built upon it are wrong
    without being marked so. They are given up until the next picture that needs none before it.

    Args:
        timeline: of the file; need not be exact.

    Attributes:
        lost: ticks of the frames that were given up so far (in ticks of the timeline).
    """

    def __init__(self, source: Source, timeline: Timeline) -> None:
        self._source, self._timeline = source, timeline
        self._sent: dict[int, bool] = {}  # packets whose frames have not come out: tick -> trusted
        self._trusted_from = -_NEVER
        self.lost: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield tick and av.VideoFrame, ascending."""
        container, stream = self._source.open()
        stream.thread_type = "SLICE"  # with frame threads a failure is reported some packets late
        heal = heals(stream)
        latest = -_NEVER
        with container:
            for packet in container.demux(stream):
                self._source.progress()
                tick = self._tick(packet)
                if packet.size and not packet.is_discard and tick is not None:
                    if self._trusted_from == _NEVER and packet.is_keyframe and heal(packet):
                        self._trusted_from = tick
                    self._sent[tick] = tick >= self._trusted_from
                frames = None if packet.is_corrupt else decoded(packet)
                if frames is None:
                    self._damage(tick)
                for frame in frames or ():
                    shown = self._shown(frame, latest)
                    if self._accept(shown, frame) and shown >= max(0, latest):
                        latest = shown
                        yield shown, frame

    def _tick(self, packet: Any) -> int | None:
        time = packet.dts if self._timeline.ordinal else packet.pts
        return None if time is None else time - self._timeline.zero

    def _shown(self, frame: Any, latest: int) -> int:
        if self._timeline.ordinal:  # frames come out in the order in which their packets are numbered
            return min(self._sent, default=latest + 1)
        return latest + 1 if frame.pts is None else frame.pts - self._timeline.zero

    def _accept(self, shown: int, frame: Any) -> bool:
        trusted = self._sent.pop(shown, shown >= self._trusted_from)
        if frame.is_corrupt:
            self._damage(None)
            trusted = False
        if self.lost:  # frames that a damaged stream swallowed silently
            for tick in [tick for tick in self._sent if tick < shown]:
                del self._sent[tick]
                self.lost.append(tick)
        if not trusted:
            self.lost.append(shown)
        return trusted

    def _damage(self, tick: int | None) -> None:
        self._trusted_from = _NEVER
        if tick is None:
            self._sent = dict.fromkeys(self._sent, False)
        else:
            self._sent.pop(tick, None)
            self.lost.append(tick)
