"""Making up a video of the moving-shapes world: who does what, and what is asked; see `world` for the rules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from momentdetr.demo.language import sentence
from momentdetr.demo.placement import MAX_LENGTH, Deed, place
from momentdetr.demo.scene import Background, Description, Event, Query, Scene, windows_of
from momentdetr.demo.vocabulary import COLOURS, HELD_OUT, MOTIONS, POSSIBLE, SHAPES, TRAINABLE, Combination

SPLITS = {"test": 0, "train": 1, "validation": 2}
QUERIES_PER_VIDEO = 3
"""That are in the video; as many are not."""
MIN_CLIPS, MAX_CLIPS = 40, 64
SHORT = 0.1
"""A short window is less than this part of the video."""
_MIN_LENGTH = 3
_SAME_LOOKS = 0.6
"""How often a query asks for another motion of a shape that is asked for already."""
_SAME_ACTOR = 0.8
"""How often events of the same looks are one shape that does both in a row."""
_HELD_OUT_SHARE = 0.35
_WALLS = ("plain", "gradient", "stripes", "checks", "dots", "noise")


def make_video(seed: int, index: int, split: str = "test") -> Scene:
    """Make up one video.

    Args:
        seed: names a world.
        index: the video's number in that world.
        split: "test", "train" or "validation".
    """
    rng = np.random.default_rng([SPLITS[split], seed, index])
    name = f"{split}_{seed}_{index:05d}"
    num_events = int(rng.integers(3, 9))
    while True:  # a draw that breaks a rule is thrown away; fixing the number of events first keeps it uniform
        scene = _attempt(rng, name, num_events, held_out=split == "test")
        if scene is not None:
            return scene


@dataclass(frozen=True)
class _Plan:
    """What the three queries of a video shall be like."""

    targets: tuple[Combination, ...]
    descriptions: tuple[Description, ...]
    short: int
    distracted: int


def _attempt(rng: np.random.Generator, name: str, num_events: int, held_out: bool) -> Scene | None:
    num_clips = int(rng.integers(MIN_CLIPS, MAX_CLIPS + 1))
    allowed = POSSIBLE if held_out else TRAINABLE
    plan = _make_plan(rng, allowed, few=num_events == QUERIES_PER_VIDEO)
    if plan is None:
        return None
    deeds = _choose_deeds(rng, plan, num_events, num_clips, allowed)
    events = place(deeds, num_clips, rng)
    if events is None:
        return None
    queries = tuple(
        Query(sentence(description, rng), description, windows_of(description, events))
        for description in plan.descriptions
    )
    if not _keeps_promises(plan, queries, events, num_clips):
        return None
    absent = tuple(
        Query(sentence(description, rng), description, ())
        for description in _absent(rng, plan.targets, events, allowed)
    )
    return Scene(name, num_clips, _make_background(rng), events, queries + absent)


def _make_plan(rng: np.random.Generator, allowed: tuple[Combination, ...], few: bool) -> _Plan | None:
    """Choose what will be asked; with `few` events one target must serve as another's distractor."""
    short, distracted = (int(number) for number in rng.integers(QUERIES_PER_VIDEO, size=2))
    targets: list[Combination] = []
    while len(targets) < QUERIES_PER_VIDEO:
        choice = allowed
        if targets and rng.random() < _SAME_LOOKS:  # so that it matters which motion it is
            looks = targets[rng.integers(len(targets))][:2]
            choice = tuple(option for option in allowed if option[:2] == looks)
        fresh = tuple(option for option in choice if option in HELD_OUT)
        if fresh and rng.random() < _HELD_OUT_SHARE:
            choice = fresh
        targets.append(choice[rng.integers(len(choice))])
    distractors = [target for target in targets if Description(*targets[distracted]).shares_two(target)]
    if few and not distractors:
        targets[(distracted + 1) % QUERIES_PER_VIDEO] = _neighbour(rng, targets[distracted], allowed)
    if len(set(targets)) < QUERIES_PER_VIDEO:
        return None
    descriptions = [Description(*target) for target in targets]
    if rng.random() < 0.4:  # one sentence leaves its colour or its shape open
        vague = (distracted + int(rng.integers(1, QUERIES_PER_VIDEO))) % QUERIES_PER_VIDEO
        open_field = "colour" if rng.random() < 0.5 else "shape"
        descriptions[vague] = _leave_open(descriptions[vague], open_field)
    return _Plan(tuple(targets), tuple(descriptions), short, distracted)


def _choose_deeds(
    rng: np.random.Generator, plan: _Plan, num_events: int, num_clips: int, allowed: tuple[Combination, ...]
) -> list[Deed]:
    """The targets, a distractor, then repetitions, companions and strangers up to the number of events."""
    classes = {target: number == plan.short for number, target in enumerate(plan.targets)}
    deeds: list[Deed] = []

    def add(combination: Combination, short: bool) -> None:
        twins = [number for number, deed in enumerate(deeds) if deed.combination[:2] == combination[:2]]
        follows = twins[rng.integers(len(twins))] if twins and rng.random() < _SAME_ACTOR else None
        length = _length(rng, combination, short, num_clips)
        deeds.append(Deed(combination, length, follows, before=bool(rng.random() < 0.5)))

    for target in plan.targets:
        add(target, classes[target])
    while len(deeds) < num_events:
        kind = rng.random()
        target = plan.targets[rng.integers(QUERIES_PER_VIDEO)]
        if len(deeds) == QUERIES_PER_VIDEO:
            combination = _neighbour(rng, plan.targets[plan.distracted], allowed)
        elif kind < 0.35:
            combination = target
        elif kind < 0.85:
            combination = _neighbour(rng, target, allowed)
        else:
            combination = allowed[rng.integers(len(allowed))]
        add(combination, classes.get(combination, bool(rng.random() < 0.35)))
    return deeds


def _length(rng: np.random.Generator, combination: Combination, short: bool, num_clips: int) -> int:
    """Clips that an event takes; a short one takes less than a tenth of the video."""
    longest_short = -(-num_clips // 10) - 1
    if short:
        return int(rng.integers(_MIN_LENGTH, longest_short + 1))
    return int(rng.integers(longest_short + 1, MAX_LENGTH[combination[2]] + 1))


def _neighbour(rng: np.random.Generator, combination: Combination, allowed: tuple[Combination, ...]) -> Combination:
    """A combination that differs in one attribute, mostly in the motion."""
    while True:
        place_of = int(rng.choice(3, p=(0.2, 0.2, 0.6)))
        values = (tuple(COLOURS), SHAPES, MOTIONS)[place_of]
        changed = list(combination)
        changed[place_of] = values[rng.integers(len(values))]
        colour, shape, motion = changed
        if (colour, shape, motion) != combination and (colour, shape, motion) in allowed:
            return colour, shape, motion


def _keeps_promises(plan: _Plan, queries: tuple[Query, ...], events: tuple[Event, ...], num_clips: int) -> bool:
    """Whether short is short, long is long, and the distracted query has its distractor."""
    for number, query in enumerate(queries):
        lengths = [end - start for start, end in query.windows]
        if any((length < SHORT * num_clips) != (number == plan.short) for length in lengths):
            return False
    distracted = plan.descriptions[plan.distracted]
    return any(distracted.shares_two(event.combination) for event in events)


def _absent(
    rng: np.random.Generator,
    targets: tuple[Combination, ...],
    events: tuple[Event, ...],
    allowed: tuple[Combination, ...],
) -> list[Description]:
    """Three descriptions that no event fits: two are next to a target, one is drawn from all."""
    descriptions: list[Description] = []
    while len(descriptions) < QUERIES_PER_VIDEO:
        if len(descriptions) < QUERIES_PER_VIDEO - 1:
            combination = _neighbour(rng, targets[rng.integers(len(targets))], allowed)
        else:
            combination = allowed[rng.integers(len(allowed))]
        description = Description(*combination)
        if not windows_of(description, events) and description not in descriptions:
            descriptions.append(description)
    return descriptions


def ask_more(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same video with more queries, to learn from.

    Every event is asked for, some with a part left open, and most are also asked for with another motion, which is the
    attribute that is hardest to learn.
    """
    asked = {query.description for query in scene.queries}
    wanted = [Description(*event.combination) for event in scene.events]
    for event in scene.events:
        if rng.random() < 0.3:
            open_field = "colour" if rng.random() < 0.5 else "shape"
            wanted.append(_leave_open(Description(*event.combination), open_field))
        other = (event.colour, event.shape, MOTIONS[rng.integers(len(MOTIONS))])
        if rng.random() < 0.8 and other in TRAINABLE:
            wanted.append(Description(*other))
    more = tuple(
        Query(sentence(description, rng), description, windows_of(description, scene.events))
        for description in dict.fromkeys(wanted)
        if description not in asked
    )
    return replace(scene, queries=scene.queries + more)


def _leave_open(description: Description, field: str) -> Description:
    return replace(description, colour=None) if field == "colour" else replace(description, shape=None)


def _make_background(rng: np.random.Generator) -> Background:
    """A wall of two dull colours that do not differ much."""
    base = rng.uniform(0.06, 0.5)
    tint = rng.uniform(-0.05, 0.05, size=3)
    contrast = rng.uniform(0.04, 0.14)
    dark = np.clip(base + tint, 0, 1)
    light = np.clip(dark + contrast, 0, 1)
    return Background(
        kind=_WALLS[rng.integers(len(_WALLS))],
        dark=(float(dark[0]), float(dark[1]), float(dark[2])),
        light=(float(light[0]), float(light[1]), float(light[2])),
        period=float(rng.uniform(0.08, 0.3)),
        angle=float(rng.uniform(0, np.pi)),
        seed=int(rng.integers(2**31)),
    )
