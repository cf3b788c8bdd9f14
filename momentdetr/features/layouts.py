"""Features that others extracted, read from the folders in which they are published, without running pickle.

The published sets keep one file a video and stream, and one a query: .npz, .npy, or .pt with one tensor.
"""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from momentdetr.errors import BadInput

MAX_FILE_BYTES = 512 * 1024**2

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Layout:
    """Where a published feature set keeps its files, below its root folder.

    Args:
        video: file patterns of each video stream, in the order in which the published models concatenate them. A stream
            of several patterns is concatenated before it is normalised. "{vid}" is the video's name.
        text: file pattern of a query, with "{qid}", or "{video}" and "{number}" where a query is named VIDEO_NUMBER.
        text_key: name of the token states in that file.
        flatten: rows have several axes (layers and patches of a network), which become one.
    """

    video: tuple[tuple[str, ...], ...]
    text: str
    text_key: str = "last_hidden_state"
    flatten: bool = False


def _streams(*patterns: str) -> tuple[tuple[str, ...], ...]:
    return tuple((pattern,) for pattern in patterns)


# Token states of the sets; `pooler_output` beside them is one vector a query. SlowFast stands before CLIP, as in the
# official code; Lighthouse's checkpoints want CLIP first, which converting them permutes.
_MOMENT_DETR = _streams("slowfast_features/{vid}", "clip_features/{vid}")
_LIGHTHOUSE = _streams("slowfast/{vid}", "clip/{vid}")
LAYOUTS: dict[str, Layout] = {
    # moment_detr_features of QVHighlights, which QD-DETR and its followers read; CG-DETR's Charades-STA is the same.
    "moment_detr": Layout(_MOMENT_DETR, "clip_text_features/qid{qid}"),
    "moment_detr_clip": Layout(_streams("clip_features/{vid}"), "clip_text_features/qid{qid}"),
    "moment_detr_pann": Layout((*_MOMENT_DETR, ("pann_features/{vid}",)), "clip_text_features/qid{qid}"),
    "moment_detr_asr": Layout(_MOMENT_DETR, "clip_sub_features/{video}/{number}"),
    "cg_detr_tacos": Layout(_MOMENT_DETR, "clip_text_features/{qid}"),
    # One folder a data set: features/qvhighlight, features/charades, ...
    "lighthouse": Layout(_LIGHTHOUSE, "clip_text/qid{qid}"),
    "lighthouse_clip": Layout(_streams("clip/{vid}"), "clip_text/qid{qid}"),
    "lighthouse_pann": Layout((*_LIGHTHOUSE, ("pann/{vid}",)), "clip_text/qid{qid}"),
    "lighthouse_asr": Layout(_LIGHTHOUSE, "clip_text_subs_train/{video}/{number}"),
    "lighthouse_tacos": Layout(_LIGHTHOUSE, "clip_text/{qid}"),
    "lighthouse_tacos_clip": Layout(_streams("clip/{vid}"), "clip_text/{qid}"),
    "lighthouse_tvsum": Layout((("i3d/{vid}_rgb", "i3d/{vid}_opt"),), "clip_text/{qid}", "token"),
    "lighthouse_youtube": Layout(_LIGHTHOUSE, "clip_text/{qid}"),
    "univtg": Layout(_streams("vid_slowfast/{vid}", "vid_clip/{vid}"), "txt_clip/{qid}"),
    "umt_tvsum": Layout((("video_features/{vid}_rgb", "video_features/{vid}_opt"),), "{qid}", "token"),
    "umt_youtube": Layout(_streams("vid_slowfast/{vid}", "vid_clip/{vid}"), "txt/{qid}"),
    "sg_detr": Layout(_streams("video/{vid}"), "custom_text/{qid}", "features"),
    "flashvtg_internvideo2": Layout(_streams("qvhighlight_6b/{vid}"), "qvhighlight_llama_text_feature/qid{qid}"),
    "r2_tuning": Layout(_streams("clip_b32_vid_k4/{vid}"), "clip_b32_txt_k4/{qid}", flatten=True),
    "r2_tuning_tacos": Layout(_streams("clip_b32_vid_k4/{vid}-cam-002"), "clip_b32_txt_k4/{qid}", flatten=True),
}


@dataclass(frozen=True)
class VideoFeatures:
    """The streams of one video.

    Args:
        streams: (T, C_i) float32 each, all of the same T, not normalised.
        lengths: rows that each stream had on disk; where they differ, T is the smallest.
    """

    streams: tuple[Tensor, ...]
    lengths: tuple[int, ...]


def read_video_features(root: str | Path, layout: Layout | str, vid: str) -> VideoFeatures:
    """Read a video's streams and cut them to the shortest, as the official loaders do.

    A difference of more than one clip is warned of: the streams may belong to different videos.

    Raises:
        BadInput: a file that is missing, unreadable or holds no feature rows.
    """
    layout = named_layout(layout)
    streams = []
    for patterns in layout.video:
        parts = [_rows(_find(root, pattern, vid=vid), "features", layout.flatten) for pattern in patterns]
        shortest = min(map(len, parts))
        streams.append(torch.cat([part[:shortest] for part in parts], 1))
    lengths = tuple(map(len, streams))
    if max(lengths) - min(lengths) > 1:
        warnings.warn(f"{root}: streams of {vid} have {lengths} rows; the first {min(lengths)} are used", stacklevel=2)
    return VideoFeatures(tuple(stream[: min(lengths)] for stream in streams), lengths)


def read_text_features(root: str | Path, layout: Layout | str, qid: int | str) -> Tensor:
    """Read a query's token states (W, C) float32.

    Raises:
        BadInput: a file that is missing, unreadable or holds no token states.
    """
    layout = named_layout(layout)
    return _rows(find_text_file(root, layout, qid), layout.text_key, layout.flatten)


def find_video_files(root: str | Path, layout: Layout | str, vid: str) -> list[Path]:
    """The files of a video's streams; nothing in them is read.

    Raises:
        BadInput: one is missing.
    """
    return [_find(root, pattern, vid=vid) for patterns in named_layout(layout).video for pattern in patterns]


def find_text_file(root: str | Path, layout: Layout | str, qid: int | str) -> Path:
    """The file of a query's token states; nothing in it is read.

    Raises:
        BadInput: it is missing.
    """
    name = str(qid)
    video, _, number = name.rpartition("_")
    pattern = named_layout(layout).text
    return _find(root, pattern, qid=name) if "{qid}" in pattern else _find(root, pattern, video=video, number=number)


def read_array(path: str | Path, key: str | None = None, *, max_bytes: int = MAX_FILE_BYTES) -> Array:
    """Read one array of numbers from .npz, .npy or .pt; nothing in the file is executed.

    Args:
        key: name of the array in an .npz; None for the only one.
        max_bytes: of the array in memory; checked before anything is read.

    Raises:
        BadInput: missing, damaged, too large, or holding something else than numbers.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            return _read_npz(path, key, max_bytes)
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return _read_npy(file, str(path), path.stat().st_size, max_bytes)
        if path.suffix == ".pt":
            return _read_pt(path, max_bytes)
    except BadInput:
        raise
    except Exception as error:  # damaged files make zipfile, zlib, numpy and torch raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise BadInput(f"{path}: cannot be read: {reason.splitlines()[0]:.150}") from error
    raise BadInput(f"{path}: expected a file of features, .npz, .npy or .pt")


def named_layout(layout: Layout | str) -> Layout:
    """A layout by its name; one that is given is given back.

    Raises:
        BadInput: there is none of that name.
    """
    if isinstance(layout, Layout):
        return layout
    if layout not in LAYOUTS:
        raise BadInput(f"unknown feature layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def _find(root: str | Path, pattern: str, **names: str) -> Path:
    for kind, name in names.items():
        if not name or name in (".", "..") or set(name) & set("/\\\0"):
            raise BadInput(f"{kind} is {name!r}; expected a plain file name without folders")
    stem = Path(root) / pattern.format(**names)
    for suffix in (".npz", ".npy", ".pt"):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    asked = " and ".join(f"{kind} {name!r}" for kind, name in names.items())
    raise BadInput(f"{stem}: no features (.npz, .npy or .pt) of {asked}")


def _rows(path: Path, key: str, flatten: bool = False) -> Tensor:
    """Read feature rows (N, C), N and C at least 1, as float32."""
    array = read_array(path, key if path.suffix == ".npz" else None)
    if flatten and array.ndim > 2:
        array = array.reshape(len(array), -1)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind != "f":
        raise BadInput(f"{path}: {key} is {array.dtype} {array.shape}; expected floating-point rows (N, C)")
    with np.errstate(over="ignore"):  # doubles beyond float32 become infinity, which is refused below
        rows = torch.from_numpy(array.astype(np.float32))
    bad = (~torch.isfinite(rows).all(1)).nonzero()
    if len(bad):
        raise BadInput(
            f"{path}: row {int(bad[0])} of {key} holds NaN or infinity ({len(bad)} of {len(rows)} rows); extract the "
            "features again"
        )
    return rows


def _read_npz(path: Path, key: str | None, max_bytes: int) -> Array:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if key is None and len(entries) == 1:
            key = next(iter(entries))
        if key is None or key not in entries:
            raise BadInput(f"{path}: holds {', '.join(entries) or 'nothing'}; expected {key or 'one array'}")
        entry = entries[key]
        with archive.open(entry) as file:
            return _read_npy(file, f"{path}: {key}", entry.file_size, max_bytes)


def _read_npy(file: IO[bytes], what: str, size: int, max_bytes: int) -> Array:
    """Read an array whose header is checked against the bytes there are before memory is taken for it."""
    if size > max_bytes:
        raise BadInput(f"{what}: unpacks to {size:,} bytes; expected at most {max_bytes:,}")
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise BadInput(f"{what}: has .npy version {version}; expected (1, 0) or (2, 0), as plain numbers have")
    shape, fortran_order, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise BadInput(
            f"{what}: holds Python objects (pickle), which could run anything; save it again as plain numbers"
        )
    count = int(np.prod(shape, dtype=object))
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise BadInput(f"{what}: its header promises {shape} {dtype}, the file is shorter")
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise BadInput(f"{what}: is cut off after {len(data):,} bytes")
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _read_pt(path: Path, max_bytes: int) -> Array:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    else:
        size = path.stat().st_size
    if size > max_bytes:
        raise BadInput(f"{path}: unpacks to {size:,} bytes; expected at most {max_bytes:,}")
    tensor = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensor, Tensor):
        raise BadInput(f"{path}: holds {type(tensor).__name__}; expected one tensor")
    if tensor.numel() * tensor.element_size() > max_bytes:
        raise BadInput(f"{path}: its tensor is {tuple(tensor.shape)}; expected at most {max_bytes:,} bytes")
    return np.asarray(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
