"""Puts the trained models into the package, in half precision, with the baseline's settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.demo.baseline import Settings, search_settings, similarity, write_settings
from momentdetr.demo.scene import CLIP_LENGTH_S
from momentdetr.errors import BadInput
from momentdetr.retrieval import checkpoint
from momentdetr.search.loading import DEMO_FOLDER

MAX_BYTES = 12_000_000
NUM_BASELINE_VIDEOS = 200


def ship(clip: Path, retriever: Path, features: Path, folder: Path = DEMO_FOLDER) -> list[tuple[Path, int]]:
    """Write everything that the demo needs at run time.

    Args:
        clip: folder of the tiny CLIP.
        retriever: folder that `momentdetr train` wrote.
        features: folder that `write_features` wrote; the baseline is tuned on its training videos.
        folder: where to.

    Returns:
        Files with their sizes in bytes.

    Raises:
        BadInput: they are larger than the package may hold.
    """
    shutil.copytree(clip, folder / "clip", dirs_exist_ok=True)
    document = checkpoint.read_config(retriever)
    model, spec = checkpoint.load(retriever)
    checkpoint.save(folder / "retriever", document["model"], model, spec, about=document["about"], dtype=torch.float16)
    write_settings(folder / "baseline.json", *tune_baseline(clip, features))
    files = [(path, path.stat().st_size) for path in sorted(folder.rglob("*")) if path.is_file()]
    total = sum(size for _, size in files)
    if total > MAX_BYTES:
        raise BadInput(f"the demo's files have {total:,} bytes, expected at most {MAX_BYTES:,}; train smaller models")
    return files


def tune_baseline(clip: Path, features: Path) -> tuple[Settings, float]:
    """Grid search of the baseline's settings on training videos, see `baseline.search_settings`."""
    records = [
        record
        for record in read_qvhighlights(features / "train.jsonl", clip_length_s=CLIP_LENGTH_S)
        if record.windows_s
    ]
    names = list(dict.fromkeys(record.video for record in records))[:NUM_BASELINE_VIDEOS]
    records = [record for record in records if record.video in set(names)]
    videos, texts = load_file(features / "video.safetensors"), load_file(features / "text.safetensors")
    projection = load_file(clip / "open_clip_model.safetensors")["text_projection"].float()
    curves = [
        similarity(
            videos[record.video].float().numpy(),
            np.asarray(texts[str(record.qid)][-1].float() @ projection, np.float32),
        )
        for record in records
    ]
    return search_settings(records, curves)
