"""The parent's side of decoding: a fresh, limited process per request, watched and ended in time.

Whatever happens in the decoding process - an exception, an abort in C++, an endless loop, a kill from outside - ends as
one of this project's errors, and the parent goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import momentdetr
from momentdetr import errors
from momentdetr.errors import BadVideo, MomentDETRError, OutOfResources
from momentdetr.features.decode_limits import Limits
from momentdetr.features.decode_protocol import ProtocolError, receive
from momentdetr.features.video_container import VideoFile, printable

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from momentdetr.features.decode_worker import main
main()
"""
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "HOME", "LANG", "LC_ALL")
_THREADLESS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONIOENCODING": "utf-8",
}
_RAISED = {kind.__name__: kind for kind in (errors.BadInput, errors.StoreError, BadVideo, OutOfResources)}
_START_S = 60.0  # for a fresh interpreter to load its libraries on a busy machine
_CRASHES = frozenset(
    number for name in ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE") if (number := getattr(signal, name, None))
)


class DecoderCrashed(BadVideo):
    """The decoding process ended itself in native code."""


@dataclass(frozen=True)
class Message:
    """One answer of the decoding process.

    Args:
        kind: "info" or "frames".
        payload: (bytes,) of pictures.
    """

    kind: str
    values: Mapping[str, Any]
    payload: NDArray[np.uint8]


def converse(
    video: VideoFile, request: Mapping[str, Any], limits: Limits, *, output: int | None = None, output_bytes: int = 0
) -> Iterator[Message]:
    """Start a decoding process for one request and pass on what it answers.

    Args:
        video: open file; the process reads it through its descriptor.
        request: "operation", "decoder" and the operation's arguments (JSON values).
        output: descriptor that the process writes to.
        output_bytes: how much it may write.

    Yields:
        messages, until the process says that it is done.

    Raises:
        BadVideo: the process says so; `DecoderCrashed` if it was ended by its own fault.
        OutOfResources: a limit was reached, or someone else ended the process.
    """
    handed = [] if sys.platform == "win32" else [fd for fd in (video.file.fileno(), output) if fd is not None]
    process = _start(handed)
    watch, said = _Watch(process, limits), _Tail(_pipe(process.stderr))
    try:
        _say(process, {**request, **_circumstances(video, limits, output if handed else None, output_bytes)})
        ready = False
        while True:
            with watch:
                answer = _receive(process, limits)
            if answer is None:
                raise _post_mortem(video.name, process, watch, said.text(), ready)
            values, payload = answer
            kind = str(values.get("kind"))
            if kind == "error":
                raise _RAISED.get(str(values["error"]), BadVideo)(f"{video.name}: {printable(str(values['message']))}")
            if kind == "done":
                return
            if kind == "ready":
                watch.ready()
                ready = True
            if kind == "info":
                watch.allow(float(values["duration_s"]))
            if kind in ("info", "frames"):
                yield Message(kind, values, payload)
    finally:
        _end(process)


def _start(handed: list[int]) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise OutOfResources("there is no Python interpreter to decode with (sys.executable is empty)")
    # The same modules as here, and nothing from the current folder, which may be anyone's.
    path = [entry for entry in sys.path if entry] + [str(Path(momentdetr.__file__).parent.parent)]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _THREADLESS
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=handed,
            env=environment,
            bufsize=0,
        )
    except OSError as error:
        raise OutOfResources(f"no process for decoding could be started: {error}") from error


def _circumstances(video: VideoFile, limits: Limits, output: int | None, output_bytes: int) -> dict[str, Any]:
    return {
        "descriptor": None if sys.platform == "win32" else video.file.fileno(),
        "path": os.path.abspath(video.path),
        "size": video.size,
        "promised_size": video.promised_size,
        "container": video.container,
        "limits": limits.to_dict(),
        "output": output,
        "output_bytes": output_bytes,
    }


def _say(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
    # A process that is already dead is found out when its answer is awaited.
    with suppress(BrokenPipeError), _pipe(process.stdin) as stream:
        data = memoryview(json.dumps(request).encode())
        while data:
            data = data[stream.write(data) :]


def _receive(process: subprocess.Popen[bytes], limits: Limits) -> tuple[dict[str, Any], NDArray[np.uint8]] | None:
    try:
        return receive(_pipe(process.stdout), limits.memory_bytes)
    except ProtocolError:
        process.kill()
        return None


def _post_mortem(name: str, process: subprocess.Popen[bytes], watch: _Watch, said: str, ready: bool) -> MomentDETRError:
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    if watch.expired:
        return OutOfResources(f"{name}: {watch.expired}; the file may be hostile, or this machine too busy")
    code = process.returncode if process.returncode is not None else 0
    if code < 0 and -code not in _CRASHES:
        if -code == getattr(signal, "SIGXCPU", 0):
            return OutOfResources(
                f"{name}: decoding took more processor time than Limits.seconds_per_video_second allows"
            )
        return OutOfResources(
            f"{name}: the decoding process was ended from outside ({signal.Signals(-code).name}); "
            "is there enough memory?"
        )
    if not ready:
        return OutOfResources(f"the decoding process could not start: {printable(said or f'exit code {code}')}")
    how = signal.Signals(-code).name if code < 0 else said or f"exit code {code}"
    return DecoderCrashed(f"{name}: the decoder crashed on this file ({printable(how)}): it is damaged or hostile")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):
            _pipe(pipe).close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


class _Watch:
    """Ends a process that keeps its parent waiting; time in which nobody waits does not count.

    Attributes:
        expired: why the process was ended; empty if it was not.
    """

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        self._process, self._limits = process, limits
        self._stall_s = max(_START_S, limits.stall_s)
        self._left = _START_S + 10 * limits.stall_s  # to find out how long the video is
        self._timer: threading.Timer | None = None
        self._began = 0.0
        self.expired = ""

    def ready(self) -> None:
        """The process has started: from now on it must make progress."""
        self._stall_s = self._limits.stall_s

    def allow(self, duration_s: float) -> None:
        """Allow the time that a video of that duration may take."""
        self._left = self._limits.working_s(duration_s)

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._timer = threading.Timer(max(0.0, min(self._left, self._stall_s)), self._expire)
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._left -= time.monotonic() - self._began

    def _expire(self) -> None:
        if self._left <= self._stall_s:
            self.expired = "decoding took longer than Limits.seconds_per_video_second allows"
        else:
            self.expired = f"decoding made no progress for {self._stall_s:.0f} s (Limits.stall_s)"
        self._process.kill()


class _Tail:
    """Reads a pipe to its end in the background and remembers the last lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: deque[bytes] = deque(maxlen=20)
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True)
        self._thread.start()

    def _drain(self, stream: IO[bytes]) -> None:
        rest = b""
        with suppress(OSError, ValueError):  # the pipe is closed by the parent
            while data := stream.read(1 << 14):
                *lines, rest = (rest[-4096:] + data).split(b"\n")
                self._lines.extend(line for line in lines if line.strip())
        if rest.strip():
            self._lines.append(rest)

    def text(self) -> str:
        """Return the last line, after the process has ended."""
        self._thread.join(1)
        return self._lines[-1].decode(errors="replace").strip() if self._lines else ""
