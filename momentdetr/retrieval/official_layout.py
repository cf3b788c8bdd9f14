"""Names and shapes of official state dicts, and the way to ours and back.

Every one of our parameters has an official name; query, key and value of dense attention are three thirds of one
official tensor. The table below is read from our name to the official one, so the way back is the same table.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from momentdetr.errors import BadCheckpoint

_PACKED = {"query": 0, "key": 1, "value": 2}

# (pattern of our name, official name); the first that matches counts.
_COMMON: list[tuple[str, str]] = [
    (r"encoder\.(video|text)_projection\.norms\.(\d+)\.(.*)", r"input_\1_proj.\2.LayerNorm.\3"),
    (r"encoder\.(video|text)_projection\.linears\.(\d+)\.(.*)", r"input_\1_proj.\2.net.1.\3"),
    (r"encoder\.text_positions\.embedding\.(.*)", r"txt_position_embed.position_embeddings.\1"),
    (r"encoder\.text_positions\.norm\.(.*)", r"txt_position_embed.LayerNorm.\1"),
    (r"encoder\.encoder\.norm\.(.*)", r"transformer.encoder.norm.\1"),
    (r"encoder\.encoder\.(layers\..*)", r"transformer.encoder.\1"),
    (r"encoder\.fusion\.(.*)", r"transformer.t2v_encoder.layers.\1"),
    (r"encoder\.saliency\.(.*)", r"saliency_proj.\1"),
    (r"encoder\.saliency_clip\.(.*)", r"saliency_proj1.\1"),
    (r"encoder\.saliency_global\.(.*)", r"saliency_proj2.\1"),
    (r"encoder\.global_token", r"global_rep_token"),
    (r"encoder\.global_position", r"global_rep_pos"),
    (r"head\.queries\.(?:positions|anchors)", r"query_embed.weight"),
    (r"head\.decoder\.norm\.(.*)", r"transformer.decoder.norm.\1"),
    (r"head\.decoder\.heads\.0\.classes\.(.*)", r"class_embed.\1"),
    (r"head\.decoder\.heads\.0\.boxes\.(.*)", r"span_embed.\1"),
    (r"head\.decoder\.refine_heads\.0\.(.*)", r"transformer.decoder.bbox_embed.\1"),
    (r"head\.decoder\.guide\.to_positions\.(.*)", r"transformer.decoder.ref_point_head.\1"),
    (r"head\.decoder\.guide\.query_scale\.(.*)", r"transformer.decoder.query_scale.\1"),
    (r"head\.decoder\.guide\.wanted_size\.(.*)", r"transformer.decoder.ref_anchor_head.\1"),
    (r"head\.decoder\.(layers\..*)", r"transformer.decoder.\1"),
    (r"align\.query\.(.*)", r"contrastive_align_projection_query.\1"),
    (r"align\.text\.(.*)", r"contrastive_align_projection_txt.\1"),
]

# Then, inside layers: dense attention, whose three projections are packed ...
_DENSE_ATTENTION = re.compile(r"(.*\.)(self_attention|cross_attention|attention)\.(query|key|value)\.(weight|bias)")
_DENSE_NAMES = {"self_attention": "self_attn", "cross_attention": "multihead_attn", "attention": "self_attn"}
# ... and everything else.
_WITHIN_LAYER: list[tuple[str, str]] = [
    (r"self_attention\.(query|key)_content\.", r"sa_\1content_proj."),
    (r"self_attention\.(query|key)_position\.", r"sa_\1pos_proj."),
    (r"cross_attention\.(query|key)_content\.", r"ca_\1content_proj."),
    (r"cross_attention\.(query|key)_position\.", r"ca_\1pos_proj."),
    (r"cross_attention\.query_sine\.", r"ca_qpos_sine_proj."),
    (r"self_attention\.value\.", r"sa_v_proj."),
    (r"cross_attention\.value\.", r"ca_v_proj."),
    (r"self_attention\.out\.", r"self_attn.out_proj."),
    (r"feed_forward\.expand\.", r"linear1."),
    (r"feed_forward\.contract\.", r"linear2."),
    (r"feed_forward\.activation\.", r"activation."),
    (r"norm_self\.", r"norm1."),
    (r"norm_cross\.", r"norm2."),
]

# Official tensors that no computation of ours (or of the official model, as configured) reads.
UNUSED = {
    r"txt_position_embed\..*": "word positions, created but not used unless use_txt_pos",
    r"contrastive_align_projection_(query|txt|vid)\..*": "contrastive alignment, not used or only for logging",
}


def official_name(ours: str, conditional: bool) -> tuple[str, int | None]:
    """Official name of one of our parameters, and which third of it (None: all of it).

    Args:
        ours: a key of our state dict.
        conditional: whether the decoder's attention is conditional (QD-DETR) or dense (Moment-DETR).
    """
    for pattern, replacement in _COMMON:
        name, found = re.subn(f"^{pattern}$", replacement, ours)
        if found:
            return _within_layer(
                name.replace("input_video_proj", "input_vid_proj").replace("text_proj", "txt_proj"), conditional
            )
    raise BadCheckpoint(f"no official name is known for parameter {ours!r}")


def _within_layer(name: str, conditional: bool) -> tuple[str, int | None]:
    in_decoder = name.startswith("transformer.decoder.layers")
    dense = _DENSE_ATTENTION.fullmatch(name)
    if dense and not (in_decoder and conditional):
        prefix, attention, part, kind = dense.groups()
        return f"{prefix}{_DENSE_NAMES[attention]}.in_proj_{kind}", _PACKED[part]
    for pattern, replacement in _WITHIN_LAYER:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"(sa|ca)_(query|key)(content|pos)_proj", lambda m: f"{m[1]}_{m[2][0]}{m[3]}_proj", name)
    cross = "cross_attn" if conditional else "multihead_attn"
    name = name.replace("cross_attention.out.", f"{cross}.out_proj.").replace("attention.out.", "self_attn.out_proj.")
    last = "norm3." if in_decoder else "norm2."
    return name.replace("norm_attention.", "norm1.").replace("norm_feed_forward.", last), None


def to_ours(official: Mapping[str, Tensor], our_names: Iterable[str]) -> dict[str, Tensor]:
    """Rename and split an official state dict, strictly.

    Args:
        official: official names -> tensors.
        our_names: keys that our model wants.

    Raises:
        BadCheckpoint: a tensor is missing, or one is left over that is not known to be unused.
    """
    conditional = is_conditional(official)
    wanted = {name: official_name(name, conditional) for name in our_names}
    missing = sorted({name for name, _ in wanted.values()} - set(official))
    if missing:
        raise BadCheckpoint(
            f"the checkpoint lacks {missing[0]!r} and {len(missing) - 1} other tensors that the model needs"
        )
    used = {name for name, _ in wanted.values()}
    left = sorted(name for name in set(official) - used if not any(re.fullmatch(p, name) for p in UNUSED))
    if left:
        raise BadCheckpoint(
            f"the checkpoint holds {left[0]!r} and {len(left) - 1} other tensors that the model has no place for"
        )
    return {
        ours: official[name].clone() if third is None else official[name].chunk(3)[third].clone()
        for ours, (name, third) in wanted.items()
    }


def to_official(ours: Mapping[str, Tensor], conditional: bool) -> dict[str, Tensor]:
    """The way back: our parameters (or their gradients) under official names, thirds joined."""
    joined: dict[str, dict[int | None, Tensor]] = defaultdict(dict)
    for name, tensor in ours.items():
        official, third = official_name(name, conditional)
        joined[official][third] = tensor
    return {
        name: parts[None] if None in parts else torch.cat([parts[third] for third in range(3)])
        for name, parts in joined.items()
    }


def is_conditional(official: Mapping[str, Tensor]) -> bool:
    """Whether an official state dict has DAB-DETR's decoder: its queries are spans, not vectors of the model's width.

    Raises:
        BadCheckpoint: the queries are neither, or there are none.
    """
    queries = official.get("query_embed.weight")
    if queries is None:
        raise BadCheckpoint("this is not a checkpoint of Moment-DETR's family: it has no 'query_embed.weight'")
    return queries.shape[-1] == 2
