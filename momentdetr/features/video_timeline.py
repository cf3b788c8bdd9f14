"""When each frame of a video is shown, read from its packets without decoding.

Everything else counts frames by this table: time comes from presentation timestamps and never from index / fps. Times
inside are integers ("ticks" of the stream's own time base), so that choosing a frame is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.logging
import numpy as np
from numpy.typing import NDArray

from momentdetr.errors import BadVideo
from momentdetr.features.video_keyframes import is_shown, starts_clean


@dataclass(frozen=True)
class Timeline:
    """The shown frames of a stream, in ticks counted from the first one.

    Args:
        pts: (F,) int64, ascending; 0 is the first shown frame.
        end: where the last frame ends.
        starts: (S,) int64, ascending: decoding can begin afresh at these frames, and all frames shown from there on
            come out right.
        tick: seconds per tick.
        zero: the file's own timestamp of tick 0.
        phase: ticks from the start of the file (its earliest stream, as ffmpeg counts) to tick 0.
        groups_closed: whether each key packet is such a start, with no picture after it that is shown before it.
        exact: whether each entry is known to be a frame that a decoder returns with just this timestamp.
        ordinal: whether the container has no timestamps, so that frames are timed by their order.
        promised: frames that the container announces.
        complete: whether the file holds all that its container announces.
        flaw: why not, or why reading stopped, in words; empty if complete.
    """

    pts: NDArray[np.int64]
    end: int
    starts: NDArray[np.int64]
    tick: Fraction
    zero: int
    phase: int
    groups_closed: bool
    exact: bool
    ordinal: bool
    promised: int
    complete: bool
    flaw: str

    @property
    def duration_s(self) -> float:
        return float(self.end * self.tick)

    def seconds(self, ticks: int) -> float:
        return float(ticks * self.tick)

    def start_for(self, pts: int) -> int:
        """Return the last tick at or before `pts` at which decoding can begin."""
        return int(self.starts[np.searchsorted(self.starts, pts, side="right") - 1])

    def shifted(self, zero: int) -> Timeline:
        """Count from another frame: the first that a decoder really returned."""
        by = zero - self.zero
        keep = self.pts >= by
        return replace(
            self,
            pts=self.pts[keep] - by,
            starts=self.starts[self.starts >= by] - by,
            end=self.end - by,
            zero=zero,
            phase=max(0, self.phase + by),
        )


class Packet(NamedTuple):
    """What the table needs to know of a packet. Times in ticks of the file's own clock."""

    pts: int | None
    dts: int | None
    duration: int
    shown: bool
    key: bool
    clean: bool


def read_timeline(container: Any, stream: Any, *, sizes: tuple[int, int], progress: Callable[[], None]) -> Timeline:
    """Read the packets of a stream from the container's present position.

    Args:
        container: av.container.InputContainer, at its start.
        stream: its video stream.
        sizes: bytes of the file, and bytes that the container announces (0: it does not say).
        progress: called for each packet.

    Raises:
        BadVideo: no packet can be read, or the clock of the file runs backwards.
    """
    packets, broken, corrupt = _read_packets(container, stream, progress)
    ordinal = container.format.name == "avi"
    shown = [packet for packet in packets if packet.shown]
    clock = [packet.dts if ordinal else packet.pts for packet in shown]
    times = np.array(sorted(time for time in clock if time is not None), np.int64)
    if not len(times):
        raise BadVideo(f"no picture can be read: {broken or 'the video stream has no packets with a time'}")
    zero = int(times[0])
    clean = sorted(packet.pts for packet in packets if packet.clean and packet.pts is not None)
    exact = (
        not ordinal
        and len(times) == len(shown)
        and bool(np.all(np.diff(times) > 0))
        and bool(clean)
        and packets[0].clean
        and clean[0] <= zero
        and not corrupt
    )
    end = int(times[-1]) + _last_duration(shown, times, stream)
    promised, flaw = _promise(container, stream, len(shown), end * Fraction(stream.time_base), sizes)
    return Timeline(
        pts=times - zero,
        end=end - zero,
        starts=np.array(clean, np.int64) - zero,
        tick=Fraction(stream.time_base),
        zero=zero,
        phase=_phase(container, stream, zero),
        groups_closed=_groups_closed(packets),
        exact=exact,
        ordinal=ordinal,
        promised=max(promised, len(shown)),
        complete=not (flaw or broken),
        flaw=flaw or broken,
    )


def _read_packets(container: Any, stream: Any, progress: Callable[[], None]) -> tuple[list[Packet], str, int]:
    """Read all packets; also say what is wrong with the container, and how many packets came incomplete."""
    with _demuxer_errors(container) as complaints:
        packets, broken, corrupt = _demux(container, stream, progress)
    return packets, broken or (f"damaged: {complaints[0]}" if complaints else ""), corrupt


@contextmanager
def _demuxer_errors(container: Any) -> Iterator[list[str]]:
    """Gather what the Matroska demuxer logs: it leaves out what it cannot read and says so nowhere else."""
    complaints: list[str] = []
    if not container.format.name.startswith("matroska"):
        yield complaints
        return
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as records:
            yield complaints
        texts = (text.strip() for _, name, text in records if name.startswith("matroska"))
        complaints += [text for text in texts if "ended prematurely" not in text]  # see `_promise`
    finally:
        av.logging.set_level(level)


def _demux(container: Any, stream: Any, progress: Callable[[], None]) -> tuple[list[Packet], str, int]:
    is_clean, shown = starts_clean(stream), is_shown(stream)
    packets: list[Packet] = []
    latest, corrupt = -(1 << 62), 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            progress()
            if packet.is_corrupt:  # cut off, or parts are missing
                corrupt += 1
                continue
            clean = packet.is_keyframe and is_clean(packet)
            packets.append(
                Packet(packet.pts, packet.dts, packet.duration or 0, shown(packet), packet.is_keyframe, clean)
            )
            if packet.dts is not None:
                if (latest - packet.dts) * packet.time_base > 1:
                    raise BadVideo(
                        f"its clock jumps back by {float((latest - packet.dts) * packet.time_base):.1f} s (recordings "
                        "joined end to end?); convert it first, for example with: ffmpeg -i FILE fixed.mp4"
                    )
                latest = packet.dts
    except MemoryError:
        raise
    except (av.error.FFmpegError, EOFError) as error:
        return packets, f"damaged, reading stopped after {len(packets)} frames: {error}", corrupt
    return packets, "", corrupt


def _groups_closed(packets: list[Packet]) -> bool:
    start = -(1 << 62)
    for packet in packets:
        if packet.pts is None or packet.pts < start or (packet.key and not packet.clean):
            return False
        start = packet.pts if packet.key else start
    return True


def _last_duration(shown: list[Packet], times: NDArray[np.int64], stream: Any) -> int:
    last = max(shown, key=lambda packet: -(1 << 62) if packet.pts is None else packet.pts)
    before = int(times[-1] - times[-2]) if len(times) > 1 else 0
    # One tick is what FFmpeg writes when it does not know; then the frame before is the best guess.
    if last.duration > 1 or (last.duration == 1 and before <= 2):
        return last.duration
    if before > 0:
        return before
    rate = stream.average_rate or stream.guessed_rate
    return max(1, round(1 / (Fraction(rate) * stream.time_base))) if rate else 1


def _phase(container: Any, stream: Any, zero: int) -> int:
    # MPEG-TS is the exception in ffmpeg: only the streams in use count there, that is, the video alone.
    if container.start_time is None or container.format.name == "mpegts":
        return 0
    start = round(Fraction(container.start_time, av.time_base) / stream.time_base)
    return max(0, zero - start)


def _promise(container: Any, stream: Any, readable: int, end: Fraction, sizes: tuple[int, int]) -> tuple[int, str]:
    """Say how many frames the container announces, and what is wrong if it does not hold them.

    Args:
        readable: frames that were read.
        end: where the last one ends, seconds of the file's own clock.
        sizes: bytes of the file, and bytes that the container announces (0: it does not say).
    """
    size, promised_size = sizes
    if container.format.name.startswith("mov"):
        entries = stream.index_entries
        lost = sum(1 for entry in entries if entry.pos + entry.size > size)
        if lost:
            return len(entries), f"truncated, {len(entries) - lost} of {len(entries)} frames readable"
        return readable, ""
    # Matroska and AVI may lack only their index at the end: then all frames are there.
    announced_end = Fraction(container.duration or 0, av.time_base)
    reaches_end = readable >= stream.frames if stream.frames else 0 < announced_end <= end + Fraction(1, 2)
    if promised_size <= size or reaches_end:
        return readable, ""
    promised = max(stream.frames, readable)
    of = f" of {promised}" if promised > readable else ""
    return promised, f"truncated ({size} of {promised_size} bytes), {readable}{of} frames readable"
