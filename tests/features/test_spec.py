"""A specification survives JSON and notices every difference."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from momentdetr.errors import BadCheckpoint
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream

PICTURES = Preprocessing(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CLIP = Stream("clip", 512, "open_clip:ViT-B-32-quickgelu", "a" * 64, PICTURES)
SLOWFAST = Stream("slowfast", 2304, "official")
SPEC = FeatureSpec((SLOWFAST, CLIP), Stream("clip_text", 512, "open_clip:ViT-B-32-quickgelu", "a" * 64), 2.0)


def test_dimensions_are_those_of_the_published_models() -> None:
    assert SPEC.video_dim == 2818
    assert replace(SPEC, video=(CLIP,)).video_dim == 514
    assert replace(SPEC, tef=False).video_dim == 2816
    assert SPEC.text_dim == 512


def test_json_and_back() -> None:
    found = FeatureSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())))
    assert found == SPEC
    assert isinstance(found.video[1].preprocessing, Preprocessing)
    assert hash(found) == hash(SPEC)


def test_equal_specifications_fit() -> None:
    SPEC.require_same(FeatureSpec.from_dict(SPEC.to_dict()))


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (replace(SPEC, video=(CLIP, SLOWFAST)), "video[0].name"),
        (replace(SPEC, video=(CLIP,)), "video"),
        (replace(SPEC, clip_length_s=1.0), "clip_length_s"),
        (replace(SPEC, normalize="none"), "normalize"),
        (replace(SPEC, tef=False), "tef"),
        (replace(SPEC, max_clips=100), "max_clips"),
        (replace(SPEC, max_words=40), "max_words"),
        (replace(SPEC, text=replace(SPEC.text, dim=768)), "text.dim"),
        (replace(SPEC, video=(SLOWFAST, replace(CLIP, model="open_clip:ViT-B-32"))), "video[1].model"),
        (replace(SPEC, video=(SLOWFAST, replace(CLIP, weights_sha256="b" * 64))), "video[1].weights_sha256"),
        (
            replace(SPEC, video=(SLOWFAST, replace(CLIP, preprocessing=replace(PICTURES, interpolation="bilinear")))),
            "video[1].preprocessing.interpolation",
        ),
        (
            replace(SPEC, video=(SLOWFAST, replace(CLIP, preprocessing=replace(PICTURES, mean=(0.5, 0.5, 0.5))))),
            "video[1].preprocessing.mean[0]",
        ),
        (replace(SPEC, video=(SLOWFAST, replace(CLIP, preprocessing=None))), "video[1].preprocessing"),
    ],
)
def test_each_difference_is_named(other: FeatureSpec, field: str) -> None:
    with pytest.raises(BadCheckpoint, match="features do not fit the model") as caught:
        SPEC.require_same(other)
    assert f": {field} is" in str(caught.value)


def test_an_unknown_digest_fits_any() -> None:
    unknown = replace(SPEC, video=(SLOWFAST, replace(CLIP, weights_sha256=None)))
    SPEC.require_same(unknown)
    unknown.require_same(SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"text": None},
        {"video": 3},
        {"surprise": 1},
        {"video": [{"name": "clip"}]},
        {"video": []},
        {"clip_length_s": 0},
        {"clip_length_s": float("nan")},
        {"clip_length_s": "2"},
        {"max_words": 2.5},
        {"max_clips": 0},
        {"normalize": "L2"},
        {"text": {"name": "t", "dim": "512", "model": "m"}},
        {"text": {"name": "t", "dim": 1, "model": "m", "preprocessing": {"image_size": 224}}},
    ],
)
def test_unreadable_specifications_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadCheckpoint, match="feature specification is not readable"):
        FeatureSpec.from_dict({**SPEC.to_dict(), **change})
