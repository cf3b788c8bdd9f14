"""Checkpoints of transformers (Hugging Face): DETR, Conditional, Deformable and DAB-DETR under the official names.

Their layout is renamed to the official one, name by name, so that one converter serves both. Names of version 5 and,
where they differ, of the version 4 files that the hub holds.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from momentdetr.errors import BadCheckpoint
from momentdetr.pickled import read_checkpoint

SYSTEMS = {
    "detr": "detr",
    "conditional_detr": "conditional_detr",
    "deformable_detr": "deformable_detr",
    "dab-detr": "dab_detr",
}

# (pattern of their name, official name); the first that matches counts.
_TOP = (
    (r"model\.query_position_embeddings\.(.*)", r"query_embed.\1"),
    (r"model\.query_refpoint_embeddings\.(.*)", r"refpoint_embed.\1"),
    (r"model\.patterns\.(.*)", r"transformer.patterns.\1"),
    (r"model\.input_projection\.(.*)", r"input_proj.\1"),
    (r"model\.(input_proj\..*)", r"\1"),
    (r"model\.(level_embed|reference_points\..*)", r"transformer.\1"),
    (r"model\.((?:enc_output|pos_trans)(?:_norm)?\..*)", r"transformer.\1"),
    (r"model\.decoder\.layernorm\.(.*)", r"transformer.decoder.norm.\1"),
    (r"model\.((?:en|de)coder\.query_scale\..*)", r"transformer.\1"),
    (r"model\.(decoder\.(?:ref_point_head|ref_anchor_head|bbox_embed|class_embed)\..*)", r"transformer.\1"),
    (r"class_labels_classifier\.(.*)", r"class_embed.\1"),
    (r"bbox_predictor\.(.*)", r"bbox_embed.\1"),
    (r"((?:class|bbox)_embed\..*)", r"\1"),
)  # fmt: skip
_BACKBONE = (
    (r"embedder\.embedder\.convolution\.(.*)", r"conv1.\1"),
    (r"embedder\.embedder\.normalization\.(.*)", r"bn1.\1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.(.*)", r"layer\1.\2.downsample.0.\3"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.(.*)", r"layer\1.\2.downsample.1.\3"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.(.*)", r"layer\1.\2.conv+\3.\4"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.(.*)", r"layer\1.\2.bn+\3.\4"),
)
# Within a layer; "{own}", "{cross}" and "{last}" are the numbers of its norms.
_LAYER = (
    (r"(?:mlp\.)?fc([12])\.(.*)", r"linear\1.\2"),
    (r"(?:mlp\.)?activation_fn\.(.*)", r"activation.\1"),
    (r"(?:self_attn\.)?self_attn_layer_norm\.(.*)", r"norm{own}.\1"),
    (r"(?:encoder_attn|cross_attn\.cross_attn)_layer_norm\.(.*)", r"norm{cross}.\1"),
    (r"(?:mlp\.)?final_layer_norm\.(.*)", r"norm{last}.\1"),
    (r"self_attn\.(?:self_attn\.)?(?:o_proj|out_proj|output_proj)\.(.*)", r"self_attn.{out}.\1"),
    (r"(?:encoder_attn|cross_attn\.cross_attn)\.(?:o_proj|out_proj|output_proj)\.(.*)", r"{attn}.{cross_out}.\1"),
    (r"(?:self_attn)\.((?:sampling_offsets|attention_weights|value_proj)\..*)", r"self_attn.\1"),
    (r"(?:encoder_attn)\.((?:sampling_offsets|attention_weights|value_proj)\..*)", r"cross_attn.\1"),
    (r"self_attn\.([qkv])_(content|pos)_proj\.(.*)", r"sa_\1\2_proj.\3"),
    (r"encoder_attn\.([qkv])_(content|pos|pos_sine)_proj\.(.*)", r"ca_\1\2_proj.\3"),
    (r"self_attn\.self_attn_(q|k|v)(?:uery|ey|alue)_(content|pos)_proj\.(.*)", r"sa_\1\2_proj.\3"),
    (r"self_attn\.self_attn_value_proj\.(.*)", r"sa_v_proj.\1"),
    (r"cross_attn\.cross_attn_(q|k|v)(?:uery|ey|alue)_(content|pos|pos_sine)_proj\.(.*)", r"ca_\1\2_proj.\3"),
    (r"cross_attn\.cross_attn_value_proj\.(.*)", r"ca_v_proj.\1"),
    (r"((?:sa|ca)_.*)", r"\1"),
)


def has_its_names(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of transformers."""
    return any(name.startswith("model.encoder.layers.0.") for name in state)


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of transformers to the official layout, joining what is packed there.

    Raises:
        BadCheckpoint: a name is not known.
    """
    packed: dict[str, dict[str, Tensor]] = defaultdict(dict)
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new, part = _renamed(name, state)
        if part:
            packed[new][part] = tensor
        else:
            official[new] = tensor
    for name, parts in packed.items():
        if set(parts) != set("qkv"):
            raise BadCheckpoint(f"the checkpoint holds {sorted(parts)} of {name!r}, expected projections q, k and v")
        official[name] = torch.cat([parts[part] for part in "qkv"])
    return official


def _renamed(name: str, state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Official name, and which of three packed parts ("" for none)."""
    backbone = re.fullmatch(r"model\.backbone\.(?:conv_encoder\.)?(?:model\.)?(.*)", name)
    if backbone:
        return f"backbone.0.body.{_backbone_name(backbone[1])}", ""
    layer = re.fullmatch(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.*)", name)
    if layer:
        inside, part = _layer_name(layer[3], layer[1] == "decoder", state)
        return f"transformer.{layer[1]}.layers.{layer[2]}.{inside}", part
    for pattern, official in _TOP:
        new, count = re.subn(f"^{pattern}$", official, name)
        if count:
            return new, ""
    raise BadCheckpoint(f"no official name is known for tensor {name!r} of transformers")


def _backbone_name(name: str) -> str:
    """ResNet's name by torchvision; timm's are the same already."""
    for pattern, official in _BACKBONE:
        found = re.fullmatch(pattern, name)
        if found:
            new = re.sub(r"^layer(\d+)", lambda m: f"layer{int(m[1]) + 1}", found.expand(official))
            return re.sub(r"(conv|bn)\+(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", new)
    return name


def _layer_name(name: str, decoder: bool, state: Mapping[str, Tensor]) -> tuple[str, str]:
    deformable = "model.decoder.layers.0.encoder_attn.sampling_offsets.weight" in state
    dense = "model.decoder.layers.0.encoder_attn.q_proj.weight" in state
    found = re.fullmatch(r"(self_attn|encoder_attn)\.([qkv])_proj\.(weight|bias)", name)
    if found and (dense or deformable or not decoder):
        attention = "self_attn" if found[1] == "self_attn" else "multihead_attn"
        return f"{attention}.in_proj_{found[3]}", found[2]
    if found:
        return f"{found[1][0].replace('e', 'c')}a_v_proj.{found[3]}", ""
    # Deformable DETR numbers its decoder norms by age, not by order.
    own, cross = (2, 1) if deformable else (1, 2)
    words = {
        "own": own if decoder else 1,
        "cross": cross,
        "last": 3 if decoder else 2,
        "out": "output_proj" if deformable and not decoder else "out_proj",
        "attn": "multihead_attn" if dense else "cross_attn",
        "cross_out": "output_proj" if deformable else "out_proj",
    }
    for pattern, official in _LAYER:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(official.format(**words)), ""
    raise BadCheckpoint(f"no official name is known for {name!r} in a layer of transformers")


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of transformers in official words; what official code fixes is left out.

    Raises:
        BadCheckpoint: another model than the four.
    """
    kind = config.get("model_type")
    if kind not in SYSTEMS:
        raise BadCheckpoint(f"no converter for model_type {kind!r} of transformers; known are {', '.join(SYSTEMS)}")
    names = {
        "nheads": ("decoder_attention_heads",),
        "num_queries": ("two_stage_num_proposals",),
        "dec_n_points": ("decoder_n_points",),
        "enc_n_points": ("encoder_n_points",),
        "dropout": ("dropout",),
        "dilation": ("dilation",),
        "eos_coef": ("eos_coefficient",),
        "focal_alpha": ("focal_alpha",),
        "set_cost_class": ("class_cost",),
        "set_cost_bbox": ("bbox_cost",),
        "set_cost_giou": ("giou_cost",),
        "bbox_loss_coef": ("bbox_loss_coefficient",),
        "giou_loss_coef": ("giou_loss_coefficient",),
        "transformer_activation": ("activation_function",),
        "pe_temperatureH": ("temperature_height",),
        "pe_temperatureW": ("temperature_width",),
    }
    return {ours: config[theirs] for ours, (theirs,) in names.items() if config.get(theirs) is not None}


def differences(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers does in another way than the official code, in official words, for any system."""
    return {"inverse_sigmoid_eps": 1e-5}


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and config.json of a folder written by transformers.

    Raises:
        BadCheckpoint: a file is missing or cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (folder / "model.safetensors").is_file():
            return load_file(folder / "model.safetensors"), config
    except (OSError, ValueError, SafetensorError) as error:
        raise BadCheckpoint(f"{folder} is not a readable model folder of transformers: {error}") from error
    return read_checkpoint(folder / "pytorch_model.bin"), config


def labels_of(config: Mapping[str, Any], num_classes: int) -> tuple[str | None, ...]:
    """Name of each class, from `id2label`; None where it is not named."""
    names = {int(index): name for index, name in (config.get("id2label") or {}).items()}
    return tuple(None if names.get(i) in (None, "N/A") else names[i] for i in range(num_classes))
