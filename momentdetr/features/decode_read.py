"""The decoding process's answers to questions about frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from momentdetr.errors import BadVideo
from momentdetr.features.decode_protocol import Channel
from momentdetr.features.video_choice import Choice, Times
from momentdetr.features.video_choice import clips as lay_clips
from momentdetr.features.video_picture import square
from momentdetr.features.video_selection import SALVAGE, Chosen, Video, select

MAX_BATCH_BYTES = 64 << 20


def info(video: Video) -> dict[str, Any]:
    """Describe a video (JSON values)."""
    timeline, facts = video.timeline, video.facts
    width, height = facts.orientation.size(facts.width, facts.height)
    return {
        "duration_s": timeline.duration_s,
        "width": width,
        "height": height,
        "codec": facts.codec,
        "container": video.source.container,
        "average_fps": len(timeline.pts) / timeline.duration_s,
        "rotation": facts.orientation.degrees,
        "decoder": "decord" if video.decord else "pyav",
        "why_not_decord": video.why_not_decord,
        "pixel_format": facts.pixel_format,
        "num_frames": len(timeline.pts),
        "audio_codec": facts.audio_codec,
        "start_s": timeline.seconds(timeline.phase),
        "complete": timeline.complete,
        "flaw": timeline.flaw,
    }


def clips(request: Mapping[str, Any], video: Video, channel: Channel) -> None:
    """Send one picture per clip."""
    _send(request, video, lay_clips(request["clip_length_s"], video.timeline), channel)


def frames(request: Mapping[str, Any], video: Video, channel: Channel) -> None:
    """Send the picture on the screen at each time (ascending)."""
    _send(request, video, Times(request["times_s"], video.timeline.tick), channel)


def _send(request: Mapping[str, Any], video: Video, choice: Choice, channel: Channel) -> None:
    if not (video.timeline.complete or request["salvage"]):
        raise BadVideo(f"{video.timeline.flaw}; {SALVAGE}")
    answers = select(
        video,
        choice,
        first=request["first"],
        salvage=request["salvage"],
        forced=request["decoder"] == "decord",
    )
    for batch in _batches(answers, request):
        channel.send(
            "frames",
            np.stack([answer.picture for answer in batch]),
            shape=[len(batch), *batch[0].picture.shape],
            times_s=[video.timeline.seconds(answer.tick) for answer in batch],
            complete=video.timeline.complete and all(answer.exact for answer in batch),
        )


def _batches(answers: Iterator[Chosen], request: Mapping[str, Any]) -> Iterator[list[Chosen]]:
    """Finish the pictures and gather them into batches of bounded number and size."""
    side, batch, size = request["image_size"], [], 0
    for answer in answers:
        if side is not None:
            answer = replace(answer, picture=square(answer.picture, side, request["interpolation"]))
        batch.append(answer)
        size += answer.picture.nbytes
        if len(batch) == request["chunk"] or size >= MAX_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
