"""A model folder with random weights, as training writes it, and its encoder: seconds to make, real to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from momentdetr.features.clip import OpenClipEncoder
from momentdetr.retrieval.checkpoint import save
from momentdetr.retrieval.presets import build

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
CLIP_LENGTH_S = 0.5
MAX_CLIPS = 20


def write(folder: Path, seed: int = 0, max_clips: int = MAX_CLIPS) -> Path:
    """Write FOLDER/clip and FOLDER/retriever; returns the latter."""
    torch.manual_seed(seed)
    clip = folder / "clip"
    clip.mkdir(parents=True)
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": PREPROCESS}), "utf-8")
    state = {name: value.contiguous() for name, value in open_clip.CLIP(**CLIP).state_dict().items()}
    save_file(state, clip / "open_clip_model.safetensors")
    spec = OpenClipEncoder.create(clip, clip_length_s=CLIP_LENGTH_S, max_clips=max_clips).spec
    sizes = {"video_dim": spec.video_dim, "text_dim": spec.text_dim, "width": 32, "num_heads": 2, "feed_forward": 32}
    config = {"preset": "qd_detr", "sizes": sizes}
    return save(folder / "retriever", config, build(config), spec, about={"knows": "nothing: its weights are random"})
