"""The frames that a choice asks for, from the fastest back end that can vouch for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from momentdetr.errors import BadVideo
from momentdetr.features.video_choice import Choice, chosen
from momentdetr.features.video_decord import DecordFrames
from momentdetr.features.video_picture import Picture, to_rgb
from momentdetr.features.video_pyav import CheckedFrames, Distrusted, table_frames
from momentdetr.features.video_source import Facts, Source, read_facts
from momentdetr.features.video_timeline import Timeline, read_timeline

OTHER_DECODERS = 'use the decoder "auto" or "pyav"'
SALVAGE = "ask for salvage to use what is readable"


@dataclass(frozen=True)
class Video:
    """A file whose frames are known by time.

    Args:
        decord: the reader, if it is known to return the right frames; else PyAV reads them.
        why_not_decord: empty for decord.
    """

    source: Source
    facts: Facts
    timeline: Timeline
    decord: DecordFrames | None
    why_not_decord: str


@dataclass(frozen=True)
class Chosen:
    """The picture for one position of a choice.

    Args:
        tick: when it is shown.
        exact: False: a neighbour, because the right frame is lost.
    """

    tick: int
    picture: Picture
    exact: bool


def inspect(source: Source, decoder: str) -> Video:
    """Read the first frame and the table of a file, and decide which back end reads it.

    Args:
        decoder: "auto", "decord" or "pyav".

    Raises:
        BadVideo: the file cannot be read, or not by the decoder that was asked for.
    """
    facts = read_facts(source)
    container, stream = source.open()
    with container:
        timeline = read_timeline(container, stream, sizes=(source.size, source.promised_size), progress=source.progress)
    if timeline.ordinal:
        # ffmpeg times a frame of AVI by the packet with which it comes out: B-frames delay the first one.
        timeline = replace(timeline, phase=max(0, (facts.first_dts or 0) - timeline.zero))
    elif not timeline.exact and facts.zero is not None:
        timeline = timeline.shifted(facts.zero)
    limit = source.limits.max_duration_s
    if timeline.duration_s > limit:
        raise BadVideo(f"{timeline.duration_s:.0f} s long, the limit is {limit:.0f} s (Limits.max_duration_s)")
    if decoder == "pyav":
        return Video(source, facts, timeline, None, "not asked for")
    try:
        return Video(source, facts, timeline, DecordFrames(source, facts, timeline), "")
    except Distrusted as reason:
        if decoder == "decord":
            raise BadVideo(f"decord cannot read it rightly: {reason}; {OTHER_DECODERS}") from reason
        return Video(source, facts, timeline, None, str(reason))


def select(video: Video, choice: Choice, *, first: int, salvage: bool, forced: bool) -> Iterator[Chosen]:
    """Read the picture for each position of a choice, from position `first` on.

    Tried in turn: decord; PyAV by the table; PyAV from the beginning, frame by frame. The next is taken at the position
    where one gave up, so each position is answered once.

    Args:
        salvage: whether a lost frame may be replaced by any neighbour.
        forced: whether decord was asked for, and its failure is an error.

    Raises:
        BadVideo: a frame is lost and has no neighbour in its own clip.
    """
    for way in _ways(video, forced):
        try:
            for picture in way(video, choice, first):
                yield picture
                first += 1
            return
        except Distrusted as reason:
            if forced:
                raise BadVideo(f"{reason}; {OTHER_DECODERS}") from reason
    yield from _checked(video, choice, first, salvage)


Way = Callable[[Video, Choice, int], Iterator[Chosen]]


def _ways(video: Video, forced: bool) -> list[Way]:
    ways: list[Way] = [_by_decord] if video.decord else []
    if video.timeline.exact and not forced:
        ways.append(_by_table)
    return ways


def _by_decord(video: Video, choice: Choice, first: int) -> Iterator[Chosen]:
    assert video.decord is not None
    ticks = chosen(choice, video.timeline, first).tolist()
    return _repeated(ticks, video.decord.frames(sorted(set(ticks))))


def _by_table(video: Video, choice: Choice, first: int) -> Iterator[Chosen]:
    ticks = chosen(choice, video.timeline, first).tolist()
    frames = table_frames(video.source, video.timeline, sorted(set(ticks)))
    return _repeated(ticks, ((tick, _rgb(video, frame)) for tick, frame in frames))


def _repeated(ticks: list[int], frames: Iterator[tuple[int, Picture]]) -> Iterator[Chosen]:
    held: tuple[int, Picture] | None = None
    for tick in ticks:
        if held is None or held[0] != tick:
            held = next(frames)
        yield Chosen(tick, held[1], True)


def _rgb(video: Video, frame: Any) -> Picture:
    return to_rgb(frame, video.facts.width, video.facts.height, video.facts.orientation)


def _checked(video: Video, choice: Choice, first: int, salvage: bool) -> Iterator[Chosen]:
    """Read everything in order; where frames are lost, their neighbours before them take their places."""
    timeline, frames = video.timeline, CheckedFrames(video.source, video.timeline)
    total = choice.count(timeline.end)
    held: _Held | None = None

    def answer(k: int, stand_in: _Held) -> Chosen:
        bound = choice.bound(k)
        exact = held is not None and not any(held.tick < tick < bound for tick in frames.lost)
        near = held is not None and held.tick >= choice.opens(k)
        if not (exact or near or salvage):
            at = timeline.seconds(max(0, bound - 1))
            raise BadVideo(
                f"damaged: no readable frame at {at:.1f} s ({len(frames.lost)} frames lost so far); {SALVAGE}"
            )
        return Chosen(stand_in.tick, stand_in.picture(), exact)

    k = 0
    for tick, frame in frames:
        here = _Held(video, tick, frame)
        while k < total and tick >= choice.bound(k):
            if k >= first:
                yield answer(k, held or here)
            k += 1
        if k == total:
            return
        held = here
    if held is None:
        raise BadVideo("damaged: no frame is readable")
    for rest in range(max(k, first), total):
        yield answer(rest, held)


class _Held:
    """A decoded frame whose picture is made when it is first asked for."""

    def __init__(self, video: Video, tick: int, frame: Any) -> None:
        self.tick = tick
        self._video, self._frame = video, frame
        self._picture: Picture | None = None

    def picture(self) -> Picture:
        if self._picture is None:
            self._picture = _rgb(self._video, self._frame)
        return self._picture
