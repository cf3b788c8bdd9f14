"""Each row of the table, in one, two and three dimensions."""

from __future__ import annotations

import re

import pytest
import torch
from every_row import CLASSES, ROWS, SIZES, build, make_targets
from torch import Tensor

from momentdetr.detr import systems
from momentdetr.detr.assembly import Task

# What no loss can move: a key's bias shifts all scores of a softmax alike; and a first dense self-attention mixes
# contents that are all zero, so that nothing before its mixture matters.
SILENT = (
    r".*\.key(_content|_position)?\.bias",
    r"detr\.decoder\.layers\.0\.self_attention\.(query|key|value)(_content|_position)?\..*",
)


PRE_NORM = (r"detr\.decoder\.layers\.0\.norm_self\.weight",)  # a norm of nothing


def make_inputs(num_dims: int) -> tuple[list[Tensor], Tensor]:
    """Two maps, the second sample half as long as the first along the last axis."""
    generator = torch.Generator().manual_seed(4)
    shape = {1: (32,), 2: (16, 16), 3: (8, 8, 8)}[num_dims]
    mask = torch.ones(2, *shape, dtype=torch.bool)
    mask[1, ..., shape[-1] // 2 :] = False
    maps = [
        torch.randn(2, channels, *(size // 2**level for size in shape), generator=generator)
        for channels, level in ((5, 1), (7, 2))
    ]
    return maps, mask


@pytest.mark.parametrize("row", ROWS)
def test_forward_loss_and_backward(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    losses = detector.loss(maps, mask, make_targets(num_dims), generator=torch.Generator().manual_seed(1))
    assert losses.total.isfinite()
    losses.total.backward()
    silent = {name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 1e-9}
    explained = (*SILENT, *PRE_NORM) if "pre-norm" in row else SILENT
    unexplained = {name for name in silent if not any(re.fullmatch(pattern, name) for pattern in explained)}
    assert not unexplained


@pytest.mark.parametrize("row", ROWS)
def test_answers_have_the_family_s_form(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    with torch.no_grad():
        output = detector.eval()(maps, mask)
    queries = SIZES.num_queries * (2 if "patterns" in row else 1)
    classes = CLASSES + row.startswith("detr")
    assert len(output.layers) == SIZES.decoder_layers
    for layer in output.layers:
        assert layer.logits.shape == (2, queries, classes)
        assert layer.boxes.shape == (2, queries, 2 * num_dims)
        assert ((layer.boxes >= 0) & (layer.boxes <= 1)).all()


@pytest.mark.parametrize("row", ROWS)
def test_no_targets_cost_only_background(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    losses = detector.loss(maps, mask, make_targets(num_dims, (0, 0), room=1))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(value == 0 for name, value in losses.terms.items() if not name.startswith("class"))
    if detector.detr.denoising is not None:  # every process must see a gradient for each parameter
        assert all(p.grad is not None for p in detector.detr.denoising.parameters())


# Where nothing of a sample depends on the batch's padding; level by level, strided convolutions read across it.
ALONE = [row for row in ROWS if row.split(",")[0] in ("detr", "conditional_detr", "dab_detr")]


@pytest.mark.parametrize("row", [row for row in ALONE if "learned" not in row])
def test_batched_equals_alone(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims).double().eval(), make_inputs(num_dims)
    with torch.no_grad():
        batched = detector([m.double() for m in maps], mask).last
        half = mask.shape[-1] // 2
        small = [m[1:, ..., : m.shape[-1] // 2].double() for m in maps]
        alone = detector(small, mask[1:, ..., :half]).last
    torch.testing.assert_close(batched.logits[1:], alone.logits, atol=1e-5, rtol=1e-5)  # positions are float32
    torch.testing.assert_close(batched.boxes[1:], alone.boxes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", [row for row in ROWS if row.startswith(("dn", "dino"))])
def test_matching_queries_do_not_see_the_groups(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    with torch.no_grad():
        plain = detector(maps, mask)
        grouped = detector(maps, mask, make_targets(num_dims))
    torch.testing.assert_close(grouped.last.boxes, plain.last.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grouped.last.logits, plain.last.logits, atol=1e-5, rtol=1e-4)


def gradient_of_second_loss(row: str, num_dims: int) -> Tensor:
    """How the last layer's boxes move the first layer's box head, alone of all parameters."""
    detector, (maps, mask) = build(row, num_dims), make_inputs(num_dims)
    heads = detector.detr.decoder.heads
    output = detector(maps, mask)
    parameter = heads[0].boxes.layers[-1].bias  # type: ignore[union-attr, index]
    (gradient,) = torch.autograd.grad(output.last.boxes.sum(), [parameter], allow_unused=True)
    return torch.zeros(()) if gradient is None else gradient.abs().sum()


def test_only_looking_forward_twice_reaches_the_layer_before(num_dims: int) -> None:
    assert gradient_of_second_loss("deformable_detr, refine", num_dims) == 0
    assert gradient_of_second_loss("dab_deformable_detr", num_dims) == 0
    assert gradient_of_second_loss("dino, unshared", num_dims) > 0


@pytest.mark.parametrize("row", ["deformable_detr, two-stage", "dn_dino", "dino"])
def test_given_proposals_are_started_from(row: str, num_dims: int) -> None:
    detector, (maps, mask) = build(row, num_dims).eval(), make_inputs(num_dims)
    chosen = torch.arange(SIZES.num_queries).expand(2, -1)
    with torch.no_grad():
        one, other = (detector(maps, mask, proposals=tokens) for tokens in (chosen, chosen.flip(1)))
    torch.testing.assert_close(one.references[0], other.references[0].flip(1))


def test_two_stages_need_refinement() -> None:
    with pytest.raises(ValueError, match="refine=True"):
        systems.deformable_detr(Task(2, (5,), CLASSES), SIZES, two_stage=True)
