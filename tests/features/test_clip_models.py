"""Models are found by name or folder, and never by way of the network."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import open_clip
import pytest
import small_clip

from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.features.clip_models import (
    ClipModel,
    build_clip,
    find_clip_model,
    openai_digests,
    preprocessing_of,
    tokenizer_of,
    with_quick_gelu,
)
from momentdetr.features.tokens import BpeTokenizer


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_name_of_open_clip_is_found_or_asks_for_its_tag() -> None:
    undecided = []
    for name in open_clip.list_models():
        try:
            found = find_clip_model(name)
        except BadInput as error:
            assert "say which with tag=" in str(error)  # noqa: PT017
            undecided.append(name)
        else:
            assert found.name == name
            assert set(found.preprocess) == {"mean", "std", "interpolation"}
    assert undecided == ["ViT-L-14"]


def test_preprocessing_follows_the_weights() -> None:
    assert find_clip_model("ViT-B-32").preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert find_clip_model("ViT-B-16-SigLIP").preprocess["mean"] == (0.5, 0.5, 0.5)
    assert find_clip_model("ViT-L-14", "openai").preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert find_clip_model("ViT-L-14", "laion2b_s32b_b82k").preprocess["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(BadInput, match=r"has no weights 'nonsense' of ViT-L-14; expected one of .*openai"):
        find_clip_model("ViT-L-14", "nonsense")


@pytest.mark.parametrize("name", ["ViT-B-33", "", "hf-hub:timm/vit_base", "local-dir:models", "https://host/model"])
def test_an_unknown_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((BadInput, BadCheckpoint)) as caught:
        find_clip_model(name)
    assert ("ViT-B-32" in str(caught.value)) == (name == "ViT-B-33")


def test_a_name_is_no_folder_and_a_path_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_clip.write_folder(tmp_path / "ViT-B-32", small_clip.SMALL, {})
    assert find_clip_model("ViT-B-32").folder is None
    assert find_clip_model(Path("ViT-B-32")).folder == Path("ViT-B-32")


def test_a_folder_is_named_by_what_it_is(tmp_path: Path) -> None:
    one = find_clip_model(small_clip.write_folder(tmp_path / "one", small_clip.SMALL, {}))
    two = find_clip_model(str(small_clip.write_folder(tmp_path / "two", dict(reversed(small_clip.SMALL.items())), {})))
    other = find_clip_model(small_clip.write_folder(tmp_path / "three", {**small_clip.SMALL, "quick_gelu": False}, {}))
    assert one.name == two.name != other.name
    assert one.preprocess == small_clip.PREPROCESS
    assert one.weights == tmp_path / "one" / "open_clip_model.safetensors"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model_cfg": {}}',
        '{"model_cfg": {"vision_cfg": 1, "text_cfg": {}}}',
        '{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": 3}',
    ],
)
def test_an_unreadable_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"open_clip_config\.json: not readable"):
        find_clip_model(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(BadCheckpoint, match="not readable"):
        find_clip_model(tmp_path)


def test_openai_weights_need_quick_gelu(tmp_path: Path) -> None:
    changed = with_quick_gelu(find_clip_model("ViT-B-32"))
    assert (changed.name, changed.quick_gelu) == ("ViT-B-32-quickgelu", True)
    for name in openai_digests().values():
        assert find_clip_model(name, "openai").quick_gelu, name
    assert find_clip_model("ViT-B-32", "metaclip_400m").name == "ViT-B-32-quickgelu"
    assert not find_clip_model("ViT-B-32", "laion2b_s34b_b79k").quick_gelu
    right = find_clip_model("ViT-B-32-quickgelu")
    assert with_quick_gelu(right) is right
    plain = small_clip.write_folder(tmp_path, {**small_clip.SMALL, "quick_gelu": False}, {})
    with pytest.raises(BadCheckpoint, match='Set "quick_gelu": true'):
        with_quick_gelu(find_clip_model(plain))


def test_the_published_digests_are_known() -> None:
    """The address of OpenAI's ViT-B/32 holds its SHA-256."""
    digests = openai_digests()
    assert digests["40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"] == "ViT-B-32"
    assert len(digests) >= 9


@pytest.mark.parametrize("name", ["roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32", "mt5-base-ViT-B-32"])
def test_text_towers_of_a_hub_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="from a model hub"):
        build_clip(find_clip_model(name))


def test_configurations_that_open_clip_does_not_know() -> None:
    for change in ({"embed_dimension": 3}, {"vision_cfg": {"width": 64, "layerz": 2}}, {"text_cfg": {"width": "x"}}):
        with pytest.raises(BadCheckpoint, match="open_clip cannot build this configuration"):
            build_clip(ClipModel("odd", {**small_clip.SMALL, **change}, {}))


def test_preprocessing_of_a_built_model() -> None:
    net = build_clip(ClipModel("small", small_clip.SMALL, {}))
    found = preprocessing_of(ClipModel("small", {}, small_clip.PREPROCESS), net)
    assert (found.image_size, found.mean, found.interpolation) == (64, (0.5, 0.4, 0.3), "bicubic")
    for change in ({"std": [0, 1, 1]}, {"mean": [1, 2]}, {"interpolation": "random"}):
        with pytest.raises(BadCheckpoint, match="preprocessing is not usable"):
            preprocessing_of(ClipModel("small", {}, {**small_clip.PREPROCESS, **change}), net)
    wide = {**small_clip.SMALL, "vision_cfg": {**small_clip.SMALL["vision_cfg"], "image_size": [64, 96]}}
    with pytest.raises(BadInput, match="pictures of 96x64; expected a model with square pictures"):
        preprocessing_of(ClipModel("wide", {}, small_clip.PREPROCESS), build_clip(ClipModel("wide", wide, {})))


def test_the_bundled_tokenizer_is_used_where_it_belongs(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(find_clip_model("ViT-B-32"), None)
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer.context_length == 77
    few = {**small_clip.SMALL, "text_cfg": {**small_clip.SMALL["text_cfg"], "vocab_size": 1000}}
    with pytest.raises(BadInput, match="49,408 entries, the text tower 1,000"):
        tokenizer_of(ClipModel("few", few, {}), None)


def test_a_tokenizer_of_a_hub_must_lie_beside_the_weights(tmp_path: Path) -> None:
    model = find_clip_model("ViT-B-16-SigLIP")
    with pytest.raises(WeightsUnavailable, match=r"timm/ViT-B-16-SigLIP; put its tokenizer\.json"):
        tokenizer_of(model, tmp_path / "weights.safetensors")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(BadInput, match="its tokenizer cannot be read"):
        tokenizer_of(model, tmp_path / "weights.safetensors")
