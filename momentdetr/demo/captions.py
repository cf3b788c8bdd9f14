"""What can be said of a single frame, and whether it is true: the texts that the tiny CLIP learns from.

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
        meanings: (M, 3), numbers of colour, shape and motion, -1 where a sentence leaves it open; None for captions.
    """

    texts: list[str]
    truth: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    meanings: NDArray[np.int64] | None = None


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


def clip_events(scene: Scene) -> NDArray[np.int64]:
    """What happens in each clip: (T, slots, 3), colour, shape and motion as numbers, -1 where nothing does."""
    happening = np.full((scene.num_clips, MAX_AT_ONCE, 3), -1, np.int64)
    for clip in range(scene.num_clips):
        for slot, event in enumerate(event for event in scene.events if event.start <= clip < event.end):
            happening[clip, slot] = (
                _COLOURS.index(event.colour),
                _SHAPES.index(event.shape),
                _MOTIONS.index(event.motion),
            )
    return happening


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


def make_sentences(happening: NDArray[np.int64], num_sentences: int, rng: np.random.Generator) -> Captions:
    """Say what happens; a third of the sentences have one of colour, shape and motion changed.

    Args:
        happening: (N, slots, 3) of `clip_events`.
        num_sentences: M.
    """
    events = happening[happening[..., 0] >= 0]
    wishes = events[rng.integers(len(events), size=num_sentences)]
    for row in np.flatnonzero(rng.random(num_sentences) < 0.35):
        column = rng.choice(3, p=(0.2, 0.2, 0.6))
        wishes[row, column] = rng.integers((len(_COLOURS), len(_SHAPES), len(_MOTIONS))[column])
    open_field = np.where(rng.random(num_sentences) < 0.2, rng.integers(2, size=num_sentences), -1)
    wishes = np.where(np.arange(3) == open_field[:, None], -1, wishes)
    texts = [
        sentence(
            Description(
                None if colour < 0 else _COLOURS[colour], None if shape < 0 else _SHAPES[shape], _MOTIONS[motion]
            ),
            rng,
        )
        for colour, shape, motion in wishes.tolist()
    ]
    same = (happening[:, :, None] == wishes) | (wishes < 0)  # (N, slots, M, 3)
    truth = (same.all(-1) & (happening[:, :, None, 0] >= 0)).any(1)
    return Captions(texts, truth, np.ones_like(truth), wishes)


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


_BINS = 24
SPELLED = 2 * _BINS * (len(_COLOURS) + len(_SHAPES)) + len(_COLOURS) * len(_SHAPES) + _SIZES * len(_COLOURS)
SPELLED += NUM_TURNS * len(_SHAPES)
"""Length of what `spell` gives."""


def spell(slots: NDArray[np.float32]) -> NDArray[np.float32]:
    """Write out what frames show, bin by bin; between two bins both get their share.

    Args:
        slots: (N, slots, 6) of `frame_slots`.

    Returns:
        (N, SPELLED) in [0, 1]: for each colour and each shape where it is across and down, which colour has which
        shape, the size of each colour, the turn of each shape.
    """
    num_frames = len(slots)
    across = np.zeros((num_frames, 2, len(_COLOURS) + len(_SHAPES), _BINS), np.float32)
    pairs = np.zeros((num_frames, len(_COLOURS), len(_SHAPES)), np.float32)
    sizes = np.zeros((num_frames, len(_COLOURS), _SIZES), np.float32)
    turns = np.zeros((num_frames, len(_SHAPES), NUM_TURNS), np.float32)
    for frame, slot in np.argwhere(~np.isnan(slots[..., 0])):
        colour, shape, *place, size, turn = slots[frame, slot].tolist()
        colour, shape = int(colour), int(shape)
        pairs[frame, colour, shape] = 1
        for axis, value in enumerate(place):
            for row in (colour, len(_COLOURS) + shape):
                _share(across[frame, axis, row], (value + 0.5) / len(_GRID) * _BINS - 0.5)
        _share(sizes[frame, colour], size)
        if shape != 0:
            _share(turns[frame, shape], turn, wraps=True)
    return np.concatenate([part.reshape(num_frames, -1) for part in (across, pairs, sizes, turns)], 1)


def _share(bins: NDArray[np.float32], value: float, wraps: bool = False) -> None:
    """Give the two bins around a value their shares, in place."""
    low = int(np.floor(value))
    for bin_, share in ((low, low + 1 - value), (low + 1, value - low)):
        index = bin_ % len(bins) if wraps else min(max(bin_, 0), len(bins) - 1)
        bins[index] = max(bins[index], share)


def texts_of_all_kinds(rng: np.random.Generator, count: int) -> Sequence[str]:
    """Random sentences of every kind, to learn which tokens occur at all."""
    slots = np.stack([rng.uniform(0, limit, (count, 1)) for limit in (8, 6, 20, 20, 8, 12)], -1).astype(np.float32)
    slots[..., :2] = np.floor(slots[..., :2])
    happening = np.stack([rng.integers(limit, size=(count, 1)) for limit in (8, 6, 9)], -1)
    return make_captions(slots, count, rng).texts + make_sentences(happening, count, rng).texts
