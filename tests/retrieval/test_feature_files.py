import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.feature_files import read_published, read_tensors

SPEC = FeatureSpec(
    video=(Stream("slowfast", 4, "official"), Stream("clip", 3, "official")),
    text=Stream("clip_text", 3, "official"),
    clip_length_s=2.0,
)


def publish(root, video, slowfast_rows=5, clip_rows=5, clip_dim=3):
    rng = np.random.default_rng(len(video))
    for folder, shape in (("slowfast_features", (slowfast_rows, 4)), ("clip_features", (clip_rows, clip_dim))):
        (root / folder).mkdir(exist_ok=True)
        np.savez(root / folder / f"{video}.npz", features=rng.standard_normal(shape).astype(np.float16))


def publish_text(root, qid):
    (root / "clip_text_features").mkdir(exist_ok=True)
    states = np.random.default_rng(qid).standard_normal((6, 3)).astype(np.float32)
    np.savez(root / "clip_text_features" / f"qid{qid}.npz", last_hidden_state=states)


def test_safetensors_by_name(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(4, 2).half()}
    save_file(tensors, tmp_path / "video.safetensors")
    read = read_tensors(tmp_path / "video.safetensors", ["b", "c", "b"])
    assert list(read) == ["b"]
    assert read["b"].dtype == torch.float32
    assert torch.equal(read["b"], tensors["b"].float())


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all, not at all"])
def test_files_that_are_no_safetensors(tmp_path, content):
    path = tmp_path / "video.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="extract the features"):
        read_tensors(path, ["a"])


def test_published_streams_are_concatenated_in_order_and_cut_to_the_shortest(tmp_path):
    publish(tmp_path, "one", slowfast_rows=6)
    publish_text(tmp_path, 3)
    videos, texts = read_published(tmp_path, "moment_detr", ["one", "one"], ["3"], SPEC)
    slowfast = np.load(tmp_path / "slowfast_features/one.npz")["features"]
    clip = np.load(tmp_path / "clip_features/one.npz")["features"]
    assert videos["one"].tolist() == np.concatenate([slowfast[:5], clip], 1).astype(np.float32).tolist()
    assert texts["3"].shape == (6, 3)


def test_everything_that_cannot_be_used_is_named(tmp_path):
    publish(tmp_path, "one")
    publish(tmp_path, "two", clip_dim=2)
    publish_text(tmp_path, 3)
    with pytest.raises(BadInput) as caught:
        read_published(tmp_path, "moment_detr", ["one", "two", "three"], ["3", "4"], SPEC)
    text = str(caught.value)
    for expected in ("3 features", "two have vectors of [4, 2] numbers", "three", "qid4"):
        assert expected in text
    assert "one have" not in text
