"""The open_clip encoder over every kind of text tower, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import small_clip
import torch
from open_clip import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file
from small_tokenizer import read_ids, write_tokenizer
from torch import Tensor

from momentdetr.errors import BadCheckpoint, BadInput, MomentDETRError, WeightsUnavailable
from momentdetr.features.clip import OpenClipEncoder
from momentdetr.features.clip_models import ClipModel, build_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 90, 120, 3), dtype=np.uint8)
QUERIES = ["a dog runs", "a cat sits on the mat then jumps away", "dog"]

COCA = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 64,
        "layers": 2,
        "width": 64,
        "patch_size": 32,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": {
        "context_length": 20,
        "hf_tokenizer_name": "somebody/small",
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
CUSTOM = {**small_clip.SMALL, "custom_text": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip.write_folder(
        tmp_path_factory.mktemp("small"), small_clip.SMALL, small_clip.random_state(small_clip.SMALL)
    )


@pytest.fixture(scope="module")
def encoder(folder: Path) -> OpenClipEncoder:
    return OpenClipEncoder.create(folder, clip_length_s=2.0)


def _random_folder(path: Path, config: dict[str, Any]) -> tuple[Path, Any]:
    torch.manual_seed(0)
    model = build_clip(ClipModel("random", config, {}))
    for name, parameter in model.named_parameters():
        if name == "text_decoder.text_projection":
            parameter.zero_()  # open_clip leaves CoCa's as the memory was: NaN, behind tests that left one there
        parameter.add_(0.05 * torch.randn_like(parameter))
    return small_clip.write_folder(path, config, dict(model.state_dict())), model


def _picture(frame: np.ndarray[Any, Any], size: int) -> Tensor:
    values = small_clip.PREPROCESS
    transform = image_transform(size, is_train=False, mean=values["mean"], std=values["std"])
    return transform(Image.fromarray(frame))


@pytest.mark.parametrize(("config", "size"), [(COCA, 64), (SIGLIP, 160), (CUSTOM, 64)], ids=["CoCa", "SigLIP", "own"])
def test_every_kind_of_text_tower(tmp_path: Path, config: dict[str, Any], size: int) -> None:
    """Against the towers themselves: their output tokens, one query at a time; CoCa's lack the last norm."""
    if config is SIGLIP:
        config = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": write_tokenizer(tmp_path)}}
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))  # not as it was trained
    folder, model = _random_folder(tmp_path, config)
    encoder = OpenClipEncoder.create(folder, clip_length_s=1.0)
    images = torch.stack([_picture(frame, size) for frame in FRAMES])
    expected = model.visual(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(encoder.encode_frames(FRAMES), expected, rtol=0, atol=1e-5)
    model.text.output_tokens = True
    for query, states in zip(QUERIES, encoder.encode_text(QUERIES), strict=True):
        if size == 160:
            words = read_ids(tmp_path, query)
            ids = torch.tensor([words + [0] * (20 - len(words))])
        else:
            words = [49406, *open_clip.SimpleTokenizer().encode(query), 49407]
            ids = torch.tensor([words + [0] * (16 - len(words))])
        tokens = model.text(ids)[1]
        tokens = model.text.ln_final(tokens) if config is COCA else tokens
        torch.testing.assert_close(states, tokens[0, : len(words)], rtol=0, atol=1e-5)
    assert encoder.spec.text_dim == config["text_cfg"]["width"]
    assert encoder.spec.video[0].dim == config["embed_dim"]


def test_the_specification_says_how_it_was_made(folder: Path, encoder: OpenClipEncoder) -> None:
    spec = encoder.spec
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    assert spec.video[0].weights_sha256 == spec.text.weights_sha256 == hashlib.sha256(weights).hexdigest()
    picture = spec.video[0].preprocessing
    assert picture is not None
    assert (picture.image_size, picture.interpolation) == (64, "bicubic")
    assert (picture.mean, picture.std) == (tuple(small_clip.PREPROCESS["mean"]), tuple(small_clip.PREPROCESS["std"]))
    assert (spec.clip_length_s, spec.normalize, spec.tef, spec.max_clips, spec.max_words) == (2.0, "l2", True, 75, 32)
    assert (spec.video_dim, spec.text_dim) == (26, 64)
    other = OpenClipEncoder.create(folder, clip_length_s=1.0, max_clips=100, max_words=20).spec
    assert (other.clip_length_s, other.max_clips, other.max_words) == (1.0, 100, 20)


def test_a_moved_folder_makes_the_same_features(folder: Path, encoder: OpenClipEncoder, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    again = OpenClipEncoder.create(str(moved), clip_length_s=2.0)
    encoder.spec.require_same(again.spec)
    assert torch.equal(again.encode_frames(FRAMES), encoder.encode_frames(FRAMES))


def test_other_weights_are_noticed(folder: Path, encoder: OpenClipEncoder, tmp_path: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state["ln_final.bias"] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    other = OpenClipEncoder.create(folder, tmp_path / "other.safetensors", clip_length_s=2.0)
    with pytest.raises(BadCheckpoint, match="weights_sha256"):
        encoder.spec.require_same(other.spec)
    shift = other.encode_text(["dog"])[0] - encoder.encode_text(["dog"])[0]
    torch.testing.assert_close(shift, torch.full_like(shift, 1e-3), rtol=0, atol=1e-5)


def test_batched_is_alone(encoder: OpenClipEncoder) -> None:
    together = encoder.encode_text(QUERIES)
    for query, states in zip(QUERIES, together, strict=True):
        torch.testing.assert_close(encoder.encode_text([query])[0], states, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        encoder.encode_frames(FRAMES)[3:4], encoder.encode_frames(FRAMES[3:4]), rtol=0, atol=1e-5
    )


def test_a_long_query_keeps_its_end_mark(encoder: OpenClipEncoder) -> None:
    with pytest.warns(UserWarning, match="query has 42 tokens .* reads 16"):
        states = encoder.encode_text([" ".join(["dog"] * 40)])[0]
    assert states.shape == (16, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shorter = encoder.encode_text([" ".join(["dog"] * 14)])[0]
    assert torch.equal(states, shorter)


def test_bfloat16_is_near_and_returns_float32(folder: Path, encoder: OpenClipEncoder) -> None:
    rough = OpenClipEncoder.create(folder, clip_length_s=2.0, dtype="bfloat16")
    assert rough.dtype == "bfloat16"
    for a, b in [
        (encoder.encode_frames(FRAMES), rough.encode_frames(FRAMES)),
        (encoder.encode_text(QUERIES)[1], rough.encode_text(QUERIES)[1]),
    ]:
        assert b.dtype == torch.float32
        assert torch.cosine_similarity(a, b).min() > 0.999
        assert not torch.equal(a, b)


def test_nothing_is_trained_by_accident(encoder: OpenClipEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())
    assert not encoder._model.training
    features = encoder.encode_frames(FRAMES)
    torch.nn.Linear(24, 1)(features).sum().backward()  # features may be trained on


def test_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    OpenClipEncoder.create(folder, clip_length_s=2.0).encode_text(["dog"])
    for name in ("ViT-B-32", "ViT-B-16-SigLIP2", "coca_ViT-B-32", "roberta-ViT-B-32", "hf-hub:timm/some-model"):
        for weights in (None, tmp_path / "missing.pt", folder / "open_clip_config.json"):
            with pytest.raises(MomentDETRError):
                OpenClipEncoder.create(name, weights, clip_length_s=2.0)


def test_without_weights_there_is_no_encoder(folder: Path, tmp_path: Path) -> None:
    """A random model would answer, too."""
    with pytest.raises(WeightsUnavailable, match="momentdetr weights pull"):
        OpenClipEncoder.create("ViT-B-32", clip_length_s=2.0)
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with pytest.raises(WeightsUnavailable, match=r"open_clip_model\.safetensors in the folder"):
        OpenClipEncoder.create(tmp_path, clip_length_s=2.0)


def test_weights_of_another_model(folder: Path) -> None:
    with pytest.raises(BadCheckpoint, match="does not fit the model"):
        OpenClipEncoder.create("ViT-B-32-quickgelu", folder / "open_clip_model.safetensors", clip_length_s=2.0)


def test_openai_weights_in_a_folder_that_says_plain_gelu(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    small_clip.write_torchscript(tmp_path / "openai.pt", state, small_clip.openai_marks(small_clip.SMALL))
    plain = {**small_clip.SMALL, "quick_gelu": False}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": plain}))
    with pytest.raises(BadCheckpoint, match="need QuickGELU"):
        OpenClipEncoder.create(tmp_path, tmp_path / "openai.pt", clip_length_s=2.0)


def test_a_file_called_openai_is_asked_about(folder: Path, tmp_path: Path) -> None:
    """Nothing in a plain file says whose it is; its name may."""
    plain = {**small_clip.SMALL, "quick_gelu": False}
    named = small_clip.write_folder(tmp_path / "vit.openai", plain, load_file(folder / "open_clip_model.safetensors"))
    with pytest.warns(UserWarning, match="tag='openai'"):
        OpenClipEncoder.create(named, clip_length_s=2.0)


@pytest.mark.parametrize(
    "change", [{"clip_length_s": 0.0}, {"device": "tpu9"}, {"dtype": "int8"}, {"batch_size": 0}], ids=str
)
def test_arguments_that_cannot_be_meant(folder: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        OpenClipEncoder.create(folder, **{"clip_length_s": 2.0, **change})
