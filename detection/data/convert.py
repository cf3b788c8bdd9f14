"""Other layouts to a COCO-format folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detection.data.check import Progress, verified
from detection.data.coco import to_coco
from detection.data.folders import looks_like_voc, looks_like_yolo
from detection.data.records import ImageRecord, SplitReport
from detection.data.voc import read_voc
from detection.data.yolo import read_yolo
from momentdetr.errors import BadInput, StoreError


def convert_data(
    source: str | Path,
    out: str | Path,
    *,
    layout: str | None = None,
    names: Sequence[str] | None = None,
    origin: int = 1,
    skip_bad: float = 0.0,
    link: bool = False,
    progress: Progress | None = None,
) -> tuple[SplitReport, ...]:
    """Write a YOLO or VOC folder as a COCO-format one: `annotations/instances_NAME.json` and images in `NAME/`.

    The folder appears whole or not at all. What was left out is in its `skipped.json`.

    Args:
        source: the folder to read.
        out: the folder to make; must not exist, or be empty.
        layout: "yolo" or "voc"; None: whichever it looks like.
        names: of the classes, where the source does not say them or in another order.
        origin: of VOC's coordinates, see `read_voc`.
        skip_bad: the greatest percentage of images, and of annotations, that may be left out for a fault.
        link: make hard links to the images instead of copies.
        progress: called with (images read, of how many).

    Returns:
        What was found, split by split.

    Raises:
        BadInput: the source cannot be used, or `out` is not empty.
        StoreError: `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not empty; give a new folder")
    reports = tuple(verified(report, "decode", progress) for report in _read(source, layout, names, origin))
    for report in reports:
        report.require(skip_bad)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for report in reports:
                _write(report, partial, link)
            _write_skipped(reports, partial)
            partial.chmod(0o755)
            if out.exists():
                out.rmdir()
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error}") from error
    return reports


def _read(source: Path, layout: str | None, names: Sequence[str] | None, origin: int) -> tuple[SplitReport, ...]:
    if not source.is_dir():
        raise BadInput(f"{source}: there is no such folder")
    if layout not in (None, "yolo", "voc"):
        raise BadInput(f"layout is {layout!r}, expected yolo or voc")
    if layout == "voc" or (layout is None and looks_like_voc(source)):
        return read_voc(source, names, origin=origin)
    if layout == "yolo" or looks_like_yolo(source):
        return read_yolo(source, names)
    raise BadInput(
        f"{source}: looks neither like YOLO (data.yaml, or images/ and labels/) nor like VOC (Annotations/*.xml); "
        "a COCO-format folder needs no conversion"
    )


def _write(report: SplitReport, folder: Path, link: bool) -> None:
    images = folder / report.name
    images.mkdir()
    written = []
    for record, name in zip(report.records, _file_names(report.records), strict=True):
        if link:
            os.link(record.path.resolve(), images / name)
        else:
            shutil.copyfile(record.path, images / name)
        written.append(ImageRecord(record.image_id, images / name, record.width, record.height, record.instances))
    annotations = folder / "annotations"
    annotations.mkdir(exist_ok=True)
    document = to_coco(written, report.classes, images)
    (annotations / f"instances_{report.name}.json").write_text(json.dumps(document) + "\n", encoding="utf-8")


def _file_names(records: Sequence[ImageRecord]) -> list[str]:
    """Each its own, also where subfolders held files of the same name."""
    taken: set[str] = set()
    names = []
    for record in records:
        stem, suffix = record.path.stem, record.path.suffix
        others = (f"{stem}_{record.image_id}" + "_" * count for count in itertools.count())
        name = record.path.name
        while name.lower() in taken:
            name = next(others) + suffix
        taken.add(name.lower())
        names.append(name)
    return names


def _write_skipped(reports: Sequence[SplitReport], folder: Path) -> None:
    skipped = {one.name: [fault.to_dict() for fault in one.faults] for one in reports if one.faults}
    if skipped:
        (folder / "skipped.json").write_text(json.dumps(skipped, indent=2) + "\n", encoding="utf-8")
