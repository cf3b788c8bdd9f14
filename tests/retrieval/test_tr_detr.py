"""What is TR-DETR's own: the first fusion, saliency from the best moment, and its losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from momentdetr.detr.types import Assignment, Output, Predictions, Targets
from momentdetr.retrieval.encoders.tr_losses import clip_text_contrast, two_class_focal, video_text_contrast
from momentdetr.retrieval.encoders.tr_mixer import ContextQueryMixer
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import VideoText

Make = Callable[..., MomentRetriever]


def test_the_mixer_is_that_of_naive_loops() -> None:
    torch.manual_seed(0)
    mixer = ContextQueryMixer(4).double().eval()
    video, text = torch.randn(1, 3, 4).double(), torch.randn(1, 3, 4).double()
    video_mask, text_mask = torch.tensor([[True, True, False]]), torch.tensor([[True, True, False]])
    v, w = video[0, :2], text[0, :2]
    one, two, both = mixer.clip_weight[:, 0], mixer.word_weight[:, 0], mixer.product_weight[0, 0]
    likeness = torch.stack([torch.stack([c @ one + q @ two + (c * both) @ q for q in w]) for c in v])
    of_words, of_clips = likeness.softmax(1), likeness.softmax(0)
    summary = (w * (w @ mixer.pool_weight[:, 0]).softmax(0)[:, None]).sum(0)
    for t in range(2):
        read = sum(of_words[t, q] * w[q] for q in range(2))
        back = sum(of_words[t, q] * of_clips[c, q] * v[c] for q in range(2) for c in range(2))
        mixed = F.linear(
            torch.cat([v[t], read, v[t] * read, v[t] * back]), mixer.attended.weight[..., 0], mixer.attended.bias
        )
        expected = F.linear(torch.cat([mixed, summary]), mixer.summed.weight[..., 0], mixer.summed.bias).relu()
        torch.testing.assert_close(mixer(video, text, video_mask, text_mask)[0, t], expected)


def found(spans: list[list[float]]) -> Output:
    """One query a sample, centre and width."""
    boxes = torch.tensor(spans)[:, None]
    return Output((Predictions(torch.zeros(len(spans), 1, 2), boxes),), torch.zeros(1, len(spans), 1, 16))


@pytest.mark.parametrize(
    ("span", "ours", "official"),
    [
        ([0.5, 0.5], (1, 5), (2, 7)),  # of 6 clips: 0.25 to 0.75 is 1.5 to 4.5; of 9 padded ones 2.25 to 6.75
        ([0.1, 0.4], (0, 2), (8, 3)),  # begins before the video: Python counts -1 from the end, and nothing is left
        ([1.0, 0.1], (5, 6), (8, 9)),
        ([0.0, 0.0], (0, 1), (0, 1)),
    ],
)
def test_the_best_moment_is_inside_the_video(span: list, ours: tuple, official: tuple, make: Make) -> None:
    mask = torch.arange(9)[None] < 6
    start, stop = make("tr_detr").encoder._best_moment(found([span]), mask)
    assert (start.item(), stop.item()) == ours
    start, stop = make("tr_detr", official_batch_faults=True).encoder._best_moment(found([span]), mask)
    assert max(stop.item() - start.item(), 0) == max(official[1] - official[0], 0)
    assert start.item() == official[0]


def test_the_state_is_that_of_a_moment_and_then_silence(make: Make) -> None:
    encoder = make("tr_detr").encoder
    video, mask = torch.randn(1, 5, 16), torch.tensor([[True] * 4 + [False]])
    alone = torch.cat([video[:, 1:3], torch.zeros(1, 2, 16)], 1)
    state = encoder.moment_state(video, torch.tensor([1]), torch.tensor([3]), mask)
    torch.testing.assert_close(state, encoder.gru(alone)[1][0])


def test_what_was_found_changes_saliency(make: Make, inputs: VideoText) -> None:
    model = make("tr_detr")
    encoding = model.encoder(inputs)
    output = model.head(encoding.memory)
    refined = model.encoder.refine(encoding, output, inputs.video_mask).saliency
    torch.testing.assert_close(refined, model(inputs).saliency)
    elsewhere = replace(output.last, boxes=1 - output.last.boxes)
    moved = model.encoder.refine(encoding, replace(output, layers=(elsewhere,)), inputs.video_mask).saliency
    assert (moved - refined)[inputs.video_mask].abs().max() > 1e-4


def test_losses_are_those_of_naive_loops() -> None:
    video, text = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    likeness = torch.tensor([[1.0, 0.0], [math.sqrt(0.5), math.sqrt(0.5)]]) / 0.07  # texts, videos
    rows = [-likeness[i].log_softmax(0)[i] for i in range(2)] + [-likeness[:, i].log_softmax(0)[i] for i in range(2)]
    torch.testing.assert_close(video_text_contrast(video, text), sum(rows) / 4)

    clips, words = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]]]), torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])
    inside, mask, text_mask = torch.tensor([[True, False, False]]), torch.arange(3)[None] < 2, torch.arange(2)[None] < 1
    own = math.log(1 + math.exp(-1 / 0.07)) + math.log(2)
    given = (clips, words, inside, mask, text_mask)
    assert clip_text_contrast(*given, padded=False).item() == pytest.approx(own / 2, rel=1e-5)
    assert clip_text_contrast(*given, padded=True).item() == pytest.approx((own + math.log(2)) / 3, rel=1e-5)

    said = Predictions(torch.tensor([[[2.0, -1.0], [0.5, 0.0]]]), torch.zeros(1, 2, 2))
    true = Targets(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    first = Assignment(*(torch.tensor([0]) for _ in range(3)))
    expected = 0.0
    for logit, truth in ((2.0, 1), (-1.0, 0), (0.5, 0), (0.0, 1)):
        p = 1 / (1 + math.exp(-logit))
        right = p if truth else 1 - p
        expected += -(0.25 if truth else 0.75) * (1 - right) ** 2 * math.log(right) / 4
    assert two_class_focal(said, true, first, torch.tensor(1.0)).item() == pytest.approx(expected, rel=1e-5)


def test_official_batch_faults_do_depend_on_the_batch(make: Make, inputs: VideoText) -> None:
    model = make("tr_detr", official_batch_faults=True)
    alone = VideoText(*(x[1:2] for x in (inputs.video[:, :6], inputs.video_mask[:, :6], inputs.text, inputs.text_mask)))
    assert (model.predict(inputs).saliency[1, :6] - model.predict(alone).saliency[0]).abs().max() > 1e-4
    full = replace(inputs, video_mask=torch.ones_like(inputs.video_mask), text_mask=torch.ones_like(inputs.text_mask))
    torch.testing.assert_close(model.predict(full).scores, make("tr_detr").predict(full).scores)
