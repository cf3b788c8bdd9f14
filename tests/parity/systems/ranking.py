"""In which order the official code took its proposals, where float32 does not say.

A two-stage model ranks tokens by score. Where two scores differ by less than rounding, the official run may have taken
them the other way round, and then its queries, which are numbered by rank, are not ours. Full-size records hold the
first queries only, so the order of the others must be found: by trying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from parity.systems.image_hooks import Watch
from torch import Tensor

from detection.model import ImageDetector

OPEN = 32 * torch.finfo(torch.float32).eps
"""Scores nearer than this, relative to the largest, may stand either way: our float32 run of DINO's five scales is up to
half as far from our float64 run, and the official one has its own rounding."""
EQUAL = 1e-5


def order_of(model: ImageDetector, images: Tensor, mask: Tensor, recorded: Mapping[str, Tensor]) -> Tensor | None:
    """Tokens (B, Q) in the order that explains what is recorded; None: the model's own order, or it ranks nothing.

    Args:
        recorded: "pred_boxes" (B, q, 4), of the first q queries; empty: nothing to go by.
    """
    if not recorded:
        return None
    with Watch(model) as seen:
        model(images, mask)
    if seen.proposals is None:
        return None
    theirs, detr = recorded["pred_boxes"], model.detector.detr
    memory = seen.result("detr.encoder")

    def gap(order: Tensor) -> Tensor:
        boxes = detr.decoder(detr.queries(memory, order), memory).last.boxes
        return (boxes[:, : theirs.shape[1]] - theirs).flatten(1).norm(dim=1)

    values, order = seen.ranked()
    nearest = gap(order)
    for sample, rank in _open(values):
        if nearest[sample] < EQUAL:
            continue
        tried = order.clone()
        tried[sample, rank], tried[sample, rank + 1] = order[sample, rank + 1], order[sample, rank]
        reached = gap(tried)
        if reached[sample] < nearest[sample]:
            order, nearest = tried, reached
    return order


def _open(values: Tensor) -> Iterator[tuple[int, int]]:
    """Sample and rank of the scores that differ from the next by less than rounding, but do differ."""
    gaps = values[:, :-1] - values[:, 1:]
    undecided = (gaps > 0) & (gaps < OPEN * values.abs().max())
    yield from ((int(sample), int(rank)) for sample, rank in undecided.nonzero())
