"""Checks a data set before anything is trained on it: annotations, splits, features, clock, normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field

from momentdetr.datasets.catalog import Dataset, dataset
from momentdetr.datasets.records import MomentRecord
from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.evaluation.protocols import PROTOCOLS
from momentdetr.features.layouts import named_layout
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.data_report import SHOWN, DataReport, some, span
from momentdetr.retrieval.feature_check import FeatureSource, check_features, is_there
from momentdetr.retrieval.train import RetrievalConfig, feature_spec
from momentdetr.retrieval.train_data import hold_out, refuse_test_split
from momentdetr.training.config import Section, load_config, parse_config


class ManifestSplit(Section):
    """A split of a data set's manifest: its file below the manifest's folder, and what was released."""

    file: str
    queries: int | None = None
    videos: int | None = None
    sha256: str | None = None
    source: str = ""


class ManifestFeatures(Section):
    """A feature set of a manifest: its folder below the manifest's, its layout, and a `FeatureSpec` as plain values."""

    root: str
    layout: str
    spec: dict[str, Any]
    source: str = ""
    bytes: int | None = None


class Manifest(Section):
    """What data/NAME/manifest.json says."""

    dataset: str
    title: str
    paper: str
    licence: str
    splits: dict[str, ManifestSplit]
    features: dict[str, ManifestFeatures] = Field(default_factory=dict)
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Case:
    """What is checked: files of splits, and feature sets by name."""

    name: str
    files: Mapping[str, Path]
    features: Mapping[str, FeatureSource]
    domain: str | None = None
    held_out: float = 0.0
    released: Mapping[str, ManifestSplit] | None = None


def check_data(path: str | Path, *, overrides: tuple[str, ...] = (), sample: int | None = None) -> DataReport:
    """Check what a training configuration names, or a data set's folder.

    Args:
        path: a configuration as in configs/retrieval, or a folder with a manifest.json as in data/NAME.
        overrides: "section.key=value", applied to the configuration.
        sample: read the features of so many videos and queries a split only, evenly chosen; None: all.

    Raises:
        BadInput: the configuration or manifest cannot be read. Faults of the data are in the report instead.
    """
    path = Path(path)
    case = _folder(path) if path.is_dir() else _configuration(path, overrides)
    report = DataReport()
    known = dataset(case.name)
    case = case if case.released is None else _what_is_there(case, report)
    splits = {split: found for split, file in case.files.items() if (found := _records(split, file, case, report))}
    _compare_splits(case, splits, report)
    if case.held_out and "train" in splits:
        splits["train"], splits["val (held out)"] = hold_out(splits["train"], case.held_out)
    for name, source in case.features.items():
        for split, records in splits.items():
            check_features(f"{name}, {split}" if name else f"features, {split}", source, records, report, sample=sample)
    _tell_protocol(known, report)
    return report


def _configuration(path: Path, overrides: tuple[str, ...]) -> _Case:
    config = load_config(RetrievalConfig, path, overrides)
    data = config.data
    if data.generated:
        raise BadInput(f"{path}: its data are generated; there is nothing to check")
    files = {split: Path(file) for split in ("train", "val", "test") if (file := getattr(data, split))}
    spec = feature_spec(config.features)
    source = FeatureSource(
        spec=spec,
        root=None if data.root is None else Path(data.root),
        layout=data.layout,
        video=None if data.video is None else Path(data.video),
        text=None if data.text is None else Path(data.text),
        by_labels=_by_labels(data.dataset),
    )
    return _Case(data.dataset, files, {"": source}, data.domain, data.hold_out)


def _folder(folder: Path) -> _Case:
    path = folder / "manifest.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}: cannot be read as JSON ({error}); give a training configuration, or a folder with a "
            "manifest.json as in data/NAME"
        ) from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: holds {type(data).__name__}, expected an object")
    manifest = parse_config(Manifest, data, str(path))
    dataset(manifest.dataset)
    files = {name: folder / split.file for name, split in manifest.splits.items()}
    sources = {}
    for name, features in manifest.features.items():
        named_layout(features.layout)
        try:
            spec = FeatureSpec.from_dict(features.spec)
        except BadCheckpoint as error:
            raise BadInput(f"{path}: features {name!r}: {error}") from error
        sources[name] = FeatureSource(
            spec=spec, root=folder / features.root, layout=features.layout, by_labels=_by_labels(manifest.dataset)
        )
    return _Case(manifest.dataset, files, sources, released=manifest.splits)


def _what_is_there(case: _Case, report: DataReport) -> _Case:
    """A manifest names all that was published; nobody needs all of it."""
    files = {split: path for split, path in case.files.items() if path.is_file()}
    features = {name: source for name, source in case.features.items() if is_there(source)}
    for what, named, there in (("annotations", case.files, files), ("features", case.features, features)):
        absent = [name for name in named if name not in there]
        if named and not there:
            report.faults.append(f"there are no {what}; the README of the folder says where they come from")
        elif absent:
            report.remarks.append(f"{what} that are not there: {some(absent, SHOWN)}")
    return replace(case, files=files, features=features)


def _by_labels(name: str) -> bool:
    return PROTOCOLS[dataset(name).protocol].judges == "clips"


def _records(split: str, path: Path, case: _Case, report: DataReport) -> list[MomentRecord]:
    """The right records of a file, with its faults told."""
    heading = f"annotations, {split}: {path}"
    try:
        found = dataset(case.name).check(path)
    except BadInput as error:
        report.faults.append(str(error))
        return []
    records = [record for record in found.records if case.domain in (None, record.domain)]
    report.remarks += [f"{path}: {remark}" for remark in found.remarks]
    report.faults += [f"{path}: {fault}" for fault in found.faults[:SHOWN]]
    if len(found.faults) > SHOWN:
        report.faults.append(f"{path}: and {len(found.faults) - SHOWN} more faults")
    if not records:
        if not found.faults:
            report.faults.append(f"{path}: has no record of domain {case.domain!r}")
        return []
    durations = {record.video: record.duration_s for record in records}
    report.fact(heading, f"{len(records):,} queries of {len(durations):,} videos")
    report.fact(heading, f"durations {span(list(durations.values()))} s")
    windows = [end - start for record in records for start, end in record.windows_s]
    if windows:
        report.fact(heading, f"{len(windows):,} windows of {span(windows)} s")
    released = (case.released or {}).get(split)
    expected = released.queries if released else dataset(case.name).queries.get(split)
    if expected is not None and case.domain is None and len(records) != expected:
        report.remarks.append(f"{path}: has {len(records):,} queries, {expected:,} were released")
    if released and released.sha256 and sha256(path.read_bytes()).hexdigest() != released.sha256:
        report.remarks.append(f"{path}: is not the file that was released (its SHA-256 differs from the manifest's)")
    unequal = len({(record.video, record.duration_s) for record in records}) - len(durations)
    if unequal:
        report.faults.append(f"{path}: {unequal} videos have several durations")
    return records


def _compare_splits(case: _Case, splits: Mapping[str, list[MomentRecord]], report: DataReport) -> None:
    for (first, some_records), (second, others) in combinations(splits.items(), 2):
        videos = {record.video for record in some_records} & {record.video for record in others}
        asked = {(r.video, r.query) for r in some_records} & {(r.video, r.query) for r in others}
        if videos:
            report.faults.append(
                f"{first} and {second} share {len(videos):,} videos and {len(asked):,} queries about them: "
                f"{some(sorted(videos))}"
            )
        else:
            report.fact("splits", f"{first} and {second} share no video")
    if "val" in splits:
        try:
            refuse_test_split(case.name, case.files["val"], splits["val"], splits.get("test"))
        except BadInput as error:
            report.faults.append(str(error))


def _tell_protocol(known: Dataset, report: DataReport) -> None:
    report.fact("scores", f"protocol {known.protocol}: {', '.join(PROTOCOLS[known.protocol].headline)}")
    if known.domains:
        report.fact("scores", f"one model a domain: {', '.join(known.domains)}")
