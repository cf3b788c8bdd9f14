"""detrex's names: the same weights under them must become the same detector."""

from __future__ import annotations

import re

import pytest
import torch
from made_checkpoints import OPTIONS, make, make_images, tiny_body
from torch import Tensor

from detection import detrex
from detection.convert import convert_state
from momentdetr.errors import BadCheckpoint

MADE = {
    "detr": {},
    "conditional_detr": {},
    "deformable_detr": {"positions": {"offset": -0.5}},
    "deformable_detr, two-stage": {"positions": {"offset": -0.5}, "options": {"refine": True, "two_stage": True}},
    "dab_detr": {},
    "dab_deformable_detr": {},
    "dn_detr": {"denoising": {}},
    "dn_deformable_detr": {"denoising": {}},
    "dino": {
        "denoising": {"contrastive": True, "indicator": False},
        "options": {"shared_classes": False, "shared_boxes": False},
        "positions": {"offset": -0.5},
    },
}
EPS = ("conditional_detr", "deformable_detr")  # where detrex's differs from the official code's


def to_detrex(state: dict[str, Tensor], system: str) -> dict[str, Tensor]:
    """Official names to detrex's, as its own projects' converters rename them."""
    deformable = any("sampling_offsets" in name for name in state)
    renamed = {}
    for name, tensor in state.items():
        new = name
        if new.startswith("backbone."):
            new = new.replace("backbone.0.body.", "")
            new = new if "layer" in new else f"stem.{new}"
            new = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", new)
            new = re.sub(r"bn(\d)", r"conv\1.norm", new)
            new = new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            new = f"backbone.{new}"
        if deformable:
            for level, own in enumerate(("convs.0", "convs.1", "convs.2", "extra_convs.0")):
                new = new.replace(f"input_proj.{level}.0", f"neck.{own}.conv")
                new = new.replace(f"input_proj.{level}.1", f"neck.{own}.norm")
            new = new.replace("level_embed", "level_embeds")
        if ".layers." in new and new.startswith("transformer."):
            new = _layer(new, "decoder" in new, deformable, "multihead_attn" in "".join(state))
        if not (deformable and "dino" in system):
            new = new.replace("decoder.norm.", "decoder.post_norm_layer.")
        if system.startswith("deformable"):
            new = new.replace("query_embed.", "query_embedding.")
        if system in ("dab_detr", "dn_detr"):
            new = new.replace("refpoint_embed.", "anchor_box_embed.")
        if system == "dn_detr":
            new = new.replace("label_enc.", "denoising_generator.label_encoder.")
        if system == "dn_deformable_detr":
            new = new.replace("label_enc.", "label_encoder.")
        if system == "dino":
            new = re.sub(r"transformer\.enc_out_(class|bbox)_embed", r"\1_embed.2", new)  # behind two layers
        renamed[new] = tensor
    if system == "dino":
        aliases = {f"transformer.decoder.{n}": v.clone() for n, v in renamed.items() if "_embed.2." in n}
        return renamed | aliases
    return renamed


def _layer(name: str, decoder: bool, deformable: bool, dense: bool) -> str:
    name = name.replace("linear1", "ffns.0.layers.0.0").replace("linear2", "ffns.0.layers.1")
    name = name.replace("activation", "ffns.0.layers.0.1")
    numbers = {"1": "1", "2": "0", "3": "2"} if deformable and decoder else {"1": "0", "2": "1", "3": "2"}
    name = re.sub(r"\.norm([123])\.", lambda m: f".norms.{numbers[m[1]]}.", name)
    words = {"q": "query", "k": "key", "v": "value"}
    for prefix, index in (("sa", 0), ("ca", 1)):
        name = re.sub(
            rf"\.{prefix}_([qkv])(content_|pos_sine_|pos_|_)proj",
            lambda m, index=index: f".attentions.{index}.{words[m[1]]}_{m[2].lstrip('_')}proj",
            name,
        )
    if decoder:
        inside = ".attn" if deformable or dense else ""
        name = name.replace("self_attn", f"attentions.0{inside}").replace("multihead_attn", "attentions.1.attn")
        return name.replace("cross_attn", "attentions.1")
    return name.replace("self_attn", "attentions.0" if deformable else "attentions.0.attn")


def made(kind: str) -> tuple[str, object, dict[str, Tensor]]:
    system = kind.split(",")[0]
    config = dict(MADE[kind])
    if system in EPS:
        config["options"] = {**config.get("options", {}), "eps": 1e-3}
    if system == "dino":
        config["positions"] = {"temperature": 10000.0, "offset": -0.5}
    model, state = make(system, **config)
    return system, model, to_detrex(state, system)


@pytest.mark.parametrize("kind", MADE)
def test_a_checkpoint_gives_the_answers_that_its_weights_gave(kind: str) -> None:
    system, model, state = made(kind)
    assert detrex.has_its_names(state)
    conversion = convert_state(state, OPTIONS, backbone=tiny_body())
    assert conversion.system == system
    assert conversion.about["layout"] == "detrex"
    found = conversion.model(tiny_body())
    images, mask = make_images()
    with torch.no_grad():
        expected, said = model(images, mask), found(images, mask)  # type: ignore[operator]
    for mine, theirs in zip(said.layers, expected.layers, strict=True):
        torch.testing.assert_close(mine.logits, theirs.logits)
        torch.testing.assert_close(mine.boxes, theirs.boxes)
    assert found.top == 300


@pytest.mark.parametrize("kind", MADE)
def test_every_tensor_counts(kind: str) -> None:
    _, _, state = made(kind)
    for name in sorted(state)[:: max(1, len(state) // 6)]:
        if name.startswith(("transformer.decoder.bbox_embed", "transformer.decoder.class_embed")):
            continue
        without = {key: value for key, value in state.items() if key != name}
        with pytest.raises(BadCheckpoint):
            convert_state(without, OPTIONS, backbone=tiny_body())
    with pytest.raises(BadCheckpoint, match="no official name"):
        convert_state({**state, "surprise.weight": torch.zeros(2)}, OPTIONS, backbone=tiny_body())


def test_what_the_criterion_registers_is_not_the_detectors() -> None:
    _, _, state = made("detr")
    conversion = convert_state({**state, "criterion.empty_weight": torch.ones(7)}, OPTIONS, backbone=tiny_body())
    assert conversion.system == "detr"


def test_official_checkpoints_are_not_taken_for_detrex() -> None:
    assert not detrex.has_its_names(make("detr")[1])
