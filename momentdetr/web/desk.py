"""What the page does, without the page: open a video, search it, cut its clips. Knows nothing of Gradio.

Every method names the visitor, and reaches that visitor's videos only. Errors are the project's own, with the server's
paths taken out of their text.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from momentdetr.errors import BadInput, MomentDETRError
from momentdetr.search.results import SearchResult
from momentdetr.search.retriever import EncodedVideo
from momentdetr.web.limits import Limits, queries_of
from momentdetr.web.picking import pick
from momentdetr.web.visitors import Video, Visitors

if TYPE_CHECKING:
    from momentdetr.features.video import VideoInfo

_ASKED_FOR = 50  # moments per query, of which copies and guesses are left out

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


class Searcher(Protocol):
    """What the page needs of a retriever; `momentdetr.search.retriever.Retriever` is one."""

    name: str
    about: dict[str, str]

    def encode(self, path: str | Path, *, progress: Progress | None = None) -> EncodedVideo: ...

    def search(self, video: EncodedVideo, queries: list[str], top_k: int = 5) -> SearchResult: ...


@dataclass(frozen=True)
class Opened:
    """A video that may be searched.

    Args:
        token: its name on the server; never sent to the browser.
        player: the file that the browser plays: the video itself, or an H.264 copy where no browser would play it.
        is_copy: whether `player` is such a copy.
        summary: name, length and size in a few words, for people.
    """

    token: str
    player: Path
    is_copy: bool
    summary: str


@dataclass(frozen=True)
class Found:
    """An answer for the page.

    Args:
        result: what was found; its seconds count from the first picture.
        start_s: where the first picture stands on the player's clock.
    """

    result: SearchResult
    start_s: float


class Desk:
    """Serves all visitors with one model.

    Args:
        retriever: answers.
        folder: where visitors' files are kept; is made.
        limits: what one visitor may ask.
    """

    def __init__(self, retriever: Searcher, folder: Path, limits: Limits | None = None) -> None:
        self.retriever = retriever
        self.limits = limits or Limits()
        self.visitors = Visitors(folder, visitors=self.limits.visitors, videos=self.limits.videos)

    def open(self, visitor: str, upload: Path) -> Opened:
        """Take in a file, if it is a video that may be searched.

        Raises:
            BadInput: too large or too long.
            BadVideo: not a video, damaged, or of an unknown kind.
        """
        from momentdetr.features.video import probe
        from momentdetr.features.video_write import playable_proxy

        size = upload.stat().st_size
        if size > self.limits.upload_bytes:
            raise BadInput(
                f"{upload.name} has {size / 1e6:.0f} MB; at most {self.limits.upload_bytes / 1e6:.0f} MB here. "
                "The command line has no such limit: momentdetr search"
            )
        with _public_text({upload: upload.name}):
            info = probe(upload)
            if info.duration_s > self.limits.duration_s:
                raise BadInput(
                    f"{upload.name} lasts {info.duration_s / 60:.0f} minutes; at most "
                    f"{self.limits.duration_s / 60:.0f} here. The command line has no such limit: momentdetr search"
                )
            video = self.visitors.add(visitor, upload, info.duration_s)
            player = upload
            if _plays(info):
                video.start_s = info.start_s
            else:
                player = playable_proxy(video.path, video.path.with_name("playable.mp4"))
                video.start_s = probe(player).start_s
        summary = f"{video.name}, {info.duration_s:.1f} s, {info.width}×{info.height}, {info.codec}"
        return Opened(video.token, player, player is not upload, summary)

    def search(self, visitor: str, token: object, text: object, progress: Progress | None = None) -> Found:
        """Answer the queries of `text`, one a line; the video is encoded the first time.

        Raises:
            BadInput: no usable query, or no such video of this visitor.
            BadVideo: the file cannot be read to its end.
        """
        queries = queries_of(text, self.limits)
        video = self.visitors.get(visitor, token)
        with _public_text({video.path: video.name}):
            encoded = self._encoded(video, progress)
            found = self.retriever.search(encoded, queries, top_k=_ASKED_FOR)
        video.result = pick(found, self.limits.moments)
        return Found(video.result, video.start_s)

    def save_json(self, visitor: str, token: object) -> Path:
        """Write the last result beside the video, without the server's paths.

        Raises:
            BadInput: nothing was searched yet.
        """
        video = self.visitors.get(visitor, token)
        path = video.path.with_name(f"{_stem(video)}_moments.json")
        path.write_text(replace(self._result(video), path=None).to_json(), encoding="utf-8")
        return path

    def save_clips(self, visitor: str, token: object) -> Path:
        """Cut the moments of the last result and pack them into one archive.

        Raises:
            BadInput: nothing was searched yet, or nothing was found.
            BadVideo: the file cannot be read any more.
        """
        video = self.visitors.get(visitor, token)
        result = self._result(video)
        if not any(answer.moments for answer in result):
            raise BadInput("no moment was found, so there is no clip to cut")
        path = video.path.with_name(f"{_stem(video)}_clips.zip")
        with video.lock, _public_text({video.path: video.name}):
            clips = result.save_clips(video.path.parent / "clips")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # H.264 does not shrink further
                for clip in clips:
                    archive.write(clip, clip.name)
                    clip.unlink()
        return path

    def close(self, visitor: str) -> None:
        """The visitor has gone: delete what is theirs."""
        self.visitors.remove(visitor)

    def _encoded(self, video: Video, progress: Progress | None) -> EncodedVideo:
        with video.lock:
            if video.encoded is None:
                video.encoded = self.retriever.encode(video.path, progress=progress)
            return video.encoded

    def _result(self, video: Video) -> SearchResult:
        if video.result is None:
            raise BadInput("nothing was searched yet; write what to find and press Search")
        return video.result


def _plays(info: VideoInfo) -> bool:
    """Whether every browser plays it as it is; in doubt not. Then it need not even be copied."""
    picture = info.codec == "h264" and info.pixel_format in ("yuv420p", "yuvj420p")
    return picture and info.container == "mp4" and info.audio_codec in ("", "aac", "mp3") and info.complete


def _stem(video: Video) -> str:
    return re.sub(r"[^\w-]+", "_", video.path.stem)[:60].strip("_") or "video"


@contextmanager
def _public_text(names: dict[Path, str]) -> Iterator[None]:
    """Rewrite errors so that they name files as the visitor does, and not where the server keeps them."""
    try:
        yield
    except MomentDETRError as error:
        text = str(error)
        for path, name in names.items():
            text = text.replace(str(path), name).replace(str(path.parent), "")
        raise type(error)(text) from error


__all__ = ["Desk", "Found", "Opened", "Searcher"]
