"""BAM-DETR's own parts: what the goldens prove, by naive loops and small cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_retrievers import make_config
from test_convert import OPTIONS
from test_model import one, overfits

from momentdetr.detr.types import Assignment, Predictions, Targets
from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.boundary_decoder import BoundaryAttention, clipped_ends, spans_of
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.encoders.bam_detr import (
    BoundaryTower,
    boundary_loss,
    corner_l1,
    quality_regression,
    true_boundaries,
)
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]
NOTHING = Assignment(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
ONE = torch.ones(())


def test_references_are_an_anchor_and_two_distances() -> None:
    references = torch.tensor([0.5, 0.2, 0.3])
    torch.testing.assert_close(spans_of(references), torch.tensor([0.55, 0.5]))
    torch.testing.assert_close(clipped_ends(references), torch.tensor([0.3, 0.8]))
    torch.testing.assert_close(clipped_ends(torch.tensor([0.5, 0.7, 0.6])), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(spans_of(torch.tensor([0.5, 0.7, 0.6])), torch.tensor([0.45, 1.3]))


def test_boundary_attention_reads_between_real_clips() -> None:
    torch.manual_seed(0)
    attention = BoundaryAttention(4, 2, num_points=3)
    queries, features = torch.randn(2, 5, 4), torch.randn(2, 7, 8)
    points, mask = torch.rand(2, 5), torch.arange(7) < torch.tensor([[7], [4]])
    found = attention(queries, features, points, mask)
    for sample, num_clips in ((0, 7), (1, 4)):
        values = attention.value(features[sample])  # (T, C), channels of heads side by side
        for query in range(5):
            offsets = attention.offsets(queries[sample, query]).view(2, 3)
            weights = attention.weights(queries[sample, query]).view(2, 3).softmax(-1)
            mixed = torch.zeros(2, 2)  # heads, channels of each
            for head in range(2):
                for point in range(3):
                    place = (points[sample, query] + offsets[head, point] / num_clips).clamp(0, 1) * (num_clips - 1)
                    low = min(int(place), num_clips - 1)
                    high, part = min(low + 1, num_clips - 1), place - low
                    own = values[:, 2 * head : 2 * head + 2]
                    mixed[head] += weights[head, point] * ((1 - part) * own[low] + part * own[high])
            torch.testing.assert_close(found[sample, query], attention.out(mixed.T.flatten()))


def test_boundary_attention_on_one_clip_is_that_clip() -> None:
    attention = BoundaryAttention(4, 2)
    queries, features = torch.randn(1, 3, 4), torch.randn(1, 1, 8)
    found = attention(queries, features, torch.rand(1, 3), torch.ones(1, 1, dtype=torch.bool))
    alone = attention.out(attention.value(features).view(1, 2, 2).transpose(1, 2).reshape(1, 4))
    torch.testing.assert_close(found, alone.expand(1, 3, 4))


def test_the_tower_does_not_see_padding() -> None:
    tower, clips = BoundaryTower(4), torch.randn(1, 9, 4)
    mask = torch.arange(9)[None] < 6
    torch.testing.assert_close(tower(clips, mask)[:, :6], tower(clips[:, :6], mask[:, :6]))
    official = BoundaryTower(4, official_batch_faults=True)
    assert not torch.allclose(official(clips, mask)[:, 5], official(clips[:, :6], mask[:, :6])[:, 5])


def test_true_boundaries_and_their_loss() -> None:
    boxes = torch.tensor([[[0.5, 0.4], [0.1, 0.1]], [[0.6, 0.8], [0.0, 0.0]]])
    spans = Targets(torch.zeros(2, 2).long(), boxes, torch.tensor([[True, True], [True, False]]))
    clips, length = [12, 8], 12
    near = true_boundaries(spans, torch.tensor(clips), length)
    features = torch.rand(2, length, 6)
    mask = torch.arange(length) < torch.tensor([[12], [8]])
    expected = 0.0
    for sample, (num_clips, moments) in enumerate(zip(clips, (2, 1), strict=True)):
        for side in range(2):
            truth = [False] * length
            for centre, width in boxes[sample, :moments].tolist():
                start, end = (max(0.0, min(1.0, e)) * num_clips for e in (centre - width / 2, centre + width / 2))
                size = end - start
                around = (start - size / 4, start + size / 10) if side == 0 else (end - size / 10, end + size / 4)
                truth = [t or around[0] <= i + 0.5 <= around[1] for i, t in enumerate(truth)]
            assert near[side][sample].tolist() == truth
            said = features[sample, :, 3 * side : 3 * side + 3].tanh().mean(-1).tolist()
            for wanted in (True, False):
                group = [i for i in range(num_clips) if truth[i] == wanted]
                costs = [-math.log(said[i] if wanted else 1 - said[i]) for i in group]
                expected += sum(costs) / max(len(group), 1) / 4 / 2
    torch.testing.assert_close(boundary_loss(features, spans, mask), torch.tensor(expected))


def test_quality_is_learnt_in_three_groups() -> None:
    boxes = torch.tensor([[[0.5, 0.4], [0.5, 0.8], [0.52, 0.36], [0.9, 0.1], [0.45, 0.6]]])
    spans = Targets(torch.zeros(1, 2).long(), torch.tensor([[[0.5, 0.4], [0.3, 0.1]]]), torch.tensor([[True, False]]))
    quality = torch.tensor([[0.3, -1.0, 2.0, 0.1, -0.4]])
    overlaps = [1.0, 0.5, 0.36 / 0.4, 0.0, 0.4 / 0.6]
    off = [abs(q - o) for q, o in zip(quality[0].sigmoid().tolist(), overlaps, strict=True)]
    expected = ((off[0] + off[2]) / 2 + (off[1] + off[4]) / 2 + off[3]) / 3
    found = quality_regression(Predictions(torch.zeros(1, 5, 2), boxes, quality), spans, NOTHING, ONE)
    torch.testing.assert_close(found, torch.tensor(expected))
    empty = replace(spans, mask=torch.zeros_like(spans.mask))
    bad = quality_regression(Predictions(torch.zeros(1, 5, 2), boxes, quality), empty, NOTHING, ONE)
    torch.testing.assert_close(bad, quality.sigmoid().mean() / 3)


def test_spans_are_judged_by_their_ends() -> None:
    spans = Targets(torch.zeros(1, 1).long(), torch.tensor([[[0.5, 0.4]]]), torch.ones(1, 1).bool())
    pairs = Assignment(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    said = Predictions(torch.zeros(1, 2, 2), torch.tensor([[[0.1, 0.1], [0.45, 0.2]]]))
    found = corner_l1(said, spans, pairs, ONE)  # 0.35 to 0.55 instead of 0.3 to 0.7
    torch.testing.assert_close(found, torch.tensor((0.05 + 0.15) / 2))


def test_distances_start_within_the_video_and_keep_their_gradient(make: Make) -> None:
    head = make("bam_detr").head
    with torch.no_grad():
        head.anchors.copy_(torch.tensor([[-1.0, 3.0, 3.0], [0.0, -2.0, 5.0], [2.0, 1.0, -1.0], [0.5, 0.4, -9.0]]))
    start = head._start()
    places = start.sigmoid()
    assert (places[:, 1] <= places[:, 0] + 1e-6).all()
    assert (places[:, 2] <= 1 - places[:, 0] + 1e-6).all()
    torch.testing.assert_close(start[3], head.anchors[3])  # nothing to clamp
    start.sum().backward()
    assert torch.equal(head.anchors.grad, torch.ones(4, 3))


def test_anchors_learn_where_spans_miss(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("bam_detr").train()
    with torch.no_grad():
        model.head.anchors.copy_(torch.tensor([-4.0, -4.0, 4.0, 4.0])[:, None].expand(-1, 3))
        model.head.anchors[:, 1:] = -6.0  # short spans at both ends of the video, where no target is
        for parameter in model.head.moves.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.loss(inputs, targets).total.backward()
    for layer in model.head.moves:
        assert all(parameter.grad.abs().max() > 1e-6 for parameter in layer[0].parameters())


def test_quality_ranks(make: Make, inputs: VideoText) -> None:
    model = make("bam_detr")
    quality = model(inputs).output.last.quality.sigmoid()
    torch.testing.assert_close(model.predict(inputs).scores, quality)
    plain = make("bam_detr", quality=0.0, boundary=0.0)
    assert plain(inputs).output.last.quality is None
    logits = plain(inputs).output.last.logits
    torch.testing.assert_close(plain.predict(inputs).scores, F.softmax(logits, -1)[..., 0])


def test_terms_and_weights(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("bam_detr").train()
    losses = model.loss(inputs, targets)
    weights = {"l1": 10.0, "giou": 1.0, "class": 0.0, "quality": 2.0, "saliency": 1.0, "boundary": 1.0}
    assert set(losses.terms) == set(weights) | {f"{name}_0" for name in ("l1", "giou", "class", "quality")}
    total = sum(weights[name.removesuffix("_0")] * value.item() for name, value in losses.terms.items())
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    assert set(make("bam_detr", moments=False).train().loss(inputs, targets).terms) == {"saliency"}


def test_official_batch_faults_depend_on_the_batch(make: Make, inputs: VideoText) -> None:
    model = make("bam_detr", official_batch_faults=True)
    batched, alone = model.predict(inputs), model.predict(one(inputs, 1, trimmed=True))
    assert (batched.scores[1] - alone.scores[0]).abs().max() > 1e-5


@pytest.mark.slow
def test_bam_detr_overfits(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    overfits(make("bam_detr", quality=0.0, weights={"class_": 4.0, "cost_class": 4.0}), inputs, targets)


@pytest.mark.slow
def test_quality_learns_which_span_fits(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("bam_detr").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(220):
        optimizer.zero_grad()
        losses = model.loss(inputs, targets)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses.terms["quality"] < 0.1
    assert losses.terms["boundary"] < 0.35  # half of it all would be 0.69
    best = model.eval().predict(inputs)
    top = best.spans[1, best.scores[1].argmax()]
    torch.testing.assert_close(top, torch.tensor([0.25, 0.75]), atol=0.08, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"quality": 0.0, "boundary": 0.0}, {}),
        ({"text_positions": 7, "moments": False}, {"use_txt_pos": True, "dset_name": "tvsum"}),
    ],
)
def test_round_trip(ours: dict, theirs: dict, inputs: VideoText) -> None:
    model = build(make_config("bam_detr", official_batch_faults=True, **ours)).eval()
    state = LAYOUTS["bam_detr"].to_official(model.state_dict())
    state["transformer.decoder.query_scale.1.layers.0.weight"] = torch.zeros(16, 16)  # dead, as in all checkpoints
    converted = convert_state(state, {**OPTIONS, **theirs})
    twin = converted.model()
    assert converted.about["system"] == "bam_detr"
    assert all(twin.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert torch.equal(twin.predict(inputs).spans, model.predict(inputs).spans)
    assert torch.equal(twin.predict(inputs).scores, model.predict(inputs).scores)
    assert (twin.criterion is None) == (model.criterion is None)


def test_a_layout_is_taken_strictly() -> None:
    state = LAYOUTS["bam_detr"].to_official(build(make_config("bam_detr")).state_dict())
    with pytest.raises(BadCheckpoint, match=r"holds 'transformer.decoder.more'"):
        convert_state({**state, "transformer.decoder.more": torch.zeros(1)}, OPTIONS)
    state.pop("query_embed.weight")
    with pytest.raises(BadCheckpoint, match=r"lacks 'query_embed.weight'"):
        convert_state(state, OPTIONS)


def test_the_official_boundary_loss_lays_moments_over_padding() -> None:
    """Its moments are fractions of the padded video, and padding counts twice among what is no boundary."""
    spans = Targets(torch.zeros(1, 1).long(), torch.tensor([[[0.5, 0.5]]]), torch.ones(1, 1).bool())
    features, mask = torch.rand(1, 10, 4), torch.arange(10)[None] < 7
    expected = 0.0
    for side, (first, last) in enumerate(((2.5 - 1.25, 2.5 + 0.5), (7.5 - 0.5, 7.5 + 1.25))):
        truth = [first <= i + 0.5 <= last for i in range(10)]
        counts = {True: sum(truth), False: 10 - sum(truth) + 3}
        said = features[0, :, 2 * side : 2 * side + 2].tanh().mean(-1).tolist()
        costs = [-math.log(p if wanted else 1 - p) / counts[wanted] for p, wanted in zip(said, truth, strict=True)]
        expected += sum(costs[:7]) / 4
    assert boundary_loss(features, spans, mask, padded=True).item() == pytest.approx(expected, rel=1e-5)
    whole = torch.ones_like(mask)
    torch.testing.assert_close(
        boundary_loss(features, spans, whole, padded=True), boundary_loss(features, spans, whole)
    )
