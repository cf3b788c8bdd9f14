"""Small problems for kernels that have no CPU of their own, and the comparison with the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from momentdetr.detr.kernels import reference

SHAPES = {1: ((23,), (7,), (1,)), 2: ((5, 7), (3, 4), (1, 2))}
"""Levels for D = 1 and 2."""


@dataclass(frozen=True)
class Case:
    """One problem; `mode` is what the references are."""

    num_dims: int
    mode: str  # plain, points or boxes
    value: torch.dtype = torch.float32
    raw: torch.dtype = torch.float32  # of offsets and logits
    places: torch.dtype = torch.float32  # of references, or of locations
    channels: int = 32
    num_points: int = 4
    num_heads: int = 2
    num_queries: int = 9
    batch: int = 2
    shapes: tuple[tuple[int, ...], ...] | None = None

    def __str__(self) -> str:
        types = "-".join(str(x).removeprefix("torch.") for x in (self.value, self.raw, self.places))
        return f"{self.num_dims}d-{self.mode}-{types}-c{self.channels}-p{self.num_points}"

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        return self.shapes or SHAPES[self.num_dims]

    def on(self, **changes: Any) -> Case:
        return replace(self, **changes)


@dataclass(frozen=True)
class Problem:
    """Arguments of `forward`, and a gradient of its output."""

    value: Tensor
    shapes: tuple[tuple[int, ...], ...]
    references: Tensor | None
    offsets: Tensor
    logits: Tensor
    grad_output: Tensor

    def arguments(self, device: str = "cpu") -> tuple[Any, ...]:
        tensors = (self.value, self.references, self.offsets, self.logits)
        value, references, offsets, logits = (None if x is None else x.to(device) for x in tensors)
        return value, self.shapes, references, offsets, logits


def problem(case: Case, seed: int = 0) -> Problem:
    """Random points of which about one in four lies outside; none near a cell's centre, where gradients jump."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    levels, dims = case.levels, case.num_dims
    tokens = sum(math.prod(shape) for shape in levels)
    lead = (case.batch, case.num_queries)
    points = (*lead, case.num_heads, len(levels), case.num_points)
    sizes = torch.tensor([shape[::-1] for shape in levels], dtype=torch.float64)  # (L, D)
    value = (uniform(case.batch, tokens, case.num_heads, case.channels) * 2 - 1).to(case.value)
    wanted = (uniform(*points, dims) * 1.4 - 0.2) * sizes[:, None] - 0.5  # in cells
    wanted = wanted.floor() + 0.1 + 0.8 * (wanted - wanted.floor())
    references = None
    if case.mode == "plain":
        offsets, logits = ((wanted + 0.5) / sizes[:, None]).to(case.places), uniform(*points) * 2 - 1
        logits = logits.to(case.raw)
    else:
        references = uniform(*lead, len(levels), dims).to(case.places)
        offsets = wanted - (references * sizes - 0.5)[:, :, None, :, None]
        if case.mode == "boxes":
            extents = (0.1 + 0.5 * uniform(*lead, len(levels), dims)).to(case.places)
            offsets = offsets / (extents * sizes * 0.5 / case.num_points)[:, :, None, :, None]
            references = torch.cat((references, extents), -1)
        offsets, logits = offsets.to(case.raw), (uniform(*points) * 4 - 2).to(case.raw)
    grad_output = (uniform(*lead, case.num_heads, case.channels) * 2 - 1).to(case.value)
    return Problem(value, levels, references, offsets, logits, grad_output)


def expected(given: Problem, device: str = "cpu") -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The reference's output and gradients, from float64 copies of the same numbers, on the CPU."""
    tensors = (given.value, given.references, given.offsets, given.logits, given.grad_output)
    value, references, offsets, logits, grad = (None if x is None else x.double() for x in tensors)
    assert value is not None
    assert offsets is not None
    assert logits is not None
    assert grad is not None
    output = reference.forward(value, given.shapes, references, offsets, logits)
    return output, reference.backward(grad, value, given.shapes, references, offsets, logits)


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference allowed, as a share of the largest entry: sums in float32, one rounding to the type."""
    return max(2e-5, 2 * torch.finfo(dtype).eps)


def compare(name: str, found: Tensor | None, wanted: Tensor | None, allowed: float) -> None:
    """Raise AssertionError unless the largest difference is within a share of the largest entry."""
    if wanted is None:
        assert found is None, f"{name}: nothing expected"
        return
    assert found is not None, f"{name}: nothing found"
    assert found.shape == wanted.shape, f"{name}: {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    assert found.isfinite().all(), f"{name}: not finite"
    error = (found.cpu().double() - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-30)
    assert error <= allowed, f"{name}: off by {error:.2e} of the largest entry, allowed {allowed:.2e}"


def verify(kernel: ModuleType, case: Case, device: str, seed: int = 0) -> None:
    """Compare a kernel's two passes with the reference in float64."""
    given = problem(case, seed)
    wanted, grads = expected(given)
    arguments = given.arguments(device)
    found = kernel.forward(*arguments)
    assert found.dtype == case.value
    compare("output", found, wanted, tolerance(case.value))
    got = kernel.backward(given.grad_output.to(device), *arguments)
    kinds = (given.value, given.references, given.offsets, given.logits)
    for name, grad, like, want in zip(("value", "references", "offsets", "logits"), got, kinds, grads, strict=True):
        if like is not None:
            assert grad.dtype == like.dtype, name
            compare(f"gradient of {name}", grad, want, tolerance(like.dtype))
