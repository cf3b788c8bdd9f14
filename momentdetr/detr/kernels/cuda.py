"""Deformable attention on NVIDIA GPUs: `deformable.cu`, compiled at run time and launched through the driver.

Nothing is built at install or import. The first call with new numbers of levels, points or channels compiles one
instance (about a second) and keeps it for the process. Under `torch.use_deterministic_algorithms(True)` the gradient
of the value is summed in 64-bit fixed point, so that the order of additions does not matter.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from momentdetr.detr.kernels import cuda_compiler, cuda_driver, gpu
from momentdetr.detr.kernels.gpu import Call, Instance, Shapes

DEVICES = gpu.DEVICES
DTYPES = tuple(gpu.KINDS)

WARP = 32
MOST_THREADS = 256
"""Of a block."""

RESIDENT_THREADS = {False: 1024, True: 768}
"""Of a multiprocessor, forward and backward: what leaves a thread 64 and 80 registers."""

SHARED_BYTES = 48 * 1024
"""Shared memory that a block has on every device."""

MOST_BLOCKS = 2**31 - 1


def lanes_of(instance: Instance) -> int:
    """Threads that serve one query and head: one each 16 bytes of channels, as a power of two."""
    width = 16 // instance.value.itemsize
    while instance.channels % width:
        width //= 2
    vectors = instance.channels // width
    return min(WARP, 1 << (vectors - 1).bit_length())


def shared_bytes(instance: Instance, threads: int) -> int:
    """Of a block: corners of points, gradients of weights, levels."""
    lanes = lanes_of(instance)
    corners = threads // lanes * (lanes + 1) * 8 * 2**instance.num_dims
    kept = threads // lanes * instance.num_levels * instance.num_points * 4 if instance.backward else 0
    return corners + kept + instance.num_levels * (1 + instance.num_dims) * 4


def threads_of(instance: Instance) -> int:
    """Of a block: as many as its shared memory allows.

    Raises:
        ValueError: not even one warp fits.
    """
    threads = MOST_THREADS
    while threads > WARP and shared_bytes(instance, threads) > SHARED_BYTES:
        threads //= 2
    if shared_bytes(instance, threads) > SHARED_BYTES:
        levels, points = instance.num_levels, instance.num_points
        raise ValueError(f"{levels} levels of {points} points are more than the CUDA kernel holds; choose another")
    return threads


def macros_of(instance: Instance) -> dict[str, int]:
    """What the head of the source lists."""
    threads = threads_of(instance)
    return {
        "DIM": instance.num_dims,
        "MODE": instance.mode,
        "LEVELS": instance.num_levels,
        "POINTS": instance.num_points,
        "CHANNELS": instance.channels,
        "THREADS": threads,
        "RESIDENT": max(1, RESIDENT_THREADS[instance.backward] // threads),
        "VALUE": gpu.KINDS[instance.value],
        "WEIGHT": gpu.KINDS[instance.weight],
        "WIDE": int(instance.wide),
        "BACKWARD": int(instance.backward),
        "FIXED": int(instance.fixed),
    }


def layout(call: Call) -> tuple[int, tuple[int, ...]]:
    """Blocks to launch, and the source's `Sizes`.

    Raises:
        ValueError: more than one launch takes.
    """
    tokens, queries, heads = call.counts
    tiles = -(-queries * lanes_of(call.instance) // threads_of(call.instance))
    blocks = len(call.value) * heads * tiles
    if blocks > MOST_BLOCKS:
        raise ValueError(f"{len(call.value)} x {queries} queries of {heads} heads are more than one launch takes")
    return blocks, (tokens, queries, heads, tiles, *call.levels)


@functools.cache
def kernel(instance: Instance, device: int) -> cuda_driver.Kernel:
    """The compiled instance, loaded on a device."""
    architecture = cuda_compiler.architecture_of(*torch.cuda.get_device_capability(device))
    name = "deformable_backward" if instance.backward else "deformable_forward"
    return cuda_driver.Kernel(cuda_compiler.build(architecture, macros_of(instance)), name, device)


def launch(call: Call, *arguments: Tensor | None) -> None:
    """Start one pass on the current stream."""
    device = call.value.device
    blocks, sizes = layout(call)
    stream = torch.cuda.current_stream(device).cuda_stream
    pointers = [pointer(x) for x in arguments]
    kernel(call.instance, device.index).launch(blocks, threads_of(call.instance), stream, pointers, sizes)


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    """As `reference.forward`, for tensors on one CUDA device.

    Raises:
        ValueError: more levels and points, or queries, than the kernel holds.
        RuntimeError: the compiler or the driver refused.
    """
    return gpu.run_forward(launch, value, shapes, references, offsets, logits)


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
    return gpu.run_backward(launch, grad_output, value, shapes, references, offsets, logits, with_references)


def available() -> str:
    """Why this kernel cannot be used; empty: it can."""
    if why := gpu.obstacle():
        return why
    if cuda_driver.library() is None:
        return "the driver's library (libcuda) was not found"
    return "" if cuda_compiler.compiler() else "neither NVRTC (in torch's CUDA wheels) nor nvcc was found"
