"""When and where the deeds of a video happen: no two shapes on top of each other, nobody leaves the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from momentdetr.demo.scene import Event, Pose
from momentdetr.demo.vocabulary import COLOURS, Combination

MAX_AT_ONCE = 2
"""Shapes in the picture at the same time."""
_MIN_RADIUS, _MAX_RADIUS = 0.06, 0.19
_EDGE = 0.01
_MIN_SPEED, _MAX_SPEED = 0.07, 0.12
"""Of a moving shape, sides of the picture per clip."""
_TRAVEL = 0.82
"""What the smallest shape can travel, sides of the picture."""
_MIN_GROWTH, _MAX_GROWTH = 1.13, 1.2
"""Of the radius, per clip."""
MAX_LENGTH = {
    "left": 10,
    "right": 10,
    "up": 10,
    "down": 10,
    "grow": 8,
    "shrink": 8,
    "still": 14,
    "spin": 14,
    "blink": 14,
}
"""Clips; longer, a shape would leave the picture, or become too small or too large."""
_PAUSE = 2
"""Clips between two actors that look alike, at least."""
_TRIES = 40
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Deed:
    """An event before it has a place.

    Args:
        combination: colour, shape and motion.
        length: clips.
        partner: number of the deed whose actor does this one too; None for an actor of its own.
        before: whether it happens before the partner's deeds or after them.
    """

    combination: Combination
    length: int
    partner: int | None = None
    before: bool = False


def place(deeds: Sequence[Deed], num_clips: int, rng: np.random.Generator) -> tuple[Event, ...] | None:
    """Give every deed its time and path.

    Returns:
        Events ordered by start, or None where no place was found.
    """
    actors = _cast(deeds)
    if actors is None:
        return None
    starts = _schedule(actors, num_clips, rng)
    if starts is None:
        return None
    events: list[Event] = []
    for number, (actor, start) in enumerate(zip(actors, starts, strict=True)):
        path = _find_path(number, actor, start, events, rng)
        if path is None:
            return None
        events += path
    return tuple(sorted(events, key=lambda event: (event.start, event.end, event.combination)))


def _cast(deeds: Sequence[Deed]) -> list[list[Deed]] | None:
    """Line up each actor's deeds, and make blinking start and end where it can be told."""
    lines: list[list[Deed]] = []
    line_of: dict[int, list[Deed]] = {}
    for number, deed in enumerate(deeds):
        if deed.partner is None:
            line = [deed]
            lines.append(line)
        else:
            line = line_of[deed.partner]
            line.insert(0 if deed.before else len(line), deed)
        line_of[number] = line
    for line in lines:
        if any(a.combination == b.combination for a, b in pairwise(line)):
            return None
        for position, deed in enumerate(line):
            if deed.combination[2] == "blink" and not _blink_can_be_told(line, position, deed.length):
                return None
    return lines


def _blink_can_be_told(line: list[Deed], position: int, length: int) -> bool:
    """Whether the clips next to the event differ from its own first and last one."""
    starts_hidden, ends_hidden = position > 0, position < len(line) - 1
    return (length % 2 == 1) == (starts_hidden == ends_hidden)


def _schedule(actors: list[list[Deed]], num_clips: int, rng: np.random.Generator) -> list[int] | None:
    """Find a start for each actor, the longest first."""
    lengths = [sum(deed.length for deed in actor) for actor in actors]
    at_once = np.zeros(num_clips, int)
    starts: dict[int, int] = {}
    for number in sorted(range(len(actors)), key=lambda n: -lengths[n]):
        if lengths[number] > num_clips:
            return None
        for _ in range(_TRIES):
            start = int(rng.integers(num_clips - lengths[number] + 1))
            end = start + lengths[number]
            twins = [other for other in starts if actors[other][0].combination[:2] == actors[number][0].combination[:2]]
            apart = all(
                start >= starts[other] + lengths[other] + _PAUSE or end + _PAUSE <= starts[other] for other in twins
            )
            if apart and at_once[start:end].max() < MAX_AT_ONCE:
                break
        else:
            return None
        starts[number] = start
        at_once[start:end] += 1
    return [starts[number] for number in range(len(actors))]


def _find_path(
    number: int, actor: list[Deed], start: int, others: list[Event], rng: np.random.Generator
) -> list[Event] | None:
    """Draw paths until one stays in the picture and away from the others."""
    colour = np.clip(np.asarray(COLOURS[actor[0].combination[0]]) + rng.uniform(-0.04, 0.04, 3), 0, 1)
    rgb = (float(colour[0]), float(colour[1]), float(colour[2]))
    for _ in range(_TRIES):
        radius = float(np.exp(rng.uniform(np.log(_MIN_RADIUS), np.log(_MAX_RADIUS))))
        x, y = rng.uniform(radius + _EDGE, 1 - radius - _EDGE, 2)
        pose, clip, path = Pose(float(x), float(y), radius, float(rng.uniform(-20, 20))), start, []
        for position, deed in enumerate(actor):
            event = _move(number, deed, clip, pose, rgb, rng)
            if deed.combination[2] == "blink":
                event = replace(event, hidden_parity=0 if position > 0 else 1)
            path.append(event)
            pose, clip = event.pose_at(event.end), event.end
        if all(_inside(event) for event in path) and not _collides(path, others):
            return path
    return None


def _move(
    number: int, deed: Deed, clip: int, pose: Pose, rgb: tuple[float, float, float], rng: np.random.Generator
) -> Event:
    """Draw how fast it goes."""
    colour, shape, motion = deed.combination
    velocity, growth, turn = (0.0, 0.0), 1.0, 0.0
    if motion in _DIRECTIONS:
        speed = float(rng.uniform(_MIN_SPEED, min(_MAX_SPEED, _TRAVEL / deed.length)))
        velocity = (speed * _DIRECTIONS[motion][0], speed * _DIRECTIONS[motion][1])
    elif motion in ("grow", "shrink"):
        growth = float(rng.uniform(_MIN_GROWTH, min(_MAX_GROWTH, (_MAX_RADIUS / _MIN_RADIUS) ** (1 / deed.length))))
        growth = growth if motion == "grow" else 1 / growth
    elif motion == "spin":
        turn = float(rng.uniform(28, 42) * rng.choice((-1, 1)))
    return Event(
        number,
        colour,
        shape,
        motion,
        clip,
        clip + deed.length,
        pose,
        velocity,
        growth,
        turn,
        hidden_parity=None,
        rgb=rgb,
    )


def _inside(event: Event) -> bool:
    """Whether the shape stays in the picture and neither too small nor too large; its path is straight."""
    for pose in (event.pose, event.pose_at(event.end)):
        edge = pose.radius + _EDGE
        inside = edge <= pose.x <= 1 - edge and edge <= pose.y <= 1 - edge
        if not inside or not _MIN_RADIUS - 1e-6 <= pose.radius <= _MAX_RADIUS + 1e-6:
            return False
    return True


def _collides(path: list[Event], others: list[Event]) -> bool:
    """Whether two shapes ever touch, looked at every fifth of a clip."""
    for mine in path:
        for other in others:
            start, end = max(mine.start, other.start), min(mine.end, other.end)
            for clips in np.arange(start, end, 0.2):
                a, b = mine.pose_at(clips), other.pose_at(clips)
                if (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < (a.radius + b.radius) ** 2:
                    return True
    return False
