"""Captions are true of exactly the frames that show what they say."""

import re

import numpy as np

from momentdetr.demo.captions import (
    NUM_FACTS,
    facts,
    frame_slots,
    make_captions,
    make_sentences,
)
from momentdetr.demo.language import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS
from momentdetr.demo.vocabulary import COLOURS, MOTIONS, SHAPES
from momentdetr.demo.world import make_video

SCENES = [make_video(21, index, "train") for index in range(3)]
SLOTS = np.concatenate([frame_slots(scene) for scene in SCENES])


def _named(text: str, words: dict[str, tuple[str, ...]]) -> str | None:
    found = [name for name, options in words.items() if any(re.search(rf"\b{word}\b", text) for word in options)]
    return found[0] if found else None


def test_slots_are_what_the_scene_shows() -> None:
    scene = SCENES[0]
    for clip, slots in enumerate(frame_slots(scene)):
        shown = [event for event in scene.events if event.visible_at(clip + 0.4)]
        assert np.isfinite(slots[:, 0]).sum() == len(shown)
        for slot, event in zip(slots, shown, strict=False):
            pose = event.pose_at(clip + 0.4)
            assert (list(COLOURS)[int(slot[0])], list(SHAPES)[int(slot[1])]) == (event.colour, event.shape)
            assert np.allclose((slot[2:4] + 0.5) / 20, (pose.x, pose.y), atol=1e-5)


def test_captions_of_looks_and_places_are_true_where_they_should_be() -> None:
    captions = make_captions(SLOTS, 200, np.random.default_rng(0))
    assert 0.02 < captions.truth.mean() < 0.3
    assert captions.clear.mean() > 0.95
    for number, text in enumerate(captions.texts):
        colour, shape = _named(text, COLOUR_WORDS), _named(text, SHAPE_WORDS)
        column = re.search(r"column (\w)", text)
        place = None if column is None else (ord(column[1]) - ord("a"))
        loose = np.zeros(len(SLOTS), bool)
        for slot in range(SLOTS.shape[1]):
            row = SLOTS[:, slot]
            fits = np.isfinite(row[:, 0])
            if colour is not None:
                fits &= row[:, 0] == list(COLOURS).index(colour)
            if shape is not None:
                fits &= row[:, 1] == list(SHAPES).index(shape)
            if place is not None:
                fits &= np.abs(row[:, 2] - place) <= 1.2
            loose |= fits
        assert not (captions.truth[:, number] & ~loose).any(), text
        if "row" not in text and "size" not in text and "turned" not in text and place is None:
            assert np.array_equal(captions.truth[:, number], loose), text


def test_sentences_mean_what_they_say() -> None:
    sentences = make_sentences(200, np.random.default_rng(1))
    motions = {name: tuple(word for pair in pairs for word in pair) for name, pairs in MOTION_WORDS.items()}
    kinds = ((list(COLOURS), COLOUR_WORDS), (list(SHAPES), SHAPE_WORDS), (list(MOTIONS), motions))
    for text, meaning in zip(sentences.texts, sentences.meanings.tolist(), strict=True):
        for number, (names, words) in zip(meaning, kinds, strict=True):
            assert _named(text, words) == (None if number < 0 else names[number]), text
    assert (sentences.meanings[:, 2] >= 0).all()
    assert 0.1 < (sentences.meanings < 0).any(1).mean() < 0.3


def test_facts_are_read_back_from_their_numbers() -> None:
    values, defined = facts(SLOTS)
    assert values.shape == defined.shape == (len(SLOTS), NUM_FACTS)
    looks = values[:, : 4 * (len(COLOURS) + len(SHAPES))].reshape(len(SLOTS), -1, 4)
    for slots, look, is_defined in zip(SLOTS, looks, defined, strict=True):
        shown = slots[np.isfinite(slots[:, 0])]
        assert look[: len(COLOURS), 0].sum() == len(set(shown[:, 0]))
        for colour, _, x, y, *_ in shown:
            place = 4 * int(colour) + 1
            assert is_defined[place] == (np.sum(shown[:, 0] == colour) == 1)
            if is_defined[place]:
                assert np.allclose((look[int(colour), 1:3] + 1) / 2, [(x + 0.5) / 20, (y + 0.5) / 20], atol=1e-6)
    empty = np.isnan(SLOTS[..., 0]).all(1)
    assert not values[empty].any()
