"""Whose video is whose: every visitor has a folder and videos of their own, and no other visitor's.

A visitor is one opened tab; Gradio names it by a random token. A video is named by a token too, which never leaves the
server. Both are needed to reach it, so that neither a guessed path nor another tab's token gives anything away.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from momentdetr.errors import BadInput

if TYPE_CHECKING:
    from momentdetr.search.results import SearchResult
    from momentdetr.search.retriever import EncodedVideo


@dataclass
class Video:
    """One visitor's video.

    Args:
        token: its name on the server.
        path: its own copy, in a folder of its own.
        duration_s: seconds.
        start_s: where its first picture stands on the clock of the browser's player, seconds.
        encoded: its features, once they were needed.
        result: of the last search.
        lock: held while features are made, so that a double click makes them once.
    """

    token: str
    path: Path
    duration_s: float
    start_s: float = 0.0
    encoded: EncodedVideo | None = None
    result: SearchResult | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.path.name


class Visitors:
    """The videos of all visitors, of bounded number, used longest ago first out.

    Args:
        root: folder for their files; is made.
        visitors: how many are kept.
        videos: how many each of them keeps.
    """

    def __init__(self, root: Path, *, visitors: int, videos: int) -> None:
        self._root, self._max_visitors, self._max_videos = root, visitors, videos
        self._lock = threading.Lock()
        self._videos: OrderedDict[str, OrderedDict[str, Video]] = OrderedDict()
        root.mkdir(parents=True, exist_ok=True)

    def add(self, visitor: str, source: Path, duration_s: float) -> Video:
        """Keep a file as one of the visitor's videos.

        Args:
            visitor: their token.
            source: is linked, or copied where it cannot be: the upload folder is emptied by others.
            duration_s: seconds.
        """
        token = secrets.token_hex(16)
        folder = self._root / token
        folder.mkdir()
        path = folder / source.name
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)
        video = Video(token, path, duration_s)
        with self._lock:
            own = self._videos.setdefault(visitor, OrderedDict())
            self._videos.move_to_end(visitor)
            own[token] = video
            gone = [own.popitem(last=False)[1] for _ in range(len(own) - self._max_videos)]
            while len(self._videos) > self._max_visitors:
                gone.extend(self._videos.popitem(last=False)[1].values())
        for old in gone:
            _delete(old)
        return video

    def get(self, visitor: str, token: object) -> Video:
        """The visitor's video of that token.

        Raises:
            BadInput: this visitor has none of that token (any more).
        """
        with self._lock:
            own = self._videos.get(visitor)
            if own is not None and isinstance(token, str) and token in own:
                self._videos.move_to_end(visitor)
                own.move_to_end(token)
                return own[token]
        raise BadInput("there is no video yet; upload one, or pick an example (videos are not kept for ever)")

    def remove(self, visitor: str) -> None:
        """Forget a visitor and delete their files; unknown visitors are no error."""
        with self._lock:
            own = self._videos.pop(visitor, None)
        for video in (own or {}).values():
            _delete(video)

    def __len__(self) -> int:
        return len(self._videos)


def _delete(video: Video) -> None:
    shutil.rmtree(video.path.parent, ignore_errors=True)


__all__ = ["Video", "Visitors"]
