"""Features of all videos and queries of a data set, read into memory: from two .safetensors files, or as published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from momentdetr.errors import BadInput
from momentdetr.features.layouts import read_text_features, read_video_features
from momentdetr.features.spec import FeatureSpec


def read_tensors(path: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors by name from a .safetensors file; those that are not there are left out.

    Raises:
        BadInput: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            return {name: file.get_tensor(name).float() for name in dict.fromkeys(names) if name in there}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: is no .safetensors file that can be read ({error}); extract the features") from error


def read_published(
    root: str | Path, layout: str, videos: Iterable[str], qids: Iterable[str], spec: FeatureSpec
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read features from the folders in which they are published (see `features.layouts.LAYOUTS`).

    Returns:
        video -> (T, sum of dims), raw streams concatenated, and query id -> (W, dim).

    Raises:
        BadInput: names everything that is missing, damaged or of another length of vector than the specification says.
    """
    dims = [stream.dim for stream in spec.video]

    def video(name: str) -> Tensor:
        streams = read_video_features(root, layout, name).streams
        found = [stream.shape[1] for stream in streams]
        if found != dims:
            raise BadInput(f"{root}: streams of {name} have vectors of {found} numbers, the specification says {dims}")
        return torch.cat(streams, 1)

    faults: list[str] = []
    clips = _each(videos, video, faults)
    words = _each(qids, lambda qid: read_text_features(root, layout, qid), faults)
    if faults:
        shown = "\n  ".join(faults[:50]) + (f"\n  and {len(faults) - 50} more" if len(faults) > 50 else "")
        raise BadInput(f"{len(faults)} features cannot be used:\n  {shown}")
    return clips, words


def _each(names: Iterable[str], read: Callable[[str], Tensor], faults: list[str]) -> dict[str, Tensor]:
    tensors = {}
    for name in dict.fromkeys(names):
        try:
            tensors[name] = read(name)
        except BadInput as error:
            faults.append(str(error))
    return tensors
