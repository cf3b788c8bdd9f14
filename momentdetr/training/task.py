"""What the loop is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from momentdetr.errors import MomentDETRError
from momentdetr.training.loading import Samples

B = TypeVar("B")


class TrainingDiverged(MomentDETRError, RuntimeError):
    """Loss or gradient were not finite for too many steps in a row."""

    exit_code = 4


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
        place: moves a batch to where the model is; always in the main process.
        tracked: what trackers are told about the run, plain values.
    """

    model: nn.Module
    samples: Samples[B]
    loss: Callable[[nn.Module, B, int], tuple[Tensor, Mapping[str, Tensor]]]
    names: Callable[[B], Sequence[str]]
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    place: Callable[[B], B] = lambda batch: batch
    tracked: Mapping[str, Any] = field(default_factory=dict)


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
