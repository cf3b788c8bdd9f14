"""A backbone in the form that answers fastest: the same numbers but for rounding, no longer to be trained or saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
_SMALL = 64
"""Pixels of the image that shows which norm follows which convolution."""


@torch.no_grad()
def speed_up(backbone: nn.Module) -> None:
    """Fold frozen batch norms into the convolutions before them, and keep channels side by side in memory; in place."""
    for name, convolution in _folded(backbone).items():
        norm: Any = backbone.get_submodule(name)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        before = torch.zeros_like(norm.bias) if convolution.bias is None else convolution.bias
        convolution.weight.mul_(scale[:, None, None, None])
        convolution.bias = nn.Parameter((before - norm.running_mean) * scale + norm.bias)
        after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, FrozenBatchNormAct2d) else nn.Identity()
        backbone.set_submodule(name, after)
    backbone.to(memory_format=torch.channels_last)


def _folded(backbone: nn.Module) -> dict[str, nn.Conv2d]:
    """Name of each frozen batch norm whose only input is what a convolution made -> that convolution."""
    norms = {name: module for name, module in backbone.named_modules() if isinstance(module, _FROZEN)}
    if not norms:
        return {}
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: dict[str, nn.Conv2d] = {}

    def remember(convolution: nn.Conv2d, _: object, output: Tensor) -> None:
        made[id(output)] = convolution, output  # which is kept, so that no other one gets its id

    def recall(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in made:
            found[name] = made[id(inputs[0])][0]

    with _hooked(backbone, remember, norms, recall):
        weight = next(backbone.parameters())
        backbone(torch.zeros(1, 3, _SMALL, _SMALL, device=weight.device, dtype=weight.dtype))
    shared = list(found.values())
    return {name: convolution for name, convolution in found.items() if shared.count(convolution) == 1}


@contextmanager
def _hooked(backbone: nn.Module, remember, norms: dict[str, nn.Module], recall) -> Iterator[None]:  # type: ignore[no-untyped-def]
    hooks = [m.register_forward_hook(remember) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(partial(recall, name)) for name, norm in norms.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
