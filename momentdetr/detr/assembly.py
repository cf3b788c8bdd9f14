"""What the rows of `systems` are put together from: sizes, necks, heads and criteria."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from momentdetr.detr.assignment import (
    Cost,
    HungarianMatcher,
    focal_class_cost,
    giou_cost,
    l1_cost,
    softmax_class_cost,
)
from momentdetr.detr.decoder import Head
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.initialization import prior_bias, zero_last_layer
from momentdetr.detr.layers import Points, Stack
from momentdetr.detr.losses import Criterion, cross_entropy, focal, giou_loss, l1
from momentdetr.detr.mlp import MLP
from momentdetr.detr.neck import Neck
from momentdetr.detr.positions import LearnedPositions
from momentdetr.detr.quality_losses import iou_aware, matchability_aware, quality_focal
from momentdetr.detr.types import LossTerm


@dataclass(frozen=True)
class Task:
    """What a system is built for.

    Args:
        num_dims: D.
        channels: of the backbone's feature maps that are used, finest first.
        num_classes: K, without "no object".
    """

    num_dims: int
    channels: tuple[int, ...]
    num_classes: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a system; each row's defaults are its paper's.

    Args:
        width: C.
        num_heads: H.
        feed_forward: hidden size of the feed-forward networks.
        encoder_layers: of them.
        decoder_layers: of them.
        num_queries: Q.
        dropout: of the transformer.
        num_levels: L, of deformable systems.
        num_points: of deformable attention, per head and level.
        encoder_points: of the encoder's; None: as many.
        group_norm: groups of the norm behind the neck's projections.
    """

    width: int = 256
    num_heads: int = 8
    feed_forward: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_queries: int = 300
    dropout: float = 0.0
    num_levels: int = 4
    num_points: int = 4
    encoder_points: int | None = None
    group_norm: int = 32

    def encoder(self, **options: object) -> Stack:
        return self._stack(self.encoder_layers, options)

    def decoder(self, **options: object) -> Stack:
        return self._stack(self.decoder_layers, options)

    def points(self, task: Task) -> Points:
        return Points(task.num_dims, self.num_levels, self.num_points)

    def points_of_encoder(self, task: Task) -> Points:
        return replace(self.points(task), num_points=self.encoder_points or self.num_points)

    def _stack(self, num_layers: int, options: dict[str, object]) -> Stack:
        stack = Stack(self.width, self.num_heads, self.feed_forward, num_layers, self.dropout)
        return replace(stack, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Positions:
    """How cells of a feature map are told apart.

    Args:
        temperature: of the sines, one for all axes, or one per axis of the grid.
        offset: of the sines, in cells.
        learned: tables instead of sines.
    """

    temperature: float | tuple[float, ...] = 10000.0
    offset: float = 0.0
    learned: bool = False

    def table(self, task: Task, sizes: Sizes) -> nn.Module | None:
        return LearnedPositions(task.num_dims, sizes.width) if self.learned else None


def plain_neck(task: Task, sizes: Sizes, positions: Positions | None = None) -> Neck:
    """One level, projected without a norm."""
    positions = positions or Positions()
    return Neck(
        task.num_dims,
        task.channels[-1:],
        sizes.width,
        group_norm=0,
        level_embedding=False,
        temperature=positions.temperature,
        offset=positions.offset,
        positions=positions.table(task, sizes),
    )


def level_neck(task: Task, sizes: Sizes, positions: Positions, *, bias: bool = True) -> Neck:
    """Several levels, each projected and normed; mmdetection's projections have no bias."""
    return Neck(
        task.num_dims,
        task.channels[-sizes.num_levels :],
        sizes.width,
        num_levels=sizes.num_levels,
        group_norm=sizes.group_norm,
        temperature=positions.temperature,
        offset=positions.offset,
        positions=positions.table(task, sizes),
        bias=bias,
    )


def box_head(task: Task, sizes: Sizes) -> MLP:
    return MLP(sizes.width, sizes.width, sizes.width, 2 * task.num_dims)


def focal_head(task: Task, sizes: Sizes, *, wide: float = 0.0) -> Head:
    """Sigmoid classes that start rare, and boxes that start at their reference, with sizes at logit `wide`."""
    classes, boxes = nn.Linear(sizes.width, task.num_classes), box_head(task, sizes)
    prior_bias(classes)
    zero_last_layer(boxes)
    nn.init.constant_(boxes.layers[-1].bias[task.num_dims :], wide)  # type: ignore[index]
    return Head(classes, boxes)


def cloned(head: Head, count: int, *, shared_classes: bool = False, shared_boxes: bool = False) -> list[Head]:
    """A head for each layer; parts may stay one for all."""
    return [
        Head(
            head.classes if shared_classes else copy.deepcopy(head.classes),
            head.boxes if shared_boxes else copy.deepcopy(head.boxes),
        )
        for _ in range(count)
    ]


def unbias_sizes(head: Head, task: Task) -> None:
    """Deformable DETR's first layer starts from small boxes; the ones after it start from its boxes."""
    assert isinstance(head.boxes, MLP)
    nn.init.zeros_(head.boxes.layers[-1].bias[task.num_dims :])  # type: ignore[index]


def contrastive_denoising(task: Task, sizes: Sizes, *, label_rows: int | None = None) -> Denoising:
    """DINO's: groups of about a hundred positive queries, each with a negative one."""
    return Denoising(
        task.num_classes,
        sizes.width,
        groups=None,
        contrastive=True,
        label_noise=0.25,
        box_noise=1.0,
        indicator=False,
        label_rows=label_rows,
    )


def softmax_criterion(*, background: float = 0.1, class_weight: float = 1.0, **options: float) -> Criterion:
    """DETR's: softmax with "no object", weighted `background`; cost and loss weights 1 / 5 / 2."""
    terms: dict[str, LossTerm] = {"class": partial(cross_entropy, background_weight=background)}
    return _criterion(terms, softmax_class_cost, class_weight, eps=0.0, **{"class_cost": 1.0, **options})


def focal_criterion(
    *, class_weight: float, eps: float = 0.0, alpha: float = 0.25, cost_alpha: float = 0.25, **options: float
) -> Criterion:
    """Everyone else's: focal loss, matching cost 2 / 5 / 2, loss weights `class_weight` / 5 / 2."""
    terms: dict[str, LossTerm] = {"class": partial(focal, alpha=alpha)}
    return _criterion(terms, partial(focal_class_cost, alpha=cost_alpha), class_weight, eps=eps, **options)


QUALITY_LOSSES: dict[str, LossTerm] = {
    "quality_focal": quality_focal,
    "iou_aware": iou_aware,
    "matchability_aware": matchability_aware,
}


def quality_criterion(
    *, loss: str = "quality_focal", class_weight: float = 1.0, eps: float = 0.0, **options: float
) -> Criterion:
    """Co-DINO's, matching cost 2 / 5 / 2, loss weights 1 / 5 / 2; it fits every row with sigmoid classes.

    Args:
        loss: a name of `QUALITY_LOSSES`.
    """
    if loss not in QUALITY_LOSSES:
        raise ValueError(f"unknown quality-aware loss {loss!r}; known are {', '.join(QUALITY_LOSSES)}")
    return _criterion({"class": QUALITY_LOSSES[loss]}, focal_class_cost, class_weight, eps=eps, **options)


def _criterion(
    terms: Mapping[str, LossTerm],
    cost: Cost,
    class_weight: float,
    *,
    eps: float,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    class_cost: float = 2.0,
    l1_cost_weight: float = 5.0,
    giou_cost_weight: float = 2.0,
    auxiliary: float = True,
) -> Criterion:
    matcher = HungarianMatcher(
        {"class": cost, "l1": l1_cost, "giou": partial(giou_cost, eps=eps)},
        {"class": class_cost, "l1": l1_cost_weight, "giou": giou_cost_weight},
    )
    return Criterion(
        matcher=matcher,
        terms={**terms, "l1": l1, "giou": partial(giou_loss, eps=eps)},
        weights={"class": class_weight, "l1": l1_weight, "giou": giou_weight},
        auxiliary=bool(auxiliary),
    )
