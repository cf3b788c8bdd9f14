"""Several processes as one run: what the loop needs of torch.distributed. In a single process it does nothing.

Gradients are averaged when they are complete, not while they come, as torch's DistributedDataParallel does: that one
counts on `forward`, where losses are methods here, and on every parameter being used in every process, where a batch
without targets uses no denoising group.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from momentdetr.errors import BadInput

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""For a process that hangs; one that dies is noticed at once."""

_BUCKET = 1 << 24
"""Numbers that are sent at once: few messages, but no second copy of all gradients."""


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


def device_of(name: str) -> torch.device:
    """The device of this process; "auto" is its own GPU if there is one.

    Raises:
        BadInput: the device cannot be used here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name!r} is not usable here: {error}") from error


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that `torchrun` or `accelerate launch` has started, if it has, and leave them at the end.

    Args:
        device: see `device_of`.

    Returns:
        The device of this process.

    Raises:
        BadInput: the device cannot be used here.
    """
    chosen = device_of(device)
    joins = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not is_distributed()
    if joins:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield chosen
    finally:
        if joins:
            dist.destroy_process_group()


def any_rank(here: bool, device: torch.device) -> bool:
    """Whether something is so in any process."""
    if not is_distributed():
        return here
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def from_first(value: T) -> T:
    """The first process's value, in all of them."""
    if not is_distributed():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def gathered(value: T) -> list[T]:
    """Every process's value, in all of them, in order."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def average_gradients(model: nn.Module) -> None:
    """Give every process the mean of all processes' gradients; one that a process has not counts as zero there."""
    if not is_distributed():
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    gradients = []
    for parameter, used in zip(parameters, there.tolist(), strict=True):
        if used:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, about `_BUCKET` numbers at a time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
