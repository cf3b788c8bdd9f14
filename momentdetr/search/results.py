"""What a search found, and every form in which it can be taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momentdetr.retrieval.types import Moment
from momentdetr.search import formats
from momentdetr.search.files import write_text

if TYPE_CHECKING:
    import pandas as pd

LIKELY_ABSENT = 0.5
"""From here on the query is probably not in the video."""


@dataclass(frozen=True)
class QueryResult:
    """The answer to one query.

    Args:
        query: as it was asked.
        moments: by falling score, inside the video.
        saliency: one score a clip: how well it shows the query. Its scale is the model's own; in [0, 1] for one with a
            clip indicator, where it is the probability of being inside a moment.
        absent: in [0, 1], how sure the model is that the query is nowhere in the video.
    """

    query: str
    moments: tuple[Moment, ...]
    saliency: tuple[float, ...]
    absent: float

    @property
    def saliency_is_probability(self) -> bool:
        """Whether the curve lies in [0, 1], as that of a model with a clip indicator does."""
        return bool(self.saliency) and min(self.saliency) >= 0 and max(self.saliency) <= 1

    @property
    def is_probably_absent(self) -> bool:
        return self.absent >= LIKELY_ABSENT


@dataclass(frozen=True)
class SearchResult:
    """The answers to all queries of one search, in the order in which they were asked.

    Args:
        video: name of the video.
        duration_s: seconds.
        clip_length_s: seconds of video per saliency score.
        queries: one answer a query; iterating over the result yields them.
        path: the file, where it is known; plots and clips are made from it.
        model: who answered.
        complete: False when the file is damaged, and what could be read of it was searched.
    """

    video: str
    duration_s: float
    clip_length_s: float
    queries: tuple[QueryResult, ...]
    path: Path | None = None
    model: str = ""
    complete: bool = True

    def __iter__(self) -> Iterator[QueryResult]:
        return iter(self.queries)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> QueryResult:
        return self.queries[index]

    @property
    def times_s(self) -> tuple[float, ...]:
        """Where each clip of the saliency curves begins, seconds."""
        num_clips = len(self.queries[0].saliency) if self.queries else 0
        return tuple(i * self.clip_length_s for i in range(num_clips))

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return formats.to_dict(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON text; also written to `path` if given."""
        return _also_written(formats.to_json(self), path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One row a moment; also written to `path` if given."""
        return _also_written(formats.to_csv(self), path)

    def to_srt(self, path: str | Path | None = None) -> str:
        """Subtitles, one a moment; also written to `path` if given."""
        return _also_written(formats.to_srt(self), path)

    def to_pandas(self) -> pd.DataFrame:
        """One row a moment: query, rank (from 1), start_s, end_s, score, absent."""
        import pandas as pd

        return pd.DataFrame(formats.rows(self), columns=list(formats.COLUMNS))

    def to_qvhighlights(self, qids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
        """Lines of an official QVHighlights submission, see `formats.to_qvhighlights`."""
        return formats.to_qvhighlights(self, qids)

    def plot(self, path: str | Path) -> Path:
        """Draw frames, saliency curves and moments into a picture file, see `plots.plot`."""
        from momentdetr.search.plots import plot

        return plot(self, Path(path))

    def save_clips(self, folder: str | Path) -> list[Path]:
        """Cut every moment out of the video into `folder`, see `clips.save_clips`."""
        from momentdetr.search.clips import save_clips

        return save_clips(self, Path(folder))


def _also_written(text: str, path: str | Path | None) -> str:
    if path is not None:
        write_text(Path(path), text)
    return text
