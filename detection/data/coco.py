"""COCO's annotation format, read with mistrust: every fault is named, and only what is right becomes a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from detection.data.json_file import box_of, number, read_json, shown, whole_number
from detection.data.records import Box, ClassMap, Fault, ImageRecord, Instance, SplitReport
from momentdetr.errors import BadInput

# Annotators round, and some formats count pixels from 1: as far as this a box may reach beyond the image.
OVERHANG = 1.0


@dataclass
class _Findings:
    faults: list[Fault] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    def image(self, where: str, text: str, image_id: int | None = None) -> None:
        self.faults.append(Fault("image", where, text, image_id))

    def annotation(self, where: str, text: str) -> None:
        self.faults.append(Fault("annotation", where, text))


def read_coco(path: str | Path, images: str | Path, *, name: str = "") -> SplitReport:
    """Read an annotation file. The image files themselves are not looked at, see `check.verified`.

    Args:
        path: the JSON file.
        images: the folder that its file names start from.
        name: of the split; empty: the file's.

    Raises:
        BadInput: the file is not JSON, or has no lists of images, categories and annotations.
    """
    path, images = Path(path), Path(images)
    document = _document(read_json(path), path)
    found = _Findings()
    classes = _classes(document["categories"], found)
    records = _images(document["images"], images, found)
    instances = _instances(document["annotations"], records, classes, document, found)
    remarks = [f"{text} ({count} times)" if count > 1 else text for text, count in found.remarks.items()]
    return SplitReport(
        name or path.stem,
        path,
        classes,
        tuple(replace(record, instances=tuple(instances[key])) for key, record in records.items()),
        len(document["images"]),
        len(document["annotations"]),
        tuple(found.faults),
        tuple(remarks),
    )


def to_coco(records: Sequence[ImageRecord], classes: ClassMap, folder: Path | None = None) -> dict[str, Any]:
    """Records as a COCO document; annotations are numbered from 1, because 0 means "no match" to COCO's scorer.

    Args:
        records: images.
        classes: what their labels stand for.
        folder: file names are written relative to it; None: without any folder.
    """
    annotations: list[dict[str, Any]] = []
    listed = []
    for record in records:
        file_name = record.path.name if folder is None else record.path.relative_to(folder).as_posix()
        listed.append({"id": record.image_id, "file_name": file_name, "width": record.width, "height": record.height})
        for one in record.instances:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": classes.category_ids[one.label],
                    "bbox": list(one.box),
                    "area": one.area,
                    "iscrowd": int(one.crowd),
                }
            )
    named = [{"id": key, "name": text} for key, text in zip(classes.category_ids, classes.names, strict=True)]
    return {"images": listed, "categories": named, "annotations": annotations}


def box_fault(box: Box, width: int, height: int) -> str | None:
    """What is wrong with a box in an image of this size, in words."""
    x, y, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return f"bbox {list(box)} has no area; expected x, y, width, height with both sizes above 0"
    right, bottom = x + box_width, y + box_height
    if right <= 0 or bottom <= 0 or x >= width or y >= height:
        return f"bbox {list(box)} lies outside the image of {width}x{height}"
    beyond = max(-x, -y, right - width, bottom - height)
    if beyond > OVERHANG:
        return f"bbox {list(box)} reaches {beyond:.6g} pixels outside the image of {width}x{height}"
    return None


def _document(document: Any, path: Path) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise BadInput(f"{path}: holds a {type(document).__name__}, expected an object of COCO's format")
    for key in ("images", "categories", "annotations"):
        if not isinstance(document.get(key), list):
            raise BadInput(f"{path}: has no list {key!r}; expected COCO's format: images, categories, annotations")
    return document


def _classes(rows: Sequence[Any], found: _Findings) -> ClassMap:
    """Contiguous labels in the order of the category ids."""
    names: dict[int, str] = {}
    for position, row in enumerate(rows):
        key = whole_number(row.get("id")) if isinstance(row, Mapping) else None
        name = row.get("name") if isinstance(row, Mapping) else None
        if key is None or not isinstance(name, str) or not name.strip():
            text = f"is {shown(row)}, expected an object with a whole id and a name"
        elif key in names:
            text = f"has id {key}, which {names[key]!r} has too"
        elif name in names.values():
            text = f"is a second {name!r}; join the two or give one another name"
        else:
            names[key] = name
            continue
        found.faults.append(Fault("file", f"category at position {position}", text))
    if not rows:
        found.faults.append(Fault("file", "categories", "there are none"))
    ordered = sorted(names)
    return ClassMap(tuple(names[key] for key in ordered), tuple(ordered))


def _images(rows: Sequence[Any], folder: Path, found: _Findings) -> dict[int, ImageRecord]:
    ids = Counter(whole_number(row.get("id")) for row in rows if isinstance(row, Mapping))
    files = Counter(str(row.get("file_name")) for row in rows if isinstance(row, Mapping))
    records: dict[int, ImageRecord] = {}
    for position, row in enumerate(rows):
        where = f"image at position {position}"
        if not isinstance(row, Mapping):
            found.image(where, f"is {shown(row)}, expected an object", -position - 1)
            continue
        key = whole_number(row.get("id"))
        if key is None:
            found.image(where, f"has id {shown(row.get('id'))}, expected a whole number", -position - 1)
            continue
        where = f"image {key}"
        width, height = whole_number(row.get("width")), whole_number(row.get("height"))
        file_name = row.get("file_name")
        if ids[key] > 1:
            found.image(f"{where} ({shown(file_name)})", f"its id stands {ids[key]} times; give each its own", key)
        elif not isinstance(file_name, str) or not _stays_inside(file_name):
            found.image(where, f"has file_name {shown(file_name)}, expected a path inside the folder of images", key)
        elif width is None or height is None or width < 1 or height < 1:
            size = f"width {shown(row.get('width'))}, height {shown(row.get('height'))}"
            found.image(f"{where} ({file_name})", f"has {size}, expected pixels of at least 1", key)
        else:
            if files[file_name] > 1:
                found.remarks["an image file is listed under several ids"] += 1
            records[key] = ImageRecord(key, folder / file_name, width, height)
    return records


def _stays_inside(file_name: str) -> bool:
    path = PurePosixPath(file_name.replace("\\", "/"))
    return bool(file_name.strip()) and "\0" not in file_name and not path.is_absolute() and ".." not in path.parts


def _instances(
    rows: Sequence[Any],
    records: Mapping[int, ImageRecord],
    classes: ClassMap,
    document: Mapping[str, Any],
    found: _Findings,
) -> dict[int, list[Instance]]:
    listed = {whole_number(row.get("id")) for row in document["images"] if isinstance(row, Mapping)}
    instances: dict[int, list[Instance]] = {key: [] for key in records}
    label_of, seen = classes.label_of, set[int]()
    for position, row in enumerate(rows):
        where = f"annotation at position {position}"
        if not isinstance(row, Mapping):
            found.annotation(where, f"is {shown(row)}, expected an object")
            continue
        key = whole_number(row.get("id"))
        if key is None:
            found.annotation(where, f"has id {shown(row.get('id'))}, expected a whole number")
            continue
        where = f"annotation {key}"
        if key in seen:
            found.annotation(where, "its id stands twice; give each its own")
            continue
        seen.add(key)
        if key == 0:
            found.remarks["annotation id 0: COCO's scorer takes a match with it for none; number from 1"] += 1
        image = whole_number(row.get("image_id"))
        if image is None or image not in listed:
            found.annotation(where, f"is of image {shown(row.get('image_id'))}, which is not listed")
        elif image in records:  # else the image's own fault has been named
            one = _instance(row, records[image], label_of, found)
            if isinstance(one, str):
                found.annotation(f"{where} (image {image}, {records[image].path.name})", one)
            else:
                instances[image].append(one)
    return instances


def _instance(
    row: Mapping[str, Any], record: ImageRecord, label_of: Mapping[int, int], found: _Findings
) -> Instance | str:
    """The object, or in words what is wrong with it."""
    category = whole_number(row.get("category_id"))
    if category is None or category not in label_of:
        return f"is of category {shown(row.get('category_id'))}, which is not listed"
    box = box_of(row.get("bbox"))
    if box is None:
        return f"has bbox {shown(row.get('bbox'))}, expected four finite numbers: x, y, width, height"
    fault = box_fault(box, record.width, record.height)
    if fault is not None:
        return fault
    if "area" not in row:
        found.remarks["no area is given; that of the box counts"] += 1
    area = number(row.get("area", box[2] * box[3]))
    if area is None or area < 0:
        return f"has area {shown(row.get('area'))}, expected square pixels"
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        return f"has iscrowd {shown(crowd)}, expected 0 or 1"
    return Instance(box, label_of[category], area, bool(crowd))
