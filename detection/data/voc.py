"""Pascal VOC's layout: `Annotations/*.xml` beside `JPEGImages/`, splits in `ImageSets/Main/*.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from detection.data.coco import box_fault
from detection.data.json_file import number, shown
from detection.data.pictures import SUFFIXES, read_facts
from detection.data.records import ClassMap, Fault, ImageRecord, Instance, SplitReport
from momentdetr.errors import BadInput

_SPLITS = ("train", "val", "test", "trainval")


@dataclass(frozen=True)
class _Picture:
    """One XML file: its objects by class name, before the classes are known."""

    path: Path
    width: int
    height: int
    objects: tuple[tuple[str, Instance], ...]


@dataclass
class _Reading:
    pictures: list[tuple[int, _Picture]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    num_annotations: int = 0


def read_voc(folder: str | Path, names: Sequence[str] | None = None, *, origin: int = 1) -> tuple[SplitReport, ...]:
    """Read a folder of XML files.

    Objects marked "difficult" become crowds: no targets, and in scoring neither found nor missed.

    Args:
        folder: with `Annotations/` (or XML files itself).
        names: of the classes, in the order of their labels; None: those that occur, by the alphabet.
        origin: 1: corners are the numbers of the first and last pixel, counted from 1, as VOC says; 0: they are
            coordinates, as many tools write instead.

    Raises:
        BadInput: no XML files, or `origin` is neither.
    """
    folder = Path(folder)
    if origin not in (0, 1):
        raise BadInput(f"origin is {origin}, expected 1 (VOC) or 0")
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    if not files:
        raise BadInput(f"{folder}: has no XML files; expected Annotations/*.xml and JPEGImages/")
    readings = {name: _read(stems, files, folder, origin) for name, stems in _splits(folder, files).items()}
    found = {name for one in readings.values() for _, picture in one.pictures for name, _ in picture.objects}
    ordered = tuple(names) if names else tuple(sorted(found))
    classes = ClassMap(ordered, tuple(range(1, len(ordered) + 1)))
    return tuple(_report(name, one, classes, annotations) for name, one in readings.items())


def _splits(folder: Path, files: dict[str, Path]) -> dict[str, list[str]]:
    main = folder / "ImageSets" / "Main"
    lists = {name: main / f"{name}.txt" for name in _SPLITS if (main / f"{name}.txt").is_file()}
    if "train" in lists and "val" in lists:
        lists.pop("trainval", None)
    said = {name: [line.split()[0] for line in _lines(path)] for name, path in lists.items()}
    return said or {"train": list(files)}


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error


def _read(stems: Sequence[str], files: dict[str, Path], folder: Path, origin: int) -> _Reading:
    reading = _Reading()
    for image_id, stem in enumerate(stems, start=1):
        try:
            if stem not in files:
                raise BadInput("is listed, but there is no XML file of it")
            picture = _picture(files[stem], folder, origin, reading)
        except BadInput as error:
            reading.faults.append(Fault("image", f"image {stem}", str(error), image_id))
        else:
            reading.pictures.append((image_id, picture))
    return reading


def _picture(file: Path, folder: Path, origin: int, reading: _Reading) -> _Picture:
    root = _parsed(file)
    path = _image(file, root, folder)
    facts = read_facts(path)
    width, height = facts.upright
    said = (_value(root, "size/width") or 0.0, _value(root, "size/height") or 0.0)
    if said == (facts.width, facts.height):
        width, height = facts.width, facts.height  # boxes are of the image as stored, whatever EXIF says
    elif all(said) and said != facts.upright:
        raise BadInput(f"{file}: says {said[0]:g}x{said[1]:g} pixels, {path.name} has {facts.width}x{facts.height}")
    objects = []
    for position, node in enumerate(root.iter("object"), start=1):
        reading.num_annotations += 1
        name = (node.findtext("name") or "").strip()
        one = _instance(node, width, height, origin) if name else "has no name"
        if isinstance(one, str):
            reading.faults.append(Fault("annotation", f"{file} object {position}", one))
        else:
            objects.append((name, one))
    return _Picture(path, width, height, tuple(objects))


def _parsed(file: Path) -> ElementTree.Element:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise BadInput(f"{file}: declares entities, which an annotation does not need")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadInput(f"{file}: is not XML ({error})") from error


def _image(file: Path, root: ElementTree.Element, folder: Path) -> Path:
    said = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
    for place in (folder / "JPEGImages", folder / "images", file.parent, folder):
        if said and (place / said).is_file():
            return place / said
        beside = [path for path in place.glob(f"{_escaped(file.stem)}.*") if path.suffix.lower() in SUFFIXES]
        if beside:
            return sorted(beside)[0]
    raise BadInput(f"{file}: there is no image {said or file.stem!r} in JPEGImages/, images/ or beside it")


def _escaped(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def _instance(node: ElementTree.Element, width: int, height: int, origin: int) -> Instance | str:
    """The object, or in words what is wrong with it."""
    values = [number(_value(node, f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = values
    if left is None or top is None or right is None or bottom is None:
        return f"has bndbox {shown(values)}, expected finite xmin, ymin, xmax, ymax"
    box = (left - origin, top - origin, right - left + origin, bottom - top + origin)
    fault = box_fault(box, width, height)
    if fault is not None:
        return fault
    return Instance(box, -1, box[2] * box[3], _value(node, "difficult") == 1)


def _value(node: ElementTree.Element, path: str) -> float | None:
    try:
        return float(node.findtext(path) or "")
    except ValueError:
        return None


def _report(name: str, reading: _Reading, classes: ClassMap, source: Path) -> SplitReport:
    label_of = {text: label for label, text in enumerate(classes.names)}
    faults, records = list(reading.faults), []
    for image_id, picture in reading.pictures:
        instances = []
        for text, one in picture.objects:
            if text in label_of:
                instances.append(Instance(one.box, label_of[text], one.area, one.crowd))
            else:
                faults.append(
                    Fault("annotation", picture.path.name, f"has an object {text!r}, which no class is called")
                )
        records.append(ImageRecord(image_id, picture.path, picture.width, picture.height, tuple(instances)))
    num_images = len(reading.pictures) + sum(fault.kind == "image" for fault in reading.faults)
    return SplitReport(name, source, classes, tuple(records), num_images, reading.num_annotations, tuple(faults))
