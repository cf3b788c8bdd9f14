"""A small world of features, made from a seed: enough to try a configuration or a loop without any file.

Each query is a random direction; its words point near it, and so do the clips inside its windows. Every eighth query is
not in its video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from momentdetr.datasets.records import MomentRecord, Saliency
from momentdetr.features.spec import FeatureSpec


@dataclass(frozen=True)
class GeneratedWorld:
    """Records with their features, as `MomentDataset` takes them."""

    records: tuple[MomentRecord, ...]
    videos: Mapping[str, Tensor]
    texts: Mapping[str, Tensor]


def generate(num_queries: int, spec: FeatureSpec, seed: int) -> GeneratedWorld:
    """Make `num_queries` queries, one a video.

    Args:
        num_queries: at least 1.
        spec: gives the vectors' lengths, the clip length and the greatest number of clips.
        seed: at least 1; the same seed makes the same world.
    """
    rng = np.random.default_rng(seed)
    video_dim = sum(stream.dim for stream in spec.video)
    # What a text means is the same in every world, or nothing learnt in one would help in another.
    to_video = np.random.default_rng(0).standard_normal((spec.text_dim, video_dim)) / np.sqrt(spec.text_dim)
    records, videos, texts = [], {}, {}
    for qid in range(num_queries):
        num_clips = int(rng.integers(max(spec.max_clips // 2, 4), max(spec.max_clips, 4) + 1))
        meaning = rng.standard_normal(spec.text_dim)
        clips = np.zeros(num_clips, dtype=bool)
        if qid % 8 != 7:
            start = int(rng.integers(0, num_clips - 2))
            clips[start : start + int(rng.integers(2, max(num_clips // 3, 3) + 1))] = True
        noise = rng.standard_normal((num_clips, video_dim))
        videos[f"video{qid}"] = torch.from_numpy(noise + 2 * clips[:, None] * (meaning @ to_video)).float()
        words = meaning + 0.3 * rng.standard_normal((int(rng.integers(3, 9)), spec.text_dim))
        texts[str(qid)] = torch.from_numpy(words).float()
        records.append(_record(qid, clips, spec.clip_length_s, rng))
    return GeneratedWorld(tuple(records), videos, texts)


def _record(qid: int, shown: np.ndarray, clip_length_s: float, rng: np.random.Generator) -> MomentRecord:
    inside = np.flatnonzero(shown)
    windows = ((float(inside[0]) * clip_length_s, float(inside[-1] + 1) * clip_length_s),) if len(inside) else ()
    scores = tuple(tuple(float(score) for score in rng.integers(1, 5, 3)) for _ in inside)
    return MomentRecord(
        qid=qid,
        query=f"generated query {qid}",
        video=f"video{qid}",
        duration_s=len(shown) * clip_length_s,
        windows_s=windows,
        saliency=Saliency(tuple(int(clip) for clip in inside), scores),
    )
