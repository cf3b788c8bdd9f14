"""What a training run learns from and is judged on: annotations and features, split by split."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, model_validator
from torch import Tensor

from momentdetr.datasets.catalog import DATASETS, dataset, read_dataset
from momentdetr.datasets.records import MomentRecord, Saliency
from momentdetr.errors import BadInput
from momentdetr.evaluation.protocols import PROTOCOLS
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.feature_files import open_published, read_published, read_tensors
from momentdetr.retrieval.generated import generate
from momentdetr.training.config import Section

Features = Mapping[str, Tensor]


class DataConfig(Section):
    """Where annotations and features are; paths are relative to the current directory.

    Args:
        dataset: name of `datasets.catalog.DATASETS`: how annotations are read, and by which rules answers are scored.
        train: annotations to learn from.
        val: annotations to be scored on while training; never the test split. None: the model is not scored.
        hold_out: instead of `val`, this share of the training videos, chosen by their names.
        test: annotations to be scored on once, at the end.
        domain: only this kind of video (TVSum, YouTube Highlights); None: all.
        video: a .safetensors file, name of the video -> (T, dim), raw streams concatenated.
        text: a .safetensors file, query id as text -> (W, dim).
        root: instead of these two, a folder of published features ...
        layout: ... that is laid out as one of `features.layouts.LAYOUTS`.
        in_memory: read all features at once; False reads them when they are needed, from `root`, so that what is wrong
            with them, or is cut, is not told before (`momentdetr data check` tells it).
        generated: make so many queries (and a quarter as many to be scored on) instead of reading any file.
    """

    dataset: str = "qvhighlights"
    train: str | None = None
    val: str | None = None
    hold_out: float = Field(default=0.0, ge=0, le=0.5)
    test: str | None = None
    domain: str | None = None
    video: str | None = None
    text: str | None = None
    root: str | None = None
    layout: str | None = None
    in_memory: bool = True
    generated: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        files, published = (self.video, self.text), (self.root, self.layout)
        if not self.generated and not (self.train and (all(files) or all(published))):
            raise ValueError("needs 'train' and either 'video' and 'text' or 'root' and 'layout' (or 'generated')")
        if any(files) and any(published):
            raise ValueError("has both 'video' or 'text' and 'root' or 'layout'; give one pair")
        if self.dataset not in DATASETS:
            raise ValueError(f"unknown data set {self.dataset!r}, expected one of {', '.join(DATASETS)}")
        domains = DATASETS[self.dataset].domains
        if self.domain is not None and self.domain not in domains:
            raise ValueError(f"{self.dataset} has no domain {self.domain!r}, only {', '.join(domains) or 'none'}")
        if self.val and self.hold_out:
            raise ValueError("has both 'val' and 'hold_out'; give one")
        if not self.in_memory and not self.root:
            raise ValueError("'in_memory: false' needs 'root' and 'layout'")
        return self


@dataclass(frozen=True)
class Splits:
    """The samples of a run.

    Args:
        train: to learn from.
        val: to be scored on while training; None: the run is not scored.
        test: to be scored on at the end; None: not.
        protocol: by which rules.
    """

    train: MomentDataset
    val: MomentDataset | None
    test: MomentDataset | None
    protocol: str


def read_splits(config: DataConfig, spec: FeatureSpec) -> Splits:
    """Read annotations and features.

    Videos that are longer than the model sees are warned of.

    Raises:
        BadInput: annotations or features cannot be used (each is named), or validation would be on the test split.
    """
    known = dataset(config.dataset)
    if config.generated:
        return _generated(config, spec)
    assert config.train is not None
    train = read_dataset(config.dataset, config.train, domain=config.domain)
    val = None if config.val is None else read_dataset(config.dataset, config.val, domain=config.domain)
    test = None if config.test is None else read_dataset(config.dataset, config.test, domain=config.domain)
    if config.val is not None and val is not None:
        refuse_test_split(config.dataset, Path(config.val), val, test)
    if config.hold_out:
        train, val = hold_out(train, config.hold_out)
    learn = [record if known.learn is None else known.learn(record) for record in train]
    return Splits(
        train=_with_features(learn, config, spec),
        val=None if val is None else _with_features(val, config, spec),
        test=None if test is None else _with_features(test, config, spec),
        protocol=known.protocol,
    )


def refuse_test_split(
    name: str, path: Path, val: Sequence[MomentRecord], test: Sequence[MomentRecord] | None = None
) -> None:
    """Refuse to choose a model on the queries by which it will be judged.

    Raises:
        BadInput: the file calls itself a test split, has as many queries as the published one, or shares one with
            `test`.
    """
    published = dataset(name).queries.get("test")
    asked = {(record.video, record.query) for record in test or ()}
    shared = sum((record.video, record.query) in asked for record in val)
    if "test" in path.stem.lower() or len(val) == published or shared:
        why = f"shares {shared} queries with 'test'" if shared else f"is a test split of {name}"
        raise BadInput(
            f"data.val: {path} {why}; a model that is chosen on it is not measured by it. Give a validation split or "
            "hold out training videos (data.hold_out: 0.1), and give the test split as data.test"
        )


def hold_out(records: Sequence[MomentRecord], share: float) -> tuple[list[MomentRecord], list[MomentRecord]]:
    """Part the records by video: those to learn from, and about `share` of the videos to be scored on.

    The choice depends on the videos' names only.

    Raises:
        BadInput: one side would be empty.
    """
    videos = sorted({record.video for record in records}, key=lambda name: hashlib.sha256(name.encode()).digest())
    chosen = set(videos[: round(share * len(videos))])
    learn = [record for record in records if record.video not in chosen]
    kept = [record for record in records if record.video in chosen]
    if not learn or not kept:
        raise BadInput(f"hold_out {share} of {len(videos)} videos leaves nothing to learn from or to be scored on")
    return learn, kept


def _with_features(records: Sequence[MomentRecord], config: DataConfig, spec: FeatureSpec) -> MomentDataset:
    names, qids = [record.video for record in records], [str(record.qid) for record in records]
    videos: Features
    texts: Features
    if config.root and config.layout and not config.in_memory:
        videos, texts = open_published(config.root, config.layout, names, qids, spec)
    elif config.root and config.layout:
        videos, texts = read_published(config.root, config.layout, names, qids, spec)
    else:
        assert config.video is not None
        assert config.text is not None
        videos, texts = read_tensors(config.video, names), read_tensors(config.text, qids)
    if PROTOCOLS[dataset(config.dataset).protocol].judges == "clips":
        videos = _as_long_as_labels(videos, records)
    made = MomentDataset(records, videos, texts, spec, checked=not config.in_memory)
    if not config.in_memory:
        return made  # reading them all would take as long as an epoch; `momentdetr data check` does it
    cut = sum(len(words) > spec.max_words for words in texts.values())
    if cut:
        warnings.warn(
            f"{cut} queries have more than {spec.max_words} tokens; the model sees only their first ones "
            "(features.max_words)",
            stacklevel=2,
        )
    if made.num_truncated:
        warnings.warn(
            f"{made.num_truncated} videos have more than {spec.max_clips} clips; the model sees only their first "
            f"{spec.max_clips * spec.clip_length_s:g} s, and moments behind them are lost (features.max_clips)",
            stacklevel=2,
        )
    return made


def _as_long_as_labels(videos: Features, records: Sequence[MomentRecord]) -> dict[str, Tensor]:
    """Cut features to the annotated clips, as published code does; more than four rows too many are warned of."""
    lengths = {record.video: len(record.saliency.clips) for record in records if record.saliency is not None}
    far = [name for name, rows in videos.items() if name in lengths and abs(len(rows) - lengths[name]) > 4]
    if far:
        warnings.warn(
            f"features of {len(far)} videos differ by more than four rows from the annotated clips ({far[0]}: "
            f"{len(videos[far[0]])} and {lengths[far[0]]}); they may have another clip length",
            stacklevel=3,
        )
    return {name: rows[: lengths.get(name)] for name, rows in videos.items()}


def _generated(config: DataConfig, spec: FeatureSpec) -> Splits:
    known = dataset(config.dataset)
    worlds = [generate(count, spec, seed) for seed, count in ((1, config.generated), (2, config.generated // 4 or 1))]
    clips = PROTOCOLS[known.protocol].judges == "clips"
    records = [
        [_rated(record, len(world.videos[record.video])) if clips else record for record in world.records]
        for world in worlds
    ]
    learn = [record if known.learn is None else known.learn(record) for record in records[0]]
    return Splits(
        MomentDataset(learn, worlds[0].videos, worlds[0].texts, spec),
        MomentDataset(records[1], worlds[1].videos, worlds[1].texts, spec),
        None,
        known.protocol,
    )


def _rated(record: MomentRecord, num_clips: int) -> MomentRecord:
    """A generated record as data sets of highlights have it: every clip is rated, and there are no windows."""
    shown = set() if record.saliency is None else set(record.saliency.clips)
    ratings = tuple((float(1 + (clip in shown)),) for clip in range(num_clips))
    return replace(record, windows_s=(), saliency=Saliency(tuple(range(num_clips)), ratings), domain="generated")
