"""Frames by decord, where it is known to return the right ones.

decord numbers frames by packets: where the two differ it returns another frame without saying so. `refusal` names the
files for which this can happen; `DecordFrames` then compares its timestamps with the file's table, and gives up at the
first complaint of its decoder. While it waits for a frame it reads on, and keeps all that it read as pictures, so it is
for videos that would fit in memory as a whole. Its bundled FFmpeg is from 2020 and can end the process on a hostile
file: it runs in the decoding process only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from momentdetr.features.video_picture import Picture
from momentdetr.features.video_pyav import Distrusted
from momentdetr.features.video_source import Facts, Source, threads
from momentdetr.features.video_timeline import Timeline

_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
_CONTAINERS = frozenset({"mp4", "mov", "mkv", "webm"})
# Eight bits a channel, for which its colours are PyAV's to the bit; with ten bits or odd sides they are not.
_PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv444p", "yuvj444p"})
_TIME_ERROR_S = 1e-3
_BATCH = 8


def refusal(facts: Facts, source: Source, timeline: Timeline) -> str:
    """Say why decord may not read this file; empty if it may."""
    if sys.platform == "win32":
        return "what it complains about cannot be heard on Windows"
    if source.container not in _CONTAINERS:
        return f"container {source.container}"
    if facts.codec not in _CODECS:
        return f"codec {facts.codec}"
    if facts.pixel_format not in _PIXEL_FORMATS:
        return f"pixel format {facts.pixel_format}"
    if facts.width % 2 or facts.height % 2:
        return f"odd sides, {facts.width} x {facts.height}"
    if not facts.orientation.is_identity:
        return "a turned or mirrored picture"
    if facts.num_videos > 1:
        return f"{facts.num_videos} video streams"
    read_ahead = facts.width * facts.height * 3 * len(timeline.pts)
    if read_ahead > source.limits.memory_bytes // 2:
        return f"it reads ahead without bound, here up to {read_ahead >> 20} MiB"
    if not timeline.complete:
        return timeline.flaw
    if not timeline.exact:
        return "frames whose times are not in the table of packets"
    if not timeline.groups_closed:
        return "groups of pictures that lean on earlier ones (open groups or intra refresh)"
    return ""


class DecordFrames:
    """A decord reader whose numbering has been checked against the timeline.

    Raises:
        Distrusted: it may not or cannot read the file, or its times are not those of the timeline.
    """

    def __init__(self, source: Source, facts: Facts, timeline: Timeline) -> None:
        if reason := refusal(facts, source, timeline):
            raise Distrusted(reason)
        try:
            decord = import_decord()
        except ImportError as error:
            raise Distrusted(f"decord is not installed ({error})") from error
        self._source, self._facts, self._timeline = source, facts, timeline
        self._complaints = _Complaints()
        try:
            reader = decord.VideoReader(source.system_path(), num_threads=threads(facts.width * facts.height))
            times = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
        except (RuntimeError, decord.DECORDError) as error:
            raise Distrusted(f"decord cannot open it: {_last_line(error)}") from error
        truth = timeline.pts * float(timeline.tick)
        if len(times) != len(truth):
            raise Distrusted(f"decord finds {len(times)} frames, the table has {len(truth)}")
        gap = float(np.diff(truth).min(initial=1.0))
        if times[0] < 0 or np.abs(times - times[0] - truth).max() > min(_TIME_ERROR_S, gap / 3):
            raise Distrusted("decord's times are not those of the table")
        self._reader = reader

    def frames(self, wanted: Iterable[int]) -> Iterator[tuple[int, Picture]]:
        """Yield tick and picture for each wanted tick, ascending.

        Raises:
            Distrusted: decord failed or complained.
        """
        ticks = list(wanted)
        indices = np.searchsorted(self._timeline.pts, ticks)
        keys = np.searchsorted(self._timeline.pts, [self._timeline.start_for(tick) for tick in ticks])
        for begin in range(0, len(ticks), _BATCH):
            # A batch stays inside a group of pictures.
            for key in np.unique(keys[begin : begin + _BATCH]):
                here = np.flatnonzero(keys[begin : begin + _BATCH] == key) + begin
                pictures = self._read(indices[here].tolist())
                if here[-1] + 1 < len(ticks) and keys[here[-1] + 1] != key:
                    self._reader.seek(int(keys[here[-1] + 1]))  # drops what was read ahead
                yield from ((ticks[i], picture) for i, picture in zip(here, pictures, strict=True))

    def _read(self, indices: list[int]) -> Sequence[Picture]:
        try:
            pictures: Picture = self._reader.get_batch(indices).asnumpy()
        except (RuntimeError, IndexError, import_decord().DECORDError) as error:
            raise Distrusted(f"decord fails at frame {indices[0]}: {_last_line(error)}") from error
        if complaint := self._complaints.read():
            raise Distrusted(f"decord complains at frame {indices[0]}: {complaint}")
        if pictures.shape[1:3] != (self._facts.height, self._facts.width):
            raise Distrusted(f"decord returns {pictures.shape[2]} x {pictures.shape[1]} pixels")
        self._source.progress()
        return list(pictures)


def _last_line(error: Exception) -> str:
    # "[time] file:line: [path] what happened"
    return str(error).strip().split("\n")[-1].rsplit("] ", 1)[-1][-200:]


def import_decord() -> Any:
    """Import decord.

    Raises:
        ImportError: it is not installed, or does not load here.
    """
    try:
        import decord
    except (OSError, RuntimeError) as error:  # a library that it needs is missing
        raise ImportError(str(error)) from error
    return decord


class _Complaints:
    """What FFmpeg writes to the standard error stream of this process from now on.

    It repairs damaged pictures and says so only there. The stream never blocks: what does not fit is lost.
    """

    def __init__(self) -> None:
        self._end, start = os.pipe()
        os.set_blocking(self._end, False)
        os.set_blocking(start, False)
        os.dup2(start, 2)
        os.close(start)

    def read(self) -> str:
        try:
            return os.read(self._end, 1 << 16).decode(errors="replace").strip().split("\n")[0][:200]
        except BlockingIOError:
            return ""
