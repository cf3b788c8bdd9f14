"""Backbones of official checkpoints: which of timm's they are, and what official code calls their parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from momentdetr.errors import BadCheckpoint

# Blocks of each stage -> timm's name, by kind of block.
_BOTTLENECK: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
# First width, blocks of the third stage, and window -> timm's name.
_SWIN = {
    (96, 6, 7): "swin_tiny_patch4_window7_224",
    (96, 18, 7): "swin_small_patch4_window7_224",
    (128, 18, 7): "swin_base_patch4_window7_224",
    (128, 18, 12): "swin_base_patch4_window12_384",
    (192, 18, 7): "swin_large_patch4_window7_224",
    (192, 18, 12): "swin_large_patch4_window12_384",
}


def describe_backbone(state: Mapping[str, Tensor], options: Mapping[str, Any], num_maps: int) -> dict[str, Any]:
    """Arguments of `timm_backbone`, told from an official state dict.

    Args:
        num_maps: how many maps the detector uses, counted from the last.

    Raises:
        BadCheckpoint: no backbone that is known.
    """
    if "backbone.0.patch_embed.proj.weight" in state:
        width = state["backbone.0.patch_embed.proj.weight"].shape[0]
        table = state["backbone.0.layers.0.blocks.0.attn.relative_position_bias_table"]
        window = (int(table.shape[0] ** 0.5) + 1) // 2
        name = _SWIN.get((width, _count(state, "layers.2.blocks."), window))
        maps = list(range(4 - num_maps, 4))
        description: dict[str, Any] = {"norm_maps": True, "frozen_stages": 0}
    else:
        blocks = tuple(_count(state, f"body.layer{stage}.") for stage in (1, 2, 3, 4))
        deep = "backbone.0.body.layer1.0.conv3.weight" in state
        name = (_BOTTLENECK if deep else _BASIC).get(blocks)
        maps = list(range(5 - num_maps, 5))  # timm counts the stem as the first map
        description = {"dilate_last": bool(options.get("dilation", False))}
    if name is None:
        raise BadCheckpoint("the checkpoint's backbone is neither a ResNet nor a Swin transformer of a published size")
    return {"name": name, "maps": maps, **description}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    found = (re.match(rf"backbone\.0\.{re.escape(prefix)}(\d+)\.", name) for name in state)
    return len({match[1] for match in found if match})


def official_backbone_name(name: str, maps: Sequence[int]) -> str:
    """What official code calls a parameter of `Backbone`: behind "backbone." -> behind "backbone.0.".

    Args:
        maps: which stages' maps the backbone gives.
    """
    norm = re.fullmatch(r"norms\.(\d+)\.(.*)", name)
    if norm:
        return f"norm{maps[int(norm[1])]}.{norm[2]}"
    swin = re.fullmatch(r"body\.layers_(\d+)\.(.*)", name)
    if swin:
        # timm shrinks the map at the start of a stage, Swin's own code at the end of the one before.
        stage = int(swin[1]) - swin[2].startswith("downsample.")
        return f"layers.{stage}.{swin[2]}"
    if name.startswith("body.patch_embed."):
        return name.removeprefix("body.")
    return name
