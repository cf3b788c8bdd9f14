"""Compositions: every encoder with every decoder of the family, and the parts that only they have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from by_heart import best_overlaps, eight_samples, learn
from small_retrievers import make_config
from test_model import one

from momentdetr.detr.boxes import giou, to_corners
from momentdetr.detr.types import Memory, Targets
from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval import checkpoint
from momentdetr.retrieval.composed import SILENT, SpanGuide, SpanProposals
from momentdetr.retrieval.decoding import DECODERS
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.presets_composed import COMPOSITIONS, ENCODERS
from momentdetr.retrieval.train import train
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]

FEW = {"strides": (1, 2, 4), "level_layers": 1}
"""Small enough for tests."""

UNMOVED = {
    r".*\.key(_content|_position)?\.bias": "shifts all scores of a softmax alike",
    r"encoder\.saliency(_clip)?\.bias": "shifts all scores of a hinge alike",
    r"encoder\.slots\.(norm_slots|query)\.bias": "shifts all slots alike (EaTR)",
    r"encoder\.pooling\.score\.bias": "shifts all words alike (FlashVTG)",
    r"head\.detr\.decoder\.layers\.0\.self_attention\.((query|key)_\w+|value)\.weight": "mixes contents that are zero",
    r"head\.detr\.decoder\.layers\.0\.self_attention\.query_\w+\.bias": "the same",
    r"head\.detr\.hybrid\.heads\.1\.scales\.\d": "no target has an anchor of this level (ATSS)",
}
"""What no loss can move in one step, and why."""

ALL = [*[("qd_detr", decoder) for decoder in DECODERS], *[(encoder, "dino") for encoder in ENCODERS]]


@pytest.fixture
def compose(make: Make) -> Make:
    def build_small(encoder: str = "qd_detr", decoder: str = "dino", **options: Any) -> Any:
        contrastive = DECODERS[decoder].denoising == "contrastive"
        quick = {"budget": 16} if contrastive else {"groups": 2}
        options["decoding"] = {**quick, **options.get("decoding", {})}
        return make("composed", encoder=encoder, decoder=decoder, **{**FEW, **options})

    return build_small


@pytest.mark.parametrize(("encoder", "decoder"), dict.fromkeys(ALL))
def test_every_parameter_learns(
    encoder: str, decoder: str, compose: Make, inputs: VideoText, targets: MomentTargets
) -> None:
    model = compose(encoder, decoder).train()
    with torch.no_grad():  # away from the start, where heads are zero
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    losses = model.loss(inputs, targets)
    losses.total.backward()
    assert losses.total.isfinite()
    silent = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or p.grad.abs().max() < 1e-7)
    }
    assert not {name for name in silent if not any(re.fullmatch(pattern, name) for pattern in UNMOVED)}


@pytest.mark.parametrize(("encoder", "decoder"), dict.fromkeys(ALL))
def test_an_answer_does_not_depend_on_the_batch(encoder: str, decoder: str, compose: Make, inputs: VideoText) -> None:
    model = compose(encoder, decoder)
    batched = model.predict(inputs)
    for index in range(3):
        alone = model.predict(one(inputs, index, trimmed=True))
        clips = alone.saliency.shape[1]
        torch.testing.assert_close(batched.spans[index], alone.spans[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(batched.scores[index], alone.scores[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(batched.saliency[index, :clips], alone.saliency[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(batched.absent[index], alone.absent[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoder", DECODERS)
def test_padding_is_never_seen(decoder: str, compose: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = compose(decoder=decoder).train()
    other = replace(
        inputs,
        video=inputs.video.where(inputs.video_mask[..., None], torch.tensor(50.0)),
        text=inputs.text.where(inputs.text_mask[..., None], torch.tensor(-50.0)),
    )
    totals = []
    for given in (inputs, other):
        torch.manual_seed(0)  # of the noise
        totals.append(model.loss(given, targets).total)
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_clip_one_word_and_no_target(
    decoder: str, compose: Make, inputs: VideoText, targets: MomentTargets
) -> None:
    tiny = VideoText(inputs.video[:1, :1], inputs.video_mask[:1, :1], inputs.text[:1, :1], inputs.text_mask[:1, :1])
    model = compose(decoder=decoder)
    found = model.predict(tiny)
    assert found.spans.isfinite().all()
    assert found.scores.shape == (1, 4)
    nothing = MomentTargets(replace(targets.spans, mask=torch.zeros_like(targets.spans.mask)), None)
    losses = model.train().loss(inputs, nothing)
    losses.total.backward()
    assert losses.total.isfinite()
    assert losses.terms["l1"] == 0


def test_answers_cost_nothing_of_what_only_trains(compose: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = compose(decoder="co_dino")
    names = {supervision.name for supervision in model(inputs).output.supervisions}
    assert names == {"proposals"}
    taught = {supervision.name for supervision in model(inputs, targets.spans).output.supervisions}
    assert {"denoising", "atss", "rcnn", "regions", "queries_of_atss", "queries_of_rcnn"} < taught


def test_a_quality_aware_loss_asks_for_what_a_span_is_worth(
    compose: Make, inputs: VideoText, targets: MomentTargets
) -> None:
    losses = {}
    for name in ("focal", "quality_focal", "iou_aware", "matchability_aware"):
        torch.manual_seed(0)
        losses[name] = compose(decoding={"class_loss": name, "denoising": "none"}).loss(inputs, targets).terms
    classes = [round(float(terms["class"].detach()), 5) for terms in losses.values()]
    assert len(set(classes)) == 4
    assert all(torch.equal(terms["l1"], losses["focal"]["l1"]) for terms in losses.values())


def test_tr_detr_s_best_moment_is_that_of_one_class(compose: Make, inputs: VideoText) -> None:
    model = compose("tr_detr")
    torch.nn.init.normal_(model.head.detr.decoder.heads[0].classes.weight)
    found = model(inputs)
    first = model.encoder(inputs)
    best = found.output.last.logits[..., 0].argmax(1)
    assert best.tolist() != [0, 0, 0]
    spans = to_corners(found.output.last.boxes)[torch.arange(3), best]
    length = inputs.video_mask.sum(1)
    start = (spans[:, 0] * length).floor().long().clamp(min=0).minimum(length - 1)
    stop = ((spans[:, 1] * length).floor().long() + 1).minimum(length).maximum(start + 1)
    video = first.extras["video"]
    state = model.encoder.moment_state(video, start, stop, inputs.video_mask)
    likeness = (video @ state[..., None]).squeeze(-1)
    expected = model.encoder._saliency(first.memory.tokens * (1 + likeness[..., None]))
    torch.testing.assert_close(found.saliency[inputs.video_mask], expected[inputs.video_mask])


def test_taskweave_s_moments_help_highlights_when_asked(compose: Make, inputs: VideoText) -> None:
    model = compose("taskweave", encoder_options={"direction": "moments_first"})
    found = model(inputs)
    expected = model.encoder.feed_back(model.encoder(inputs), found.output.last.boxes).saliency
    torch.testing.assert_close(found.saliency, expected)
    assert not torch.equal(found.saliency, model.encoder(inputs).saliency)


def test_proposals_start_from_a_few_cells_whatever_the_length() -> None:
    torch.manual_seed(0)
    head = SpanProposals(4, classes=torch.nn.Linear(4, 1), boxes=torch.nn.Linear(4, 2), cells=4, least=20)
    mask = torch.tensor([[True] * 8 + [True] * 4, [True] * 5 + [False] * 3 + [True] * 3 + [False]])
    ratios = torch.tensor([[1.0, 1.0], [5 / 8, 5 / 8]])[..., None]
    centers = torch.cat([(torch.arange(8) + 0.5), (torch.arange(4) + 0.5) * 2]) / torch.tensor([[8.0], [5.0]])
    memory = Memory(
        torch.randn(2, 12, 4), mask, level_shapes=((8,), (4,)), valid_ratios=ratios, references=centers[..., None]
    )
    spans = head.anchors(memory).sigmoid()
    for sample, length in enumerate((8, 5)):
        for cell in range(12):
            if not mask[sample, cell]:
                assert spans[sample, cell].tolist() == [0.5, 0.5]
                continue
            stride, index = (1, cell) if cell < 8 else (2, cell - 8)
            size = min(4 * stride / length, 0.95)
            center = min((index + 0.5) * stride / length, 1 - 1e-6)
            assert spans[sample, cell].tolist() == pytest.approx([center, size], abs=1e-5)
    found = head(memory)
    assert found.logits.shape == (2, 20, 1)
    padded = torch.nn.functional.pad(mask, (0, 8))
    assert (found.logits[~padded] == SILENT).all()
    assert (found.logits[padded] > SILENT).all()
    assert found.anchors.isfinite().all()


def test_positions_are_of_the_video_and_not_of_the_padded_batch() -> None:
    guide = SpanGuide(1, 8, modulated=False, conditional=False)
    memory = Memory(torch.zeros(1, 4, 8), valid_ratios=torch.full((1, 1, 1), 0.5))
    references = torch.tensor([[[0.3, 0.2]]])
    assert torch.equal(guide._of_first_level(references, memory), references)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("qd_detr", "dino"),
        *[pytest.param("qd_detr", name, marks=pytest.mark.slow) for name in DECODERS if name != "dino"],
        *[pytest.param(name, "dino", marks=pytest.mark.slow) for name in ENCODERS if name != "qd_detr"],
    ],
)
def test_compositions_overfit(encoder: str, decoder: str, compose: Make, short: FeatureSpec) -> None:
    model = compose(encoder, decoder, sizes=WIDER, encoder_options=SMALL.get(encoder, {}))
    overfits(model, short, STEPS.get(decoder, STEPS.get(encoder, 100)))


@pytest.mark.slow
def test_linear_dino_overfits(make: Make, short: FeatureSpec) -> None:
    options = {"encoder_options": {"levels": 3, "recompute": True}, "strides": (1, 2, 4)}
    overfits(make("linear_dino", sizes=WIDER, decoding={"budget": 16}, **options), short, 100)


STEPS = {"dab": 250, "dab_deformable": 200, "dn": 160, "dn_deformable": 140, "cg_detr": 300, "tr_detr": 200}
"""Learned anchors take longer than proposals do."""

WIDER = {"width": 32, "num_heads": 4, "num_queries": 8}
SMALL: dict[str, dict[str, Any]] = {
    "cg_detr": {"num_dummies": 3},
    "flashvtg": {"num_dummies": 3, "fusion_layers": 2},
    "uvcom": {"num_clusters": 4, "likeness_size": 16, "slot_size": 16, "cluster_iterations": 2},
}


@pytest.fixture
def short(spec: FeatureSpec) -> FeatureSpec:
    return replace(spec, max_clips=16)


def overfits(model: Any, spec: FeatureSpec, steps: int) -> None:
    """Eight samples, each with one moment but the last, which has none."""
    inputs, targets = eight_samples(spec)
    learn(model, inputs, targets, steps=steps, learning_rate=6e-3)
    found = model.eval().predict(inputs)
    assert targets.spans.mask.sum(1).tolist() == [1] * 7 + [0]
    assert min(float(best_overlaps(found, targets, sample).min()) for sample in range(7)) > 0.7
    assert found.absent[:7].max() < found.absent[7] - 0.2
    assert targets.saliency is not None
    better = found.saliency[:7].gather(1, targets.saliency.positive[:7])
    worse = found.saliency[:7].gather(1, targets.saliency.negative[:7])
    assert (better > worse).float().mean() > 0.9


@pytest.mark.parametrize("preset", COMPOSITIONS)
def test_checkpoints_come_back(preset: str, tmp_path: Path, spec: FeatureSpec, inputs: VideoText) -> None:
    config = make_config(preset)
    torch.manual_seed(0)
    model = build(config).eval()
    folder = checkpoint.save(tmp_path, config, model, spec)
    loaded, _ = checkpoint.load(folder)
    found, expected = loaded.predict(inputs), model.predict(inputs)
    assert torch.equal(found.spans, expected.spans)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.saliency, expected.saliency)


@pytest.mark.parametrize("preset", ["qd_dino", "cg_co_dino", "linear_dino"])
def test_a_configuration_trains_three_steps(preset: str, tmp_path: Path) -> None:
    debug = Path(__file__).parents[2] / "configs" / "retrieval" / "debug.yaml"
    values = yaml.safe_load(debug.read_text())
    values["model"] = {
        "preset": preset,
        "sizes": {"width": 32, "num_heads": 4, "feed_forward": 64, "num_queries": 6},
        "decoding": {"budget": 16},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    folder = train(path, [], tmp_path / "run", progress=False)
    model, _ = checkpoint.load(folder)
    assert json.loads((folder / "config.json").read_text())["model"]["preset"] == preset
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert all(map(float, losses))
    assert any(key.endswith("denoising") for line in lines for key in str(line).replace("'", " ").split())
    assert not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "qd-detr"}, "unknown encoder 'qd-detr', expected one of moment_detr, qd_detr"),
        ({"decoder": "dinno"}, "unknown decoder 'dinno', expected one of dab, dn"),
        ({"decoding": {"denosing": "none"}}, "unknown decoding 'denosing'"),
        ({"decoder": "dab", "decoding": {"collaborative": True}}, "need the levels of deformable attention"),
        ({"decoder": "deformable", "decoding": {"denoising": "noised"}}, "choose mixed queries"),
        ({"decoder": "co_dino", "strides": (1, 2, 8)}, "cannot be built"),
        ({"decoder": "co_dino", "strides": (0.25, 1, 2)}, "strides that double"),
        ({"decoding": {"queries": "mixd"}}, "unknown queries 'mixd', expected one of anchors, pure"),
        ({"decoding": {"class_loss": "hinge"}}, "unknown quality-aware loss 'hinge'"),
    ],
)
def test_what_does_not_go_together_is_explained(options: dict, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        build(make_config("composed", **options))


def test_rows_of_the_table_are_those_of_its_docstring() -> None:
    from momentdetr.retrieval import decoding

    assert decoding.__doc__ is not None
    rows = [line.split("|")[1].strip() for line in decoding.__doc__.splitlines() if line.startswith("| ")]
    assert rows == ["decoder", *DECODERS]


def test_levels_that_double_are_what_they_say() -> None:
    strides = COMPOSITIONS["linear_dino"].keywords["strides"]  # type: ignore[attr-defined]
    assert all(coarse == 2 * fine for fine, coarse in pairwise(strides))


def test_noised_targets_are_moments(compose: Make, inputs: VideoText, targets: MomentTargets) -> None:
    """Contrastive groups: near copies overlap their moment more than far ones do, on average."""
    torch.manual_seed(0)
    denoising = compose().head.detr.denoising
    spans = Targets(targets.spans.labels, targets.spans.boxes, targets.spans.mask)
    group = denoising(spans)
    boxes = group.queries.anchors.sigmoid()
    rows = group.rows
    overlap = giou(to_corners(boxes[rows.sample, rows.slot]), to_corners(targets.spans.boxes[rows.sample, rows.target]))
    assert overlap[rows.near].mean() > overlap[~rows.near].mean() + 0.2
