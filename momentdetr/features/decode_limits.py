"""What a decoding process may use, and how the operating system is made to hold it to that.

A video file is a program for a decoder, written by a stranger. The limits below are generous for honest files (a
two-hour film in 1080p passes) and small enough that a hostile one costs seconds and not the machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

from momentdetr.errors import BadInput

_SLOWEST_SCAN = 5e6  # bytes per second of processor time, far below any real machine


@dataclass(frozen=True)
class Limits:
    """What reading one file may cost.

    Args:
        max_bytes: largest file.
        max_pixels: largest frame, width times height (2**26 = 8192 x 8192).
        max_duration_s: longest video.
        memory_bytes: address space of the decoding process.
        stall_s: longest wait for a sign of progress, seconds.
        seconds_per_video_second: working time allowed for each second of video, on top of `stall_s`.
    """

    max_bytes: int = 64 << 30
    max_pixels: int = 1 << 26
    max_duration_s: float = 24 * 3600.0
    memory_bytes: int = 3 << 30
    stall_s: float = 60.0
    seconds_per_video_second: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"limit {field.name} is {value!r}, expected a positive number")

    def working_s(self, duration_s: float) -> float:
        """Seconds that work on a video of that duration may take."""
        return self.stall_s + self.seconds_per_video_second * min(duration_s, self.max_duration_s)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def enforced() -> tuple[str, ...]:
    """Name the limits that this operating system can hold a decoding process to.

    Returns:
        a subset of ("memory", "cpu", "files", "output size", "stall"); "stall" (the parent ends a process that makes no
        progress) holds everywhere, the others need POSIX resource limits.
    """
    if sys.platform == "win32":
        return ("stall",)
    memory = () if sys.platform == "darwin" else ("memory",)  # macOS accepts a limit on address space and ignores it
    return (*memory, "cpu", "files", "output size", "stall")


def confine(limits: Limits, *, file_bytes: int, output_bytes: int = 0) -> None:
    """Give the calling process its limits on memory, processor time and output.

    Args:
        file_bytes: size of the video, which bounds the time to find out how long it is.
        output_bytes: largest file that it may write; 0: none.
    """
    _limit("RLIMIT_AS", limits.memory_bytes)
    _limit("RLIMIT_FSIZE", output_bytes)
    _limit("RLIMIT_CORE", 0)
    _limit_processor_time(2 * limits.stall_s + file_bytes / _SLOWEST_SCAN)


def confine_work(limits: Limits, duration_s: float, threads: int) -> None:
    """Give the calling process the processor time that a video of that duration may take on that many threads."""
    _limit_processor_time(limits.working_s(duration_s) * threads)


def forbid_opening(spare: int = 0) -> None:
    """Take from the calling process the right to open another file or socket.

    Args:
        spare: how many more descriptors it may still open.
    """
    free = os.dup(0)  # the lowest free number: all below are in use
    os.close(free)
    _limit("RLIMIT_NOFILE", free + spare)


def _limit(name: str, value: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    which = getattr(resource, name)
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    # macOS knows the names and refuses some values; `enforced` says so.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (value, value))


def _limit_processor_time(seconds: float) -> None:
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(seconds) if hard == resource.RLIM_INFINITY else min(math.ceil(seconds), hard)
    # The soft limit ends the process (SIGXCPU); the hard one stays, to set it again once the duration is known.
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
