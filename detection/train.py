"""Trains a detector from one configuration; the sister of `momentdetr.retrieval.train`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.checkpoint import save
from detection.checkpointing import recompute_layers
from detection.data.check import ImageData, load_data
from detection.data.dataset import ImageBatch, ImageDataset
from detection.data.generated import write_generated
from detection.evaluation import detect, evaluate
from detection.initial import IN_RUN, begin_with
from detection.losses import image_loss
from detection.model import ImageDetector
from detection.model_config import build_model
from detection.recipes import DataConfig, DetectionConfig
from detection.scoring import DetectionScores
from momentdetr.errors import StoreError
from momentdetr.training import distributed
from momentdetr.training.checkpoint import CheckpointFolder
from momentdetr.training.config import load_config
from momentdetr.training.loop import fit
from momentdetr.training.order import derived_seed
from momentdetr.training.state import restore_weights
from momentdetr.training.task import FitResult, Task

Say = Callable[[str], None]

# What may differ between a run and the run that goes on with it.
_FREE = {"workers", "trackers", "log_every"}


@dataclass(frozen=True)
class Trained:
    """What a run made.

    Args:
        folder: of the model.
        scores: of the model on the images to be scored on; None: there are none.
        steps: done.
        skipped: steps left out because loss or gradient were not finite.
    """

    folder: Path
    scores: DetectionScores | None
    steps: int
    skipped: int


def train_file(
    path: str | Path,
    overrides: Sequence[str],
    output_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    say: Say = lambda text: None,
) -> Trained:
    """`train` with the configuration of a file, changed by "section.key=value"."""
    return train(load_config(DetectionConfig, path, overrides), output_dir, resume=resume, progress=progress, say=say)


def train(
    config: DetectionConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    say: Say = lambda text: None,
) -> Trained:
    """Train a detector and write it; under `torchrun` or `accelerate launch`, in several processes.

    Args:
        config: everything about the run.
        output_dir: gets metrics.jsonl, checkpoints/, the model (detector/) and, if it was scored, its answers
            (val_detections.json) and scores (val_scores.json).
        resume: go on with the run that `output_dir` holds.
        progress: draw a progress line on stderr.
        say: told what a person should know before the run.

    Raises:
        BadInput: configuration or data cannot be used; every fault is named.
        BadCheckpoint: the run cannot be resumed, or `initial` is no such model.
        TrainingDiverged: too many steps in a row were not finite.
        OutOfResources: a process that reads data died.
    """
    output_dir = Path(output_dir)
    with distributed.process_group(config.device) as device:
        first = distributed.rank() == 0
        return _train(config, output_dir, device, resume, progress, say if first else lambda text: None)


def _train(
    config: DetectionConfig, output_dir: Path, device: torch.device, resume: bool, progress: bool, say: Say
) -> Trained:
    learn, check = image_data(config.data, output_dir)
    for data in (learn, check):
        if data is not None and data.skipped:
            say(f"{len(data.skipped)} faults of the data are left out, as allowed; they are stored with the model")
    model, described = initial_model(config, learn.classes.names, say)
    model.to(device)
    if config.checkpoint_activations:
        recompute_layers(model)
    loop = config.training
    if check is not None and loop.select_by is None:
        loop = loop.model_copy(update={"select_by": "AP"})

    def score(network: nn.Module) -> Mapping[str, float]:
        assert isinstance(network, ImageDetector)
        assert check is not None
        return _scores(network, check, config)[1].figures

    task = Task(
        model=model,
        samples=ImageDataset(learn.records, config.data.augment),
        loss=lambda network, batch, epoch: _loss(network, batch, config),
        names=lambda batch: batch.sample_ids,
        evaluate=None if check is None else score,
        config=_stored(config, described, learn),
        place=lambda batch: batch.to(device),
        tracked=config.model_dump(mode="json"),
    )
    result = fit(task, loop, config.optimizer, config.schedule, output_dir, resume=resume, progress=progress)
    best = _best_model(result, output_dir, model, averaged=loop.ema_decay > 0)
    scores = None if check is None else _write_scores(best, check, config, output_dir)
    folder = output_dir / IN_RUN
    if distributed.rank() == 0:
        save(
            folder,
            described,
            best.state_dict(),
            learn.classes.names,
            category_ids=learn.classes.category_ids,
            input_size=(config.data.short_side, config.data.long_side),
            about={**config.about, "trained_with": config.model_dump(mode="json"), "left_out": _faults(learn)},
        )
    return Trained(folder, scores, result.steps, result.skipped)


def image_data(config: DataConfig, output_dir: Path) -> tuple[ImageData, ImageData | None]:
    """The images to learn from and those to be scored on; in a process group, the first process reads for all."""
    shared = distributed.from_first(_image_data(config, output_dir) if distributed.rank() == 0 else None)
    assert shared is not None
    return shared


def _image_data(config: DataConfig, output_dir: Path) -> tuple[ImageData, ImageData | None]:
    folder = config.folder or str(write_generated(output_dir / "generated", config.generated))
    options: dict[str, Any] = {"skip_bad": config.skip_bad, "verify": config.verify}
    learn = load_data(folder, config.train, **options)
    if config.val is not None:
        return learn, load_data(folder, config.val, classes=learn.classes, **options)
    return _held_out(learn, config.holdout)


def _held_out(data: ImageData, share: float) -> tuple[ImageData, ImageData | None]:
    """Part of the images kept for scoring: those whose ids come first in an order that is always the same."""
    count = round(share * len(data.records))
    if not count or count >= len(data.records):
        return data, None
    ordered = sorted(data.records, key=lambda record: derived_seed("holdout", record.image_id))
    kept = {record.image_id for record in ordered[:count]}
    learn = tuple(record for record in data.records if record.image_id not in kept)
    return replace(data, records=learn), replace(data, records=tuple(r for r in data.records if r.image_id in kept))


def initial_model(
    config: DetectionConfig, labels: Sequence[str], say: Say = lambda text: None
) -> tuple[ImageDetector, dict[str, Any]]:
    """The model before its first step, its weights a function of the seed; and its description."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("weights", config.training.seed))
        if config.initial is None:
            assert config.model is not None
            return build_model(config.model, len(labels))
        described = None if config.model is None else build_model(config.model, len(labels))[1]
        model, described, anew = begin_with(config.initial, labels, described)
    if anew:
        say(f"the classes are others than those of {config.initial}; these start anew: {', '.join(anew)}")
    return model, described


def _loss(network: nn.Module, batch: ImageBatch, config: DetectionConfig) -> tuple[Tensor, Mapping[str, Tensor]]:
    assert isinstance(network, ImageDetector)
    return image_loss(network, batch, config.normalisers)


def _scores(
    network: ImageDetector, data: ImageData, config: DetectionConfig
) -> tuple[list[dict[str, Any]], DetectionScores]:
    rows = detect(
        network,
        data,
        data.classes.category_ids,
        short_side=config.data.short_side,
        long_side=config.data.long_side,
        batch_size=config.evaluate_batch,
        workers=config.training.workers,
    )
    return rows, evaluate(rows, data)


def _write_scores(model: ImageDetector, data: ImageData, config: DetectionConfig, folder: Path) -> DetectionScores:
    rows, scores = _scores(model, data, config)
    if distributed.rank() == 0:
        try:
            (folder / "val_detections.json").write_text(json.dumps(rows), encoding="utf-8")
            document = {**scores.to_dict(), "notes": list(scores.notes)}
            (folder / "val_scores.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"scores cannot be written to {folder}: {error.strerror}") from error
    return scores


def _best_model(result: FitResult, folder: Path, model: ImageDetector, *, averaged: bool) -> ImageDetector:
    if result.best_step is None or result.best_step == result.steps:
        assert isinstance(result.model, ImageDetector)
        return result.model.eval()
    if distributed.rank() == 0:
        checkpoint = CheckpointFolder(folder / "checkpoints").load(result.best_step)
        restore_weights(model, checkpoint.tensors["average" if averaged else "model"], "best model")
    distributed.copy_from_first([*model.parameters(), *model.buffers()])
    return model.eval()


def _stored(config: DetectionConfig, described: Mapping[str, Any], data: ImageData) -> dict[str, Any]:
    """What every checkpoint says of the run, and a resumed one must share."""
    values = config.model_dump(mode="json", exclude={"device", "about", "model", "evaluate_batch"})
    values["training"] = {key: value for key, value in values["training"].items() if key not in _FREE}
    return {**values, "model": dict(described), "classes": data.classes.to_dict(), "left_out": _faults(data)}


def _faults(data: ImageData) -> list[dict[str, str]]:
    return [fault.to_dict() for fault in data.skipped]
