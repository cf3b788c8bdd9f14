"""Assigners of dense heads: which target each prior (anchor, proposal) answers for; a target may have many.

Both take one sample and return an index per prior, which keeps apart what must be refused (BACKGROUND) and what is not
judged at all (IGNORED); `as_assignment` makes the family's `Assignment` of a batch of them. `sample_rows` picks some
where there are too many to train on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentdetr.detr.boxes import at_least_float32, iou, to_center_size, to_corners
from momentdetr.detr.types import Assignment, Targets

BACKGROUND, IGNORED = -1, -2

Shuffle = Callable[[int], Tensor]
"""How heads choose at random: a number n -> a permutation of range(n)."""


@dataclass(frozen=True)
class Candidates:
    """Boxes that a head trained on, for the decoder to borrow.

    Args:
        corners: (B, R, 2D) in input cells.
        target: (B, R), the target that each answers for, or BACKGROUND.
        features: (B, R, C).
    """

    corners: Tensor
    target: Tensor
    features: Tensor


@torch.no_grad()
def max_iou(
    priors: Tensor, targets: Tensor, *, positive: float, negative: float, rescue: float | None = None
) -> Tensor:
    """Each prior answers for the target that it overlaps most (Ren et al., 2015).

    Args:
        priors: (N, 2D) corners.
        targets: (M, 2D) corners.
        positive: least IoU of a prior that answers for its best target.
        negative: priors below it are background; those between are ignored.
        rescue: a target's best priors answer for it whatever they answered for, if their IoU is at least this; later
            targets win. None: never.

    Returns:
        (N,) index of a target, BACKGROUND or IGNORED.
    """
    index = torch.full((len(priors),), BACKGROUND, dtype=torch.long, device=priors.device)
    if not len(targets) or not len(priors):
        return index
    overlaps = iou(priors[:, None], targets[None])[0]  # (N, M)
    best, target = overlaps.max(1)
    index[best >= negative] = IGNORED
    index = torch.where(best >= positive, target, index)
    if rescue is not None:
        most = overlaps.max(0).values  # (M,)
        chosen = (overlaps == most) & (most >= rescue)
        last = len(targets) - 1 - chosen.flip(1).int().argmax(1)
        index = torch.where(chosen.any(1), last, index)
    return index


@torch.no_grad()
def atss(
    priors: Tensor, per_level: Sequence[int], targets: Tensor, *, nearest: int = 9, margin: float = 0.01
) -> Tensor:
    """Adaptive training sample selection (Zhang et al., 2020).

    Candidates for a target are the priors nearest to its centre on every level; those answer for it whose IoU reaches
    the candidates' mean plus standard deviation and whose centre lies inside the target. A prior that several targets
    want answers for the one that it overlaps most.

    Args:
        priors: (N, 2D) corners, level by level.
        per_level: how many priors each level has.
        targets: (M, 2D) corners.
        nearest: candidates per target and level.
        margin: how far inside a prior's centre must lie.

    Returns:
        (N,) index of a target or BACKGROUND.
    """
    background = torch.full((len(priors),), BACKGROUND, dtype=torch.long, device=priors.device)
    if not len(targets) or not len(priors):
        return background
    overlaps = iou(priors[:, None], targets[None])[0]  # (N, M)
    centers = to_center_size(priors).chunk(2, -1)[0]
    offsets = centers[:, None] - to_center_size(targets).chunk(2, -1)[0]
    distances = offsets.pow(2).sum(-1).sqrt()  # (N, M)
    starts = torch.tensor([0, *per_level]).cumsum(0).tolist()
    candidates = torch.cat(
        [
            level.topk(min(nearest, len(level)), dim=0, largest=False).indices + start
            for level, start in zip(distances.split(list(per_level)), starts, strict=False)
        ]
    )  # (L * nearest, M)
    wanted = overlaps.gather(0, candidates)
    spread = wanted.std(0) if len(wanted) > 1 else torch.zeros_like(wanted[0])
    good = torch.zeros_like(overlaps, dtype=torch.bool).scatter(0, candidates, wanted >= wanted.mean(0) + spread)
    lower, upper = targets.chunk(2, -1)
    edges = torch.cat([centers[:, None] - lower, upper - centers[:, None]], -1)  # (N, M, 2D)
    good &= edges.amin(-1) > margin
    best, target = overlaps.masked_fill(~good, -torch.inf).max(1)
    return torch.where(best > -torch.inf, target, background)


def as_assignment(indices: Sequence[Tensor]) -> Assignment:
    """Per-prior indices of each sample (N,) to pairs; background and ignored priors answer for nothing."""
    rows = [(index >= 0).nonzero().flatten() for index in indices]
    sample = torch.cat([torch.full_like(row, i) for i, row in enumerate(rows)])
    return Assignment(sample, torch.cat(rows), torch.cat([i[row] for i, row in zip(indices, rows, strict=True)]))


def target_corners(targets: Targets, extents: Tensor, sample: int) -> tuple[Tensor, Tensor]:
    """One sample's targets (M, 2D) as corners in input cells, and where they stand among the padded ones (M,)."""
    place = targets.mask[sample].nonzero().flatten()
    return to_corners(at_least_float32(targets.boxes[sample, place])) * extents[sample].repeat(2), place


def choose(rows: Tensor, count: int, shuffle: Shuffle) -> Tensor:
    """At most `count` of the rows (n,), at random, in order."""
    if len(rows) <= count:
        return rows
    return rows[shuffle(len(rows)).to(rows.device)[:count]].sort().values


def sample_rows(target: Tensor, number: int, share: float, shuffle: Shuffle) -> tuple[Tensor, Tensor]:
    """Rows to train on: positives up to a share, the rest background (Ren et al., 2015); both in order."""
    positive = choose((target >= 0).nonzero().flatten(), int(number * share), shuffle)
    negative = choose((target == BACKGROUND).nonzero().flatten(), number - len(positive), shuffle)
    return positive, negative
