"""SG-DETR's costs and losses against plain loops over numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from momentdetr.detr.types import Assignment, Predictions, Targets
from momentdetr.retrieval.encoders.sg_detr_losses import (
    QualityMatcher,
    alignment_loss,
    background_binary,
    claimed_quality,
    edge_l1,
    graded_loss,
    silence_loss,
    smooth_l1,
)
from momentdetr.retrieval.types import SaliencyTargets

ONE = torch.ones(())


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(logit: float, truth: float) -> float:
    return -truth * math.log(sigmoid(logit)) - (1 - truth) * math.log(1 - sigmoid(logit))


def edges(box: list[float]) -> tuple[float, float]:
    return box[0] - box[1] / 2, box[0] + box[1] / 2


def overlap(first: list[float], second: list[float]) -> tuple[float, float]:
    """IoU and GIoU of two spans, centre and width."""
    (a, b), (c, d) = edges(first), edges(second)
    both = max(0.0, min(b, d) - max(a, c))
    union, hull = b - a + d - c - both, max(b, d) - min(a, c)
    return both / union, both / union - (hull - union) / hull


@pytest.fixture
def said() -> Predictions:
    torch.manual_seed(0)
    boxes = torch.rand(2, 5, 2, dtype=torch.float64) * 0.6 + 0.1
    return Predictions(
        torch.randn(2, 5, 1, dtype=torch.float64), boxes.requires_grad_(), torch.randn(2, 5, dtype=torch.float64)
    )


@pytest.fixture
def targets() -> Targets:
    """Two moments and one; a hole in the second mask."""
    boxes = torch.tensor([[[0.3, 0.2], [0.7, 0.4]], [[0.0, 0.0], [0.5, 0.5]]], dtype=torch.float64)
    return Targets(torch.zeros(2, 2, dtype=torch.long), boxes, torch.tensor([[True, True], [False, True]]))


@pytest.fixture
def pairs() -> Assignment:
    return Assignment(torch.tensor([0, 0, 1]), torch.tensor([1, 4, 2]), torch.tensor([1, 0, 1]))


def test_the_matcher_finds_the_least_cost(said: Predictions, targets: Targets) -> None:
    found = QualityMatcher(l1=10, giou=1, class_=4, quality=1)(said, targets)
    assert said.quality is not None
    answers = {}
    for sample, mask in enumerate(targets.mask):
        real = mask.nonzero().flatten().tolist()
        costs: dict[tuple[int, ...], float] = {}
        for queries in itertools.permutations(range(5), len(real)):
            total = 0.0
            for query, target in zip(queries, real, strict=True):
                box, true = said.boxes[sample, query].tolist(), targets.boxes[sample, target].tolist()
                total += 10 * sum(abs(a - b) for a, b in zip(box, true, strict=True))
                total -= overlap(box, true)[1] + 4 * sigmoid(said.logits[sample, query].item())
                total -= sigmoid(said.quality[sample, query].item())
            costs[queries] = total
        answers[sample] = dict(zip(min(costs, key=costs.__getitem__), real, strict=True))
    rows = zip(found.sample.tolist(), found.query.tolist(), found.target.tolist(), strict=True)
    assert sorted(rows) == sorted((s, q, t) for s, pairs in answers.items() for q, t in pairs.items())


@pytest.mark.parametrize("which", range(4))
def test_claimed_quality_and_probability_decide_between_equal_spans(which: int) -> None:
    """Each cost alone picks the query that it likes."""
    boxes = torch.tensor([[[0.5, 0.2], [0.5, 0.2], [0.5, 0.2], [0.5, 0.2]]])
    chosen = torch.zeros(1, 4).index_fill(1, torch.tensor([which]), 0.5)
    true = Targets(torch.zeros(1, 1, dtype=torch.long), boxes[:, :1], torch.ones(1, 1, dtype=torch.bool))
    by_class = Predictions(chosen[..., None], boxes, torch.zeros(1, 4))
    by_quality = Predictions(torch.zeros(1, 4, 1), boxes, chosen)
    assert QualityMatcher()(by_class, true).query.tolist() == [which]
    assert QualityMatcher()(by_quality, true).query.tolist() == [which]
    against = Predictions(-chosen[..., None], boxes, chosen)  # the class weighs four times as much
    assert QualityMatcher()(against, true).query.tolist() != [which]


def test_span_terms_are_means_over_matched_numbers(said: Predictions, targets: Targets, pairs: Assignment) -> None:
    squares, differences = [], []
    for sample, query, target in zip(pairs.sample, pairs.query, pairs.target, strict=True):
        box, true = said.boxes[sample, query].tolist(), targets.boxes[sample, target].tolist()
        squares += [0.5 * (a - b) ** 2 for a, b in zip(box, true, strict=True)]
        differences += [abs(a - b) for a, b in zip(edges(box), edges(true), strict=True)]
    assert smooth_l1(said, targets, pairs, ONE).item() == pytest.approx(sum(squares) / 6)
    assert edge_l1(said, targets, pairs, ONE).item() == pytest.approx(sum(differences) / 6)


@pytest.mark.parametrize("background", [0.1, 1.0])
def test_background_weighs_little(said: Predictions, targets: Targets, pairs: Assignment, background: float) -> None:
    matched = set(zip(pairs.sample.tolist(), pairs.query.tolist(), strict=True))
    total = 0.0
    for sample in range(2):
        for query in range(5):
            logit = said.logits[sample, query].item()
            inside = (sample, query) in matched
            total += cross_entropy(logit, 1) if inside else background * cross_entropy(logit, 0)
    found = background_binary(said, targets, pairs, ONE, background=background)
    assert found.item() == pytest.approx(total / 10)


def test_claimed_quality_is_asked_of_matched_queries_only(
    said: Predictions, targets: Targets, pairs: Assignment
) -> None:
    assert said.quality is not None
    quality = said.quality.clone().requires_grad_()
    said = Predictions(said.logits, said.boxes, quality)
    found = claimed_quality(said, targets, pairs, ONE)
    total = 0.0
    for sample, query, target in zip(pairs.sample, pairs.query, pairs.target, strict=True):
        iou = overlap(said.boxes[sample, query].tolist(), targets.boxes[sample, target].tolist())[0]
        total += cross_entropy(quality[sample, query].item(), iou)
    assert found.item() == pytest.approx(total / 3)
    found.backward()
    assert said.boxes.grad is None  # what is true is no matter of gradient
    assert quality.grad is not None
    assert quality.grad.count_nonzero() == 3


@pytest.mark.parametrize("term", [smooth_l1, edge_l1, background_binary])
def test_gradients_of_terms(
    said: Predictions, targets: Targets, pairs: Assignment, term: Callable[..., Tensor]
) -> None:
    logits = said.logits.clone().requires_grad_()
    boxes = said.boxes.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: term(Predictions(x, y), targets, pairs, ONE), (logits, boxes))


@pytest.mark.parametrize("term", [smooth_l1, edge_l1, claimed_quality])
def test_without_matches_terms_are_zero_and_keep_the_gradient(
    said: Predictions, targets: Targets, term: Callable[..., Tensor]
) -> None:
    nothing = Assignment(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    quality = torch.zeros(2, 5, requires_grad=True)
    value = term(Predictions(said.logits, said.boxes, quality), targets, nothing, ONE)
    assert value.item() == 0
    value.backward()


def naive_rank(scores: list[float], levels: list[float]) -> float:
    """One sample's: at each level, clips at or above it against all."""
    total = 0.0
    highest = max(scores) / 0.5
    whole = math.log(sum(math.exp(s / 0.5 - highest) for s in scores) + 1e-6) + highest
    for level in range(1, 12):
        above = [s / 0.5 - whole for s, own in zip(scores, levels, strict=True) if own >= level]
        total -= sum(above) / (len(above) + 1e-6) if above else 0.0
    return total / 12


@pytest.fixture
def clips() -> tuple[Tensor, Tensor, SaliencyTargets, Tensor]:
    """Scores, negatives of samples 0 and 2, what is true, and the mask."""
    torch.manual_seed(1)
    mask = torch.arange(6)[None] < torch.tensor([6, 4, 5])[:, None]
    levels = torch.tensor([[0, 12, 7, 3, 0, 0], [1, 0, 0, 2, 0, 0], [0, 0, 5, 5, 0, 0]]).double()
    targets = SaliencyTargets(levels, torch.tensor([[1, 2], [3, 0], [2, 3]]), torch.tensor([[3, 0], [0, 1], [0, 4]]))
    return torch.randn(3, 6).double(), torch.randn(2, 6).double() * 3, targets, mask


def naive_graded(scores: Tensor, negative: Tensor, rows: list[int], targets: SaliencyTargets, mask: Tensor) -> float:
    assert targets.scores is not None
    levels = targets.scores.tolist()
    real = [(b, t) for b in range(3) for t in range(6) if mask[b, t]]
    told = sum(cross_entropy(scores[b, t].item(), float(levels[b][t] > 0)) for b, t in real) / len(real)
    quiet = [-math.log(1 - sigmoid(negative[i, t].item())) for i, b in enumerate(rows) for t in range(6) if mask[b, t]]
    hinge = 0.0
    for b in range(3):
        for better, worse in zip(targets.positive[b].tolist(), targets.negative[b].tolist(), strict=True):
            hinge += max(0.0, 0.15 + sigmoid(scores[b, worse].item()) - sigmoid(scores[b, better].item()))
    total = told + sum(quiet) / len(quiet) + 2 * hinge / (3 * 2)
    ranks = []
    for i, b in enumerate(rows):
        seen = [t for t in range(6) if mask[b, t]]
        both = [scores[b, t].item() for t in seen] + [negative[i, t].item() for t in seen]
        ranks.append(naive_rank(both, [levels[b][t] for t in seen] + [0.0] * len(seen)))
    total += sum(ranks) / len(ranks)
    rest = [b for b in range(3) if b not in rows]
    alone = [
        naive_rank(
            [scores[b, t].item() for t in range(6) if mask[b, t]], [levels[b][t] for t in range(6) if mask[b, t]]
        )
        for b in rest
    ]
    return total + sum(alone) / len(alone)


def test_saliency_costs_what_its_four_terms_say(clips: tuple[Tensor, Tensor, SaliencyTargets, Tensor]) -> None:
    scores, negative, targets, mask = clips
    assert targets.scores is not None
    foreign = torch.tensor([True, False, True])
    relevant = (targets.scores > 0) & mask
    found = graded_loss(scores, negative, foreign, relevant, targets, mask)
    assert found.item() == pytest.approx(naive_graded(scores, negative, [0, 2], targets, mask), rel=1e-6)
    lone = graded_loss(scores, negative, foreign, relevant, targets, mask, lone=False)
    alone = naive_rank(scores[1, :4].tolist(), targets.scores[1, :4].tolist())
    assert (found - lone).item() == pytest.approx(alone, rel=1e-6)


def test_padding_costs_nothing(clips: tuple[Tensor, Tensor, SaliencyTargets, Tensor]) -> None:
    scores, negative, targets, mask = clips
    assert targets.scores is not None
    foreign, relevant = torch.tensor([True, False, True]), (targets.scores > 0) & mask
    scores = scores.clone().requires_grad_()
    graded_loss(scores, negative, foreign, relevant, targets, mask).backward()
    assert scores.grad is not None
    assert not scores.grad[~mask].any()
    assert scores.grad[mask].all()


def test_without_annotations_clips_are_told_apart_all_the_same(
    clips: tuple[Tensor, Tensor, SaliencyTargets, Tensor],
) -> None:
    scores, _, targets, mask = clips
    assert targets.scores is not None
    relevant, none = (targets.scores > 0) & mask, torch.zeros(3, dtype=torch.bool)
    found = graded_loss(scores, None, none, relevant, None, mask)
    terms = [cross_entropy(scores[b, t].item(), float(relevant[b, t])) for b, t in mask.nonzero().tolist()]
    assert found.item() == pytest.approx(sum(terms) / len(terms))


def test_silence_costs_no_more_than_its_limit() -> None:
    scores = torch.tensor([[-2.0, 3.0, 40.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    found = silence_loss(scores, mask)
    expected = [-math.log(max(1 - sigmoid(s), 1e-7)) for s in (-2.0, 3.0, 40.0)]
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    found.backward()
    assert scores.grad is not None
    assert scores.grad[0, 2] == scores.grad[0, 3] == 0


def test_alignment_is_a_focal_loss_of_cosines() -> None:
    torch.manual_seed(0)
    moment, sentence = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    total = 0.0
    for i in range(3):
        for j in range(3):
            cosine = (moment[i] @ sentence[j] / moment[i].norm() / sentence[j].norm()).item()
            right = sigmoid(cosine) if i == j else 1 - sigmoid(cosine)
            total += 0.5 * (1 - right) ** 2 * -math.log(right)
    assert alignment_loss(moment, sentence).item() == pytest.approx(total / 3)
    assert torch.autograd.gradcheck(alignment_loss, (moment.requires_grad_(), sentence.requires_grad_()))
