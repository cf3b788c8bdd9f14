"""Annotated images as the batches that a detector learns from and is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from detection.batch import pad_images
from detection.data.augment import AugmentConfig, augmented, evaluation_size
from detection.data.examples import Example
from detection.data.pictures import read_picture
from detection.data.records import ImageRecord
from momentdetr.detr.types import Targets
from momentdetr.errors import BadInput

# Of ImageNet, which every backbone of the family was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSample:
    """One image as a model sees it.

    Args:
        record: what it was made from.
        image: (3, h, w) float32, normalised.
        boxes: (M, 4) centre-size, fractions of this image (before any padding).
        labels: (M,).
        size: height and width of the original image.
    """

    record: ImageRecord
    image: Tensor
    boxes: Tensor
    labels: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class ImageBatch:
    """What one step learns from.

    Args:
        images: (B, 3, H, W), zero where padded.
        mask: (B, H, W), True where an image is.
        targets: boxes as fractions of each image without its padding.
        sizes: (B, 2), height and width of the original images.
        records: B records, in order.
    """

    images: Tensor
    mask: Tensor
    targets: Targets
    sizes: Tensor
    records: tuple[ImageRecord, ...]

    @property
    def sample_ids(self) -> list[str]:
        return [f"{record.image_id} ({record.path.name})" for record in self.records]

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same batch on another device."""
        targets = Targets(*(part.to(device) for part in (self.targets.labels, self.targets.boxes, self.targets.mask)))
        images, mask = self.images.to(device, non_blocking=True), self.mask.to(device, non_blocking=True)
        return ImageBatch(images, mask, targets, self.sizes.to(device), self.records)

    def pin_memory(self) -> ImageBatch:
        """The same batch in memory that a GPU can copy from while it computes."""
        return ImageBatch(self.images.pin_memory(), self.mask.pin_memory(), self.targets, self.sizes, self.records)


class ImageDataset(Dataset[ImageSample]):
    """Images read when they are asked for; which sample comes depends on (seed, epoch, index) only.

    Args:
        records: images and boxes; crowds are no targets.
        augment: how images vary; None: as they are evaluated, 800 pixels.

    Raises:
        BadInput: there are no images.
    """

    def __init__(self, records: Sequence[ImageRecord], augment: AugmentConfig | None = None) -> None:
        if not records:
            raise BadInput("a data set needs at least one image")
        self.records = tuple(records)
        self.augment = augment or evaluation_size()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int, int]) -> ImageSample:
        """The sample of (seed, epoch, index), as a batch sampler may yield them; an index alone is (0, 0, index)."""
        seed, epoch, index = (0, 0, key) if isinstance(key, int) else key
        return self.sample(index, seed=seed, epoch=epoch)

    def sample(self, index: int, *, seed: int = 0, epoch: int = 0) -> ImageSample:
        """One image as this epoch shows it.

        Raises:
            BadInput: a file cannot be read; names it.
            IndexError: there is no such image.
        """
        if not 0 <= index < len(self.records):
            raise IndexError(f"image {index} of {len(self.records)}")
        record = self.records[index]
        example = augmented(index, self.example, len(self.records), self.augment, seed=seed, epoch=epoch)
        height, width = example.size
        scale = example.boxes.new_tensor([width, height, width, height])
        low, high = (example.boxes / scale).chunk(2, -1)
        boxes = torch.cat([(low + high) / 2, high - low], -1)
        return ImageSample(record, normalised(example.image), boxes, example.labels, (record.height, record.width))

    def batch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> ImageBatch:
        """The batch of these samples in this epoch; the same arguments give the same batch."""
        return collate([self.sample(index, seed=seed, epoch=epoch) for index in indices])

    def example(self, index: int) -> Example:
        """The image and its boxes as they are in the file, crowds left out."""
        record = self.records[index]
        pixels = read_picture(record.path, (record.width, record.height))
        return example_of(pixels, record)


def example_of(pixels: NDArray[np.uint8], record: ImageRecord) -> Example:
    """Pixels (H, W, 3) with a record's targets; boxes as annotated, which may reach beyond the image by a rounding."""
    targets = [one for one in record.instances if not one.crowd]
    boxes = torch.tensor([one.box for one in targets], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([one.label for one in targets], dtype=torch.long)
    return Example(torch.from_numpy(pixels.copy()).permute(2, 0, 1), boxes, labels)


def normalised(image: Tensor) -> Tensor:
    """(3, H, W) uint8 to float32 with the mean and deviation that backbones expect."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((image.float() / 255 - mean) / std).contiguous()


def collate(samples: Sequence[ImageSample]) -> ImageBatch:
    """Samples of any sizes as one batch; M is at least 1, and a sample without targets has an all-False row."""
    images, mask = pad_images([sample.image for sample in samples])
    most = max([1, *(len(sample.labels) for sample in samples)])
    boxes = torch.zeros(len(samples), most, 4)
    labels = torch.zeros(len(samples), most, dtype=torch.long)
    real = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, sample in enumerate(samples):
        count = len(sample.labels)
        boxes[row, :count], labels[row, :count], real[row, :count] = sample.boxes, sample.labels, True
    sizes = torch.tensor([sample.size for sample in samples])
    return ImageBatch(images, mask, Targets(labels, boxes, real), sizes, tuple(sample.record for sample in samples))
