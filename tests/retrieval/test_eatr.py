"""What is EaTR's own: pseudo events, the gate, references that begin as predictions, and what teaches events."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from momentdetr.detr.boxes import giou
from momentdetr.detr.types import Memory
from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.encoders.eatr_decoder import EventQueries
from momentdetr.retrieval.encoders.events import event_targets, pseudo_events, signed_giou
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., MomentRetriever]


def scenes(lengths: list[int]) -> torch.Tensor:
    """A video of still scenes, each in a direction of its own: (T, scenes)."""
    return torch.cat([torch.eye(len(lengths))[i].expand(n, -1) for i, n in enumerate(lengths)])


def test_events_lie_between_changes_of_scene() -> None:
    video = scenes([6, 8, 6])
    events = pseudo_events(video[None], torch.ones(1, 20, dtype=torch.bool))[0]
    edges = torch.stack([events[:, 0] - events[:, 1] / 2, events[:, 0] + events[:, 1] / 2], -1) * 20
    assert edges[0, 0] == 0
    assert edges[-1, 1] == 19
    torch.testing.assert_close(edges[1:, 0], edges[:-1, 1])
    assert {6, 14} <= {round(edge) for edge in edges[:-1, 1].tolist()} | {round(e) + 1 for e in edges[:-1, 1].tolist()}


def naive_boundaries(video: torch.Tensor) -> list[int]:
    """Boundaries of one video, clip by clip."""
    count, side = len(video), [1, 1, 0, -1, -1]
    scores = []
    for t in range(count):
        score = 0.0
        for i, a in zip(range(t - 2, t + 3), side, strict=True):
            for j, b in zip(range(t - 2, t + 3), side, strict=True):
                if 0 <= i < count and 0 <= j < count:
                    score += a * b * torch.cosine_similarity(video[i], video[j], 0).item()
        scores.append(score)
    threshold = sum(scores) / count
    scores[0] = scores[-1] = 100.0
    return [t for t in range(count) if scores[t] >= max(threshold, scores[t - 1], scores[(t + 1) % count])]


def test_events_are_those_of_naive_loops_whatever_the_padding() -> None:
    torch.manual_seed(0)
    video, mask = torch.randn(3, 15, 4), torch.arange(15)[None] < torch.tensor([[15], [9], [1]])
    found = pseudo_events(video * mask[..., None], mask)
    for sample, length in enumerate((15, 9)):
        places = naive_boundaries(video[sample, :length])
        expected = [[(a + b) / 2 / length, (b - a) / length] for a, b in pairwise(places)]
        torch.testing.assert_close(found[sample], torch.tensor(expected))
    assert found[2].shape == (0, 2)
    garbage = pseudo_events(torch.where(mask[..., None], video, torch.tensor(50.0)), mask)
    assert all(torch.equal(a, b) for a, b in zip(found, garbage, strict=True))


def test_the_official_code_gives_odd_batches_an_event_of_negative_width() -> None:
    video, mask = scenes([6, 8, 6]).repeat(3, 1, 1), torch.ones(3, 20, dtype=torch.bool)
    right, wrong = pseudo_events(video, mask), pseudo_events(video, mask, official_batch_faults=True)
    torch.testing.assert_close(wrong[0], right[0])
    torch.testing.assert_close(wrong[1][1:], right[1])
    assert wrong[1][0, 1] < 0
    even = pseudo_events(video[:2], mask[:2], official_batch_faults=True)
    assert all(torch.equal(a, b) for a, b in zip(even, right[:2], strict=True))


def test_a_negative_width_counts_as_a_negative_length() -> None:
    first, second = torch.tensor([0.1, 0.6]), torch.tensor([[0.4, 0.8], [0.9, 0.2]])
    # Usual: overlap 0.2, union 0.7, hull 0.7. Reversed: no overlap, lengths 0.5 - 0.7, hull from 0.1 to 0.6.
    expected = torch.tensor([0.2 / 0.7, 0 - (0.5 + 0.2) / 0.5])
    torch.testing.assert_close(signed_giou(first, second), expected)
    torch.testing.assert_close(signed_giou(first, second)[0], giou(first, second[0]))


def test_targets_of_events_are_padded() -> None:
    targets = event_targets([torch.tensor([[0.5, 0.2], [0.1, 0.1]]), torch.zeros(0, 2)], torch.zeros(1).double())
    assert targets.mask.tolist() == [[True, True], [False, False]]
    assert targets.boxes.dtype == torch.float64


def test_the_gate_reads_one_summary(make: Make) -> None:
    torch.manual_seed(0)
    layer = make("eatr").head.decoder.layers[0].double()
    for name in ("gate_cross", "gate_self"):
        torch.nn.init.normal_(getattr(layer, name).out.bias)
    content, sentence = torch.randn(1, 3, 16).double(), torch.randn(1, 1, 16).double()
    said = layer.gate_cross.out(layer.gate_cross.value(sentence[0]))  # one key: whatever the query, it is read whole
    both = content[0] + said
    own = layer.gate_self
    likeness = own.query(both) @ own.key(both).T / math.sqrt(16)
    mixed = own.out(likeness.softmax(1) @ own.value(both))
    gate = 1 / (1 + (-content[0] * said).exp())
    expected = layer.gate_norm(content[0] + layer.gate_linear(gate * mixed).relu())
    torch.testing.assert_close(layer.gated(content, sentence)[0], expected)


def test_losses_reach_the_first_references_and_layers_do_not(make: Make) -> None:
    decoder = make("eatr").head.decoder
    content, sentence = torch.randn(1, 4, 16), torch.randn(1, 1, 16)
    references = torch.rand(1, 4, 2, requires_grad=True)
    memory = Memory(torch.randn(1, 5, 16), positions=torch.randn(1, 5, 16))
    output = decoder(EventQueries(content, references=references, sentence=sentence), memory)
    assert torch.autograd.grad(output.layers[0].boxes.sum(), references, retain_graph=True)[0].abs().min() > 0
    for later in (output.layers[0].logits, output.layers[1].logits, output.layers[1].boxes):
        assert torch.autograd.grad(later.sum(), references, retain_graph=True, allow_unused=True)[0] is None
    assert output.references[0] is references


def test_events_are_matched_by_spans_and_learn(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("eatr")
    encoding = model.encoder(inputs)
    said, true, pairs = model.encoder.match_events(encoding, inputs.video_mask)
    counts = [min(4, int(true.mask[i].sum())) for i in range(3)]
    assert torch.bincount(pairs.sample, minlength=3).tolist() == counts
    given = said.boxes[pairs.sample, pairs.query] - true.boxes[pairs.sample, pairs.target]
    terms = model.encoder.losses(encoding, targets, inputs.video_mask)
    torch.testing.assert_close(terms["event_span"], given.abs().mean())
    losses = model.loss(inputs, targets)
    assert model.weights["event_span"] == 30
    assert {"event_span", "event_giou", "saliency"} < set(losses.terms)


def test_both_official_names_of_a_tensor_are_read_and_must_agree(make: Make, inputs: VideoText) -> None:
    model = make("eatr", official_batch_faults=True)
    state = LAYOUTS["eatr"].to_official(model.state_dict())
    official = {}
    for name, tensor in state.items():
        official[
            name.replace("processer_for_tgt.", "decoder.slot_atten.")
            .replace("span_embed", "moment_span_embed")
            .replace("event_moment_", "event_")
        ] = tensor
    official["transformer.decoder.slot_atten.slots"] = official.pop("query_embed.weight")
    for name in [name for name in official if name.startswith(("moment_span", "event_span"))]:
        official[f"transformer.decoder.{name}"] = official[name].clone()
    options = {"nheads": 2}
    torch.testing.assert_close(
        convert_state(official, options).model().predict(inputs).spans, model.predict(inputs).spans
    )
    official["moment_span_embed.layers.0.bias"] = official["moment_span_embed.layers.0.bias"] + 1
    with pytest.raises(BadCheckpoint, match=r"moment_span_embed\.layers\.0\.bias.* same tensor"):
        convert_state(official, options)


def test_official_batch_faults_do_depend_on_the_batch(make: Make, inputs: VideoText) -> None:
    model = make("eatr", official_batch_faults=True)
    torch.nn.init.normal_(model.encoder.event_spans.layers[-1].weight)  # it starts at zero
    alone = VideoText(
        inputs.video[1:2, :6], inputs.video_mask[1:2, :6], inputs.text[1:2, :4], inputs.text_mask[1:2, :4]
    )
    assert (model.predict(inputs).spans[1] - model.predict(alone).spans[0]).abs().max() > 1e-4
    full = replace(inputs, video_mask=torch.ones_like(inputs.video_mask), text_mask=torch.ones_like(inputs.text_mask))
    twin = make("eatr")
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.predict(full).scores, twin.predict(full).scores)
