"""What an image annotation says, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from momentdetr.errors import BadInput

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ClassMap:
    """What the labels 0, 1, 2, ... of a model stand for.

    Args:
        names: of each class.
        category_ids: the data set's own number of each class.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label_of(self) -> dict[int, int]:
        """Category id -> label."""
        return {category: label for label, category in enumerate(self.category_ids)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {"names": list(self.names), "category_ids": list(self.category_ids)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassMap:
        """What `to_dict` gave."""
        return cls(tuple(values["names"]), tuple(values["category_ids"]))


@dataclass(frozen=True)
class Instance:
    """One annotated object.

    Args:
        box: x, y, width, height in pixels, as annotated: it may reach beyond the image by a rounding.
        label: contiguous, see `ClassMap`.
        area: square pixels, of the mask where the data set has masks; decides the range that it is scored in.
        crowd: whether it is a region of many: no target in training, and in scoring a place where nothing is wrong.
    """

    box: Box
    label: int
    area: float
    crowd: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """One image.

    Args:
        image_id: the data set's own number, unique in a split.
        path: the file.
        width: pixels, in the frame that the boxes are in; it tells whether the file's EXIF rotation counts.
        height: pixels, likewise.
        instances: its objects; images without any are kept, because what is not there must be learnt too.
    """

    image_id: int
    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        kind: "file": nothing can be used before it is mended; "image": the image cannot be used; "annotation": this
            one box cannot.
        where: the image, annotation or category.
        text: what is found and expected there.
        image_id: of an image's fault, where it is known.
    """

    kind: Literal["file", "image", "annotation"]
    where: str
    text: str
    image_id: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    def to_dict(self) -> dict[str, str]:
        """Plain values, to be stored with what is made without it."""
        return {"kind": self.kind, "where": self.where, "text": self.text}


@dataclass(frozen=True)
class SplitReport:
    """What a split holds.

    Args:
        name: of the split.
        source: its annotation file.
        classes: what the labels stand for.
        records: every image that is right, without its boxes that are wrong.
        num_images: of all that are listed.
        num_annotations: likewise.
        faults: everything that is wrong.
        remarks: what is odd but harmless.
    """

    name: str
    source: Path
    classes: ClassMap
    records: tuple[ImageRecord, ...]
    num_images: int
    num_annotations: int
    faults: tuple[Fault, ...] = ()
    remarks: tuple[str, ...] = ()

    def require(self, skip_bad: float = 0.0) -> tuple[ImageRecord, ...]:
        """The images that can be used.

        Args:
            skip_bad: the greatest percentage of images, and of annotations, that may be left out for a fault.

        Raises:
            BadInput: more is wrong than that, or something that nothing can be used with; names every fault (the first
                50 where there are more).
        """
        if not 0 <= skip_bad <= 100:
            raise BadInput(f"skip_bad is {skip_bad}, expected a percentage of 0 to 100")
        images = len({fault.image_id for fault in self.faults if fault.kind == "image"})
        annotations = sum(fault.kind == "annotation" for fault in self.faults)
        fatal = any(fault.kind == "file" for fault in self.faults)
        counts = ((images, self.num_images), (annotations, self.num_annotations))
        if fatal or any(100 * bad > skip_bad * total for bad, total in counts):
            raise BadInput(fault_text(self.source, self.faults, skip_bad))
        if not self.records:
            raise BadInput(f"{self.source}: lists no image that can be used")
        return self.records


def fault_text(source: Path, faults: Sequence[Fault], skip_bad: float = 0.0, limit: int = 50) -> str:
    """One message that names each fault."""
    lines = [f"  {fault}" for fault in faults[:limit]]
    if len(faults) > limit:
        lines.append(f"  and {len(faults) - limit} more")
    allowed = f" (more than --skip-bad {skip_bad:g}% lets pass)" if skip_bad else ""
    advice = "correct or remove these" + ("" if skip_bad else ", or leave them out with --skip-bad N%")
    return f"{source}: {len(faults)} faults{allowed}; {advice}:\n" + "\n".join(lines)
