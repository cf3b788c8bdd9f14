"""The moving-shapes world: the same for everyone, true to its drawing, and fair."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.demo.drawing import box_of, draw_frame, paint_background
from momentdetr.demo.footage import shoot
from momentdetr.demo.language import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS
from momentdetr.demo.planning import MAX_CLIPS, MIN_CLIPS, QUERIES_PER_VIDEO, SHORT, ask_more
from momentdetr.demo.scene import CLIP_LENGTH_S, FRAMES_PER_CLIP, Description, Event, Pose, Scene
from momentdetr.demo.truth import coco_document, frame_boxes, moment_rows
from momentdetr.demo.vocabulary import COLOURS, HELD_OUT, MOTIONS, POSSIBLE, SHAPES, TRAINABLE
from momentdetr.demo.world import draw, make_video, write_dataset
from momentdetr.features.pictures import fit

SCENES = [make_video(11, index) for index in range(60)]
TRAINING = [make_video(11, index, "train") for index in range(60)]


def _presence(scene: Scene) -> list[set[tuple[str, str, str]]]:
    """What happens in each clip, by a loop that knows nothing of windows."""
    return [{e.combination for e in scene.events if e.start <= clip < e.end} for clip in range(scene.num_clips)]


def test_a_video_is_a_function_of_its_seed_and_index() -> None:
    assert make_video(3, 4) == make_video(3, 4)
    assert make_video(3, 4) != make_video(3, 5)
    assert make_video(3, 4) != make_video(4, 4)
    first, again = (list(itertools.islice(draw(make_video(3, 4)), 12)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_no_test_video_is_a_training_video() -> None:
    test, train, validation = ([make_video(1, i, split).events for i in range(20)] for split in
                               ("test", "train", "validation"))  # fmt: skip
    assert all(a != b for a, b in itertools.product(test, train))
    assert all(a != b for a, b in itertools.product(train, validation))


def test_videos_keep_to_their_sizes() -> None:
    for scene in SCENES:
        assert MIN_CLIPS <= scene.num_clips <= MAX_CLIPS
        assert 3 <= len(scene.events) <= 8
        assert len(scene.queries) == 2 * QUERIES_PER_VIDEO
    assert {len(scene.events) for scene in SCENES} == {3, 4, 5, 6, 7, 8}


def test_windows_are_what_happens() -> None:
    for scene in SCENES + TRAINING:
        presence = _presence(scene)
        for query in scene.queries:
            inside = {clip for start, end in query.windows for clip in range(start, end)}
            assert inside == {
                clip for clip, happening in enumerate(presence) if any(map(query.description.fits, happening))
            }
            assert all(a[1] < b[0] for a, b in itertools.pairwise(query.windows))


def test_the_first_half_of_the_queries_is_in_the_video_and_the_second_is_not() -> None:
    for scene in SCENES + TRAINING:
        assert all(query.windows for query in scene.queries[:QUERIES_PER_VIDEO])
        assert not any(query.windows for query in scene.queries[QUERIES_PER_VIDEO:])


def test_a_third_of_the_queries_is_short_and_a_third_at_least_has_a_distractor() -> None:
    for scene in SCENES:
        present = scene.queries[:QUERIES_PER_VIDEO]
        short = [all(end - start < SHORT * scene.num_clips for start, end in query.windows) for query in present]
        long = [all(end - start >= SHORT * scene.num_clips for start, end in query.windows) for query in present]
        assert (sum(short), sum(long)) == (1, 2)
        shared = [[_num_shared(query.description, event) for event in scene.events] for query in present]
        assert any(2 in numbers for numbers in shared)


def _num_shared(description: Description, event: Event) -> int:
    return sum(
        [description.colour == event.colour, description.shape == event.shape, description.motion == event.motion]
    )


def test_held_out_combinations_are_asked_for_in_tests_and_never_in_training() -> None:
    for scene in TRAINING + [make_video(2, index, "validation") for index in range(30)]:
        asked = ask_more(scene, np.random.default_rng(0)).queries
        said = {(q.description.colour, q.description.shape, q.description.motion) for q in asked}
        assert not said & HELD_OUT
        assert not {event.combination for event in scene.events} & HELD_OUT
    tested = [
        (q.description.colour, q.description.shape, q.description.motion) in HELD_OUT
        for scene in SCENES
        for q in scene.queries[:QUERIES_PER_VIDEO]
    ]
    assert 0.2 < np.mean(tested) < 0.5


def test_every_pair_of_attributes_is_left_to_training() -> None:
    for first, second in itertools.combinations(range(3), 2):
        possible = {(c[first], c[second]) for c in POSSIBLE}
        assert {(c[first], c[second]) for c in TRAINABLE} == possible
    assert set(POSSIBLE) >= HELD_OUT
    assert len(HELD_OUT) == 40


def test_the_language_covers_the_vocabulary_without_ambiguity() -> None:
    assert (set(COLOUR_WORDS), set(SHAPE_WORDS), set(MOTION_WORDS)) == (set(COLOURS), set(SHAPES), set(MOTIONS))
    for words in (COLOUR_WORDS, SHAPE_WORDS):
        every = [word for options in words.values() for word in options]
        assert len(every) == len(set(every))
    assert len({pair for pairs in MOTION_WORDS.values() for pair in pairs}) == sum(map(len, MOTION_WORDS.values()))


def test_sentences_speak_of_their_description() -> None:
    for query in [query for scene in SCENES for query in scene.queries]:
        for wanted, words in ((query.description.colour, COLOUR_WORDS), (query.description.shape, SHAPE_WORDS)):
            assert wanted is None or any(word in query.text for word in words[wanted])
        assert any(word in query.text for pair in MOTION_WORDS[query.description.motion] for word in pair)


def test_shapes_stay_apart_and_in_the_picture() -> None:
    for scene in SCENES[:20]:
        for clip in range(scene.num_clips):
            there = [(e, e.pose_at(clip + 0.5)) for e in scene.events if e.start <= clip < e.end]
            for event, pose in there:
                left, top, right, bottom = box_of(event.shape, pose)
                assert min(left, top) >= 0
                assert max(right, bottom) <= 1
            for (_, a), (_, b) in itertools.combinations(there, 2):
                assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius - 1e-6


@pytest.mark.parametrize("index", range(6))
def test_boxes_are_where_the_pixels_change(index: int) -> None:
    scene = SCENES[index]
    wall = paint_background(scene.background)
    empty = (wall * 255 + 0.5).astype(np.uint8).astype(int)
    for frame in range(0, scene.num_frames, 7):
        picture = draw_frame(scene, frame / FRAMES_PER_CLIP, wall).astype(int)
        changed = np.abs(picture - empty).max(-1) > 12
        boxes = [box for _, box in frame_boxes(scene, frame)]
        covered = np.zeros_like(changed)
        for left, top, width, height in boxes:
            rows = slice(max(round(top) - 1, 0), round(top + height) + 1)
            columns = slice(max(round(left) - 1, 0), round(left + width) + 1)
            ys, xs = np.nonzero(changed[rows, columns])
            measured = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            expected = np.array([left, top, left + width, top + height]) - [columns.start, rows.start] * 2
            assert np.abs(measured - expected).max() < 1.1, (frame, measured, expected)
            covered[rows, columns] = True
        assert not (changed & ~covered).any()


def test_a_blinking_shape_shows_every_other_clip() -> None:
    event = Event(0, "red", "disc", "blink", 4, 9, Pose(0.5, 0.5, 0.1, 0), (0, 0), 1, 0, 1, (1, 0, 0))
    assert [event.visible_at(clip + 0.4) for clip in range(3, 10)] == [False, True, False, True, False, True, False]


def test_motions_do_what_they_are_called() -> None:
    seen = set()
    for event in [event for scene in SCENES for event in scene.events]:
        a, b = event.pose, event.pose_at(event.end)
        moved = {
            "left": b.x < a.x, "right": b.x > a.x, "up": b.y < a.y, "down": b.y > a.y,
            "grow": b.radius > a.radius, "shrink": b.radius < a.radius, "spin": b.angle != a.angle,
        }  # fmt: skip
        assert {name for name, does in moved.items() if does} == {event.motion} - {"still", "blink"}
        seen.add(event.motion)
    assert seen == set(MOTIONS)


def test_truth_is_read_back_as_written(tmp_path: Path) -> None:
    scene = SCENES[0]
    rows = moment_rows(scene, 40)
    path = tmp_path / "moments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_qvhighlights(path, clip_length_s=CLIP_LENGTH_S)
    assert [record.qid for record in records] == list(range(40, 46))
    for record, query in zip(records, scene.queries, strict=True):
        assert record.windows_s == tuple((start * 0.5, end * 0.5) for start, end in query.windows)
        assert record.saliency is not None
        assert list(record.saliency.clips) == [clip for start, end in query.windows for clip in range(start, end)]
        assert all(len(row) == 3 and 1 <= row[0] <= 4 for row in record.saliency.scores)


def test_coco_document_names_every_visible_shape() -> None:
    scene = SCENES[1]
    document = coco_document([scene])
    assert len(document["images"]) == scene.num_frames
    visible = sum(e.visible_at(f / FRAMES_PER_CLIP) for e in scene.events for f in range(scene.num_frames))
    assert len(document["annotations"]) == visible
    assert {a["category_id"] for a in document["annotations"]} <= {c["id"] for c in document["categories"]}


def test_a_data_set_is_written_and_decodes_to_what_was_drawn(tmp_path: Path) -> None:
    from momentdetr.features.video import read_clips

    scenes = write_dataset(tmp_path, seed=5, num_videos=2)
    assert len((tmp_path / "moments.jsonl").read_text().splitlines()) == 12
    assert json.loads((tmp_path / "boxes.json").read_text())["categories"][0]["name"] == "disc"
    for scene in scenes:
        path = tmp_path / "videos" / f"{scene.name}.mp4"
        decoded = np.concatenate([batch.frames for batch in read_clips(path, clip_length_s=CLIP_LENGTH_S)])
        drawn = np.stack(list(draw(scene))[FRAMES_PER_CLIP // 2 :: FRAMES_PER_CLIP])
        assert decoded.shape == drawn.shape
        # A clip that is off by one would differ by a whole shape somewhere; H.264 alone stays close.
        assert np.abs(decoded.astype(int) - drawn).mean((1, 2, 3)).max() < 3
        # So do the frames that the models learn from, which no codec of videos has seen.
        seen = np.stack([fit(frame, 96) for frame in decoded])
        assert np.abs(seen.astype(int) - shoot(scene, 96)).mean((1, 2, 3)).max() < 3
