"""The decoding process keeps to itself: no other file, no socket, no secret, no torch, no more than its limits."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from video_material import make

from momentdetr.errors import BadInput, BadVideo, MomentDETRError, OutOfResources
from momentdetr.features.decode_client import converse
from momentdetr.features.decode_limits import Limits, enforced
from momentdetr.features.video import read_frames
from momentdetr.features.video_container import VideoFile, open_video

linux = pytest.mark.skipif(sys.platform != "linux", reason="watches files and limits as Linux does")


@contextmanager
def opened(path: Path) -> Iterator[Callable[[], bool]]:
    """Give a question: has the file been opened by anyone since? (inotify)"""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), 0x20) >= 0  # IN_OPEN

    def happened() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    try:
        yield happened
    finally:
        os.close(watch)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return make(tmp_path / "canary.mp4", ticks=20)


def playlists(canary: Path, port: int) -> list[str]:
    return [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{canary}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXTINF:9,\nfile://{canary}\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {canary}\n",
        f"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>",
    ]


@linux
@pytest.mark.parametrize("reaches_the_worker", [False, True])
def test_playlists_open_nothing(tmp_path: Path, canary: Path, reaches_the_worker: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, opened(canary) as happened:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        for index, text in enumerate(playlists(canary, port)):
            path = tmp_path / ("list.mp4" if index else "list.m3u8")
            path.write_text(text)
            if not reaches_the_worker:
                with pytest.raises(BadVideo, match=r"holds a playlist|holds text"):
                    read_frames(path, [0.0])
                continue
            with path.open("rb", buffering=0) as file:  # as if the first guard were gone
                container = ["mp4", "mkv", "mpegts", "avi"][index]
                video = VideoFile(path, str(path), file, len(text), 0, container)
                with pytest.raises(BadVideo, match=r"cannot be read|no picture|no video|no frame"):
                    list(converse(video, {"operation": "probe", "decoder": "auto"}, Limits()))
        assert not happened()
        with pytest.raises(TimeoutError):
            server.accept()
        canary.read_bytes()
        assert happened()  # the watch works


@linux
def test_nothing_can_be_opened_once_decoding_begins() -> None:
    code = """
import socket, sys
from momentdetr.features.decode_limits import Limits, confine, forbid_opening
confine(Limits(), file_bytes=1)
forbid_opening()
refused = 0
for attempt in (lambda: open("/etc/hostname"), socket.socket, lambda: open("new_file", "w")):
    try:
        attempt()
    except OSError:
        refused += 1
print(refused)
"""
    assert _python(code) == "3"


@linux
def test_nothing_can_be_written(tmp_path: Path) -> None:
    code = f"""
from momentdetr.features.decode_limits import Limits, confine
file = open({str(tmp_path / "out")!r}, "wb", buffering=0)
confine(Limits(), file_bytes=1)
try:
    file.write(b"x")
except OSError:
    print("refused")
"""
    assert _python(code) == "refused"


@linux
def test_memory_and_time_are_limited() -> None:
    start = (
        "from momentdetr.features.decode_limits import Limits, confine, confine_work; limits = Limits(stall_s=1.0)\n"
    )
    memory = (
        start + "confine(limits, file_bytes=1)\ntry:\n    bytearray(4 << 30)\nexcept MemoryError:\n    print('refused')"
    )
    assert _python(memory) == "refused"
    busy = start + "confine(limits, file_bytes=1); confine_work(limits, 0.0, 1)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", busy], timeout=60, env=_environment()).returncode == -24  # SIGXCPU
    assert set(enforced()) == {"memory", "cpu", "files", "output size", "stall"}


def test_it_is_light() -> None:
    code = """
import sys
import momentdetr.features.video
before = {name.split(".")[0] for name in sys.modules}
import momentdetr.features.decode_cut, momentdetr.features.decode_read, momentdetr.features.decode_worker
after = {name.split(".")[0] for name in sys.modules}
print(sorted(before & {"torch", "av", "decord", "PIL"}), sorted(after & {"torch", "transformers", "open_clip", "av"}))
"""
    assert _python(code) == "[] ['av']"


@linux
def test_secrets_of_the_environment_stay_here(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-the-user")
    with open_video(canary, Limits()).file as file:
        video = VideoFile(canary, "a", file, canary.stat().st_size, 0, "mp4")
        messages = converse(video, {"operation": "probe", "decoder": "pyav"}, Limits())
        next(messages)
        (process,) = _workers()
        environment = Path(f"/proc/{process}/environ").read_bytes()
        arguments = Path(f"/proc/{process}/cmdline").read_bytes()
        messages.close()  # type: ignore[attr-defined]
    assert b"MALLOC_ARENA_MAX" in environment
    assert b"secret-of-the-user" not in environment + arguments


@linux
def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit('planted')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert read_frames(canary, [0.0]).frames.shape == (1, 96, 128, 3)


def test_worker_that_does_not_start_is_not_the_files_fault(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(OutOfResources, match="could not start"):
        read_frames(canary, [0.0])
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(OutOfResources, match="no process for decoding could be started"):
        read_frames(canary, [0.0])


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("import os; os.abort()", BadVideo, r"crashed on this file \(SIGABRT\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", BadVideo, r"crashed on this file \(SIGSEGV\)"),
        ("raise RuntimeError('surprise\\x1b[31m')", BadVideo, "surprise\N{REPLACEMENT CHARACTER}"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", OutOfResources, "processor time"),
        ("import os; os.write(1, b'nonsense' * 100)", OutOfResources, "ended from outside|crashed"),
        ("channel.send('error', error='Surprise', message='odd')", BadVideo, "odd"),
        ("channel.send('error', error='BadInput', message='odd')", BadInput, "odd"),
        ("import time; time.sleep(60)", OutOfResources, "no progress for 1 s"),
    ],
)
def test_every_end_of_the_process_is_an_error_of_ours(
    canary: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[MomentDETRError], message: str
) -> None:
    start = f"""
import os, sys
sys.path[:] = __import__("json").loads(sys.argv[1])
from momentdetr.features.decode_protocol import Channel
sys.stdin.read()
channel = Channel(os.fdopen(1, "wb", closefd=False))
channel.send("ready")
{script}
"""
    monkeypatch.setattr("momentdetr.features.decode_client._START", start)
    threads = threading.active_count()
    with open_video(canary, Limits()).file as file:
        video = VideoFile(canary, "canary", file, 1, 0, "mp4")
        with pytest.raises(error, match=message):
            list(converse(video, {"operation": "probe", "decoder": "pyav"}, Limits(stall_s=1.0)))
    assert threading.active_count() <= threads + 1


def _workers() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in children if b"decode_worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
