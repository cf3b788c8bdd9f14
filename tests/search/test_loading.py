"""Oracle: the folder that was written, and the same features and answers from parts put together by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.features.clip import OpenClipEncoder
from momentdetr.retrieval import checkpoint
from momentdetr.search.encoding import EncodedVideo
from momentdetr.search.loading import load
from momentdetr.search.windows import cut


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny.parent, tmp_path / "model")
    return tmp_path / "model" / "retriever"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_folder_is_loaded_with_the_encoder_beside_it(tiny: Path) -> None:
    retriever = load(tiny, device="cpu")
    model, spec = checkpoint.load(tiny)
    assert retriever.name == "retriever"
    assert retriever.spec == spec
    assert retriever.about == {"knows": "nothing: its weights are random"}
    for name, value in model.state_dict().items():
        assert torch.equal(retriever.model.state_dict()[name], value)  # type: ignore[attr-defined]
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), dtype=np.uint8)
    own = OpenClipEncoder.create(tiny.parent / "clip", clip_length_s=tiny_model.CLIP_LENGTH_S)
    assert torch.equal(retriever.encoder.encode_frames(frames), own.encode_frames(frames))
    assert not model.training


def test_the_encoder_may_be_given(copied: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(copied.parent / "clip", moved)
    with pytest.raises(WeightsUnavailable, match="needs the encoder open_clip:folder-"):
        load(copied, device="cpu")
    assert load(copied, device="cpu", encoder=moved).spec == checkpoint.load(copied)[1]
    with pytest.raises(BadInput, match="no such encoder weights"):
        load(copied, device="cpu", encoder=tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"expected the folder with its open_clip_config\.json"):
        load(copied, device="cpu", encoder=moved / "open_clip_model.safetensors")


def test_another_encoder_is_refused(copied: Path) -> None:
    other = tiny_model.write(copied.parent / "other", seed=1).parent / "clip"
    with pytest.raises(BadCheckpoint, match="weights_sha256"):
        load(copied, device="cpu", encoder=other)


def test_caching_can_be_refused(tiny: Path, tmp_path: Path) -> None:
    assert load(tiny, device="cpu", cache=False).store is None
    store = load(tiny, device="cpu").store
    assert store is not None
    assert store.folder == tmp_path / "cache" / "features"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "neither a known name nor a folder"),
        ("dmeo", "Did you mean 'demo'"),
        ("", "no model ''"),
        ("x" * 5000, "too long"),
    ],
)
def test_a_model_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(name, device="cpu")


def test_an_encoder_alone_answers_nothing() -> None:
    with pytest.raises(BadInput, match=r"clip-vit-b-32 is an encoder alone.*Known: demo, .*qd-detr-clip, .*; or"):
        load("clip-vit-b-32", device="cpu")


@pytest.mark.parametrize("name", ["qd-detr-clip", "lighthouse-moment-detr-clip"])
def test_published_weights_that_are_not_here_are_named_and_nothing_else_answers(name: str) -> None:
    with pytest.raises(WeightsUnavailable, match=f"momentdetr weights pull {name}"):
        load(name, device="cpu")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="not a model folder"):
        load(tmp_path, device="cpu")


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_text("<html>not found</html>", "utf-8")
    with pytest.raises(BadCheckpoint, match=r"model\.ckpt"):
        load(tmp_path / "model.ckpt", device="cpu")


def test_another_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(BadCheckpoint, match=r"other\.ckpt: .*Moment-DETR"):
        load(tmp_path / "other.ckpt", device="cpu")


def test_damaged_weights_are_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="safetensors"):
        load(copied, device="cpu")


def test_features_that_came_as_files_cannot_be_made_here(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text("utf-8"))
    config["features"]["video"][0]["preprocessing"] = None
    (copied / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(BadInput, match="came as files"):
        load(copied, device="cpu")


def test_an_unknown_device_is_refused(tiny: Path) -> None:
    with pytest.raises(BadInput, match="toaster"):
        load(tiny, device="toaster")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_answers_as_the_cpu(tiny: Path) -> None:
    on_cpu, on_cuda = load(tiny, device="cpu", cache=False), load(tiny, device="auto", cache=False)
    assert on_cuda.device.type == "cuda"
    frames = np.random.default_rng(0).integers(0, 255, (70, 32, 32, 3), dtype=np.uint8)
    answers = []
    for retriever in (on_cpu, on_cuda):
        features = retriever.encoder.encode_frames(frames)
        video = EncodedVideo("film", features, tiny_model.CLIP_LENGTH_S, 35.0, retriever.spec)
        answers.append(retriever.answers(video, cut(70, tiny_model.MAX_CLIPS), ["a red circle"])[0])
    for one, other in zip(*answers, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)
        assert one.saliency == pytest.approx(other.saliency, abs=1e-3)
