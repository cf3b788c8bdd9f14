"""Videos that the tests make themselves: each picture carries its own number."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from momentdetr.features.decode_limits import Limits
from momentdetr.features.video_container import open_video
from momentdetr.features.video_selection import Video, inspect
from momentdetr.features.video_source import Source

WIDTH, HEIGHT = 128, 96
_BITS, _COLUMNS, _CELL = 12, 4, 28


def numbered(index: int) -> NDArray[np.uint8]:
    """Draw a picture (96, 128, 3) that shows `index` as twelve squares, white for 1 and black for 0."""
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    picture[:, :6] = (200, 40, 40)  # a red left edge: turning and mirroring show
    for bit in range(_BITS):
        row, column = divmod(bit, _COLUMNS)
        top, left = 6 + row * 30, 10 + column * 29
        picture[top : top + _CELL - 4, left : left + _CELL - 4] = 255 if index >> bit & 1 else 0
    return picture


def number(picture: NDArray[np.uint8]) -> int:
    """Read the number back from a picture that went through a codec (at its own size)."""
    grey, index = picture.astype(float).mean(axis=2), 0
    for bit in range(_BITS):
        row, column = divmod(bit, _COLUMNS)
        top, left = 6 + row * 30, 10 + column * 29
        index |= int(grey[top + 6 : top + 18, left + 6 : left + 18].mean() > 127) << bit
    return index


def numbers(pictures: NDArray[np.uint8]) -> list[int]:
    return [number(picture) for picture in pictures]


def make(
    path: Path,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    ticks: Sequence[int] | int = 100,
    tick: Fraction = Fraction(1, 25),
    container: str | None = None,
    sound_s: float = 0.0,
    sound_codec: str = "aac",
    pixel_format: str = "yuv420p",
) -> Path:
    """Write a video of numbered pictures.

    Args:
        ticks: when each picture is shown, or how many there are, one a tick.
        container: FFmpeg's name; None: by the suffix.
        sound_s: seconds of a tone from 0 on; 0: no sound track.
    """
    times = range(ticks) if isinstance(ticks, int) else ticks
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=Fraction(1) / tick, options=options or {})
        context: Any = stream.codec_context
        context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, pixel_format
        context.time_base = tick
        tone = _Tone(out, sound_codec, sound_s) if sound_s else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = time, tick
            out.mux(stream.encode(frame))
            if tone:
                tone.until(float(time * tick) + 0.5)
        out.mux(stream.encode(None))
        if tone:
            tone.finish()
    return path


class _Tone:
    def __init__(self, out: Any, codec: str, length_s: float) -> None:
        self._out, self._rate = out, 48000
        self._stream = out.add_stream(codec, rate=self._rate, layout="mono")
        self._total, self._done = int(length_s * self._rate), 0

    def until(self, time_s: float) -> None:
        while self._done < min(self._total, time_s * self._rate):
            time = (np.arange(1024) + self._done) / self._rate
            samples = np.sin(2 * np.pi * 440 * time).astype(np.float32)[None] * 0.5
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
            self._out.mux(self._stream.encode(frame))
            self._done += 1024

    def finish(self) -> None:
        self.until(1e9)
        self._out.mux(self._stream.encode(None))


def remux(source: Path, target: Path, *, shift: int = 0, skip: int = 0) -> Path:
    """Copy the packets of a video without decoding them.

    Args:
        shift: ticks added to each time. Below zero, MP4 hides what lies before 0 by an edit list.
        skip: packets left out at the beginning.
    """
    with av.open(str(source)) as read, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for index, packet in enumerate(read.demux(video=0)):
            if packet.dts is None or index < skip:
                continue
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = stream
            out.mux(packet)
    return target


def faststart(source: Path, target: Path) -> Path:
    """Copy an MP4 file with its index in front of the data."""
    with av.open(str(source)) as read, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def patched(source: Path, target: Path, offset: int, data: bytes) -> Path:
    """Copy a file with some bytes replaced."""
    content = bytearray(source.read_bytes())
    content[offset : offset + len(data)] = data
    target.write_bytes(content)
    return target


def box(path: Path, name: bytes) -> int:
    """Return where the content of the first box of that name begins in an MP4 file."""
    return path.read_bytes().index(name) + 4


def turn(source: Path, target: Path, matrix: Sequence[int]) -> Path:
    """Copy an MP4 file with another display matrix (a, b, c, d of its upper left corner, each -1, 0 or 1)."""
    a, b, c, d = matrix
    values = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return patched(source, target, box(source, b"tkhd") + 40, values)


def inspected(path: Path) -> Video:
    """Look at a file in this process, with PyAV."""
    video = open_video(path, Limits())

    def progress(file: Any = video.file) -> None:  # holds the file open
        assert not file.closed

    source = Source(
        descriptor=video.file.fileno(),
        path=str(path),
        size=video.size,
        promised_size=video.promised_size,
        container=video.container,
        limits=Limits(),
        progress=progress,
    )
    return inspect(source, "pyav")


def noisy(source: Path, target: Path, index: int) -> Path:
    """Copy a video with the packet of one picture (in decoding order) turned to noise, its header left."""
    with av.open(str(source)) as container:
        packet = [each for each in container.demux(video=0) if each.size][index]
        begin, size = packet.pos + 12, packet.size - 12
    noise = np.random.default_rng(0).integers(1, 255, size, dtype=np.uint8)
    return patched(source, target, begin, noise.tobytes())


def all_pictures(path: Path) -> list[tuple[Fraction, NDArray[np.uint8]]]:
    """Decode everything in order with PyAV alone: the oracle. Times in seconds from the first picture."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    zero = frames[0].pts
    return [(Fraction(frame.pts - zero) * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in frames]


def filtered(path: Path, clip_length: Fraction) -> list[NDArray[np.uint8]]:
    """Let libavfilter's own fps filter choose the frames, as ffmpeg -vf fps=1/clip_length does."""
    return filtered_all(path, [clip_length])[clip_length]


def filtered_all(path: Path, clip_lengths: Sequence[Fraction]) -> dict[Fraction, list[NDArray[np.uint8]]]:
    """Choose frames for several clip lengths in one pass."""
    chosen: dict[Fraction, list[NDArray[np.uint8]]] = {length: [] for length in clip_lengths}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graphs = {length: _fps_filter(stream, length) for length in clip_lengths}
        zero: int | None = None
        first_dts = 0
        for order, frame in enumerate(container.decode(stream)):
            if container.format.name == "avi":  # no timestamps: ffmpeg takes those of the packets, in order
                first_dts = frame.dts if order == 0 else first_dts
                frame.pts = first_dts + order
            if zero is None:
                zero = frame.pts
                if container.format.name != "mpegts":  # else ffmpeg counts from the start of the earliest stream
                    zero = min(zero, round(Fraction(container.start_time or 0, av.time_base) / stream.time_base))
            frame.pts -= zero
            for length, (source, sink, _) in graphs.items():
                source.push(frame)
                chosen[length] += _pulled(sink)
        for length, (source, sink, _) in graphs.items():
            source.push(None)
            chosen[length] += _pulled(sink)
    return chosen


def _fps_filter(stream: Any, clip_length: Fraction) -> tuple[Any, Any, Any]:
    """Return input, output and the graph itself, which must outlive them."""
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    fps = graph.add("fps", f"{clip_length.denominator}/{clip_length.numerator}")
    sink = graph.add("buffersink")
    source.link_to(fps)
    fps.link_to(sink)
    graph.configure()
    return source, sink, graph


def _pulled(sink: Any) -> list[NDArray[np.uint8]]:
    pictures = []
    while True:
        try:
            pictures.append(sink.pull().to_ndarray(format="rgb24"))
        except (av.error.BlockingIOError, av.error.EOFError):
            return pictures
