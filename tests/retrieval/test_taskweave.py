"""TaskWeave's own parts: what the goldens prove, by naive loops and small cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_retrievers import make_config
from test_convert import OPTIONS
from test_model import one, overfits

from momentdetr.detr.types import Targets
from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.encoders.taskweave import ClipNorm, covered_clips, pool_clips
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.taskweave import TaskBalance, TaskWeave
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]
DIRECTIONS = ("highlights_first", "moments_first")


def test_pooling_takes_the_best_of_five_real_clips() -> None:
    clips = torch.randn(2, 9, 3)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    pooled = pool_clips(clips, mask)
    for sample, length in ((0, 9), (1, 6)):
        for t in range(length):
            near = clips[sample, max(0, t - 2) : min(length, t + 3)]
            assert torch.equal(pooled[sample, t], near.max(0).values)
    assert not pooled[1, 6:].any()
    assert torch.equal(pool_clips(clips, None)[1, 5], clips[1, 3:8].max(0).values)  # padding counts


def test_covered_clips_count_the_halves_that_spans_touch() -> None:
    spans = torch.tensor([[[0.5, 0.4], [0.25, 0.1]], [[0.9, 0.4], [0.05, 0.0]]])
    found = covered_clips(spans, torch.tensor([6, 4]), 6)
    for sample, num_clips in ((0, 6), (1, 4)):
        counts = [0.0] * 6
        for centre, width in spans[sample].tolist():
            edges = [(centre - width / 2) * 2 * num_clips, (centre + width / 2) * 2 * num_clips]
            first, last = (int(min(max(edge, 0), 2 * num_clips - 1)) for edge in edges)
            for half in range(first, last + 1):
                counts[half // 2] += 0.5
        norm = math.sqrt(sum(count**2 for count in counts))
        torch.testing.assert_close(found[sample], torch.tensor(counts) / norm)
        assert counts[num_clips:] == [0.0] * (6 - num_clips)


def test_the_clip_norm_is_a_layer_norm_of_channels() -> None:
    norm, twin = ClipNorm(4), torch.nn.LayerNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(1, 4, 1))
        norm.bias.copy_(torch.randn(1, 4, 1))
        twin.weight.copy_(norm.weight.flatten())
        twin.bias.copy_(norm.bias.flatten())
    clips = torch.randn(2, 4, 5)
    torch.testing.assert_close(norm(clips), twin(clips.transpose(1, 2)).transpose(1, 2))


def test_the_balance_weighs_by_learned_variance() -> None:
    balance = TaskBalance()
    with torch.no_grad():
        balance.moments.fill_(0.3)
        balance.highlights.fill_(-0.2)
    expected = 2 * 5.0 * math.exp(0.2) + 3.0 * math.exp(-0.3) + 0.3 - 0.2
    assert balance(torch.tensor(3.0), torch.tensor(5.0)).item() == pytest.approx(expected, rel=1e-6)
    assert balance(torch.tensor(3.0), None).item() == pytest.approx(3 * math.exp(-0.3) + 0.3, rel=1e-6)
    assert balance(None, torch.tensor(5.0)).item() == pytest.approx(10 * math.exp(0.2) - 0.2, rel=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_task_helps_the_other_from_the_start_epoch_on(direction: str, make: Make, inputs: VideoText) -> None:
    model = make("taskweave", direction=direction, start_epoch=3)
    early, late, answering = model(inputs, 2), model(inputs, 3), model(inputs)
    torch.testing.assert_close(late.output.last.boxes, answering.output.last.boxes)
    torch.testing.assert_close(late.saliency, answering.saliency)
    moved = not torch.allclose(early.output.last.logits, late.output.last.logits, atol=1e-6)
    lit = not torch.allclose(early.saliency, late.saliency, atol=1e-6)
    assert (moved, lit) == ((True, False) if direction == "highlights_first" else (False, True))


def test_clips_above_the_average_of_real_ones_count_twice(make: Make, inputs: VideoText) -> None:
    model = make("taskweave")
    early, late = model(inputs, 0), model(inputs)
    saliency = early.saliency[1, :6]  # this sample has six real clips
    doubled = model.encoder.video_projection(inputs.video[1:2, :6])
    doubled = doubled * (1 + (saliency > saliency.mean()).float())[None, :, None]
    model.encoder.video_projection.forward = lambda video, mask=None: doubled
    again = model(one(inputs, 1, trimmed=True), 0)
    torch.testing.assert_close(late.output.last.boxes[1], again.output.last.boxes[0], atol=1e-5, rtol=0)


def test_the_moments_convolution_is_a_gate_of_its_own(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    """It learns here; the official code multiplies it by zero wherever a clip is real."""
    gradients = []
    for faults in (False, True):
        model = make("taskweave", official_batch_faults=faults).train()
        model.loss(inputs, targets).total.backward()
        gradients.append(model.encoder.moment_convolution.weight.grad.abs().sum().item())
    assert gradients[0] > 1e-6
    assert gradients[1] == 0


def test_official_batch_faults_depend_on_the_batch(make: Make, inputs: VideoText) -> None:
    model = make("taskweave", official_batch_faults=True)
    batched, alone = model.predict(inputs), model.predict(one(inputs, 1, trimmed=True))
    assert (batched.scores[1] - alone.scores[0]).abs().max() > 1e-4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_answers_do_not_depend_on_the_batch(direction: str, make: Make, inputs: VideoText) -> None:
    model = make("taskweave", direction=direction)
    batched = model.predict(inputs)
    for index in range(3):
        alone = model.predict(one(inputs, index, trimmed=True))
        torch.testing.assert_close(batched.spans[index], alone.spans[0], atol=1e-5, rtol=0)
        clips = alone.saliency.shape[1]
        torch.testing.assert_close(batched.saliency[index, :clips], alone.saliency[0], atol=1e-5, rtol=0)


def test_data_without_moments_or_without_saliency(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    losses = make("taskweave", moments=False).train().loss(inputs, targets)
    assert set(losses.terms) == {"saliency"}
    assert losses.total.item() == pytest.approx(2 * losses.terms["saliency"].item())
    plain = make("taskweave").train().loss(inputs, replace(targets, saliency=None))
    assert plain.total.item() == pytest.approx(sum(value.item() for value in plain.terms.values()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_taskweave_overfits(direction: str, make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    overfits(make("taskweave", direction=direction, start_epoch=0), inputs, targets)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"direction": "moments_first"}, {"mr2hd": True, "v_feat_types": "clip"}),
        ({"text_positions": 7}, {"use_txt_pos": True}),
    ],
)
def test_round_trip(ours: dict, theirs: dict, inputs: VideoText) -> None:
    model = build(make_config("taskweave", official_batch_faults=True, sizes={"encoder_layers": 2}, **ours)).eval()
    state = LAYOUTS["taskweave"].to_official(model.state_dict())
    converted = convert_state(state, {**OPTIONS, **theirs})
    twin = converted.model()
    assert isinstance(twin, TaskWeave)
    assert converted.about["system"] == "taskweave"
    assert all(twin.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert torch.equal(twin.predict(inputs).spans, model.predict(inputs).spans)
    assert torch.equal(twin.predict(inputs).saliency, model.predict(inputs).saliency)


def test_what_was_never_published_is_refused() -> None:
    state = LAYOUTS["taskweave"].to_official(build(make_config("taskweave")).state_dict())
    with pytest.raises(BadCheckpoint, match="pre_norm"):
        convert_state(state, {**OPTIONS, "pre_norm": True})
    with pytest.raises(BadInput, match="neither 'highlights_first'"):
        build(make_config("taskweave", direction="both"))


def test_targets_are_taken_in_any_precision(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    wide = Targets(targets.spans.labels, targets.spans.boxes.double(), targets.spans.mask)
    found = make("taskweave").loss(inputs, replace(targets, spans=wide)).total
    torch.testing.assert_close(found, make("taskweave").loss(inputs, targets).total)
