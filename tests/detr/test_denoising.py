from __future__ import annotations

import pytest
import torch
from torch import Tensor

from momentdetr.detr.assembly import Sizes, Task
from momentdetr.detr.boxes import inverse_sigmoid, to_center_size, to_corners
from momentdetr.detr.denoising import Denoising, Draws, Group, PairedDenoising, touch
from momentdetr.detr.systems import dino
from momentdetr.detr.types import Output, Predictions, Queries, Targets

WIDTH, CLASSES, MATCHING = 8, 5, 3
CHANNELS = (4, 6)
SIZES = Sizes(WIDTH, 2, 8, encoder_layers=1, decoder_layers=2, num_queries=4, num_levels=2, num_points=2, group_norm=2)


def make_targets(num_dims: int) -> Targets:
    """Three, one and no targets; the first sample's mask has a hole."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.tensor([[True, False, True, True], [True, False, False, False], [False] * 4])
    boxes = torch.rand(3, 4, 2 * num_dims, generator=generator) * 0.4 + 0.3
    boxes[..., num_dims:] *= 0.4  # so small that no noise carries them over the edge
    return Targets(torch.randint(0, CLASSES, (3, 4), generator=generator), boxes, mask)


def make(kind: str, **options: object) -> Denoising:
    torch.manual_seed(0)
    if kind == "paired":
        return PairedDenoising(CLASSES, WIDTH, **options)
    if kind == "contrastive":
        return Denoising(CLASSES, WIDTH, contrastive=True, indicator=False, **options)  # type: ignore[arg-type]
    return Denoising(CLASSES, WIDTH, **options)  # type: ignore[arg-type]


KINDS = ["plain", "contrastive", "paired"]


def drawn(denoising: Denoising, targets: Targets, seed: int = 3) -> tuple[Group, Draws]:
    rows = denoising.rows(targets)
    assert rows is not None
    generator = torch.Generator().manual_seed(seed)
    draws = denoising.draw(len(rows.sample), targets.boxes.shape[-1], targets.boxes, generator)
    group = denoising(targets, draws)
    assert group is not None
    return group, draws


def test_plain_groups_equal_a_naive_construction(num_dims: int) -> None:
    """DN-DETR: group by group, sample by sample, target by target."""
    denoising, targets = make("plain", groups=2, label_noise=0.5, box_noise=0.4), make_targets(num_dims)
    group, draws = drawn(denoising, targets)
    content, anchors = torch.zeros(3, 6, WIDTH), torch.zeros(3, 6, 2 * num_dims)
    row = flipped = 0
    for repeat in range(2):
        for sample in range(3):
            for place, target in enumerate(targets.mask[sample].nonzero().flatten().tolist()):
                label, box = targets.labels[sample, target], targets.boxes[sample, target].clone()
                if draws.flip[row] < 0.5:
                    label, flipped = draws.labels[flipped], flipped + 1
                size = box[num_dims:].clone()
                noise = (draws.boxes[row] * 2 - 1) * 0.4
                box = (box + noise * torch.cat([size / 2, size])).clamp(0, 1)
                slot = repeat * 3 + place
                content[sample, slot] = torch.cat([denoising.labels.weight[label], torch.ones(1)])
                anchors[sample, slot] = inverse_sigmoid(box, 1e-3)
                row += 1
    assert row == len(draws.flip) == 8
    torch.testing.assert_close(group.queries.content, content)
    torch.testing.assert_close(group.queries.anchors, anchors)


@pytest.mark.parametrize("outer", [1.0, 1.25])
def test_contrastive_groups_equal_a_naive_construction(num_dims: int, outer: float) -> None:
    """DINO: each group a near ring, then a far one; corners move by less than, or at least, half a size."""
    denoising = make("contrastive", groups=2, label_noise=0.3, box_noise=1.0, outer=outer)
    targets = make_targets(num_dims)
    group, draws = drawn(denoising, targets)
    assert draws.signs is not None
    assert group.queries.anchors is not None
    row = flipped = 0
    for ring in range(4):
        for sample in range(3):
            for place, target in enumerate(targets.mask[sample].nonzero().flatten().tolist()):
                label, box = targets.labels[sample, target], targets.boxes[sample, target]
                if draws.flip[row] < 0.3:
                    label, flipped = draws.labels[flipped], flipped + 1
                half = box[num_dims:].repeat(2) / 2
                reach = (draws.boxes[row] + outer * (ring % 2)) * draws.signs[row]
                moved = to_center_size((to_corners(box) + reach * half).clamp(0, 1))
                slot = ring * 3 + place
                torch.testing.assert_close(group.queries.content[sample, slot], denoising.labels.weight[label])
                torch.testing.assert_close(group.queries.anchors[sample, slot], inverse_sigmoid(moved, 1e-3))
                assert group.rows.near[row] == (ring % 2 == 0)
                row += 1
    assert row == len(draws.flip)
    assert group.rows.size == 6
    assert group.rows.groups == 2


def test_paired_groups_of_one_sample_are_its_targets_then_copies_to_refuse(num_dims: int) -> None:
    whole = make_targets(num_dims)
    targets = Targets(whole.labels[:1], whole.boxes[:1], whole.mask[:1])
    denoising = make("paired", groups=2, label_noise=0.0)
    group, _ = drawn(denoising, targets)
    assert group.rows.slot.tolist() == list(range(12))
    assert group.rows.near.tolist() == group.rows.named.tolist() == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3
    labels = targets.labels[targets.mask].tolist()
    shown = [*labels, CLASSES, CLASSES, CLASSES] * 2
    torch.testing.assert_close(group.queries.content[0, :, :-1], denoising.labels.weight[shown])
    assert (group.queries.content[0, :, -1] == 1).all()


def test_paired_groups_of_several_samples_keep_the_official_halves(num_dims: int) -> None:
    """Rows are sample by sample, targets and copies; near are the first half of all of them together."""
    rows = make("paired", groups=1).rows(make_targets(num_dims))
    assert rows is not None
    assert rows.sample.tolist() == [0] * 6 + [1] * 2
    assert rows.named.tolist() == [True] * 3 + [False] * 3 + [True, False]
    assert rows.near.tolist() == [True] * 4 + [False] * 4
    assert rows.slot.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_who_sees_whom(kind: str, num_dims: int) -> None:
    denoising, targets = make(kind, groups=2), make_targets(num_dims)
    group, _ = drawn(denoising, targets)
    matching = Queries(torch.zeros(3, MATCHING, WIDTH), anchors=torch.zeros(3, MATCHING, 2 * num_dims))
    mask = denoising.join(group, matching).mask
    assert mask is not None
    total, size = group.rows.total, group.rows.size
    assert mask.shape == (total + MATCHING, total + MATCHING)
    for i in range(total + MATCHING):
        for j in range(total + MATCHING):
            matching_j = j >= total
            same_group = i < total and j < total and i // size == j // size
            assert mask[i, j] == (matching_j or same_group), (i, j)


@pytest.mark.parametrize(("longest", "groups"), [(1, 100), (3, 33), (100, 1), (300, 1)])
def test_a_budget_of_queries_is_shared_by_the_most_targets(longest: int, groups: int) -> None:
    assert make("contrastive", groups=None, budget=100).num_groups(longest) == groups


@pytest.mark.parametrize("kind", KINDS)
def test_without_targets_there_are_no_groups(kind: str, num_dims: int) -> None:
    whole = make_targets(num_dims)
    assert make(kind)(Targets(whole.labels, whole.boxes, torch.zeros_like(whole.mask))) is None
    assert make(kind)(Targets(whole.labels[:, :0], whole.boxes[:, :0], whole.mask[:, :0])) is None


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_noise_follows_the_generator_and_stays_in_its_ring(kind: str, num_dims: int) -> None:
    denoising, targets = make(kind, groups=30, box_noise=0.4), make_targets(num_dims)
    first, again, other = (denoising(targets, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.queries.anchors is not None
    torch.testing.assert_close(first.queries.anchors, again.queries.anchors)
    assert not torch.equal(first.queries.anchors, other.queries.anchors)
    if kind == "plain":
        return
    rows = first.rows
    true = targets.boxes[rows.sample, rows.target]
    moved = to_corners(first.queries.anchors[rows.sample, rows.slot].sigmoid()) - to_corners(true)
    reach = moved.abs() / (true[:, num_dims:].repeat(1, 2) / 2 * 0.4)
    assert reach[rows.near].max() <= 1.01
    assert reach[~rows.near].min() >= 0.98
    assert reach[~rows.near].max() <= 2.01


def said(total: int, num_dims: int) -> Output:
    generator = torch.Generator().manual_seed(9)

    def layer() -> Predictions:
        logits = torch.randn(3, total + MATCHING, CLASSES, generator=generator)
        return Predictions(logits, torch.rand(3, total + MATCHING, 2 * num_dims, generator=generator))

    layers = (layer(), layer())
    return Output(layers, torch.zeros(2, 3, total + MATCHING, WIDTH), (layers[0].boxes,))


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_gives_the_matching_queries_back(kind: str, num_dims: int) -> None:
    denoising, targets = make(kind, groups=2), make_targets(num_dims)
    group, _ = drawn(denoising, targets)
    output = said(group.rows.total, num_dims)
    split = denoising.split(output, group, targets)
    for mine, whole in zip(split.layers, output.layers, strict=True):
        torch.testing.assert_close(mine.logits, whole.logits[:, -MATCHING:])
        torch.testing.assert_close(mine.boxes, whole.boxes[:, -MATCHING:])
    assert split.hidden.shape[2] == split.references[0].shape[1] == MATCHING
    assert {s.name for s in split.supervisions} == {"denoising", "denoising_0"}
    assert {s.name for s in split.supervisions if s.auxiliary} == {"denoising_0"}


def test_groups_of_no_weight_are_judged_but_not_summed() -> None:
    """DINO's code without `use_dn`."""
    task = Task(2, CHANNELS, CLASSES)
    quiet, loud = (dino(task, SIZES, denoising=make("contrastive", groups=1, weight=weight)) for weight in (0.0, 1.0))
    quiet.load_state_dict(loud.state_dict())
    maps = [torch.randn(3, CHANNELS[0], 6, 8), torch.randn(3, CHANNELS[1], 3, 4)]
    mask, targets = torch.ones(3, 12, 16, dtype=torch.bool), make_targets(2)
    without, whole = (
        detector.loss(maps, mask, targets, generator=torch.Generator().manual_seed(0)) for detector in (quiet, loud)
    )
    assert without.terms.keys() == whole.terms.keys()
    torch.testing.assert_close(without.terms["class_denoising"], whole.terms["class_denoising"])
    weights = loud.criterion.weights
    noised = [value * weights[name.split("_")[0]] for name, value in whole.terms.items() if "denoising" in name]
    torch.testing.assert_close(whole.total - without.total, torch.stack(noised).sum())


def judged_pairs(denoising: Denoising, num_dims: int) -> tuple[list[tuple[Tensor, Tensor, Tensor, Tensor]], Tensor]:
    """(logits, class, box, true box) of each answer of the last layer, and what is divided by."""
    targets = make_targets(num_dims)
    group, _ = drawn(denoising, targets)
    split = denoising.split(said(group.rows.total, num_dims), group, targets)
    (last,) = [s for s in split.supervisions if s.name == "denoising"]
    true, who = last.targets or targets, last.assignment
    assert who is not None
    assert last.count is not None
    rows = zip(
        last.predictions.logits[who.sample, who.query],
        true.labels[who.sample, who.target],
        last.predictions.boxes[who.sample, who.query],
        true.boxes[who.sample, who.target],
        strict=True,
    )
    return list(rows), last.count


def test_plain_rows_answer_for_their_own_targets(num_dims: int) -> None:
    denoising, targets = make("plain", groups=2), make_targets(num_dims)
    rows, count = judged_pairs(denoising, num_dims)
    assert count == len(rows) == 8
    whole = said(6, num_dims).last
    expected = [
        (whole.logits[sample, repeat * 3 + place], targets.labels[sample, target])
        for repeat in range(2)
        for sample in range(3)
        for place, target in enumerate(targets.mask[sample].nonzero().flatten().tolist())
    ]
    for (logits, label, _, _), (wanted, true) in zip(rows, expected, strict=True):
        torch.testing.assert_close(logits, wanted)
        assert label == true


def test_contrastive_rows_of_the_near_ring_answer_and_all_others_are_background(num_dims: int) -> None:
    denoising = make("contrastive", groups=2)
    rows, count = judged_pairs(denoising, num_dims)
    assert len(rows) == 8
    assert count == 4 * 2  # targets times groups


def test_matching_queries_are_marked(num_dims: int) -> None:
    denoising = make("plain")
    room = Queries(torch.randn(1, 3, WIDTH - 1))
    torch.testing.assert_close(denoising.matching_content(room).content[..., :-1], room.content)
    assert (denoising.matching_content(room).content[..., -1] == 0).all()
    full = Queries(torch.randn(1, 3, WIDTH))
    unknown = torch.cat([denoising.labels.weight[CLASSES], torch.zeros(1)])
    torch.testing.assert_close(denoising.matching_content(full).content, full.content + unknown)
    assert make("plain", unknown=False).matching_content(full) is full
    assert make("contrastive").matching_content(full) is full


def test_unused_parameters_are_touched_without_changing_anything() -> None:
    denoising = make("plain")
    output = said(0, 1)
    touched = touch([denoising], output)
    torch.testing.assert_close(touched.last.logits, output.last.logits)
    touched.last.logits.sum().backward()
    assert denoising.labels.weight.grad is not None
    assert (denoising.labels.weight.grad == 0).all()
