"""The training loop: knows neither videos nor boxes, only a model, batches and a loss.

A step is a function of (weights, optimizer state, seed, step): the order of samples, their augmentation and dropout
come from the seed, so a run that was killed continues from its newest checkpoint to bit-identical weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint, BadInput, MomentDETRError
from momentdetr.training.average import AveragedModel
from momentdetr.training.checkpoint import Checkpoint, CheckpointFolder
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig
from momentdetr.training.metrics import MetricsFile, ProgressLine
from momentdetr.training.optimizer import build_optimizer, learning_rate_scale, set_learning_rate
from momentdetr.training.order import epoch_batches, seed_step
from momentdetr.training.state import optimizer_tensors, restore_optimizer, restore_weights

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class TrainingDiverged(MomentDETRError, RuntimeError):
    """Loss or gradient were not finite for too many steps in a row."""

    exit_code = 4


class Samples(Protocol[B_co]):
    """What a run trains on."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], *, seed: int, epoch: int) -> B_co:
        """The batch of these samples in this epoch; must not depend on anything else."""
        ...


@dataclass(frozen=True)
class Task(Generic[B]):
    """What is learnt.

    Args:
        model: on the device where it is trained.
        samples: the training samples.
        loss: (model, batch, epoch) -> total loss and its terms by name.
        names: batch -> names of its samples, for messages.
        evaluate: (model in evaluation mode) -> scores by name; None: never evaluated.
        config: the whole configuration, plain values; a resumed run must have the same.
    """

    model: nn.Module
    samples: Samples[B]
    loss: Callable[[nn.Module, B, int], tuple[Tensor, Mapping[str, Tensor]]]
    names: Callable[[B], Sequence[str]]
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Args:
        model: the trained model, or its average where weights are averaged.
        steps: steps done in all.
        skipped: steps left out because loss or gradient were not finite.
        best_step: step of the best evaluation, or None.
        scores: the last evaluation.
        problems: damaged checkpoints that were passed over on resuming.
    """

    model: nn.Module
    steps: int
    skipped: int
    best_step: int | None
    scores: Mapping[str, float]
    problems: tuple[str, ...] = ()


@dataclass
class _Position:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    best_step: int | None = None
    best_score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


def fit(
    task: Task[B],
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a model.

    Args:
        task: what is learnt.
        loop: how long.
        optimizer: AdamW.
        schedule: of the learning rate.
        folder: gets metrics.jsonl and checkpoints/.
        resume: go on from the newest whole checkpoint of `folder`, if there is one.
        progress: draw a progress line on stderr.

    Raises:
        BadInput: there are no samples; `folder` holds a run and `resume` is False; or the configuration is another.
        BadCheckpoint: no checkpoint is whole, or it does not fit the model.
        TrainingDiverged: after `loop.max_skipped` steps in a row that are not finite.
    """
    run = _Run(task, loop, optimizer, schedule, Path(folder))
    problems = run.start(resume)
    with torch.random.fork_rng(devices=_cuda_devices(run.device)):
        run.train(progress)
    position = run.position
    return FitResult(
        run.evaluated, position.step, position.skipped, position.best_step, position.scores, tuple(problems)
    )


class _Run(Generic[B]):
    def __init__(
        self, task: Task[B], loop: LoopConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig, folder: Path
    ) -> None:
        if not len(task.samples):
            raise BadInput("there are no samples to train on")
        self.task, self.loop, self.schedule, self.folder = task, loop, schedule, folder
        self.clip_norm = optimizer.clip_norm or math.inf
        self.device = next(task.model.parameters()).device
        self.optimizer = build_optimizer(task.model, optimizer)
        self.average = AveragedModel(task.model, loop.ema_decay) if loop.ema_decay else None
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.position = _Position()
        self.steps_per_epoch = math.ceil(len(task.samples) / loop.batch_size)
        all_steps = loop.epochs * self.steps_per_epoch
        self.total_steps = min(all_steps, loop.max_steps or all_steps)

    @property
    def evaluated(self) -> nn.Module:
        return self.average.model if self.average else self.task.model

    def start(self, resume: bool) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume and self.checkpoints.steps():
            raise BadInput(f"{self.folder} already holds a training run; resume it or choose another folder")
        checkpoint, problems = self.checkpoints.newest()
        if checkpoint is not None:
            self._restore(checkpoint)
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.position.step)
        for problem in problems:
            self.metrics.write({"step": self.position.step, "event": "damaged checkpoint passed over", "what": problem})
        return problems

    def train(self, progress: bool) -> None:
        with ProgressLine(self.total_steps, self.position.step, progress) as line:
            while self.position.step < self.total_steps:
                epoch, done = divmod(self.position.step, self.steps_per_epoch)
                batches = epoch_batches(len(self.task.samples), self.loop.batch_size, self.loop.seed, epoch)
                for number, indices in enumerate(batches[done:], start=done + 1):
                    line.advance(self._step(indices, epoch))
                    self.position.step += 1
                    if self.position.step >= self.total_steps:
                        break
                    # At the end of an epoch the evaluation comes first: a checkpoint has nothing left to do.
                    if number < len(batches) and self._steps_are_due():
                        self._save()
                self._end_epoch(epoch + 1, line)

    def _step(self, indices: Sequence[int], epoch: int) -> str:
        started, position = time.perf_counter(), self.position
        batch = self.task.samples.batch(indices, seed=self.loop.seed, epoch=epoch)
        scale = learning_rate_scale(self.schedule, position.step, self.steps_per_epoch, self.total_steps)
        set_learning_rate(self.optimizer, scale)
        seed_step(self.loop.seed, position.step)
        self.task.model.train()
        statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(self.task.model)]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.loop.precision == "bf16"):
            total, terms = self.task.loss(self.task.model, batch, epoch)
        norm, culprit = self._update(total, terms)
        total = total.detach()
        if culprit:
            for buffer, before in statistics:
                buffer.copy_(before)
            self._skip(culprit, self.task.names(batch), epoch)
            return f"step skipped: {culprit} is not finite"
        position.skipped_in_row = 0
        if position.step % self.loop.log_every == 0:
            seconds = time.perf_counter() - started
            values = {name: float(term.detach()) if bool(term.isfinite()) else None for name, term in terms.items()}
            line = {"step": position.step + 1, "epoch": epoch, "loss": float(total), "terms": values, "grad_norm": norm}
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.metrics.write({**line, "learning_rate": rates[-1], "seconds": round(seconds, 4)})
        return f"epoch {epoch} loss {float(total):.4f}"

    def _update(self, total: Tensor, terms: Mapping[str, Tensor]) -> tuple[float, str | None]:
        """Move the weights, or leave all as it is and name the first tensor that is not finite."""
        if not bool(torch.isfinite(total)):
            return math.nan, next(
                (f"loss term {k!r}" for k, v in terms.items() if not bool(v.isfinite().all())), "loss"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        gradients = [p.grad for p in self.task.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            return math.nan, self._first_bad_gradient()
        if float(norm) > self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.task.model.parameters(), self.clip_norm, norm)
        self.optimizer.step()
        if self.average:
            self.average.update(self.task.model)
        return float(norm), None

    def _first_bad_gradient(self) -> str:
        for name, parameter in self.task.model.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"gradient of {name!r}"
        return "norm of the gradient"

    def _skip(self, culprit: str, names: Sequence[str], epoch: int) -> None:
        position = self.position
        position.skipped += 1
        position.skipped_in_row += 1
        line = {"step": position.step + 1, "epoch": epoch, "event": "step skipped", "not_finite": culprit}
        self.metrics.write({**line, "samples": list(names)})
        if position.skipped_in_row >= self.loop.max_skipped:
            saved = self.checkpoints.steps()
            good = str(self.checkpoints.path(saved[-1])) if saved else "none"
            raise TrainingDiverged(
                f"diverged at step {position.step + 1}: {position.skipped_in_row} steps in a row were not finite, now "
                f"in {culprit} of samples {', '.join(names)}; last good checkpoint {good}. Lower the learning rate, or "
                "look at these samples."
            )

    def _end_epoch(self, epoch: int, line: ProgressLine) -> None:
        last = self.position.step >= self.total_steps
        due = self.loop.evaluate_every and epoch % self.loop.evaluate_every == 0
        if self.task.evaluate is not None and (last or due):
            line.say(self._evaluate(epoch))
        new_best = self.position.best_step == self.position.step
        if last or new_best or epoch % self.loop.checkpoint_every == 0 or self._steps_are_due():
            self._save()

    def _steps_are_due(self) -> bool:
        return bool(self.loop.checkpoint_steps) and self.position.step % self.loop.checkpoint_steps == 0

    def _evaluate(self, epoch: int) -> str:
        assert self.task.evaluate is not None
        model = self.evaluated.eval()
        with torch.no_grad():
            scores = {k: float(v) for k, v in self.task.evaluate(model).items() if math.isfinite(v)}
        position, select = self.position, self.loop.select_by
        position.scores = scores
        if select is not None:
            if select not in scores:
                raise BadInput(f"select_by is {select!r}, but the evaluation gives {sorted(scores)}")
            if position.best_score is None or scores[select] > position.best_score:
                position.best_score, position.best_step = scores[select], position.step
        self.metrics.write({"step": position.step, "epoch": epoch, "scores": scores})
        return f"epoch {epoch}: " + " ".join(f"{name} {value:g}" for name, value in scores.items())

    def _save(self) -> None:
        tensors = {
            "model": self.task.model.state_dict(),
            "optimizer": optimizer_tensors(self.task.model, self.optimizer),
        }
        state: dict[str, Any] = {"position": asdict(self.position), "config": dict(self.task.config)}
        if self.average:
            tensors["average"] = self.average.model.state_dict()
            state["average_updates"] = self.average.num_updates
        self.checkpoints.save(Checkpoint(self.position.step, tensors, state), self.position.best_step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        _require_same_config(state["config"], self.task.config, self.folder)
        if ("average" in tensors) != (self.average is not None):
            raise BadCheckpoint(f"{self.folder}: weights are averaged in the checkpoint or in the configuration only")
        restore_weights(self.task.model, tensors["model"], "model")
        restore_optimizer(self.task.model, self.optimizer, tensors["optimizer"])
        if self.average:
            restore_weights(self.average.model, tensors["average"], "average")
            self.average.num_updates = state["average_updates"]
        self.position = _Position(**state["position"])


def _require_same_config(stored: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    for key in sorted(set(stored) | set(given)):
        if stored.get(key) != given.get(key):
            raise BadInput(
                f"{folder} was trained with {key} = {stored.get(key)!r}, now it is {given.get(key)!r}; "
                "resume with the same configuration, or start in another folder"
            )


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """What a forward pass changes, and a skipped step must put back."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [buffer for module in norms for buffer in module.buffers()]


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
