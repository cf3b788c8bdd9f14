"""Writes what `momentdetr train configs/retrieval/demo.yaml` reads: annotations and features of many videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from momentdetr.demo.dataset import write_moments
from momentdetr.demo.footage import shoot_all
from momentdetr.demo.planning import MAX_CLIPS, ask_more
from momentdetr.demo.scene import CLIP_LENGTH_S, Scene
from momentdetr.features.clip import OpenClipEncoder

MAX_WORDS = 32


def tiny_clip(folder: Path) -> OpenClipEncoder:
    """The tiny CLIP in a folder, as the demo's retriever is fed by it."""
    return OpenClipEncoder.create(folder, clip_length_s=CLIP_LENGTH_S, max_clips=MAX_CLIPS, max_words=MAX_WORDS)


def write_features(
    clip: Path,
    output: Path,
    *,
    seed: int,
    num_train: int,
    num_validation: int,
    processes: int = 1,
    report: Callable[[str], None] = print,
) -> None:
    """Draw videos and encode them and their queries.

    Args:
        clip: folder of the tiny CLIP.
        output: gets train.jsonl, validation.jsonl, video.safetensors, text.safetensors and features.json (the feature
            specification).
        seed: of both splits.
        num_train: videos to learn from; every event in them is asked for.
        num_validation: videos to choose the best epoch by.
        processes: that draw and decode.
        report: called with a line now and then.
    """
    encoder = tiny_clip(clip)
    size = encoder.spec.video[0].preprocessing.image_size  # type: ignore[union-attr] # a tower has preprocessing
    output.mkdir(parents=True, exist_ok=True)
    videos: dict[str, torch.Tensor] = {}
    scenes: dict[str, list[Scene]] = {"train": [], "validation": []}
    for split, count in (("train", num_train), ("validation", num_validation)):
        for scene, frames in shoot_all(seed, range(count), split, size, processes):
            videos[scene.name] = encoder.encode_frames(frames).half()
            scenes[split].append(scene)
            if len(videos) % 100 == 0:
                report(f"{split}: {len(scenes[split])} of {count} videos")
    save_file(videos, output / "video.safetensors")
    rng = np.random.default_rng(seed)
    scenes["train"] = [ask_more(scene, rng) for scene in scenes["train"]]
    first_qid = 0
    texts: dict[str, torch.Tensor] = {}
    for split, made in scenes.items():
        first_qid = write_moments(made, output / f"{split}.jsonl", first_qid)
        queries = [query.text for scene in made for query in scene.queries]
        states = encoder.encode_text(queries)
        texts |= {str(len(texts) + number): state.half() for number, state in enumerate(states)}
    save_file(texts, output / "text.safetensors")
    (output / "features.json").write_text(json.dumps(encoder.spec.to_dict(), indent=2) + "\n", encoding="utf-8")
