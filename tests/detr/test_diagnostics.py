from __future__ import annotations

import pytest
import torch

from momentdetr.detr import systems
from momentdetr.detr.diagnostics import (
    anchor_offsets,
    attention_maps,
    discriminability,
    freeze_queries,
    instability,
    reference_logit_steps,
    sampling,
    tokens_inside,
    watch,
)
from momentdetr.detr.systems import Sizes, Task
from momentdetr.detr.types import Assignment, Memory, Targets

SIZES = Sizes(
    width=24,
    num_heads=2,
    feed_forward=24,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=4,
    num_levels=2,
    group_norm=4,
)


def make(row: str, num_dims: int, **options: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    detector = getattr(systems, row)(Task(num_dims, (6, 8), 3), SIZES, **options)
    with torch.no_grad():  # away from zero-initialised heads and offsets
        for parameter in detector.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    maps = [torch.randn(2, c, *s) for c, s in ((6, (8, 6, 4)[:num_dims]), (8, (4, 3, 2)[:num_dims]))]
    mask = torch.ones(2, *(16, 12, 8)[:num_dims], dtype=torch.bool)
    mask[1, -4:] = False
    return detector.double(), [m.double() for m in maps], mask


@pytest.mark.parametrize("row", ["detr", "conditional_detr", "dab_detr"])
def test_combined_maps_are_what_the_model_looks_with(row: str, num_dims: int) -> None:
    detector, maps, mask = make(row, num_dims)
    detector.eval()
    with watch(detector.detr.decoder) as glances:
        detector(maps, mask)
    assert len(glances) == 2
    for glance in glances:
        seen = attention_maps(glance)
        for part in (seen.content, seen.spatial, seen.combined):
            torch.testing.assert_close(part.sum(-1), torch.ones_like(part.sum(-1)))
            assert glance.memory.mask is not None
            assert part[1][..., ~glance.memory.mask[1]].abs().sum() == 0
        attention = glance.attention
        value = attention.value(glance.memory.tokens).unflatten(-1, (2, -1)).transpose(1, 2)
        mixed = attention.out((seen.combined @ value).transpose(1, 2).flatten(-2))
        torch.testing.assert_close(mixed, attention(glance.content, glance.guidance, glance.memory))


def test_sampling_is_what_deformable_attention_reads(num_dims: int) -> None:
    detector, maps, mask = make("dino", num_dims)
    detector.eval()
    with watch(detector.detr.decoder) as glances:
        detector(maps, mask)
    from momentdetr.detr.deformable import attend_points

    for glance in glances:
        points, attention = sampling(glance), glance.attention
        torch.testing.assert_close(points.weights.sum((-1, -2)), torch.ones_like(points.weights.sum((-1, -2))))
        value = attention.value(glance.memory.tokens).masked_fill(~glance.memory.mask[..., None], 0)
        mixed = attend_points(
            value.unflatten(-1, (2, -1)), glance.memory.level_shapes, points.locations, points.weights
        )
        torch.testing.assert_close(attention.out(mixed), attention(glance.content, glance.guidance, glance.memory))
    with pytest.raises(ValueError, match="no attention maps"):
        attention_maps(glances[0])


def test_dense_attention_samples_no_points() -> None:
    detector, maps, mask = make("detr", 2)
    with watch(detector.detr.decoder) as glances:
        detector(maps, mask)
    with pytest.raises(ValueError, match="samples no points"):
        sampling(glances[0])
    detector(maps, mask)
    assert len(glances) == 2  # the record ends with the block


def test_instability_counts_changed_targets_by_hand() -> None:
    before = Assignment(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), torch.tensor([1, 0, 0]))
    after = Assignment(torch.tensor([0, 0, 1]), torch.tensor([0, 3, 1]), torch.tensor([1, 0, 0]))
    # Sample 0: query 2 lost target 0 and query 3 gained it; sample 1 did not change.
    assert instability(before, after, 2, 4).tolist() == [2, 0]
    assert instability(before, before, 2, 4).tolist() == [0, 0]


def test_anchor_offsets_and_steps(num_dims: int) -> None:
    detector, maps, mask = make("dab_detr", num_dims)
    output = detector(maps, mask)
    targets = Targets(
        torch.zeros(2, 1, dtype=torch.long), torch.full((2, 1, 2 * num_dims), 0.4).double(), torch.ones(2, 1).bool()
    )
    assignment = Assignment(torch.tensor([0, 1]), torch.tensor([3, 0]), torch.tensor([0, 0]))
    found = anchor_offsets(output, assignment, targets)
    expected = (output.references[1][1, 0, :num_dims] - 0.4).abs().sum()
    torch.testing.assert_close(found[1, 1], expected)
    steps = reference_logit_steps(output)
    torch.testing.assert_close(steps[0], torch.logit(output.references[1]) - torch.logit(output.references[0]))


def test_discriminability_equals_a_count_by_hand() -> None:
    tokens = torch.tensor([[[4.0], [2.0], [1.0], [0.0], [9.0], [3.0]]])  # two levels: four cells, then two
    memory = Memory(tokens, torch.tensor([[1, 1, 1, 0, 1, 1]]).bool(), level_shapes=((4,), (2,)))
    inside = torch.tensor([[True, True, False, False, True, False]])
    curve = discriminability(memory, inside, num_thresholds=3)
    # Scores: 1, .5, .25, (padding) | 1, .33; thresholds 0, .5, 1.
    assert curve.foreground.tolist() == pytest.approx([1.0, 2 / 3, 0.0])
    assert curve.background.tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_tokens_inside_a_target() -> None:
    memory = Memory(torch.zeros(1, 4, 1), references=torch.tensor([[[0.1], [0.3], [0.6], [0.9]]]), level_shapes=((4,),))
    boxes = torch.tensor([[[0.3, 0.2], [0.9, 0.1]]])
    targets = Targets(torch.zeros(1, 2, dtype=torch.long), boxes, torch.tensor([[True, False]]))
    assert tokens_inside(memory, targets).tolist() == [[False, True, False, False]]


def test_frozen_queries_stay_while_the_rest_trains() -> None:
    trained, maps, mask = make("detr", 1)
    fresh, _, _ = make("detr", 1)
    with torch.no_grad():
        trained.detr.queries.positions.mul_(2)
    assert freeze_queries(trained.detr, fresh.detr) == ["queries.positions"]
    assert torch.equal(fresh.detr.queries.positions, trained.detr.queries.positions)
    fresh(maps, mask).last.boxes.sum().backward()
    assert fresh.detr.queries.positions.grad is None
    assert fresh.neck.projections[0][0].weight.grad is not None
