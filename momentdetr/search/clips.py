"""Cut found moments out of the video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from momentdetr.errors import BadInput
from momentdetr.search.files import make_folder

if TYPE_CHECKING:
    from momentdetr.search.results import SearchResult


def save_clips(result: SearchResult, folder: Path) -> list[Path]:
    """Write each moment as an MP4 of its own.

    Args:
        result: what was found; its `path` must still be there.
        folder: is made if needed. Files of the same name are replaced, each at once.

    Returns:
        The files, in the order of queries and ranks: `QUERY-RANK_words-of-the-query_STARTs-ENDs.mp4`.

    Raises:
        BadInput: the result does not know its file.
        BadVideo: the file cannot be read any more.
        StoreError: the folder cannot be written.
    """
    from momentdetr.features.video_write import cut_clip

    if result.path is None:
        raise BadInput(f"{result.video}: no file to cut clips from; search a video that was encoded from a file")
    make_folder(folder)
    written = []
    for number, answer in enumerate(result, start=1):
        for rank, moment in enumerate(answer.moments, start=1):
            name = f"{number}-{rank}_{_slug(answer.query)}_{moment.start_s:.1f}s-{moment.end_s:.1f}s.mp4"
            salvage = not result.complete
            written.append(cut_clip(result.path, moment.start_s, moment.end_s, folder / name, salvage=salvage))
    return written


def _slug(text: str, length: int = 40) -> str:
    """Letters and digits of any script, joined by hyphens; nothing that a path could stumble over."""
    return "-".join(re.findall(r"\w+", text.lower()))[:length].strip("-") or "query"
