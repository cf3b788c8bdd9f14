"""A retriever whose answers are known: the query says them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.features.video import probe
from momentdetr.retrieval.types import Moment
from momentdetr.search.results import QueryResult, SearchResult
from momentdetr.search.retriever import EncodedVideo

SPEC = FeatureSpec(video=(Stream("clip", 4, "fake"),), text=Stream("clip_text", 4, "fake"), clip_length_s=0.5)


class FakeRetriever:
    """Finds "from 2 to 4" from second 2 to second 4; a query that says "nowhere" is absent."""

    def __init__(self, name: str = "demo", about: dict[str, str] | None = None) -> None:
        self.name = name
        self.about = about or {}
        self.encoded: list[Path] = []
        self._lock = threading.Lock()

    def encode(self, path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> EncodedVideo:
        with self._lock:
            self.encoded.append(Path(path))
        duration_s = probe(Path(path)).duration_s
        num_clips = max(1, round(duration_s / SPEC.clip_length_s))
        if progress is not None:
            for done in range(num_clips):
                progress(done + 1, num_clips)
        features = torch.zeros(num_clips, 4)
        return EncodedVideo(Path(path).stem, features, SPEC.clip_length_s, duration_s, SPEC, Path(path))

    def search(self, video: EncodedVideo, queries: Sequence[str], top_k: int = 5) -> SearchResult:
        answers = tuple(self._answer(video, query, top_k) for query in queries)
        return SearchResult(
            video.name, video.duration_s, video.clip_length_s, answers, video.path, self.name, video.complete
        )

    def _answer(self, video: EncodedVideo, query: str, top_k: int) -> QueryResult:
        spans = [(float(a), float(b)) for a, b in re.findall(r"from ([\d.]+) to ([\d.]+)", query)]
        moments = tuple(
            Moment(video.name, start, min(end, video.duration_s), 0.9 / rank)
            for rank, (start, end) in enumerate(spans, start=1)
            if start < video.duration_s
        )
        times = [(i + 0.5) * video.clip_length_s for i in range(len(video.features))]
        saliency = tuple(max((3.0 - abs(t - (a + b) / 2) for a, b in spans), default=0.1 * (t % 3)) for t in times)
        return QueryResult(query, moments[:top_k], saliency, 0.93 if "nowhere" in query else 0.04)
