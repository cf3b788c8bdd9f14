"""A trained detector, ready to answer: from any image to named boxes in its pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from detection import checkpoint
from detection.data.check import load_data
from detection.data.dataset import normalised
from detection.data.examples import Example, fitted_size, resize
from detection.data.folders import canonical, find_splits
from detection.data.pictures import read_picture
from detection.evaluation import category_ids_by_name, detect
from detection.evaluation import evaluate as evaluate_rows
from detection.inference import speed_up
from detection.initial import model_folder
from detection.model import ImageDetector
from detection.scoring import DetectionScores, rows_of
from momentdetr.errors import BadInput, StoreError
from momentdetr.training import distributed

Picture = str | Path | Image.Image | NDArray[Any]


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image.

    Args:
        boxes: (N, 4), corners x0, y0, x1, y1 in pixels of the image.
        scores: (N,) in [0, 1], best first.
        labels: (N,) class indices.
        names: of the classes, N of them.
        size: width and height of the image.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> ImageDetections:
        """Those that are at least as sure as this."""
        kept = self.scores >= threshold
        names = tuple(name for name, keep in zip(self.names, kept, strict=True) if keep)
        return ImageDetections(self.boxes[kept], self.scores[kept], self.labels[kept], names, self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        found = [{"name": name, "label": label, "score": sure, "box": box} for name, label, sure, box in rows]
        return {"width": self.size[0], "height": self.size[1], "detections": found}

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`.

        Raises:
            BadInput: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise BadInput("to_supervision() needs supervision; pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.reshape(-1, 4),
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True)
class Predictor:
    """A detector and all that is needed to use it.

    Args:
        model: in evaluation mode.
        labels: names of its classes; None where a slot stands for nothing.
        category_ids: the training data's number of each class, where it is known.
        short_side: of images as the model sees them, pixels.
        long_side: the most that their long side may get.
    """

    model: ImageDetector
    labels: tuple[str | None, ...]
    category_ids: tuple[int | None, ...]
    short_side: int = 800
    long_side: int | None = 1333

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def predict(self, image: Picture, threshold: float = 0.0) -> ImageDetections:
        """Detect in one image.

        Args:
            image: a file, a Pillow image, or an array (H, W, 3) or (H, W), uint8 RGB; files and Pillow images are
                turned as viewers show them.
            threshold: leave out what is less sure.

        Raises:
            BadInput: it cannot be read as an image.
        """
        return self.predict_pixels(pixels_of(image)).above(threshold)

    @torch.no_grad()
    def predict_pixels(self, pixels: NDArray[np.uint8]) -> ImageDetections:
        """Detect in pixels (H, W, 3), RGB."""
        height, width = pixels.shape[:2]
        prepared = self.prepared(pixels).to(self.device)[None]
        mask = torch.ones(1, *prepared.shape[-2:], dtype=torch.bool, device=self.device)
        found = self.model.predict(prepared, mask, torch.tensor([[height, width]], device=self.device))[0]
        labels = found.labels.cpu().numpy()
        names = tuple(self.labels[label] or f"class {label}" for label in labels.tolist())
        boxes, scores = found.boxes.float().cpu().numpy(), found.scores.float().cpu().numpy()
        return ImageDetections(boxes, scores, labels, names, (width, height))

    def prepared(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels (H, W, 3) as the model sees them: (3, h, w), scaled and normalised."""
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        example = Example(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
        size = fitted_size(*example.size, self.short_side, self.long_side)
        return normalised(resize(example, *size).image)

    def rows(self, image_id: int, found: ImageDetections) -> list[dict[str, Any]]:
        """Detections in COCO's result format; classes without a number get their index, from 1."""
        from detection.model import Detections

        ids = [number if number is not None else label + 1 for label, number in enumerate(self.category_ids)]
        parts = (torch.from_numpy(part) for part in (found.scores, found.labels, found.boxes))
        return rows_of(image_id, Detections(*parts), ids)


def load(folder: str | Path, device: str = "auto") -> Predictor:
    """Read a trained detector.

    Args:
        folder: of a model, or of the run that made it.
        device: "auto" takes the GPU if there is one.

    Raises:
        BadCheckpoint: a file is missing, damaged, or of another format.
        BadInput: the device cannot be used.
    """
    folder = model_folder(folder)
    model, labels = checkpoint.load(folder, distributed.device_of(device))
    speed_up(model.backbone)
    document = checkpoint.read_config(folder)
    ids = tuple(document.get("category_ids") or _published_ids(labels))
    size = document.get("input", {"short_side": 800, "long_side": 1333})
    return Predictor(model, labels, ids, size["short_side"], size["long_side"])


def _published_ids(labels: Sequence[str | None]) -> list[int | None]:
    """COCO's category numbers, where the names are COCO's; of others nothing is known."""
    from detection.labels import COCO

    number = {name: key for key, name in COCO.items()}
    return [None if name is None else number.get(name) for name in labels]


def pixels_of(image: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a file, a Pillow image or an array.

    Raises:
        BadInput: it is no image.
    """
    if isinstance(image, (str, Path)):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise BadInput(
            f"an image array is {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape (H, W, 3), RGB"
        )
    return pixels


def evaluate_on(
    predictor: Predictor,
    data: str | Path,
    split: str | None = None,
    *,
    batch_size: int = 1,
    workers: int = 0,
    skip_bad: float = 0.0,
    detections: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DetectionScores, list[str]]:
    """Score a detector on a COCO-format folder or JSON file; classes are matched by name.

    Args:
        predictor: the detector.
        data: the folder or file.
        split: which one; None: "val", or the only one.
        batch_size: images at once.
        workers: processes that read images.
        skip_bad: the greatest percentage of images, and of annotations, that may be left out for a fault.
        detections: a JSON file to write the detections to.
        progress: called with (images done, of how many).

    Returns:
        The scores, and what a reader of them must know.

    Raises:
        BadInput: the data cannot be used, or has no class of the model's.
        StoreError: the file cannot be written.
    """
    chosen = load_data(data, split or _default_split(data), skip_bad=skip_bad)
    ids, unknown = category_ids_by_name(predictor.labels, chosen)
    rows = detect(
        predictor.model,
        chosen,
        ids,
        short_side=predictor.short_side,
        long_side=predictor.long_side,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    if detections is not None:
        try:
            detections.write_text(json.dumps(rows), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{detections} cannot be written: {error.strerror}") from error
    notes = [f"the model does not know {', '.join(unknown)}, which count as never found"] if unknown else []
    notes += [f"{len(chosen.skipped)} faults of the data are left out"] if chosen.skipped else []
    return evaluate_rows(rows, chosen), notes


def _default_split(data: str | Path) -> str | None:
    splits = find_splits(data)
    if len(splits) == 1:
        return None
    return next((split.name for split in splits if canonical(split.name) == "val"), None)
