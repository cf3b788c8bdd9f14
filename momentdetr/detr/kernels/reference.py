"""Deformable attention in plain torch, for any number of dimensions: slow, short, and what every kernel must equal.

A level of shape (..., N_y, N_x) has its first cell centred at 0. A reference r and an offset o meet at r * N - 0.5 + o
cells. r * N is split in float64 into a whole cell and a fraction before anything is rounded to float32, so a sequence
of 75,000 clips is sampled as exactly as one of 75. A point that is not finite, or a cell or more outside, counts as
zero and has no gradient of its own; values are expected to be finite.

Kernels have the two signatures of this file, and `references=None` stands for plain sampling in both: the offsets are
then locations, fractions of each level, and the logits are weights as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]


def forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    """Look at a few points a query, head and level; differentiable by torch.

    Args:
        value: (B, S, H, C), the levels one after another.
        shapes: a D-tuple a level, axes as torch stores them (rows before columns).
        references: (B, Q, L, D) points or (B, Q, L, 2D) boxes, fractions of each level, natural order (x before y);
            None for plain sampling.
        offsets: (B, Q, H, L, P, D), natural order: in cells around points, in 1/P halves of a box around boxes.
        logits: (B, Q, H, L, P), their softmax over L * P weighs the points.

    Returns:
        (B, Q, H, C), in the value's type.
    """
    real = torch.float64 if value.dtype == torch.float64 else torch.float32
    cell, rest = places(shapes, references, offsets, real)
    return gather(value, shapes, cell, rest, weigh(logits, real, references is None)).to(value.dtype)


def weigh(logits: Tensor, real: torch.dtype, plain: bool) -> Tensor:
    """Softmax over levels and points; plain weights stay as they are."""
    return logits.to(real) if plain else logits.to(real).flatten(-2).softmax(-1).view(logits.shape)


def places(shapes: Shapes, references: Tensor | None, offsets: Tensor, real: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole cells to count from (broadcast) and each point's distance from their middle (B, Q, H, L, P, D)."""
    sizes = natural_sizes(shapes, offsets.device)
    if references is None:
        return split(offsets.to(sizes.dtype) * sizes[:, None], real)
    num_dims, boxes = offsets.shape[-1], references.to(sizes.dtype)
    cell, rest = split(boxes[..., :num_dims] * sizes, real)
    reach = offsets.to(real)
    if boxes.shape[-1] > num_dims:
        half = boxes[..., num_dims:] * sizes * 0.5 / offsets.shape[4]
        reach = reach * half.to(real)[:, :, None, :, None]
    return cell[:, :, None, :, None], rest[:, :, None, :, None] + reach


def natural_sizes(shapes: Shapes, device: torch.device) -> Tensor:
    """Cells of each level along each coordinate, natural order: (L, D), of the type for exact places."""
    return torch.tensor([tuple(reversed(shape)) for shape in shapes], dtype=exact_type(device), device=device)


def exact_type(device: torch.device) -> torch.dtype:
    """Float64; float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def split(places: Tensor, real: torch.dtype) -> tuple[Tensor, Tensor]:
    """Places in cells, counted from the level's edge: a whole cell, and how far from its middle they are."""
    cell = places.detach().floor()
    return cell, (places - cell - 0.5).to(real)


def gather(value: Tensor, shapes: Shapes, cell: Tensor, rest: Tensor, weights: Tensor) -> Tensor:
    """Interpolate between the corners around cell + rest, both (B, Q, H, L, P, D), and sum over L and P."""
    lower = rest.detach().floor()
    above = rest - lower  # in [0, 1), towards the upper corner
    lower = cell + lower  # (B, Q, H, L, P, D)
    there = (lower.isfinite() & rest.isfinite()).all(-1)
    lower, above = lower.masked_fill(~there[..., None], -2), above.masked_fill(~there[..., None], 0)
    rows = value.transpose(1, 2)  # (B, H, S, C)
    start, total = 0, torch.zeros_like(weights[:, :, :, 0, :1]).expand(*weights.shape[:3], value.shape[-1])
    for level, shape in enumerate(shapes):
        for corner in itertools.product((0, 1), repeat=len(shape)):
            step = above.new_tensor(corner[::-1])  # natural order
            share = torch.where(step.bool(), above, 1 - above)[:, :, :, level].prod(-1)  # (B, Q, H, P)
            index = torch.zeros_like(share, dtype=torch.long)
            inside = torch.ones_like(index, dtype=torch.bool)
            for axis, size in enumerate(shape):
                place = lower[:, :, :, level, :, -1 - axis] + corner[axis]
                inside = inside & (place >= 0) & (place < size)
                index = index * size + place.clamp(0, size - 1).long()
            index = (start + index).transpose(1, 2).flatten(2)[..., None]  # (B, H, Q * P, 1)
            read = rows.gather(2, index.expand(-1, -1, -1, rows.shape[-1])).unflatten(2, (-1, share.shape[-1]))
            share = (share * inside * weights[:, :, :, level]).transpose(1, 2)[..., None]  # (B, H, Q, P, 1)
            total = total + (read.to(share.dtype) * share).sum(3).transpose(1, 2)
        start += math.prod(shape)
    return total


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of the value, the references, the offsets and the logits, each in its own type.

    Args:
        with_references: whether the references' gradient is wanted; without it, or without references, it is None.
    """
    inputs = [None if x is None else x.detach() for x in (value, references, offsets, logits)]
    wanted = [x.requires_grad_() for x in inputs if x is not None and (x is not inputs[1] or with_references)]
    with torch.enable_grad():
        output = forward(inputs[0], shapes, *inputs[1:])  # type: ignore[arg-type]
    grads = iter(torch.autograd.grad(output, wanted, grad_output, materialize_grads=True))
    found = [next(grads) if x is not None and x.requires_grad else None for x in inputs]
    return found[0], found[1], found[2], found[3]  # type: ignore[return-value]


def available() -> str:
    """Why this kernel cannot be used; empty: it can."""
    return ""


DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
