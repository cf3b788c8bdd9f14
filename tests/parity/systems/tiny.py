"""The backbones of image goldens: torchvision's and Swin's blocks at small width, with the names of the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from detection.backbone import Backbone, timm_backbone

SWIN = "swin_tiny_patch4_window7_224"


class _StillBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that stays in evaluation mode."""

    def train(self, mode: bool = True) -> _StillBatchNorm2d:
        return super().train(False)


class TinyResNet(ResNet):
    """A ResNet whose stem has `width` channels instead of 64; gives the maps of its four stages.

    Its batch norms never move; `folded` says in which order they round: DETR's own make one scale and one shift of
    their four numbers, the usual ones in evaluation mode do not.
    """

    def __init__(
        self,
        blocks: list[int],
        width: int,
        *,
        bottleneck: bool = True,
        dilate_last: bool = False,
        folded: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        block = Bottleneck if bottleneck else BasicBlock
        self._norm_layer = FrozenBatchNorm2d if folded else _StillBatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = self._norm_layer(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, width, blocks[0])
        self.layer2 = self._make_layer(block, 2 * width, blocks[1], stride=2)
        self.layer3 = self._make_layer(block, 4 * width, blocks[2], stride=2)
        self.layer4 = self._make_layer(block, 8 * width, blocks[3], stride=2, dilate=dilate_last)
        self.channels = [width * block.expansion * 2**stage for stage in range(4)]

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            found.append(stage(found[-1]))
        return found[1:]


def tiny_backbone(config: Mapping[str, Any], num_maps: int) -> Backbone:
    """The backbone that a golden's config.json describes, giving its last maps."""
    if "tiny_swin" in config:
        sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in config["tiny_swin"].items()}
        maps = tuple(range(4 - num_maps, 4))
        return timm_backbone(SWIN, maps=maps, norm_maps=True, frozen_stages=0, drop_path_rate=0.0, **sizes)
    tiny, options = config["tiny_backbone"], config["full_args"]
    deep = options.get("backbone") not in ("resnet18", "resnet34")
    body = TinyResNet(tiny["layers"], tiny["width"], bottleneck=deep, dilate_last=bool(options.get("dilation")))
    return Backbone(body, body.channels)
