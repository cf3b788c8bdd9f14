"""Weights on the command line: what is shown while they come, and who vouches for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from momentdetr import load
from momentdetr.cli import main
from momentdetr.errors import BadCheckpoint
from momentdetr.weights import REGISTRY, ModelCard, RemoteFile, UrlSource

BODY = b"PK towers" * 10_000


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model "pair" that a server on this machine offers; its retriever is none."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "towers.bin").write_bytes(BODY)
    (tmp_path / "served" / "model.ckpt").write_bytes(b"PK model" * 1000)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    files = [
        RemoteFile(name, UrlSource(f"http://127.0.0.1:{http.server_address[1]}/{name}", "author"), "MIT")
        for name in ("towers.bin", "model.ckpt")
    ]
    monkeypatch.setitem(REGISTRY, "pair", ModelCard("pair", "Both.", *files))
    yield
    http.shutdown()
    http.server_close()


def test_a_search_that_fetches_weights_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "film.mp4", "a dragon", "--model", "pair"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "towers.bin" in shown.err
    assert f"{len(BODY)}/{len(BODY)}" in shown.err
    assert "model.ckpt cannot be loaded" in shown.err
    assert main(["search", "film.mp4", "a dragon", "--model", "pair"]) == 2
    assert "towers.bin" not in capsys.readouterr().err  # it is here now


def test_in_python_the_caller_decides(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with pytest.raises(BadCheckpoint, match=r"model\.ckpt"):
        load("pair", "cpu", progress=lambda file, *now: seen.append((file.filename, *now)))
    assert ("towers.bin", len(BODY), len(BODY)) in seen
    assert seen[-1] == ("model.ckpt", 8000, 8000)
    (tmp_path / "home" / "momentdetr" / "author" / "towers.bin").unlink()
    with pytest.raises(BadCheckpoint, match=r"model\.ckpt"):
        load("pair", "cpu")
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_the_list_says_where_each_digest_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    def digests() -> dict[str, list[str]]:
        assert main(["weights", "list"]) == 0
        found: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            if not line.startswith(" "):
                name = line.split()[0]
            elif line.strip().startswith("digest of "):
                found.setdefault(name, []).append(line.strip().removeprefix("digest of "))
        return found

    before = digests()
    assert before["pair"] == ["towers.bin: not known yet", "model.ckpt: not known yet"]
    assert main(["weights", "pull", "pair"]) == 0
    capsys.readouterr()
    recorded = [f"{name}: recorded at first download" for name in ("towers.bin", "model.ckpt")]
    assert digests() == {**before, "pair": recorded}
    for name, card in REGISTRY.items():
        for file, line in zip(card.files, before[name], strict=True):
            assert line.startswith(f"{file.filename}: {'published' if file.sha256 else 'not known yet'}")
            assert (file.digest_source or "") in line
