from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.inputs import collate, normalize, temporal_endpoints


def test_each_stream_is_normalised_by_itself_as_the_official_loader_does() -> None:
    raw = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = np.concatenate(
        [part / (np.linalg.norm(part, axis=-1, keepdims=True) + 1e-5) for part in (raw[:, :2], raw[:, 2:])],
        -1,
    )
    np.testing.assert_allclose(normalize(torch.from_numpy(raw), [2, 3], "l2").numpy(), expected, rtol=1e-6)


def test_endpoints_are_fractions_of_the_window() -> None:
    assert temporal_endpoints(4).tolist() == [[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]


def test_collate_pads_truncates_and_marks(spec: FeatureSpec) -> None:
    spec = replace(spec, max_words=3)
    batch = collate([torch.ones(4, 8), torch.ones(2, 8)], [torch.ones(2, 6), torch.ones(7, 6)], spec)
    assert batch.video.shape == (2, 4, 10)
    assert batch.video_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.text_mask.tolist() == [[True, True, False], [True, True, True]]
    assert (batch.video[1, 2:] == 0).all()
    torch.testing.assert_close(batch.video[1, :2, 8:], temporal_endpoints(2))
    torch.testing.assert_close(batch.video[0, :, :8].norm(dim=-1), torch.ones(4), atol=1e-4, rtol=0)


def test_without_normalisation_and_endpoints_features_pass_as_they_are(spec: FeatureSpec) -> None:
    clips, words = torch.randn(3, 8), torch.randn(2, 6)
    batch = collate([clips], [words], replace(spec, normalize="none", tef=False))
    assert torch.equal(batch.video[0], clips)
    assert torch.equal(batch.text[0], words)


def test_a_black_frame_is_zero_not_nan(spec: FeatureSpec) -> None:
    assert collate([torch.zeros(2, 8)], [torch.zeros(1, 6)], spec).video.isfinite().all()


@pytest.mark.parametrize(
    ("video", "text", "message"),
    [
        ([], [], "at least one"),
        ([torch.ones(2, 8)], [], "as many videos as texts"),
        ([torch.ones(0, 8)], [torch.ones(1, 6)], r"video features of sample 0 have shape \(0, 8\)"),
        ([torch.ones(2, 7)], [torch.ones(1, 6)], r"7 numbers a vector, the model expects \[8\]"),
        ([torch.ones(2, 8)], [torch.full((1, 6), torch.nan)], "text features of sample 0 hold NaN"),
    ],
)
def test_bad_features_are_named(video: list, text: list, message: str, spec: FeatureSpec) -> None:
    with pytest.raises(BadInput, match=message):
        collate(video, text, spec)


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(BadInput, match="'l1'"):
        normalize(torch.ones(1, 2), [2], "l1")


def test_several_streams_keep_their_order(spec: FeatureSpec) -> None:
    two = replace(spec, video=(Stream("slowfast", 3, "official"), Stream("clip", 5, "test")))
    clips = torch.cat([torch.full((1, 3), 2.0), torch.full((1, 5), 7.0)], -1)
    batch = collate([clips], [torch.ones(1, 6)], two)
    torch.testing.assert_close(batch.video[0, 0, :3], torch.full((3,), 3**-0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.video[0, 0, 3:8], torch.full((5,), 5**-0.5), atol=1e-5, rtol=0)
