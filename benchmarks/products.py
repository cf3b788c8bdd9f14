"""How long a training step takes beside its own matrix products: the same products, of the same shapes, alone.

Convolutions and fused attention kernels are not counted, so that for models that use them the bound is too low.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.training.config import OptimizerConfig
from momentdetr.training.optimizer import build_optimizer

_PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm"))

Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Product:
    """One call: what is called, and size, strides and type of its tensors."""

    call: Any
    operands: tuple[Operand, ...]

    @property
    def flops(self) -> int:
        *_, (*batch, rows, inner), (*_, columns) = (size for size, _, _ in self.operands)
        return 2 * rows * inner * columns * (batch[0] if batch else 1)


class Recorder(TorchDispatchMode):
    """Write down every product while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            operands = [(tuple(x.shape), x.stride(), x.dtype) for x in args if isinstance(x, Tensor)]
            self.products.append(Product(func, tuple(operands)))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Beside:
    """Means over the measured batches, in seconds a step; the two were measured in turns.

    Args:
        step: making the batch, forward, losses, backward, clipping, the optimiser.
        products: the products of such a step alone.
        flops: of those, a step.
    """

    step: float
    products: float
    flops: float


def measure(
    model: MomentRetriever, data: MomentDataset, batches: Sequence[Sequence[int]], optimizer: OptimizerConfig
) -> Beside:
    """Time training steps and their products in turns; the model learns while it is measured.

    Args:
        model: on the CPU.
        data: what it learns from.
        batches: indices of samples; the first one is only for warming up.
        optimizer: as in training.
    """
    adamw = build_optimizer(model.train(), optimizer)
    steps, products, flops = [], [], []
    for number, indices in enumerate(batches):

        def step(indices: Sequence[int] = indices) -> None:
            _step(model, data, indices, adamw, optimizer.clip_norm)

        with Recorder() as recorder:
            step()
        alone = replay(recorder.products)
        times = _seconds(step), _seconds(alone)
        if number:
            steps.append(times[0])
            products.append(times[1])
            flops.append(sum(product.flops for product in recorder.products))
    count = len(steps)
    return Beside(sum(steps) / count, sum(products) / count, sum(flops) / count)


def replay(products: Sequence[Product]) -> Callable[[], None]:
    """A function that does nothing but these products, on numbers that are there already."""
    made: dict[tuple[int, Operand], Tensor] = {}
    calls = []
    for product in products:
        tensors = []
        for place, operand in enumerate(product.operands):
            key = (place, operand)
            if key not in made:
                size, stride, dtype = operand
                reach = 1 + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
                made[key] = torch.randn(reach, dtype=dtype).as_strided(size, stride)  # the stride may be 0
            tensors.append(made[key])
        calls.append((product.call, tensors))

    def run() -> None:
        for call, tensors in calls:
            call(*tensors)

    return run


def _step(
    model: MomentRetriever, data: MomentDataset, indices: Sequence[int], adamw: torch.optim.AdamW, clip_norm: float
) -> None:
    batch = data.batch(indices)
    adamw.zero_grad(set_to_none=True)
    model.loss(batch.inputs, batch.targets).total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    adamw.step()


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
