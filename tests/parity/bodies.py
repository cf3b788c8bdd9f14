"""Backbones of the goldens' sizes: ResNet-50 with any number of channels, by its usual names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck


class Resnet50(nn.Module):
    """Images to the maps of the chosen stages (1 to 4), batch norms with fixed statistics.

    Args:
        channels: of the stem; 64 in the paper.
        stages: whose maps are given, finest first.
    """

    def __init__(self, channels: int, stages: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.stages, size = tuple(stages), channels
        for stage, blocks in enumerate((3, 4, 6, 3), start=1):
            planes, stride = channels * 2 ** (stage - 1), 1 if stage == 1 else 2
            skip = nn.Sequential(nn.Conv2d(size, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
            first = Bottleneck(size, planes, stride, skip)
            size = 4 * planes
            setattr(self, f"layer{stage}", nn.Sequential(first, *(Bottleneck(size, planes) for _ in range(blocks - 1))))

    def train(self, mode: bool = True) -> Resnet50:
        """Batch norms never train."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, hidden = [], self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(1, 5):
            hidden = getattr(self, f"layer{stage}")(hidden)
            if stage in self.stages:
                maps.append(hidden)
        return maps
