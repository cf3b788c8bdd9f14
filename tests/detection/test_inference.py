"""The fast form of a backbone: the oracle is the backbone itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detection.backbone import timm_backbone
from detection.inference import speed_up


def unlike_new(backbone: nn.Module) -> nn.Module:
    """With norms that do something."""
    torch.manual_seed(0)
    for module in backbone.modules():
        if hasattr(module, "running_var"):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("running_var", 0.5, 1.5),
                ("bias", -1, 1),
                ("running_mean", -1, 1),
            ):
                getattr(module, name).data.uniform_(low, high)
    return backbone.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext_atto"])
@torch.no_grad()
def test_the_fast_form_sees_the_same(name: str) -> None:
    backbone = unlike_new(timm_backbone(name))
    fast = copy.deepcopy(backbone)
    speed_up(fast)
    images = torch.randn(2, 3, 96, 128)
    for found, expected in zip(fast(images), backbone(images), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert not any(hasattr(module, "running_var") for module in fast.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fast.modules())


@torch.no_grad()
def test_a_convolution_that_two_norms_read_is_left_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            from torchvision.ops import FrozenBatchNorm2d

            self.convolution = nn.Conv2d(3, 4, 1)
            self.left, self.right = FrozenBatchNorm2d(4), FrozenBatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.convolution(images)
            return self.left(found) - self.right(found)

    model = unlike_new(Forked())
    images = torch.randn(1, 3, 8, 8)
    expected = model(images)
    speed_up(model)
    torch.testing.assert_close(model(images), expected)
