"""YOLO's layouts: a text file an image, a line an object: class, then centre and size as fractions of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detection.data.coco import box_fault
from detection.data.folders import canonical
from detection.data.json_file import number, shown
from detection.data.pictures import SUFFIXES, read_facts
from detection.data.records import Box, ClassMap, Fault, ImageRecord, Instance, SplitReport
from momentdetr.errors import BadInput

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "data/obj.names")


@dataclass
class _Reading:
    records: list[ImageRecord] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    unlabelled: int = 0
    num_annotations: int = 0


def read_yolo(folder: str | Path, names: Sequence[str] | None = None) -> tuple[SplitReport, ...]:
    """Read a folder with `data.yaml`, or with `images/` and `labels/`.

    Boxes are of the image as viewers show it. Of outlines (class x y x y ...) the box around them is taken. An image
    without a label file, or with an empty one, has no objects and is kept.

    Args:
        folder: the data set.
        names: of the classes; None: `data.yaml` or `classes.txt` says them.

    Raises:
        BadInput: no images, or no names.
    """
    folder = Path(folder)
    document, source = _yaml(folder)
    names = names or _names(folder, document, source)
    classes = ClassMap(tuple(names), tuple(range(1, len(names) + 1)))
    splits = _splits(folder, document)
    if not any(images for _, images in splits):
        raise BadInput(
            f"{folder}: has no images; expected images/ and labels/, or a data.yaml that says where they are"
        )
    return tuple(_split(name, images, classes, source or folder) for name, images in splits if images)


def _yaml(folder: Path) -> tuple[dict[str, Any], Path | None]:
    files = sorted(folder.glob("*.yaml")) + sorted(folder.glob("*.yml"))
    if not files:
        return {}, None
    if len(files) > 1 and folder / "data.yaml" not in files:
        raise BadInput(f"{folder}: has {', '.join(file.name for file in files)}; call the one that counts data.yaml")
    path = folder / "data.yaml" if folder / "data.yaml" in files else files[0]
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: holds {shown(document)}, expected names, train and val")
    return document, path


def _names(folder: Path, document: dict[str, Any], source: Path | None) -> list[str]:
    if "names" in document:
        named = document["names"]
        if isinstance(named, dict) and set(named) == set(range(len(named))):
            named = [named[index] for index in range(len(named))]
        if not isinstance(named, list) or not named or len(set(map(str, named))) < len(named):
            raise BadInput(f"{source}: has names {shown(named)}, expected a list of different names, or 0: name, ...")
        return [str(name) for name in named]
    for file in _NAME_FILES:
        if (folder / file).is_file():
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
    raise BadInput(
        f"{folder}: nothing names its classes; give --names FILE, one name a line in the order of the numbers"
    )


def _splits(folder: Path, document: dict[str, Any]) -> list[tuple[str, list[Path]]]:
    said = [(name, document[name]) for name in ("train", "val", "test") if document.get(name)]
    if said:
        root = folder / str(document.get("path") or "")
        roots = (root, folder) if root.is_dir() else (folder,)
        return [(name, _images(roots, where)) for name, where in said]
    for pattern in ("images/*/", "*/images/"):
        inner = sorted(found for found in folder.glob(pattern) if found.is_dir())
        if inner:
            named = [(found.name if pattern.startswith("images") else found.parent.name, found) for found in inner]
            return [(canonical(name), _files(found)) for name, found in named]
    flat = folder / "images"
    return [("train", _files(flat if flat.is_dir() else folder))]


def _images(roots: Sequence[Path], where: object) -> list[Path]:
    """Images of folders or of lists of files; what Roboflow writes, `../train/images`, is looked for here, too."""
    images = []
    for one in where if isinstance(where, list) else [where]:
        text = str(one)
        tried = [root / part for root in roots for part in (text, text.removeprefix("../"))]
        path = next((found for found in tried if found.exists()), None)
        if path is None:
            raise BadInput(f"{roots[0]}: data.yaml speaks of {text}, which is not there")
        images += _listed(path) if path.is_file() else _files(path)
    return images


def _listed(path: Path) -> list[Path]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [path.parent / line for line in lines if line]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _split(name: str, images: Sequence[Path], classes: ClassMap, source: Path) -> SplitReport:
    reading = _Reading()
    for image_id, path in enumerate(images, start=1):
        try:
            width, height = read_facts(path).upright
        except BadInput as error:
            reading.faults.append(Fault("image", f"image {path.name}", str(error), image_id))
            continue
        instances = tuple(_instances(path, width, height, len(classes), reading))
        reading.records.append(ImageRecord(image_id, path, width, height, instances))
    remarks = (f"{reading.unlabelled} images have no label file; they count as without objects",)
    return SplitReport(
        name,
        source,
        classes,
        tuple(reading.records),
        len(images),
        reading.num_annotations,
        tuple(reading.faults),
        remarks if reading.unlabelled else (),
    )


def _label_file(image: Path) -> Path:
    """The last `images` in the path becomes `labels`; else the text lies beside the image."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            return Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def _instances(image: Path, width: int, height: int, num_classes: int, reading: _Reading) -> Iterator[Instance]:
    path = _label_file(image)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        reading.faults.append(Fault("annotation", str(path), f"cannot be read ({error})"))
        return
    reading.unlabelled += not path.exists()
    for line, text in enumerate(lines, start=1):
        if text.strip():
            reading.num_annotations += 1
            one = _instance(text, width, height, num_classes)
            if isinstance(one, str):
                reading.faults.append(Fault("annotation", f"{path} line {line}", one))
            else:
                yield one


def _instance(text: str, width: int, height: int, num_classes: int) -> Instance | str:
    """The object of a line, or in words what is wrong with it."""
    try:
        values = [number(float(word)) for word in text.split()]
    except ValueError:
        return f"is {shown(text)}, expected numbers: class, centre and size, or class and an outline"
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or len(numbers) < 5 or len(numbers) % 2 == 0:
        return f"is {shown(text)}, expected 5 finite numbers: class, centre x, centre y, width, height; or an outline"
    label = int(numbers[0])
    if label != numbers[0] or not 0 <= label < num_classes:
        return f"is of class {numbers[0]:g}, expected 0 to {num_classes - 1}"
    box = _box(numbers[1:], width, height)
    fault = box_fault(box, width, height)
    return fault if fault is not None else Instance(box, label, box[2] * box[3])


def _box(numbers: Sequence[float], width: int, height: int) -> Box:
    if len(numbers) == 4:
        x, y, box_width, box_height = numbers
        return (x - box_width / 2) * width, (y - box_height / 2) * height, box_width * width, box_height * height
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs) * width, min(ys) * height, (max(xs) - min(xs)) * width, (max(ys) - min(ys)) * height
