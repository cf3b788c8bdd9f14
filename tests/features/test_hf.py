"""The transformers encoder gives what the library's own processor and model give, from local files only."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_tokenizer import read_ids, write_tokenizer
from test_tokens import write_clip_tokenizer
from torch import Tensor

from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.features.hf import HuggingFaceEncoder

QUERIES = ["a dog runs", "a cat sits on the mat then jumps away", "dog"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
SQUARE = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def _write(folder: Path, kind: str) -> Any:
    """Write a small random model as `save_pretrained` does, with preprocessing and tokenizer; return the model."""
    import transformers as hf

    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 64, "patch_size": 16}
    if kind == "clip":
        text = {**TOWER, "vocab_size": 49408, "max_position_embeddings": 20, "projection_dim": 24}
        config = hf.CLIPConfig(text_config=text, vision_config={**vision, "projection_dim": 24}, projection_dim=24)
        model: Any = hf.CLIPModel(config)
        processor: Any = hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64, image_mean=MEAN, image_std=STD)
    else:
        text = {**TOWER, "vocab_size": write_tokenizer(folder), "max_position_embeddings": 20}
        if kind == "siglip":
            model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
            processor = hf.SiglipImageProcessor(size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD)
        else:
            vision = {**TOWER, "num_patches": 16, "patch_size": 16}
            model = hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision))
            processor = hf.Siglip2ImageProcessor(max_num_patches=16, patch_size=16, image_mean=MEAN, image_std=STD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, _write(folder, request.param)


@torch.no_grad()
def test_images_are_those_of_the_library(case: tuple[str, Path, Any]) -> None:
    from transformers import AutoImageProcessor

    _, folder, model = case
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    expected = model.get_image_features(**processor([Image.fromarray(f) for f in SQUARE], return_tensors="pt"))
    expected = expected if isinstance(expected, Tensor) else expected.pooler_output
    encoder = HuggingFaceEncoder.create(folder, clip_length_s=2.0, batch_size=2)
    torch.testing.assert_close(encoder.encode_frames(SQUARE), expected, rtol=0, atol=1e-5)
    assert encoder.spec.video[0].dim == expected.shape[1]


@torch.no_grad()
def test_token_states_are_those_of_the_library(case: tuple[str, Path, Any]) -> None:
    kind, folder, model = case
    encoder = HuggingFaceEncoder.create(folder, clip_length_s=2.0)
    for query, states in zip(QUERIES, encoder.encode_text(QUERIES), strict=True):
        if kind == "clip":
            import open_clip

            words = [49406, *open_clip.SimpleTokenizer().encode(query), 49407]
            ids = torch.tensor([words])  # no padding at all
        else:
            words = read_ids(folder, query)
            ids = torch.tensor([words + [0] * (20 - len(words))])
        layers = model.text_model(input_ids=ids, output_hidden_states=True).hidden_states
        expected = model.text_model.final_layer_norm(layers[-1])[0, : len(words)]
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    assert encoder.spec.text_dim == 32


def test_wide_frames_are_cut_to_their_centre(case: tuple[str, Path, Any]) -> None:
    _, folder, _ = case
    encoder = HuggingFaceEncoder.create(folder, clip_length_s=2.0)
    wide = np.concatenate([np.zeros((3, 64, 32, 3), np.uint8), SQUARE, np.full((3, 64, 32, 3), 255, np.uint8)], 2)
    torch.testing.assert_close(encoder.encode_frames(wide), encoder.encode_frames(SQUARE), rtol=0, atol=1e-5)


def test_the_specification(case: tuple[str, Path, Any], tmp_path: Path) -> None:
    kind, folder, _ = case
    spec = HuggingFaceEncoder.create(folder, clip_length_s=2.0, max_words=20).spec
    picture = spec.video[0].preprocessing
    assert picture is not None
    assert (picture.image_size, picture.mean, picture.std) == (64, tuple(MEAN), tuple(STD))
    assert picture.interpolation == ("bilinear" if kind == "siglip2" else "bicubic")
    assert spec.video[0].model.startswith(f"transformers:{kind}-")
    assert spec.max_words == 20
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    spec.require_same(HuggingFaceEncoder.create(moved, clip_length_s=2.0, max_words=20).spec)


def test_several_weight_files_have_one_digest(tmp_path: Path) -> None:
    model = _write(tmp_path, "siglip")
    whole = HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    parts = HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(parts.encode_frames(SQUARE), whole.encode_frames(SQUARE))
    assert len(str(parts.spec.video[0].weights_sha256)) == 64


def test_clip_with_and_without_its_tokenizer_files(tmp_path: Path) -> None:
    _write(tmp_path, "clip")
    bundled = HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0).encode_text(QUERIES)
    write_clip_tokenizer(tmp_path)
    for a, b in zip(HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0).encode_text(QUERIES), bundled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path: Path) -> None:
    """transformers loads one of two entries without complaint, and every word becomes the unknown token."""
    from transformers import CLIPTokenizer

    _write(tmp_path, "clip")
    (tmp_path / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    assert len(CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)) == 2
    with pytest.raises(BadInput, match="2 entries, the text tower 49,408"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)


def test_a_folder_without_tokenizer_or_weights(tmp_path: Path) -> None:
    _write(tmp_path, "siglip")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsUnavailable, match=r"has no tokenizer\.json"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    (tmp_path / "model.safetensors").unlink()
    for folder in (tmp_path, tmp_path / "missing", Path("openai/clip-vit-base-patch32")):
        with pytest.raises(WeightsUnavailable, match="names of a model hub are not looked up"):
            HuggingFaceEncoder.create(folder, clip_length_s=2.0)


def test_absent_tensors_do_not_stay_random(tmp_path: Path) -> None:
    _write(tmp_path, "siglip")
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    gone = "text_model.final_layer_norm.weight"
    save_file({name: value for name, value in state.items() if name != gone}, path, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=f"lacks {gone}"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    save_file({**state, gone: torch.full_like(state[gone], torch.nan)}, path, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=f"{gone} holds NaN"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    save_file({**state, gone: torch.ones(7)}, path, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"lacks|weights cannot be read"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint, match="weights cannot be read"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": None}, "preprocessor_config.json is not usable"),
        ({"image_std": [0.1, 0.1]}, "three values"),
        ({"resample": 0}, "not usable"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        (None, r"has no preprocessor_config\.json"),
    ],
)
def test_preprocessing_must_be_there(tmp_path: Path, change: dict[str, Any] | None, message: str) -> None:
    _write(tmp_path, "siglip")
    path = tmp_path / "preprocessor_config.json"
    values = json.loads(path.read_text())
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**values, **change}))
    with pytest.raises(BadCheckpoint, match=message):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)


def test_other_models_and_broken_configurations(tmp_path: Path) -> None:
    _write(tmp_path, "siglip")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BadInput, match="is a bert model; expected one of clip, siglip, siglip2"):
        HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    for text in ("", "{}", '{"model_type": "no-such-model"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadCheckpoint, match=r"config\.json cannot be read"):
            HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)


def test_no_network_and_nothing_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path, "siglip")
    capfd.readouterr()

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0).encode_text(QUERIES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_a_long_query_is_said(tmp_path: Path) -> None:
    _write(tmp_path, "siglip")
    encoder = HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0)
    query = " ".join(["dog"] * 30)
    with pytest.warns(UserWarning, match=f"query has {len(read_ids(tmp_path, query))} tokens .* reads 20"):
        states = encoder.encode_text([query])[0]
    assert states.shape == (20, 32)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_capitals_and_the_side_of_the_padding_do_not_matter(tmp_path: Path, kind: str) -> None:
    _write(tmp_path, kind)
    plain = HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0).encode_text(QUERIES)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left", "truncation_side": "left"}))
    capital = [query.upper() for query in QUERIES]
    for a, b in zip(HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0).encode_text(capital), plain, strict=True):
        assert torch.equal(a, b)
