"""FlashVTG's own parts: what the goldens prove, by naive loops and small cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_heart import finds_all_and_nothing_else, learn
from small_retrievers import make_config
from test_convert import OPTIONS
from test_model import one, same_alone_and_in_a_batch

from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.mixed_points import score_loss
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]
SMALL = {"num_dummies": 3, "fusion_layers": 2}


@pytest.fixture
def small(make: Make) -> Callable[..., Any]:
    return lambda **options: make("flashvtg", **{**SMALL, **options})


def test_score_loss_compares_what_is_stretched() -> None:
    logits, scores = (
        torch.tensor([[1.0, 3.0, 9.0], [2.0, 1.5, -7.0]]),
        torch.tensor([[0.0, 6.0, 3.0], [12.0, 3.0, 0.0]]),
    )
    mask = torch.tensor([[True, True, False], [True, True, False]])
    said = [(value - 1) / 2 for value in (1, 3, 2, 1.5)]
    true = [value / 12 for value in (0, 6, 12, 3)]
    expected = sum((a - b) ** 2 for a, b in zip(said, true, strict=True)) / 4
    assert score_loss(logits, scores, mask).item() == pytest.approx(expected, rel=1e-6)
    level = score_loss(torch.ones(1, 3), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert level == 0  # nothing to stretch


def test_attention_to_words_is_what_dummies_leave(small: Make, inputs: VideoText) -> None:
    model = small(fusion_layers=1)
    kept = []
    model.encoder.fusion[0].register_forward_hook(lambda layer, given, said: kept.append(said[1]))
    attended = model(inputs).encoding.extras["attended"]
    torch.testing.assert_close(attended, 1 - kept[0][..., :3].sum(-1))
    assert 0 < attended.min() < attended.max() < 1


def test_answers_do_not_depend_on_the_batch(small: Make, inputs: VideoText) -> None:
    same_alone_and_in_a_batch(small(), inputs)
    official = small(official_batch_faults=True)
    found, alone = official.predict(inputs), official.predict(one(inputs, 1, trimmed=True))
    assert (found.saliency[1, :6] - alone.saliency[0]).abs().max() > 1e-4


def test_padding_is_never_seen(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = small().train()
    other = replace(
        inputs,
        video=inputs.video.where(inputs.video_mask[..., None], torch.tensor(50.0)),
        text=inputs.text.where(inputs.text_mask[..., None], torch.tensor(-50.0)),
    )
    torch.testing.assert_close(model.loss(inputs, targets).total, model.loss(other, targets).total)


def test_foreign_queries_are_the_neighbours(small: Make, inputs: VideoText) -> None:
    model = small()
    encoding = model(inputs).encoding
    rows = torch.tensor([True, False, True])
    saliency, attended = model.encoder.foreign(encoding, inputs.video_mask, rows)
    foreign = replace(inputs, text=inputs.text.roll(-1, 0), text_mask=inputs.text_mask.roll(-1, 0))
    twin = model(foreign).encoding
    torch.testing.assert_close(saliency, twin.saliency[rows])
    torch.testing.assert_close(attended, twin.extras["attended"][rows])


def test_terms_and_weights(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    losses = small().train().loss(inputs, targets)
    weights = {"class": 5.0, "l1": 1.0, "saliency": 0.8, "contrast": 0.1, "score": 4.0}
    assert set(losses.terms) == set(weights)
    total = sum(weights[name] * value.item() for name, value in losses.terms.items())
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    silent = small(weights={"saliency": 1.0}, attention=0.0).train().loss(inputs, targets).terms["saliency"]
    assert silent < losses.terms["saliency"]  # attention adds only what costs
    assert set(small().train().loss(inputs, replace(targets, saliency=None)).terms) == {"class", "l1"}


def test_negatives_are_of_other_videos_only(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = small().train()
    apart = model.loss(inputs, replace(targets, videos=("a", "b", "c"))).terms["saliency"]
    torch.testing.assert_close(apart, model.loss(inputs, targets).terms["saliency"])
    same = model.loss(inputs, replace(targets, videos=("a", "a", "a"))).terms["saliency"]
    torch.testing.assert_close(same, model.eval().loss(inputs, targets).terms["saliency"])
    assert (apart - same).abs() > 1e-3


def test_a_single_sample_trains(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    assert targets.saliency is not None
    assert targets.saliency.scores is not None
    saliency = replace(
        targets.saliency,
        scores=targets.saliency.scores[:1],
        positive=targets.saliency.positive[:1],
        negative=targets.saliency.negative[:1],
    )
    spans = targets.spans
    own = replace(spans, labels=spans.labels[:1], boxes=spans.boxes[:1], mask=spans.mask[:1])
    losses = small().train().loss(one(inputs, 0), MomentTargets(own, saliency))
    losses.total.backward()
    assert losses.total.isfinite()


def test_one_clip_and_one_word(small: Make, inputs: VideoText) -> None:
    tiny = VideoText(inputs.video[:1, :1], inputs.video_mask[:1, :1], inputs.text[:1, :1], inputs.text_mask[:1, :1])
    assert small().predict(tiny).spans.isfinite().all()


def test_every_parameter_learns(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = small(strides=(1, 2), text_positions=5).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.loss(inputs, targets).total.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7}
    # What shifts all keys of a softmax alike, and all words of a sentence.
    assert all(name.endswith("key.bias") or name == "encoder.pooling.score.bias" for name in silent), silent


@pytest.mark.slow
def test_flashvtg_overfits(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = small()
    losses = learn(model, inputs, targets, learning_rate=4e-3, last=1.0)
    assert losses.terms["l1"] < 0.1
    found = model.eval().predict(inputs)
    finds_all_and_nothing_else(found, targets, (0, 1))
    assert found.scores[2].max() < 0.5  # the query that is not in its video
    assert targets.saliency is not None
    better = found.saliency[:2].gather(1, targets.saliency.positive[:2])
    worse = found.saliency[:2].gather(1, targets.saliency.negative[:2])
    assert (better > worse + 0.15).all()  # the margin is 0.2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"strides": (1, 2), "num_convolutions": 1, "num_linear": 2, "kernel": 5, "dummy_layers": 1}, {}),
        ({"text_positions": 7, "score": 0.0}, {"use_txt_pos": True, "label_loss_coef": 0.0}),
    ],
)
def test_round_trip(ours: dict, theirs: dict, inputs: VideoText) -> None:
    model = build(make_config("flashvtg", official_batch_faults=True, **SMALL, **ours)).eval()
    state = LAYOUTS["flashvtg"].to_official(model.state_dict())
    converted = convert_state(state, {**OPTIONS, "lw_cls": 3.0, **theirs})
    twin: Any = converted.model()
    assert (converted.about["system"], twin.criterion.class_) == ("flashvtg", 3.0)
    assert twin.score_weight == ours.get("score", 4.0)
    assert all(twin.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert torch.equal(twin.predict(inputs).spans, model.predict(inputs).spans)


def test_a_missing_tensor_is_named() -> None:
    state = LAYOUTS["flashvtg"].to_official(build(make_config("flashvtg", **SMALL)).state_dict())
    state.pop("x")
    with pytest.raises(BadCheckpoint, match="lacks 'x'"):
        convert_state(state, OPTIONS)
