"""Fetching one file from a server that cuts, refuses, forgets, stalls and lies."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from momentdetr.errors import BadCheckpoint, StoreError, WeightsUnavailable
from momentdetr.weights.download import Patience, fetch

BODY = b"PK\x03\x04" + bytes(range(256)) * 3000  # 768 kB
QUICK = Patience(connect_s=2.0, stall_s=2.0, attempts=3, pause_s=0.01)


def test_a_whole_file_comes_with_growing_progress(server: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(server.add("/w", BODY), tmp_path / "w.part", progress=lambda *now: seen.append(now), patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(BODY), len(BODY))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.part"]


def test_a_cut_connection_is_taken_up_where_it_broke(server: Any, tmp_path: Path) -> None:
    url = server.add("/w", BODY, cut_after=[200_000, 100_000])
    fetch(url, tmp_path / "w.part", patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert [(asked, status) for _, asked, status in server.requests] == [
        (None, 200),
        ("bytes=200000-", 206),
        ("bytes=300000-", 206),
    ]


def test_a_later_call_goes_on_from_what_an_earlier_one_kept(server: Any, tmp_path: Path) -> None:
    url = server.add("/w", BODY, cut_after=[300_000, 0, 0, 0])
    with pytest.raises(WeightsUnavailable, match=r"300000 bytes are kept in .*w\.part"):
        fetch(url, tmp_path / "w.part", patience=QUICK)
    server.requests.clear()
    server.pages["/w"].cut_after.clear()
    fetch(url, tmp_path / "w.part", patience=QUICK)
    assert server.requests == [("/w", "bytes=300000-", 206)]
    assert (tmp_path / "w.part").read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Any, tmp_path: Path) -> None:
    url = server.add("/w", b"PK old" * 100_000, cut_after=[300_000, 0, 0, 0])
    with pytest.raises(WeightsUnavailable):
        fetch(url, tmp_path / "w.part", patience=QUICK)
    server.add("/w", BODY, etag='"v2"')
    fetch(url, tmp_path / "w.part", patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY


def test_a_server_that_ignores_range_sends_the_whole_again(server: Any, tmp_path: Path) -> None:
    url = server.add("/w", BODY, ranges=False, cut_after=[200_000])
    fetch(url, tmp_path / "w.part", patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert [(asked, status) for _, asked, status in server.requests] == [(None, 200), ("bytes=200000-", 200)]


@pytest.mark.parametrize(("immutable", "asked"), [(False, None), (True, "bytes=200000-")])
def test_without_a_validator_only_a_known_file_is_resumed(
    server: Any, tmp_path: Path, immutable: bool, asked: str | None
) -> None:
    url = server.add("/w", BODY, etag=None, cut_after=[200_000])
    fetch(url, tmp_path / "w.part", immutable=immutable, patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert server.requests[-1][1] == asked


def test_a_part_that_is_already_whole_costs_one_request(server: Any, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(BODY)
    fetch(server.add("/w", BODY), tmp_path / "w.part", immutable=True, patience=QUICK)
    assert server.requests == [("/w", f"bytes={len(BODY)}-", 416)]


def test_a_part_longer_than_the_file_is_thrown_away(server: Any, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(BODY + b"more")
    fetch(server.add("/w", BODY), tmp_path / "w.part", immutable=True, patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY


def test_redirects_keep_the_range(server: Any, tmp_path: Path) -> None:
    target = server.add("/target", BODY, cut_after=[200_000])
    fetch(server.add("/w", redirect=target), tmp_path / "w.part", patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert server.requests[-1] == ("/target", "bytes=200000-", 206)


def test_a_busy_server_is_asked_again(server: Any, tmp_path: Path) -> None:
    fetch(server.add("/w", BODY, status=[503, 429]), tmp_path / "w.part", patience=QUICK)
    assert [status for *_, status in server.requests] == [503, 429, 200]


def test_a_server_that_stays_busy_is_given_up(server: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="503"):
        fetch(server.add("/w", BODY, status=[503] * 9), tmp_path / "w.part", patience=QUICK)
    assert len(server.requests) == QUICK.attempts


def test_a_missing_file_is_not_asked_for_twice(server: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="404 Not Found"):
        fetch(server.url + "/nothing", tmp_path / "w.part", patience=QUICK)
    assert len(server.requests) == 1
    assert not (tmp_path / "w.part").exists()


def test_a_slow_server_is_waited_for_while_bytes_come(server: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    url = server.add("/w", BODY, pause_s=0.1)
    fetch(url, tmp_path / "w.part", patience=Patience(connect_s=1.0, stall_s=0.6, attempts=1))
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert time.monotonic() - started > 0.6  # longer in all than the limit between two bytes


def test_a_stalled_server_is_given_up_in_time(server: Any, tmp_path: Path) -> None:
    url = server.add("/w", BODY, pause_s=60.0)
    started = time.monotonic()
    with pytest.raises(WeightsUnavailable, match="timed out"):
        fetch(url, tmp_path / "w.part", patience=Patience(stall_s=0.3, attempts=2, pause_s=0.01))
    assert time.monotonic() - started < 3.0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n  <html>moved</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "large-file storage"),
        (b"", "an empty file"),
    ],
)
def test_what_is_not_weights_is_refused_and_removed(server: Any, tmp_path: Path, body: bytes, says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        fetch(server.add("/w", body), tmp_path / "w.part", patience=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_no_length_is_no_obstacle(server: Any, tmp_path: Path) -> None:
    totals: set[int | None] = set()
    url = server.add("/w", BODY, length=False)
    fetch(url, tmp_path / "w.part", progress=lambda _, total: totals.add(total), patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY
    assert totals == {None}


def test_nobody_listening_is_known_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"127\.0\.0\.1 cannot be reached"):
        fetch(f"http://127.0.0.1:{port}/w", tmp_path / "w.part")
    assert time.monotonic() - started < 2.0


def test_a_name_that_does_not_resolve_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        over.wait(30)
        raise socket.gaierror("nobody knows this name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv("http_proxy", raising=False)
    started = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"no answer within 4 s"):
        fetch("http://weights.invalid/w", tmp_path / "w.part")
    assert time.monotonic() - started < 5.0
    over.set()


def test_a_name_that_none_can_be_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    with pytest.raises(WeightsUnavailable, match=r"cannot be reached: .*label"):
        fetch(f"http://{'x' * 100}.invalid/w", tmp_path / "w.part")


def test_a_proxy_is_used_and_named_when_it_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(WeightsUnavailable, match=r"127\.0\.0\.1 cannot be reached"):
        fetch("http://weights.invalid/w", tmp_path / "w.part")


def test_a_proxy_carries_the_download(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.add("http://weights.invalid/w", BODY)  # a proxy is asked for the whole address
    fetch("http://weights.invalid/w", tmp_path / "w.part", patience=QUICK)
    assert (tmp_path / "w.part").read_bytes() == BODY


def test_too_little_room_is_said_before_the_download(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(StoreError, match="0 MB free, but 1 MB"):
        fetch(server.add("/w", BODY), tmp_path / "w.part", patience=QUICK)
    assert not (tmp_path / "w.part").exists()


def test_a_folder_that_cannot_be_written_is_named(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="HF_HOME") as caught:
        fetch(server.add("/w", BODY), tmp_path / "file" / "w.part", patience=QUICK)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.EEXIST, errno.ENOTDIR)
