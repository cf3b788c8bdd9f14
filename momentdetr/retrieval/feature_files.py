"""Features of all videos and queries of a data set, read into memory: from two .safetensors files, or as published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from momentdetr.errors import BadInput
from momentdetr.features.layouts import find_text_file, find_video_files, read_text_features, read_video_features
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
    faults: list[str] = []
    clips = _each(videos, lambda name: _video(root, layout, name, spec), faults)
    words = _each(qids, lambda qid: _text(root, layout, qid, spec), faults)
    _refuse(faults)
    return clips, words


class LazyFeatures(Mapping[str, Tensor]):
    """Features by name that are read from their files each time they are asked for; for sets that fill no memory.

    Args:
        names: that may be asked for.
        read: reads the features of one name.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_published(
    root: str | Path, layout: str, videos: Iterable[str], qids: Iterable[str], spec: FeatureSpec
) -> tuple[LazyFeatures, LazyFeatures]:
    """As `read_published`, but each file is read, and checked, when it is asked for.

    Raises:
        BadInput: names every file that is missing. What is in the others shows when they are read.
    """
    videos, qids, faults = dict.fromkeys(videos), dict.fromkeys(qids), []
    for names, find in ((videos, find_video_files), (qids, find_text_file)):
        for name in names:
            try:
                find(root, layout, name)
            except BadInput as error:
                faults.append(str(error))
    _refuse(faults)
    return (
        LazyFeatures(videos, lambda name: _video(root, layout, name, spec)),
        LazyFeatures(qids, lambda qid: _text(root, layout, qid, spec)),
    )


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        shown = "\n  ".join(faults[:50]) + (f"\n  and {len(faults) - 50} more" if len(faults) > 50 else "")
        raise BadInput(f"{len(faults)} features cannot be used:\n  {shown}")


def _video(root: str | Path, layout: str, name: str, spec: FeatureSpec) -> Tensor:
    streams = read_video_features(root, layout, name).streams
    found, expected = [stream.shape[1] for stream in streams], [stream.dim for stream in spec.video]
    if found != expected:
        names = ", ".join(stream.name for stream in spec.video)
        raise BadInput(
            f"{root}: streams of {name} have vectors of {found} numbers, the specification says {expected} ({names})"
        )
    return torch.cat(streams, 1)


def _text(root: str | Path, layout: str, qid: str, spec: FeatureSpec) -> Tensor:
    words = read_text_features(root, layout, qid)
    if words.shape[1] != spec.text_dim:
        raise BadInput(
            f"{root}: query {qid} has vectors of {words.shape[1]} numbers, the specification says {spec.text_dim}"
        )
    return words


def _each(names: Iterable[str], read: Callable[[str], Tensor], faults: list[str]) -> dict[str, Tensor]:
    tensors = {}
    for name in dict.fromkeys(names):
        try:
            tensors[name] = read(name)
        except BadInput as error:
            faults.append(str(error))
    return tensors
