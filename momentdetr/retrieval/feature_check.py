"""Looks at the features of one split: are they there, of the right shape, on the right clock, normalised or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from momentdetr.datasets.records import MomentRecord
from momentdetr.errors import BadInput
from momentdetr.features.layouts import named_layout, read_text_features, read_video_features
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.data_report import SHOWN, DataReport, some, span
from momentdetr.retrieval.feature_files import read_tensors

UNIT_TOLERANCE = 0.02  # half precision and the official 1e-5 leave norms this near to 1
CLOCK_TOLERANCE = 0.05  # of a video's duration, beside two clips


@dataclass(frozen=True)
class FeatureSource:
    """Where features are.

    Args:
        spec: what they should be.
        root: folder of published features, with `layout`.
        layout: name of `features.layouts.LAYOUTS`.
        video: a .safetensors file instead, with `text`.
        text: a .safetensors file.
        by_labels: a row belongs to an annotated clip, whatever it lasts.
    """

    spec: FeatureSpec
    root: Path | None = None
    layout: str | None = None
    video: Path | None = None
    text: Path | None = None
    by_labels: bool = False


@dataclass
class _Seen:
    """What was measured of the streams that could be read."""

    rows: dict[str, int] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def norm(self, stream: str, rows: Tensor, name: str) -> None:
        lengths = rows.norm(dim=1)
        self.norms.setdefault(stream, []).append(float(lengths.mean()))
        if bool((lengths == 0).any()):
            self.blank.append(f"{name} ({stream})")


def is_there(source: FeatureSource) -> bool:
    """Whether the folders of all video streams exist; what is in them is not looked at."""
    assert source.root is not None
    assert source.layout is not None
    patterns = [pattern for stream in named_layout(source.layout).video for pattern in stream]
    return all((source.root / pattern).parent.is_dir() for pattern in patterns)


def check_features(
    heading: str,
    source: FeatureSource,
    records: Sequence[MomentRecord],
    report: DataReport,
    *,
    sample: int | None = None,
) -> None:
    """Look at the features that some records need, and tell what was found.

    Args:
        heading: of the facts.
        source: where the features are.
        records: of one split.
        report: gets facts, remarks and faults.
        sample: read so many videos and queries only, evenly chosen; None: all.
    """
    videos = {record.video: record for record in records}
    names, qids = _chosen(list(videos), sample), _chosen([str(record.qid) for record in records], sample)
    if sample is not None and (len(names) < len(videos) or len(qids) < len(records)):
        report.remarks.append(
            f"{heading}: only {len(names):,} of {len(videos):,} videos and {len(qids):,} of {len(records):,} queries "
            "were read (--sample)"
        )
    try:
        read_video, read_text = _readers(source, names, qids)
    except BadInput as error:
        report.faults.append(f"{heading}: {error}")
        return
    clips = _look(names, read_video)
    words = _look(qids, lambda qid: [("text", read_text(qid), source.spec.text_dim)])
    report.fact(heading, f"videos: {len(clips.rows):,} of {len(names):,} can be used")
    report.fact(heading, f"queries: {len(words.rows):,} of {len(qids):,} can be used")
    for seen in (clips, words):
        report.faults += [f"{heading}: {fault}" for fault in seen.faults[:SHOWN]]
        if len(seen.faults) > SHOWN:
            report.faults.append(f"{heading}: and {len(seen.faults) - SHOWN:,} more")
        _tell_norms(heading, seen, source.spec, report)
    if clips.rows:
        _tell_clock(heading, clips, videos, source, report)
    if words.rows:
        report.fact(heading, f"tokens a query: {span(list(words.rows.values()))}")
        cut = [qid for qid, count in words.rows.items() if count > source.spec.max_words]
        if cut:
            limit = source.spec.max_words
            report.remarks.append(
                f"{heading}: {len(cut):,} queries have more than {limit} tokens and are cut: {some(cut)}"
            )


Streams = list[tuple[str, Tensor, int]]


def _readers(
    source: FeatureSource, names: Iterable[str], qids: Iterable[str]
) -> tuple[Callable[[str], Streams], Callable[[str], Tensor]]:
    spec = source.spec
    if source.root is not None and source.layout is not None:
        root, layout = source.root, source.layout
        if not root.is_dir():
            raise BadInput(f"{root}: there is no such folder of features")

        def streams(name: str) -> Streams:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # streams of different length become a fault that names the video
                try:
                    found = read_video_features(root, layout, name).streams
                except UserWarning as warning:
                    raise BadInput(str(warning)) from warning
            if len(found) != len(spec.video):
                raise BadInput(f"{root}: {layout} has {len(found)} video streams, the specification {len(spec.video)}")
            return [(stream.name, rows, stream.dim) for stream, rows in zip(spec.video, found, strict=True)]

        return streams, lambda qid: read_text_features(root, layout, qid)
    assert source.video is not None
    assert source.text is not None
    videos, texts = read_tensors(source.video, names), read_tensors(source.text, qids)
    dims = [stream.dim for stream in spec.video]

    def parts(name: str) -> Streams:
        rows = _there(videos, name, "video")
        if rows.ndim != 2 or rows.shape[1] != sum(dims):
            raise BadInput(f"video {name!r}: shape {tuple(rows.shape)}, expected (length, {sum(dims)})")
        return [(s.name, part, s.dim) for s, part in zip(spec.video, rows.split(dims, 1), strict=True)]

    return parts, lambda qid: _there(texts, qid, "query")


def _there(features: dict[str, Tensor], name: str, what: str) -> Tensor:
    if name not in features:
        raise BadInput(f"{what} {name!r}: there are no features")
    return features[name]


def _look(names: Sequence[str], read: Callable[[str], Streams]) -> _Seen:
    seen = _Seen()
    for name in names:
        try:
            streams = read(name)
            for stream, rows, dim in streams:
                if rows.ndim != 2 or not len(rows) or rows.shape[1] != dim:
                    raise BadInput(f"{name}: {stream} has shape {tuple(rows.shape)}, expected (length, {dim})")
                if not bool(rows.isfinite().all()):
                    raise BadInput(f"{name}: {stream} holds NaN or infinity; extract it again")
        except BadInput as error:
            seen.faults.append(str(error))
            continue
        for stream, rows, _ in streams:
            seen.norm(stream, rows, name)
        seen.rows[name] = len(streams[0][1])
    return seen


def _tell_norms(heading: str, seen: _Seen, spec: FeatureSpec, report: DataReport) -> None:
    for stream, norms in seen.norms.items():
        unit = [abs(norm - 1) <= UNIT_TOLERANCE for norm in norms]
        state = "of unit length already" if all(unit) else "some of unit length" if any(unit) else "not normalised"
        report.fact(heading, f"{stream}: rows of length {span(norms)}: {state}")
        if any(unit) and not all(unit):
            report.faults.append(
                f"{heading}: {stream} is normalised in {sum(unit):,} files and not in {len(unit) - sum(unit):,}; they "
                "come from different extractions"
            )
        if spec.normalize == "none" and not any(unit):
            report.remarks.append(f"{heading}: {stream} is not normalised, and the specification says normalize: none")
    if seen.blank:
        report.remarks.append(f"{heading}: rows of zeros in {len(seen.blank):,} files: {some(seen.blank)}")


def _tell_clock(
    heading: str, seen: _Seen, videos: dict[str, MomentRecord], source: FeatureSource, report: DataReport
) -> None:
    """Do the rows of each video, at the specification's clip length, last as long as it does?"""
    clip_s = source.spec.clip_length_s
    report.fact(heading, f"rows a video: {span(list(seen.rows.values()))}; clips of {clip_s:g} s")
    if source.by_labels:
        clips = {name: len(s.clips) for name in seen.rows if (s := videos[name].saliency) is not None}
        off = [f"{name} ({seen.rows[name]} rows, {count} clips)" for name, count in clips.items()]
        off = [text for text, name in zip(off, clips, strict=True) if abs(seen.rows[name] - clips[name]) > 4]
        if off:
            report.faults.append(f"{heading}: {len(off):,} videos do not have a row an annotated clip: {some(off)}")
    else:
        off = []
        for name, rows in seen.rows.items():
            duration = videos[name].duration_s
            if abs(rows * clip_s - duration) > max(2 * clip_s, CLOCK_TOLERANCE * duration):
                off.append(f"{name} ({rows} rows are {rows * clip_s:g} s, the video {duration:g} s)")
        if off:
            length = sorted(videos[name].duration_s / rows for name, rows in seen.rows.items())[len(seen.rows) // 2]
            report.faults.append(
                f"{heading}: {len(off):,} of {len(seen.rows):,} videos are on another clock than clips of {clip_s:g} s "
                f"(the median is {length:.3g} s a row): {some(off, 3)}"
            )
    cut = [name for name, rows in seen.rows.items() if rows > source.spec.max_clips]
    if cut:
        report.remarks.append(
            f"{heading}: {len(cut):,} videos have more than {source.spec.max_clips} clips and are cut to their first "
            f"{source.spec.max_clips * clip_s:g} s: {some(cut)}"
        )


def _chosen(names: Sequence[str], sample: int | None) -> list[str]:
    if sample is None or sample >= len(names):
        return list(names)
    return [names[i * len(names) // sample] for i in range(sample)]
