"""R2-Tuning's own parts and dense points: what the goldens prove, by naive loops and small cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_heart import finds_all_and_nothing_else, learn
from small_retrievers import make_config
from test_model import one, same_alone_and_in_a_batch

from momentdetr.detr.types import Targets
from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.encoders.r2_tuning import mutual_contrast, sampled_contrast
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.point_retriever import clip_scores
from momentdetr.retrieval.points import Points, Pyramid, dense_focal, point_targets
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]
SMALL: dict[str, Any] = {"num_layers": 2, "stored_layers": 2, "num_patches": 5}  # video 2 x 5 x 1, text 2 x 3


@pytest.fixture
def small(make: Make) -> Callable[..., Any]:
    def build_small(**options: Any) -> Any:
        model = make("r2_tuning", **{**SMALL, **options})
        with torch.no_grad():  # scales start at zero, where the words say nothing to the clips
            model.encoder.scale.fill_(0.7)
        return model

    return build_small


def test_points_answer_for_the_shortest_moment_of_their_length() -> None:
    points = Points.of([12, 6, 3, 1], (1, 2, 4, 8), torch.zeros(1))
    moments: list[list[tuple[float, float]]] = [[(0, 2), (1, 7), (5, 12), (4, 4.5)], [(2, 6)]]
    clips = [12, 8]
    boxes, mask = torch.zeros(2, 4, 2, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.bool)
    for sample, spans in enumerate(moments):
        for i, (start, end) in enumerate(spans):
            boxes[sample, i] = torch.tensor([(start + end) / 2, end - start]) / clips[sample]
            mask[sample, i] = True
    targets = Targets(torch.zeros(2, 4).long(), boxes, mask)
    answers, distances = point_targets(points, targets, torch.tensor(clips))
    levels = [(0, 1, 2), (1, 2, 4), (2, 4, 8), (3, 8, math.inf)]
    row = 0
    for (_, _, high), stride, count in zip(levels, (1, 2, 4, 8), (12, 6, 3, 1), strict=True):
        low = {1: 0, 2: 2, 4: 4, 8: 8}[stride]
        for cell in range(count):
            here = cell * stride
            for sample, spans in enumerate(moments):
                best = None
                for start, end in spans:
                    middle, far = (start + end) / 2, max(here - start, end - here)
                    near = max(start, middle - 1.5 * stride) <= here <= min(end, middle + 1.5 * stride)
                    if near and low <= far <= high and (best is None or end - start < best[1] - best[0]):
                        best = (start, end)
                assert bool(answers[sample, row]) == (best is not None), (sample, here, stride)
                if best is not None:
                    expected = torch.tensor([(here - best[0]) / stride, (best[1] - here) / stride])
                    torch.testing.assert_close(distances[sample, row], expected, atol=1e-4, rtol=0)
            row += 1
    assert 5 < answers.sum() < 30


def test_whole_clips_are_edges_whatever_fractions_lose() -> None:
    """A point at a moment's very edge answers for it, though 3 / 7 of 7 clips is not 3 in float32."""
    for num_clips in range(3, 40):
        points = Points.of([num_clips], (1,), torch.zeros(1))
        span = torch.tensor([[[2.0, 2.0]]]) / num_clips  # clips 1 to 3
        targets = Targets(torch.zeros(1, 1).long(), span, torch.ones(1, 1).bool())
        assert point_targets(points, targets, torch.tensor([num_clips]))[0][0, :4].tolist() == [0, 1, 1, 1][:num_clips]


def test_dense_focal_is_the_formula_over_real_points() -> None:
    logits, truth = torch.tensor([[0.3, -1.2, 2.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    p = logits.sigmoid()[0].tolist()
    expected = (-math.log(p[0]) * (1 - p[0]) ** 2 - math.log(1 - p[1]) * p[1] ** 2) / 2
    found = dense_focal(logits, truth, torch.tensor([[True, True, False]]))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_a_level_counts_whole_cells_of_each_video() -> None:
    pyramid = Pyramid(4, (1, 2, 4))
    clips, mask = torch.rand(2, 9, 4), torch.arange(9) < torch.tensor([[9], [5]])
    levels = pyramid(clips, mask)
    assert [cells.shape[1] for cells, _ in levels] == [9, 4, 2]
    assert [real.sum(1).tolist() for _, real in levels] == [[9, 5], [4, 2], [2, 1]]
    alone = pyramid(clips[1:, :5], mask[1:, :5])
    for (cells, real), (own, _) in zip(levels, alone, strict=True):
        torch.testing.assert_close(cells[1][real[1]], own[0])
    official = Pyramid(4, (1, 2, 4), official_batch_faults=True)(clips, mask)
    assert [real.sum(1).tolist() for _, real in official] == [[9, 5], [4, 3], [2, 2]]
    assert len(pyramid(clips[:, :3], mask[:, :3])) == 2  # too short for the last level


def test_clip_scores_stretch_each_level() -> None:
    sizes, clips = (13, 6, 3, 1), 13
    scores = torch.rand(1, sum(sizes))
    expected = []
    for clip in range(clips):
        best, first = 0.0, 0
        for size in sizes:
            best = max(best, scores[0, first + min(clip // (clips // size), size - 1)].item())
            first += size
        expected.append(best)
    found = clip_scores(scores, sizes, torch.tensor([clips]), clips)
    torch.testing.assert_close(found[0], torch.tensor(expected))
    # A shorter video of the same batch has fewer cells, and no others are read.
    row = torch.cat([scores, scores])
    mixed = clip_scores(row, sizes, torch.tensor([13, 5]), clips)
    own = torch.cat([scores[:, :5], scores[:, 13:15], scores[:, 19:20]], 1)
    torch.testing.assert_close(mixed[1, :5], clip_scores(own, (5, 2, 1), torch.tensor([5]), 5)[0])


def test_contrasts_are_infonce() -> None:
    first, second = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    total = 0.0
    for group in range(2):
        for i in range(3):
            for a, b in ((first, second), (second, first)):
                near = [F.cosine_similarity(a[group, i], b[group, j], dim=0).item() / 0.07 for j in range(3)]
                total -= near[i] - math.log(sum(map(math.exp, near)))
    assert mutual_contrast(first, second).item() == pytest.approx(total / 12, rel=1e-4)

    similarity, clip = torch.randn(2, 5), torch.tensor([1, 3])
    rivals = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])
    expected = 0.0
    for sample in range(2):
        own = similarity[sample, clip[sample]].item()
        rows = [similarity[sample, t].item() for t in range(5) if rivals[sample, t]]
        columns = [similarity[s, clip[sample]].item() for s in range(2) if rivals[s, clip[sample]]]
        expected -= 2 * own - math.log(sum(map(math.exp, rows))) - math.log(sum(map(math.exp, columns)))
    assert sampled_contrast(similarity, rivals, clip).item() == pytest.approx(expected / 2, rel=1e-5)


def test_words_find_patches(small: Make) -> None:
    encoder = small().encoder
    patches, words = torch.randn(2, 3, 5, 16), torch.randn(2, 4, 16)
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    found = encoder._pooled(patches, words, mask)
    for sample, count in ((0, 4), (1, 2)):
        for t in range(3):
            said = []
            for word in words[sample, :count]:
                match = encoder.patch_key(patches[sample, t]) @ encoder.word_query(word) / 4
                said.append(match.softmax(0) @ patches[sample, t] + word)
            torch.testing.assert_close(found[sample, t], torch.stack(said).amax(0))


def test_answers_do_not_depend_on_the_batch(small: Make, inputs: VideoText) -> None:
    same_alone_and_in_a_batch(small(), inputs)
    official = small(official_batch_faults=True)
    found, alone = official.predict(inputs), official.predict(one(inputs, 1, trimmed=True))
    assert (found.scores[1, :3] - alone.scores[0, :3]).abs().max() > 1e-5


def test_padding_is_never_seen(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = small().train()
    broken = replace(
        inputs,
        video=inputs.video.masked_fill(~inputs.video_mask[..., None], math.nan),
        text=inputs.text.masked_fill(~inputs.text_mask[..., None], math.nan),
    )
    before, after = model.loss(inputs, targets), model.loss(broken, targets)
    torch.testing.assert_close(before.total, after.total)
    after.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_one_clip_and_one_word(small: Make, inputs: VideoText) -> None:
    tiny = VideoText(inputs.video[:1, :1], inputs.video_mask[:1, :1], inputs.text[:1, :1], inputs.text_mask[:1, :1])
    found = small().predict(tiny)
    assert found.spans.isfinite().all()
    assert found.scores.shape == (1, 1)


def test_answers_are_the_best_points(small: Make, inputs: VideoText) -> None:
    model = small(max_moments=4)
    found, all_ = model.predict(inputs), small().predict(inputs)
    assert found.scores.shape == (3, 4)
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    torch.testing.assert_close(found.spans, all_.spans[:, :4])
    plain = small(merge=False).predict(inputs).saliency
    assert (plain.abs() <= 1 + 1e-6).all()  # cosines
    assert not torch.allclose(plain, found.saliency)


def test_terms_and_weights(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    losses = small().train().loss(inputs, targets)
    weights = {"class": 1.0, "l1": 0.2, "saliency": 0.1, "video_contrast": 0.1, "layer_contrast": 0.1}
    assert set(losses.terms) == set(weights)
    total = sum(weights[name] * value.item() for name, value in losses.terms.items())
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    empty = MomentTargets(replace(targets.spans, mask=torch.zeros_like(targets.spans.mask)), None)
    nothing = small().train().loss(inputs, empty)
    nothing.total.backward()
    assert nothing.terms["l1"] == 0
    assert nothing.total.isfinite()


@pytest.mark.slow
def test_r2_tuning_overfits(small: Make, inputs: VideoText, targets: MomentTargets) -> None:
    model = small()
    losses = learn(model, inputs, targets, steps=200, learning_rate=4e-3, last=1.0)
    assert losses.terms["class"] < 0.02
    found = model.eval().predict(inputs)
    finds_all_and_nothing_else(found, targets, (0, 1))
    assert found.scores[2].max() < 0.3  # the query that is not in its video


@pytest.mark.parametrize("ours", [{}, {"merge": False}, {"strides": (1, 2)}])
def test_round_trip(ours: dict, inputs: VideoText) -> None:
    model = build(make_config("r2_tuning", official_batch_faults=True, **SMALL, **ours)).eval()
    state = LAYOUTS["r2_tuning"].to_official(model.state_dict())
    state["loss._loss_sal.scale"] = torch.tensor([math.log(1 / 0.05)])
    state["clip.visual.proj"] = torch.zeros(2)
    options = {"heads": 2, "num_patches": 5, "merge_cls_sal": ours.get("merge", True)}
    converted = convert_state(state, options)
    twin: Any = converted.model()
    assert twin.encoder.temperature == pytest.approx(0.05)
    assert (converted.spec.tef, converted.spec.video_dim, converted.spec.normalize) == (False, 10, "none")
    assert all(twin.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert torch.equal(twin.predict(inputs).spans, model.predict(inputs).spans)
    assert torch.equal(twin.predict(inputs).saliency, model.predict(inputs).saliency)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(BadInput, match="do not hold 4 layers of 50 patches"):
        build(make_config("r2_tuning"))
    state = LAYOUTS["r2_tuning"].to_official(build(make_config("r2_tuning", **SMALL)).state_dict())
    state.pop("coef")
    with pytest.raises(BadCheckpoint, match="lacks 'coef'"):
        convert_state(state, {"heads": 2, "num_patches": 5})
