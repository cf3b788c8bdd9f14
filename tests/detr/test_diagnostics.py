from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from momentdetr.detr import diagnostics, systems
from momentdetr.detr.attention import CrossAttention, Guidance
from momentdetr.detr.deformable import attend_points
from momentdetr.detr.diagnostics import (
    Glance,
    anchor_offsets,
    attention_maps,
    box_offsets,
    discriminability,
    feature_scores,
    freeze_queries,
    instability,
    match,
    sampling,
    target_of_query,
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
        product = seen.content * seen.spatial
        torch.testing.assert_close(product / product.sum(-1, keepdim=True), seen.combined)


@pytest.mark.parametrize("row", ["detr", "conditional_detr", "dab_detr"])
def test_what_tokens_hold_does_not_move_the_spatial_map_nor_where_they_are_the_one_by_content(row: str) -> None:
    detector, maps, mask = make(row, 2)
    with watch(detector.eval().detr.decoder) as glances:
        detector(maps, mask)
    glance = glances[1]  # the first layer's content carries positions
    seen, memory = attention_maps(glance), glance.memory
    assert memory.positions is not None
    other = attention_maps(replace(glance, memory=memory.with_tokens(torch.randn_like(memory.tokens))))
    torch.testing.assert_close(other.spatial, seen.spatial)
    assert (other.content - seen.content).abs().max() > 1e-3
    moved = attention_maps(replace(glance, memory=memory.with_positions(torch.randn_like(memory.positions))))
    torch.testing.assert_close(moved.content, seen.content)
    assert (moved.spatial - seen.spatial).abs().max() > 1e-3


def test_detr_s_spatial_map_equals_a_loop_over_heads() -> None:
    """Conditional DETR's figure 1: the whole query, content and position, against the keys' positions."""
    detector, maps, mask = make("detr", 2)
    with watch(detector.eval().detr.decoder) as glances:
        detector(maps, mask)
    glance, size = glances[0], SIZES.width // SIZES.num_heads
    query = glance.attention.query(glance.content + glance.guidance.positions)
    key = glance.memory.positions @ glance.attention.key.weight.T
    found = attention_maps(glance).spatial
    for sample in range(2):
        real = glance.memory.mask[sample]
        for head in range(SIZES.num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[sample, :, part] @ key[sample, real, part].T / math.sqrt(size)
            torch.testing.assert_close(found[sample, head][:, real], scores.softmax(-1))


def test_an_encoder_s_maps_are_what_it_looks_with(num_dims: int) -> None:
    detector, maps, mask = make("dab_detr", num_dims)  # its encoder scales the positions
    with watch(detector.eval().detr.encoder) as glances:
        detector(maps, mask)
    assert len(glances) == SIZES.encoder_layers
    glance, attention = glances[0], glances[0].attention
    value = attention.value(glance.content).unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = attention.out((attention_maps(glance).combined @ value).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(mixed, attention(glance.content, glance.memory))


def test_tokens_without_positions_are_told_apart_by_content_alone() -> None:
    attention, tokens = CrossAttention(8, 2), torch.randn(1, 5, 8)
    queries = torch.randn(2, 1, 3, 8)
    seen = attention_maps(Glance(attention, queries[0], Guidance(queries[1]), Memory(tokens)))
    torch.testing.assert_close(seen.spatial, torch.full((1, 2, 3, 5), 0.2))
    torch.testing.assert_close(seen.content, seen.combined)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_sampling_is_what_deformable_attention_reads(num_dims: int, side: str) -> None:
    detector, maps, mask = make("dino", num_dims)
    detector.eval()
    with watch(getattr(detector.detr, side)) as glances:
        detector(maps, mask)
    assert len(glances) == {"encoder": SIZES.encoder_layers, "decoder": SIZES.decoder_layers}[side]
    for glance in glances:
        points, attention = sampling(glance), glance.attention
        torch.testing.assert_close(points.weights.sum((-1, -2)), torch.ones_like(points.weights.sum((-1, -2))))
        value = attention.value(glance.memory.tokens).masked_fill(~glance.memory.mask[..., None], 0)
        mixed = attend_points(
            value.unflatten(-1, (2, -1)), glance.memory.level_shapes, points.locations, points.weights
        )
        given = (glance.guidance, glance.memory) if side == "decoder" else (glance.memory,)
        torch.testing.assert_close(attention.out(mixed), attention(glance.content, *given))
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
    assert target_of_query(before, 2, 4).tolist() == [[1, -1, 0, -1], [-1, 0, -1, -1]]
    # Sample 0: query 2 lost target 0 and query 3 gained it; sample 1 did not change.
    assert instability(before, after, 2, 4).tolist() == [2, 0]
    assert instability(before, before, 2, 4).tolist() == [0, 0]


def test_matching_is_the_last_layer_s_and_leaves_the_mode_as_it_was(num_dims: int) -> None:
    detector, maps, mask = make("dn_detr", num_dims)
    targets = targets_of(num_dims)
    found = match(detector, maps, mask, targets)
    assert detector.training
    with torch.no_grad():
        expected = detector.criterion(detector.eval()(maps, mask), targets).assignments[""]
    assert torch.equal(found.query, expected.query)
    assert not match(detector, maps, mask, targets).query.requires_grad
    assert not detector.training
    assert instability(found, found, 2, SIZES.num_queries).tolist() == [0, 0]


def targets_of(num_dims: int) -> Targets:
    boxes = torch.full((2, 1, 2 * num_dims), 0.4).double()
    return Targets(torch.zeros(2, 1, dtype=torch.long), boxes, torch.ones(2, 1).bool())


def test_offsets_lead_from_anchors_to_targets_and_to_predictions(num_dims: int) -> None:
    detector, maps, mask = make("dab_detr", num_dims)
    output = detector(maps, mask)
    assignment = Assignment(torch.tensor([0, 1]), torch.tensor([3, 0]), torch.tensor([0, 0]))
    found = anchor_offsets(output, assignment, targets_of(num_dims))
    assert found.shape == (2, 2, 2 * num_dims)
    torch.testing.assert_close(output.references[1][1, 0] + found[1, 1], torch.full((2 * num_dims,), 0.4).double())
    moved = box_offsets(output)
    assert moved.shape == (2, 2, SIZES.num_queries, 2 * num_dims)
    torch.testing.assert_close(output.references[0] + moved[0], output.layers[0].boxes)


def test_offsets_of_points_have_no_sizes(num_dims: int) -> None:
    detector, maps, mask = make("deformable_detr", num_dims, refine=True)
    output = detector(maps, mask)  # starts from points, goes on from boxes
    assert [anchor.shape[-1] for anchor in output.references] == [num_dims, 2 * num_dims]
    assert box_offsets(output).shape == (2, 2, SIZES.num_queries, num_dims)


def test_systems_without_anchors_have_no_offsets() -> None:
    detector, maps, mask = make("detr", 1)
    with pytest.raises(ValueError, match="no anchors"):
        box_offsets(detector(maps, mask))


def test_a_sample_of_padding_is_looked_at_nowhere() -> None:
    detector, maps, mask = make("detr", 2)
    mask[1] = False
    with watch(detector.eval().detr.decoder) as glances:
        detector(maps, mask)
    seen = attention_maps(glances[0]).on_grid(glances[0].memory.level_shapes[0])
    assert seen.combined.shape[-2:] == (4, 3)
    torch.testing.assert_close(seen.combined.sum((-1, -2))[0], torch.ones(2, SIZES.num_queries).double())
    assert seen.combined[1].abs().sum() == 0


def test_discriminability_equals_a_count_by_hand() -> None:
    tokens = torch.tensor([[[4.0], [2.0], [1.0], [8.0], [9.0], [3.0]]])  # two levels: four cells, then two
    places = torch.tensor([[[0.125], [0.375], [0.625], [0.875], [0.25], [0.75]]])
    mask = torch.tensor([[1, 1, 1, 0, 1, 1]]).bool()
    memory = Memory(tokens, mask, level_shapes=((4,), (2,)), references=places)
    # The fourth cell is padding. Finest level: 1, 1/2, 1/4, 0; the other, between its cells: 1, 5/6, 1/2, 1/3.
    expected = torch.tensor([[1.0, 2 / 3, 3 / 8, 1 / 6]])
    torch.testing.assert_close(feature_scores(memory), expected)
    targets = Targets(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[[0.25, 0.5]]]), torch.ones(1, 1).bool())
    curve = discriminability(memory, targets, num_thresholds=4)  # two cells inside, one outside, one of padding
    torch.testing.assert_close(curve.thresholds, torch.tensor([0, 3 / 8, 2 / 3, 1]))
    assert curve.foreground.tolist() == [1.0, 1.0, 0.5, 0.0]
    assert curve.background.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_lengths_that_hardly_differ_are_told_apart_all_the_same() -> None:
    inside = torch.arange(8) < 3
    tokens = torch.where(inside, 1.001, 1.0) + 1e-5 * torch.arange(8)
    places = (torch.arange(8) + 0.5)[None, :, None] / 8
    memory = Memory(tokens[None, :, None], level_shapes=((8,),), references=places)
    targets = Targets(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[[3 / 16, 3 / 8]]]), torch.ones(1, 1).bool())
    curve = discriminability(memory, targets, num_thresholds=9)
    best = (curve.foreground - curve.background).max()
    assert best == 1  # one threshold parts them
    assert (curve.foreground[0], curve.background[-1]) == (1, 0)


def test_nothing_valid_has_a_curve_of_nothing() -> None:
    memory = Memory(torch.ones(1, 4, 1), torch.zeros(1, 4).bool(), level_shapes=((4,),), references=torch.rand(1, 4, 1))
    curve = discriminability(memory, Targets(torch.zeros(1, 0).long(), torch.zeros(1, 0, 2), torch.zeros(1, 0).bool()))
    assert curve.foreground.sum() == curve.background.sum() == 0


def test_scores_live_on_the_finest_level(num_dims: int) -> None:
    detector, maps, mask = make("dino", num_dims)
    memory = detector.detr.encoder(detector.neck(maps, mask))
    scores = feature_scores(memory)
    assert scores.shape == (2, math.prod(memory.level_shapes[0]))
    assert ((scores >= 0) & (scores <= 1)).all()


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


def test_queries_of_another_size_are_not_frozen() -> None:
    trained, _, _ = make("detr", 1)
    other = systems.detr(Task(1, (6, 8), 3), replace(SIZES, num_queries=5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        freeze_queries(trained.detr, other.detr)


def test_everything_is_importable_from_one_place() -> None:
    assert all(hasattr(diagnostics, name) for name in diagnostics.__all__)
