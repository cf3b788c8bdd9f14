"""What the operators accept, checked before a kernel gets to see a pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_CELLS = 2**30
"""Of all levels together: kernels count cells in 32 bits."""


def check(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> None:
    """Check the arguments of `deformable_attention`, or of `sample_points` where there are no references.

    Raises:
        ValueError: what does not fit, and what would.
    """
    names = ("offsets", "logits") if references is not None else ("locations", "weights")
    given = {"value": value, names[0]: offsets, names[1]: logits}
    if references is not None:
        given["references"] = references
    for name, tensor in given.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is of type {tensor.dtype}; expected one of {', '.join(map(str, FLOATS))}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}; move them to one device")
    if value.dim() != 4 or not value.shape[-1] or not value.shape[2]:
        raise ValueError(f"value is {_shape(value)}; expected (B, S, H, C) with at least one head and channel")
    _check_levels(value, shapes)
    batch, _, num_heads, _ = value.shape
    if offsets.dim() != 6 or (offsets.shape[0], *offsets.shape[2:4]) != (batch, num_heads, len(shapes)):
        expected = f"({batch}, Q, {num_heads}, {len(shapes)}, P, {len(shapes[0])})"
        raise ValueError(f"{names[0]} is {_shape(offsets)}; expected (B, Q, H, L, P, D) = {expected}")
    if offsets.shape[-1] != len(shapes[0]):
        raise ValueError(f"{names[0]} is {_shape(offsets)}, of {offsets.shape[-1]} coordinates; the levels have "
                         f"{len(shapes[0])}")  # fmt: skip
    if not offsets.shape[4]:
        raise ValueError(f"{names[0]} is {_shape(offsets)}: no points; expected at least one")
    if logits.shape != offsets.shape[:-1]:
        raise ValueError(f"{names[1]} is {_shape(logits)}; expected {_shape(offsets[..., 0])}, one for each point")
    if references is not None:
        _check_references(references, offsets)


def _check_levels(value: Tensor, shapes: Shapes) -> None:
    if not len(shapes):
        raise ValueError("there are no levels; expected at least one shape")
    if not len(shapes[0]) or any(len(shape) != len(shapes[0]) for shape in shapes):
        raise ValueError(f"levels {_listed(shapes)} differ in their number of axes, or have none")
    if any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"levels {_listed(shapes)}: every axis needs at least one cell")
    cells = sum(math.prod(shape) for shape in shapes)
    if cells != value.shape[1]:
        raise ValueError(f"levels {_listed(shapes)} have {cells} cells, value {_shape(value)} has {value.shape[1]}")
    if cells > MAX_CELLS:
        raise ValueError(f"levels have {cells} cells together; at most {MAX_CELLS} can be sampled")


def _check_references(references: Tensor, offsets: Tensor) -> None:
    batch, queries, _, levels, _, dims = offsets.shape
    if references.dim() != 4 or references.shape[:3] != (batch, queries, levels):
        expected = f"({batch}, {queries}, {levels}, {dims} or {2 * dims})"
        raise ValueError(f"references is {_shape(references)}; expected (B, Q, L, D or 2D) = {expected}")
    if references.shape[-1] not in (dims, 2 * dims):
        raise ValueError(
            f"references is {_shape(references)}; expected {dims} (points) or {2 * dims} (boxes) at the end"
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _listed(shapes: Shapes) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
