"""Writes what `momentdetr train configs/retrieval/demo.yaml` reads: annotations and features of many videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from momentdetr.demo.clip_training import IMAGE_SIZE
from momentdetr.demo.dataset import write_moments
from momentdetr.demo.footage import shoot
from momentdetr.demo.motion import EVENTS_FILE, clip_events
from momentdetr.demo.planning import MAX_CLIPS, ask_more, make_video
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
    first: int = 0,
    processes: int = 1,
    report: Callable[[str], None] = print,
) -> None:
    """Draw videos and encode them and their queries.

    Args:
        clip: folder of the tiny CLIP.
        output: gets train.jsonl, validation.jsonl, video.safetensors, text.safetensors, features.json (the feature
            specification) and events.safetensors (`motion.clip_events`).
        seed: of both splits.
        num_train: videos to learn from; every event in them is asked for.
        num_validation: videos to choose the best epoch by.
        first: number of the first video to learn from.
        processes: that draw and encode.
        report: called with a line now and then.
    """
    output.mkdir(parents=True, exist_ok=True)
    videos: dict[str, torch.Tensor] = {}
    scenes: dict[str, list[Scene]] = {"train": [], "validation": []}
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (clip,)) as pool:
        for split, indices in (("train", range(first, first + num_train)), ("validation", range(num_validation))):
            work = partial(_encode_video, seed, split)
            for index, features in zip(indices, pool.map(work, indices, chunksize=8), strict=True):
                scenes[split].append(make_video(seed, index, split))
                videos[scenes[split][-1].name] = torch.from_numpy(features)
                if len(videos) % 100 == 0:
                    report(f"{split}: {len(scenes[split])} of {len(indices)} videos")
    save_file(videos, output / "video.safetensors")
    events = {scene.name: torch.from_numpy(clip_events(scene)) for made in scenes.values() for scene in made}
    save_file(events, output / EVENTS_FILE)
    encoder = tiny_clip(clip)
    rng = np.random.default_rng([seed, first])
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


_ENCODER: list[OpenClipEncoder] = []
"""Of a worker process."""


def _begin(clip: Path) -> None:
    torch.set_num_threads(1)
    _ENCODER.append(tiny_clip(clip))


def _encode_video(seed: int, split: str, index: int) -> NDArray[np.float16]:
    """(T, C)."""
    frames = shoot(make_video(seed, index, split), IMAGE_SIZE)
    return _ENCODER[0].encode_frames(frames).half().numpy()
