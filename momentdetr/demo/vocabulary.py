"""What there is in the moving-shapes world: colours, shapes, motions, and the combinations kept out of training."""

from __future__ import annotations

from itertools import product

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.10, 0.14),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.97, 0.90, 0.20),
    "green": (0.12, 0.68, 0.22),
    "cyan": (0.15, 0.85, 0.88),
    "blue": (0.14, 0.28, 0.92),
    "purple": (0.54, 0.18, 0.78),
    "pink": (0.98, 0.50, 0.74),
}
SHAPES = ("disc", "square", "triangle", "star", "cross", "heart")
MOTIONS = ("still", "left", "right", "up", "down", "spin", "grow", "shrink", "blink")

Combination = tuple[str, str, str]
"""Colour, shape, motion."""

# A turning disc looks like a resting one, so nobody asks for it.
POSSIBLE: tuple[Combination, ...] = tuple(
    (colour, shape, motion)
    for colour, shape, motion in product(COLOURS, SHAPES, MOTIONS)
    if (shape, motion) != ("disc", "spin")
)

# No event and no query of a training or validation video is one of these. Every pair of a colour and a shape, of a
# colour and a motion, and of a shape and a motion still occurs in training; only the three together are new.
HELD_OUT: frozenset[Combination] = frozenset(
    {
        ("red", "disc", "left"),
        ("red", "square", "grow"),
        ("red", "triangle", "blink"),
        ("red", "star", "up"),
        ("red", "heart", "spin"),
        ("orange", "disc", "shrink"),
        ("orange", "square", "right"),
        ("orange", "triangle", "still"),
        ("orange", "cross", "down"),
        ("orange", "heart", "left"),
        ("yellow", "disc", "blink"),
        ("yellow", "square", "up"),
        ("yellow", "star", "shrink"),
        ("yellow", "cross", "right"),
        ("yellow", "triangle", "spin"),
        ("green", "square", "still"),
        ("green", "triangle", "left"),
        ("green", "star", "grow"),
        ("green", "heart", "down"),
        ("green", "cross", "blink"),
        ("cyan", "disc", "up"),
        ("cyan", "triangle", "right"),
        ("cyan", "star", "spin"),
        ("cyan", "cross", "still"),
        ("cyan", "heart", "grow"),
        ("blue", "disc", "down"),
        ("blue", "square", "spin"),
        ("blue", "star", "left"),
        ("blue", "cross", "shrink"),
        ("blue", "heart", "blink"),
        ("purple", "disc", "grow"),
        ("purple", "square", "left"),
        ("purple", "triangle", "down"),
        ("purple", "star", "still"),
        ("purple", "cross", "up"),
        ("pink", "square", "blink"),
        ("pink", "triangle", "shrink"),
        ("pink", "star", "right"),
        ("pink", "cross", "spin"),
        ("pink", "heart", "up"),
    }
)

TRAINABLE: tuple[Combination, ...] = tuple(combination for combination in POSSIBLE if combination not in HELD_OUT)
