"""The vocabulary of the family, in any number of dimensions.

Shape letters, project-wide: B batch, N memory tokens, Q queries, C channels, K classes, M padded targets, P matched
pairs, L levels, T clips of a video, W words, D dimensions (1: a span on a time line, 2: a box in an image, 3: a tube).

A box is `(..., 2D)`: D centres, then D sizes, normalised to [0, 1]. Masks are True where valid, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """What queries attend to.

    Args:
        tokens: (B, N, C).
        mask: (B, N), True where a token is real; None where all are.
        positions: (B, N, C), added to the keys; None for none.
        level_shapes: one D-tuple per level, their products sum to N.
        valid_ratios: (B, L, D), the valid part of each level per coordinate, in (0, 1]; None where all of it is.
        references: (B, N, D), the centre of each token's cell as a fraction of the valid part, float64 where a level is
            so long that float32 would not do; None where no part asks.
        extents: (B, D), each sample's size in cells of the input (pixels, clips); None where no part asks.
    """

    tokens: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None
    level_shapes: tuple[tuple[int, ...], ...] = ()
    valid_ratios: Tensor | None = None
    references: Tensor | None = None
    extents: Tensor | None = None

    def with_tokens(self, tokens: Tensor) -> Memory:
        return replace(self, tokens=tokens)

    def with_positions(self, positions: Tensor) -> Memory:
        return replace(self, positions=positions)


@dataclass(frozen=True)
class Queries:
    """What the decoder refines.

    Args:
        content: (B, Q, C).
        positions: (B, Q, C), fixed for all layers; None: each layer derives them from the anchors.
        anchors: (B, Q, A) in the parametrisation's own space (logits for boxes), or None.
        references: (B, Q, 2D), boxes to start from instead of the anchors, also such as reach beyond [0, 1].
        mask: (Q, Q), or what broadcasts to (B, H, Q, Q), True where query i may attend to query j; None: everywhere.
        supervisions: what was predicted to make them (two-stage proposals), to be judged too.
    """

    content: Tensor
    positions: Tensor | None = None
    anchors: Tensor | None = None
    references: Tensor | None = None
    mask: Tensor | None = None
    supervisions: tuple[Supervision, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """What one layer says.

    Args:
        logits: (B, Q, K).
        boxes: (B, Q, 2D), or whatever the head's own parametrisation predicts.
        quality: (B, Q), a logit, or None.
    """

    logits: Tensor
    boxes: Tensor
    quality: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """What is true.

    Args:
        labels: (B, M), class index of each target.
        boxes: (B, M, 2D).
        mask: (B, M), True where a target is real; samples without targets have an all-False row.
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Assignment:
    """Which query answers for which target, each (P,), ordered by sample, then by query."""

    sample: Tensor
    query: Tensor
    target: Tensor


LossTerm = Callable[[Predictions, Targets, Assignment, Tensor], Tensor]
"""A loss: (predictions, targets, assignment, count) -> scalar; most of the family divides by the count."""


@dataclass(frozen=True)
class Supervision:
    """One set of predictions to be judged, whoever assigned it.

    Args:
        name: what the loss terms are called by: "" for the last layer, "0", "1", ... for the ones before it.
        predictions: what was said.
        assignment: who answers for what; None: the criterion's own matcher decides.
        weight: multiplies every term.
        targets: what is true of these predictions; None: the batch's targets.
        count: scalar that the terms are divided by; None: the number of the batch's targets.
        class_agnostic: whether every target counts as class 0 (Deformable DETR's proposals).
        terms: name -> weight and loss term, where it is not judged by the criterion's own (dense heads).
        auxiliary: whether it is of an earlier layer, which a criterion may leave out.
        only: names of the loss terms that judge it; None: all of the criterion's.
    """

    name: str
    predictions: Predictions
    assignment: Assignment | None = None
    weight: float = 1.0
    targets: Targets | None = None
    count: Tensor | None = None
    class_agnostic: bool = False
    terms: Mapping[str, tuple[float, LossTerm]] | None = None
    auxiliary: bool = False
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Output:
    """What a detector says, layer by layer.

    Args:
        layers: predictions of each decoder layer, the last one last.
        hidden: (layers, B, Q, C), the normed states that the last predictions were made from.
        references: per layer, the boxes (B, Q, 2D) that it started from; empty where there are none.
        supervisions: further ones (proposals, denoising, one-to-many heads).
    """

    layers: tuple[Predictions, ...]
    hidden: Tensor
    references: tuple[Tensor, ...] = ()
    supervisions: tuple[Supervision, ...] = field(default=())

    @property
    def last(self) -> Predictions:
        return self.layers[-1]
