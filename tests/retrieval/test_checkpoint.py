from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_retrievers import make_config

from momentdetr.errors import BadCheckpoint, StoreError
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval import checkpoint
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import VideoText


@pytest.fixture
def folder(tmp_path: Path, make: Callable[..., MomentRetriever], spec: FeatureSpec) -> Path:
    return checkpoint.save(
        tmp_path / "model", make_config("qd_detr"), make("qd_detr"), spec, about={"knows": "nothing"}
    )


def test_round_trip(folder: Path, make: Callable[..., MomentRetriever], spec: FeatureSpec, inputs: VideoText) -> None:
    model, loaded_spec = checkpoint.load(folder)
    assert loaded_spec == spec
    assert torch.equal(model.predict(inputs).spans, make("qd_detr").predict(inputs).spans)
    assert checkpoint.read_config(folder)["about"] == {"knows": "nothing"}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_on_disk_is_float32_in_memory(
    tmp_path: Path, make: Callable[..., MomentRetriever], spec: FeatureSpec
) -> None:
    model = make("qd_detr")
    folder = checkpoint.save(tmp_path, make_config("qd_detr"), model, spec, dtype=torch.float16)
    loaded, _ = checkpoint.load(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert (folder / "model.safetensors").stat().st_size < 2.5 * sum(
        v.numel() for v in model.state_dict().values()
    ) + 9e3


def test_a_flipped_bit_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"not the file that config\.json was written with"):
        checkpoint.load(folder)


def edit(folder: Path, **changes: object) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **changes}))


def test_wrong_folders_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        checkpoint.load(tmp_path)
    edit(folder, model=make_config("moment_detr"))
    with pytest.raises(BadCheckpoint, match="lack tensor"):
        checkpoint.load(folder)
    edit(folder, model={"preset": "dino"})
    with pytest.raises(BadCheckpoint, match="unknown preset 'dino'"):
        checkpoint.load(folder)
    edit(folder, format="momentdetr/99")
    with pytest.raises(BadCheckpoint, match="momentdetr/1"):
        checkpoint.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match="not readable"):
        checkpoint.load(folder)


def test_a_folder_that_cannot_be_made(tmp_path: Path, make: Callable[..., MomentRetriever], spec: FeatureSpec) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        checkpoint.save(tmp_path / "file", make_config("qd_detr"), make("qd_detr"), spec)
