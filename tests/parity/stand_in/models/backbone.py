"""The last map of a ResNet, with its mask and positions."""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from util.misc import NestedTensor


class BackboneBase(nn.Module):
    def __init__(self, body: nn.Module, num_channels: int) -> None:
        super().__init__()
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(any(f"layer{stage}" in name for stage in (2, 3, 4)))
        self.body = IntermediateLayerGetter(body, {"layer4": "0"})
        self.num_channels = num_channels

    def forward(self, images: NestedTensor) -> NestedTensor:
        found = self.body(images.tensors)["0"]
        mask = F.interpolate(images.mask[None].float(), size=found.shape[-2:])[0].bool()
        return NestedTensor(found, mask)


class Backbone(BackboneBase):
    def __init__(self, name: str, dilation: bool) -> None:
        options: dict[str, Any] = {"replace_stride_with_dilation": [False, False, dilation], "pretrained": True}
        super().__init__(getattr(torchvision.models, name)(**options), 2048)


class Sine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, found: NestedTensor) -> Tensor:
        real = ~found.mask
        power = torch.arange(self.width // 2, dtype=torch.float32).div(2, rounding_mode="floor") * 4 / self.width
        parts = []
        for axis in (1, 2):
            place = real.cumsum(axis, dtype=torch.float32)
            place = place / (place.select(axis, -1).unsqueeze(axis) + 1e-6) * 2 * torch.pi
            angle = place[..., None] / 10000.0**power
            part = torch.empty_like(angle)
            part[..., 0::2], part[..., 1::2] = angle[..., 0::2].sin(), angle[..., 1::2].cos()
            parts.append(part)
        return torch.cat(parts, -1).permute(0, 3, 1, 2)


class Joiner(nn.Sequential):
    def forward(self, images: NestedTensor) -> Any:
        found = self[0](images)
        return [found], [self[1](found).to(found.tensors.dtype)]


def build_backbone(args: Any) -> Joiner:
    joined = Joiner(Backbone(args.backbone, args.dilation), Sine(args.hidden_dim))
    joined.num_channels = joined[0].num_channels
    return joined
