"""A video file inside the decoding process: opened by descriptor, as one container format, with nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from io import FileIO, RawIOBase
from typing import Any

import av
from av.stream import Disposition

from momentdetr.errors import BadVideo, OutOfResources
from momentdetr.features.decode_limits import Limits
from momentdetr.features.video_container import AUDIO_ONLY, DEMUXERS
from momentdetr.features.video_picture import Orientation, orientation_of


class PositionedFile(RawIOBase):
    """A reader with its own position over a descriptor that others read too."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size, self._position = descriptor, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._position if size < 0 else size
        data = os.pread(self._descriptor, size, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position


@dataclass(frozen=True)
class Source:
    """A file in the decoding process.

    Args:
        descriptor: of the open file, or None where descriptors cannot be handed on (then `path` is opened).
        path: absolute path; used only without a descriptor.
        size: bytes.
        promised_size: bytes that the container announces; 0: unknown.
        container: key of `DEMUXERS`.
        progress: called whenever something was read or decoded.
    """

    descriptor: int | None
    path: str
    size: int
    promised_size: int
    container: str
    limits: Limits
    progress: Callable[[], None] = field(repr=False)

    def open(self) -> tuple[Any, Any]:
        """Open the container and find its video stream.

        Returns:
            av.container.InputContainer and av.VideoStream.

        Raises:
            BadVideo: damaged, no video stream, or a codec that cannot be decoded.
            OutOfResources: frames are larger than the limits allow.
        """
        container = self.open_container()
        stream = _video_stream(container, self.container)
        context = stream.codec_context
        pixels = (context.width or 0) * (context.height or 0)
        if pixels > self.limits.max_pixels:
            raise OutOfResources(
                f"frames of {context.width} x {context.height} pixels, the limit is {self.limits.max_pixels} pixels "
                "(Limits.max_pixels)"
            )
        stream.thread_count = threads(pixels)
        return container, stream

    def open_container(self) -> Any:
        """Open the container alone (av.container.InputContainer), at its start."""
        file = FileIO(self.path) if self.descriptor is None else PositionedFile(self.descriptor, self.size)
        try:
            return av.open(
                file,
                format=DEMUXERS[self.container],
                io_open=_refuse_to_open,
                buffer_size=1 << 18,
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, EOFError) as error:
            what = "damaged, truncated, or not what its first bytes say"
            reason = what if isinstance(error, av.error.InvalidDataError) else str(error)
            raise BadVideo(f"cannot be read as {self.container}: {reason}") from error

    def system_path(self) -> str:
        """Return a name under which a library that knows only names can open the same file."""
        for folder in ("/proc/self/fd", "/dev/fd"):
            if self.descriptor is not None and os.path.exists(f"{folder}/{self.descriptor}"):
                return f"{folder}/{self.descriptor}"
        return self.path


@dataclass(frozen=True)
class Facts:
    """What the first decodable frame and the container's header say.

    Args:
        width, height: as stored; pixels.
        zero: the frame's timestamp in ticks of the stream.
        first_dts: decoding timestamp of the packet with which the frame came out, in ticks.
        codec: FFmpeg's canonical name.
        num_videos: video streams, cover pictures not counted.
        audio_codec: FFmpeg's canonical name; empty: no sound.
    """

    width: int
    height: int
    orientation: Orientation
    zero: int | None
    first_dts: int | None
    codec: str
    pixel_format: str
    num_videos: int
    audio_codec: str
    average_rate: Fraction | None


def decoded(packet: Any) -> list[Any] | None:
    """A packet's frames (av.VideoFrame or av.AudioFrame); None if it does not decode. Full memory is no damage."""
    try:
        frames: list[Any] = packet.decode()
    except MemoryError:
        raise
    except (av.error.FFmpegError, EOFError):
        return None
    return frames


def read_facts(source: Source) -> Facts:
    """Decode the first frame that decodes.

    Raises:
        BadVideo: none does.
    """
    container, stream = source.open()
    failed = 0
    with container:
        codec = stream.codec_context.codec.canonical_name
        for packet in container.demux(stream):
            source.progress()
            frames = decoded(packet)
            if frames is None:
                failed += 1
                continue
            good = [frame for frame in frames if not frame.is_corrupt]
            if good:
                return Facts(
                    width=good[0].width,
                    height=good[0].height,
                    orientation=orientation_of(good[0]),
                    zero=good[0].pts,
                    first_dts=good[0].dts,
                    codec=codec,
                    pixel_format=good[0].format.name,
                    num_videos=len(_videos(container)),
                    audio_codec=_audio_codec(container),
                    average_rate=stream.average_rate,
                )
    raise BadVideo(f"no frame can be decoded (codec {codec}, {failed} packets fail): the file is damaged or truncated")


def threads(pixels: int) -> int:
    """Return how many threads decode frames of that size: each holds frames of its own in memory."""
    return max(1, min(os.cpu_count() or 1, 8, (1 << 26) // max(1, pixels)))


def _refuse_to_open(url: str, flags: int, options: Any) -> Any:
    raise PermissionError(f"the file asks for another file: {url!r}")


def _audio_codec(container: Any) -> str:
    audio = container.streams.best("audio")
    context = audio.codec_context if audio is not None else None
    return "" if context is None else str(context.codec.canonical_name)


def _videos(container: Any) -> list[Any]:
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _video_stream(container: Any, name: str) -> Any:
    videos = _videos(container)
    if not videos:
        audio = name in AUDIO_ONLY or len(container.streams.audio) > 0
        raise BadVideo("has no video" + (" (audio only)" if audio else "") + "; expected a file with pictures")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise BadVideo("its video codec is unknown; convert it first, for example with: ffmpeg -i FILE converted.mp4")
    return stream
