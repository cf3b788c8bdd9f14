"""List, pull, path, resolve and verify, with a registry whose addresses are a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from momentdetr import weights
from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.weights import Home, HubSource, ModelCard, Patience, RemoteFile, UrlSource

ENCODER, RETRIEVER = b"PK encoder" * 30_000, b"PK retriever" * 9_000
REVISION = "0123456789abcdef0123456789abcdef01234567"
QUICK = Patience(connect_s=2.0, stall_s=2.0, attempts=2, pause_s=0.01)


@pytest.fixture
def registry(server: Any) -> dict[str, ModelCard]:
    server.add(f"/owner/towers/resolve/{REVISION}/towers.safetensors", ENCODER)
    encoder = RemoteFile(
        "towers.safetensors",
        HubSource("owner/towers", REVISION),
        "MIT",
        sha256=hashlib.sha256(ENCODER).hexdigest(),
        size=len(ENCODER),
    )
    retriever = RemoteFile("model_best.ckpt", UrlSource(server.add("/model_best.ckpt", RETRIEVER), "author"), "MIT")
    return {
        "pair": ModelCard("pair", "Both.", encoder, retriever),
        "towers": ModelCard("towers", "One.", encoder, None),
    }


def _pull(name: str, registry: dict[str, ModelCard], home: Home, **options: Any) -> weights.ResolvedModel:
    return weights.pull(name, registry=registry, home=home, patience=QUICK, **options)


def test_pull_puts_both_files_in_place_and_reports_progress(registry: dict[str, ModelCard], home: Home) -> None:
    last: dict[str, tuple[int, int | None]] = {}
    model = _pull("pair", registry, home, progress=lambda file, *now: last.update({file.filename: now}))
    assert model.retriever is not None
    assert model.encoder.read_bytes() == ENCODER
    assert model.retriever.read_bytes() == RETRIEVER
    assert last == {
        "towers.safetensors": (len(ENCODER), len(ENCODER)),
        "model_best.ckpt": (len(RETRIEVER), len(RETRIEVER)),
    }
    assert not list(home.hub.rglob("*.part")) + list(home.plain.rglob("*.part"))


def test_the_hub_itself_finds_what_was_pulled(registry: dict[str, ModelCard], home: Home) -> None:
    hub = pytest.importorskip("huggingface_hub")
    model = _pull("towers", registry, home)
    found = hub.try_to_load_from_cache("owner/towers", "towers.safetensors", cache_dir=home.hub, revision=REVISION)
    assert Path(found) == model.encoder
    cache = hub.scan_cache_dir(home.hub)
    assert [(repo.repo_id, repo.nb_files) for repo in cache.repos] == [("owner/towers", 1)]
    assert cache.warnings == []


def test_what_the_hub_has_cached_is_used_without_a_request(
    registry: dict[str, ModelCard], home: Home, server: Any
) -> None:
    snapshot = home.path(registry["towers"].encoder)
    blob = snapshot.parents[2] / "blobs" / "digest"
    for folder in (snapshot.parent, blob.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(ENCODER)
    snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    assert _pull("towers", registry, home).encoder == snapshot
    assert server.requests == []


def test_a_second_pull_asks_for_nothing(registry: dict[str, ModelCard], home: Home, server: Any) -> None:
    first = _pull("pair", registry, home)
    server.requests.clear()
    assert _pull("pair", registry, home) == first
    assert weights.resolve("pair", registry=registry, home=replace(home, offline=True)) == first
    assert server.requests == []


def test_models_share_an_encoder(registry: dict[str, ModelCard], home: Home, server: Any) -> None:
    _pull("towers", registry, home)
    server.requests.clear()
    _pull("pair", registry, home)
    assert [path for path, *_ in server.requests] == ["/model_best.ckpt"]


def test_a_pull_that_was_cut_goes_on(registry: dict[str, ModelCard], home: Home, server: Any) -> None:
    server.pages["/model_best.ckpt"].cut_after = [50_000, 0, 0]
    with pytest.raises(WeightsUnavailable, match="50000 bytes are kept"):
        _pull("pair", registry, home)
    server.requests.clear()
    server.pages["/model_best.ckpt"].cut_after = []
    model = _pull("pair", registry, home)
    assert server.requests == [("/model_best.ckpt", "bytes=50000-", 206)]
    assert model.retriever is not None
    assert model.retriever.read_bytes() == RETRIEVER


def test_a_wrong_digest_names_both_and_leaves_nothing_to_load(
    registry: dict[str, ModelCard], home: Home, server: Any
) -> None:
    other = b"PK other" * 1000
    server.add(f"/owner/towers/resolve/{REVISION}/towers.safetensors", other)
    with pytest.raises(BadCheckpoint, match="weights pull towers") as caught:
        _pull("towers", registry, home)
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert hashlib.sha256(ENCODER).hexdigest() in str(caught.value)
    assert not home.path(registry["towers"].encoder).exists()
    server.add(f"/owner/towers/resolve/{REVISION}/towers.safetensors", ENCODER)
    assert _pull("towers", registry, home).encoder.read_bytes() == ENCODER  # the bad part is not resumed


def test_the_first_digest_is_recorded_and_said_to_be(registry: dict[str, ModelCard], home: Home) -> None:
    _pull("pair", registry, home)
    status = {one.card.name: one for one in weights.list_models(registry=registry, home=home)}["pair"]
    assert status.ready
    assert [(file.sha256, file.digest_origin) for file in status.files] == [
        (hashlib.sha256(ENCODER).hexdigest(), "published"),
        (hashlib.sha256(RETRIEVER).hexdigest(), "recorded at first download"),
    ]
    record = json.loads((home.plain / "author" / "model_best.ckpt.lock.json").read_text())
    assert record["origin"] == "recorded at first download"
    assert record["size"] == len(RETRIEVER)


@pytest.mark.parametrize("name", ["towers.safetensors", "model_best.ckpt"])
def test_a_file_that_changed_is_noticed_on_use(registry: dict[str, ModelCard], home: Home, name: str) -> None:
    model = _pull("pair", registry, home)
    file = {"towers.safetensors": model.encoder, "model_best.ckpt": model.retriever}[name]
    assert file is not None
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    with pytest.raises(BadCheckpoint, match=hashlib.sha256(content).hexdigest()):
        weights.path("pair", registry=registry, home=home)
    assert not file.exists()
    assert file.with_name(file.name + ".bad").exists()
    _pull("pair", registry, home)
    assert weights.verify("pair", registry=registry, home=home).ready


def test_verify_sees_what_size_and_time_hide(registry: dict[str, ModelCard], home: Home) -> None:
    model = _pull("towers", registry, home)
    status = model.encoder.stat()
    content = bytearray(ENCODER)
    content[-1] ^= 1
    model.encoder.write_bytes(content)
    os.utime(model.encoder, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.path("towers", registry=registry, home=home) == model  # documented: the cheap check is blind here
    with pytest.raises(BadCheckpoint, match=hashlib.sha256(ENCODER).hexdigest()):
        weights.verify("towers", registry=registry, home=home)


def test_a_changed_upstream_file_is_refused_until_the_record_is_deleted(
    registry: dict[str, ModelCard], home: Home, server: Any
) -> None:
    model = _pull("pair", registry, home)
    assert model.retriever is not None
    model.retriever.unlink()
    server.add("/model_best.ckpt", b"PK replaced" * 1000)
    with pytest.raises(BadCheckpoint, match=r"delete .*model_best\.ckpt\.lock\.json first"):
        _pull("pair", registry, home)
    home.record(model.card.files[1]).unlink()
    _pull("pair", registry, home)
    assert model.retriever.read_bytes() == b"PK replaced" * 1000


def test_a_file_copied_by_hand_is_checked_and_used_offline(registry: dict[str, ModelCard], home: Home) -> None:
    offline = replace(home, offline=True, endpoint="http://127.0.0.1:1")
    for file, body in zip(registry["pair"].files, (ENCODER, RETRIEVER), strict=True):
        home.path(file).parent.mkdir(parents=True, exist_ok=True)
        home.path(file).write_bytes(body)
    assert weights.resolve("pair", registry=registry, home=offline).card.name == "pair"
    assert weights.verify("pair", registry=registry, home=offline).ready


def test_a_web_page_saved_by_hand_is_not_weights(registry: dict[str, ModelCard], home: Home) -> None:
    where = home.path(registry["pair"].files[1])
    where.parent.mkdir(parents=True)
    where.write_bytes(b"<!doctype html><title>Sign in</title>")
    with pytest.raises(BadCheckpoint, match="a web page"):
        weights.path("pair", registry=registry, home=home)
    assert where.exists()  # the user's own file is left where it is


def test_without_network_the_error_says_both_ways(registry: dict[str, ModelCard], home: Home) -> None:
    dead = replace(home, endpoint="http://127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        weights.resolve("pair", registry=registry, home=dead)
    assert time.monotonic() - started < 5.0
    text = str(caught.value)
    assert "momentdetr weights pull pair\n" in text
    assert f"http://127.0.0.1:1/owner/towers/resolve/{REVISION}/towers.safetensors" in text
    assert f"to {home.path(registry['pair'].encoder)}" in text
    assert f"to {home.plain / 'author' / 'model_best.ckpt'}" in text
    assert "--model FOLDER" in text


@pytest.mark.parametrize("call", [weights.resolve, weights.pull, weights.path, weights.verify])
def test_offline_means_no_request(registry: dict[str, ModelCard], home: Home, server: Any, call: Any) -> None:
    with pytest.raises(WeightsUnavailable, match="momentdetr weights pull pair"):
        call("pair", registry=registry, home=replace(home, offline=True))
    assert server.requests == []


def test_path_never_fetches(registry: dict[str, ModelCard], home: Home, server: Any) -> None:
    with pytest.raises(WeightsUnavailable, match="not fetched yet"):
        weights.path("pair", registry=registry, home=home)
    with pytest.raises(WeightsUnavailable, match="not fetched yet"):
        weights.resolve("pair", download=False, registry=registry, home=home)
    assert server.requests == []


def test_two_pulls_at_once_fetch_once(registry: dict[str, ModelCard], home: Home, server: Any) -> None:
    server.pages["/model_best.ckpt"].pause_s = 0.1
    found: list[weights.ResolvedModel] = []
    threads = [threading.Thread(target=lambda: found.append(_pull("pair", registry, home))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 3
    assert sorted(path.rsplit("/", 1)[-1] for path, *_ in server.requests) == ["model_best.ckpt", "towers.safetensors"]


def test_an_unknown_name_offers_the_closest(registry: dict[str, ModelCard], home: Home) -> None:
    for call in (weights.path, weights.pull, weights.resolve, weights.verify):
        with pytest.raises(BadInput, match=r"Did you mean 'towers'\? Known: pair, towers"):
            call("tower", registry=registry, home=home)


def test_the_user_s_folders_follow_the_hub_s_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.invalid/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Home.default() == Home(tmp_path / "hub", tmp_path / "momentdetr", "https://mirror.invalid", offline=True)
