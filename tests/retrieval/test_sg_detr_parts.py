"""SG-DETR's encoder, part by part, against plain loops; there is no recording of the official model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.encoder import Encoder
from momentdetr.detr.mlp import FeedForward
from momentdetr.retrieval.encoders.cg_attention import DummyAttention
from momentdetr.retrieval.encoders.sg_detr_saliency import (
    GuidedAttention,
    GuidedFusion,
    GuidedLayer,
    LearnedPooling,
    LocalSaliency,
    PoolingLayer,
)
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]
WIDTH, HEADS, CLIPS, WORDS = 8, 2, 5, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def words() -> tuple[Tensor, Tensor]:
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    return torch.randn(2, WORDS, WIDTH, dtype=torch.float64), mask


def network() -> FeedForward:
    return FeedForward(WIDTH, 12, activation=nn.PReLU)


def attended(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One query (C,) over real keys (W, C): softmax of scaled products, head by head."""
    size = len(query) // heads
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        match = [math.exp((query[own] @ key[own]).item() / math.sqrt(size)) for key in keys]
        parts.append(sum(m / sum(match) * value[own] for m, value in zip(match, values, strict=True)))
    return torch.cat(parts)


def test_salient_clips_read_the_words_and_others_hardly(words: tuple[Tensor, Tensor]) -> None:
    attention = GuidedAttention(WIDTH, HEADS).double()
    clips, salient = torch.randn(2, CLIPS, WIDTH, dtype=torch.float64), torch.rand(2, CLIPS, dtype=torch.float64)
    found = attention(clips, *words, salient)
    for sample in range(2):
        real = words[0][sample, words[1][sample]]
        for clip in range(CLIPS):
            read = attended(clips[sample, clip], real, real, HEADS) * salient[sample, clip]
            torch.testing.assert_close(found[sample, clip], attention.out.weight @ read + attention.out.bias)


def test_dropping_weights_scales_with_saliency_too() -> None:
    """Saliency multiplies weights before they are dropped: half of them dropped, the rest twice as much."""
    attention = GuidedAttention(1, 1, dropout=0.5).train()
    nn.init.ones_(attention.out.weight)
    nn.init.zeros_(attention.out.bias)
    words, mask = torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    found = attention(torch.zeros(1, 400, 1), words, mask, torch.full((1, 400), 0.25)).flatten()
    assert {round(value, 5) for value in found.tolist()} == {0.0, 0.5}
    assert found.mean().item() == pytest.approx(0.25, abs=0.05)


def test_gradient_reaches_saliency_through_attention(words: tuple[Tensor, Tensor]) -> None:
    attention = GuidedAttention(WIDTH, HEADS).double()
    clips = torch.randn(2, CLIPS, WIDTH, dtype=torch.float64, requires_grad=True)
    salient = torch.rand(2, CLIPS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, s: attention(c, *words, s), (clips, salient))


def layer_norm(values: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = values.mean(-1, keepdim=True)
    spread = ((values - mean) ** 2).mean(-1, keepdim=True)
    return (values - mean) / (spread + norm.eps).sqrt() * norm.weight + norm.bias


def shaken(module: nn.Module) -> nn.Module:
    """In float64, with norms that are not the identity."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.normal_(part.weight, 1.0, 0.3)
            nn.init.normal_(part.bias, 0.0, 0.3)
    return module.double()


def test_norms_stand_where_the_description_has_them(words: tuple[Tensor, Tensor]) -> None:
    layers = [
        GuidedLayer(attention=GuidedAttention(WIDTH, HEADS), feed_forward=network(), width=WIDTH, dropout=nn.Identity())
        for _ in range(2)
    ]
    fusion = shaken(GuidedFusion(layers, WIDTH))
    clips, positions = (torch.randn(2, CLIPS, WIDTH, dtype=torch.float64) for _ in range(2))
    salient = torch.rand(2, CLIPS, dtype=torch.float64)
    found = fusion(clips, words[0], positions, words[1], salient)
    video, text = clips, words[0]
    for layer in layers:
        video = video + layer.attention(video + positions, text, words[1], salient)
        expand, contract, bend = layer.feed_forward.expand, layer.feed_forward.contract, layer.feed_forward.activation
        hidden = video @ expand.weight.T + expand.bias
        hidden = torch.where(hidden > 0, hidden, hidden * bend.weight)
        branch = layer_norm(hidden @ contract.weight.T + contract.bias, layer.norm_branch)
        video = layer_norm(video + branch, layer.norm_sum)
        video, text = layer_norm(video, fusion.norm), layer_norm(text, fusion.norm)
    torch.testing.assert_close(found, layer_norm(video, fusion.norm))


def test_a_sentence_is_what_its_query_reads(words: tuple[Tensor, Tensor]) -> None:
    layers = [
        PoolingLayer(attention=DummyAttention(WIDTH, HEADS), feed_forward=network(), width=WIDTH) for _ in range(2)
    ]
    pooling = shaken(LearnedPooling(layers, WIDTH))
    nn.init.normal_(pooling.query)
    found = pooling(*words)
    for sample in range(2):
        query = pooling.query
        for index, layer in enumerate(layers):
            real = layer_norm(words[0][sample, words[1][sample]], layer.norm_words)
            if index:
                query = layer_norm(query, pooling.norm)
            out = layer.attention.out
            query = query + out.weight @ attended(query, real, real, HEADS) + out.bias
            query = query + layer.feed_forward(layer_norm(query, layer.norm_query))
        torch.testing.assert_close(found[sample], query)


def test_local_saliency_is_a_stretched_cosine() -> None:
    pooling = LearnedPooling(
        [PoolingLayer(attention=DummyAttention(WIDTH, 1), feed_forward=network(), width=WIDTH)],
        WIDTH,
    )
    local = LocalSaliency(pooling)
    assert local.temperature.item() == 3
    assert local.offset.item() == 0
    nn.init.constant_(local.offset, -0.7)
    clips, sentence = torch.randn(2, CLIPS, WIDTH), torch.randn(2, WIDTH)
    found = local(clips, sentence)
    for sample in range(2):
        for clip in range(CLIPS):
            one, other = clips[sample, clip].tolist(), sentence[sample].tolist()
            product = sum(a * b for a, b in zip(one, other, strict=True))
            cosine = product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
            assert found[sample, clip].item() == pytest.approx(math.exp(3) * cosine - 0.7, rel=1e-4, abs=1e-5)


@pytest.fixture
def model(make: Make) -> Any:
    built = make("sg_detr").double()
    nn.init.normal_(built.encoder.global_saliency.weight)  # it starts at zero
    return built


def doubled(inputs: VideoText) -> VideoText:
    return replace(inputs, video=inputs.video.double(), text=inputs.text.double())


def test_memory_is_amplified_by_global_saliency(model: Any, inputs: VideoText) -> None:
    """Global saliency is read from what local saliency amplified; the memory is amplified anew, by the sum of both."""
    inputs, encoder = doubled(inputs), model.encoder
    encoding = encoder(inputs)
    parts, mask = encoding.extras, inputs.video_mask
    video, words = encoder.video_projection(inputs.video), encoder.text_projection(inputs.text)
    local = encoder.local(video, encoder.local.pooling(words, inputs.text_mask))
    torch.testing.assert_close(parts["local"], local)
    clips, words = video + encoder.token_types.weight[1], words + encoder.token_types.weight[0]
    fused = encoder.fusion(clips, words, parts["positions"], inputs.text_mask, 1 / (1 + (-local).exp()))
    plain = encoder.encoder(replace(encoding.memory, tokens=fused)).tokens
    head = encoder.global_saliency
    for sample in range(3):
        for clip in range(int(mask[sample].sum())):
            token, near = plain[sample, clip], local[sample, clip]
            whole = near + head.weight[0] @ (token * (1 + torch.sigmoid(near))) + head.bias[0]
            torch.testing.assert_close(encoding.saliency[sample, clip], whole)
            torch.testing.assert_close(encoding.memory.tokens[sample, clip], token * (1 + torch.sigmoid(whole)))


def test_what_is_remembered_teaches_local_saliency_by_what_it_let_be_read(model: Any, inputs: VideoText) -> None:
    inputs = doubled(inputs)
    parts = dict(model.encoder(inputs).extras)
    parts["local"] = parts["local"].detach().requires_grad_()
    encoded, _ = model.encoder.fuse(parts, inputs.video_mask)  # not amplified yet
    encoded[inputs.video_mask].square().sum().backward()
    assert parts["local"].grad[inputs.video_mask].all()


def test_global_saliency_starts_as_the_local_one(make: Make, inputs: VideoText) -> None:
    encoding = make("sg_detr").encoder(inputs)
    assert torch.equal(encoding.saliency, encoding.extras["local"])


def test_words_have_no_positions_and_clips_do(model: Any, inputs: VideoText) -> None:
    inputs = doubled(inputs)
    order = torch.tensor([2, 0, 1, 3, 4])  # of three real words, the first sample's
    text = inputs.text.clone()
    text[0] = text[0, order]
    torch.testing.assert_close(
        model(replace(inputs, text=text)).saliency[0, :9], model(inputs).saliency[0, :9], rtol=1e-7, atol=1e-7
    )
    video = inputs.video.clone()
    video[0] = video[0].flip(0)
    local = model(replace(inputs, video=video)).encoding.extras["local"][0]
    torch.testing.assert_close(local.flip(0), model(inputs).encoding.extras["local"][0])
    turned = model(replace(inputs, video=video)).saliency[0].flip(0)
    assert (turned - model(inputs).saliency[0]).abs().max() > 1e-3


def test_foreign_queries_are_the_neighbours(model: Any, inputs: VideoText) -> None:
    inputs = doubled(inputs)
    rows = torch.tensor([True, False, True])
    local, whole = model.encoder.foreign(model(inputs).encoding, inputs.video_mask, rows)
    twin = model(replace(inputs, text=inputs.text.roll(-1, 0), text_mask=inputs.text_mask.roll(-1, 0))).encoding
    torch.testing.assert_close(local, twin.extras["local"][rows])
    torch.testing.assert_close(whole, twin.saliency[rows])


def test_the_official_foreign_clips_know_that_they_are_clips(model: Any, inputs: VideoText) -> None:
    inputs, encoder = doubled(inputs), model.encoder
    nn.init.normal_(encoder.token_types.weight)
    encoding, rows = model(inputs).encoding, torch.ones(3, dtype=torch.bool)
    right, _ = encoder.foreign(encoding, inputs.video_mask, rows)
    encoder.official_batch_faults = True
    found, _ = encoder.foreign(encoding, inputs.video_mask, rows)
    expected = encoder.local(
        encoding.extras["video"] + encoder.token_types.weight[1], encoding.extras["sentence"].roll(-1, 0)
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, right)


def test_a_moment_is_summed_up_from_its_own_clips(model: Any, inputs: VideoText) -> None:
    inputs, encoder = doubled(inputs), model.encoder
    relevant = torch.zeros(3, 9, dtype=torch.bool)
    relevant[0, 2:5], relevant[1, 1] = True, True
    encoding = encoder(inputs)
    sentence, moment, frames = encoder.summaries(encoding, relevant, inputs.video_mask)
    parts = encoding.extras
    for sample in range(3):
        own, others = relevant[sample], ~relevant[sample] & inputs.video_mask[sample]
        summary, seen = alone(encoder.moment.encoder, encoder.moment, parts, sample, own)
        torch.testing.assert_close(moment[sample], summary)
        torch.testing.assert_close(frames[sample, own], seen)
        _, seen = alone(encoder.moment.encoder, encoder.moment, parts, sample, others)
        torch.testing.assert_close(frames[sample, others], seen)
        assert not frames[sample, ~inputs.video_mask[sample]].any()
        torch.testing.assert_close(sentence[sample], encoder.sentence(*words_of(parts, sample))[0][0])


@pytest.mark.parametrize("official", [False, True])
def test_clips_are_told_by_their_moment(model: Any, inputs: VideoText, targets: MomentTargets, official: bool) -> None:
    """Scaled products of a moment's summary and clips; the official mean counts padded clips as costing nothing."""
    inputs, encoder = doubled(inputs), model.encoder
    encoder.official_batch_faults = official
    encoding, mask = encoder(inputs), inputs.video_mask
    found = encoder.losses(encoding, targets, mask)["momcls"]
    assert targets.saliency is not None
    assert targets.saliency.scores is not None
    relevant = (targets.saliency.scores > 0) & mask
    _, moment, frames = encoder.summaries(encoding, relevant, mask)
    total = 0.0
    for sample, clip in mask.nonzero().tolist():
        logit = (moment[sample] @ frames[sample, clip]).item() / 4
        total += math.log(1 + math.exp(logit)) - logit * float(relevant[sample, clip])
    assert found.item() == pytest.approx(total / (27 if official else 24))


def words_of(parts: dict[str, Tensor], sample: int) -> tuple[Tensor, Tensor, Tensor]:
    real = parts["words"][sample, parts["text_mask"][sample]][None]
    return real, torch.zeros_like(real), torch.ones(real.shape[:2], dtype=torch.bool)


def alone(
    encoder: Encoder, summary: Any, parts: dict[str, Tensor], sample: int, group: Tensor
) -> tuple[Tensor, Tensor]:
    """The token with these clips and no others: attention written with the layer's own matrices."""
    layer = encoder.layers[0]
    tokens = torch.cat([summary.token, parts["clips"][sample, group]])
    placed = tokens + torch.cat([summary.position, parts["positions"][sample, group]])
    attention = layer.self_attention
    query, key = attention.query(placed), attention.key(placed)
    value = attention.value(tokens)
    read = torch.stack([attended(one, key, value, attention.num_heads) for one in query])
    tokens = F.layer_norm(tokens + attention.out(read), (16,), layer.norm_attention.weight, layer.norm_attention.bias)
    done = layer.norm_feed_forward(tokens + layer.feed_forward(tokens))
    return done[0], done[1:]
