"""Whether a data set can be trained on: annotations, image files, and the splits among each other."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detection.data.coco import read_coco
from detection.data.folders import Split, find_split, find_splits
from detection.data.pictures import read_facts, read_picture, size_fault
from detection.data.records import ClassMap, Fault, ImageRecord, SplitReport
from momentdetr.errors import BadInput

Verify = Literal["decode", "header", "none"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageData:
    """A split to train on or to evaluate with.

    Args:
        records: the images that can be used.
        classes: what the labels stand for.
        skipped: what was left out for a fault, to be stored with what is made from the data.
        remarks: what is odd but harmless.
    """

    records: tuple[ImageRecord, ...]
    classes: ClassMap
    skipped: tuple[Fault, ...] = ()
    remarks: tuple[str, ...] = ()


def load_data(
    path: str | Path,
    split: str | None = None,
    *,
    classes: ClassMap | None = None,
    skip_bad: float = 0.0,
    verify: Verify = "decode",
    progress: Progress | None = None,
) -> ImageData:
    """Read a split of a COCO-format folder, strictly.

    Args:
        path: the folder, or a JSON file.
        split: "train", "val", ...; None: there is but one.
        classes: those of a model or of the training split, which this one must have too; None: the split's own.
        skip_bad: the greatest percentage of images, and of annotations, that may be left out for a fault.
        verify: what of each image file is read: all, its head, or nothing.
        progress: called with (images read, of how many).

    Raises:
        BadInput: more is wrong than `skip_bad` allows; every fault is named.
    """
    report = check_split(_chosen(path, split), verify=verify, progress=progress)
    records = report.require(skip_bad)
    if classes is not None:
        records = _relabelled(records, report.classes, classes, report.source)
    return ImageData(records, classes or report.classes, report.faults, report.remarks)


def check(path: str | Path, *, verify: Verify = "decode", progress: Progress | None = None) -> tuple[SplitReport, ...]:
    """Look at every split of a COCO-format folder, or at one JSON file.

    Raises:
        BadInput: there is no split, or an annotation file is not of COCO's format.
    """
    reports = [check_split(split, verify=verify, progress=progress) for split in find_splits(path)]
    first = reports[0]
    return (first, *(_compared(report, first) for report in reports[1:]))


def check_split(split: Split, *, verify: Verify = "decode", progress: Progress | None = None) -> SplitReport:
    """Look at one split."""
    report = read_coco(split.annotations, split.images, name=split.name)
    return report if verify == "none" else verified(report, verify, progress)


def verified(report: SplitReport, verify: Verify = "decode", progress: Progress | None = None) -> SplitReport:
    """The report with what is wrong with the image files; images that cannot be used are no records any more."""
    kept, faults, remarks = [], list(report.faults), Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large images, palettes and damaged EXIF, which are all read
        for done, (record, fault, remark) in enumerate(_looked_at(report.records, verify), start=1):
            if fault is None:
                kept.append(record)
            else:
                faults.append(Fault("image", f"image {record.image_id}", fault, record.image_id))
            if remark is not None:
                remarks[remark] += 1
            if progress is not None:
                progress(done, len(report.records))
    odd = tuple(f"{text} ({count} times)" if count > 1 else text for text, count in remarks.items())
    return replace(report, records=tuple(kept), faults=tuple(faults), remarks=(*report.remarks, *odd))


def summary(report: SplitReport) -> dict[str, Any]:
    """What a split holds, in plain values."""
    instances = [one for record in report.records for one in record.instances]
    count = Counter(one.label for one in instances if not one.crowd)
    sides = sorted(max(record.width, record.height) for record in report.records)
    return {
        "split": report.name,
        "annotations_file": str(report.source),
        "images": report.num_images,
        "usable_images": len(report.records),
        "images_without_targets": sum(all(one.crowd for one in record.instances) for record in report.records),
        "annotations": report.num_annotations,
        "boxes": sum(count.values()),
        "crowds": sum(one.crowd for one in instances),
        "long_side": [sides[0], sides[len(sides) // 2], sides[-1]] if sides else [],
        "classes": [
            {"label": label, "category_id": category, "name": name, "boxes": count[label]}
            for label, (category, name) in enumerate(
                zip(report.classes.category_ids, report.classes.names, strict=True)
            )
        ],
        "remarks": list(report.remarks),
        "faults": [fault.to_dict() for fault in report.faults],
    }


def _chosen(path: str | Path, name: str | None) -> Split:
    if name is not None and not Path(path).is_file():
        return find_split(path, name)
    splits = find_splits(path)
    if len(splits) > 1:
        raise BadInput(f"{path}: has the splits {', '.join(split.name for split in splits)}; say which one")
    return splits[0]


def _looked_at(records: Sequence[ImageRecord], verify: Verify) -> Iterator[tuple[ImageRecord, str | None, str | None]]:
    look = _decoded if verify == "decode" else _header
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(look, records)


def _decoded(record: ImageRecord) -> tuple[ImageRecord, str | None, str | None]:
    found = _header(record)
    if found[1] is None:
        try:
            read_picture(record.path, (record.width, record.height))
        except BadInput as error:
            return record, str(error), None
    return found


def _header(record: ImageRecord) -> tuple[ImageRecord, str | None, str | None]:
    """The record, what is wrong with its file, and what is odd about it."""
    size = (record.width, record.height)
    try:
        facts = read_facts(record.path)
    except BadInput as error:
        return record, str(error), None
    stored = (facts.width, facts.height)
    if size not in (stored, facts.upright):
        return record, f"{record.path}: {size_fault(facts, *size)}", None
    if facts.orientation == 1:
        return record, None, None
    if stored == facts.upright:
        return (
            record,
            None,
            "EXIF turns the image and its size does not tell whether the boxes are turned; taken as turned",
        )
    frame = "as stored" if size == stored else "turned"
    return record, None, f"EXIF turns the image; by its size, the boxes are of the image {frame}"


def _compared(report: SplitReport, first: SplitReport) -> SplitReport:
    """With a fault for each class that the first split has not, and a remark where numbers differ."""
    numbers = dict(zip(first.classes.names, first.classes.category_ids, strict=True))
    own = list(zip(report.classes.names, report.classes.category_ids, strict=True))
    faults = [
        Fault("file", f"category {key}", f"is {name!r}, which split {first.name!r} has not")
        for name, key in own
        if name not in numbers
    ]
    moved = [name for name, key in own if numbers.get(name, key) != key]
    text = f"{', '.join(moved)}: other category ids than in split {first.name!r}; the names count"
    return replace(
        report, faults=(*report.faults, *faults), remarks=(*report.remarks, text) if moved else report.remarks
    )


def _relabelled(
    records: Sequence[ImageRecord], own: ClassMap, wanted: ClassMap, source: Path
) -> tuple[ImageRecord, ...]:
    """Records with another class map's labels, matched by name."""
    label_of = {name: label for label, name in enumerate(wanted.names)}
    used = {one.label for record in records for one in record.instances}
    unknown = sorted(own.names[label] for label in used if own.names[label] not in label_of)
    if unknown:
        raise BadInput(f"{source}: has boxes of {', '.join(unknown)}; the model knows {', '.join(wanted.names)}")
    new = [label_of.get(name, -1) for name in own.names]
    return tuple(
        replace(record, instances=tuple(replace(one, label=new[one.label]) for one in record.instances))
        for record in records
    )
