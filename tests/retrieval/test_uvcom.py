"""What is UVCOM's own: clusters, the random walk, slots, references after the move, similarity, hard negatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from momentdetr.detr.types import Targets
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.encoders.slots import SlotAttention
from momentdetr.retrieval.encoders.uvcom_parts import LocalConvolution, cluster, random_walk, similarity_loss
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., MomentRetriever]
SMALL = {"num_clusters": 4, "likeness_size": 12, "slot_size": 12}


def test_clusters_are_those_of_naive_loops() -> None:
    torch.manual_seed(0)
    centres, tokens = torch.randn(2, 3).double(), torch.randn(1, 5, 3).double()
    mask = torch.tensor([[True, True, True, False, False]])
    found = [centre.clone() for centre in centres]
    for _ in range(3):
        share = torch.zeros(2, 3).double()
        for n in range(3):
            near = [
                math.exp(-(F.normalize(c, dim=0) - F.normalize(tokens[0, n], dim=0)).square().sum() / 2 / 1.44)
                for c in found
            ]
            share[:, n] = torch.tensor(near).double() / sum(near)
        found = [sum(share[k, n] * tokens[0, n] for n in range(3)) / share[k].sum() for k in range(2)]
    torch.testing.assert_close(cluster(centres, tokens, mask, 3)[0], torch.stack(found))


def test_the_walk_is_the_limit_of_its_steps() -> None:
    torch.manual_seed(0)
    clips, topics = torch.randn(1, 4, 3).double(), torch.randn(1, 2, 3).double()
    mask = torch.tensor([[True, True, True, False]])
    own = clips[0, :3]
    belongs = (F.normalize(topics[0], dim=1) @ F.normalize(own, dim=1).T * 5).softmax(0)
    affinity = belongs.T @ (belongs / belongs.sum(1, keepdim=True))
    start = 0.5 * belongs.T @ topics[0] + own
    walked, step = torch.zeros_like(start), start
    for _ in range(60):
        walked, step = walked + step, 0.25 * affinity @ step
    torch.testing.assert_close(random_walk(clips, topics, mask, inverted=True)[0, :3], 0.5 * walked)
    swapped = 0.5 * (start - 0.25 * affinity @ start)
    torch.testing.assert_close(random_walk(clips, topics, mask, inverted=False)[0, :3], swapped)


def test_slots_compete_for_clips() -> None:
    torch.manual_seed(0)
    slots = SlotAttention(4, hidden=(6,), iterations=1, official_batch_faults=False).double()
    clips, first = torch.randn(1, 3, 4).double(), torch.randn(1, 2, 4).double()
    mask = torch.tensor([[True, True, False]])
    keys = slots.key(slots.norm_inputs(clips))[0]
    queries = slots.query(slots.norm_slots(first))[0]
    wins = torch.stack([(queries @ keys[t] / 2).softmax(0) for t in range(2)], 1)  # slots, clips
    read = wins / wins.sum(1, keepdim=True) @ slots.value(slots.norm_inputs(clips))[0, :2]
    moved = first[0] + read
    torch.testing.assert_close(slots(clips, mask, first)[0], slots.norm_out(moved + slots.mlp(slots.norm_mlp(moved))))


def test_a_convolution_sees_no_padding() -> None:
    torch.manual_seed(0)
    clips, mask = torch.randn(1, 5, 4), torch.tensor([[True, True, True, False, False]])
    right = LocalConvolution(4, official_batch_faults=False)
    alone = right(clips[:, :3], mask[:, :3])
    torch.testing.assert_close(right(clips, mask)[:, :3], alone)
    wrong = LocalConvolution(4, official_batch_faults=True)
    wrong.load_state_dict(right.state_dict())
    assert (wrong(clips, mask)[0, 2] - alone[0, 2]).abs().max() > 1e-3
    torch.testing.assert_close(wrong(clips, mask)[:, :2], alone[:, :2])


def test_predictions_start_from_where_a_layer_moved_the_reference(make: Make, inputs: VideoText) -> None:
    model = make("uvcom", **SMALL)
    decoder = model.head.decoder
    torch.nn.init.normal_(decoder.refine_heads[0].layers[-1].bias)
    output = model(inputs).output
    for head, hidden, moved, said in zip(
        [decoder.heads[0]] * 2, output.hidden, output.references, output.layers, strict=True
    ):
        torch.testing.assert_close(said.boxes, decoder.parametrization.refine(head.boxes(hidden), moved))
    first = decoder.parametrization.to_boxes(model.encoder.anchors)
    assert (output.references[0] - first).abs().min() > 1e-3


def test_similarity_is_that_of_naive_loops() -> None:
    clips, mask = torch.tensor([[0.5, 1.0, -1.0, 7.0]]), torch.tensor([[True, True, True, False]])
    videos = torch.tensor([[0.3]])
    boxes = torch.tensor(
        [[[0.5, 0.5], [0.1, 0.2]]]
    )  # of 3 clips: 0.75 to 2.25, so clips 0 and 1; the second is ignored
    spans = Targets(torch.zeros(1, 2).long(), boxes, torch.ones(1, 2, dtype=torch.bool))
    own = clips[0, :3].log_softmax(0)
    found = similarity_loss(clips, videos, spans, mask, padded=False)
    torch.testing.assert_close(found, -(own[0] + own[1]) / 3 / 2)
    padded = clips[0].log_softmax(0)
    found = similarity_loss(clips, videos, spans, mask, padded=True)
    torch.testing.assert_close(found, -(padded[0] + padded[1]) / 4 / 2)
    nothing = replace(spans, mask=torch.zeros(1, 2, dtype=torch.bool))
    assert similarity_loss(clips, videos, nothing, mask, padded=False) == 0
    likeness = torch.tensor([[0.9, 0.1], [0.4, 0.2]])
    two = Targets(torch.zeros(2, 1).long(), torch.zeros(2, 1, 2), torch.zeros(2, 1, dtype=torch.bool))
    rows = F.cross_entropy(likeness, torch.tensor([0, 1])) + F.cross_entropy(likeness.T, torch.tensor([0, 1]))
    found = similarity_loss(clips.repeat(2, 1), likeness, two, mask.repeat(2, 1), padded=False)
    torch.testing.assert_close(found, rows / 4)


def test_hard_negatives_begin_at_their_epoch(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = make("uvcom", **SMALL, hard_negatives_from=3).train()
    early = [model.loss(inputs, targets, epoch).terms["saliency"] for epoch in (0, 2)]
    torch.testing.assert_close(early[0], early[1])
    own = model.encoder(inputs)
    assert model.encoder.foreign_queries(own).tolist() == [1, 2, 0]
    model.at_epoch(3)
    likeness = own.extras["videos"].softmax(1) + own.extras["clips_to_texts"].softmax(1)
    chosen = model.encoder.foreign_queries(own).tolist()
    assert chosen == [min(range(3), key=lambda j: likeness[i, j]) for i in range(3)]
    foreign = replace(inputs, text=inputs.text[chosen], text_mask=inputs.text_mask[chosen])
    negative = model.encoder(inputs).extras["negative_saliency"]
    expected = model.encoder(foreign, with_negatives=False).saliency
    torch.testing.assert_close(negative[inputs.video_mask], expected[inputs.video_mask])


def test_a_batch_of_one_has_no_foreign_query(make: Make, inputs: VideoText) -> None:
    model = make("uvcom", **SMALL).train()
    alone = VideoText(*(x[:1] for x in (inputs.video, inputs.video_mask, inputs.text, inputs.text_mask)))
    assert "negative_saliency" not in model(alone).encoding.extras


def test_official_names_and_lighthouse_s_walk(make: Make, inputs: VideoText) -> None:
    """Official files call the transformer CIM, and its self-attention GKA_Module."""
    model = make("uvcom", **SMALL, official_batch_faults=True)
    state = {
        name.replace("transformer.encoder.", "CIM.GKA_Module.").replace("transformer.", "CIM."): tensor
        for name, tensor in LAYOUTS["uvcom"].to_official(model.state_dict()).items()
    }
    assert sum(name.startswith("CIM.GKA_Module.") for name in state) == 13
    state["global_rep_token"] = torch.zeros(16)
    options = {"nheads": 2, "em_iter": 5}
    official = convert_state(state, options)
    assert official.config["inverted_walk"] is True
    torch.testing.assert_close(official.model().predict(inputs).scores, model.predict(inputs).scores)
    lighthouse = convert_state(state, {**options, "v_feat_types": "clip"})
    assert (lighthouse.config["inverted_walk"], lighthouse.about["layout"]) == (False, "lighthouse")
    swapped = make("uvcom", **SMALL, official_batch_faults=True, inverted_walk=False)
    found = lighthouse.model().predict(inputs).saliency
    torch.testing.assert_close(found, swapped.predict(inputs).saliency)
    assert (found - model.predict(inputs).saliency).abs().max() > 1e-3


@pytest.mark.parametrize("sample", [1, 2])
def test_official_batch_faults_do_depend_on_the_batch(sample: int, make: Make, inputs: VideoText) -> None:
    model = make("uvcom", **SMALL, official_batch_faults=True)
    clips, words = int(inputs.video_mask[sample].sum()), int(inputs.text_mask[sample].sum())
    one = slice(sample, sample + 1)
    alone = VideoText(
        inputs.video[one, :clips],
        inputs.video_mask[one, :clips],
        inputs.text[one, :words],
        inputs.text_mask[one, :words],
    )
    assert (model.predict(inputs).saliency[sample, :clips] - model.predict(alone).saliency[0]).abs().max() > 1e-4
