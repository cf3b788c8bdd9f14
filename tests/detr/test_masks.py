from __future__ import annotations

import itertools

import pytest
import torch

from momentdetr.detr.masks import boxes_of_masks, dice_loss


def test_box_of_a_mask_equals_a_naive_search(num_dims: int, generator: torch.Generator) -> None:
    shape = (5, 7, 4)[:num_dims]
    masks = torch.rand(6, *shape, generator=generator) > 0.9
    masks[0] = False
    masks[1] = True
    for mask, box in zip(masks, boxes_of_masks(masks).tolist(), strict=True):
        cells = [cell[::-1] for cell in itertools.product(*map(range, shape)) if mask[cell]]  # natural order
        lower = [min((cell[axis] for cell in cells), default=0) for axis in range(num_dims)]
        upper = [max((cell[axis] for cell in cells), default=0) for axis in range(num_dims)]
        assert box == [*lower, *upper]


def test_no_masks_have_no_boxes() -> None:
    assert boxes_of_masks(torch.zeros(0, 3, 4)).shape == (0, 4)


@pytest.mark.parametrize(("logit", "expected"), [(50.0, 0.0), (-50.0, 8 / 9)], ids=["equal", "disjoint"])
def test_dice_of_full_and_of_empty_predictions(logit: float, expected: float) -> None:
    truth = torch.ones(2, 2, 4)
    loss = dice_loss(torch.full((2, 2, 4), logit), truth, torch.tensor(2.0))
    assert loss.item() == pytest.approx(expected, abs=1e-6)  # 1 - (0 + 1) / (0 + 8 + 1)


def test_dice_of_half_precision_is_computed_in_single() -> None:
    logits = torch.full((1, 70000), 0.0, dtype=torch.float16)  # their sum, 35000, and twice it do not fit in half
    loss = dice_loss(logits, torch.ones(1, 70000), torch.tensor(1.0))
    assert loss.item() == pytest.approx(1 - 70001 / 105001, abs=1e-6)
