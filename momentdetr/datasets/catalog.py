"""The moment data sets that can be read, by name: their reader, their scores, their clock, their published splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from momentdetr.datasets.activitynet import check_activitynet
from momentdetr.datasets.charades import check_charades
from momentdetr.datasets.qvhighlights import check_qvhighlights
from momentdetr.datasets.qvhighlights_asr import check_qvhighlights_asr
from momentdetr.datasets.records import AnnotationReport, MomentRecord
from momentdetr.datasets.tacos import check_tacos
from momentdetr.datasets.tvsum import check_tvsum, learning_record
from momentdetr.datasets.youtube_highlights import check_youtube_highlights
from momentdetr.errors import BadInput


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Args:
        check: reads an annotation file; takes `videos`.
        protocol: how it is scored, a name of `evaluation.protocols.PROTOCOLS`.
        queries: split -> number of queries that were released.
        domains: kinds of video that are trained and scored each by itself; empty: all together.
        learn: makes of a record what published code learns from; None: the record itself.
    """

    check: Callable[..., AnnotationReport]
    protocol: str
    queries: Mapping[str, int]
    domains: tuple[str, ...] = ()
    learn: Callable[[MomentRecord], MomentRecord] | None = None


DATASETS: dict[str, Dataset] = {
    "qvhighlights": Dataset(check_qvhighlights, "qvhighlights", {"train": 7218, "val": 1550, "test": 1542}),
    "qvhighlights_asr": Dataset(check_qvhighlights_asr, "qvhighlights", {}),
    "charades": Dataset(check_charades, "charades", {"train": 12404, "test": 3720}),
    "tacos": Dataset(check_tacos, "tacos", {"train": 9790, "val": 4436, "test": 4001}),
    "activitynet": Dataset(check_activitynet, "activitynet", {"val_1": 17505}),
    "tvsum": Dataset(
        check_tvsum,
        "tvsum",
        {"train": 40, "val": 10},
        ("BK", "BT", "DS", "FM", "GA", "MS", "PK", "PR", "VT", "VU"),
        learning_record,
    ),
    "youtube": Dataset(
        check_youtube_highlights,
        "youtube",
        {"train": 233, "val": 152},
        ("dog", "gymnastics", "parkour", "skating", "skiing", "surfing"),
    ),
}


def dataset(name: str) -> Dataset:
    """A data set by its name.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in DATASETS:
        raise BadInput(f"unknown data set {name!r}, expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def read_dataset(name: str, path: str | Path, *, domain: str | None = None) -> list[MomentRecord]:
    """Read an annotation file that must be right.

    Args:
        name: of `DATASETS`.
        path: the file.
        domain: only this kind of video; None: all.

    Raises:
        BadInput: one report that names each faulty line; no data set or domain of that name.
    """
    records = list(dataset(name).check(path).require_faultless())
    if domain is None:
        return records
    chosen = [record for record in records if record.domain == domain]
    if not chosen:
        there = sorted({record.domain for record in records})
        raise BadInput(f"{path}: has no video of domain {domain!r}, only of {', '.join(map(repr, there))}")
    return chosen
