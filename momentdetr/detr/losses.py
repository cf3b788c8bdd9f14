"""Losses over assigned predictions, and the one loop that adds them up.

A loss term is a function of (predictions, targets, assignment, count) that returns a scalar; `count` is the number of
targets that most of the family divides by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, giou, to_corners
from momentdetr.detr.types import Assignment, LossTerm, Output, Predictions, Supervision, Targets

Matcher = Callable[[Predictions, Targets], Assignment]


@dataclass(frozen=True)
class Losses:
    """What a step is judged by.

    Args:
        total: weighted sum, a scalar.
        terms: each term before weighting, by name: "class", "l1", "giou", ...; earlier layers with "_0", "_1", ...
        assignments: who answered for what, by the supervision's name.
    """

    total: Tensor
    terms: dict[str, Tensor]
    assignments: dict[str, Assignment]


def judged_rows(
    name: str,
    said: Predictions,
    positive: Tensor,
    labels: Tensor,
    boxes: Tensor,
    *,
    count: Tensor,
    weight: float = 1.0,
    terms: Mapping[str, tuple[float, LossTerm]] | None = None,
) -> Supervision:
    """Supervise rows of any samples, those that are not positive as background.

    Args:
        said: of the rows, without a batch: logits (R, K), boxes (R, 2D).
        positive: (P,) rows that answer for a target.
        labels: (P,) what they should say.
        boxes: (P, 2D) what they should say.
        count: what the terms are divided by.
    """
    order = torch.arange(len(positive), device=positive.device)
    quality = None if said.quality is None else said.quality[None]
    return Supervision(
        name,
        Predictions(said.logits[None], said.boxes[None], quality),
        Assignment(torch.zeros_like(positive), positive, order),
        weight,
        Targets(labels[None], boxes[None], torch.ones_like(labels, dtype=torch.bool)[None]),
        count,
        terms=terms,
    )


def matched(values: Tensor, assignment: Assignment) -> Tensor:
    """Rows of predictions (B, Q, ...) that answer for a target -> (P, ...)."""
    return values[assignment.sample, assignment.query]


def matched_targets(values: Tensor, assignment: Assignment) -> Tensor:
    """Rows of targets (B, M, ...) that are answered for -> (P, ...)."""
    return values[assignment.sample, assignment.target]


def num_boxes(targets: Targets) -> Tensor:
    """DETR's normaliser: the number of targets of the batch, averaged over processes, at least 1."""
    return over_processes(targets.mask.sum().float())


def over_processes(count: Tensor) -> Tensor:
    """A normaliser averaged over processes, at least 1."""
    count = count.detach().clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


def class_targets(predictions: Predictions, targets: Targets, assignment: Assignment, background: int) -> Tensor:
    """(B, Q): the class that each query should say; `background` where it answers for nothing."""
    classes = torch.full(predictions.logits.shape[:2], background, dtype=torch.long, device=predictions.logits.device)
    classes[assignment.sample, assignment.query] = matched_targets(targets.labels, assignment)
    return classes


def one_hot_targets(predictions: Predictions, targets: Targets, assignment: Assignment) -> Tensor:
    """(B, Q, K): 1 at the class that each query should say, 0 elsewhere."""
    num_classes = predictions.logits.shape[-1]
    return F.one_hot(class_targets(predictions, targets, assignment, num_classes), num_classes + 1)[..., :-1]


def cross_entropy(
    predictions: Predictions,
    targets: Targets,
    assignment: Assignment,
    count: Tensor,
    *,
    background_weight: float = 0.1,
    normalize: str = "weights",
) -> Tensor:
    """Cross-entropy with the last class as "no object", weighted down.

    Args:
        background_weight: weight of queries that answer for nothing.
        normalize: divide by the sum of "weights" (DETR) or by the number of "queries" (Moment-DETR and descendants).
    """
    logits = at_least_float32(predictions.logits)
    background = logits.shape[-1] - 1
    classes = class_targets(predictions, targets, assignment, background)
    weights = logits.new_ones(logits.shape[-1])
    weights[background] = background_weight
    if normalize == "weights":
        return F.cross_entropy(logits.transpose(1, 2), classes, weights)
    return F.cross_entropy(logits.transpose(1, 2), classes, weights, reduction="none").mean()


def focal(
    predictions: Predictions,
    targets: Targets,
    assignment: Assignment,
    count: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017), summed over queries and classes, divided by the number of targets."""
    logits = at_least_float32(predictions.logits)
    truth = one_hot_targets(predictions, targets, assignment).to(logits.dtype)
    prob = logits.sigmoid()
    unlike = prob * (1 - truth) + (1 - prob) * truth
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    loss = balance * unlike**gamma * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return loss.sum() / count


def binary(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """Binary cross-entropy of every class, summed, divided by the count."""
    truth = one_hot_targets(predictions, targets, assignment)
    logits = at_least_float32(predictions.logits)
    return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="sum") / count


def l1(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, normalize: str = "boxes"
) -> Tensor:
    """Absolute difference of centres and sizes.

    Args:
        normalize: sum divided by the number of "boxes" (DETR), or "mean" over matched numbers (Moment-DETR).
    """
    difference = matched(at_least_float32(predictions.boxes), assignment) - matched_targets(targets.boxes, assignment)
    return _normalized(difference.abs(), count, normalize)


def giou_loss(
    predictions: Predictions,
    targets: Targets,
    assignment: Assignment,
    count: Tensor,
    *,
    normalize: str = "boxes",
    eps: float = 0.0,
) -> Tensor:
    """1 - GIoU of matched pairs, normalised as `l1`; `eps` as in `boxes.iou`."""
    predicted = to_corners(matched(at_least_float32(predictions.boxes), assignment))
    true = to_corners(matched_targets(targets.boxes, assignment))
    return _normalized(1 - giou(predicted, true, eps), count, normalize)


def _normalized(values: Tensor, count: Tensor, normalize: str) -> Tensor:
    if normalize == "mean":
        return values.sum() / max(values.numel(), 1)  # a batch without targets costs nothing, but keeps the gradient
    return values.sum() / count


class Criterion:
    """One loop over everything that was predicted and assigned.

    Args:
        matcher: assigns where a supervision brings no assignment of its own.
        terms: name -> loss term.
        weights: name -> weight, the same names.
        auxiliary: judge every decoder layer, not only the last.
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        terms: Mapping[str, LossTerm],
        weights: Mapping[str, float],
        auxiliary: bool = True,
    ) -> None:
        if set(terms) != set(weights):
            raise ValueError(f"terms {sorted(terms)} and weights {sorted(weights)} must have the same names")
        self.matcher, self.terms, self.weights, self.auxiliary = matcher, dict(terms), dict(weights), auxiliary

    def supervisions(self, output: Output) -> list[Supervision]:
        """The last layer first, then the others, then what the system adds."""
        layers = [Supervision("", output.last)]
        if self.auxiliary:
            layers += [Supervision(str(i), predictions) for i, predictions in enumerate(output.layers[:-1])]
        return layers + [extra for extra in output.supervisions if self.auxiliary or not extra.auxiliary]

    def __call__(self, output: Output, targets: Targets) -> Losses:
        total, terms, assignments = output.hidden.new_zeros((), dtype=torch.float32), {}, {}
        number = num_boxes(targets)
        for supervision in self.supervisions(output):
            true = targets if supervision.targets is None else supervision.targets
            if supervision.class_agnostic:
                true = replace(true, labels=torch.zeros_like(true.labels))
            assignment = supervision.assignment or self.matcher(supervision.predictions, true)
            assignments[supervision.name] = assignment
            count = number if supervision.count is None else supervision.count
            suffix = f"_{supervision.name}" if supervision.name else ""
            own = {name: (self.weights[name], term) for name, term in self.terms.items()}
            for name, (weight, term) in (own if supervision.terms is None else supervision.terms).items():
                if supervision.only is not None and name not in supervision.only:
                    continue
                value = term(supervision.predictions, true, assignment, count)
                terms[name + suffix] = value
                total = total + supervision.weight * weight * value
        return Losses(total, terms, assignments)
