from __future__ import annotations

import pytest
import timm
import torch

from detection.backbone import timm_backbone
from momentdetr.errors import BadInput

SWIN = {"embed_dim": 8, "depths": (1, 2, 2, 2), "num_heads": (1, 1, 2, 2)}
SWIN_NAME = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("name", "channels", "strides", "options"),
    [
        ("resnet18", (128, 256, 512), (8, 16, 32), {}),
        ("resnet18", (256, 512), (16, 16), {"dilate_last": True, "maps": (3, 4)}),
        ("convnext_atto", (80, 160, 320), (8, 16, 32), {}),
        (SWIN_NAME, (16, 32, 64), (8, 16, 32), {**SWIN, "norm_maps": True}),
        ("vit_tiny_patch16_224", (96, 192, 192), (8, 16, 32), {"depth": 3}),
        ("vit_small_patch16_dinov3", (192, 384, 384), (8, 16, 32), {"depth": 3}),
    ],
)
def test_maps_have_the_channels_and_strides_that_they_should(
    name: str, channels: tuple[int, ...], strides: tuple[int, ...], options: dict[str, object]
) -> None:
    backbone = timm_backbone(name, **options).eval()  # type: ignore[arg-type]
    assert backbone.channels == channels
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 96, 160))
    assert [tuple(m.shape) for m in maps] == [
        (1, size, 96 // stride, 160 // stride) for size, stride in zip(channels, strides, strict=True)
    ]


def test_stem_first_stage_and_norms_are_frozen() -> None:
    backbone = timm_backbone("resnet18")
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any("bn" in name for name, _ in backbone.named_parameters())
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())


def test_swin_takes_any_size_and_is_timm_s_where_windows_fit() -> None:
    torch.manual_seed(0)
    ours = timm_backbone(SWIN_NAME, maps=(1, 2), frozen_stages=0, **SWIN).eval()
    twin = timm.create_model(SWIN_NAME, features_only=True, out_indices=(1, 2), strict_img_size=False, **SWIN).eval()
    twin.load_state_dict(ours.body.state_dict())
    with torch.no_grad():
        fitting = torch.randn(1, 3, 224, 224)
        for mine, theirs in zip(ours(fitting), twin(fitting), strict=True):
            torch.testing.assert_close(mine, theirs.permute(0, 3, 1, 2))
        # Where they do not fit, the map is padded to whole windows before it is shifted: as the padded map would be.
        block = ours.body.layers_1.blocks[1]
        rows = torch.randn(1, 10, 12, 16)
        padded = torch.nn.functional.pad(rows, (0, 0, 0, 2, 0, 4))
        torch.testing.assert_close(block._attn(rows), block._attn(padded)[:, :10, :12])
        assert [tuple(m.shape[2:]) for m in ours(torch.randn(1, 3, 75, 101))] == [(10, 13), (5, 7)]


def test_what_timm_does_not_know_is_refused() -> None:
    with pytest.raises(BadInput, match="timm knows no model"):
        timm_backbone("resnet_of_dreams")
    with pytest.raises(BadInput, match="no backbone 'resnet18' with feature maps"):
        timm_backbone("resnet18", maps=(9,))
