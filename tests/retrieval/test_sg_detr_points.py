"""SG-DETR's one-to-many head against plain loops: anchors, coding, assignment, terms, the queries that it lends."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from momentdetr.detr.assignment_dense import BACKGROUND
from momentdetr.detr.boxes import to_corners
from momentdetr.detr.losses import Losses
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.types import Predictions, Supervision, Targets
from momentdetr.retrieval.encoders.sg_detr_points import (
    Assigned,
    LentQueries,
    SpanCoder,
    SpanHead,
    lent_rows,
    span_anchors,
)
from momentdetr.retrieval.presets_sg_detr import ANCHORS, POINT_TERMS, STRIDES
from momentdetr.retrieval.pyramid import Level, level_mask

WIDTH, PADDED = 8, 11
LENGTHS = (11, 6, 9)


@pytest.fixture
def levels() -> list[Level]:
    torch.manual_seed(0)
    mask = torch.arange(PADDED)[None] < torch.tensor(LENGTHS)[:, None]
    masks = [level_mask(mask, stride) for stride in STRIDES]
    return [
        Level(torch.randn(*own.shape, WIDTH, dtype=torch.float64), own, stride)
        for own, stride in zip(masks, STRIDES, strict=True)
    ]


@pytest.fixture
def targets() -> Targets:
    """Two moments that overlap, one behind a hole in the mask, none."""
    boxes = torch.tensor(
        [[[0.35, 0.4], [0.5, 0.8]], [[0.0, 0.0], [0.6, 0.5]], [[0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64
    )
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    return Targets(torch.zeros(3, 2, dtype=torch.long), boxes, mask)


@pytest.fixture
def head() -> SpanHead:
    torch.manual_seed(1)
    made = SpanHead(WIDTH, STRIDES, ANCHORS, stacked=2, nearest=3, weights=POINT_TERMS).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def num_clips() -> Tensor:
    return torch.tensor(LENGTHS)


def test_the_first_anchors_are_the_published_ones() -> None:
    """The four pairs that the official checkpoints hold."""
    first = [(-1.25, 1.75), (-7.0, 8.0), (-14.5, 16.5), (-29.5, 33.5)]
    for stride, size, pair in zip(STRIDES, ANCHORS, first, strict=True):
        anchors = span_anchors([3], [stride], [size], torch.zeros((), dtype=torch.float64))
        expected = [[edge + stride * cell for edge in pair] for cell in range(3)]
        assert anchors.tolist() == expected


def naive_decode(anchor: list[float], delta: list[float]) -> tuple[float, float]:
    length, middle = anchor[1] - anchor[0] + 1, (anchor[0] + anchor[1]) / 2
    wide = math.exp(min(delta[1] / 5, math.log(62.5))) * length
    center = middle + delta[0] / 10 * length
    return center - (wide - 1) / 2, center + (wide - 1) / 2


def test_coding_counts_a_clip_more_than_lies_between() -> None:
    torch.manual_seed(0)
    anchors = to_corners(torch.rand(20, 2).double() * 10)
    deltas = torch.randn(20, 2).double() * torch.tensor([5.0, 4.0])
    deltas[0, 1] = 100.0  # grows no further than the limit
    found = SpanCoder().decode(anchors, deltas)
    for row in range(20):
        assert found[row].tolist() == pytest.approx(naive_decode(anchors[row].tolist(), deltas[row].tolist()))
    back = SpanCoder().encode(anchors, found)
    torch.testing.assert_close(back[1:], deltas[1:])


def naive_assign(anchors: Tensor, counts: list[int], true: list[tuple[float, float]], nearest: int) -> list[int]:
    """ATSS, one moment after another; anchors (N, 2) of real cells."""
    rows = anchors.tolist()

    def overlap(row: int, moment: tuple[float, float]) -> float:
        (a, b), (c, d) = rows[row], moment
        both = max(0.0, min(b, d) - max(a, c))
        return both / (b - a + d - c - both)

    best = [(-1.0, BACKGROUND)] * len(rows)
    for index, moment in enumerate(true):
        candidates, start = [], 0
        for count in counts:
            level = range(start, start + count)
            middle = sum(moment) / 2
            candidates += sorted(level, key=lambda row: abs(sum(rows[row]) / 2 - middle))[:nearest]
            start += count
        fits = [overlap(row, moment) for row in candidates]
        least = statistics.mean(fits) + statistics.stdev(fits)
        for row, fit in zip(candidates, fits, strict=True):
            inside = moment[0] < sum(rows[row]) / 2 < moment[1]
            if fit >= least and inside and fit > best[row][0]:
                best[row] = (fit, index)
    return [index for _, index in best]


def test_cells_answer_for_moments_as_atss_says(head: SpanHead, levels: list[Level], targets: Targets) -> None:
    assigned = head.assign(levels, targets, num_clips())
    assert assigned.mask.equal(torch.cat([level.mask for level in levels], 1))
    found = 0
    for sample, length in enumerate(LENGTHS):
        here = assigned.mask[sample]
        places = targets.mask[sample].nonzero().flatten().tolist()
        true = [tuple((to_corners(targets.boxes[sample, place]) * length).tolist()) for place in places]
        counts = [int(level.mask[sample].sum()) for level in levels]
        expected = naive_assign(assigned.anchors[here], counts, true, 3)
        named = [places[index] if index >= 0 else index for index in expected]
        assert assigned.target[sample, here].tolist() == named
        assert (assigned.target[sample, ~here] == BACKGROUND).all()
        found += sum(index >= 0 for index in expected)
    assert found > 4
    assert {0, 1} <= set(assigned.target[0].tolist())


def test_middles_need_only_lie_inside(levels: list[Level], head: SpanHead) -> None:
    """A moment from clip 5.1 to 6.2: middles at 5.25 and 5.75 are inside, the third nearest, 6.25, is not."""
    box = torch.tensor([[[5.65 / 11, 1.1 / 11]]], dtype=torch.float64).expand(3, -1, -1)
    mask = torch.tensor([[True], [False], [False]])
    assigned = head.assign(levels, Targets(torch.zeros(3, 1, dtype=torch.long), box, mask), num_clips())
    found = assigned.anchors[assigned.target[0] >= 0].mean(1)
    assert found.tolist() == [5.25, 5.75]


def summed(supervision: Supervision) -> Losses:
    """As a criterion would: each term, and their weighted sum."""
    assert supervision.terms is not None
    assert supervision.targets is not None
    assert supervision.assignment is not None
    assert supervision.count is not None
    total, terms = torch.zeros(()).double(), {}
    for name, (weight, term) in supervision.terms.items():
        value = term(supervision.predictions, supervision.targets, supervision.assignment, supervision.count)
        terms[name], total = value, total + supervision.weight * weight * value
    return Losses(total, terms, {})


def naive_terms(said: Predictions, assigned: Assigned, targets: Targets) -> dict[str, float]:
    assert said.quality is not None
    told, overlap, edges, middle, central = 0.0, 0.0, 0.0, 0.0, 0.0
    positives = 0
    for sample, cell in assigned.mask.nonzero().tolist():
        logit = said.logits[sample, cell, 0].item()
        prob, target = 1 / (1 + math.exp(-logit)), int(assigned.target[sample, cell])
        if target < 0:
            told -= 0.75 * prob**2 * math.log(1 - prob)
            continue
        positives += 1
        told -= 0.25 * (1 - prob) ** 2 * math.log(prob)
        a, b = (to_corners(targets.boxes[sample, target]) * LENGTHS[sample]).tolist()
        c, d = naive_decode(assigned.anchors[cell].tolist(), said.boxes[sample, cell].tolist())
        here = assigned.anchors[cell].mean().item()
        center = min(here - a, b - here) / max(here - a, b - here)
        both = max(0.0, min(b, d) - max(a, c))
        union, hull = b - a + max(d - c, 0.0) - both, max(b, d) - min(a, c)
        overlap += center * (1 - both / union + (hull - union) / hull)
        for said_edge, true_edge in ((c, a), (d, b)):
            off = abs(said_edge - true_edge)
            edges += center * (0.5 * off**2 if off < 1 else off - 0.5)
        quality = said.quality[sample, cell].item()
        middle += math.log(1 + math.exp(quality)) - center * quality
        central += center
    assert positives
    return {
        "class": told / positives,
        "giou": overlap / central,
        "span": edges / central,
        "centerness": middle / positives,
    }


def test_terms_are_what_loops_say(head: SpanHead, levels: list[Level], targets: Targets) -> None:
    said, assigned = head(levels), head.assign(levels, targets, num_clips())
    losses = summed(head.judged(said, targets, assigned))
    expected = naive_terms(said, assigned, targets)
    assert {name: value.item() for name, value in losses.terms.items()} == pytest.approx(expected, rel=1e-6)
    weights = {"class": 2.0, "giou": 2.0, "span": 0.1, "centerness": 0.5}
    assert losses.total.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()))


def test_gradients_of_the_head(head: SpanHead, levels: list[Level], targets: Targets) -> None:
    assigned = head.assign(levels, targets, num_clips())
    cells = [level.cells.clone().requires_grad_() for level in levels]

    def total(*values: Tensor) -> Tensor:
        given = [Level(value, level.mask, level.stride) for value, level in zip(values, levels, strict=True)]
        return summed(head.judged(head(given), targets, assigned)).total

    assert torch.autograd.gradcheck(total, tuple(cells), fast_mode=True)
    total(*cells).backward()
    for values, level in zip(cells, levels, strict=True):
        assert values.grad is not None
        assert not values.grad[~level.mask].any()


def test_nothing_true_costs_only_classes(head: SpanHead, levels: list[Level], targets: Targets) -> None:
    nothing = Targets(targets.labels, targets.boxes, torch.zeros_like(targets.mask))
    assigned = head.assign(levels, nothing, num_clips())
    assert (assigned.target == BACKGROUND).all()
    losses = summed(head.judged(head(levels), nothing, assigned))
    assert losses.terms["class"] > 0
    assert losses.terms["giou"] == losses.terms["span"] == losses.terms["centerness"] == 0
    losses.total.backward()


def test_cells_say_the_same_alone_and_in_a_batch(head: SpanHead, levels: list[Level]) -> None:
    whole = head(levels)
    for sample in range(3):
        own = [
            Level(x.cells[sample, x.mask[sample]][None], x.mask[sample, x.mask[sample]][None], x.stride) for x in levels
        ]
        alone, here = head(own), torch.cat([level.mask[sample] for level in levels])
        torch.testing.assert_close(whole.logits[sample, here], alone.logits[0])
        torch.testing.assert_close(whole.boxes[sample, here], alone.boxes[0])
        assert whole.quality is not None
        assert alone.quality is not None
        torch.testing.assert_close(whole.quality[sample, here], alone.quality[0])
    head.official_batch_faults = True
    real = torch.cat([level.mask[1] for level in levels])
    assert not torch.allclose(head(levels).logits[1, real], whole.logits[1, real])


def test_the_official_head_judges_padding(head: SpanHead, levels: list[Level], targets: Targets) -> None:
    head.official_batch_faults = True
    assigned = head.assign(levels, targets, num_clips())
    assert assigned.mask.all()
    judged = head.judged(head(levels), targets, assigned)
    assert judged.predictions.logits.shape[1] == assigned.mask.numel()


def in_order(count: int) -> Tensor:
    return torch.arange(count)


def test_lent_queries_are_positives_then_others(levels: list[Level], targets: Targets, head: SpanHead) -> None:
    assigned = head.assign(levels, targets, num_clips())
    rows = lent_rows(assigned, in_order)
    most = int((assigned.target >= 0).sum(1).max())
    assert rows.shape == (3, most)
    for sample in range(3):
        own = [cell for cell in range(rows.max() + 1) if assigned.target[sample, cell] >= 0]
        assert rows[sample, : len(own)].tolist() == own
        others = rows[sample, len(own) :].tolist()
        real = [c for c in range(assigned.mask.shape[1]) if assigned.mask[sample, c] and assigned.target[sample, c] < 0]
        assert others == real[: len(others)]


def test_lent_queries_know_what_they_stand_for(levels: list[Level], targets: Targets, head: SpanHead) -> None:
    torch.manual_seed(2)
    assigned = head.assign(levels, targets, num_clips())
    cells = torch.cat([level.cells for level in levels], 1).requires_grad_()
    lending = LentQueries(WIDTH, CenterSize(1e-3)).double()
    lent = lending("lent", cells, assigned, torch.randperm)
    assert lent is not None
    assert lent.queries.anchors is not None
    for sample, slots in enumerate(lent.rows.tolist()):
        for slot, cell in enumerate(slots):
            hidden = lending.project.weight @ cells[sample, cell] + lending.project.bias
            torch.testing.assert_close(lent.queries.content[sample, slot], lending.norm(hidden))
            start, end = (assigned.anchors[cell] / LENGTHS[sample]).tolist()
            box = [min(max(number, 1e-3), 1 - 1e-3) for number in ((start + end) / 2, end - start)]
            assert lent.queries.anchors[sample, slot].sigmoid().tolist() == pytest.approx(box, abs=1e-6)
    lent.queries.content.sum().backward()
    assert cells.grad is not None  # what is lent trains the pyramid
    answers = set(zip(lent.assignment.sample.tolist(), lent.assignment.query.tolist(), strict=True))
    for sample, slots in enumerate(lent.rows.tolist()):
        for slot, cell in enumerate(slots):
            assert ((sample, slot) in answers) == (assigned.target[sample, cell] >= 0)


def test_too_few_others_come_again_and_no_positives_lend_nothing() -> None:
    target = torch.tensor([[0, 0, 0, 0, -1], [0, -1, -1, -1, -1]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])
    assigned = Assigned(torch.zeros(5, 2), target, mask, torch.ones(2, 1))
    assert lent_rows(assigned, in_order).tolist() == [[0, 1, 2, 3], [0, 1, 4, 1]]
    nothing = Assigned(torch.zeros(5, 2), torch.full_like(target, -1), mask, torch.ones(2, 1))
    assert LentQueries(WIDTH, CenterSize())("lent", torch.zeros(2, 5, WIDTH), nothing, in_order) is None
