"""Features of many videos and queries, read from where they lie into memory.

Either one .safetensors file that maps names to (length, dim), or, as the official data sets are laid out, one folder
per stream: `VIDEO.npz["features"]`, `qidQUERY.npz["last_hidden_state"]`, or the same as plain .npy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from momentdetr.errors import BadInput


def read_videos(sources: Sequence[str | Path], names: Sequence[str]) -> dict[str, Tensor]:
    """Raw streams of each video, concatenated.

    Args:
        sources: one file or folder per stream, in the order in which they are concatenated.
        names: the videos that are wanted; one that is not there is left out.

    Returns:
        name -> (T, sum of dims) float32; streams are cut to the shortest one, as in the official loaders.

    Raises:
        BadInput: a source is missing or holds a file that cannot be read.
    """
    streams = [_read(Path(source), names, ("{}",), "features") for source in sources]
    shared = [name for name in names if all(name in stream for stream in streams)]
    videos = {}
    for name in shared:
        parts = [stream[name] for stream in streams]
        shortest = min(len(part) for part in parts)
        videos[name] = torch.cat([part[:shortest] for part in parts], -1)
    return videos


def read_texts(source: str | Path, qids: Sequence[str]) -> dict[str, Tensor]:
    """Raw token states of each query: query id as text -> (W, dim) float32. Raises as `read_videos`."""
    return _read(Path(source), qids, ("qid{}", "{}"), "last_hidden_state")


def _read(source: Path, names: Sequence[str], patterns: Sequence[str], key: str) -> dict[str, Tensor]:
    if source.is_dir():
        found = {name: _find(source, name, patterns) for name in dict.fromkeys(names)}
        return {name: _array(path, key) for name, path in found.items() if path is not None}
    if source.suffix != ".safetensors" or not source.is_file():
        raise BadInput(f"{source}: expected a .safetensors file, or a folder of .npz or .npy files")
    try:
        with safe_open(source, framework="pt") as file:
            wanted = set(names) & set(file.keys())
            return {name: file.get_tensor(name).float() for name in wanted}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{source}: cannot be read ({error}); extract the features again") from error


def _find(folder: Path, name: str, patterns: Sequence[str]) -> Path | None:
    candidates = (folder / (pattern.format(name) + ending) for pattern in patterns for ending in (".npz", ".npy"))
    return next((path for path in candidates if path.is_file()), None)


def _array(path: Path, key: str) -> Tensor:
    try:
        loaded = np.load(path, allow_pickle=False)
        array = loaded[key] if path.suffix == ".npz" else loaded
        return torch.from_numpy(np.asarray(array, dtype=np.float32))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadInput(f"{path}: holds no array {key!r} of numbers ({error}); extract the features again") from error
