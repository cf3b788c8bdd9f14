"""In which order the official code took its proposals, where float32 does not say.

A two-stage model ranks tokens by score. Where two scores differ by less than rounding, the official run may have taken
them the other way round, and then its queries, which are numbered by rank, are not ours. Full-size records hold the
first queries only, but every query's content depends on its number and every query looks at all others: exchanging two
neighbours moves what the first ones say, each exchange in its own direction. Least squares tells which took place; the
comparison of the model's answer for that order is as strict as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from parity.systems.image_hooks import Watch
from torch import Tensor

from detection.model import ImageDetector
from momentdetr.detr.types import Memory

OPEN = 32 * torch.finfo(torch.float32).eps
"""Scores nearer than this, relative to the largest, may stand either way: our float32 run of DINO's five scales is up to
a quarter as far from our float64 run, and the official one has its own rounding."""
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
    memory: Memory = seen.result("detr.encoder")
    values, order = seen.ranked()
    logits = seen.take(seen.proposals.logits)
    return torch.stack(
        [
            _settle(model, _one(memory, index), order[index], _open(values[index], logits[index]), theirs)
            for index, theirs in enumerate(recorded["pred_boxes"])
        ]
    )


def _settle(model: ImageDetector, memory: Memory, order: Tensor, ranks: list[int], theirs: Tensor) -> Tensor:
    """The order (Q,) of one sample, with those ranks exchanged with the next that explain theirs (q, 4)."""
    detr = model.detector.detr

    def say(order: Tensor) -> Tensor:
        said = detr.decoder(detr.queries(memory, order[None]), memory).last.boxes
        return said[0, : len(theirs)].flatten().double()

    ours = say(order)
    missing = theirs.flatten() - ours
    if missing.abs().max() < EQUAL or not ranks:
        return order
    moves = torch.stack([say(_exchanged(order, rank)) - ours for rank in ranks])
    shares = torch.linalg.lstsq(moves.T, missing[:, None]).solution[:, 0]
    for rank, share in zip(ranks, shares.tolist(), strict=True):
        order = _exchanged(order, rank) if share > 0.5 else order
    return order


def _exchanged(order: Tensor, rank: int) -> Tensor:
    order = order.clone()
    order[[rank, rank + 1]] = order[[rank + 1, rank]]
    return order


def _open(values: Tensor, logits: Tensor) -> list[int]:
    """Ranks (of Q) whose scores differ from the next by less than rounding, though the tokens (Q, K) do differ."""
    near = values[:-1] - values[1:] < OPEN * values.abs().max()
    return (near & (logits[:-1] != logits[1:]).any(-1)).nonzero().flatten().tolist()


def _one(memory: Memory, index: int) -> Memory:
    """One sample's part of a memory."""
    parts = {field.name: getattr(memory, field.name) for field in fields(memory)}
    return replace(memory, **{k: v[index : index + 1] for k, v in parts.items() if torch.is_tensor(v) and len(v) > 1})
