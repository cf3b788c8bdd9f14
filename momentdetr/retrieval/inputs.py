"""From raw feature vectors to what a model sees: the one path that training and search share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.types import VideoText

_EPS = 1e-5  # the official loaders divide by norm + 1e-5


def normalize(features: Tensor, dims: Sequence[int], how: str) -> Tensor:
    """Scale each stream of concatenated features (..., sum of dims) to unit length, or leave them ("none").

    Raises:
        BadInput: the last axis is not the sum of `dims`, or `how` is unknown.
    """
    if features.shape[-1] != sum(dims):
        raise BadInput(f"features have {features.shape[-1]} numbers a vector, the model expects {list(dims)}")
    if how == "none":
        return features
    if how != "l2":
        raise BadInput(f"unknown normalisation {how!r}, expected 'l2' or 'none'")
    return torch.cat([part / (part.norm(dim=-1, keepdim=True) + _EPS) for part in features.split(list(dims), -1)], -1)


def temporal_endpoints(num_clips: int) -> Tensor:
    """Start and end of each clip as fractions of the window: (T, 2)."""
    edges = torch.arange(num_clips + 1, dtype=torch.float32) / num_clips
    return torch.stack([edges[:-1], edges[1:]], -1)


def video_input(features: Tensor, spec: FeatureSpec) -> Tensor:
    """Raw concatenated streams (T, sum of dims) to the model's clip vectors (T, spec.video_dim)."""
    dims = [stream.dim for stream in spec.video]
    clips = normalize(features.float(), dims, spec.normalize)
    if spec.tef:
        clips = torch.cat([clips, temporal_endpoints(len(clips)).to(clips.device)], -1)
    return clips


def text_input(tokens: Tensor, spec: FeatureSpec) -> Tensor:
    """Raw token states (W, dim) to the model's, at most `spec.max_words` of them."""
    return normalize(tokens[: spec.max_words].float(), [spec.text.dim], spec.normalize)


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack (n_i, C) with zeros behind -> (B, max n, C) and mask (B, max n), True where a row is real."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).to(padded.device)


def collate(video: Sequence[Tensor], text: Sequence[Tensor], spec: FeatureSpec) -> VideoText:
    """Normalise, add temporal endpoints, truncate words, pad.

    Args:
        video: per sample (T, sum of stream dims), raw.
        text: per sample (W, dim), raw token states.
        spec: what the model was (or will be) trained on.

    Raises:
        BadInput: an empty or non-finite sample, or vectors of another length than the specification says.
    """
    if not video or len(video) != len(text):
        raise BadInput(f"need as many videos as texts and at least one, got {len(video)} and {len(text)}")
    for index, (clips, tokens) in enumerate(zip(video, text, strict=True)):
        for name, rows in (("video", clips), ("text", tokens)):
            if rows.dim() != 2 or not len(rows):
                raise BadInput(
                    f"{name} features of sample {index} have shape {tuple(rows.shape)}, expected (n > 0, dim)"
                )
            if not rows.isfinite().all():
                raise BadInput(f"{name} features of sample {index} hold NaN or infinity; extract them again")
    clips, video_mask = pad([video_input(rows, spec) for rows in video])
    tokens, text_mask = pad([text_input(rows, spec) for rows in text])
    return VideoText(clips, video_mask, tokens, text_mask)
