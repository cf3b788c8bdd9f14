"""The lesson in motion: labels that are true, and a projection that learns them."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from momentdetr.demo.motion import EVENTS_FILE, clip_events, labels_of, save, teach
from momentdetr.demo.vocabulary import COLOURS, MOTIONS, SHAPES
from momentdetr.demo.world import make_video
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.presets import build

SCENE = make_video(21, 0, "train")


def test_labels_say_what_happens_in_each_clip() -> None:
    labels = labels_of(clip_events(SCENE)).numpy()
    parts = np.split(labels, np.cumsum([len(COLOURS) * len(MOTIONS), len(SHAPES) * len(MOTIONS)]), 1)
    for clip in range(SCENE.num_clips):
        events = [event for event in SCENE.events if event.start <= clip < event.end]
        words = [
            {(event.colour, event.motion) for event in events},
            {(event.shape, event.motion) for event in events},
            {(event.colour, event.shape) for event in events},
        ]
        kinds = ((COLOURS, MOTIONS), (SHAPES, MOTIONS), (COLOURS, SHAPES))
        for part, pairs, (rows, columns) in zip(parts, words, kinds, strict=True):
            expected = np.array([[(row, column) in pairs for column in columns] for row in rows])
            assert np.array_equal(part[clip].reshape(expected.shape), expected)


def test_a_projection_learns_what_happens_and_a_retriever_takes_it_up(tmp_path: Path) -> None:
    """On features in which each colour shows where its shape is; guessing by frequency is beaten."""
    spec = FeatureSpec((Stream("tiny", 24, "made"),), Stream("text", 8, "made"), clip_length_s=0.5)
    videos, events = {}, {}
    for split, count in (("train", 40), ("validation", 5)):
        for index in range(count):
            scene = make_video(21, index, split)
            features = torch.full((scene.num_clips, 24), 0.01)
            for event in scene.events:
                for clip in range(event.start, event.end):
                    pose, row = event.pose_at(clip + 0.4), 3 * list(COLOURS).index(event.colour)
                    if event.visible_at(clip + 0.4):
                        features[clip, row : row + 3] = torch.tensor([1.0, pose.x, pose.y])
            videos[scene.name], events[scene.name] = features, torch.from_numpy(clip_events(scene))
    save_file(videos, tmp_path / "video.safetensors")
    save_file(events, tmp_path / EVENTS_FILE)
    (tmp_path / "features.json").write_text(json.dumps(spec.to_dict()))
    lines: list[str] = []
    projection = teach(tmp_path, width=32, context=1, steps=250, learning_rate=1e-2, report=lines.append)
    often = torch.cat([labels_of(value.numpy()) for value in events.values()]).mean(0)
    guessing = -(often.xlogy(often) + (1 - often).xlogy(1 - often)).sum()
    assert lines[-1].startswith("step 250: loss ")
    assert float(lines[-1].split()[3].rstrip(",")) < 0.8 * guessing
    save(projection, tmp_path / "initial.safetensors")
    sizes = {"video_dim": spec.video_dim, "text_dim": 8, "width": 32, "num_heads": 4, "input_context": 1}
    own = build({"preset": "qd_detr", "sizes": sizes}).state_dict()
    given = load_file(tmp_path / "initial.safetensors")
    assert {name: value.shape for name, value in given.items()} == {
        name: value.shape for name, value in own.items() if name.startswith("encoder.video_projection.")
    }
