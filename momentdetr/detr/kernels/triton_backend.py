"""Deformable attention in Triton, the kernel of choice on GPUs where Triton runs.

One program serves BLOCK queries of one head: rows of a tile are queries, columns channels, so that a warp reads the
value 16 bytes a thread. Levels are walked by a loop at run time, which keeps registers few; points and corners are
unrolled. Softmax, positions and sums are float32 whatever the types. Under `torch.use_deterministic_algorithms(True)`
the gradient of the value is summed in 64-bit fixed point, so that the order of additions does not matter.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from momentdetr.detr.kernels import gpu
from momentdetr.detr.kernels.gpu import Call, Instance, Shapes

DEVICES = gpu.DEVICES
DTYPES = tuple(gpu.KINDS)
NUM_WARPS = 4
WARP = 32
COUNTS = ["num_tokens", "num_queries", "num_heads"]
"""Arguments of which a special case, as of one head, is not worth a compilation."""


@triton.jit
def split(place, size, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """place * size to a whole cell, what lies between its centre and the place, and whether the cell can be counted."""
    if WIDE:
        cells = place * size.to(tl.float64)
        whole = tl.floor(cells)
        rest = (cells - whole - 0.5).to(tl.float32)
    else:
        size = tl.zeros_like(place) + size.to(tl.float32)
        whole = tl.floor(place * size)
        rest = tl.fma(place, size, -whole) - 0.5  # the product is exact here, whatever the compiler contracts
    countable = tl.abs(whole) < 1e9
    return tl.where(countable, whole, 0.0).to(tl.int32), rest, countable


@triton.jit
def along(size, base, rest, countable, reach):  # type: ignore[no-untyped-def]
    """A point's lower cell on one axis, its way to the upper, and whether it is anywhere."""
    rest = rest + reach
    step = tl.floor(rest)
    there = countable & (tl.abs(step) < 1e9)  # false for what is no number
    above = tl.where(there, rest - step, 0.0)
    return base + tl.where(there, step, 0.0).to(tl.int32), above, there


@triton.jit
def softmax(logits, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr, MODE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights of all points of each query, (BLOCK, COLUMNS), zero in columns beyond; `logits` points to the first."""
    column = tl.arange(0, COLUMNS)[None, :]
    x = tl.load(logits[:, None] + column, mask=column < SAMPLES, other=0.0).to(tl.float32)
    if MODE != 0:
        x = tl.where(column < SAMPLES, x, -float("inf"))
        x = tl.exp(x - tl.max(x, 1)[:, None])
        x = x / tl.sum(x, 1)[:, None]
    return x


@triton.jit
def pick(tile, i, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Column i of a tile."""
    return tl.sum(tl.where(tl.arange(0, COLUMNS)[None, :] == i, tile, 0.0), 1)


@triton.jit
def locate(  # type: ignore[no-untyped-def]
    references,
    offsets,
    sample,
    level,
    axis: tl.constexpr,
    size,
    DIM: tl.constexpr,
    MODE: tl.constexpr,
    POINTS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One point on one axis: lower cell, way to the upper, whether it is anywhere, cells that an offset of 1 moves."""
    offset = tl.load(offsets + (sample * DIM + axis))
    if MODE == 0:
        base, rest, countable = split(offset, size, WIDE)
        scale = tl.zeros_like(rest) + size.to(tl.float32)
        reach = tl.zeros_like(rest)
    elif MODE == 1:
        base, rest, countable = split(tl.load(references + (level * DIM + axis)), size, WIDE)
        scale = tl.zeros_like(rest) + 1.0
        reach = offset.to(tl.float32)
    else:
        base, rest, countable = split(tl.load(references + (level * 2 * DIM + axis)), size, WIDE)
        extent = tl.load(references + (level * 2 * DIM + DIM + axis))
        scale = (extent * size.to(extent.dtype) * (0.5 / POINTS)).to(tl.float32)
        reach = offset.to(tl.float32) * scale
    cell, above, there = along(size, base, rest, countable, reach)
    return cell, above, there, scale


@triton.jit(do_not_specialize=COUNTS)
def forward_kernel(  # type: ignore[no-untyped-def]
    value,
    references,
    offsets,
    logits,
    levels,  # (L, 1 + D) int32: first token and sizes in natural order
    output,
    num_tokens,
    num_queries,
    num_heads,
    DIM: tl.constexpr,
    MODE: tl.constexpr,  # 0 plain, 1 around points, 2 around boxes
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,  # channels, up to a power of two
    COLUMNS: tl.constexpr,  # points of all levels, up to a power of two
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % num_heads
    tiles = tl.cdiv(num_queries, BLOCK)
    batch = (program // num_heads // tiles).to(tl.int64)
    row = (program // num_heads % tiles) * BLOCK + tl.arange(0, BLOCK)
    active = row < num_queries
    query = batch * num_queries + tl.minimum(row, num_queries - 1)  # int64
    item = query * num_heads + head
    channel = tl.arange(0, WIDTH)[None, :]
    values = value + (batch * num_tokens * num_heads + head) * CHANNELS
    stride = num_heads.to(tl.int64) * CHANNELS
    references += query * (LEVELS * DIM * (2 if MODE == 2 else 1))
    offsets += item * (LEVELS * POINTS * DIM)
    weights = softmax(logits + item * (LEVELS * POINTS), LEVELS * POINTS, COLUMNS, MODE)
    total = tl.zeros([BLOCK, WIDTH], tl.float32) + tl.sum(weights * 0.0, 1)[:, None]  # NaN shows, also from outside

    for level in range(LEVELS):
        start = tl.load(levels + level * (DIM + 1))
        width = tl.load(levels + level * (DIM + 1) + 1)
        for point in tl.static_range(POINTS):
            sample = level * POINTS + point
            weight = pick(weights, sample, COLUMNS)
            x, above_x, there, _ = locate(references, offsets, sample, level, 0, width, DIM, MODE, POINTS, WIDE)
            if DIM == 2:
                height = tl.load(levels + level * (DIM + 1) + 2)
                y, above_y, there_y, _ = locate(references, offsets, sample, level, 1, height, DIM, MODE, POINTS, WIDE)
                there = there & there_y
            for corner in tl.static_range(2**DIM):
                column = x + corner % 2
                inside = there & (column >= 0) & (column < width)
                share = weight * (above_x if corner % 2 == 1 else 1.0 - above_x)
                index = column
                if DIM == 2:
                    line = y + corner // 2
                    inside = inside & (line >= 0) & (line < height)
                    share = share * (above_y if corner // 2 == 1 else 1.0 - above_y)
                    index = line * width + column
                mask = inside[:, None] if WIDTH == CHANNELS else inside[:, None] & (channel < CHANNELS)
                token = tl.where(inside, start + index, 0).to(tl.int64)
                found = tl.load(values + (token * stride)[:, None] + channel, mask=mask, other=0.0)
                total += tl.where(inside, share, 0.0)[:, None] * found.to(tl.float32)

    mask = active[:, None] & (channel < CHANNELS)
    tl.store(output + (item * CHANNELS)[:, None] + channel, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def backward_kernel(  # type: ignore[no-untyped-def]
    grad_output,
    value,
    references,
    offsets,
    logits,
    levels,
    grad_value,  # float32, or int64 in fixed point; zeros
    grad_offsets,
    grad_logits,
    grad_cells,  # gradient of positions in cells, as offsets lie; only written with CELLS
    fixed_scale,  # float64, one number; only read with FIXED
    num_tokens,
    num_queries,
    num_heads,
    DIM: tl.constexpr,
    MODE: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CELLS: tl.constexpr,
    FIXED: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % num_heads
    tiles = tl.cdiv(num_queries, BLOCK)
    batch = (program // num_heads // tiles).to(tl.int64)
    row = (program // num_heads % tiles) * BLOCK + tl.arange(0, BLOCK)
    active = row < num_queries
    query = batch * num_queries + tl.minimum(row, num_queries - 1)
    item = query * num_heads + head
    channel = tl.arange(0, WIDTH)[None, :]
    base = (batch * num_tokens * num_heads + head) * CHANNELS
    stride = num_heads.to(tl.int64) * CHANNELS
    references += query * (LEVELS * DIM * (2 if MODE == 2 else 1))
    first = item * (LEVELS * POINTS)
    offsets += first * DIM
    weights = softmax(logits + first, LEVELS * POINTS, COLUMNS, MODE)
    grad = tl.load(grad_output + (item * CHANNELS)[:, None] + channel, mask=channel < CHANNELS, other=0.0)
    grad = grad.to(tl.float32)
    grad_weights = tl.zeros([BLOCK, COLUMNS], tl.float32)
    columns = tl.arange(0, COLUMNS)[None, :]
    if FIXED:
        scale = tl.load(fixed_scale)

    for level in range(LEVELS):
        start = tl.load(levels + level * (DIM + 1))
        width = tl.load(levels + level * (DIM + 1) + 1)
        for point in range(POINTS):
            sample = level * POINTS + point
            weight = pick(weights, sample, COLUMNS)
            x, above_x, there, scale_x = locate(references, offsets, sample, level, 0, width, DIM, MODE, POINTS, WIDE)
            slope_x = tl.zeros_like(weight)
            if DIM == 2:
                height = tl.load(levels + level * (DIM + 1) + 2)
                y, above_y, there_y, scale_y = locate(
                    references, offsets, sample, level, 1, height, DIM, MODE, POINTS, WIDE
                )
                there = there & there_y
                slope_y = tl.zeros_like(weight)
            grad_weight = tl.zeros_like(weight)
            for corner in tl.static_range(2**DIM):
                column = x + corner % 2
                inside = there & (column >= 0) & (column < width)
                share_x = above_x if corner % 2 == 1 else 1.0 - above_x
                share = share_x
                index = column
                if DIM == 2:
                    line = y + corner // 2
                    inside = inside & (line >= 0) & (line < height)
                    share_y = above_y if corner // 2 == 1 else 1.0 - above_y
                    share = share * share_y
                    index = line * width + column
                mask = inside[:, None] if WIDTH == CHANNELS else inside[:, None] & (channel < CHANNELS)
                token = tl.where(inside, start + index, 0).to(tl.int64)
                place = base + (token * stride)[:, None] + channel
                found = tl.load(value + place, mask=mask, other=0.0).to(tl.float32)
                product = tl.sum(grad * found, 1)
                grad_weight += share * product
                if DIM == 2:
                    slope_x += (share_y if corner % 2 == 1 else -share_y) * product
                    slope_y += (share_x if corner // 2 == 1 else -share_x) * product
                else:
                    slope_x += product if corner % 2 == 1 else -product
                part = (weight * share)[:, None] * grad
                mask = mask & active[:, None]
                if FIXED:
                    part = tl.floor(part.to(tl.float64) * scale + 0.5).to(tl.int64)
                tl.atomic_add(grad_value + place, part, mask=mask, sem="relaxed")
            grad_weights = tl.where(columns == sample, grad_weight[:, None], grad_weights)
            slope_x *= weight
            at = (first + sample) * DIM
            tl.store(grad_offsets + at, (slope_x * scale_x).to(grad_offsets.dtype.element_ty), mask=active)
            if CELLS:
                tl.store(grad_cells + at, slope_x, mask=active)
            if DIM == 2:
                slope_y *= weight
                tl.store(grad_offsets + at + 1, (slope_y * scale_y).to(grad_offsets.dtype.element_ty), mask=active)
                if CELLS:
                    tl.store(grad_cells + at + 1, slope_y, mask=active)

    if MODE != 0:
        grad_weights = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
    mask = active[:, None] & (columns < LEVELS * POINTS)
    tl.store(grad_logits + first[:, None] + columns, grad_weights.to(grad_logits.dtype.element_ty), mask=mask)


def constants(instance: Instance) -> dict[str, int | bool]:
    """What the kernels are specialised for."""
    width = triton.next_power_of_2(instance.channels)
    vector = 4 if instance.backward else 16 // instance.value.itemsize  # 16 bytes a thread, read or added to
    return {
        "DIM": instance.num_dims,
        "MODE": instance.mode,
        "LEVELS": instance.num_levels,
        "POINTS": instance.num_points,
        "CHANNELS": instance.channels,
        "WIDTH": width,
        "COLUMNS": triton.next_power_of_2(instance.num_levels * instance.num_points),
        "WIDE": instance.wide,
        "BLOCK": min(64, max(1, NUM_WARPS * WARP * vector // width)),
    }


@functools.lru_cache(maxsize=256)
def levels_on(levels: tuple[int, ...], device: torch.device) -> Tensor:
    """First token and sizes of all levels, kept on the device: copying them there would stall every call."""
    return torch.tensor(levels, dtype=torch.int32, device=device)


def launch(call: Call, *arguments: Tensor | None) -> None:
    """Run one pass; arguments as `cuda.launch` takes them."""
    fixed = constants(call.instance)
    tokens, queries, heads = call.counts
    levels = levels_on(call.levels, call.value.device)
    batch, tiles = call.value.shape[0], triton.cdiv(queries, int(fixed["BLOCK"]))
    count = 5 if call.instance.backward else 4  # of inputs, which stand before the levels
    given = [call.value if x is None else x for x in arguments]  # a stand-in is never read
    kernel = backward_kernel if call.instance.backward else forward_kernel
    if call.instance.backward:
        fixed |= {"CELLS": arguments[8] is not None, "FIXED": call.instance.fixed}
    kernel[(heads * tiles * batch,)](
        *given[:count], levels, *given[count:], tokens, queries, heads, **fixed, num_warps=NUM_WARPS
    )


def forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    """As `reference.forward`, for tensors on one CUDA device."""
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
    """As `reference.backward`; without `with_references` the gradient of the references is left out (None)."""
    return gpu.run_backward(launch, grad_output, value, shapes, references, offsets, logits, with_references)


def available() -> str:
    """Why this kernel cannot be used; empty: it can."""
    return gpu.obstacle()
