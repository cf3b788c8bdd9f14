"""Where the splits of a data set folder are."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from momentdetr.errors import BadInput

_ROBOFLOW = "_annotations.coco.json"
# Annotations of other tasks, which lie beside COCO's boxes.
_OTHER_TASKS = ("captions_", "panoptic_", "stuff_", "image_info_")
_ALIASES = {"val": ("val", "valid", "validation"), "train": ("train", "training"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Args:
        name: as the folder calls it: "train", "val2017", ...
        annotations: the JSON file.
        images: the folder that its file names start from.
    """

    name: str
    annotations: Path
    images: Path


def find_splits(path: str | Path) -> tuple[Split, ...]:
    """The splits of a COCO-format folder, or of one JSON file.

    Known are `annotations/instances_NAME.json` or `annotations/NAME.json` with images in `NAME/`, `images/NAME/` or
    `images/`; JSON files in the folder itself; and `NAME/_annotations.coco.json` beside the images.

    Raises:
        BadInput: there is nothing of the kind; says which other layout it looks like.
    """
    path = Path(path)
    if path.is_file():
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return (_split(path, root),)
    if not path.is_dir():
        raise BadInput(f"{path}: there is no such file or folder; give a COCO-format folder or its JSON file")
    files = sorted(path.glob(f"*/{_ROBOFLOW}")) or _annotation_files(path / "annotations")
    files = files or [file for file in _annotation_files(path) if b'"images"' in file.read_bytes()]
    if not files:
        raise BadInput(f"{path}: has no COCO annotations{_looks_like(path)}")
    return tuple(sorted((_split(file, path) for file in files), key=_order))


def find_split(path: str | Path, name: str) -> Split:
    """The split of this name ("val" also finds "val2017", "valid" and "validation").

    Raises:
        BadInput: there is none, or there are several.
    """
    splits = find_splits(path)
    exact = [split for split in splits if split.name == name]
    if exact:
        return exact[0]
    like = [split for split in splits if canonical(split.name) == name]
    if len(like) == 1:
        return like[0]
    names = ", ".join(split.name for split in splits)
    raise BadInput(f"{path}: has {len(like) or 'no'} splits called {name!r}; there are {names}; give the file itself")


def canonical(name: str) -> str:
    """ "train", "val" or "test" for what is called like it, with or without a year; else the name itself."""
    plain = name.lower().rstrip("0123456789_-")
    return next((known for known, aliases in _ALIASES.items() if plain in aliases), name)


def looks_like_yolo(path: Path) -> bool:
    """Whether a folder has YOLO's layout."""
    return any(path.glob("*.yaml")) or any(path.glob("labels/**/*.txt")) or any(path.glob("*/labels/*.txt"))


def looks_like_voc(path: Path) -> bool:
    """Whether a folder has Pascal VOC's layout."""
    return (path / "Annotations").is_dir() or next(path.glob("*.xml"), None) is not None


def _looks_like(path: Path) -> str:
    for kind, fits in (("YOLO", looks_like_yolo), ("VOC", looks_like_voc)):
        if fits(path):
            return f", but looks like {kind}; convert it: python -m detection data convert {path} OUT"
    return (
        "; expected annotations/NAME.json or annotations/instances_NAME.json with images in NAME/ or images/, or "
        f"NAME/{_ROBOFLOW}"
    )


def _annotation_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.glob("*.json")) if not file.name.startswith(_OTHER_TASKS)]
    instances = [file for file in files if file.name.startswith("instances_")]
    return instances or [file for file in files if _is_object(file)]


def _is_object(file: Path) -> bool:
    """Whether a JSON file is an object; others, such as lists of detections, are not annotations."""
    with file.open("rb") as opened:
        return opened.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _split(file: Path, root: Path) -> Split:
    name = file.parent.name if file.name == _ROBOFLOW else file.stem.removeprefix("instances_")
    return Split(name, file, _images_folder(file, root, name))


def _images_folder(file: Path, root: Path, name: str) -> Path:
    """The candidate with the most of the first images; the first one where none has any."""
    names = _first_file_names(file)
    candidates = list(dict.fromkeys(_candidates(file, root, name)))
    found = [sum((folder / one).is_file() for one in names) for folder in candidates]
    return candidates[found.index(max(found))]


def _candidates(file: Path, root: Path, name: str) -> Iterator[Path]:
    if file.name == _ROBOFLOW:
        yield file.parent
    parents = (root, root / "images")
    yield from (parent / name for parent in parents)
    for parent in parents:
        alike = [folder for folder in parent.glob("*/") if canonical(folder.name) == canonical(name)]
        yield from (folder for found in sorted(alike) for folder in (found, found / "images"))
    yield from (root / "images", root / "JPEGImages", file.parent, root)


def _first_file_names(file: Path, limit: int = 20) -> list[str]:
    """Some image names of an annotation file, found without reading all of what may be hundreds of megabytes."""
    try:
        data = file.read_bytes()
        found = (json.loads(match[1]) for match in re.finditer(rb'"file_name"\s*:\s*("[^"\n]+")', data))
        return [name for name in itertools.islice(found, limit) if "\0" not in name]
    except (OSError, ValueError):
        return []  # which its reader will say


def _order(split: Split) -> tuple[int, str]:
    known = ["train", "val", "test"]
    name = canonical(split.name)
    return (known.index(name) if name in known else len(known), split.name)
