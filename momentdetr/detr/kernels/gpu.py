"""What the GPU kernels share: arguments in the types that they are written for, gradients put together afterwards."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]

DEVICES = ("cuda",)
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types of values, and of raw offsets and logits: how `deformable.cu` calls them."""

OLDEST = (7, 0)
"""Compute capability: lanes of a warp that run apart came with it."""


@dataclass(frozen=True)
class Instance:
    """What one compilation is specialised for."""

    backward: bool
    num_dims: int
    mode: int
    """0 plain sampling, 1 around points, 2 around boxes."""

    num_levels: int
    num_points: int
    channels: int
    value: torch.dtype
    weight: torch.dtype
    """Of raw offsets and logits."""

    wide: bool
    """References (plain sampling: locations) are float64."""

    fixed: bool = False
    """The gradient of the value is summed in fixed point."""


@dataclass(frozen=True)
class Call:
    """Arguments as the kernels read them, and the instance that they need."""

    instance: Instance
    value: Tensor
    references: Tensor | None
    offsets: Tensor
    logits: Tensor
    levels: tuple[int, ...]
    """First token and sizes, in natural order, of each level."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens, queries and heads."""
        return self.value.shape[1], self.offsets.shape[1], self.value.shape[2]


Launch = Callable[..., None]
"""Takes a `Call`, then the tensors of one pass: value, references, offsets, logits, output; or grad_output, value,
references, offsets, logits, and what is written: grad_value, grad_offsets, grad_logits, the gradient of positions in
cells (or None), and the fixed point's scale (or None)."""


def prepare(
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    *,
    backward: bool = False,
    fixed: bool = False,
) -> Call:
    """Bring the arguments of `reference.forward` into types that the kernels have been written for."""
    num_dims = offsets.shape[-1]
    if references is None:
        mode, offsets, logits = 0, as_places(offsets), logits.float()
    else:
        mode, references = references.shape[-1] // num_dims, as_places(references).contiguous()
        if offsets.dtype != logits.dtype or offsets.dtype not in KINDS:
            offsets, logits = offsets.float(), logits.float()
    instance = Instance(
        backward=backward,
        num_dims=num_dims,
        mode=mode,
        num_levels=len(shapes),
        num_points=offsets.shape[4],
        channels=value.shape[3],
        value=value.dtype,
        weight=logits.dtype,
        wide=(offsets if references is None else references).dtype == torch.float64,
        fixed=fixed,
    )
    levels = tuple(number for level in levels_of(shapes) for number in level)
    return Call(instance, aligned(value), references, offsets.contiguous(), logits.contiguous(), levels)


def as_places(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def aligned(x: Tensor) -> Tensor:
    """The tensor, contiguous and at an address that 16-byte loads can read."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def levels_of(shapes: Shapes) -> list[tuple[int, ...]]:
    """First token and sizes, in natural order, of each level."""
    levels, start = [], 0
    for shape in shapes:
        levels.append((start, *reversed(shape)))
        start += math.prod(shape)
    return levels


def run_forward(
    launch: Launch, value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`reference.forward` by a kernel."""
    output = value.new_empty(value.shape[0], offsets.shape[1], *value.shape[2:])
    if not output.numel() or not logits.numel():
        return output.zero_()
    call = prepare(value, shapes, references, offsets, logits)
    launch(call, call.value, call.references, call.offsets, call.logits, output)
    return output


def run_backward(
    launch: Launch,
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """`reference.backward` by a kernel; without `with_references` the gradient of the references is left out."""
    with_references = with_references and references is not None
    if not grad_output.numel() or not logits.numel():
        grads = [None if x is None else torch.zeros_like(x) for x in (value, references, offsets, logits)]
        return grads[0], grads[1] if with_references else None, grads[2], grads[3]  # type: ignore[return-value]
    fixed = torch.are_deterministic_algorithms_enabled()
    call = prepare(value, shapes, references, offsets, logits, backward=True, fixed=fixed)
    grad_value, scale = sums(call, grad_output)
    plain = references is None
    grad_offsets = torch.empty_like(call.offsets, dtype=torch.float32 if plain else call.offsets.dtype)
    grad_logits = torch.empty_like(call.logits)
    same = call.instance.mode == 1 and grad_offsets.dtype == torch.float32  # offsets around points are in cells
    cells = torch.empty_like(grad_offsets, dtype=torch.float32) if with_references and not same else None
    inputs = aligned(grad_output), call.value, call.references, call.offsets, call.logits
    launch(call, *inputs, grad_value, grad_offsets, grad_logits, cells, scale)
    if scale is not None:
        grad_value = grad_value * scale.reciprocal().to(torch.float32)
    grad_references = None
    if references is not None and with_references:
        given = grad_offsets if cells is None else cells
        grad_references = sum_for_references(given, call.offsets, shapes, references).to(references.dtype)
    return grad_value.to(value.dtype), grad_references, grad_offsets.to(offsets.dtype), grad_logits.to(logits.dtype)


def sums(call: Call, grad_output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Zeros to sum the gradient of the value in, and what one stands for in fixed point (float64, a power of two).

    No sum can exceed the number of points that may meet in a cell, times the largest gradient, times the largest
    weight (one after a softmax); it is to stay under 2^61.
    """
    if not call.instance.fixed:
        return torch.zeros_like(call.value, dtype=torch.float32), None
    most = grad_output.abs().amax().double() * call.offsets.shape[1] * call.offsets.shape[4]
    if call.instance.mode == 0:
        most = most * call.logits.abs().amax().double()
    scale = torch.exp2(61 - most.clamp(min=2.0**-60).log2().ceil())  # NaN where a gradient is not finite
    return torch.zeros_like(call.value, dtype=torch.int64), torch.where(most.isfinite(), scale, torch.nan)


def sum_for_references(grad_cells: Tensor, offsets: Tensor, shapes: Shapes, references: Tensor) -> Tensor:
    """Gradient of the references from that of the positions (B, Q, H, L, P, D), in cells."""
    sizes = sizes_on(tuple(tuple(shape) for shape in shapes), grad_cells.device)  # (L, D)
    centers = grad_cells.sum((2, 4)) * sizes
    if references.shape[-1] == grad_cells.shape[-1]:
        return centers
    extents = (grad_cells * offsets).sum((2, 4)) * (sizes * (0.5 / offsets.shape[4]))
    return torch.cat((centers, extents), -1)


@functools.lru_cache(maxsize=256)
def sizes_on(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Level sizes (L, D) in natural order, kept on the device: copying them there would stall every call."""
    return torch.tensor([shape[::-1] for shape in shapes], dtype=torch.float32, device=device)


def obstacle() -> str:
    """Why no kernel for GPUs can be used; empty: one can."""
    if not torch.cuda.is_available() or torch.version.hip:
        return "torch finds no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < OLDEST:
        return f"compute capability {major}.{minor} is older than {OLDEST[0]}.{OLDEST[1]}"
    return ""
