"""Official Co-DETR checkpoints (mmdetection's layout) to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from detection.official_layout import UNUSED, some
from momentdetr.detr.official import Place, gather, left_over
from momentdetr.errors import BadCheckpoint

SYSTEMS = ("co_deformable_detr", "co_dino")

_T = "query_head.transformer"
_DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "out": "output_proj",
}
_PACKED = {"query": 0, "key": 1, "value": 2}

_LAYERS: tuple[tuple[str, str], ...] = (
    (r"detr\.(encoder|decoder)\.layers\.(\d+)\.feed_forward\.expand\.(.*)", rf"{_T}.\1.layers.\2.ffns.0.layers.0.0.\3"),
    (r"detr\.(encoder|decoder)\.layers\.(\d+)\.feed_forward\.contract\.(.*)", rf"{_T}.\1.layers.\2.ffns.0.layers.1.\3"),
    (r"detr\.(encoder|decoder)\.layers\.(\d+)\.norm_(?:attention|self)\.(.*)", rf"{_T}.\1.layers.\2.norms.0.\3"),
    (r"detr\.decoder\.layers\.(\d+)\.norm_cross\.(.*)", rf"{_T}.decoder.layers.\1.norms.1.\2"),
    (r"detr\.encoder\.layers\.(\d+)\.norm_feed_forward\.(.*)", rf"{_T}.encoder.layers.\1.norms.1.\2"),
    (r"detr\.decoder\.layers\.(\d+)\.norm_feed_forward\.(.*)", rf"{_T}.decoder.layers.\1.norms.2.\2"),
    (
        r"detr\.decoder\.layers\.(\d+)\.self_attention\.out\.(.*)",
        rf"{_T}.decoder.layers.\1.attentions.0.attn.out_proj.\2",
    ),
)
_MAIN: tuple[tuple[str, str], ...] = (
    (r"backbone\.body\.(.*)", r"backbone.\1"),
    (r"neck\.level_embedding", rf"{_T}.level_embeds"),
    (r"detr\.decoder\.norm\.(.*)", rf"{_T}.decoder.norm.\1"),
    (r"detr\.decoder\.heads\.(\d+)\.classes\.(.*)", r"query_head.cls_branches.\1.\2"),
    (r"detr\.queries\.head\.project\.(.*)", rf"{_T}.enc_output.\1"),
    (r"detr\.queries\.head\.norm\.(.*)", rf"{_T}.enc_output_norm.\1"),
    (r"detr\.queries\.from_boxes\.(.*)", rf"{_T}.pos_trans.\1"),
    (r"detr\.queries\.norm_boxes\.(.*)", rf"{_T}.pos_trans_norm.\1"),
    (r"detr\.denoising\.labels\.(.*)", r"query_head.label_embedding.\1"),
)
_HYBRID: tuple[tuple[str, str], ...] = (
    (r"detr\.hybrid\.coarser\.(.*)", r"query_head.downsample.\1"),
    (r"detr\.hybrid\.heads\.0\.regions\.mix\.(.*)", r"rpn_head.rpn_conv.\1"),
    (r"detr\.hybrid\.heads\.0\.regions\.objects\.(.*)", r"rpn_head.rpn_cls.\1"),
    (r"detr\.hybrid\.heads\.0\.regions\.boxes\.(.*)", r"rpn_head.rpn_reg.\1"),
    (r"detr\.hybrid\.heads\.0\.head\.hidden\.1\.(.*)", r"roi_head.0.bbox_head.shared_fcs.0.\1"),
    (r"detr\.hybrid\.heads\.0\.head\.hidden\.3\.(.*)", r"roi_head.0.bbox_head.shared_fcs.1.\1"),
    (r"detr\.hybrid\.heads\.0\.head\.classes\.(.*)", r"roi_head.0.bbox_head.fc_cls.\1"),
    (r"detr\.hybrid\.heads\.0\.head\.boxes\.(.*)", r"roi_head.0.bbox_head.fc_reg.\1"),
    (r"detr\.hybrid\.heads\.1\.class_tower\.(\d+)\.0\.(.*)", r"bbox_head.0.cls_convs.\1.conv.\2"),
    (r"detr\.hybrid\.heads\.1\.class_tower\.(\d+)\.1\.(.*)", r"bbox_head.0.cls_convs.\1.gn.\2"),
    (r"detr\.hybrid\.heads\.1\.box_tower\.(\d+)\.0\.(.*)", r"bbox_head.0.reg_convs.\1.conv.\2"),
    (r"detr\.hybrid\.heads\.1\.box_tower\.(\d+)\.1\.(.*)", r"bbox_head.0.reg_convs.\1.gn.\2"),
    (r"detr\.hybrid\.heads\.1\.classes\.(.*)", r"bbox_head.0.atss_cls.\1"),
    (r"detr\.hybrid\.heads\.1\.boxes\.(.*)", r"bbox_head.0.atss_reg.\1"),
    (r"detr\.hybrid\.heads\.1\.centerness\.(.*)", r"bbox_head.0.atss_centerness.\1"),
    (r"detr\.hybrid\.heads\.1\.scales\.(\d+)", r"bbox_head.0.scales.\1.scale"),
    (r"detr\.hybrid\.lending\.(\d+)\.from_boxes\.(.*)", rf"{_T}.aux_pos_trans.\1.\2"),
    (r"detr\.hybrid\.lending\.(\d+)\.norm_boxes\.(.*)", rf"{_T}.aux_pos_trans_norm.\1.\2"),
    (r"detr\.hybrid\.lending\.(\d+)\.from_features\.(.*)", rf"{_T}.pos_feats_trans.\1.\2"),
    (r"detr\.hybrid\.lending\.(\d+)\.norm_features\.(.*)", rf"{_T}.pos_feats_norm.\1.\2"),
    (r"detr\.hybrid\.lending\.(\d+)\.place", rf"{_T}.head_pos_embed.weight#\1"),
)


def is_co_detr(state: Mapping[str, Tensor]) -> bool:
    """Whether an official state dict is Co-DETR's."""
    return f"{_T}.aux_pos_trans.0.weight" in state


def is_co_dino(state: Mapping[str, Tensor]) -> bool:
    """Whether Co-DETR's is Co-DINO's."""
    return "query_head.label_embedding.weight" in state


def place(name: str, *, num_maps: int, num_layers: int, dino: bool) -> Place:
    """Official name of one of our parameters, and which part of it.

    Args:
        name: without "detector.".
        num_maps: of the backbone; further levels have a numbering of their own.
        num_layers: of the decoder; the proposals' heads are numbered after the layers'.
        dino: Co-DINO; else Co-Deformable-DETR.
    """
    for special in (_attention(name), _head(name, num_layers), _projection(name, num_maps)):
        if special is not None:
            return special
    queries = (r"detr\.queries\.content", f"{_T}.query_embed.weight" if dino else "query_head.query_embedding.weight")
    for pattern, official in (*_LAYERS, *_MAIN, *_HYBRID, queries):
        new, count = re.subn(f"^{pattern}$", official, name)
        if count:
            new, _, part = new.partition("#")
            return new, int(part) if part else None
    raise BadCheckpoint(f"no official name is known for parameter {name!r}")


def _attention(name: str) -> Place | None:
    found = re.fullmatch(r"detr\.(encoder|decoder)\.layers\.(\d+)\.(self|cross)_attention\.(\w+)\.(\w+)", name)
    if found is None:
        return None
    side, layer, kind, part, leaf = found.groups()
    prefix = f"{_T}.{side}.layers.{layer}.attentions"
    if side == "decoder" and kind == "self":
        return (f"{prefix}.0.attn.in_proj_{leaf}", _PACKED[part]) if part in _PACKED else None
    return f"{prefix}.{int(kind == 'cross')}.{_DEFORMABLE[part]}.{leaf}", None


def _head(name: str, num_layers: int) -> Place | None:
    """Linear layers are numbered with the activations between them."""
    found = re.fullmatch(r"detr\.decoder\.guide\.to_positions\.layers\.(\d)\.(.*)", name)
    if found:
        return f"{_T}.decoder.ref_point_head.{2 * int(found[1])}.{found[2]}", None
    found = re.fullmatch(r"detr\.(?:decoder\.heads\.(\d+)|queries\.head)\.boxes\.layers\.(\d)\.(.*)", name)
    if found:
        return f"query_head.reg_branches.{found[1] or num_layers}.{2 * int(found[2])}.{found[3]}", None
    found = re.fullmatch(r"detr\.queries\.head\.classes\.(.*)", name)
    return (f"query_head.cls_branches.{num_layers}.{found[1]}", None) if found else None


def _projection(name: str, num_maps: int) -> Place | None:
    found = re.fullmatch(r"neck\.projections\.(\d+)\.([01])\.(.*)", name)
    if found is None:
        return None
    level, part = int(found[1]), "gn" if int(found[2]) else "conv"
    group = f"convs.{level}" if level < num_maps else f"extra_convs.{level - num_maps}"
    return f"neck.{group}.{part}.{found[3]}", None


def describe(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """What `presets.build` needs, but for the backbone.

    Args:
        state: official names -> tensors.
        options: the official `model = dict(...)`; what is missing takes the published value.
    """
    dino = is_co_dino(state)
    convolutions = sorted(name for name in state if re.fullmatch(r"neck\.convs\.\d+\.conv\.weight", name))
    sizes = _sizes(state, options, dino)
    test = _at(options, "query_head", "test_cfg") or _at(options, "test_cfg", 0) or {}
    top = test.get("max_per_img", 300 if dino else 100)
    overlap = _at(test, "nms", "iou_threshold") or (0.8 if dino and not test else None)
    config: dict[str, Any] = {
        "system": "co_dino" if dino else "co_deformable_detr",
        "num_classes": state["query_head.cls_branches.0.bias"].shape[0],
        "channels": [state[name].shape[1] for name in convolutions],
        "sizes": sizes,
        "heads": _heads(state, options, sizes["width"], dino),
        # Where answers are suppressed, as many are looked at as there are queries.
        "top": top if overlap is None else sizes["num_queries"],
        "inside": True,
    }
    if overlap is not None:
        config |= {"suppress": overlap, "keep": top}
    if dino:
        config["denoising"] = _denoising(state, options)
    return config


def _denoising(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    noise = _at(options, "query_head", "dn_cfg") or {}
    return {
        "groups": None,
        "budget": _at(noise, "group_cfg", "num_dn_queries") or 100,
        "contrastive": True,
        "label_noise": (_at(noise, "noise_scale", "label") or 0.5) / 2,
        "box_noise": _at(noise, "noise_scale", "box") or 1.0,
        "indicator": False,
        "label_rows": state["query_head.label_embedding.weight"].shape[0],
    }


def _heads(state: Mapping[str, Tensor], options: Mapping[str, Any], width: int, dino: bool) -> dict[str, Any]:
    rcnn = _at(options, "train_cfg", 1) or {}
    strides = _at(options, "roi_head", 0, "bbox_roi_extractor", "featmap_strides") or [4 if dino else 8]
    hidden, pooled = state["roi_head.0.bbox_head.shared_fcs.0.weight"].shape
    slip = state.get(f"{_T}.head_pos_embed.weight")
    return {
        "stride": strides[0],
        "hidden": hidden,
        "bins": round((pooled // width) ** 0.5),
        "proposals": _at(rcnn, "rpn_proposal", "max_per_img") or 1000,
        "per_level": _at(rcnn, "rpn_proposal", "nms_pre") or 4000,
        "anchors": _at(rcnn, "rpn", "sampler", "num") or 256,
        "regions": _at(rcnn, "rcnn", "sampler", "num") or 512,
        "most": _at(options, "query_head", "max_pos_coords") or 300,
        "place": "none" if slip is None else "scalar" if slip.shape[1] == 1 else "vector",
    }


def to_ours(state: Mapping[str, Tensor], names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename and split an official state dict, strictly.

    Args:
        state: official names -> tensors.
        names: keys that our model wants.
        config: of `describe`.

    Raises:
        BadCheckpoint: a tensor is missing, or one is left over.
    """
    facts = {
        "num_maps": len(config["channels"]),
        "num_layers": config["sizes"]["decoder_layers"],
        "dino": config["system"] == "co_dino",
    }
    places = {name: place(name.removeprefix("detector."), **facts) for name in names}
    used = {official for official, _ in places.values()}
    missing = sorted(used - set(state))
    if missing:
        raise BadCheckpoint(f"the checkpoint lacks {some(missing)} of this system")
    left = left_over(state, used, UNUSED)
    if left:
        raise BadCheckpoint(f"the checkpoint holds {some(left)}, and this system has no place for that")
    return gather(state, places)


def _sizes(state: Mapping[str, Tensor], options: Mapping[str, Any], dino: bool) -> dict[str, Any]:
    def layers(side: str) -> int:
        found = (re.match(rf"query_head\.transformer\.{side}\.layers\.(\d+)\.", name) for name in state)
        return 1 + max(int(one[1]) for one in found if one)

    levels, width = state[f"{_T}.level_embeds"].shape
    attention = _at(options, "query_head", "transformer", "decoder", "transformerlayers", "attn_cfgs", 0)
    heads = (attention or {}).get("num_heads", 8)
    weights = state[f"{_T}.decoder.layers.0.attentions.1.attention_weights.bias"].shape[0]
    queries = f"{_T}.query_embed.weight" if dino else "query_head.query_embedding.weight"
    return {
        "width": width,
        "num_heads": heads,
        "feed_forward": state[f"{_T}.encoder.layers.0.ffns.0.layers.0.0.bias"].shape[0],
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "num_queries": state[queries].shape[0],
        "dropout": (attention or {}).get("dropout", 0.0),
        "num_levels": levels,
        "num_points": weights // (heads * levels),
    }


def _at(options: Any, *path: str | int) -> Any:
    """What lies at a path of keys and indices; None where nothing does."""
    for step in path:
        if isinstance(options, Mapping):
            options = options.get(step)
        elif isinstance(options, Sequence) and isinstance(step, int) and step < len(options):
            options = options[step]
        else:
            return None
    return options
