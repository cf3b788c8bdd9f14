"""The training loop: knows neither videos nor boxes, only a model, batches and a loss.

A step is a function of (weights, optimizer state, seed, step): the order of samples, their augmentation and dropout
come from the seed, so a run that was killed continues from its newest checkpoint to bit-identical weights.

Several processes (see `distributed`) share the samples of each step, as `accumulate` shares them over time: a step's
batch has the same samples however many there are.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint, BadInput, StoreError
from momentdetr.training import distributed
from momentdetr.training.average import AveragedModel
from momentdetr.training.checkpoint import Checkpoint, CheckpointFolder
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig
from momentdetr.training.loading import Key, batches
from momentdetr.training.metrics import ProgressLine, RunMetrics
from momentdetr.training.optimizer import build_optimizer, learning_rate_scale, set_learning_rate
from momentdetr.training.order import epoch_batches, parts_of, seed_step
from momentdetr.training.state import optimizer_tensors, restore_optimizer, restore_weights
from momentdetr.training.task import FitResult, Task, TrainingDiverged

B = TypeVar("B")


@dataclass
class _Position:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    best_step: int | None = None
    best_score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Judged:
    """What came of one step's losses.

    Args:
        total: mean over its parts.
        terms: likewise.
        norm: of the gradient.
        culprit: the first tensor that is not finite; None: all are.
        names: of the samples to blame.
    """

    total: float
    terms: Mapping[str, float]
    norm: float
    culprit: str | None = None
    names: tuple[str, ...] = ()


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
    """Train a model; in a process group, in every one of its processes.

    Args:
        task: what is learnt.
        loop: how long.
        optimizer: AdamW.
        schedule: of the learning rate.
        folder: gets metrics.jsonl and checkpoints/, from the first process.
        resume: go on from the newest whole checkpoint of `folder`, if there is one.
        progress: draw a progress line on stderr.

    Raises:
        BadInput: there are no samples; `folder` holds a run and `resume` is False, or another process trains in it; or
            the configuration is another.
        BadCheckpoint: no checkpoint is whole, or it does not fit the model.
        TrainingDiverged: after `loop.max_skipped` steps in a row that are not finite.
        OutOfResources: a process that reads data died.
    """
    run = _Run(task, loop, optimizer, schedule, Path(folder))
    with run.lock():
        problems = run.start(resume)
        try:
            with torch.random.fork_rng(devices=_cuda_devices(run.device)):
                run.train(progress and distributed.rank() == 0)
        finally:
            run.metrics.close()
    position = run.position
    return FitResult(
        run.evaluated, position.step, position.skipped, position.best_step, position.scores, tuple(problems)
    )


class _Run(Generic[B]):
    def __init__(
        self, task: Task[B], loop: LoopConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig, folder: Path
    ) -> None:
        self.task, self.loop, self.schedule, self.folder = task, loop, schedule, folder
        self.parts = distributed.world_size() * loop.accumulate
        if loop.batch_size < self.parts:
            raise BadInput(f"batch_size is {loop.batch_size}, expected at least {self.parts}: a sample for each part")
        self.steps_per_epoch = len(self._batches(0))
        if not self.steps_per_epoch:
            raise BadInput(f"there are {len(task.samples) or 'no'} samples to train on, expected at least {self.parts}")
        self.clip_norm = optimizer.clip_norm or math.inf
        self.device = next(task.model.parameters()).device
        distributed.copy_from_first([*task.model.parameters(), *task.model.buffers()])
        self.optimizer = build_optimizer(task.model, optimizer)
        self.average = AveragedModel(task.model, loop.ema_decay) if loop.ema_decay else None
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.position = _Position()
        all_steps = loop.epochs * self.steps_per_epoch
        self.total_steps = min(all_steps, loop.max_steps or all_steps)

    @property
    def evaluated(self) -> nn.Module:
        return self.average.model if self.average else self.task.model

    @property
    def finished(self) -> bool:
        position, loop = self.position, self.loop
        return (
            position.step >= self.total_steps
            or (loop.minutes is not None and position.seconds >= 60 * loop.minutes)
            or (loop.patience is not None and position.evaluations_since_best >= loop.patience)
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Two runs in one folder would overwrite each other's checkpoints."""
        if distributed.rank():
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise BadInput(f"another run is training in {self.folder}; wait for it or choose another folder") from error
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written ({error.strerror}); choose another folder") from error
        with lock:
            yield

    def start(self, resume: bool) -> list[str]:
        first = distributed.rank() == 0
        found = self._newest(resume) if first else None
        checkpoint, problems = distributed.from_first(found) or (None, [])
        if checkpoint is not None:
            self._restore(checkpoint)
        names = self.loop.trackers if first else ()
        self.metrics = RunMetrics(self.folder, self.position.step, names, self.task.tracked, shown=first)
        for problem in problems:
            self.metrics.write({"step": self.position.step, "event": "damaged checkpoint passed over", "what": problem})
        return problems

    def _newest(self, resume: bool) -> tuple[Checkpoint | None, list[str]]:
        if not resume and self.checkpoints.steps():
            raise BadInput(f"{self.folder} already holds a training run; resume it or choose another folder")
        return self.checkpoints.newest()

    def _batches(self, epoch: int) -> list[list[int]]:
        """The epoch's steps; a last one with too few samples to share is left out."""
        whole = epoch_batches(len(self.task.samples), self.loop.batch_size, self.loop.seed, epoch)
        return [indices for indices in whole if len(indices) >= self.parts]

    def _keys(self) -> Iterator[Key]:
        """What this process computes, from here on."""
        own = slice(distributed.rank() * self.loop.accumulate, (distributed.rank() + 1) * self.loop.accumulate)
        epoch, done = divmod(self.position.step, self.steps_per_epoch)
        while True:
            for indices in self._batches(epoch)[done:]:
                yield from (Key(tuple(part), epoch) for part in parts_of(indices, self.parts)[own])
            epoch, done = epoch + 1, 0

    def train(self, progress: bool) -> None:
        left = (self.total_steps - self.position.step) * self.loop.accumulate
        made = batches(self.task.samples, itertools.islice(self._keys(), left), self.loop.seed, self.loop.workers)
        with ProgressLine(self.total_steps, self.position.step, progress) as line, closing(made):
            while not self.finished:
                epoch, done = divmod(self.position.step, self.steps_per_epoch)
                for number in range(done + 1, self.steps_per_epoch + 1):
                    line.advance(self._step(made, epoch))
                    self.position.step += 1
                    if self.finished:
                        break
                    # At the end of an epoch the evaluation comes first: a checkpoint has nothing left to do.
                    if number < self.steps_per_epoch and self._steps_are_due():
                        self._save()
                self._end_epoch(epoch + 1, line)

    def _step(self, made: Iterator[B], epoch: int) -> str:
        started, position = time.perf_counter(), self.position
        set_learning_rate(self.optimizer, self._learning_rate_scale())
        self.task.model.train()
        statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(self.task.model)]
        judged = self._update(self._judge(made, epoch))
        seconds = time.perf_counter() - started
        if self.loop.minutes is not None:  # all processes must stop at the same step
            seconds = max(distributed.gathered(seconds))
        position.seconds += seconds
        if judged.culprit:
            for buffer, before in statistics:
                buffer.copy_(before)
            self._skip(judged, epoch)
            return f"step skipped: {judged.culprit} is not finite"
        position.skipped_in_row = 0
        if position.step % self.loop.log_every == 0:
            self._log(judged, epoch, seconds)
        return f"epoch {epoch} loss {judged.total:.4f}"

    def _learning_rate_scale(self) -> float:
        share = None if self.loop.minutes is None else self.position.seconds / (60 * self.loop.minutes)
        return learning_rate_scale(
            self.schedule, self.position.step, self.steps_per_epoch, self.total_steps, done_share=share
        )

    def _judge(self, made: Iterator[B], epoch: int) -> _Judged:
        """Losses and gradients of this process's parts of a step; no gradients of a part whose loss is not finite."""
        total, terms, culprit, names = 0.0, dict[str, float](), None, list[str]()
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.loop.accumulate):
            batch = self.task.place(next(made))
            seed_step(self.loop.seed, self.position.step, distributed.rank() * self.loop.accumulate + part)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.loop.precision == "bf16"):
                loss, of_part = self.task.loss(self.task.model, batch, epoch)
            finite = bool(torch.isfinite(loss))
            if finite and culprit is None:
                (loss / self.loop.accumulate if self.loop.accumulate > 1 else loss).backward()
            elif not finite:
                culprit = next((f"loss term {k!r}" for k, v in of_part.items() if not bool(v.isfinite().all())), "loss")
                names = list(self.task.names(batch))
            if culprit:  # the other parts are still computed: other processes may wait for what they exchange
                continue
            names += self.task.names(batch)
            total += float(loss.detach()) / self.loop.accumulate
            for name, value in of_part.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) / self.loop.accumulate
        return _Judged(total, terms, math.nan, culprit, tuple(names))

    def _update(self, judged: _Judged) -> _Judged:
        """Move the weights; or, in all processes, leave them as they are if anything in any of them is not finite."""
        if distributed.any_rank(judged.culprit is not None, self.device):
            blamed = [one for one in distributed.gathered(judged) if one.culprit]
            return replace(blamed[0], names=tuple(name for one in blamed for name in one.names))
        distributed.average_gradients(self.task.model)
        norm = nn.utils.get_total_norm([p.grad for p in self.task.model.parameters() if p.grad is not None])
        if not bool(torch.isfinite(norm)):
            names = tuple(name for one in distributed.gathered(judged) for name in one.names)
            return replace(judged, culprit=self._first_bad_gradient(), names=names)
        if float(norm) > self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.task.model.parameters(), self.clip_norm, norm)
        self.optimizer.step()
        if self.average:
            self.average.update(self.task.model)
        return replace(judged, norm=float(norm))

    def _first_bad_gradient(self) -> str:
        for name, parameter in self.task.model.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"gradient of {name!r}"
        return "norm of the gradient"

    def _log(self, judged: _Judged, epoch: int, seconds: float) -> None:
        """A line of metrics: means over the processes, where a term that one has not counts as zero."""
        everyone = distributed.gathered((judged.total, dict(judged.terms)))
        size = len(everyone)
        sums = dict[str, float]()
        for _, terms in everyone:
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: value / size if math.isfinite(value) else None for name, value in sums.items()}
        rates = [group["lr"] for group in self.optimizer.param_groups]
        line: dict[str, Any] = {"step": self.position.step + 1, "epoch": epoch}
        line["loss"] = sum(total for total, _ in everyone) / size
        line |= {"terms": means, "grad_norm": judged.norm, "learning_rate": rates[-1]}
        self.metrics.write({**line, "seconds": round(seconds, 4)})

    def _skip(self, judged: _Judged, epoch: int) -> None:
        position = self.position
        position.skipped += 1
        position.skipped_in_row += 1
        line = {"step": position.step + 1, "epoch": epoch, "event": "step skipped", "not_finite": judged.culprit}
        self.metrics.write({**line, "samples": list(judged.names)})
        if position.skipped_in_row >= self.loop.max_skipped:
            saved = self.checkpoints.steps()
            good = str(self.checkpoints.path(saved[-1])) if saved else "none"
            raise TrainingDiverged(
                f"diverged at step {position.step + 1}: {position.skipped_in_row} steps in a row were not finite, now "
                f"in {judged.culprit} of samples {', '.join(judged.names)}; last good checkpoint {good}. Lower the "
                "learning rate, or look at these samples."
            )

    def _end_epoch(self, epoch: int, line: ProgressLine) -> None:
        due = self.loop.evaluate_every and epoch % self.loop.evaluate_every == 0
        if self.task.evaluate is not None and (self.finished or due):
            line.say(self._evaluate(epoch))
        new_best = self.position.best_step == self.position.step
        if self.finished or new_best or epoch % self.loop.checkpoint_every == 0 or self._steps_are_due():
            self._save()

    def _steps_are_due(self) -> bool:
        return bool(self.loop.checkpoint_steps) and self.position.step % self.loop.checkpoint_steps == 0

    def _evaluate(self, epoch: int) -> str:
        assert self.task.evaluate is not None
        model = self.evaluated.eval()
        distributed.copy_from_first(model.buffers())  # batch norms have seen other samples in each process
        with torch.no_grad():
            found = {k: float(v) for k, v in self.task.evaluate(model).items() if math.isfinite(v)}
        scores = distributed.from_first(found)
        position, select = self.position, self.loop.select_by
        position.scores = scores
        if select is not None:
            if select not in scores:
                raise BadInput(f"select_by is {select!r}, but the evaluation gives {sorted(scores)}")
            position.evaluations_since_best += 1
            if position.best_score is None or scores[select] > position.best_score:
                position.best_score, position.best_step = scores[select], position.step
                position.evaluations_since_best = 0
        self.metrics.write({"step": position.step, "epoch": epoch, "scores": scores})
        return f"epoch {epoch}: " + " ".join(f"{name} {value:g}" for name, value in scores.items())

    def _save(self) -> None:
        if distributed.rank():
            return
        tensors = {
            "model": self.task.model.state_dict(),
            "optimizer": optimizer_tensors(self.task.model, self.optimizer),
        }
        state: dict[str, Any] = {"position": asdict(self.position), "config": dict(self.task.config)}
        if self.loop.minutes is None:  # times differ from run to run; checkpoints must not
            state["position"].pop("seconds")
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
