"""Denoising groups: noised targets that the decoder learns to restore beside its matching queries.

DN-DETR (Li et al., 2022) flips labels and moves boxes; DINO (Zhang et al., 2023) adds boxes noised so much that they
should be refused. Noise is drawn from a generator, or given, so that runs can be repeated and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import to_center_size, to_corners
from momentdetr.detr.losses import num_boxes
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.types import Assignment, Output, Predictions, Queries, Supervision, Targets


@dataclass(frozen=True)
class Draws:
    """The random numbers of one set of groups, R = rows (targets times groups, twice that for contrastive groups).

    Args:
        flip: (R,) uniform in [0, 1); a label flips where it is below the rate.
        labels: (F,) class indices for the flipped rows, in order.
        boxes: (R, 2D), uniform in [0, 1).
        signs: (R, 2D) of -1 and 1; None where noise is centred (DN-DETR).
    """

    flip: Tensor
    labels: Tensor
    boxes: Tensor
    signs: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """What is noised, and where it goes.

    Args:
        sample: (R,) whose target each row is.
        slot: (R,) its place among the P denoising queries of its sample.
        target: (R,) which target it is.
        near: (R,) whether its box is noised little, and to be restored.
        named: (R,) whether its class is to be restored; others should be refused.
        size: slots that see each other: one group.
        groups: how many.
    """

    sample: Tensor
    slot: Tensor
    target: Tensor
    near: Tensor
    named: Tensor
    size: int
    groups: int

    @property
    def total(self) -> int:
        """P."""
        return self.size * self.groups


@dataclass(frozen=True)
class Group:
    """Denoising queries and what is needed to judge them.

    Args:
        queries: to be put before the matching queries: content (B, P, C), anchors (B, P, 2D); P = groups x longest.
        rows: whose targets they are.
    """

    queries: Queries
    rows: Rows


class Denoising(nn.Module):
    """Make groups of noised targets.

    Args:
        num_classes: K; the label embedding has one more row, which stands for "unknown" (DN-DETR's matching queries).
        width: C.
        groups: how many times the targets are repeated (DN-DETR: 5), or None: as many as `budget` allows; 0: denoising
            is off, and matching queries are marked as ever.
        budget: about how many queries to make in all (DINO: 100 positive ones); used where `groups` is None; 0: off.
        contrastive: noise in two rings, the outer one to be refused (DINO).
        label_noise: rate of flipped labels (DN-DETR .2, DINO .25: half of its published .5).
        box_noise: how far boxes move, in units of their size.
        outer: how much farther the outer ring of contrastive groups lies, in units of the inner one's reach (DINO 1).
        indicator: the last channel of content tells denoising (1) from matching (0) queries (DN-DETR).
        unknown: whether matching queries that fill all channels are added to the "unknown" label and marked.
        label_rows: rows of the label embedding; None: K + 1.
        weight: of the groups' losses.
        parametrization: of anchors.

    Raises:
        ValueError: `groups` or `budget` is negative.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        *,
        groups: int | None = 5,
        budget: int = 100,
        contrastive: bool = False,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
        outer: float = 1.0,
        indicator: bool = True,
        unknown: bool = True,
        label_rows: int | None = None,
        weight: float = 1.0,
        parametrization: CenterSize | None = None,
    ) -> None:
        super().__init__()
        if (groups or 0) < 0 or budget < 0:
            raise ValueError(f"denoising with groups={groups} and budget={budget}; expected 0 (off) or more")
        self.num_classes, self.groups, self.budget = num_classes, groups, budget
        self.contrastive, self.label_noise, self.box_noise = contrastive, label_noise, box_noise
        self.indicator, self.unknown, self.width, self.weight = indicator, unknown, width, weight
        self.outer = outer
        self.labels = nn.Embedding(num_classes + 1 if label_rows is None else label_rows, width - indicator)
        self.parametrization = CenterSize(1e-3) if parametrization is None else parametrization

    def num_groups(self, longest: int) -> int:
        """Repeats of the targets, given the most targets of a sample."""
        if self.groups is not None:
            return self.groups
        return max(1, self.budget // max(longest, 1)) if self.budget else 0

    def draw(self, rows: int, box_size: int, like: Tensor, generator: torch.Generator | None = None) -> Draws:
        """Fresh noise for `rows` rows of boxes with `box_size` numbers."""
        flip = torch.rand(rows, generator=generator, device=like.device)
        flipped = int((flip < self.label_noise).sum())
        labels = torch.randint(0, self.num_classes, (flipped,), generator=generator, device=like.device)
        boxes = torch.rand(rows, box_size, generator=generator, device=like.device)
        if not self.contrastive:
            return Draws(flip, labels, boxes)
        signs = torch.randint(0, 2, (rows, box_size), generator=generator, device=like.device) * 2.0 - 1.0
        return Draws(flip, labels, boxes, signs)

    def forward(
        self,
        targets: Targets,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
    ) -> Group | None:
        """Noised copies of the targets; None where a batch has none, or denoising is off."""
        rows = self.rows(targets)
        if rows is None or rows.groups == 0:
            return None
        labels, boxes = targets.labels[rows.sample, rows.target], targets.boxes[rows.sample, rows.target]
        if draws is None:
            draws = self.draw(len(rows.sample), boxes.shape[-1], boxes, generator)
        queries = self._queries(self._flip(labels, rows, draws), self._move(boxes, rows, draws), rows, targets)
        return Group(queries, rows)

    def rows(self, targets: Targets) -> Rows | None:
        """Group by group, ring by ring, the targets of all samples one after another; None where there are none."""
        sample, target = targets.mask.nonzero(as_tuple=True)
        longest = _longest(targets)
        if longest == 0:
            return None
        rings, groups = 2 if self.contrastive else 1, self.num_groups(longest)
        # Place of each target among its sample's, so that masks with holes work too.
        place = (targets.mask.cumsum(1) - 1)[sample, target]
        ring = torch.arange(groups * rings, device=sample.device).repeat_interleave(len(sample))  # (R,)
        sample, target, place = (values.repeat(groups * rings) for values in (sample, target, place))
        near = ring % rings == 0
        return Rows(sample, ring * longest + place, target, near, near, longest * rings, groups)

    def _flip(self, labels: Tensor, rows: Rows, draws: Draws) -> Tensor:
        chosen = draws.flip < self.label_noise
        labels = labels.clone()
        labels[chosen] = draws.labels
        return labels

    def _move(self, boxes: Tensor, rows: Rows, draws: Draws) -> Tensor:
        if self.box_noise == 0:
            return boxes
        sizes = boxes.chunk(2, -1)[1]
        if draws.signs is None:
            reach = torch.cat([sizes / 2, sizes], -1)
            return (boxes + (draws.boxes * 2 - 1) * reach * self.box_noise).clamp(0, 1)
        # In DINO the outer ring lies one to two half sizes away, the inner one nearer than one.
        part = (draws.boxes + self.outer * (~rows.near)[:, None].to(boxes.dtype)) * draws.signs
        corners = to_corners(boxes) + part * torch.cat([sizes / 2, sizes / 2], -1) * self.box_noise
        return to_center_size(corners.clamp(0, 1))

    def _queries(self, labels: Tensor, boxes: Tensor, rows: Rows, targets: Targets) -> Queries:
        embedded, batch = self.labels(labels), len(targets.mask)
        if self.indicator:
            embedded = torch.cat([embedded, embedded.new_ones(len(embedded), 1)], -1)
        content = embedded.new_zeros(batch, rows.total, embedded.shape[-1])
        content[rows.sample, rows.slot] = embedded
        logits = self.parametrization.encode(boxes)
        anchors = logits.new_zeros(batch, rows.total, boxes.shape[-1])
        anchors[rows.sample, rows.slot] = logits
        return Queries(content, anchors=anchors)

    def matching_content(self, queries: Queries) -> Queries:
        """Mark matching queries by the indicator's 0.

        Content that leaves room for it (C - 1 channels) is kept; other content is added to the "unknown" label, or
        left without a mark.
        """
        content = queries.content
        if not self.indicator or not (self.unknown or content.shape[-1] < self.width):
            return queries
        if content.shape[-1] == self.width - 1:
            return replace(queries, content=torch.cat([content, content.new_zeros(*content.shape[:2], 1)], -1))
        unknown = self.labels.weight[self.num_classes].expand(*content.shape[:2], -1)
        marked = torch.cat([unknown, unknown.new_zeros(*content.shape[:2], 1)], -1)
        return replace(queries, content=content + marked)

    def join(self, group: Group, queries: Queries) -> Queries:
        """Put the groups before the matching queries; who sees whom follows from what may be known."""
        total, count = group.queries.content.shape[1], queries.content.shape[1]
        assert group.queries.anchors is not None
        assert queries.anchors is not None
        block = torch.arange(total + count, device=queries.content.device) // group.rows.size
        block[total:] = -1
        # A group sees itself and the matching queries; those see only each other.
        mask = (block[:, None] == block[None, :]) | ((block[:, None] >= 0) & (block[None, :] == -1))
        return replace(
            queries,
            content=torch.cat([group.queries.content.to(queries.content.dtype), queries.content], 1),
            anchors=torch.cat([group.queries.anchors, queries.anchors], 1),
            mask=mask,
        )

    def split(self, output: Output, group: Group, targets: Targets) -> Output:
        """Take the groups' predictions out of an output, and add their supervisions."""
        total = group.rows.total
        names = ["denoising", *(f"denoising_{index}" for index in range(len(output.layers) - 1))]
        supervisions = [
            replace(supervision, auxiliary=name != "denoising", weight=self.weight)
            for name, said in zip(names, (output.last, *output.layers[:-1]), strict=True)
            for supervision in self.judge(name, _part(said, slice(0, total)), group.rows, targets)
        ]
        return Output(
            layers=tuple(_part(said, slice(total, None)) for said in output.layers),
            hidden=output.hidden[:, :, total:],
            references=tuple(reference[:, total:] for reference in output.references),
            supervisions=(*output.supervisions, *supervisions),
        )

    def judge(self, name: str, said: Predictions, rows: Rows, targets: Targets) -> tuple[Supervision, ...]:
        """What the groups' predictions (B, P, .) should have been."""
        if not self.contrastive:
            # DN-DETR judges the noised rows only, and divides by their own number, not by all processes'.
            flat, true = _flat(said, rows, targets)
            count = said.boxes.new_tensor(float(len(rows.sample)))
            return (Supervision(name, flat, _answers(rows.near), targets=true, count=count),)
        # DINO judges every slot: those that are not a near row are background.
        near = rows.near
        assignment = Assignment(rows.sample[near], rows.slot[near], rows.target[near])
        return (Supervision(name, said, assignment, count=num_boxes(targets) * rows.groups),)


class PairedDenoising(Denoising):
    """DN-DETR's DINO-like variant: each sample's targets are followed by copies that should be refused.

    The official code takes the first half of a group's rows for the near ones, all samples one after another. With
    more than one sample these are not the rows that are followed by copies: the halves decide how far a box moves,
    what label it starts with and whether it is judged, but the copies are what should be refused.
    """

    def __init__(self, num_classes: int, width: int, **options: Any) -> None:
        super().__init__(num_classes, width, contrastive=True, **options)

    def rows(self, targets: Targets) -> Rows | None:
        longest = 2 * _longest(targets)
        if longest == 0:
            return None
        groups = self.num_groups(longest)
        parts = []
        for index, mask in enumerate(targets.mask):
            own = mask.nonzero().flatten()
            order = torch.arange(2 * len(own), device=mask.device)
            parts.append((torch.full_like(order, index), own.repeat(2), order, order < len(own)))
        sample, target, place, named = (torch.cat(columns) for columns in zip(*parts, strict=True))
        near = torch.arange(len(sample), device=sample.device) < len(sample) // 2
        group = torch.arange(groups, device=sample.device).repeat_interleave(len(sample))
        sample, target, place, near, named = (x.repeat(groups) for x in (sample, target, place, near, named))
        return Rows(sample, group * longest + place, target, near, named, longest, groups)

    def _flip(self, labels: Tensor, rows: Rows, draws: Draws) -> Tensor:
        flipped = super()._flip(labels.masked_fill(~rows.named, self.num_classes), rows, draws)
        return flipped.masked_fill(~rows.near, self.num_classes)

    def judge(self, name: str, said: Predictions, rows: Rows, targets: Targets) -> tuple[Supervision, ...]:
        flat, true = _flat(said, rows, targets)
        count = said.boxes.new_tensor(float(len(rows.sample) // 2))
        judged = ((rows.named, ("class",)), (rows.near, ("l1", "giou")))
        return tuple(
            Supervision(name, flat, _answers(chosen), targets=true, count=count, only=only) for chosen, only in judged
        )


def _longest(targets: Targets) -> int:
    """The most targets of a sample."""
    return int(targets.mask.sum(1).max()) if targets.mask.numel() else 0


def _flat(said: Predictions, rows: Rows, targets: Targets) -> tuple[Predictions, Targets]:
    """The rows' predictions and targets, as of one sample."""
    labels, boxes = (values[rows.sample, rows.target][None] for values in (targets.labels, targets.boxes))
    own = Targets(labels, boxes, torch.ones_like(labels, dtype=torch.bool))
    return Predictions(said.logits[rows.sample, rows.slot][None], said.boxes[rows.sample, rows.slot][None]), own


def _answers(chosen: Tensor) -> Assignment:
    """Of one sample, every chosen row answers for its own target."""
    order = chosen.nonzero().flatten()
    return Assignment(torch.zeros_like(order), order, order)


def _part(said: Predictions, slots: slice) -> Predictions:
    quality = None if said.quality is None else said.quality[:, slots]
    return Predictions(said.logits[:, slots], said.boxes[:, slots], quality)


def touch(modules: Sequence[nn.Module], output: Output) -> Output:
    """Let unused parameters take part with weight zero, so that every process sees a gradient for each of them."""
    nothing = sum((p.sum() for module in modules for p in module.parameters()), output.hidden.new_zeros(())) * 0
    last = output.last
    return replace(output, layers=(*output.layers[:-1], replace(last, logits=last.logits + nothing)))
