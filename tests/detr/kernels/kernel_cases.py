"""Arguments for the kernels' tests: random, of every kind, and unkind ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

from momentdetr.detr.kernels import cpu, reference, torch_fallback

KERNELS = ("torch", *(f"cpu {name}" for name in cpu.INSTRUCTIONS))

# Largest difference from the reference, relative to the largest number: what rounding in another order can do.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Case:
    """Arguments of a kernel, and a gradient of its output."""

    value: Tensor
    shapes: list[tuple[int, ...]]
    references: Tensor | None
    offsets: Tensor
    logits: Tensor
    grad: Tensor

    @property
    def arguments(self) -> tuple[Tensor, list[tuple[int, ...]], Tensor | None, Tensor, Tensor]:
        return self.value, self.shapes, self.references, self.offsets, self.logits


def make_case(
    shapes: Sequence[tuple[int, ...]],
    *,
    kind: str = "points",
    sizes: tuple[int, int, int, int, int] = (2, 5, 2, 3, 8),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Random arguments; sizes are B, Q, H, P, C; kind is points, boxes or plain. Some points lie outside."""
    batch, queries, heads, points, channels = sizes
    draw = torch.Generator().manual_seed(seed)
    dims, levels, cells = len(shapes[0]), len(shapes), sum(map(math.prod, shapes))
    offsets = torch.randn(batch, queries, heads, levels, points, dims, generator=draw, dtype=torch.float64) * 2
    references = None
    if kind == "plain":
        offsets = offsets * 0.3 + 0.5
    else:
        given = torch.rand(batch, queries, levels, dims * (1 + (kind == "boxes")), generator=draw, dtype=torch.float64)
        references = given * 1.4 - 0.2
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return Case(
        torch.randn(batch, cells, heads, channels, generator=draw, dtype=torch.float64).to(dtype),
        list(shapes),
        references,
        offsets.to(real),
        torch.randn(batch, queries, heads, levels, points, generator=draw, dtype=torch.float64).to(real),
        torch.randn(batch, queries, heads, channels, generator=draw, dtype=torch.float64).to(dtype),
    )


def kernel_of(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A kernel's module; the CPU's with the instruction set in its name, skipped where the machine lacks it."""
    if name == "torch":
        return torch_fallback
    why = cpu.available()
    if why:
        pytest.skip(f"not run: {why}")
    library, best = cpu.loaded()
    level = cpu.INSTRUCTIONS.index(name.removeprefix("cpu "))
    if level > best:
        pytest.skip(f"not run: this processor has no {name.removeprefix('cpu ')}")
    monkeypatch.setattr(cpu, "loaded", lambda: (library, level))
    return cpu


def assert_agree(kernel: ModuleType, case: Case, *, gradients: bool = True) -> None:
    """A kernel gives what the reference gives."""
    tolerance = TOLERANCE[case.value.dtype]
    assert_near(kernel.forward(*case.arguments), reference.forward(*case.arguments), tolerance, "output")
    if not gradients:
        return
    expected = reference.backward(case.grad, *case.arguments)
    for name, ours, theirs in zip(
        ("value", "references", "offsets", "logits"), kernel.backward(case.grad, *case.arguments), expected, strict=True
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert_near(ours, theirs, tolerance, f"gradient of {name}", rounding(case).get(name, 0.0))


def rounding(case: Case) -> dict[str, float]:
    """What one rounding of the largest terms does to gradients in which large terms may cancel.

    The terms are weights that sum to 1 times products of a gradient with the difference of two rows, for offsets and
    references in cells, for references from all heads.
    """
    real = torch.float64 if case.value.dtype == torch.float64 else torch.float32
    rows = 2 * float(case.value.double().norm(dim=-1).amax() * case.grad.double().norm(dim=-1).amax())
    once = torch.finfo(real).eps / 2 * rows
    cells = max(size for shape in case.shapes for size in shape)
    return {"logits": once, "offsets": once * cells, "references": once * cells * case.value.shape[2]}


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str, rounded: float = 0.0) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    finite = expected[expected.isfinite()].abs()
    allowed = tolerance * max(float(finite.max()) if finite.numel() else 0.0, 1e-3) + rounded
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=allowed, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )
