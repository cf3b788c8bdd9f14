"""One video of the moving-shapes world, written down: who does what, when and where.

Time is counted in clips of half a second; every event fills whole clips, as QVHighlights' windows fill whole clips of
two seconds. Lengths are fractions of the picture's side; x grows to the right, y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from momentdetr.demo.vocabulary import Combination

CLIP_LENGTH_S = 0.5
FPS = 10
FRAMES_PER_CLIP = int(CLIP_LENGTH_S * FPS)


@dataclass(frozen=True)
class Pose:
    """Where a shape is: centre, radius of the circle around it, and turn in degrees (clockwise on the screen)."""

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Event:
    """One shape doing one thing.

    Args:
        actor: events of the same actor follow each other without a gap; the shape stays where the last one left it.
        colour, shape, motion: of `vocabulary`.
        start, end: clips, end exclusive.
        pose: at the start.
        velocity: x and y per clip.
        growth: factor on the radius per clip.
        turn: degrees per clip.
        hidden_parity: for "blink", the clips (counted from the start) with this parity show nothing; None otherwise.
        rgb: the colour as drawn, each in [0, 1].
    """

    actor: int
    colour: str
    shape: str
    motion: str
    start: int
    end: int
    pose: Pose
    velocity: tuple[float, float]
    growth: float
    turn: float
    hidden_parity: int | None
    rgb: tuple[float, float, float]

    @property
    def combination(self) -> Combination:
        return self.colour, self.shape, self.motion

    def pose_at(self, clips: float) -> Pose:
        """The pose at a time counted in clips from the start of the video, whether or not it can be seen then."""
        elapsed = clips - self.start
        return Pose(
            self.pose.x + self.velocity[0] * elapsed,
            self.pose.y + self.velocity[1] * elapsed,
            self.pose.radius * self.growth**elapsed,
            self.pose.angle + self.turn * elapsed,
        )

    def visible_at(self, clips: float) -> bool:
        if not self.start <= clips < self.end:
            return False
        return self.hidden_parity is None or math.floor(clips - self.start) % 2 != self.hidden_parity


@dataclass(frozen=True)
class Description:
    """What a sentence speaks of; None where it leaves something open ("something red spins")."""

    colour: str | None
    shape: str | None
    motion: str

    def fits(self, combination: Combination) -> bool:
        wanted = (self.colour, self.shape, self.motion)
        return all(w is None or w == has for w, has in zip(wanted, combination, strict=True))

    def shares_two(self, combination: Combination) -> bool:
        """Whether exactly two of colour, shape and motion are the same: what makes a distractor."""
        wanted = (self.colour, self.shape, self.motion)
        return sum(w == has for w, has in zip(wanted, combination, strict=True)) == 2


@dataclass(frozen=True)
class Query:
    """A sentence and its truth.

    Args:
        text: the sentence.
        description: what it speaks of.
        windows: every true window in clips, end exclusive, in order, not touching; empty if it is not in the video.
    """

    text: str
    description: Description
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Background:
    """A plain or textured wall behind the shapes.

    Args:
        kind: "plain", "gradient", "stripes", "checks", "dots" or "noise".
        dark, light: the two colours that the texture mixes, each in [0, 1].
        period: of the texture, a fraction of the picture's side.
        angle: of gradient and stripes, radians.
        seed: of the noise.
    """

    kind: str
    dark: tuple[float, float, float]
    light: tuple[float, float, float]
    period: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """One video: everything that `drawing.draw` draws and `truth` tells.

    Args:
        name: file name without suffix.
        num_clips: length in clips of half a second.
        background: what is behind the shapes.
        events: three to eight, ordered by start.
        queries: the ones with windows first, then those that are not in the video.
    """

    name: str
    num_clips: int
    background: Background
    events: tuple[Event, ...]
    queries: tuple[Query, ...]

    @property
    def duration_s(self) -> float:
        return self.num_clips * CLIP_LENGTH_S

    @property
    def num_frames(self) -> int:
        return self.num_clips * FRAMES_PER_CLIP


def windows_of(description: Description, events: tuple[Event, ...]) -> tuple[tuple[int, int], ...]:
    """Every time span in which the description is true; spans that touch or overlap are one."""
    spans = sorted((event.start, event.end) for event in events if description.fits(event.combination))
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
