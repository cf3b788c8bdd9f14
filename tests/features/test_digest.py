"""Digests tell contents apart, and are remembered no longer than they are true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from momentdetr.errors import BadInput
from momentdetr.features import digest
from momentdetr.features.digest import content_hash, known_content_hash, state_digest, tensor_digest, write_atomically


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTDETR_CACHE", str(tmp_path / "cache"))


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 100)
    reads: list[Path] = []
    monkeypatch.setattr(digest, "content_hash", lambda file: reads.append(file) or content_hash(file))
    assert known_content_hash(path) == known_content_hash(path) == content_hash(path)
    assert len(reads) == 1
    monkeypatch.chdir(tmp_path)
    assert known_content_hash("weights") == content_hash(path)
    assert len(reads) == 1


def test_a_change_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 100)
    first = known_content_hash(path)
    path.write_bytes(b"b" * 100)
    os.utime(path, (1_000, 1_000))
    assert known_content_hash(path) == content_hash(path) != first
    path.write_bytes(b"b" * 101)
    os.utime(path, (1_000, 1_000))
    assert known_content_hash(path) == content_hash(path)


def test_a_damaged_memory_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a")
    known_content_hash(path)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    for damage in (b"", b"\xff\xff", b"not a digest", note.read_bytes()[:-1]):
        note.write_bytes(damage)
        assert known_content_hash(path) == content_hash(path)


def test_without_a_writable_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    path = tmp_path / "weights"
    path.write_bytes(b"a")
    assert known_content_hash(path) == content_hash(path)
    with pytest.raises(BadInput, match="No such file"):
        known_content_hash(tmp_path / "missing")


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_differ_by_type_shape_and_value() -> None:
    base = torch.arange(6.0)
    others = [base.double(), base.reshape(2, 3), base + 1e-6, base[:5], base.flip(0), torch.empty(0)]
    assert len({tensor_digest(tensor) for tensor in [base, *others]}) == 7
    assert tensor_digest(torch.arange(12.0)[::2] / 2) == tensor_digest(base)
    assert tensor_digest(torch.tensor(3.0)) != tensor_digest(torch.tensor([3.0]))
    assert tensor_digest(base.bfloat16()) == tensor_digest(base.bfloat16().clone())


def test_a_state_has_no_order() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert state_digest({"a": a, "b": b}) == state_digest({"b": b, "a": a}) != state_digest({"a": b, "b": a})
