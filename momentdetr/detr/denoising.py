"""Denoising groups: noised targets that the decoder learns to restore beside its matching queries.

DN-DETR (Li et al., 2022) flips labels and moves boxes; DINO (Zhang et al., 2023) adds boxes noised so much that they
should be refused. Noise is drawn from a generator, or given, so that runs can be repeated and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
class Group:
    """Denoising queries and what is needed to judge them.

    Args:
        queries: to be put before the matching queries: content (B, P, C), anchors (B, P, 2D); P = groups x longest.
        sample: (R,) whose target each row is.
        slot: (R,) its place among the P.
        target: (R,) which target it is.
        positive: (R,) False for rows that should be refused.
        size: slots that see each other: one group.
    """

    queries: Queries
    sample: Tensor
    slot: Tensor
    target: Tensor
    positive: Tensor
    size: int


class Denoising(nn.Module):
    """Make groups of noised targets.

    Args:
        num_classes: K; the label embedding has one more row, which stands for "unknown" (DN-DETR's matching queries).
        width: C.
        groups: how many times the targets are repeated (DN-DETR: 5), or None: as many as `budget` allows.
        budget: about how many queries to make in all (DINO: 100 positive ones); used where `groups` is None.
        contrastive: noise in two rings, the outer one to be refused (DINO).
        label_noise: rate of flipped labels (DN-DETR .2, DINO .25: half of its published .5).
        box_noise: how far boxes move, in units of their size.
        indicator: the last channel of content tells denoising (1) from matching (0) queries (DN-DETR).
        label_rows: rows of the label embedding; None: K + 1.
        parametrization: of anchors.
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
        indicator: bool = True,
        label_rows: int | None = None,
        parametrization: CenterSize | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.groups, self.budget = num_classes, groups, budget
        self.contrastive, self.label_noise, self.box_noise = contrastive, label_noise, box_noise
        self.indicator, self.width = indicator, width
        self.labels = nn.Embedding(num_classes + 1 if label_rows is None else label_rows, width - indicator)
        self.parametrization = CenterSize(1e-3) if parametrization is None else parametrization

    def num_groups(self, longest: int) -> int:
        """Repeats of the targets, given the most targets of a sample."""
        if self.groups is not None:
            return self.groups
        return max(1, self.budget // max(longest, 1))

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
        """Noised copies of the targets; None where a batch has none."""
        sample, target = targets.mask.nonzero(as_tuple=True)
        longest = int(targets.mask.sum(1).max()) if len(targets.mask) else 0
        if longest == 0:
            return None
        rings = 2 if self.contrastive else 1
        repeats = self.num_groups(longest) * rings
        # Place of each target among its sample's, so that masks with holes work too.
        place = (targets.mask.cumsum(1) - 1)[sample, target]
        block = torch.arange(repeats, device=sample.device).repeat_interleave(len(sample))  # (R,)
        sample, target, place = sample.repeat(repeats), target.repeat(repeats), place.repeat(repeats)
        slot = block * longest + place
        positive = block % rings == 0
        labels, boxes = targets.labels[sample, target], targets.boxes[sample, target]
        if draws is None:
            draws = self.draw(len(sample), boxes.shape[-1], boxes, generator)
        queries = self._queries(
            self._flip(labels, draws),
            self._move(boxes, positive, draws),
            sample,
            slot,
            len(targets.mask),
            repeats * longest,
        )
        return Group(queries, sample, slot, target, positive, longest * rings)

    def _flip(self, labels: Tensor, draws: Draws) -> Tensor:
        chosen = draws.flip < self.label_noise
        labels = labels.clone()
        labels[chosen] = draws.labels
        return labels

    def _move(self, boxes: Tensor, positive: Tensor, draws: Draws) -> Tensor:
        sizes = boxes.chunk(2, -1)[1]
        if draws.signs is None:
            reach = torch.cat([sizes / 2, sizes], -1)
            return (boxes + (draws.boxes * 2 - 1) * reach * self.box_noise).clamp(0, 1)
        # The outer ring lies one to two half sizes away, the inner one nearer than one.
        part = (draws.boxes + (~positive)[:, None].to(boxes.dtype)) * draws.signs
        corners = to_corners(boxes) + part * torch.cat([sizes / 2, sizes / 2], -1) * self.box_noise
        return to_center_size(corners.clamp(0, 1))

    def _queries(self, labels: Tensor, boxes: Tensor, sample: Tensor, slot: Tensor, batch: int, total: int) -> Queries:
        rows = self.labels(labels)
        if self.indicator:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], -1)
        content = rows.new_zeros(batch, total, rows.shape[-1])
        content[sample, slot] = rows
        logits = self.parametrization.encode(boxes)
        anchors = logits.new_zeros(batch, total, boxes.shape[-1])
        anchors[sample, slot] = logits
        return Queries(content, anchors=anchors)

    def matching_content(self, queries: Queries) -> Queries:
        """Mark matching queries by the indicator's 0.

        Content that leaves room for it (C - 1 channels) is kept; other content is added to the "unknown" label.
        """
        if not self.indicator:
            return queries
        content = queries.content
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
        block = torch.arange(total + count, device=queries.content.device) // group.size
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
        total = group.queries.content.shape[1]
        judge = self._contrastive if self.contrastive else self._restored
        names = [*map(str, range(len(output.layers) - 1)), ""]
        supervisions = [
            judge("denoising" + (f"_{name}" if name else ""), _rows(said, slice(0, total)), group, targets)
            for name, said in zip(names, output.layers, strict=True)
        ]
        return Output(
            layers=tuple(_rows(said, slice(total, None)) for said in output.layers),
            hidden=output.hidden[:, :, total:],
            references=tuple(reference[:, total:] for reference in output.references),
            supervisions=(*output.supervisions, *supervisions),
        )

    def _restored(self, name: str, said: Predictions, group: Group, targets: Targets) -> Supervision:
        """DN-DETR judges the noised rows only, and divides by their own number, not by all processes'."""
        rows = group.sample, group.slot
        flat = Predictions(said.logits[rows][None], said.boxes[rows][None])
        order = torch.arange(len(group.sample), device=group.sample.device)
        true = group.sample, group.target
        own = Targets(
            targets.labels[true][None], targets.boxes[true][None], torch.ones_like(order, dtype=torch.bool)[None]
        )
        return Supervision(
            name,
            flat,
            Assignment(torch.zeros_like(order), order, order),
            targets=own,
            count=said.boxes.new_tensor(float(len(order))),
        )

    def _contrastive(self, name: str, said: Predictions, group: Group, targets: Targets) -> Supervision:
        """DINO judges every slot: those that are not a positive row are background."""
        keep = group.positive
        assignment = Assignment(group.sample[keep], group.slot[keep], group.target[keep])
        repeats = group.queries.content.shape[1] // group.size
        return Supervision(name, said, assignment, count=num_boxes(targets) * repeats)


def _rows(said: Predictions, rows: slice) -> Predictions:
    quality = None if said.quality is None else said.quality[:, rows]
    return Predictions(said.logits[:, rows], said.boxes[:, rows], quality)


def touch(modules: Sequence[nn.Module], output: Output) -> Output:
    """Let unused parameters take part with weight zero, so that every process sees a gradient for each of them."""
    nothing = sum((p.sum() for module in modules for p in module.parameters()), output.hidden.new_zeros(())) * 0
    last = output.last
    return replace(output, layers=(*output.layers[:-1], replace(last, logits=last.logits + nothing)))
