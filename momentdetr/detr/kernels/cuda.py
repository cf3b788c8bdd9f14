"""Deformable attention on NVIDIA GPUs: `deformable.cu`, compiled at run time and launched through the driver.

Nothing is built at install or import. The first call with new numbers of levels, points or channels compiles one
instance (about a second) and keeps it for the process. Under `torch.use_deterministic_algorithms(True)` the gradient
of the value is summed in 64-bit fixed point, so that the order of additions does not matter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentdetr.detr.kernels import cuda_compiler, cuda_driver

Shapes = Sequence[Sequence[int]]

DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""How the source calls them."""

WARP = 32
SHARED_BYTES = 48 * 1024
"""Shared memory that a block has on every device."""

OLDEST = (7, 0)
"""Compute capability: lanes of a warp that run apart came with it."""


@dataclass(frozen=True)
class Instance:
    """What one compilation is specialised for; the head of the source explains the fields."""

    backward: bool
    num_dims: int
    mode: int
    num_levels: int
    num_points: int
    channels: int
    value: torch.dtype
    weight: torch.dtype
    wide: bool
    fixed: bool = False
    most_threads: int = 256

    @property
    def lanes(self) -> int:
        """Threads that serve one query and head: one each 16 bytes of channels, as a power of two."""
        width = 16 // self.value.itemsize
        while self.channels % width:
            width //= 2
        return min(WARP, 2 ** math.ceil(math.log2(self.channels // width)))

    @property
    def threads(self) -> int:
        """Of a block: as many as its shared memory allows.

        Raises:
            ValueError: not even one warp fits.
        """
        threads = self.most_threads
        while threads > WARP and self.shared_bytes(threads) > SHARED_BYTES:
            threads //= 2
        if self.shared_bytes(threads) > SHARED_BYTES:
            raise ValueError(
                f"{self.num_levels} levels of {self.num_points} points are more than the CUDA kernel holds"
            )
        return threads

    def shared_bytes(self, threads: int) -> int:
        groups = threads // self.lanes
        corners = groups * (self.lanes + 1) * max(16, 8 * 2**self.num_dims)
        kept = groups * self.num_levels * self.num_points * 4 if self.backward else 0
        return corners + kept + self.num_levels * (1 + self.num_dims) * 4

    @property
    def queries(self) -> int:
        """Of a tile: those that one block serves."""
        return self.threads // self.lanes

    @property
    def name(self) -> str:
        return "deformable_backward" if self.backward else "deformable_forward"

    def macros(self) -> dict[str, int]:
        return {
            "DIM": self.num_dims,
            "MODE": self.mode,
            "LEVELS": self.num_levels,
            "POINTS": self.num_points,
            "CHANNELS": self.channels,
            "THREADS": self.threads,
            "VALUE": KINDS[self.value],
            "WEIGHT": KINDS[self.weight],
            "WIDE": int(self.wide),
            "BACKWARD": int(self.backward),
            "FIXED": int(self.fixed),
        }


@dataclass(frozen=True)
class Call:
    """Arguments as the kernel reads them, and the instance that they need."""

    instance: Instance
    value: Tensor
    references: Tensor | None
    offsets: Tensor
    logits: Tensor
    sizes: tuple[int, ...]
    """The source's `Sizes`."""

    num_blocks: int


def prepare(
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    *,
    backward: bool = False,
    fixed: bool = False,
    most_threads: int = 256,
) -> Call:
    """Bring the arguments of `forward` into types that the kernel has been written for, and count blocks."""
    batch, num_tokens, num_heads, channels = value.shape
    num_queries, num_dims = offsets.shape[1], offsets.shape[-1]
    places = as_places(offsets if references is None else references)
    if references is None:
        mode, offsets, logits, places_of_references = 0, places, logits.float(), None
    else:
        mode, places_of_references = references.shape[-1] // num_dims, places
        if offsets.dtype != logits.dtype or offsets.dtype not in KINDS:
            offsets, logits = offsets.float(), logits.float()
    instance = Instance(
        backward=backward,
        num_dims=num_dims,
        mode=mode,
        num_levels=len(shapes),
        num_points=offsets.shape[4],
        channels=channels,
        value=value.dtype,
        weight=logits.dtype,
        wide=places.dtype == torch.float64,
        fixed=fixed,
        most_threads=most_threads,
    )
    tiles = -(-num_queries // instance.queries)
    num_blocks = batch * num_heads * tiles
    if num_blocks >= 2**31:
        raise ValueError(f"{batch} x {num_queries} queries of {num_heads} heads are more than one launch takes")
    sizes = (num_tokens, num_queries, num_heads, tiles, *(number for level in levels_of(shapes) for number in level))
    return Call(
        instance, aligned(value), places_of_references, offsets.contiguous(), logits.contiguous(), sizes, num_blocks
    )


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


@functools.cache
def kernel(instance: Instance, device: int) -> cuda_driver.Kernel:
    """The compiled instance, loaded on a device."""
    architecture = cuda_compiler.architecture_of(*torch.cuda.get_device_capability(device))
    return cuda_driver.Kernel(cuda_compiler.build(architecture, instance.macros()), instance.name, device)


def launch(call: Call, *arguments: Tensor | None) -> None:
    device = call.value.device
    stream = torch.cuda.current_stream(device).cuda_stream
    run = kernel(call.instance, device.index)
    run.launch(call.num_blocks, call.instance.threads, stream, [pointer(x) for x in arguments], call.sizes)


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    """As `reference.forward`, for tensors on one CUDA device.

    Raises:
        ValueError: more levels and points, or queries, than the kernel holds.
        RuntimeError: the compiler or the driver refused.
    """
    output = value.new_empty(value.shape[0], offsets.shape[1], *value.shape[2:])
    if not output.numel() or not logits.numel():
        return output.zero_()
    call = prepare(value, shapes, references, offsets, logits)
    launch(call, call.value, call.references, call.offsets, call.logits, output)
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
    """As `reference.backward`; without `with_references` the gradient of the references is left out (None).

    Raises:
        ValueError: more levels and points, or queries, than the kernel holds.
        RuntimeError: the compiler or the driver refused.
    """
    if not grad_output.numel() or not logits.numel():
        zero = None if references is None else torch.zeros_like(references)
        return torch.zeros_like(value), zero, torch.zeros_like(offsets), torch.zeros_like(logits)
    fixed = torch.are_deterministic_algorithms_enabled()
    call = prepare(value, shapes, references, offsets, logits, backward=True, fixed=fixed)
    grad_value, scale = sums(call, grad_output, logits if references is None else None)
    grads = run_backward(call, aligned(grad_output), grad_value, scale, references is not None and with_references)
    if scale is not None:
        grad_value = grad_value * scale.reciprocal().to(torch.float32)
    grad_references = None
    if references is not None and with_references:
        grad_references = sum_for_references(grads[2], call.offsets, shapes, references).to(references.dtype)
    return grad_value.to(value.dtype), grad_references, grads[0].to(offsets.dtype), grads[1].to(logits.dtype)


def run_backward(
    call: Call, grad_output: Tensor, grad_value: Tensor, scale: Tensor | None, with_cells: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of offsets, of logits, and of positions in cells (only if asked for); adds to grad_value."""
    plain = call.instance.mode == 0
    grad_offsets = torch.empty_like(call.offsets, dtype=torch.float32 if plain else call.offsets.dtype)
    grad_logits = torch.empty_like(call.logits)
    same = call.instance.mode == 1 and grad_offsets.dtype == torch.float32  # offsets around points are in cells
    cells = torch.empty_like(grad_offsets, dtype=torch.float32) if with_cells and not same else None
    inputs = grad_output, call.value, call.references, call.offsets, call.logits
    launch(call, *inputs, grad_value, grad_offsets, grad_logits, cells, scale)
    return grad_offsets, grad_logits, grad_offsets if cells is None else cells


def sums(call: Call, grad_output: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Zeros to sum the gradient of the value in, and what one stands for in fixed point (float64, a power of two).

    No sum can exceed the number of points that may meet in a cell, times the largest gradient, times the largest
    weight (one after a softmax); it is to stay under 2^61.
    """
    if not call.instance.fixed:
        return torch.zeros_like(call.value, dtype=torch.float32), None
    most = grad_output.abs().amax().double() * call.offsets.shape[1] * call.offsets.shape[4]
    if weights is not None:
        most = most * weights.abs().amax().double()
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


def available() -> str:
    """Why this kernel cannot be used; empty: it can."""
    if not torch.cuda.is_available() or torch.version.hip:
        return "torch finds no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < OLDEST:
        return f"compute capability {major}.{minor} is older than {OLDEST[0]}.{OLDEST[1]}"
    if cuda_driver.library() is None:
        return "the driver's library (libcuda) was not found"
    return "" if cuda_compiler.compiler() else "neither NVRTC (in torch's CUDA wheels) nor nvcc was found"
