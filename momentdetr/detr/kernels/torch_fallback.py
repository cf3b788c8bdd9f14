"""Deformable attention where nothing can be compiled: torch alone, in chunks of queries so that memory stays small.

Forward, every query and head is a bag of rows of one table, which `embedding_bag` sums without writing the samples out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.kernels.reference import natural_sizes, places, weigh

DEVICES = ("cpu", "cuda", "mps", "xpu")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

FORWARD_QUERIES, BACKWARD_QUERIES = 1024, 128
"""Queries in a chunk: of 64 corners a head forward, of 64 rows a head backward."""

Shapes = Sequence[Sequence[int]]


def available() -> str:
    """Why this kernel cannot be used; empty: it can."""
    return ""


@dataclass(frozen=True)
class _Corners:
    """The corners around the points of a chunk of queries.

    Args:
        rows: (B, q, H, L, P, 2^D) in a table (B * S * H, C).
        shares: (B, q, H, L, P, 2^D) of the point's value; 0 outside.
        slopes: for each coordinate, how the shares change with the place in cells, as the shares.
    """

    rows: Tensor
    shares: Tensor
    slopes: tuple[Tensor, ...]


def _corners(value: Tensor, shapes: Shapes, cell: Tensor, rest: Tensor) -> _Corners:
    batch, cells, heads, _ = value.shape
    sizes = natural_sizes(shapes, value.device)[:, None]  # (L, 1, D)
    whole = rest.floor()
    above = rest - whole
    whole = cell + whole
    finite = (rest.isfinite() & whole.isfinite()).all(-1, keepdim=True)
    whole, above = whole.masked_fill(~finite, -2), above.masked_fill(~finite, 0)
    ends = []  # of each coordinate: (places, weights, slopes) of the lower and the upper end
    for step in (0, 1):
        place = whole + step
        inside = ((place >= 0) & (place < sizes)).to(rest.dtype)
        weight = above if step else 1 - above
        ends.append((place.clamp(min=0).minimum(sizes - 1).long(), weight * inside, inside * (2 * step - 1)))
    counts = [math.prod(shape) for shape in shapes]
    starts = torch.tensor([0, *itertools.accumulate(counts)][:-1], device=value.device)[:, None]  # (L, 1)
    widths = sizes.long()
    head = torch.arange(heads, device=value.device)[:, None, None]
    sample = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1)
    rows, shares, slopes = [], [], []
    dims = range(rest.shape[-1])
    for corner in itertools.product((0, 1), repeat=len(dims)):
        index = torch.zeros_like(rest[..., 0], dtype=torch.long)
        for d in reversed(dims):
            index = index * widths[..., d] + ends[corner[d]][0][..., d]
        rows.append(((sample * cells) + starts + index) * heads + head)
        factors = [ends[corner[d]][1][..., d] for d in dims]
        shares.append(math.prod(factors[1:], start=factors[0]))
        slopes.append(
            [math.prod([f for e, f in enumerate(factors) if e != d], start=ends[corner[d]][2][..., d]) for d in dims]
        )
    by_dim = tuple(torch.stack([slope[d] for slope in slopes], -1) for d in dims)
    return _Corners(torch.stack(rows, -1), torch.stack(shares, -1), by_dim)


def _chunks(
    size: int, value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor
) -> Iterator[tuple[slice, Tensor, _Corners]]:
    """Queries, attention weights and corners of one chunk after another."""
    real = torch.float64 if value.dtype == torch.float64 else torch.float32
    for start in range(0, offsets.shape[1], size):
        part = slice(start, start + size)
        given = None if references is None else references[:, part]
        weights = weigh(logits[:, part], real, references is None)
        yield part, weights, _corners(value, shapes, *places(shapes, given, offsets[:, part], real))


def _table(value: Tensor) -> Tensor:
    """Rows of all samples, cells and heads, in the arithmetic's own type."""
    return (value if value.dtype == torch.float64 else value.float()).flatten(0, 2)


def forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    """As `reference.forward`."""
    table = _table(value)
    output = value.new_empty(value.shape[0], offsets.shape[1], *value.shape[2:])
    for part, weights, corners in _chunks(FORWARD_QUERIES, value, shapes, references, offsets, logits):
        bags = corners.rows.flatten(3)  # (B, q, H, L * P * corners)
        shares = (corners.shares * weights[..., None]).flatten(3)
        summed = F.embedding_bag(bags.flatten(0, 2), table, per_sample_weights=shares.flatten(0, 2), mode="sum")
        output[:, part] = summed.view(*bags.shape[:3], -1)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """As `reference.backward`."""
    table = _table(value)
    grad_table, grad_offsets, grad_logits = torch.zeros_like(table), torch.empty_like(offsets), torch.empty_like(logits)
    grad_references = torch.zeros_like(references) if with_references and references is not None else None
    for part, weights, corners in _chunks(BACKWARD_QUERIES, value, shapes, references, offsets, logits):
        grad = grad_output[:, part].to(table.dtype)[..., None]  # (B, q, H, C, 1)
        bags = corners.rows.flatten(3)
        dots = (table[bags] @ grad).view(corners.rows.shape)  # (B, q, H, L, P, corners)
        shares = (corners.shares * weights[..., None]).flatten(3)
        grad_table.index_add_(0, bags.flatten(), (shares[..., None] @ grad.transpose(-1, -2)).flatten(0, 3))
        grad_weights = (corners.shares * dots).sum(-1)
        grad_places = torch.stack([(slope * dots).sum(-1) for slope in corners.slopes], -1) * weights[..., None]
        if references is None:
            grad_logits[:, part] = grad_weights
            grad_offsets[:, part] = grad_places * natural_sizes(shapes, value.device)[:, None]
        else:
            mean = (grad_weights * weights).sum((-2, -1), keepdim=True)
            grad_logits[:, part] = weights * (grad_weights - mean)
            found = _of_references(grad_places, shapes, references[:, part], offsets[:, part])
            grad_offsets[:, part] = found[0]
            if grad_references is not None:
                grad_references[:, part] = found[1]
    return grad_table.view(value.shape).to(value.dtype), grad_references, grad_offsets, grad_logits


def _of_references(grad: Tensor, shapes: Shapes, references: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of places in cells (B, q, H, L, P, D) to those of offsets and references."""
    sizes, num_dims = natural_sizes(shapes, grad.device), offsets.shape[-1]
    centers = grad.sum((2, 4)) * sizes  # (B, q, L, D)
    if references.shape[-1] == num_dims:
        return grad, centers
    half = sizes * 0.5 / offsets.shape[4]
    extents = (grad * offsets).sum((2, 4)) * half
    scale = (references[..., num_dims:].to(half.dtype) * half).to(grad.dtype)
    return grad * scale[:, :, None, :, None], torch.cat([centers, extents], -1)
