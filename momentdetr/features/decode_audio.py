"""The sound of a stretch of video, as an unbroken run of samples, encoded as AAC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from momentdetr.features.video_source import Source, decoded

Samples = NDArray[np.float32]  # (channels, n)

CHUNK = 1024  # samples in one AAC frame
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_JITTER_S = 0.03  # containers round times to milliseconds; smaller gaps and overlaps are not real
_RUN_UP_S = 1.0  # decoders of sound need a few packets to be right
_SEEKABLE = frozenset({"mp4", "mov", "mkv", "webm"})


@dataclass(frozen=True)
class Sound:
    """The sound of a stretch of video.

    Args:
        rate: samples per second.
        channels: 1 or 2.
        chunks: (channels, CHUNK) each, gaps filled with silence; together as long as the stretch, rounded up.
    """

    rate: int
    channels: int
    chunks: Iterator[Samples]


def sound_between(source: Source, start_s: Fraction, end_s: Fraction) -> Sound | None:
    """Open the sound of a stretch of time.

    Args:
        start_s, end_s: seconds on the file's own clock.

    Returns:
        None if there is no sound track, or one that cannot be decoded.
    """
    container = source.open_container()
    stream = container.streams.best("audio")
    if stream is None or stream.codec_context is None or not stream.codec_context.sample_rate:
        container.close()
        return None
    context = stream.codec_context
    rate = context.sample_rate if context.sample_rate in _RATES else 48000
    channels = 1 if context.channels == 1 else 2
    first, total = round(start_s * rate), round((end_s - start_s) * rate)
    if source.container in _SEEKABLE and start_s > _RUN_UP_S:
        container.seek(int((start_s - Fraction(_RUN_UP_S)) * av.time_base))
    pieces = _pieces(container, stream, source, rate, channels)
    return Sound(rate, channels, _chunks(pieces, first, total, channels, int(_JITTER_S * rate)))


def _pieces(container: Any, stream: Any, source: Source, rate: int, channels: int) -> Iterator[tuple[int, Samples]]:
    """Yield decoded samples with their position, in samples of the output rate on the file's clock."""
    resampler = av.AudioResampler(format="fltp", layout="mono" if channels == 1 else "stereo", rate=rate)
    with container:
        for packet in container.demux(stream):
            source.progress()
            for frame in decoded(packet) or ():
                if frame.pts is None:
                    continue
                for piece in resampler.resample(frame):
                    yield round(Fraction(piece.pts) * piece.time_base * rate), piece.to_ndarray()


def _chunks(
    pieces: Iterator[tuple[int, Samples]], first: int, total: int, channels: int, jitter: int
) -> Iterator[Samples]:
    """Lay pieces end to end from sample `first` on, and cut the run into equal chunks."""
    run, done = np.zeros((channels, 0), np.float32), 0
    for position, samples in pieces:
        here = done + run.shape[1]
        offset = position - first - here
        if offset > jitter:
            run = np.concatenate([run, np.zeros((channels, min(offset, total - here)), np.float32)], axis=1)
        elif offset < -jitter or here == 0:
            samples = samples[:, max(0, -offset) :]
        run = np.concatenate([run, samples], axis=1)
        while run.shape[1] >= CHUNK and done < total:
            yield run[:, :CHUNK]
            run, done = run[:, CHUNK:], done + CHUNK
        if done >= total:
            return
    while done < total:
        run = np.pad(run, ((0, 0), (0, max(0, CHUNK - run.shape[1]))))
        yield run[:, :CHUNK]
        run, done = run[:, CHUNK:], done + CHUNK


class AudioTrack:
    """The sound track of an MP4 file that is being written."""

    def __init__(self, container: Any, sound: Sound) -> None:
        self._layout = "mono" if sound.channels == 1 else "stereo"
        self._rate, self._written = sound.rate, 0
        self._stream = container.add_stream("aac", rate=sound.rate, layout=self._layout)
        self._stream.codec_context.bit_rate = 96_000 * sound.channels

    @property
    def end(self) -> Fraction:
        """Seconds written so far."""
        return Fraction(self._written, self._rate)

    def encode(self, samples: Samples) -> Iterator[Any]:
        """Yield the packets that are ready after one more chunk (channels, CHUNK)."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._written, Fraction(1, self._rate)
        self._written += samples.shape[1]
        yield from self._stream.encode(frame)

    def finish(self) -> Iterator[Any]:
        """Yield the packets that the encoder still holds."""
        yield from self._stream.encode(None)
