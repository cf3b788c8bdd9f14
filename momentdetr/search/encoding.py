"""From a video file to features, once: what was encoded before comes from the store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentdetr.features.encoder import FeatureEncoder
from momentdetr.features.spec import FeatureSpec
from momentdetr.features.store import EncodedFeatures, FeatureStore, content_hash, feature_key

Progress = Callable[[int, int], None]
"""Called with the steps done and, as far as can be told, the steps in all."""


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """A video as features.

    Args:
        name: what moments and submissions call it.
        features: (T, C) float32, the raw streams concatenated, one row a clip.
        clip_length_s: seconds of video per row.
        duration_s: seconds.
        spec: how the features were made.
        path: the file, where it is known.
        complete: False when the file is damaged, and what could be read of it was encoded.
    """

    name: str
    features: Tensor
    clip_length_s: float
    duration_s: float
    spec: FeatureSpec
    path: Path | None = None
    complete: bool = True


def encode_video(
    path: Path,
    encoder: FeatureEncoder,
    *,
    store: FeatureStore | None = None,
    progress: Progress | None = None,
    decoder: str = "auto",
    salvage: bool = False,
) -> EncodedVideo:
    """Turn a video file into features, a few frames at a time: only features and one batch of frames are in memory.

    Args:
        path: any video file.
        encoder: makes the features.
        store: is asked first and given what was made, unless it is incomplete; None: neither.
        progress: called with clips done and expected.
        decoder: "auto", "pyav" or "decord".
        salvage: take the readable part of a damaged file.

    Raises:
        BadInput: no such decoder.
        BadVideo: the file is missing, damaged, unsupported or has no video.
        OutOfResources: it exceeds the limits on size, length or memory.
    """
    from momentdetr.features.video import check_decoder, probe, read_clips

    check_decoder(decoder)  # whether or not the features are kept
    spec = encoder.spec
    key = None if store is None else _key(path, encoder)
    kept = store.get(key) if store is not None and key is not None else None
    if kept is not None:
        _report(progress, len(kept.features), len(kept.features))
        return EncodedVideo(path.stem, kept.features, spec.clip_length_s, kept.duration_s, spec, path)
    info = probe(path, decoder=decoder)
    expected = max(round(info.duration_s / spec.clip_length_s), 1)
    parts: list[Tensor] = []
    done, complete = 0, True
    batches = read_clips(path, clip_length_s=spec.clip_length_s, decoder=decoder, salvage=salvage, **_picture(spec))
    for batch in batches:
        parts.append(encoder.encode_frames(batch.frames))
        done += len(batch.frames)
        complete = complete and batch.complete
        _report(progress, done, max(expected, done))
    features = torch.cat(parts)
    _report(progress, done, done)
    if complete and store is not None and key is not None:
        store.put(key, EncodedFeatures(features, info.duration_s, spec.clip_length_s, spec))
    return EncodedVideo(path.stem, features, spec.clip_length_s, info.duration_s, spec, path, complete)


def _key(path: Path, encoder: FeatureEncoder) -> str | None:
    """Where the store keeps this video's features.

    None when the weights have no digest to tell them by, and for what is no file: a pipe must not be waited for.
    """
    if any(stream.weights_sha256 is None for stream in encoder.spec.video) or not os.path.isfile(path):
        return None
    return feature_key(content_hash(path), encoder.spec, getattr(encoder, "dtype", "float32"))


def _picture(spec: FeatureSpec) -> dict[str, Any]:
    """Frames are resized and cropped where they are decoded, so that large ones never leave that process."""
    preprocessing = spec.video[0].preprocessing
    if preprocessing is None:
        return {}
    return {"image_size": preprocessing.image_size, "interpolation": preprocessing.interpolation}


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
