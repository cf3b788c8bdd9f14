"""Feature maps of images, through timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from detection.swin import take_any_size
from momentdetr.errors import BadInput

# Transformers whose maps all have one stride.
_PLAIN = {"vision_transformer", "eva", "beit", "deit"}
# How families of timm that were trained at one image size are told to take any.
_ANY_SIZE: tuple[tuple[set[str], dict[str, Any]], ...] = (
    ({"swin_transformer"}, {"strict_img_size": False, "always_partition": True}),
    (_PLAIN, {"dynamic_img_size": True}),
)


class Backbone(nn.Module):
    """Images to feature maps, finest first.

    Args:
        body: (B, 3, H, W) -> maps (B, channels, h, w).
        channels: of each map.
        norm_maps: layer norms over the channels of each map, as detectors put behind Swin.
        channels_last: whether the body's maps are (B, h, w, channels).
    """

    def __init__(
        self, body: nn.Module, channels: Sequence[int], *, norm_maps: bool = False, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.body, self.channels, self.channels_last = body, tuple(channels), channels_last
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in channels) if norm_maps else None

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = list(self.body(images))
        if self.norms is None:
            return [_channels_first(found) for found in maps] if self.channels_last else maps
        rows = maps if self.channels_last else [found.permute(0, 2, 3, 1) for found in maps]
        return [_channels_first(norm(found)) for norm, found in zip(self.norms, rows, strict=True)]


def _channels_first(found: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w)."""
    return found.permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """Maps at strides 8, 16 and 32 from a plain transformer's last one at stride 16 (Li et al., 2022, "ViTDet").

    Args:
        body: (B, 3, H, W) -> maps at stride 16, of which the last counts.
        channels: of that map.
    """

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.finer = nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)
        self.coarser = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        last = self.body(images)[-1]
        return [self.finer(last), last, self.coarser(last)]


def timm_backbone(
    name: str,
    *,
    maps: Sequence[int] | None = None,
    dilate_last: bool = False,
    norm_maps: bool = False,
    frozen_norm: bool | None = None,
    frozen_stages: int = 2,
    pretrained: bool = False,
    **overrides: Any,
) -> Backbone:
    """Any model of timm that gives feature maps.

    Args:
        name: as timm calls it: "resnet50", "swin_large_patch4_window12_384", "convnext_tiny", "vit_base_patch16_224".
        maps: which of its maps; None: the last three (strides 8, 16 and 32 for most). A plain transformer, whose maps
            all have one stride, gets a simple pyramid of these three.
        dilate_last: keep the last stage at stride 16 by dilation (DETR's DC5).
        norm_maps: layer norms behind each map, as DINO puts behind Swin.
        frozen_norm: batch norms keep their statistics and scales; None: where there are any.
        frozen_stages: how many stages from the stem on are not trained (DETR: stem and first stage).
        pretrained: fetch timm's weights, which needs the network.
        overrides: sizes of the model, in timm's words.

    Raises:
        BadInput: timm does not know the name, or it gives no such maps.
    """
    options = {**_options(name), **overrides, **({"output_stride": 16} if dilate_last else {})}
    try:
        chosen = tuple(maps) if maps is not None else _last_three(name, options)
        body = timm.create_model(name, features_only=True, out_indices=chosen, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise BadInput(f"no backbone {name!r} with feature maps {maps}: {error}") from error
    if frozen_norm or (frozen_norm is None and any(isinstance(m, nn.BatchNorm2d) for m in body.modules())):
        body = freeze_batch_norm_2d(body)
    take_any_size(body)
    freeze_stages(body, frozen_stages)
    info: Any = body.feature_info
    channels = info.channels()
    if timm.models.is_model_in_modules(name.split(".")[0], _PLAIN):
        return Backbone(SimplePyramid(body, channels[-1]), (channels[-1] // 2, channels[-1], channels[-1]))
    last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
    return Backbone(body, channels, norm_maps=norm_maps, channels_last=last)


def _options(name: str) -> dict[str, Any]:
    if not timm.is_model(name.split(".")[0]):
        raise BadInput(f"timm knows no model {name!r}; `timm.list_models()` lists what it knows")
    found = (options for modules, options in _ANY_SIZE if timm.models.is_model_in_modules(name.split(".")[0], modules))
    return next(found, {})


def _last_three(name: str, options: dict[str, Any]) -> tuple[int, ...]:
    info: Any = timm.create_model(name, features_only=True, **options).feature_info
    return tuple(range(len(info.channels())))[-3:]


def freeze_stages(body: nn.Module, count: int) -> None:
    """Stop training the stem and the first `count - 1` stages."""
    names = ("conv1", "bn1", "stem", "patch_embed"), ("layer1", "stages.0", "stages_0", "layers.0", "layers_0")
    stopped = [name for group in names[:count] for name in group]
    for name, parameter in body.named_parameters():
        if any(name == stop or name.startswith(f"{stop}.") for stop in stopped):
            parameter.requires_grad_(False)
