"""What the tiny CLIP learns from: captions of frames with their truth, facts of frames, sentences with their meaning.

A frame cannot show motion, so captions speak of what it does show: colour, shape, and on a map's grid the place, size
and turn of each shape. Because the world is known, the truth of every caption for every frame is known too, and the
contrastive loss gets exact labels in place of "mine is right, all others are wrong".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from momentdetr.demo.language import noun, sentence
from momentdetr.demo.placement import MAX_AT_ONCE
from momentdetr.demo.scene import FRAMES_PER_CLIP, Description, Scene
from momentdetr.demo.vocabulary import COLOURS, MOTIONS, SHAPES

_COLOURS, _SHAPES, _MOTIONS = list(COLOURS), list(SHAPES), list(MOTIONS)
_GRID = "abcdefghijklmnopqrst"
GRID_SIZE = len(_GRID)
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SIZES = 8
NUM_TURNS = 12
_SYMMETRY = {"disc": 1, "square": 4, "triangle": 3, "star": 5, "cross": 4, "heart": 1}
COLUMNS = ("colour", "shape", "x", "y", "size", "turn")
"""What a caption may tell; a frame's slots and a caption's wishes are arrays with these last-axis entries."""
_TELLS = np.array([0.75, 0.75, 0.45, 0.45, 0.25, 0.3])
_IN_CLIP = (FRAMES_PER_CLIP // 2) / FRAMES_PER_CLIP
"""When in a clip its frame is taken, in clips: what `fps=1/clip_length` chooses."""


@dataclass(frozen=True)
class Captions:
    """A batch of texts with their truth.

    Args:
        texts: M sentences.
        truth: (N, M), True where the text is true of the frame.
        clear: (N, M), False on the border between true and false, where no answer is asked for.
    """

    texts: list[str]
    truth: NDArray[np.bool_]
    clear: NDArray[np.bool_]


def frame_slots(scene: Scene) -> NDArray[np.float32]:
    """What each clip's frame shows.

    Returns:
        (T, slots, 6), the entries of `COLUMNS` in units of their bins (not rounded); NaN rows are empty.
    """
    slots = np.full((scene.num_clips, MAX_AT_ONCE, len(COLUMNS)), np.nan, np.float32)
    for clip in range(scene.num_clips):
        time = clip + _IN_CLIP
        for slot, event in enumerate(event for event in scene.events if event.visible_at(time)):
            pose = event.pose_at(time)
            size = np.log(pose.radius / 0.06) / np.log(0.19 / 0.06) * _SIZES - 0.5
            turn = (pose.angle * _SYMMETRY[event.shape] / 360 % 1) * NUM_TURNS
            slots[clip, slot] = (
                _COLOURS.index(event.colour),
                _SHAPES.index(event.shape),
                pose.x * len(_GRID) - 0.5,
                pose.y * len(_GRID) - 0.5,
                size,
                turn,
            )
    return slots


def make_captions(slots: NDArray[np.float32], num_captions: int, rng: np.random.Generator) -> Captions:
    """Caption frames: most texts are true of the frame they were made for, a third have one thing changed.

    Args:
        slots: (N, slots, 6) of `frame_slots`.
        num_captions: M.
    """
    shown = slots[~np.isnan(slots[..., 0])]  # (shapes, 6)
    wishes = np.round(shown[rng.integers(len(shown), size=num_captions)])
    for row in np.flatnonzero(rng.random(num_captions) < 0.35):
        column = rng.integers(len(COLUMNS))
        wishes[row, column] = np.round(shown[rng.integers(len(shown)), column])
    told = rng.random(wishes.shape) < _TELLS
    told[:, 5] &= told[:, 1] & (wishes[:, 1] != 0)  # the turn means something only for a known shape, not a disc
    told[~told[:, :2].any(1), 0] = True
    in_query_words = rng.random(num_captions) < 0.2
    told[in_query_words, 2:] = False
    wishes = np.where(told, wishes, np.nan)
    texts = [_say(row, in_words, rng) for row, in_words in zip(wishes, in_query_words, strict=True)]
    return Captions(texts, *_judge(slots, wishes))


@dataclass(frozen=True)
class Sentences:
    """A batch of queries.

    Args:
        texts: M sentences.
        meanings: (M, 3), numbers of colour, shape and motion, -1 where a sentence leaves it open.
    """

    texts: list[str]
    meanings: NDArray[np.int64]


def make_sentences(num_sentences: int, rng: np.random.Generator) -> Sentences:
    """Say that anything does anything; a fifth of the sentences leave colour or shape open."""
    kinds = (_COLOURS, _SHAPES, _MOTIONS)
    meanings = np.stack([rng.integers(len(kind), size=num_sentences) for kind in kinds], 1)
    open_field = np.where(rng.random(num_sentences) < 0.2, rng.integers(2, size=num_sentences), -1)
    meanings = np.where(np.arange(3) == open_field[:, None], -1, meanings)
    texts = [
        sentence(
            Description(
                None if colour < 0 else _COLOURS[colour], None if shape < 0 else _SHAPES[shape], _MOTIONS[motion]
            ),
            rng,
        )
        for colour, shape, motion in meanings.tolist()
    ]
    return Sentences(texts, meanings)


def _say(wish: NDArray[np.float32], in_query_words: bool, rng: np.random.Generator) -> str:
    colour = None if np.isnan(wish[0]) else _COLOURS[int(wish[0])]
    shape = None if np.isnan(wish[1]) else _SHAPES[int(wish[1])]
    if in_query_words:
        if rng.random() < 0.6:
            return sentence(Description(colour, shape, _MOTIONS[rng.integers(len(_MOTIONS))]), rng)
        return ("" if shape is None else "a ") + noun(colour, shape, rng)
    words = [noun(colour, shape, rng)]
    if not np.isnan(wish[2]):
        words.append(f"column {_GRID[int(np.clip(wish[2], 0, 19))]}")
    if not np.isnan(wish[3]):
        words.append(f"row {_GRID[int(np.clip(wish[3], 0, 19))]}")
    if not np.isnan(wish[4]):
        words.append(f"size {_NUMBERS[int(np.clip(wish[4], 0, _SIZES - 1))]}")
    if not np.isnan(wish[5]):
        words.append(f"turned {_NUMBERS[int(wish[5]) % NUM_TURNS]}")
    return " ".join(words)


def _judge(slots: NDArray[np.float32], wishes: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Truth and clearness of each wish for each frame: within 0.6 bins is true, beyond 1.2 bins is false."""
    distance = np.abs(slots[:, :, None] - wishes)  # (N, slots, M, 6)
    distance[..., 5] = np.minimum(distance[..., 5], NUM_TURNS - distance[..., 5])
    asked = ~np.isnan(wishes)
    there = ~np.isnan(slots[:, :, None, 0])
    near = ((distance <= 0.6) | ~asked).all(-1) & there
    possible = ((distance <= 1.2 * (np.arange(6) > 1)) | ~asked).all(-1) & there
    truth = near.any(1)
    return truth, truth | ~possible.any(1)


NUM_FACTS = 4 * (len(_COLOURS) + len(_SHAPES)) + 2 * len(_SHAPES) + len(_COLOURS) * len(_SHAPES)


def facts(slots: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What frames show, as numbers that one linear layer could read off an embedding.

    Args:
        slots: (N, slots, 6) of `frame_slots`.

    Returns:
        (N, NUM_FACTS): for each colour and each shape 1, x, y and size (in [-1, 1]) if it is there and zeros if not;
        cosine and sine of each shape's turn; whether this colour has that shape. And which of these are well defined:
        with two red shapes there is no place of red.
    """
    num_frames, num_looks = len(slots), len(_COLOURS) + len(_SHAPES)
    looks = np.zeros((num_frames, num_looks, 4), np.float32)
    turns = np.zeros((num_frames, len(_SHAPES), 2), np.float32)
    pairs = np.zeros((num_frames, len(_COLOURS), len(_SHAPES)), np.float32)
    count = np.zeros((num_frames, num_looks, 1), np.int64)
    frames, which = np.nonzero(np.isfinite(slots[..., 0]))
    shown = slots[frames, which]  # (S, 6)
    colours, shapes = shown[:, 0].astype(int), shown[:, 1].astype(int)
    places, sizes = (shown[:, 2:4] + 0.5) / GRID_SIZE * 2 - 1, (shown[:, 4:5] + 0.5) / _SIZES * 2 - 1
    told = np.concatenate([np.ones_like(sizes), places, sizes], 1)  # (S, 4)
    for rows in (colours, len(_COLOURS) + shapes):
        looks[frames, rows] = told
        np.add.at(count, (frames, rows), 1)
    angles = shown[:, 5] / NUM_TURNS * 2 * np.pi
    turns[frames, shapes] = np.stack([np.cos(angles), np.sin(angles)], 1)
    pairs[frames, colours, shapes] = 1
    single = count < 2
    defined = (
        np.broadcast_to(single, looks.shape) | (np.arange(4) == 0),
        np.broadcast_to(single[:, len(_COLOURS) :], turns.shape),
        np.ones_like(pairs, bool),
    )
    values = np.concatenate([part.reshape(num_frames, -1) for part in (looks, turns, pairs)], 1)
    return values, np.concatenate([part.reshape(num_frames, -1) for part in defined], 1)


def texts_of_all_kinds(rng: np.random.Generator, count: int) -> Sequence[str]:
    """Random sentences of every kind, to learn which tokens occur at all."""
    slots = np.stack([rng.uniform(0, limit, (count, 1)) for limit in (8, 6, 20, 20, 8, 12)], -1).astype(np.float32)
    slots[..., :2] = np.floor(slots[..., :2])
    return make_captions(slots, count, rng).texts + make_sentences(count, rng).texts
