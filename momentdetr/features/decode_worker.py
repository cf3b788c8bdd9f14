"""The decoding process: reads one request, answers with messages, ends.

Started by `momentdetr.features.decode_client` as a fresh interpreter with the video's descriptor and little else. It
gives itself its limits before it touches the file, and the right to open files ends once its libraries are loaded.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

from momentdetr.errors import BadVideo, MomentDETRError, OutOfResources
from momentdetr.features.decode_limits import Limits, confine, confine_work, forbid_opening
from momentdetr.features.decode_protocol import Channel

_UNREADABLE = (errno.EIO, errno.ENXIO, errno.ESTALE)  # the disk or the network fails, not the file


def main() -> None:
    """Answer the request on standard input."""
    channel = Channel(_take_standard_output())
    try:
        _answer(json.load(sys.stdin), channel)
    except MomentDETRError as error:
        channel.send("error", error=type(error).__name__, message=str(error))
    except MemoryError:
        channel.send("error", error=OutOfResources.__name__, message="the frames do not fit in Limits.memory_bytes")
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        channel.send("error", error=BadVideo.__name__, message=f"cannot be read: {error.strerror}")
    else:
        channel.send("done")


def _take_standard_output() -> IO[bytes]:
    """Keep the pipe to the parent for messages; what libraries print goes to standard error."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def _answer(request: Mapping[str, Any], channel: Channel) -> None:
    limits = Limits(**request["limits"])
    confine(limits, file_bytes=request["size"], output_bytes=request["output_bytes"])
    # Imported under the limits, before opening files is forbidden; PyAV and PIL load the last two on first use.
    import av.subtitles.stream  # noqa: F401
    import PIL.ImageFile  # noqa: F401

    from momentdetr.features import decode_cut, decode_read
    from momentdetr.features.video_selection import inspect
    from momentdetr.features.video_source import Source, threads

    operations: dict[str, Callable[..., None]] = {
        "probe": lambda request, video, channel: None,
        "clips": decode_read.clips,
        "frames": decode_read.frames,
        "cut": decode_cut.cut,
    }
    spare = _load_decord() if request["decoder"] != "pyav" else 0
    source = Source(
        descriptor=request["descriptor"],
        path=request["path"],
        size=request["size"],
        promised_size=request["promised_size"],
        container=request["container"],
        limits=limits,
        progress=channel.progress,
    )
    channel.send("ready")
    if source.descriptor is not None:
        forbid_opening(spare)
    video = inspect(source, request["decoder"])
    confine_work(limits, video.timeline.duration_s, threads(video.facts.width * video.facts.height))
    channel.send("info", **decode_read.info(video))
    operations[request["operation"]](request, video, channel)


def _load_decord() -> int:
    """Load decord's libraries if they are there; return the descriptors that it opens (the video, and a pipe)."""
    from momentdetr.features.video_decord import import_decord

    with contextlib.suppress(ImportError):
        import_decord()
        return 3
    return 0


if __name__ == "__main__":
    main()
