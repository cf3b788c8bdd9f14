from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.data import augment, examples
from detection.data.augment import AugmentConfig, augmented, evaluation_size
from detection.data.examples import Example, clipped, cover, crop, fitted_size, flip, mixup, mosaic, resize
from momentdetr.errors import BadInput
from momentdetr.training.config import parse_config


def painted(
    height: int, width: int, boxes: list[tuple[int, int, int, int]], labels: list[int] | None = None
) -> Example:
    """Black, with each box filled in a grey of its own: where the paint is, the box must be, whatever is done."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for shade, (left, top, right, bottom) in enumerate(boxes, start=1):
        image[:, top:bottom, left:right] = 60 * shade
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Example(image, corners, torch.tensor(labels or list(range(len(boxes))), dtype=torch.long))


def paint(image: torch.Tensor, shade: int) -> tuple[float, float, float, float]:
    """The box around the paint of a shade."""
    rows, columns = torch.nonzero((image[0].float() - 60 * shade).abs() < 20, as_tuple=True)
    return columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1


def follows(example: Example, shade: int = 1, row: int = 0, within: float = 1.5) -> bool:
    return example.boxes[row].tolist() == pytest.approx(paint(example.image, shade), abs=within)


def official_size(height: int, width: int, size: int, max_size: int | None) -> tuple[int, int]:
    """DETR's rule, from its description: the short side becomes `size` unless the long one would exceed `max_size`."""
    short, long = sorted((height, width))
    if max_size is not None and long / short * size > max_size:
        size = round(max_size * short / long)
    return (int(size * height / width), size) if width < height else (size, int(size * width / height))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (500, 500), (333, 1000), (427, 640), (1, 1), (17, 23)])
@pytest.mark.parametrize("sides", [(800, 1333), (480, 1333), (400, None), (320, 533)])
def test_sizes_are_detrs(size: tuple[int, int], sides: tuple[int, int | None]) -> None:
    assert fitted_size(*size, *sides) == official_size(*size, *sides)


def test_published_sizes() -> None:
    assert fitted_size(480, 640, 800, 1333) == (800, 1066)
    assert fitted_size(427, 640, 800, 1333) == (800, 1199)
    assert fitted_size(300, 640, 800, 1333) == (625, 1333)


@given(st.integers(1, 30000), st.integers(1, 30000), st.integers(1, 900), st.integers(900, 1400))
@settings(max_examples=300, deadline=None)
def test_no_size_is_empty_or_too_long(height: int, width: int, short: int, long: int) -> None:
    found = fitted_size(height, width, short, long)
    assert min(found) >= 1
    assert max(found) <= long + 1
    assert (found[0] >= found[1]) == (height >= width) or found[0] == found[1]


def test_boxes_follow_the_image() -> None:
    example = painted(60, 80, [(10, 20, 30, 50)])
    assert follows(resize(example, 120, 100))
    assert follows(flip(example))
    assert flip(example).boxes.tolist() == [[50, 20, 70, 50]]
    assert crop(example, 25, 5, 30, 20).boxes.tolist() == [[5, 0, 20, 25]]
    assert follows(crop(example, 25, 5, 30, 20))
    assert follows(cover(example, 40, 90, 1.3, (0.4, 0.2)))


def test_what_is_cut_away_is_no_target() -> None:
    example = painted(60, 80, [(10, 20, 30, 50), (50, 5, 70, 20)], [4, 6])
    kept = crop(example, 0, 40, 60, 40)
    assert kept.labels.tolist() == [6]
    assert crop(example, 0, 29, 60, 51).labels.tolist() == [4, 6]  # a pixel of it is left
    assert crop(example, 55, 0, 5, 5).boxes.shape == (0, 4)


def test_boxes_beyond_the_image_are_cut_and_thin_ones_kept() -> None:
    boxes = torch.tensor([[-0.5, 3, 10, 60.7], [5, 5, 5.3, 40]])
    example = clipped(Example(torch.zeros(3, 60, 80, dtype=torch.uint8), boxes, torch.tensor([0, 1])))
    assert example.boxes.tolist() == [[0, 3, 10, 60], pytest.approx([5, 5, 5.3, 40])]


def test_a_mosaic_has_no_hole_and_every_box_is_where_its_paint_is() -> None:
    parts = [painted(50 + 10 * k, 90 - 10 * k, [(20, 20, 40, 45)], [k]) for k in range(4)]
    parts = [Example(one.image.clamp(min=5), one.boxes, one.labels) for one in parts]
    whole = mosaic(parts, 100, (0.4, 0.6), np.random.default_rng(3))
    assert whole.size == (100, 100)
    assert int(whole.image.min()) == 5  # image everywhere
    assert whole.labels.tolist() == [0, 1, 2, 3]
    for label, box in zip(whole.labels.tolist(), whole.boxes.tolist(), strict=True):
        top, left = 40 * (label // 2), 60 * (label % 2)
        quarter = whole.image[:, top : 100 if label // 2 else 40, left : 100 if label % 2 else 60]
        x0, y0, x1, y1 = paint(quarter, 1)
        assert box == pytest.approx([left + x0, top + y0, left + x1, top + y1], abs=2)


def test_mixup_shows_both() -> None:
    first, second = painted(40, 40, [(5, 5, 15, 15)], [1]), painted(40, 40, [(20, 20, 30, 30)], [2])
    both = mixup(first, second, 0.25)
    assert both.labels.tolist() == [1, 2]
    assert both.boxes.tolist() == [[5, 5, 15, 15], [20, 20, 30, 30]]
    assert both.image[0, 10, 10] == 15
    assert both.image[0, 25, 25] == 45


def world(index: int) -> Example:
    rng = np.random.default_rng(index)
    height, width = (int(side) for side in rng.integers(40, 120, 2))
    left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
    return painted(height, width, [(left, top, left + 20, top + 20)], [index])


RECIPES = {
    "detr": AugmentConfig.at(64),
    "jitter": AugmentConfig.at(64, geometry="jitter"),
    "dense": AugmentConfig.at(64, mosaic=0.7, mixup=0.7),
    "resize": evaluation_size(64, 100),
}


def drawn(config: AugmentConfig, index: int, seed: int = 0, epoch: int = 0) -> Example:
    return augmented(index, world, 10, config, seed=seed, epoch=epoch)


def same(first: Example, second: Example) -> bool:
    return (
        first.size == second.size and torch.equal(first.image, second.image) and torch.equal(first.boxes, second.boxes)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_depends_on_seed_epoch_and_index_only(recipe: str) -> None:
    config = RECIPES[recipe]
    before = torch.get_rng_state()
    first = [drawn(config, index, 1, 2) for index in range(10)]
    torch.manual_seed(7)
    np.random.seed(7)
    again = [drawn(config, index, 1, 2) for index in reversed(range(10))][::-1]
    assert all(map(same, first, again))
    torch.set_rng_state(before)
    if recipe != "resize":
        assert not all(same(one, drawn(config, index, 1, 3)) for index, one in enumerate(first))
        assert not all(same(one, drawn(config, index, 2, 2)) for index, one in enumerate(first))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_are_inside_and_have_an_area(recipe: str) -> None:
    for index in range(10):
        for epoch in range(6):
            example = drawn(RECIPES[recipe], index, epoch=epoch)
            height, width = example.size
            assert (example.boxes >= 0).all()
            assert (example.boxes <= example.boxes.new_tensor([width, height, width, height])).all()
            assert (example.boxes[:, 2:] > example.boxes[:, :2]).all()
            assert len(example.labels) == len(example.boxes)


@pytest.mark.parametrize("recipe", ["detr", "jitter"])
def test_boxes_follow_the_paint_through_a_recipe(recipe: str) -> None:
    seen = 0
    for index in range(10):
        for epoch in range(4):
            example = drawn(RECIPES[recipe], index, epoch=epoch)
            if len(example.boxes) and (example.boxes[0, 2:] - example.boxes[0, :2]).min() > 6:
                assert follows(example, within=2.5)
                seen += 1
    assert seen > 20


def test_detrs_recipe_draws_from_its_sizes_and_cuts_half() -> None:
    config = AugmentConfig(short_sides=(40, 50), long_side=70, cut_from=(60,), cut_sides=(30, 45))
    image = painted(80, 100, [(10, 20, 60, 70)])
    found = [augmented(0, lambda _: image, 1, config, seed=0, epoch=epoch) for epoch in range(300)]
    whole = [one for one in found if one.size in {(40, 50), (50, 62)}]
    assert all(min(one.size) in {40, 50} or max(one.size) in {69, 70} for one in found)
    assert {one.size for one in whole} == {(40, 50), (50, 62)}
    mirrored = sum(one.boxes[0, 0] > 0.2 * one.size[1] for one in whole)
    assert 0.3 < mirrored / len(whole) < 0.7
    assert 100 < len(whole) < 240


def test_jitter_scales_within_its_range_and_never_pads() -> None:
    config = AugmentConfig(geometry="jitter", jitter=(0.5, 2.0), jitter_side=100)
    image = painted(50, 100, [(10, 20, 60, 40)])
    sizes = [augmented(0, lambda _: image, 1, config, seed=0, epoch=epoch).size for epoch in range(200)]
    assert max(max(size) for size in sizes) == 100
    assert min(min(size) for size in sizes) < 30
    assert {size for size in sizes if size[0] == 100} == {(100, 100)} or any(size[0] > 90 for size in sizes)


def test_mosaic_and_mixup_only_in_their_epochs() -> None:
    config = AugmentConfig.at(64, mosaic=1.0, mixup=1.0, dense_epochs=(2, 4))
    counts = [max(len(drawn(config, index, epoch=epoch).labels) for index in range(10)) for epoch in range(6)]
    assert [count > 1 for count in counts] == [False, False, True, True, False, False]


def test_a_recipe_at_another_size_is_in_proportion() -> None:
    half = AugmentConfig.at(400)
    assert half.short_sides == (240, 256, 272, 288, 304, 320, 336, 352, 368, 384, 400)
    assert (half.long_side, half.cut_from, half.cut_sides) == (666, (200, 250, 300), (192, 300))
    assert AugmentConfig.at(800) == AugmentConfig()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"mosiac": 0.5}, "mosaic"),
        ({"flip": 1.5}, "flip"),
        ({"short_sides": []}, "short_sides"),
        ({"jitter": [2.0, 0.1]}, "jitter"),
        ({"cut_sides": [0, 10]}, "cut_sides"),
    ],
)
def test_a_wrong_recipe_is_told(values: dict[str, object], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse_config(AugmentConfig, values, "test.yaml")


@pytest.mark.parametrize("size", [(1, 1), (3, 20000), (20000, 3)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_odd_sizes_pass_every_recipe(size: tuple[int, int], recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def resized(example: Example, height: int, width: int) -> Example:
        made.append(height * width)
        return resize(example, height, width)

    monkeypatch.setattr(augment, "resize", resized)
    monkeypatch.setattr(examples, "resize", resized)
    image = painted(*size, [(0, 0, size[1], size[0])])
    for epoch in range(8):
        example = augmented(0, lambda _: image, 1, RECIPES[recipe], seed=0, epoch=epoch)
        assert min(example.size) >= 1
        assert max(example.size) <= 110
    assert max(made) <= 3 * 20000  # nothing is blown up on the way
