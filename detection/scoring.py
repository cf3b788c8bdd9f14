"""COCO's average precision and recall, by faster-coco-eval.

The twelve figures are those of COCO's own scorer, crowds and area ranges included: -1 where nothing true is in a range.
Two things differ, and both only where that scorer gives no answer: no detections at all score 0 instead of failing, and
AP under another limit of detections than 100 is given instead of -1.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from detection.data.json_file import box_of, number, read_json, shown, whole_number
from momentdetr.errors import BadInput

if TYPE_CHECKING:
    from detection.model import Detections

Kind = Literal["bbox", "segm"]
Floats = NDArray[np.float64]

MAX_DETECTIONS = (1, 10, 100)
AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class DetectionScores:
    """All scores of one set of detections.

    Args:
        figures: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, fractions; -1: nothing to find there.
        per_class: AP by name of the class, of classes that have something to find.
        precision: (T, R, K, A, M): IoU thresholds .5 to .95, recalls 0 to 1, classes, areas, numbers of detections.
        recall: (T, K, A, M).
        confidence: like `precision`: the score of the detection that reaches each.
        notes: what a reader of the numbers must know, in words.
    """

    figures: Mapping[str, float]
    per_class: Mapping[str, float]
    precision: Floats
    recall: Floats
    confidence: Floats
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The figures, and "per_class"."""
        return {**self.figures, "per_class": dict(self.per_class)}


def score(
    detections: str | Path | Sequence[Mapping[str, Any]],
    annotations: str | Path | Mapping[str, Any],
    *,
    kind: Kind | None = None,
    max_detections: Sequence[int] = MAX_DETECTIONS,
    class_agnostic: bool = False,
) -> DetectionScores:
    """Score detections in COCO's result format against COCO annotations.

    Args:
        detections: objects of image_id, category_id, score and bbox (x, y, width, height in pixels) or segmentation;
            or a JSON file of them.
        annotations: images, categories and annotations; or a JSON file of them.
        kind: what is compared; None: boxes, or masks where detections have nothing else.
        max_detections: the three limits of detections an image.
        class_agnostic: whether classes do not matter.

    Raises:
        BadInput: a file is not COCO's format, a value is not a number, or ids do not belong together.
    """
    document = read_json(annotations) if isinstance(annotations, (str, Path)) else annotations
    found = read_json(detections) if isinstance(detections, (str, Path)) else detections
    notes: list[str] = []
    truth = _truth(document, _named(annotations, "annotations"), notes)
    kind = kind or _kind(found)
    results = _results(found, truth, kind, _named(detections, "detections"), notes)
    limits = sorted(int(limit) for limit in max_detections)
    if len(limits) != 3 or limits[0] < 1:
        raise BadInput(f"max_detections is {shown(max_detections)}, expected three numbers of at least 1")
    precision, recall, confidence = _evaluate(truth, results, kind, limits, class_agnostic)
    names = ["all classes"] if class_agnostic else _class_names(truth["categories"])
    averages = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
    per_class = {name: average for name, average in averages.items() if average > -1}
    figures = _figures(precision, recall, limits)
    return DetectionScores(figures, per_class, precision, recall, confidence, tuple(notes))


def rows_of(image_id: int, found: Detections, category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """What was found in an image in COCO's result format, of which `score` takes a list.

    Args:
        image_id: of the image.
        found: boxes in its pixels.
        category_ids: the data set's number of each label; None: what is no class of it is left out.
    """
    rows = []
    for sure, label, box in zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True):
        category = category_ids[label]
        if category is not None:
            left, top, right, bottom = box
            sides = [left, top, right - left, bottom - top]
            rows.append({"image_id": image_id, "category_id": category, "bbox": sides, "score": sure})
    return rows


def _named(source: object, otherwise: str) -> str:
    return str(source) if isinstance(source, (str, Path)) else otherwise


def _kind(found: object) -> Kind:
    first = found[0] if isinstance(found, Sequence) and found else None
    return "segm" if isinstance(first, Mapping) and "segmentation" in first and not first.get("bbox") else "bbox"


def _evaluate(
    truth: Mapping[str, Any], results: list[dict[str, Any]], kind: Kind, limits: list[int], class_agnostic: bool
) -> tuple[Floats, Floats, Floats]:
    from faster_coco_eval import COCO, COCOeval_faster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # annotation 0, which `_truth` has noted
        try:
            annotated = COCO(truth)
            evaluation = COCOeval_faster(annotated, annotated.loadRes(results), kind)
            evaluation.params.maxDets = limits
            evaluation.params.useCats = 0 if class_agnostic else 1
            evaluation.evaluate()
            evaluation.accumulate()
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            if kind == "bbox":  # checked value by value
                raise
            raise BadInput(f"a mask is not one of COCO's ({error}); give polygons or run lengths") from error
    precision, recall, confidence = (np.asarray(evaluation.eval[key]) for key in ("precision", "recall", "scores"))
    return precision, recall, confidence


def _figures(precision: Floats, recall: Floats, limits: Sequence[int]) -> dict[str, float]:
    figures = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
    }
    figures |= {f"AP{area[0]}": _mean(precision[..., a, -1]) for a, area in enumerate(AREAS) if a}
    figures |= {f"AR{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(limits)}
    return figures | {f"AR{area[0]}": _mean(recall[..., a, -1]) for a, area in enumerate(AREAS) if a}


def _mean(values: Floats) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0


def _class_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """In the order of their ids; two of one name are told apart by the id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    count = Counter(category["name"] for category in ordered)
    return [one["name"] if count[one["name"]] == 1 else f"{one['name']} (id {one['id']})" for one in ordered]


def _truth(document: object, where: str, notes: list[str]) -> dict[str, Any]:
    """The annotations, only with what scoring reads."""
    if not isinstance(document, Mapping):
        raise BadInput(f"{where}: holds {shown(document)}, expected an object of images, categories and annotations")
    for key in ("images", "categories", "annotations"):
        if not isinstance(document.get(key), Sequence) or isinstance(document[key], str):
            raise BadInput(f"{where}: has no list {key!r}; give annotations in COCO's format")
    images = _numbered(document["images"], f"{where}: image")
    categories = _numbered(document["categories"], f"{where}: category")
    annotations = _numbered(document["annotations"], f"{where}: annotation")
    faults: list[str] = []
    kept, elsewhere = [], 0
    for number_, annotation in annotations.items():
        image, category = whole_number(annotation.get("image_id")), whole_number(annotation.get("category_id"))
        box = box_of(annotation.get("bbox"))
        area = number(annotation.get("area", box[2] * box[3] if box else None))
        if box is None or area is None or image is None or category is None:
            fields = {key: annotation.get(key) for key in ("image_id", "category_id", "bbox", "area")}
            faults.append(f"annotation {number_} has {shown(fields, 160)}")
        elif image not in images or category not in categories:
            elsewhere += 1
        else:
            crowd = int(bool(annotation.get("iscrowd", 0)))
            one = {"id": number_, "image_id": image, "category_id": category, "bbox": list(box), "area": area}
            kept.append({**one, "iscrowd": crowd, "segmentation": annotation.get("segmentation", [])})
    _require(faults, where, "expected whole numbers as ids, four finite numbers as bbox and one as area")
    if elsewhere:
        notes.append(f"{elsewhere} annotations of images or categories that are not listed do not count")
    if 0 in annotations:
        notes.append("annotation id 0: COCO's scorer takes a match with it for none; number annotations from 1")
    named = [{"id": key, "name": str(one.get("name", key))} for key, one in categories.items()]
    sized = [{"id": key, "height": one.get("height"), "width": one.get("width")} for key, one in images.items()]
    return {"images": sized, "categories": named, "annotations": kept}


def _numbered(rows: Iterable[Any], what: str) -> dict[int, Mapping[str, Any]]:
    """The objects by their id."""
    found: dict[int, Mapping[str, Any]] = {}
    for position, row in enumerate(rows):
        key = whole_number(row.get("id")) if isinstance(row, Mapping) else None
        if key is None:
            raise BadInput(f"{what} at position {position} is {shown(row)}, expected an object with a whole id")
        if key in found:
            raise BadInput(f"{what} id {key} stands twice; give each its own")
        found[key] = row
    return found


def _results(found: object, truth: Mapping[str, Any], kind: Kind, where: str, notes: list[str]) -> list[dict[str, Any]]:
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise BadInput(f"{where}: holds {shown(found)}, expected a list of detections in COCO's result format")
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    faults, results, unknown, inverted = [], [], Counter[int](), 0
    for position, row in enumerate(found):
        one = _result(row, kind)
        if isinstance(one, str):
            faults.append(f"detection {position} {one}")
        elif one["image_id"] not in images:
            faults.append(f"detection {position} is of image {one['image_id']}, which is not annotated")
        elif one["category_id"] not in categories:
            unknown[one["category_id"]] += 1
        else:
            inverted += kind == "bbox" and min(one["bbox"][2:]) < 0
            results.append(one)
    _require(faults, where, "expected image_id, category_id, score and " + ("bbox" if kind == "bbox" else "masks"))
    if unknown and not results:
        raise BadInput(
            f"{where}: no detection is of an annotated category (detected {_some(unknown)}, annotated "
            f"{_some(categories)}); write the annotations' category ids, not class indices"
        )
    if unknown:
        notes.append(f"{sum(unknown.values())} detections of categories {_some(unknown)}, not annotated, do not count")
    if inverted:
        notes.append(f"{inverted} detections have a negative width or height; they match nothing")
    if not found:
        notes.append("no detections: every score is 0")
    return results


def _result(row: object, kind: Kind) -> dict[str, Any] | str:
    """One detection, only with what scoring reads; or in words what is wrong with it."""
    if not isinstance(row, Mapping):
        return f"is {shown(row)}, not an object"
    image, category = whole_number(row.get("image_id")), whole_number(row.get("category_id"))
    sure = number(row.get("score"))
    if image is None or category is None or sure is None:
        return f"has {shown({key: row.get(key) for key in ('image_id', 'category_id', 'score')}, 120)}"
    result = {"image_id": image, "category_id": category, "score": sure}
    if kind == "segm":
        mask = row.get("segmentation")
        return {**result, "segmentation": mask} if isinstance(mask, (Mapping, list)) and mask else "has no mask"
    box = box_of(row.get("bbox"))
    return {**result, "bbox": list(box)} if box else f"has bbox {shown(row.get('bbox'))}"


def _require(faults: Sequence[str], where: str, expected: str, limit: int = 20) -> None:
    if faults:
        lines = list(faults[:limit]) + ([f"and {len(faults) - limit} more"] if len(faults) > limit else [])
        raise BadInput(f"{where}: {len(faults)} faults; {expected}:\n  " + "\n  ".join(lines))


def _some(ids: Iterable[int], limit: int = 10) -> str:
    ordered = sorted(ids)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(map(str, ordered[:limit])) + more
