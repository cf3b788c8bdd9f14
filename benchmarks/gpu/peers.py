"""What the kernels are measured against: each takes `Inputs` and returns (B, Q, H, C), differentiable by torch."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sizes import Inputs
from torch import Tensor

from momentdetr.detr.kernels import cuda_compiler, cuda_driver

Peer = Callable[[Inputs], Tensor]
SOURCE = Path(__file__).with_name("per_channel.cu")


def ready(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Locations and weights as the peers want them; this is part of what a layer must do."""
    weights = inputs.logits.flatten(-2).softmax(-1).view_as(inputs.logits)
    sizes = level_sizes(inputs.shapes, inputs.value.device)
    return inputs.references[:, :, None, :, None] + inputs.offsets / sizes[:, None], weights


@functools.lru_cache
def level_sizes(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor([shape[::-1] for shape in shapes], dtype=torch.float32, device=device)


@functools.lru_cache
def shape_tensors(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    counts = [0, *(math.prod(shape) for shape in shapes)]
    starts = torch.tensor(counts[:-1]).cumsum(0)
    return torch.tensor(shapes, device=device), starts.to(device)


def transformers_peer() -> Peer:
    """transformers' own function, grid_sample level by level; one dimension is an image one cell high."""
    module = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    function = module.MultiScaleDeformableAttention()

    def run(inputs: Inputs) -> Tensor:
        locations, weights = ready(inputs)
        shapes = inputs.shapes
        if locations.shape[-1] == 1:
            locations = torch.cat((locations, torch.full_like(locations, 0.5)), -1)
            shapes = tuple((1, *shape) for shape in shapes)
        tensors = shape_tensors(shapes, inputs.value.device)
        value = inputs.value
        mixed = function(value, tensors[0], list(shapes), tensors[1], locations.to(value.dtype), weights, 64)
        return mixed.view(*mixed.shape[:2], *value.shape[2:])

    return run


def official_peer() -> Peer:
    """The extension built from Deformable DETR's sources, or mmcv's, whichever is installed.

    Raises:
        ImportError: neither is.
    """
    try:
        extension: Any = importlib.import_module("MultiScaleDeformableAttention")
    except ImportError:
        operation = importlib.import_module("mmcv.ops.multi_scale_deform_attn").MultiScaleDeformableAttnFunction
    else:

        class Official(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Any) -> Tensor:
                ctx.step = given[-1]
                ctx.save_for_backward(*given[:-1])
                return extension.ms_deform_attn_forward(*given)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                found = extension.ms_deform_attn_backward(*ctx.saved_tensors, grads[0].contiguous(), ctx.step)
                return found[0], None, None, found[1], found[2], None

        operation = Official

    def run(inputs: Inputs) -> Tensor:
        locations, weights = ready(inputs)
        tensors = shape_tensors(inputs.shapes, inputs.value.device)
        mixed = operation.apply(inputs.value, *tensors, locations, weights, 64)
        return mixed.view(*mixed.shape[:2], *inputs.value.shape[2:])

    return run


@functools.cache
def yardstick(name: str, device: int) -> cuda_driver.Kernel:
    architecture = cuda_compiler.architecture_of(*torch.cuda.get_device_capability(device))
    return cuda_driver.Kernel(cuda_compiler.build(architecture, {}, SOURCE), name, device)


class PerChannel(torch.autograd.Function):
    """`per_channel.cu`: one thread a channel, as the first CUDA operators did it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: tuple[Any, ...]) -> Tensor:
        batch, tokens, heads, channels = value.shape
        queries, levels, points = locations.shape[1], len(shapes), locations.shape[4]
        table, start = [], 0
        for shape in shapes:
            table += [start, *shape]
            start += math.prod(shape)
        table += [0] * (24 - len(table))
        ctx.sizes = (batch, tokens, queries, heads, channels, levels, points, *table)
        ctx.save_for_backward(value, locations, weights)
        output = value.new_empty(batch, queries, heads, channels)
        blocks = -(-output.numel() // 256)
        start_kernel("per_channel_forward", blocks, 256, ctx.sizes, value, locations, weights, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        found = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        items = locations.shape[0] * locations.shape[1] * locations.shape[2]
        inputs = grads[0].contiguous(), value, locations, weights
        start_kernel("per_channel_backward", items, value.shape[-1], ctx.sizes, *inputs, *found)
        return *found, None


def start_kernel(name: str, blocks: int, threads: int, sizes: tuple[int, ...], *tensors: Tensor) -> None:
    device = tensors[0].device
    stream = torch.cuda.current_stream(device).cuda_stream
    yardstick(name, device.index).launch(blocks, threads, stream, [x.data_ptr() for x in tensors], sizes)


def per_channel(inputs: Inputs) -> Tensor:
    """The yardstick; float32 and two dimensions."""
    locations, weights = ready(inputs)
    return PerChannel.apply(inputs.value, locations.contiguous(), weights.contiguous(), inputs.shapes)


def serves(name: str, inputs: Inputs) -> bool:
    """Whether a peer takes inputs of this type and number of dimensions."""
    flat = inputs.offsets.shape[-1] == 2
    return name == "transformers" or (flat and inputs.value.dtype == torch.float32)


def peers() -> tuple[dict[str, Peer], dict[str, str]]:
    """Those that can be measured here, and why others cannot."""
    found: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name, make in (("transformers", transformers_peer), ("official", official_peer)):
        try:
            found[name] = make()
        except ImportError as error:
            missing[name] = str(error)
    found["per_channel"] = per_channel
    return found, missing
