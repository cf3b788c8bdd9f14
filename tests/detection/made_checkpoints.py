"""Small official checkpoints, made from our own models: the same weights under official names."""

from __future__ import annotations

from typing import Any

import torch
from parity.systems.tiny import TinyResNet
from torch import Tensor

from detection.backbone import Backbone
from detection.backbone_names import official_backbone_name
from detection.model import ImageDetector
from detection.official_layout import place
from detection.official_systems import OFFICIAL
from detection.presets import build
from momentdetr.detr.official import scatter

SIZES = {
    "width": 32,
    "num_heads": 4,
    "feed_forward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 5,
    "num_points": 2,
    "encoder_points": 3,
}
OPTIONS = {"nheads": 4, "num_queries": 5, "dec_n_points": 2, "enc_n_points": 3, "num_select": 7}


def tiny_body() -> Backbone:
    torch.manual_seed(1)
    body = TinyResNet([1, 1, 1, 1], 2)
    return Backbone(body, body.channels)


def make(
    system: str, *, num_classes: int = 6, backbone: Backbone | None = None, **config: Any
) -> tuple[ImageDetector, dict[str, Tensor]]:
    """A detector with random weights, and its official state dict with every alias.

    Args:
        config: `channels` and whatever else differs.
    """
    torch.manual_seed(0)
    levels = {} if system in ("detr", "conditional_detr", "dab_detr", "dn_detr") else {"num_levels": 4}
    maps = [16, 32, 64] if levels else [64]
    scores = "softmax" if system == "detr" else "sigmoid"
    whole = {"system": system, "num_classes": num_classes, "channels": maps, "scores": scores, "sizes": SIZES | levels}
    model = build({**whole, **config}, backbone or tiny_body())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), official_names(system, model)


def official_names(system: str, model: ImageDetector) -> dict[str, Tensor]:
    """A model's weights under official names, aliases included."""
    layers = len(model.detector.detr.decoder.layers)
    # A layout asks the state dict only how many layers there are.
    shape = {f"transformer.decoder.layers.{i}.norm1.weight": torch.zeros(1) for i in range(layers)}
    layout = OFFICIAL[system].layout(shape)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    places = {name: place(name.removeprefix("detector."), layout, _backbone) for name in state}
    return _with_aliases(scatter(state, places), system, layers)


def _backbone(name: str) -> str:
    return official_backbone_name(name, (1, 2, 3))


def _with_aliases(official: dict[str, Tensor], system: str, layers: int) -> dict[str, Tensor]:
    whole = dict(official)
    if system in ("deformable_detr", "dino"):  # one head, repeated for every layer
        for name in [n for n in official if n.startswith(("class_embed.0.", "bbox_embed.0."))]:
            for i in range(1, layers):
                whole.setdefault(name.replace(".0.", f".{i}.", 1), official[name].clone())
    refined = system != "deformable_detr" or "bbox_embed.1.layers.0.weight" in official
    if system not in ("detr", "conditional_detr") and refined:
        heads = [n for n in whole if n.startswith("bbox_embed.")]
        if system in ("dino", "dn_dino"):
            heads += [n for n in whole if n.startswith("class_embed.")]
        whole |= {f"transformer.decoder.{name}": whole[name].clone() for name in heads}
    return whole


def make_images() -> tuple[Tensor, Tensor]:
    """Two images of unequal size."""
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 96, 128, dtype=torch.bool)
    mask[1, 64:], mask[1, :, 96:] = False, False
    return images * mask[:, None], mask
