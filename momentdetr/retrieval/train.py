"""Trains a retriever from one configuration file on features that lie on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from momentdetr.datasets.predictions import MomentPrediction, write_predictions
from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.evaluation.protocols import Scores, evaluate
from momentdetr.evaluation.ranking import auroc
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.batches import MomentBatch, MomentDataset
from momentdetr.retrieval.checkpoint import save
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.predicting import predict_dataset
from momentdetr.retrieval.presence import Presence, fit_presence
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.train_data import DataConfig, read_splits
from momentdetr.training.checkpoint import CheckpointFolder
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig, Section, load_config
from momentdetr.training.loop import FitResult, Task, fit
from momentdetr.training.order import derived_seed
from momentdetr.training.state import restore_weights


class RetrievalConfig(Section):
    """Everything about one training run.

    Args:
        data: see `train_data.DataConfig`.
        features: a `FeatureSpec` as plain values, or the path of a .json file that holds it.
        model: "preset", "sizes", "weights" and options of `presets.build`; the feature dimensions are filled in.
        initial: a .safetensors file to begin with; its tensors have names of the model, not all need be there.
        training: see `LoopConfig`; `select_by` is a name of the data set's brief scores, e.g. "MR-full-mAP".
        optimizer: see `OptimizerConfig`.
        schedule: see `ScheduleConfig`.
        about: free text for people, stored with the model.
        device: "auto" takes the GPU if there is one.
    """

    data: DataConfig
    features: dict[str, Any] | str
    model: dict[str, Any]
    initial: str | None = None
    training: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    about: dict[str, Any] = Field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True)
class _OnDevice:
    """Training samples, moved to where the model is."""

    dataset: MomentDataset
    device: torch.device

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int], *, seed: int, epoch: int) -> MomentBatch:
        return self.dataset.batch(indices, seed=seed, epoch=epoch).to(self.device)


def train(
    config_path: str | Path,
    overrides: Sequence[str],
    output_dir: str | Path,
    resume: bool = False,
    *,
    progress: bool = True,
) -> Path:
    """Train a retriever and write it.

    Args:
        config_path: a file as in configs/retrieval.
        overrides: "section.key=value", applied to the configuration.
        output_dir: gets metrics.jsonl, checkpoints/, the retriever (retriever/) and, if it was scored, its answers
            (val_predictions.jsonl) and scores (val_scores.json); the same for test, on which it is scored once, at the
            end.
        resume: go on with the run that `output_dir` holds.
        progress: draw a progress line on stderr.

    Returns:
        The folder of the retriever: the best one by `training.select_by`, else the last. If the validation set has
        queries that are not in their videos, its certainty of absence is calibrated on them.

    Raises:
        BadInput: the configuration, annotations or features cannot be used; every fault is named.
        BadCheckpoint: the run cannot be resumed.
    """
    config = load_config(RetrievalConfig, config_path, overrides)
    spec, output_dir = feature_spec(config.features), Path(output_dir)
    splits = read_splits(config.data, spec)
    score, protocol = splits.val, splits.protocol
    model_config = _with_dimensions(config.model, spec)
    device = _device(config.device)
    model = _initial_model(model_config, config.training.seed, config.initial).to(device)

    def evaluate(network: nn.Module) -> Mapping[str, float]:
        assert isinstance(network, MomentRetriever)
        assert score is not None
        return _answers(network, score, protocol, config.training.batch_size, device)[1].headline

    task = Task(
        model=model,
        samples=_OnDevice(splits.train, device),
        loss=_loss,
        names=lambda batch: batch.sample_ids,
        evaluate=None if score is None else evaluate,
        config=config.model_dump(mode="json", exclude={"device", "about"}),
    )
    result = fit(task, config.training, config.optimizer, config.schedule, output_dir, resume=resume, progress=progress)
    best = _best_model(result, output_dir, model, averaged=config.training.ema_decay > 0)
    if score is not None:
        best.presence = _presence(best, score, config.training.batch_size, device)
        model_config["presence"] = asdict(best.presence)
    for name, data in (("val", score), ("test", splits.test)):
        if data is not None:
            answers, scored = _answers(best, data, protocol, config.training.batch_size, device)
            _write_scores(answers, scored, output_dir, name)
    return save(output_dir / "retriever", model_config, best, spec, about=config.about)


@dataclass(frozen=True)
class _Scored:
    scores: Scores
    absent_auroc: float | None

    @property
    def headline(self) -> dict[str, float]:
        extra = {} if self.absent_auroc is None else {"absent-AUROC": round(100 * self.absent_auroc, 2)}
        return {**self.scores.brief, **extra}


def _answers(
    model: MomentRetriever, data: MomentDataset, protocol: str, batch_size: int, device: torch.device
) -> tuple[list[MomentPrediction], _Scored]:
    predictions, absent = predict_dataset(model.eval(), data, batch_size=batch_size, device=device)
    scores = evaluate(protocol, predictions, data.records, clip_length_s=data.spec.clip_length_s)
    truly_absent = [not record.windows_s for record in data.records]
    some_absent = 0 < sum(truly_absent) < len(truly_absent)
    return predictions, _Scored(scores, auroc(absent, truly_absent) if some_absent else None)


def _presence(model: MomentRetriever, data: MomentDataset, batch_size: int, device: torch.device) -> Presence:
    """Calibrate on the validation queries, if some of them are in their videos and some are not."""
    present = [bool(record.windows_s) for record in data.records]
    if all(present) or not any(present):
        return Presence()
    predictions, _ = predict_dataset(model.eval(), data, batch_size=batch_size, device=device)
    best = [p.windows[0][2] if p.windows else 0.0 for p in predictions]
    highest = [max(p.saliency) if p.saliency else 0.0 for p in predictions]
    return fit_presence(best, highest, present)


def _write_scores(predictions: Sequence[MomentPrediction], scored: _Scored, folder: Path, split: str) -> None:
    write_predictions(folder / f"{split}_predictions.jsonl", predictions)
    document = {**scored.scores.official, "absent-AUROC": scored.absent_auroc, "notes": list(scored.scores.notes)}
    (folder / f"{split}_scores.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _loss(model: nn.Module, batch: MomentBatch, epoch: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    assert isinstance(model, MomentRetriever)
    losses = model.loss(batch.inputs, batch.targets, epoch)
    return losses.total, losses.terms


def _initial_model(model_config: Mapping[str, Any], seed: int, initial: str | None) -> MomentRetriever:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("weights", seed))
        model = build(model_config)
    if initial is not None:
        _begin_with(model, Path(initial))
    return model


def _begin_with(model: MomentRetriever, path: Path) -> None:
    """Copy the tensors of a file into the model; every one of them must have its place."""
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"initial: {path} cannot be read as safetensors: {error}") from error
    own = model.state_dict()
    wrong = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    if wrong or not given:
        name = wrong[0] if wrong else "nothing"
        expected = tuple(own[name].shape) if name in own else "a name of the model"
        found = f"{name} {tuple(given[name].shape)}" if wrong else "no tensor at all"
        raise BadInput(f"initial: {path} holds {found}, expected {expected}; {len(wrong)} of {len(given)} do not fit")
    model.load_state_dict({**own, **given})


def _best_model(result: FitResult, folder: Path, model: MomentRetriever, *, averaged: bool) -> MomentRetriever:
    if result.best_step is None or result.best_step == result.steps:
        assert isinstance(result.model, MomentRetriever)
        return result.model.eval()
    checkpoint = CheckpointFolder(folder / "checkpoints").load(result.best_step)
    restore_weights(model, checkpoint.tensors["average" if averaged else "model"], "best model")
    return model.eval()


def feature_spec(features: dict[str, Any] | str) -> FeatureSpec:
    """The specification that a configuration holds or names.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        if isinstance(features, str):
            features = json.loads(Path(features).read_text(encoding="utf-8"))
        return FeatureSpec.from_dict(features)  # type: ignore[arg-type] # anything else is refused there
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, BadCheckpoint) else f"{features} cannot be read: {error}"
        raise BadInput(f"features: {reason}") from error


def _with_dimensions(model: Mapping[str, Any], spec: FeatureSpec) -> dict[str, Any]:
    """The model's configuration with the input sizes that the features have."""
    sizes = {"video_dim": spec.video_dim, "text_dim": spec.text_dim}
    given = model.get("sizes", {})
    wrong = [key for key, value in sizes.items() if given.get(key, value) != value]
    if wrong:
        raise BadInput(f"model.sizes.{wrong[0]} is {given[wrong[0]]}, but the features have {sizes[wrong[0]]}")
    return {**model, "sizes": {**given, **sizes}}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name!r} is not usable here: {error}") from error
