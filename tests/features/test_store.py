"""The feature store gives back what was put, whole, or nothing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from momentdetr.errors import BadInput
from momentdetr.features.digest import content_hash
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream
from momentdetr.features.store import EncodedFeatures, FeatureStore, feature_key

SPEC = FeatureSpec(
    (Stream("clip", 8, "open_clip:tiny", "0" * 64, Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),),
    Stream("clip_text", 4, "open_clip:tiny", "0" * 64),
    2.0,
)
KEY = feature_key("f" * 64, SPEC)


def _features(rows: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> EncodedFeatures:
    values = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return EncodedFeatures(values, rows * 2.0 - 0.5, 2.0, SPEC)


def _same(found: EncodedFeatures | None, expected: EncodedFeatures) -> bool:
    return (
        found is not None
        and found.features.dtype == expected.features.dtype
        and torch.equal(found.features, expected.features)
        and (found.duration_s, found.clip_length_s, found.spec)
        == (expected.duration_s, expected.clip_length_s, expected.spec)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 75])
def test_what_was_put_comes_back(tmp_path: Path, rows: int, dtype: torch.dtype) -> None:
    store = FeatureStore(tmp_path / "deep" / "folder")
    features = EncodedFeatures(torch.randn(rows, 8).to(dtype), 3.25, 2.0, SPEC)
    assert store.get(KEY) is None
    assert store.put(KEY, features)
    assert _same(FeatureStore(tmp_path / "deep" / "folder").get(KEY), features)


def test_a_part_of_a_larger_tensor_is_kept_alone(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    whole = torch.randn(100, 16)
    part = EncodedFeatures(whole[10:20, ::2], 20.0, 2.0, SPEC)
    store.put(KEY, part)
    assert _same(store.get(KEY), part)


@pytest.mark.parametrize(
    "other",
    [
        feature_key("e" * 64, SPEC),
        feature_key("f" * 64, replace(SPEC, clip_length_s=1.0)),
        feature_key("f" * 64, replace(SPEC, video=(replace(SPEC.video[0], weights_sha256="1" * 64),))),
        feature_key("f" * 64, SPEC, dtype="bfloat16"),
    ],
)
def test_other_bytes_model_or_precision_is_another_key(other: str) -> None:
    assert other != KEY
    assert feature_key("f" * 64, SPEC) == KEY


def test_unknown_weights_have_no_key() -> None:
    unknown = replace(SPEC, video=(replace(SPEC.video[0], weights_sha256=None),))
    with pytest.raises(BadInput, match="no weights digest"):
        feature_key("f" * 64, unknown)


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "F" * 64, "f" * 63])
def test_a_key_is_no_path(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadInput, match="expected what feature_key returns"):
        FeatureStore(tmp_path).get(bad)


def test_content_hash_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert content_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 1_000_000)  # appendix B.3, larger than one chunk is below
    assert content_hash(path) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    path.write_bytes(b"a" * (3 << 20))
    longer = content_hash(path)
    path.write_bytes(b"a" * (3 << 20) + b"b")
    assert content_hash(path) != longer
    with pytest.raises(BadInput, match=r"missing\.mp4: cannot be read"):
        content_hash(tmp_path / "missing.mp4")


def test_every_flipped_bit_and_cut_is_noticed(tmp_path: Path) -> None:
    """safetensors itself serves flipped bits of tensor data without a word."""
    store = FeatureStore(tmp_path)
    expected = _features(3)
    store.put(KEY, expected)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    rng = random.Random(0)
    places = [*range(len(good) - 96, len(good)), *rng.sample(range(len(good)), 300)]
    served = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = store.get(KEY)
        if found is None:
            assert [str(w.message) for w in said if "damaged feature file, made anew" in str(w.message)]
        else:  # a bit that says nothing, such as the padding of the header
            assert _same(found, expected)
            served += 1
    assert served < len(places) // 20
    for end in (0, 1, 7, 8, 50, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:end])
        with pytest.warns(UserWarning, match="damaged feature file"):
            assert store.get(KEY) is None
    assert store.put(KEY, expected)
    assert _same(store.get(KEY), expected)


def test_features_of_another_key_are_not_served(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, _features())
    other = feature_key("e" * 64, SPEC)
    (tmp_path / f"{KEY}.safetensors").rename(tmp_path / f"{other}.safetensors")
    with pytest.warns(UserWarning, match="another file or format"):
        assert store.get(other) is None


def test_a_foreign_safetensors_file_is_not_served(tmp_path: Path) -> None:
    save_file({"features": torch.zeros(3, 8)}, tmp_path / f"{KEY}.safetensors")
    with pytest.warns(UserWarning, match="damaged feature file"):
        assert FeatureStore(tmp_path).get(KEY) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.full((4, 8), float("nan"))}, "first in row 0"),
        ({"features": torch.tensor([[0.0] * 8, [0.0] * 7 + [float("inf")]])}, "first in row 1"),
        ({"features": torch.zeros(4, 7)}, r"expected float32 or float16 \(T, 8\)"),
        ({"features": torch.zeros(4, 8, dtype=torch.float64)}, "float64"),
        ({"features": torch.zeros(8)}, r"\(T, 8\)"),
        ({"duration_s": float("nan")}, "duration_s"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"clip_length_s": 1.0}, "clip_length_s"),
    ],
)
def test_what_cannot_be_features_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        replace(_features(), **change)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    keys = [feature_key(f"{i:064x}", SPEC) for i in range(5)]
    store = FeatureStore(tmp_path)
    store.put(keys[0], _features(10))
    size = store.size()
    store = FeatureStore(tmp_path, max_bytes=3 * size + size // 2)
    for age, key in enumerate(keys[:3]):
        store.put(key, _features(10))
        os.utime(tmp_path / f"{key}.safetensors", (1_000 + age, 1_000 + age))
    assert store.get(keys[0]) is not None  # used: now the youngest
    store.put(keys[3], _features(10))
    assert [store.get(key) is not None for key in keys[:4]] == [True, False, True, True]
    assert store.size() <= store.max_bytes


def test_what_exceeds_the_bound_alone_is_not_kept_and_costs_nothing_else(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, _features(2))
    small = FeatureStore(tmp_path, max_bytes=store.size() + 10)
    assert not small.put(feature_key("e" * 64, SPEC), _features(1000))
    assert small.get(KEY) is not None
    assert not FeatureStore(tmp_path / "none", max_bytes=0).put(KEY, _features())
    with pytest.raises(BadInput, match="max_bytes"):
        FeatureStore(tmp_path, max_bytes=-1)


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = FeatureStore(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="going on without it. Set MOMENTDETR_CACHE"):
        assert not store.put(KEY, _features())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not store.put(KEY, _features())
        assert store.get(KEY) is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="not run: root may write everywhere")
def test_a_read_only_folder_still_serves(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, _features())
    tmp_path.chmod(0o500)
    try:
        with pytest.warns(UserWarning, match="cannot be written"):
            assert not store.put(feature_key("e" * 64, SPEC), _features())
        assert _same(store.get(KEY), _features())
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path)
    store.put(KEY, _features(seed=0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.warns(UserWarning, match="No space left"):
        assert not store.put(KEY, _features(seed=1))
    monkeypatch.undo()
    assert _same(store.get(KEY), _features(seed=0))
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.safetensors"]


def test_what_crashed_writers_left_is_swept_up_when_old(tmp_path: Path) -> None:
    old, new = tmp_path / ".left-old.tmp", tmp_path / ".left-new.tmp"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1_000, 1_000))
    FeatureStore(tmp_path).put(KEY, _features())
    assert not old.exists()
    assert new.exists()  # may belong to a living writer


def test_the_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTDETR_CACHE", str(tmp_path / "own"))
    assert FeatureStore().folder == tmp_path / "own" / "features"
    monkeypatch.delenv("MOMENTDETR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert FeatureStore().folder == tmp_path / "xdg" / "momentdetr" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the convention says to ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FeatureStore().folder == tmp_path / ".cache" / "momentdetr" / "features"


def _write_for_ever(folder: str, seed: int, rounds: int) -> None:
    store = FeatureStore(folder, max_bytes=12_000)
    for i in range(rounds):
        number = (i + seed) % 6
        store.put(feature_key(f"{number:064x}", SPEC), _features(20, seed=number))


@pytest.mark.skipif(sys.platform != "linux", reason="not run: needs fork")
def test_several_writers_and_a_reader(tmp_path: Path) -> None:
    """Four processes write and evict the same keys: a reader finds whole files or none."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_for_ever, args=(str(tmp_path), seed, 60)) for seed in range(4)]
    for writer in writers:
        writer.start()
    store, found = FeatureStore(tmp_path), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.is_alive() for writer in writers):
            for number in range(6):
                features = store.get(feature_key(f"{number:064x}", SPEC))
                if features is not None:
                    assert torch.equal(features.features, _features(20, seed=number).features)
                    found += 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert found > 0
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="not run: needs fork")
def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    for _ in range(10):
        writer = context.Process(target=_write_for_ever, args=(str(tmp_path), 0, 10**9))
        writer.start()
        time.sleep(0.02 + 0.05 * rng.random())
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for number in range(6):
                features = FeatureStore(tmp_path).get(feature_key(f"{number:064x}", SPEC))
                assert features is None or torch.equal(features.features, _features(20, seed=number).features)
    assert list(tmp_path.glob("*.safetensors"))


def test_the_file_can_be_read_by_any_safetensors_reader(tmp_path: Path) -> None:
    """The format is what it says: one tensor, and what it is as JSON."""
    from safetensors import safe_open

    FeatureStore(tmp_path).put(KEY, _features())
    with safe_open(tmp_path / f"{KEY}.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["features"]
        about = json.loads(file.metadata()["about"])
    assert FeatureSpec.from_dict(about["spec"]) == SPEC
    assert about["duration_s"] == 9.5
