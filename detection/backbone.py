"""Feature maps of images, through timm."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from momentdetr.errors import BadInput


class Backbone(nn.Module):
    """Images to feature maps, finest first.

    Args:
        body: (B, 3, H, W) -> maps (B, channels, h, w).
        channels: of each map.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.body, self.channels = body, tuple(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images))


def timm_backbone(
    name: str,
    *,
    maps: Sequence[int] | None = None,
    dilate_last: bool = False,
    frozen_norm: bool | None = None,
    frozen_stages: int = 2,
    pretrained: bool = False,
) -> Backbone:
    """Any model of timm that gives feature maps.

    Args:
        name: as timm calls it: "resnet50", "swin_large_patch4_window12_384", "convnext_tiny", ...
        maps: which of its maps; None: the last three (strides 8, 16 and 32 for most).
        dilate_last: keep the last stage at stride 16 by dilation (DETR's DC5).
        frozen_norm: batch norms keep their statistics and scales; None: where there are any.
        frozen_stages: how many stages from the stem on are not trained (DETR: stem and first stage).
        pretrained: fetch timm's weights, which needs the network.

    Raises:
        BadInput: timm does not know the name, or it gives no maps.
    """
    options: dict[str, object] = {"output_stride": 16} if dilate_last else {}
    try:
        if maps is None:
            count = len(timm.create_model(name, features_only=True).feature_info.channels())
            maps = tuple(range(count))[-3:]
        body = timm.create_model(name, features_only=True, out_indices=tuple(maps), pretrained=pretrained, **options)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise BadInput(f"no backbone {name!r} with feature maps {maps}: {error}") from error
    if frozen_norm or (frozen_norm is None and any(isinstance(m, nn.BatchNorm2d) for m in body.modules())):
        body = freeze_batch_norm_2d(body)
    freeze_stages(body, frozen_stages)
    return Backbone(body, body.feature_info.channels())


def freeze_stages(body: nn.Module, count: int) -> None:
    """Stop training the stem and the first `count - 1` stages."""
    names = ("conv1", "bn1", "stem", "patch_embed"), ("layer1", "stages.0", "stages_0", "layers.0", "layers_0")
    stopped = [name for group in names[:count] for name in group]
    for name, parameter in body.named_parameters():
        if any(name == stop or name.startswith(f"{stop}.") for stop in stopped):
            parameter.requires_grad_(False)


def channels_last(images: Tensor) -> Tensor:
    """(B, H, W, C) maps, as Swin gives them, to (B, C, H, W)."""
    return images.permute(0, 3, 1, 2) if images.dim() == 4 else images


__all__ = ["Backbone", "channels_last", "freeze_stages", "timm_backbone", "torch"]
