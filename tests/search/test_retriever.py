"""Oracle: a model that reads its answers from a table, and, for exactness, the model's own predictions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_answers import SPEC, FixedModel, KnownEncoder, KnownModel, video

from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.features.spec import Stream
from momentdetr.retrieval.inputs import collate
from momentdetr.retrieval.model import MomentPredictions
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import VideoText
from momentdetr.search.retriever import BATCH_SIZE, Retriever

QUERIES = ["a red circle", "a blue square", "a dragon"]


def retriever(model: object, queries: list[str] | None = None) -> Retriever:
    return Retriever(model, KnownEncoder(queries or QUERIES), "known")  # type: ignore[arg-type]


def seconds(answer: object) -> list[tuple[float, float, float]]:
    return [(m.start_s, m.end_s, m.score) for m in answer.moments]  # type: ignore[attr-defined]


def test_moments_of_a_long_video_come_back_whole_once_and_sorted() -> None:
    truth = {
        # short; across the borders of several windows (40 clips, stride 20); longer than a window
        "a red circle": [(3.0, 5.0, 0.5), (35.0, 45.0, 0.8), (70.0, 170.0, 0.6)],
        "a blue square": [(39.5, 40.5, 0.9)],
        "a dragon": [],
    }
    result = retriever(KnownModel(truth)).search(video(200), QUERIES)
    assert [answer.query for answer in result] == QUERIES
    expected = [(70, 90, 0.8), (140, 340, 0.6), (6, 10, 0.5)]
    assert [pytest.approx(moment, abs=1e-4) for moment in expected] == seconds(result[0])
    assert [m[:2] for m in seconds(result[1])] == [pytest.approx((79, 81), abs=1e-4)]
    assert seconds(result[2]) == []
    assert [answer.absent for answer in result] == pytest.approx([0.2, 0.1, 1.0])


@settings(max_examples=60, deadline=None)
@given(
    num_clips=st.integers(1, 300),
    gaps=st.lists(st.tuples(st.floats(3, 40), st.floats(1, 120), st.floats(0.1, 1)), max_size=5),
    cut_s=st.floats(0, 1.5),
)
def test_any_truth_is_found_in_a_video_of_any_length(
    num_clips: int, gaps: list[tuple[float, float, float]], cut_s: float
) -> None:
    moments, end = [], -3.0
    for gap, length, score in gaps:
        start, end = end + gap, end + gap + length
        moments.append((start, end, score))
    film = video(num_clips, duration_s=2.0 * num_clips - cut_s)
    answer = retriever(KnownModel({"a": moments}), ["a"]).search(film, "a", top_k=20)[0]
    shown = [(2 * start, min(2 * end, film.duration_s), score) for start, end, score in moments if start < num_clips]
    expected = [moment for moment in shown if moment[1] - moment[0] >= 0.01]
    found = [moment for moment in sorted(seconds(answer)) if moment[1] - moment[0] >= 0.01]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    for clip, score in enumerate(answer.saliency):
        assert score == pytest.approx(float(any(start < clip + 0.5 < end for start, end, _ in moments)))


def test_a_video_of_one_window_gets_the_models_own_answer() -> None:
    sizes = {"video_dim": 10, "text_dim": 6, "width": 16, "num_heads": 2, "feed_forward": 16, "num_queries": 5}
    torch.manual_seed(0)
    model = build({"preset": "qd_detr", "sizes": sizes}).eval()
    spec = replace(SPEC, video=(Stream("clip", 8, "known"),), text=Stream("clip_text", 6, "known"), tef=True)
    spec = replace(spec, normalize="l2")
    features, tokens = torch.randn(30, 8), torch.randn(4, 6)

    class Encoder(KnownEncoder):
        def encode_text(self, queries: object) -> list[torch.Tensor]:
            return [tokens]

    encoder = Encoder([])
    encoder.spec = spec
    film = replace(video(30, duration_s=1e9), features=features, spec=spec)
    answer = Retriever(model, encoder).search(film, "anything", top_k=99)[0]
    own = model.predict(collate([features], [tokens], spec))
    order = own.scores[0].sort(descending=True, stable=True).indices
    spans = own.spans[0].double()[order] * 30 * 2.0
    expected = [
        (max(s, 0.0), e, p)
        for (s, e), p in zip(spans.tolist(), own.scores[0].double()[order].tolist(), strict=True)
        if e > max(s, 0)
    ]
    assert seconds(answer) == expected
    assert list(answer.saliency) == own.saliency[0].double().tolist()
    assert answer.absent == float(own.absent[0].double())


def test_queries_of_a_batch_are_answered_as_if_alone() -> None:
    truth = {"a": [(3.0, 9.0, 0.5)], "b": [(50.0, 60.0, 0.8), (80.0, 81.0, 0.3)], "c": [(0.0, 99.0, 0.6)]}
    model = retriever(KnownModel(truth), list(truth))
    together = model.search(video(100), list(truth))
    assert [model.search(video(100), query)[0] for query in truth] == list(together)


def test_the_text_is_encoded_once_and_batches_are_bounded() -> None:
    model, encoder = KnownModel({query: [(1.0, 2.0, 0.5)] for query in QUERIES}), KnownEncoder(QUERIES)
    steps: list[tuple[int, int]] = []
    Retriever(model, encoder).search(video(2000), QUERIES, progress=lambda *step: steps.append(step))
    assert encoder.asked == [QUERIES]
    assert max(model.batch_sizes) == BATCH_SIZE
    assert sum(model.batch_sizes) == 3 * 99  # windows of 40 clips, 20 apart: 0, 20, ... 1960
    assert steps[-1] == (297, 297)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_a_string_is_one_query() -> None:
    result = retriever(KnownModel({"a red circle": []}), ["a red circle"]).search(video(5), "a red circle")
    assert [answer.query for answer in result] == ["a red circle"]


def test_spans_are_put_in_order_clamped_and_dropped_when_empty() -> None:
    model = FixedModel(
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        [(0.75, 0.25), (-0.5, 0.1), (0.9, 1.7), (0.5, 0.5), (1.1, 1.2), (-0.4, -0.1)],
    )
    answer = retriever(model).search(video(20, duration_s=39.0), "a dragon", top_k=10)[0]
    # reversed -> in order; before the start -> from 0; behind the end -> to the end; empty or outside -> left out
    assert seconds(answer) == [
        (pytest.approx(10), pytest.approx(30), pytest.approx(0.9)),
        (0.0, pytest.approx(4), pytest.approx(0.8)),
        (pytest.approx(36), 39.0, pytest.approx(0.7)),
    ]


def test_a_span_that_reaches_over_a_cut_border_ends_there() -> None:
    model = FixedModel([0.9], [(-1.0, 2.0)])
    assert [m[:2] for m in seconds(retriever(model).search(video(100), "a dragon")[0])] == [(0.0, 200.0)]


@settings(max_examples=60, deadline=None)
@given(
    num_clips=st.integers(1, 150),
    answers=st.lists(st.tuples(st.floats(0, 1), st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8),
    top_k=st.integers(1, 20),
)
def test_whatever_a_model_says_moments_are_in_the_video_and_sorted(
    num_clips: int, answers: list[tuple[float, float, float]], top_k: int
) -> None:
    model = FixedModel([score for score, *_ in answers], [(start, end) for _, start, end in answers])
    film = video(num_clips, duration_s=2.0 * num_clips - 0.3)
    answer = retriever(model).search(film, "a dragon", top_k=top_k)[0]
    assert len(answer.moments) <= top_k
    assert len(answer.saliency) == num_clips
    assert all(0 <= m.start_s < m.end_s <= film.duration_s for m in answer.moments)
    assert [m.score for m in answer.moments] == sorted((m.score for m in answer.moments), reverse=True)


def test_the_best_moments_are_kept() -> None:
    model = FixedModel([0.1, 0.9, 0.5], [(0.0, 0.2), (0.3, 0.5), (0.6, 0.8)])
    answer = retriever(model).search(video(10), "a dragon", top_k=2)[0]
    assert [m.score for m in answer.moments] == pytest.approx([0.9, 0.5])


def test_saliency_that_is_a_logit_is_shown_as_a_probability() -> None:
    class Judging(FixedModel):
        def predict(self, batch: VideoText) -> MomentPredictions:
            return replace(super().predict(batch), saliency_is_logit=True)

    shown = retriever(Judging([0.5], [(0.1, 0.2)])).search(video(10), "a dragon")[0]
    assert shown.saliency == pytest.approx([1 / (1 + math.exp(-0.25))] * 10)
    assert shown.saliency_is_probability
    raw = retriever(FixedModel([0.5], [(0.1, 0.2)])).search(video(10), "a dragon")[0]
    assert raw.saliency == pytest.approx([0.25] * 10)


def test_absent_is_that_of_the_likeliest_window() -> None:
    truth = {"a": [(90.0, 95.0, 0.7)]}
    assert retriever(KnownModel(truth), ["a"]).search(video(100), "a")[0].absent == pytest.approx(0.3)


@pytest.mark.parametrize("field", ["scores", "spans", "saliency", "absent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_is_refused(field: str, value: float) -> None:
    model = FixedModel([0.5, 0.4], [(0.1, 0.2), (0.3, 0.4)])
    if field == "scores":
        model.scores[1] = value
    elif field == "spans":
        model.spans[1, 0] = value
    else:
        setattr(model, field, value)
    with pytest.raises(BadCheckpoint, match=f"{field} hold NaN"):
        retriever(model).search(video(10), "a dragon")


def test_features_that_are_no_numbers_are_refused() -> None:
    film = video(10)
    film.features[3, 0] = float("nan")
    with pytest.raises(BadInput, match="film: its features hold NaN"):
        retriever(FixedModel([0.5], [(0.1, 0.2)])).search(film, "a dragon")


def test_features_of_another_encoder_are_refused() -> None:
    film = replace(video(10), spec=replace(SPEC, video=(Stream("clip", 1, "other"),)))
    with pytest.raises(BadCheckpoint, match="'other'"):
        retriever(FixedModel([0.5], [(0.1, 0.2)])).search(film, "a dragon")


def test_an_encoder_of_other_features_is_refused() -> None:
    spec = replace(SPEC, clip_length_s=1.0)
    with pytest.raises(BadCheckpoint, match="clip_length_s"):
        Retriever(FixedModel([0.5], [(0.1, 0.2)]), KnownEncoder([]), spec=spec)


def test_how_the_model_scales_features_is_no_matter_of_the_encoder() -> None:
    spec = replace(SPEC, normalize="l2", tef=True, max_clips=10, max_words=5)
    Retriever(FixedModel([0.5], [(0.1, 0.2)]), KnownEncoder([]), spec=spec)


@pytest.mark.parametrize(
    ("queries", "top_k", "message"),
    [
        ([], 5, "no query"),
        ("", 5, "empty"),
        (["a dragon", "  \n"], 5, "empty"),
        ("x" * 10_000, 5, "10,000 characters"),
        (["a dragon", 7], 5, "expected a string"),
        ("a \ud800 dragon", 5, "Unicode"),
        ("a dragon", 0, "top_k is 0"),
    ],
)
def test_questions_that_cannot_be_asked(queries: object, top_k: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        retriever(FixedModel([0.5], [(0.1, 0.2)])).search(video(10), queries, top_k)  # type: ignore[arg-type]


def test_a_video_without_clips_is_refused() -> None:
    with pytest.raises(BadInput, match="no clips"):
        retriever(FixedModel([0.5], [(0.1, 0.2)])).search(video(0), "a dragon")
