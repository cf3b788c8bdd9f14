"""SG-DETR as a whole: sizes, independence of the batch, terms, learning, a round trip through a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_retrievers import SIZES, make_config
from test_model import one
from torch import nn

from momentdetr.detr.types import Assignment, Predictions, Targets
from momentdetr.errors import BadInput
from momentdetr.features.layouts import LAYOUTS
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval import checkpoint
from momentdetr.retrieval import train as training
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.encoders.cg_attention import DropPath
from momentdetr.retrieval.generated import generate
from momentdetr.retrieval.predicting import predict_dataset
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.train import RetrievalConfig
from momentdetr.retrieval.types import MomentTargets, VideoText
from momentdetr.training.config import load_config

Make = Callable[..., Any]
CONFIGS = Path(__file__).parents[2] / "configs" / "retrieval"
PUBLISHED = {"video_dim": 514, "text_dim": 512, "encoder_layers": 3, "decoder_layers": 3, "num_queries": 25}
SMALL_SAMPLES = (1, 2, 3, 9)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_as_many_as_the_official_state_holds() -> None:
    """By the shapes of the official names; the official table of word positions is stored there but never used."""
    model = build({"preset": "sg_detr", "sizes": PUBLISHED})
    square, norm = 256 * 256 + 256, 2 * 256
    network = 256 * 1024 + 1024 + 1 + 1024 * 256 + 256
    self_attending = 3 * 256 * 256 + 3 * 256 + square + network + 2 * norm
    spans = 2 * square + 256 * 2 + 2
    encoder, head = model.encoder, model.head
    expected = {
        encoder.video_projection: 2 * 514 + 514 * 256 + 256 + norm + square,
        encoder.text_projection: 2 * 512 + 512 * 256 + 256 + norm + square,
        encoder.token_types: 2 * 256,
        encoder.local: 2 + 256 + norm + 2 * (square + 2 * norm + network),
        encoder.fusion: norm + 2 * (square + network + 2 * norm),
        encoder.encoder: 3 * self_attending,
        encoder.sentence: 2 * 256 + self_attending,
        encoder.moment: 2 * 256 + self_attending,
        encoder.global_saliency: 257,
        head.pyramid: 4 * (2 * (256 * 3 + 256 * 256) + 2 * norm),
        head.queries: square + norm + spans + 257 + 257,
        head.decoder.layers: 3 * (6 * square + norm + 5 * square + square + network + 2 * norm),
        head.decoder.guide: 2 * square + 2 * square + square + 257,
        head.decoder.quality: 512 * 256 + 256 + square + 257,
        head.decoder.refine_heads: spans,
        head.decoder.norm: norm,
        head.decoder.heads: spans + 257,
        head.lending: square + norm,
        head.points: 2 * 3 * (256 * 256 * 3 + norm) + (256 * 3 + 1) + (256 * 6 + 2) + (256 * 3 + 1) + 4,
    }
    for module, number in expected.items():
        assert count(module) == number, type(module).__name__
    unused = 100 * 256 + norm
    assert count(model) == sum(expected.values()) == 13_472_294 - unused


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    model = build({"preset": "sg_detr", "denoising": True, "sizes": PUBLISHED})
    head, prior = model.head, torch.logit(torch.tensor(0.35))
    for classifier in (head.decoder.heads[0].classes, head.queries.head.classes, head.points.classes):
        torch.testing.assert_close(classifier.bias, prior[None])
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(head.queries.head.quality.bias, 2 * prior[None])
    for boxes in (head.decoder.heads[0].boxes, head.decoder.refine_heads[0], head.queries.head.boxes):
        assert not boxes.layers[-1].weight.any()
        assert boxes.layers[0].weight.any()
    assert not model.encoder.global_saliency.weight.any()
    for hidden in (head.decoder.quality.layers[1], head.decoder.guide.query_scale.layers[0], boxes.layers[0]):
        assert hidden.weight.abs().max().item() == pytest.approx((2 * 6 / 512) ** 0.5, rel=1e-3)  # Xavier, for ReLU
        assert not hidden.bias.any()
    wide = model.encoder.encoder.layers[0].feed_forward
    assert wide.expand.weight.abs().max().item() == pytest.approx((2 / (1 + 0.25**2) * 6 / 1280) ** 0.5, rel=1e-3)
    assert wide.contract.weight.abs().max().item() == pytest.approx((6 / 1280) ** 0.5, rel=1e-3)
    for layers in (model.encoder.encoder.layers, model.encoder.fusion.layers, head.decoder.layers):
        for name, value in layers[0].state_dict().items():
            assert torch.equal(value, layers[1].state_dict()[name]), name
            assert value.data_ptr() != layers[1].state_dict()[name].data_ptr()
    assert {layer.dropout.probability for layer in head.decoder.layers} == {0.15}
    assert isinstance(model.encoder.encoder.layers[0].dropout, DropPath)
    assert head.denoising.labels.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert head.denoising.labels.weight.shape == (1, 256)


def shaken(model: Any) -> Any:
    """Weights far from where they start, so that nothing is hidden by zeros."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        elif "norm" not in name and "temperature" not in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def videos() -> VideoText:
    """From one clip on: the shortest have fewer cells than there are queries."""
    generator = torch.Generator().manual_seed(1)
    clips, words = torch.tensor(SMALL_SAMPLES), torch.tensor([5, 3, 1, 4])
    return VideoText(
        torch.randn(4, 9, 10, generator=generator),
        torch.arange(9)[None] < clips[:, None],
        torch.randn(4, 5, 6, generator=generator),
        torch.arange(5)[None] < words[:, None],
    )


@pytest.mark.parametrize("answers", ["fused", "queries", "points"])
def test_answers_do_not_depend_on_the_batch(make: Make, videos: VideoText, answers: str) -> None:
    model = shaken(make("sg_detr", answers=answers, sizes={"num_queries": 12}))
    batched = model.predict(videos)
    for index, clips in enumerate(SMALL_SAMPLES):
        alone = model.predict(one(videos, index, trimmed=True))
        number = alone.scores.shape[1]
        torch.testing.assert_close(batched.scores[index, :number], alone.scores[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(batched.spans[index, :number], alone.spans[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(batched.saliency[index, :clips], alone.saliency[0], atol=1e-4, rtol=0)
        assert not batched.scores[index, number:].any()
    order = torch.tensor([2, 0, 3, 1])
    mixed = VideoText(videos.video[order], videos.video_mask[order], videos.text[order], videos.text_mask[order])
    torch.testing.assert_close(model.predict(mixed).scores, batched.scores[order], atol=1e-5, rtol=0)


def test_queries_that_nothing_proposed_are_not_seen(make: Make, videos: VideoText) -> None:
    """One clip has five cells, of which some may propose; twelve queries are asked for."""
    model = shaken(make("sg_detr", answers="queries", sizes={"num_queries": 12}))
    output = model(videos).output
    assert output.proposed.sum(1).tolist()[0] < 12
    assert output.proposed[3].all()
    alone = model(one(videos, 0, trimmed=True)).output
    here, there = output.proposed[0], alone.proposed[0]
    torch.testing.assert_close(output.last.boxes[0, here], alone.last.boxes[0, there], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.last.quality[0, here], alone.last.quality[0, there], atol=1e-4, rtol=0)


def test_the_official_fault_lets_the_batch_in(make: Make, videos: VideoText) -> None:
    model = shaken(make("sg_detr", answers="points", official_batch_faults=True))
    found, alone = model.predict(videos), model.predict(one(videos, 2, trimmed=True))
    number = min(found.scores.shape[1], alone.scores.shape[1])
    assert (found.scores[2, :number] - alone.scores[0, :number]).abs().max() > 1e-4


def test_padding_is_never_seen(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = shaken(make("sg_detr", denoising=True))
    other = replace(
        inputs,
        video=inputs.video.where(inputs.video_mask[..., None], torch.tensor(50.0)),
        text=inputs.text.where(inputs.text_mask[..., None], torch.tensor(-50.0)),
    )
    terms = []
    for seen in (inputs, other):
        torch.manual_seed(0)
        terms.append(model.loss(seen, targets).terms)
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name], msg=name)


def test_more_padding_changes_no_term(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    """Terms of what is drawn at random aside."""
    model = shaken(make("sg_detr", sizes={"num_queries": 12}))
    assert targets.saliency is not None
    assert targets.saliency.scores is not None
    longer = VideoText(
        nn.functional.pad(inputs.video, (0, 0, 0, 4), value=9.0),
        nn.functional.pad(inputs.video_mask, (0, 4)),
        nn.functional.pad(inputs.text, (0, 0, 0, 2), value=9.0),
        nn.functional.pad(inputs.text_mask, (0, 2)),
    )
    scores = nn.functional.pad(targets.saliency.scores, (0, 4))
    further = replace(targets, saliency=replace(targets.saliency, scores=scores))
    plain, padded = model.loss(inputs, targets).terms, model.loss(longer, further).terms
    drawn = {name for name in plain if "lent" in name}
    assert drawn
    for name in set(plain) - drawn:
        torch.testing.assert_close(plain[name], padded[name], rtol=1e-4, atol=1e-5, msg=name)


def test_terms_and_weights(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    losses = shaken(make("sg_detr", denoising=True)).train().loss(inputs, targets)
    matching = {"span": 10.0, "giou": 1.0, "class": 5.0, "quality": 1.0}
    known = {"span": 10.0, "giou": 1.0, "class": 5.0}
    points = {"class": 2.0, "giou": 2.0, "span": 0.1, "centerness": 0.5}
    weights = {"saliency": 1.0, "ms_align": 1.0, "momcls": 3.0}
    for name, weight in matching.items():
        weights |= {name: weight, f"{name}_0": weight, f"{name}_proposals": 0.5 * weight}
    for name, weight in known.items():
        for group in ("lent", "lent_0", "denoising", "denoising_0"):
            weights[f"{name}_{group}"] = 0.5 * weight
    weights |= {f"{name}_points": weight for name, weight in points.items()}
    assert set(losses.terms) == set(weights)
    total = sum(weights[name] * value.item() for name, value in losses.terms.items())
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    few = shaken(make("sg_detr", collaborative=False, weights={"auxiliary": False})).loss(inputs, targets).terms
    assert set(few) == {name for name in weights if "_0" not in name and "lent" not in name and "noising" not in name}


def test_what_judges_lent_queries_and_groups(make: Make) -> None:
    """Background weighs as much as moments; lent spans are compared by their ends, restored ones as in matching."""
    head = make("sg_detr", denoising=True).head
    torch.manual_seed(0)
    said = Predictions(torch.randn(1, 4, 1), torch.rand(1, 4, 2))
    true = Targets(torch.zeros(1, 1, dtype=torch.long), torch.rand(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    pair = Assignment(*(torch.tensor([number]) for number in (0, 2, 0)))
    logits = said.logits[0, :, 0]
    told = nn.functional.softplus(torch.where(torch.arange(4) == 2, -logits, logits)).mean()
    (middle, width), (true_middle, true_width) = said.boxes[0, 2], true.boxes[0, 0]
    ends = [middle - true_middle + side * (width - true_width) / 2 for side in (-1, 1)]
    squares = (middle - true_middle) ** 2 + (width - true_width) ** 2
    for terms, span in (
        (head.lent_terms, (ends[0].abs() + ends[1].abs()) / 2),
        (head.denoising_terms, squares / 4),
    ):
        torch.testing.assert_close(terms["class"][1](said, true, pair, torch.ones(())), told)
        torch.testing.assert_close(terms["span"][1](said, true, pair, torch.ones(())), span)


def test_negatives_are_of_other_videos_only(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = shaken(make("sg_detr"))
    apart = model.loss(inputs, replace(targets, videos=("a", "b", "c"))).terms["saliency"]
    torch.testing.assert_close(apart, model.loss(inputs, targets).terms["saliency"])
    same = model.loss(inputs, replace(targets, videos=("x_0_150", "x_150_300", "x_9_159"))).terms["saliency"]
    assert (apart - same).abs() > 1e-3


@pytest.mark.parametrize("present", [True, False])
def test_every_parameter_has_a_gradient(make: Make, inputs: VideoText, targets: MomentTargets, present: bool) -> None:
    """Also in a batch without moments, or several processes would wait for each other."""
    model = shaken(make("sg_detr", denoising=True)).train()
    spans = targets.spans if present else replace(targets.spans, mask=torch.zeros_like(targets.spans.mask))
    model.loss(inputs, replace(targets, spans=spans)).total.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_saliency_annotations_everything_is_learnt_from_spans(
    make: Make, inputs: VideoText, targets: MomentTargets
) -> None:
    losses = make("sg_detr").loss(inputs, replace(targets, saliency=None))
    assert {"saliency", "ms_align", "momcls"} <= set(losses.terms)
    assert losses.total.isfinite()


def test_half_precision(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("sg_detr", denoising=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        losses = model.loss(inputs, targets)
    losses.total.backward()
    torch.manual_seed(0)
    exact = model.loss(inputs, targets).total
    assert losses.total.item() == pytest.approx(exact.item(), rel=0.1)


def test_a_round_trip_through_a_file(tmp_path: Path, make: Make, spec: FeatureSpec, videos: VideoText) -> None:
    config = make_config("sg_detr", answers="queries", denoising=True, collaborative=False)
    model = shaken(build(config)).eval()
    folder = checkpoint.save(tmp_path / "model", config, model, spec)
    loaded, _ = checkpoint.load(folder)
    found, expected = loaded.predict(videos), model.predict(videos)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.spans, expected.spans)
    assert torch.equal(found.saliency, expected.saliency)
    assert found.saliency_is_logit


def test_wrong_options_are_explained() -> None:
    with pytest.raises(BadInput, match="expected one of fused, queries, points"):
        build(make_config("sg_detr", answers="both"))
    with pytest.raises(BadInput, match="no clip indicator"):
        build(make_config("sg_detr", weights={"indicator": 1.0}))


@pytest.mark.slow
def test_a_handful_of_samples_is_learnt_by_heart() -> None:
    """Both heads, and saliency: every moment found, every relevant clip above every other."""
    spec = FeatureSpec(
        video=(Stream("clip", 10, "generated"),),
        text=Stream("text", 6, "generated"),
        clip_length_s=2.0,
        max_clips=16,
        tef=False,
    )
    world = generate(6, spec, 1)
    data = MomentDataset(world.records, world.videos, world.texts, spec)
    torch.manual_seed(0)
    sizes = {**SIZES, "width": 32, "feed_forward": 64, "num_queries": 6}
    model = build({"preset": "sg_detr", "drop_path": 0.0, "sizes": sizes}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    first = None
    for step in range(150):
        batch = data.batch(range(6), epoch=step)
        losses = model.loss(batch.inputs, batch.targets)
        first = first or losses.total.item()
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses.total.item() < 0.25 * first
    for heads in ("fused", "queries", "points"):
        model.answers = replace(model.answers, heads=heads)
        predictions, _ = predict_dataset(model.eval(), data, batch_size=6)
        for prediction, record in zip(predictions, data.records, strict=True):
            assert prediction.windows[0][:2] == pytest.approx(record.windows_s[0], abs=0.01), heads
    for prediction, record in zip(predictions, data.records, strict=True):
        start, end = (round(edge / 2) for edge in record.windows_s[0])
        inside = prediction.saliency[start:end]
        outside = prediction.saliency[:start] + prediction.saliency[end:]
        assert min(inside) > max(outside)


def test_targets_of_a_batch_without_any_are_judged_as_background(make: Make, inputs: VideoText) -> None:
    nothing = MomentTargets(
        Targets(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1, 2), torch.zeros(3, 1, dtype=torch.bool))
    )
    losses = make("sg_detr").loss(inputs, nothing)
    assert losses.terms["span"] == losses.terms["quality"] == losses.terms["giou_points"] == 0
    assert losses.terms["class"] > 0
    assert losses.terms["class_points"] > 0
    assert not [name for name in losses.terms if "lent" in name]


def test_the_published_configuration_builds() -> None:
    config = load_config(RetrievalConfig, CONFIGS / "sg_detr_qvhighlights.yaml")
    assert isinstance(config.features, dict)
    spec = FeatureSpec.from_dict(config.features)
    assert (spec.video_dim, spec.text_dim) == (514, 512)
    assert config.data.layout in LAYOUTS
    model = build({**config.model, "sizes": {**config.model["sizes"], "video_dim": 514, "text_dim": 512}})
    assert count(model) == 13_446_182
    assert len(model.head.decoder.layers) == len(model.encoder.encoder.layers) == 3
    assert model.criterion.weights == {"span": 10, "giou": 1, "class": 5, "quality": 1}
    assert model.criterion.matcher.weights == {"l1": 10, "giou": 1, "class": 4, "quality": 1}
    assert model.weights == {"saliency": 1, "ms_align": 1, "momcls": 3}


@pytest.mark.slow
def test_training_stopped_and_resumed_writes_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collaborative queries, denoising and dropped branches draw from the generator that a checkpoint keeps."""
    sizes = "{width: 16, num_heads: 2, feed_forward: 24, encoder_layers: 1, num_queries: 4}"
    overrides = ["training.epochs=2", "training.max_steps=null", "training.batch_size=12"]
    overrides += ["model.preset=sg_detr", f"model.sizes={sizes}", "model.denoising=true"]
    whole = training.train(CONFIGS / "debug.yaml", overrides, tmp_path / "whole", progress=False)
    original, calls = training._loss, []

    def stop_in_the_second_epoch(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(training, "_loss", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        training.train(CONFIGS / "debug.yaml", overrides, tmp_path / "parts", progress=False)
    monkeypatch.setattr(training, "_loss", original)
    parts = training.train(CONFIGS / "debug.yaml", overrides, tmp_path / "parts", resume=True, progress=False)
    first, second = (checkpoint.load(folder)[0].state_dict() for folder in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
