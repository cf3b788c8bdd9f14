"""Swin transformers as detectors run them: on images of any size."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn


class _PadFirst(SwinTransformerBlock):
    """Pad to whole windows, then shift.

    timm shifts first, so that windows of maps that do not divide by them hold other cells than in Swin's own detection
    code, which published detectors were trained with. Where maps divide, the two are the same.
    """

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        missing = (-height % self.window_size[0], -width % self.window_size[1])
        return super()._attn(F.pad(x, (0, 0, 0, missing[1], 0, missing[0])))[:, :height, :width]


def take_any_size(body: nn.Module) -> None:
    """Let a Swin transformer of timm take images of any size, as Swin's own detection code does."""
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = _PadFirst  # the same state, another way to attend
        if isinstance(module, PatchEmbed):
            patches: Any = module  # declared final, for scripting, which is not done here
            patches.dynamic_img_pad = True
