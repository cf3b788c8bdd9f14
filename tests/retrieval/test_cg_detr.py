"""What is CG-DETR's own: dummies that take attention, prompts, negatives of other videos, and its losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from momentdetr.retrieval.encoders.cg_attention import DropPath, DummyAttention, Prompts
from momentdetr.retrieval.encoders.cg_losses import (
    attention_negative_loss,
    distillation_loss,
    has_foreign_neighbour,
    membership_loss,
    orthogonality_loss,
    sentence_contrast,
    source_of,
)
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., MomentRetriever]


def test_dummies_take_attention_and_give_nothing() -> None:
    torch.manual_seed(0)
    attention = DummyAttention(8, 2).double()
    clips, text = torch.randn(1, 3, 8).double(), torch.randn(1, 6, 8).double()
    allowed = torch.tensor([True] * 5 + [False])
    read, weights = attention(clips, text, text, allowed[None, None, None], 2)
    expected_weights = torch.zeros(3, 6).double()
    for t in range(3):
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = torch.tensor([clips[0, t, head] @ text[0, w, head] / 2 for w in range(5)])
            share = scores.double().softmax(0)
            expected_weights[t, :5] += share / 2
            heads.append(sum(share[w] * text[0, w, head] for w in range(2, 5)))
        torch.testing.assert_close(read[0, t], attention.out(torch.cat(heads)))
    torch.testing.assert_close(weights[0], expected_weights)


def test_a_token_that_finds_nothing_is_what_attention_over_no_words_gives(make: Make) -> None:
    layer = make("cg_detr").encoder.fusion[0]
    torch.nn.init.normal_(layer.attention.out.bias)
    token, nothing = torch.randn(2, 1, 16), torch.zeros(2, 0, 16)
    masks = (torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 0, dtype=torch.bool))
    seen, _ = layer(token, nothing, torch.zeros_like(token), nothing, masks, 0)
    torch.testing.assert_close(layer.alone(token), seen)


def test_the_summary_is_the_mean_and_the_best_prompts() -> None:
    torch.manual_seed(0)
    prompts = Prompts(4, 2, 6).double()
    video, importance = torch.randn(1, 5, 6).double(), torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.9]]).double()
    mask = torch.tensor([[True, True, True, False, False]])
    mean = video[0, :3].mean(0)
    strength = torch.zeros(4).double()
    for t in range(3):
        cosines = torch.stack([F.cosine_similarity(video[0, t] - mean, token, 0) for token in prompts.tokens])
        strength += cosines.softmax(0) * importance[0, t] / 0.8
    best = sorted(range(4), key=lambda i: -strength[i])[:2]
    expected = mean + sum(strength[i] * prompts.tokens[i] for i in best)
    torch.testing.assert_close(prompts(video, mask, importance)[0, 0], expected)


def test_neighbours_of_the_same_video_are_no_negatives() -> None:
    names = ["a_b_60.0_210.0", "a_b_210.0_360.0", "c_60.0_210.0", "a_b_0.0_150.0"]
    assert has_foreign_neighbour(names, 4).tolist() == [False, True, True, False]
    assert has_foreign_neighbour(names, 4, cut=False).tolist() == [True] * 4
    others = ("Aaa_60.0_210.0", "Aaa_210.0_360.0", "my_own_video", "my_other_video")
    assert has_foreign_neighbour(others, 4).tolist() == [False, True, True, True]
    assert has_foreign_neighbour(None, 3).tolist() == [True] * 3
    assert has_foreign_neighbour(["one"], 1).tolist() == has_foreign_neighbour(None, 1).tolist() == [False]
    assert [source_of(name) for name in ("3MSZA.mp4", "s17_d69", "x_1_y")] == ["3MSZA.mp4", "s17_d69", "x_1_y"]


def test_same_video_batches_have_no_negative_pass(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("cg_detr").train()
    encoding = model.encoder(inputs)
    saliency = targets.saliency
    assert saliency is not None
    present = replace(
        targets, saliency=replace(saliency, positive=saliency.positive.abs(), negative=saliency.negative.abs())
    )
    same = model.encoder.losses(encoding, replace(present, videos=("v_0.0_1.0",) * 3), inputs.video_mask)
    # A neighbour's query cannot be seen, so another one there changes nothing.
    other = model.encoder.fuse
    model.encoder.fuse = lambda *args: pytest.fail("a negative pass")
    again = model.encoder.losses(encoding, replace(present, videos=("v_0.0_1.0",) * 3), inputs.video_mask)
    model.encoder.fuse = other
    torch.testing.assert_close(same["saliency"], again["saliency"])
    apart = model.encoder.losses(encoding, replace(present, videos=("a", "b", "c")), inputs.video_mask)
    assert apart["saliency"] > same["saliency"] + 1


def test_the_foreign_pass_is_that_of_the_next_query(make: Make, inputs: VideoText) -> None:
    model = make("cg_detr")
    rows = torch.tensor([True, False, True])
    encoding = model.encoder(inputs)
    _, saliency, _, _ = model.encoder.fuse(
        (parts := model.encoder.foreign(encoding, inputs.video_mask, rows)), parts["video_mask"]
    )
    swapped = replace(inputs, text=inputs.text.roll(-1, 0), text_mask=inputs.text_mask.roll(-1, 0))
    expected = model.encoder(swapped).saliency
    torch.testing.assert_close(saliency[inputs.video_mask[rows]], expected[rows][inputs.video_mask[rows]])


def test_losses_are_those_of_naive_loops() -> None:
    torch.manual_seed(0)
    moment, other, sentence, dummy = (F.normalize(torch.randn(3, 4).double(), dim=1) for _ in range(4))
    expected = 0.0
    for i in range(3):
        for text, answer in ((sentence, i), (dummy, 1 if i == 0 else 0)):
            likeness = [moment[i] @ t for t in text] + [other[i] @ t for t in text]
            expected += (math.log(sum(math.exp(x) for x in likeness)) - likeness[answer].item()) / 3
    assert sentence_contrast(moment, other, sentence, dummy).item() == pytest.approx(expected)

    values, mask = torch.tensor([[0.5, 0.25, 0.9]]), torch.tensor([[True, True, False]])
    assert attention_negative_loss(values, mask).item() == pytest.approx(math.log(2) + math.log(4 / 3))
    assert attention_negative_loss(torch.ones(1, 3), mask).isfinite()

    tokens = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    assert orthogonality_loss(tokens).item() == pytest.approx(2 * math.sqrt(0.5) / 4)


def test_membership_and_distillation_see_no_padding_unless_told() -> None:
    torch.manual_seed(0)
    moment, frames = torch.randn(1, 4), torch.randn(1, 3, 4)
    inside, mask = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    first, second = (frames[0, :2] @ moment[0]).tolist()
    whole = math.log(1 + math.exp(-first)) + math.log(1 + math.exp(second))
    assert membership_loss(moment, frames, inside, mask, padded=False).item() == pytest.approx(whole / 2, rel=1e-5)
    assert membership_loss(moment, frames, inside, mask, padded=True).item() == pytest.approx(whole / 3, rel=1e-5)

    weights = torch.tensor([[[0.5, 0.5, 0.0]] * 3])
    likeness = torch.tensor([[[math.log(3), 0.0, 5.0]] * 3])
    words = torch.tensor([[True, True, False]])
    apart = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = distillation_loss(weights, likeness, inside, words, padded=False)
    assert found.item() == pytest.approx(apart / 2, rel=1e-4)
    assert distillation_loss(weights, likeness, inside, words, padded=True) > 1


def test_official_batch_faults_do_depend_on_the_batch(make: Make, inputs: VideoText) -> None:
    model = make("cg_detr", official_batch_faults=True)
    alone = VideoText(*(x[2:] for x in (inputs.video, inputs.video_mask, inputs.text, inputs.text_mask)))
    assert (model.predict(inputs).saliency[2] - model.predict(alone).saliency[0]).abs().max() > 1e-4
    full = replace(inputs, video_mask=torch.ones_like(inputs.video_mask), text_mask=torch.ones_like(inputs.text_mask))
    torch.testing.assert_close(model.predict(full).scores, make("cg_detr").predict(full).scores)


def test_tvsum_learns_saliency_only(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    assert set(make("cg_detr", moments=False).train().loss(inputs, targets).terms) == {"saliency"}


def test_a_branch_is_dropped_for_a_whole_sample_and_in_training_only(make: Make) -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    kept = drop.train()(torch.ones(2000, 3, 2))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert torch.equal(kept.unique(), torch.tensor([0, 1 / 0.75]))
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(kept), kept)
    model = make("cg_detr", sizes={"dropout": 0.1})
    stacks = [model.encoder.fusion, model.encoder.encoder.layers, model.encoder.dummy_encoder.layers]
    stacks.append(model.head.decoder.layers)
    assert all(layer.dropout.probability == 0.1 for stack in stacks for layer in stack)
