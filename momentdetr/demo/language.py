"""Sentences about the moving-shapes world: the same thing said in many ways."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from momentdetr.demo.scene import Description

T = TypeVar("T")

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine", "amber"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "cobalt", "navy"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "disc": ("disc", "circle", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
}
# Each as (it ..., ... -ing): "moves left", "moving left".
MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "still": (
        ("stays still", "staying still"),
        ("rests", "resting"),
        ("does not move", "not moving"),
        ("stays in place", "staying in place"),
    ),
    "left": (
        ("moves left", "moving left"),
        ("drifts to the left", "drifting to the left"),
        ("slides leftwards", "sliding leftwards"),
        ("travels from right to left", "travelling from right to left"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("drifts to the right", "drifting to the right"),
        ("slides rightwards", "sliding rightwards"),
        ("travels from left to right", "travelling from left to right"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("rises", "rising"),
        ("floats upwards", "floating upwards"),
        ("climbs to the top", "climbing to the top"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("falls", "falling"),
        ("sinks downwards", "sinking downwards"),
        ("drops to the bottom", "dropping to the bottom"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("turns around itself", "turning around itself"),
        ("whirls in place", "whirling in place"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("becomes larger", "becoming larger"),
        ("swells", "swelling"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("dwindles", "dwindling"),
    ),
    "blink": (
        ("blinks", "blinking"),
        ("flashes", "flashing"),
        ("flickers", "flickering"),
        ("goes on and off", "going on and off"),
    ),
}
_ACTIVE = (
    "the {thing} {does}",
    "a {thing} {does}",
    "A {thing} {does}.",
    "The {thing} {does}.",
    "moment when the {thing} {does}",
    "the part where a {thing} {does}",
)
_PROGRESSIVE = (
    "a {thing} is {doing}",
    "The {thing} is {doing}.",
    "a {thing} {doing}",
    "find the {thing} {doing}",
    "where is the {thing} {doing}?",
)


def sentence(description: Description, rng: np.random.Generator) -> str:
    """Say it in one of the many ways, drawn at random."""
    does, doing = _pick(MOTION_WORDS[description.motion], rng)
    templates = _ACTIVE + _PROGRESSIVE
    text = _pick(templates, rng).format(thing=noun(description.colour, description.shape, rng), does=does, doing=doing)
    text = text.replace("the something", "something").replace("The something", "Something")
    text = text.replace("a something", "something").replace("A something", "Something")
    return (
        text.replace("a orange", "an orange")
        .replace("a amber", "an amber")
        .replace("a emerald", "an emerald")
        .replace("a aqua", "an aqua")
    )


def noun(colour: str | None, shape: str | None, rng: np.random.Generator) -> str:
    """ "crimson ball", "something crimson" or "ball"."""
    if shape is None:
        assert colour is not None
        return f"something {_pick(COLOUR_WORDS[colour], rng)}"
    word = _pick(SHAPE_WORDS[shape], rng)
    return word if colour is None else f"{_pick(COLOUR_WORDS[colour], rng)} {word}"


def _pick(options: tuple[T, ...], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]
