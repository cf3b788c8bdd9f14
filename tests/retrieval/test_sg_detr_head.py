"""SG-DETR's decoder, its passes and its answers, against the same written out step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import iou, to_corners
from momentdetr.detr.types import Memory, Predictions, Queries, Targets
from momentdetr.retrieval.encoders.sg_detr_answers import AnswerRule, whole_clips
from momentdetr.retrieval.encoders.sg_detr_head import ChainedSelfAttention, ScaledGuide, SgDetrOutput
from momentdetr.retrieval.pyramid import line_up
from momentdetr.retrieval.types import MomentTargets

Make = Callable[..., Any]
WIDTH = 16


@pytest.fixture
def head(make: Make) -> Any:
    """In float64; its heads do not start at zero."""
    made = make("sg_detr", denoising=True).head.double()
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def memory() -> Memory:
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(9)[None] < torch.tensor([9, 6, 9])[:, None]
    tokens, positions = (torch.randn(3, 9, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))
    return Memory(tokens, mask, positions, level_shapes=((9,),))


@pytest.fixture
def spans(targets: MomentTargets) -> Targets:
    return replace(targets.spans, boxes=targets.spans.boxes.double())


def linear(layer: Any, values: Tensor) -> Tensor:
    return values @ layer.weight.T + layer.bias


def soft(match: Tensor, values: Tensor) -> Tensor:
    weights = (match - match.max()).exp()
    return (weights / weights.sum()) @ values


def test_keys_project_positions_twice() -> None:
    torch.manual_seed(0)
    attention = ChainedSelfAttention(8, 2).double()
    content, positions = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    found = attention(content, positions)[0]
    placed = linear(attention.query_position, positions[0])
    query = linear(attention.query_content, content[0]) + placed
    key = linear(attention.key_content, content[0]) + linear(attention.key_position, placed)
    value = linear(attention.value, content[0])
    for row in range(5):
        parts = [soft(key[:, own] @ query[row, own] / 2, value[:, own]) for own in (slice(0, 4), slice(4, 8))]
        torch.testing.assert_close(found[row], linear(attention.out, torch.cat(parts)))


def sine(span: Tensor, features: int) -> Tensor:
    """Centre's features, then width's: sines and cosines take turns."""
    parts = []
    for number in span.tolist():
        for index in range(features):
            angle = number * 2 * math.pi / 10000 ** (2 * (index // 2) / features)
            parts.append(math.cos(angle) if index % 2 else math.sin(angle))
    return torch.tensor(parts, dtype=torch.float64)


def two_layers(mlp: Any, values: Tensor) -> Tensor:
    first, second = mlp.layers
    return linear(second, linear(first, values).relu())


def three_layers(mlp: Any, values: Tensor) -> Tensor:
    first, second, third = mlp.layers
    return linear(third, linear(second, linear(first, values).relu()).relu())


def test_the_guide_scales_from_the_first_layer_on(memory: Memory) -> None:
    torch.manual_seed(0)
    guide = ScaledGuide(WIDTH).double()
    content = torch.randn(3, 4, WIDTH, dtype=torch.float64)
    references = torch.rand(3, 4, 2, dtype=torch.float64) * 0.8 + 0.1
    queries = Queries(content)
    for layer in (0, 2):
        found = guide(content, references, queries, memory, layer)
        assert found.sine is not None
        for sample in range(3):
            for query in range(4):
                encoded = sine(references[sample, query], 8)
                own = content[sample, query]
                torch.testing.assert_close(found.positions[sample, query], two_layers(guide.to_positions, encoded))
                wanted = two_layers(guide.wanted_size, own).sigmoid() / references[sample, query, 1]
                scaled = encoded * two_layers(guide.query_scale, own) * wanted
                torch.testing.assert_close(found.sine[sample, query], scaled, rtol=1e-6, atol=1e-7)


def logit(values: Tensor) -> Tensor:
    return (values.clamp(0.001, 1) / (1 - values).clamp(0.001, 1)).log()


def test_the_decoder_step_by_step(head: Any, memory: Memory) -> None:
    """One sample: what moves references, what is predicted from which reference, and what quality is read from."""
    decoder, generator = head.decoder, torch.Generator().manual_seed(0)
    content = torch.randn(1, 4, WIDTH, dtype=torch.float64, generator=generator)
    anchors = torch.randn(1, 4, 2, dtype=torch.float64, generator=generator)
    sample = Memory(memory.tokens[:1], memory.mask[:1], memory.positions[:1])  # type: ignore[index]
    output = decoder(Queries(content, anchors=anchors), sample)
    state, reference = content[0], torch.sigmoid(anchors[0])
    for index, layer in enumerate(decoder.layers):
        encoded = torch.stack([sine(span, WIDTH // 2) for span in reference.detach()])
        places = two_layers(decoder.guide.to_positions, encoded)
        wanted = two_layers(decoder.guide.wanted_size, state).sigmoid() / reference[:, 1:]
        looked = encoded * two_layers(decoder.guide.query_scale, state) * wanted
        state = layer.norm_self(state + layer.self_attention(state[None], places[None])[0])
        state = layer.norm_cross(state + naive_cross(layer.cross_attention, state, looked, sample))
        state = layer.norm_feed_forward(state + layer.feed_forward(state))
        normed = decoder.norm(state)
        said = output.layers[index]
        torch.testing.assert_close(said.logits[0], linear(decoder.heads[0].classes, normed))
        span = torch.sigmoid(three_layers(decoder.heads[0].boxes, normed) + logit(reference))
        torch.testing.assert_close(said.boxes[0], span)
        moved = torch.sigmoid(three_layers(decoder.refine_heads[0], state) + logit(reference))
        fits = torch.cat([state, torch.stack([sine(one, WIDTH // 2) for one in moved.detach()])], 1)
        torch.testing.assert_close(said.quality[0], three_layers(decoder.quality, fits)[:, 0])
        reference = moved.detach()
    assert len(output.layers) == 2


def naive_cross(attention: Any, state: Tensor, looked: Tensor, memory: Memory) -> Tensor:
    """Each head compares contents beside places, 2C wide."""
    query, place = linear(attention.query_content, state), linear(attention.query_sine, looked)
    assert memory.positions is not None
    key = linear(attention.key_content, memory.tokens[0])
    where, value = linear(attention.key_position, memory.positions[0]), linear(attention.value, memory.tokens[0])
    rows = []
    for row in range(len(state)):
        parts = []
        for own in (slice(0, 8), slice(8, 16)):
            match = (key[:, own] @ query[row, own] + where[:, own] @ place[row, own]) / math.sqrt(16)
            parts.append(soft(match, value[:, own]))
        rows.append(torch.cat(parts))
    return linear(attention.out, torch.stack(rows))


def test_which_paths_gradients_take(head: Any, memory: Memory) -> None:
    """Look forward twice: the next layer's span reaches back to what moved the reference; no quality does."""
    decoder = head.decoder
    queries = head.queries(head_cells(head, memory))
    assert not queries.content.requires_grad
    assert not queries.anchors.requires_grad
    assert queries.supervisions[0].predictions.boxes.requires_grad
    mover = decoder.refine_heads[0].layers[-1].weight
    output = decoder(queries, memory)
    assert torch.autograd.grad(output.layers[0].boxes.sum(), mover, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(output.layers[1].boxes.sum(), mover, retain_graph=True)[0].any()
    quality = output.layers[1].quality
    assert torch.autograd.grad(quality.sum(), mover, allow_unused=True)[0] is None


def head_cells(head: Any, memory: Memory) -> Memory:
    assert memory.mask is not None
    return line_up(head.pyramid(memory.tokens, memory.mask), memory.mask)


def test_proposals_are_the_published_ones(head: Any, memory: Memory) -> None:
    """Middles of cells, one width a level, none near the ends."""
    cells = head_cells(head, memory)
    last = head.queries.head.boxes.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    anchors = head.queries.head(cells).anchors[1].sigmoid()  # six clips of nine
    row = 0
    for level, (size,) in enumerate(cells.level_shapes):
        real = [12, 6, 3, 2][level]
        for cell in range(size):
            box = [(cell + 0.5) / real, (0.05, 0.2, 0.4, 0.85)[level]]
            if cell < real and all(0.0125 < number < 0.9875 for number in box):
                assert anchors[row].tolist() == pytest.approx(box, abs=1e-6)
            else:
                assert (anchors[row] == 1).all()
            row += 1


def test_truth_changes_no_answer(head: Any, memory: Memory, spans: Targets) -> None:
    """Collaborative queries and groups are decoded apart from the matching queries."""
    plain, judged = head(memory), head(memory, spans)
    for one, other in zip(plain.layers, judged.layers, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.logits, other.logits)
    names = {supervision.name for supervision in judged.supervisions}
    assert names == {"proposals", "points", "lent", "lent_0", "denoising", "denoising_0"}
    assert {supervision.name for supervision in plain.supervisions} == {"proposals"}
    shared = {one.name: one.weight for one in judged.supervisions}
    assert shared.pop("points") == 1
    assert set(shared.values()) == {0.5}


def test_groups_see_themselves_only(head: Any, memory: Memory, spans: Targets) -> None:
    group = head.denoising(spans, generator=torch.Generator().manual_seed(0))
    assert group.rows.groups == 150 // 2
    assert group.rows.total == 2 * 2 * 75
    whole = head._restored(group, memory, spans)[-1]
    size = group.rows.size
    for index in (0, 31):
        here = slice(index * size, (index + 1) * size)
        queries = replace(group.queries, content=group.queries.content[:, here], anchors=group.queries.anchors[:, here])
        alone = head.decoder(queries, memory).last
        rows = (group.rows.slot // size == index).nonzero().flatten()
        sample, slot = group.rows.sample[rows], group.rows.slot[rows] - index * size
        torch.testing.assert_close(whole.predictions.boxes[0, rows], alone.boxes[sample, slot])
        torch.testing.assert_close(whole.predictions.logits[0, rows], alone.logits[sample, slot])


def test_groups_are_noised_as_published_and_judged_where_something_stands(
    head: Any, memory: Memory, spans: Targets
) -> None:
    group = head.denoising(spans, generator=torch.Generator().manual_seed(0))
    rows = group.rows
    boxes = group.queries.anchors.sigmoid()[rows.sample, rows.slot]
    true = spans.boxes[rows.sample, rows.target]
    moved = (to_corners(boxes) - to_corners(true)).abs() / (0.25 * true[:, 1:])  # in units of the inner reach
    assert moved[rows.near].max() <= 1 + 1e-2  # logits are clipped near the ends
    inside = ((to_corners(boxes) > 0.02) & (to_corners(boxes) < 0.98)).all(1)
    outer = moved[~rows.near & inside]
    assert outer.min() >= 1.25 - 1e-6
    assert outer.max() < 2.25
    assert (group.queries.content[rows.sample, rows.slot] == head.denoising.labels.weight[0]).all()
    judged = head._restored(group, memory, spans)[-1]
    assert judged.predictions.logits.shape == (1, len(rows.sample), 1)
    assert judged.assignment.query.equal(rows.near.nonzero().flatten())
    matched = judged.targets.boxes[0, judged.assignment.target]
    torch.testing.assert_close(matched, true[rows.near])


def said(logits: list[float], boxes: list[list[float]], quality: list[float]) -> Predictions:
    return Predictions(torch.tensor([logits])[..., None], torch.tensor([boxes]), torch.tensor([quality]))


@pytest.fixture
def output() -> SgDetrOutput:
    """One video of ten clips: three queries, one of them no proposal; five points, one of them padding."""
    queries = said([2.0, 1.0, 9.0], [[0.3, 0.4], [0.71, 0.2], [0.5, 0.5]], [0.0, 1.5, 9.0])
    points = said(
        [1.0, 0.5, -9.0, 0.2, 9.0],
        [[1.1, 4.9], [1.3, 4.8], [2.0, 6.0], [8.0, 7.0], [0.0, 5.0]],
        [0.5, 0.5, -4.0, 0.0, 9.0],
    )
    return SgDetrOutput(
        (queries,),
        torch.zeros(1, 1, 3, 4),
        proposed=torch.tensor([[True, True, False]]),
        points=points,
        points_mask=torch.tensor([[True, True, True, True, False]]),
        num_clips=torch.tensor([10]),
    )


def probability(first: float, second: float) -> float:
    return math.sqrt(1 / (1 + math.exp(-first)) / (1 + math.exp(-second)))


def test_answers_of_queries(output: SgDetrOutput) -> None:
    spans, scores = AnswerRule("queries", whole_clips=False)(output, 0)
    assert scores.tolist() == pytest.approx([probability(1, 1.5), probability(2, 0)])  # not by the class alone
    torch.testing.assert_close(spans, torch.tensor([[0.61, 0.81], [0.1, 0.5]]))
    rounded, _ = AnswerRule("queries")(output, 0)
    torch.testing.assert_close(rounded, torch.tensor([[0.6, 0.8], [0.1, 0.5]]))


def test_answers_of_points(output: SgDetrOutput) -> None:
    """The second overlaps the first too much, the third is too faint, the fourth ends before it starts."""
    spans, scores = AnswerRule("points", whole_clips=False)(output, 0)
    assert scores.tolist() == pytest.approx([probability(1, 0.5), probability(0.2, 0)])
    torch.testing.assert_close(spans, torch.tensor([[0.11, 0.49], [0.8, 0.8]]))
    few, _ = AnswerRule("points", most_points=1)(output, 0)
    assert len(few) == 1


def test_answers_of_both_are_fused(output: SgDetrOutput) -> None:
    rule = AnswerRule(whole_clips=False)
    spans, scores = rule(output, 0)
    point, query, other = probability(1, 0.5) * 2.5, probability(2, 0), probability(1, 1.5)
    start = (0.11 * point + 0.1 * query) / (point + query)
    end = (0.49 * point + 0.5 * query) / (point + query)
    # The fourth point is empty and left out; the second one is dropped before fusion.
    assert scores.tolist() == pytest.approx([(point + query) / 2 * 2 / 3.5, other / 3.5])
    torch.testing.assert_close(spans, torch.tensor([[start, end], [0.61, 0.81]]))


def test_faint_answers_are_not_fused(output: SgDetrOutput) -> None:
    faint = said([2.0, -6.0, 9.0], [[0.3, 0.4], [0.71, 0.2], [0.5, 0.5]], [0.0, -6.0, 9.0])
    assert probability(-6, -6) < 0.1
    assert len(AnswerRule()(replace(output, layers=(faint,)), 0)[1]) == 1
    assert len(AnswerRule(fused_score=0.0)(replace(output, layers=(faint,)), 0)[1]) == 2


def test_unknown_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of fused, queries, points"):
        AnswerRule("both")  # type: ignore[arg-type]


def test_whole_clips_are_what_loops_say() -> None:
    torch.manual_seed(0)
    spans = torch.rand(200, 2, dtype=torch.float64).sort(1).values * 1.2 - 0.1
    spans[:50, 1] = spans[:50, 0] + 0.02
    for length in (1, 2, 7, 75):
        found = whole_clips(spans, torch.tensor(length))
        for row in range(200):
            start, end = (round(min(max(edge, 0.0), 1.0) * length) for edge in spans[row].tolist())
            if end - start < 1:
                middle = (start + end) / 2
                low, high = middle - 0.5, middle + 0.5
                shift = max(0.0, -low) - max(0.0, high - length)
                expected = [(low + shift) / length, (high + shift) / length]
            else:
                expected = [start / length, end / length]
            assert found[row].tolist() == pytest.approx(expected)
        assert (found[:, 1] - found[:, 0] > 0.99 / length).all()
        assert found.min() >= 0
        assert found.max() <= 1


def test_points_that_are_left_do_not_overlap_much(make: Make, memory: Memory) -> None:
    head = make("sg_detr").head
    torch.manual_seed(0)
    for parameter in head.points.parameters():
        nn.init.normal_(parameter, std=0.3)
    plain = Memory(memory.tokens.float(), memory.mask, memory.positions.float())  # type: ignore[union-attr]
    output, rule = head(plain), AnswerRule()
    for sample in range(3):
        spans, scores = rule.of_points(output, sample, alone=True)
        overlaps = iou(spans[:, None], spans[None])[0].fill_diagonal_(0)
        assert overlaps.max() <= 0.5
        assert len(scores) <= 10
        assert scores.equal(scores.sort(descending=True).values)
