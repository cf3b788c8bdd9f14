"""What is looked at beside the losses: numbers that nothing is trained on, and where one that is not finite arises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.losses import matched, matched_targets
from momentdetr.detr.types import Assignment, Predictions, Targets


@torch.no_grad()
def class_error(predictions: Predictions, targets: Targets, assignment: Assignment) -> Tensor:
    """Per cent of matched queries whose likeliest class, "no object" included, is not their target's.

    Returns:
        scalar in [0, 100]; 100 where nothing is matched, as in DETR's code.
    """
    said = matched(predictions.logits, assignment).argmax(-1)
    if not len(said):
        return predictions.logits.new_full((), 100.0, dtype=torch.float32)
    right = said == matched_targets(targets.labels, assignment)
    return 100 - 100 * right.double().mean()


@torch.no_grad()
def cardinality_error(predictions: Predictions, targets: Targets) -> Tensor:
    """How far the number of queries that do not choose the last class is from the number of targets, on average.

    The last class is "no object" where DETR's softmax has one. Systems with sigmoid scores have none, and their
    official code logs this number all the same.
    """
    chosen = predictions.logits.argmax(-1) != predictions.logits.shape[-1] - 1
    return (chosen.sum(1) - targets.mask.sum(1)).abs().double().mean()


@contextmanager
def trace_not_finite(model: nn.Module) -> Iterator[None]:
    """Stop where NaN or infinity first arises, while the block runs.

    A detector refuses features, targets and matching costs that are not finite, and names the sample. This looks at
    what each module is given and puts out, to tell where in between it happened; that takes time, so repeat only the
    step that broke: `with trace_not_finite(detector): detector.loss(...)`.

    Raises:
        ValueError: names the module, the sample, and what is known of the cause.
    """
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_InputCheck(name)))
        handles.append(module.register_forward_hook(_OutputCheck(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _InputCheck:
    """What a module is given was made by no module of its own: it arose between modules, in the one around it."""

    def __init__(self, name: str) -> None:
        self.name, self.around = name, name.rpartition(".")[0]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for values in _tensors(args):
            if not values.isfinite().all():
                where = f"in {self.around!r}, before" if self.around else "in what is given to"
                raise ValueError(f"{_what(values)} arises {where} {(self.name or type(module).__name__)!r}")


class _OutputCheck:
    """What a module puts out arose in it, because what it and its parts were given was finite."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if not isinstance(output, Tensor) or output.isfinite().all():
            return
        broken = [name for name, values in module.named_parameters() if not values.isfinite().all()]
        reach = max((float(values.detach().abs().max()) for values in _tensors(args) if values.numel()), default=0.0)
        why = (
            f"its parameter {broken[0]!r} is not finite: the model had diverged before"
            if broken
            else f"what it is given reaches {reach:.3g}, and it computes in {output.dtype}"
        )
        raise ValueError(f"{_what(output)} arises in {self.name!r} ({type(module).__name__}): {why}")


def _tensors(args: Iterable[object]) -> Iterator[Tensor]:
    return (value for value in args if isinstance(value, Tensor) and value.is_floating_point())


def _what(values: Tensor) -> str:
    """ "NaN of sample 1", by the first place; tensors of less than three axes, as regions have, are told by row."""
    place = (~values.isfinite()).nonzero()[0].tolist()
    kind = "NaN" if values[tuple(place)].isnan() else "infinity"
    return f"{kind} of {'sample' if values.dim() > 2 else 'row'} {place[0]}" if place else kind
