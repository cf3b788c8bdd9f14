"""Weights are read from files of any origin, and nothing in them is run or believed."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import small_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint
from momentdetr.features.clip_models import ClipModel, build_clip
from momentdetr.features.clip_weights import load_clip_state, read_clip_state, read_torchscript_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.0.bias": torch.tensor([1.5, -2.0]).half()}


def _equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def test_the_usual_files(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "b.pt")
    torch.save(TENSORS, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    training = {f"module.{name}": value for name, value in TENSORS.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": training, "optimizer": {}}, tmp_path / "d.pt")
    small_clip.write_torchscript(tmp_path / "e.pt", TENSORS, {})
    for path in sorted(tmp_path.iterdir()):
        state = read_clip_state(path)
        assert _equal(state.tensors, TENSORS), path
        assert not state.openai


@pytest.mark.parametrize("kind", ["state dictionary", "archive"])
def test_openai_is_recognised_by_its_marks(tmp_path: Path, kind: str) -> None:
    marks, path = small_clip.openai_marks(small_clip.SMALL), tmp_path / "a.pt"
    if kind == "archive":
        small_clip.write_torchscript(path, TENSORS, marks)
    else:
        torch.save({**TENSORS, **marks}, path)
    state = read_clip_state(path)
    assert state.openai
    assert _equal(state.tensors, TENSORS)


def test_an_archive_gives_what_torch_would_load(tmp_path: Path) -> None:
    """A traced network with shared, strided, half and integer tensors: names and values as torch.jit.load has them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
            self.narrow = nn.Parameter(torch.randn(2, 5).half().T, requires_grad=False)
            self.flags = nn.Buffer(torch.tensor([True, False]))
            self.again = self.layers[0].weight

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) + self.narrow.float().sum() + self.again.sum()

    path = tmp_path / "a.pt"
    torch.jit.trace(Net().eval(), torch.randn(2, 4)).save(str(path))
    assert _equal(read_torchscript_tensors(path), torch.jit.load(str(path)).state_dict())


class _Canary:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _poisoned_archive(path: Path, canary: Path) -> None:
    """A TorchScript archive whose pickle would create a folder."""
    small_clip.write_torchscript(path, TENSORS, {})
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, pickle.dumps(_Canary(canary)) if name.endswith("/data.pkl") else content)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "run"
    torch.save({"a": _Canary(canary)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(_Canary(canary)))
    torch.save(nn.Linear(2, 2), tmp_path / "c.pt")
    _poisoned_archive(tmp_path / "d.pt", canary)
    for name in "abcd":
        with pytest.raises(BadCheckpoint, match=f"{name}.pt: cannot be read"):
            read_clip_state(tmp_path / f"{name}.pt")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 350\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"PK\x03\x04 not really", "cannot be read"),
        (b"\x80\x02}q\x00.", "cannot be read"),
        (os.urandom(1000), "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_people_get_instead_of_weights(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message) as caught:
        read_clip_state(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_one_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no such file"):
        read_clip_state(tmp_path / "a.pt")
    torch.save({"a": 1}, tmp_path / "b.pt")
    with pytest.raises(BadCheckpoint, match="a is int; expected named tensors only"):
        read_clip_state(tmp_path / "b.pt")
    torch.save(torch.zeros(3), tmp_path / "c.pt")
    with pytest.raises(BadCheckpoint, match="found Tensor"):
        read_clip_state(tmp_path / "c.pt")


def test_damaged_archives_are_refused_or_read(tmp_path: Path) -> None:
    path, rng, refused = tmp_path / "a.pt", random.Random(0), 0
    small_clip.write_torchscript(path, TENSORS, {})
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content[: rng.choice([len(content), rng.randrange(1, len(content))])])
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_clip_state(path)
        except BadCheckpoint:
            refused += 1
    assert refused > 100


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return small_clip.random_state(small_clip.SMALL)


def _model() -> nn.Module:
    return build_clip(ClipModel("small", small_clip.SMALL, {}))


def test_loading_is_strict(state: dict[str, Tensor]) -> None:
    path = Path("w.pt")
    lacking = {name: value for name, value in state.items() if "ln_final" not in name}
    broken = {**state, "ln_final.bias": torch.full_like(state["ln_final.bias"], torch.nan)}
    huge = {**state, "ln_final.bias": torch.zeros(1).expand(10**12)}
    for change, message in (
        (lacking, "lacks ln_final.bias, ln_final.weight"),
        ({**state, "extra": torch.zeros(1)}, "has and the model has not extra"),
        (huge, r"other shapes: ln_final.bias \(1000000000000,\) instead of \(64,\)"),
        (broken, "NaN or infinity in ln_final.bias"),
        ({}, "lacks .* and 58 more"),
    ):
        with pytest.raises(BadCheckpoint, match=f"w.pt: does not fit the model: the file .*{message}"):
            load_clip_state(_model(), change, path)


def test_what_no_feature_depends_on_may_be_missing_or_left_over(state: dict[str, Tensor]) -> None:
    model = _model()
    idle = {name: value for name, value in state.items() if name != "logit_scale"}
    load_clip_state(model, {**idle, "logit_bias": torch.zeros(1), "attn_mask": torch.zeros(2, 2)}, Path("w.pt"))
    assert torch.equal(model.state_dict()["ln_final.bias"], state["ln_final.bias"])


def test_a_model_with_its_own_text_tower_takes_the_official_names(state: dict[str, Tensor]) -> None:
    model = build_clip(ClipModel("small", {**small_clip.SMALL, "custom_text": True}, {}))
    load_clip_state(model, state, Path("w.pt"))
    assert torch.equal(model.state_dict()["text.ln_final.bias"], state["ln_final.bias"])
