from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_checkpoints import make
from made_data import write_coco
from torch.utils.data import DataLoader

from detection.data.augment import AugmentConfig, evaluation_size
from detection.data.check import ImageData, load_data
from detection.data.coco import to_coco
from detection.data.dataset import MEAN, STD, ImageBatch, ImageDataset, collate
from detection.data.pictures import read_picture
from detection.model import Detections
from detection.scoring import rows_of, score
from momentdetr.errors import BadInput


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    write_coco(tmp_path)
    return load_data(tmp_path)


def equal(first: ImageBatch, second: ImageBatch) -> bool:
    def parts(batch: ImageBatch) -> list[torch.Tensor]:
        targets = batch.targets
        return [batch.images, batch.mask, targets.labels, targets.boxes, targets.mask, batch.sizes]

    return all(map(torch.equal, parts(first), parts(second))) and first.records == second.records


def test_a_sample_is_the_image_and_its_boxes(data: ImageData) -> None:
    sample = ImageDataset(data.records, evaluation_size(48, None))[0]  # 64x48 already
    pixels = torch.from_numpy(read_picture(data.records[0].path).copy()).permute(2, 0, 1).double() / 255
    expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert sample.image.dtype == torch.float32
    torch.testing.assert_close(sample.image.double(), expected, atol=1e-6, rtol=0)
    # x 4, y 6, width 20, height 30 of 64x48; the crowd is no target.
    assert sample.boxes.tolist() == [pytest.approx([14 / 64, 21 / 48, 20 / 64, 30 / 48])]
    assert sample.labels.tolist() == [1]
    assert sample.size == (48, 64)


def test_a_batch_pads_and_masks(data: ImageData) -> None:
    batch = ImageDataset(data.records, evaluation_size(48, None)).batch([0, 1, 2])
    shapes = [(48, 64), (72, 48), (48, 48)]
    assert batch.images.shape == (3, 3, 72, 64)
    for row, (height, width) in enumerate(shapes):
        assert int(batch.mask[row].sum()) == height * width
        assert batch.mask[row, :height, :width].all()
        assert (batch.images[row][:, ~batch.mask[row]] == 0).all()
    assert batch.targets.mask.tolist() == [[True, False], [True, True], [False, False]]
    assert batch.targets.boxes.shape == (3, 2, 4)
    assert batch.sizes.tolist() == [[48, 64], [60, 40], [50, 50]]
    assert batch.sample_ids == ["10 (0.jpg)", "11 (1.jpg)", "12 (2.jpg)"]
    # Fractions are of the image, not of the padded one: back in pixels they are the annotation, cut at the edge.
    box = batch.targets.boxes[1, 1] * torch.tensor([40, 60, 40, 60])
    assert box.tolist() == pytest.approx([25, 45, 30, 30])


def test_a_batch_without_any_target_has_a_row(data: ImageData) -> None:
    batch = ImageDataset(data.records[2:], evaluation_size(48, None)).batch([0])
    assert batch.targets.boxes.shape == (1, 1, 4)
    assert not batch.targets.mask.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int, data: ImageData) -> None:
    dataset = ImageDataset(data.records, AugmentConfig.at(64, mosaic=0.5, mixup=0.5))
    batches = [[0, 2], [1], [2, 1]]
    keys = [[(5, epoch, index) for index in batch] for epoch, batch in enumerate(batches)]
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=workers, collate_fn=collate)
    for epoch, (batch, loaded) in enumerate(zip(batches, loader, strict=True)):
        assert equal(loaded, dataset.batch(batch, seed=5, epoch=epoch))


def test_a_batch_moves_whole(data: ImageData) -> None:
    batch = ImageDataset(data.records, evaluation_size(48, None)).batch([0, 1])
    assert equal(batch.to("cpu"), batch)
    assert batch.to("meta").targets.boxes.is_meta


def test_an_image_that_breaks_later_is_named(data: ImageData) -> None:
    dataset = ImageDataset(data.records, evaluation_size(48))
    data.records[1].path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"1\.jpg"):
        dataset.batch([0, 1])


def test_what_cannot_be_a_data_set_is_told(data: ImageData) -> None:
    with pytest.raises(BadInput, match="at least one image"):
        ImageDataset([])
    with pytest.raises(IndexError, match="image 3 of 3"):
        ImageDataset(data.records)[3]


def test_targets_said_back_as_answers_are_perfect(data: ImageData) -> None:
    batch = ImageDataset(data.records, evaluation_size(70, 90)).batch([0, 1, 2])
    rows = []
    for row, record in enumerate(batch.records):
        real = batch.targets.mask[row]
        low, high = (batch.targets.boxes[row, real, :2] + s * batch.targets.boxes[row, real, 2:] / 2 for s in (-1, 1))
        corners = torch.cat([low, high], -1) * batch.sizes[row].flip(0).repeat(2)
        found = Detections(torch.ones(int(real.sum())), batch.targets.labels[row, real], corners)
        rows += rows_of(record.image_id, found, data.classes.category_ids)
    scores = score(rows, to_coco(data.records, data.classes))
    assert dict(scores.per_class) == {"dog": pytest.approx(1), "cat": pytest.approx(1)}


def test_a_detector_learns_from_a_batch(data: ImageData) -> None:
    model, _ = make("dino", denoising={"contrastive": True, "indicator": False, "groups": 2})
    batch = ImageDataset(data.records, AugmentConfig.at(64)).batch([0, 1, 2], seed=1, epoch=1)
    assert batch.targets.mask.any(1).tolist() == [True, True, False]
    losses = model.train().loss(batch.images, batch.mask, batch.targets)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_real_images_pass_every_recipe(shared_data: Path) -> None:
    data = load_data(shared_data / "detection" / "coco_mini_train", "train", verify="none")
    recipes = (AugmentConfig.at(96, mosaic=0.5, mixup=0.5), AugmentConfig.at(96, geometry="jitter"))
    for config in recipes:
        dataset = ImageDataset(data.records[:24], config)
        batch = dataset.batch(range(24), seed=3, epoch=1)
        assert batch.images.isfinite().all()
        corners = torch.cat([batch.targets.boxes[..., :2] - batch.targets.boxes[..., 2:] / 2,
                             batch.targets.boxes[..., :2] + batch.targets.boxes[..., 2:] / 2], -1)  # fmt: skip
        inside = corners[batch.targets.mask]
        assert inside.min() >= -1e-6
        assert inside.max() <= 1 + 1e-6
        assert batch.targets.labels.max() < 80
