"""Dropout and PReLU as in torch, but fast on the CPU in training.

There, torch draws dropout's mask one number after another and sums PReLU's gradient without vector instructions; in a
model of clips and words the two take a fifth of a step. Elsewhere, torch's own are used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STEPS = 1 << 16  # a mask is drawn from 16 bits a number


class Dropout(nn.Dropout):
    """Set numbers to zero at random and scale the others so that the mean stays.

    On the CPU the probability is rounded to a multiple of 2^-16, and the scale belongs to the rounded one.
    """

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or values.device.type != "cpu" or values.numel() == 0:
            return super().forward(values)
        return values * kept(values, self.p)


def kept(values: Tensor, probability: float) -> Tensor:
    """A mask like `values`, on the CPU: 0 with this probability, else what keeps the mean."""
    dropped = round(probability * _STEPS)
    count = values.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # 64 bits are four draws
    draws = bits.view(torch.int16)[:count].view(values.shape)  # uniform in [-32768, 32767]
    mask = torch.empty(values.shape, dtype=values.dtype)
    torch.ge(draws, dropped - _STEPS // 2, out=mask)  # straight into numbers: by way of bool it takes ten times as long
    return mask.mul_(_STEPS / max(_STEPS - dropped, 1))


class PReLU(nn.PReLU):
    """x where it is positive, else weight * x; with one weight for all numbers."""

    def __init__(self) -> None:
        super().__init__(num_parameters=1)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or values.device.type != "cpu" or values.dtype != self.weight.dtype:
            return super().forward(values)
        result: Tensor = _PReLU.apply(values, self.weight)
        return result


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(values, weight)
        return F.leaky_relu(values, float(weight))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        values, weight = context.saved_tensors
        of_values = torch.ops.aten.leaky_relu_backward(gradient, values, float(weight), False)
        of_weight = torch.dot(gradient.flatten(), values.clamp(max=0).flatten())
        return of_values, of_weight.view_as(weight)
