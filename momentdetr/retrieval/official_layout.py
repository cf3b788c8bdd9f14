"""Names and shapes of official state dicts, and the way to ours and back.

Every one of our parameters has an official name; query, key and value of dense attention are three thirds of one
official tensor. The table below is read from our name to the official one, so the way back is the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from momentdetr.detr.official import Kind, Place, gather, layer_parameter, left_over, scatter
from momentdetr.errors import BadCheckpoint

# Stacks of layers: ours, official.
_LAYERS = (
    (r"encoder\.encoder\.layers", "transformer.encoder.layers"),
    (r"encoder\.fusion", "transformer.t2v_encoder.layers"),
    (r"head\.decoder\.layers", "transformer.decoder.layers"),
    # CG-DETR
    (r"encoder\.dummy_encoder\.layers", "txtproj_encoder.layers"),
    (r"encoder\.sentence_encoder\.layers", "scls_encoder.layers"),
    (r"encoder\.moment_encoder\.layers", "transformer.mcls_encoder.layers"),
    # UVCOM
    (r"encoder\.words_fusion", "transformer.v2t_encoder.layers"),
)

# And everything else: (pattern of our name, official name); the first that matches counts.
_COMMON: list[tuple[str, str]] = [
    (r"encoder\.(video|text)_projection\.norms\.(\d+)\.(.*)", r"input_\1_proj.\2.LayerNorm.\3"),
    (r"encoder\.(video|text)_projection\.linears\.(\d+)\.(.*)", r"input_\1_proj.\2.net.1.\3"),
    (r"encoder\.text_positions\.embedding\.(.*)", r"txt_position_embed.position_embeddings.\1"),
    (r"encoder\.text_positions\.norm\.(.*)", r"txt_position_embed.LayerNorm.\1"),
    (r"encoder\.encoder\.norm\.(.*)", r"transformer.encoder.norm.\1"),
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
    (r"align\.query\.(.*)", r"contrastive_align_projection_query.\1"),
    (r"align\.text\.(.*)", r"contrastive_align_projection_txt.\1"),
    # CG-DETR
    (r"encoder\.prompts\.tokens", r"global_rep_token"),
    (r"encoder\.prompts\.position", r"global_rep_pos"),
    (r"encoder\.dummies", r"dummy_rep_token"),
    (r"encoder\.dummy_positions", r"dummy_rep_pos"),
    (r"encoder\.(sent|moment)(?:ence)?_token", r"\1_rep_token"),
    (r"encoder\.(sent|moment)(?:ence)?_position", r"\1_rep_pos"),
    (r"encoder\.token_types\.(.*)", r"token_type_embeddings.\1"),
    # TR-DETR
    (r"encoder\.mixer\.clip_weight", r"fuser.cq_attention.w4C"),
    (r"encoder\.mixer\.word_weight", r"fuser.cq_attention.w4Q"),
    (r"encoder\.mixer\.product_weight", r"fuser.cq_attention.w4mlu"),
    (r"encoder\.mixer\.attended\.(.*)", r"fuser.cq_attention.cqa_linear.conv1d.\1"),
    (r"encoder\.mixer\.pool_weight", r"fuser.cq_concat.weighted_pool.weight"),
    (r"encoder\.mixer\.summed\.(.*)", r"fuser.cq_concat.conv1d.conv1d.\1"),
    (r"encoder\.gru\.(.*)", r"gru_extractor.gru.\1"),
    # EaTR, under the names of `convert_family.common_names`
    (r"encoder\.first_slots", r"query_embed.weight"),
    (r"encoder\.event_spans\.(.*)", r"event_span_embed.\1"),
    (r"encoder\.event_norm\.(.*)", r"transformer.decoder.event_norm.\1"),
    # UVCOM, under the names of `convert_family.common_names`
    (r"encoder\.sentence\.(.*)", r"transformer.feature_proj.\1"),
    (r"encoder\.local\.(.*)", r"transformer.conv_local.\1"),
    (r"encoder\.text_centres", r"transformer.txt_mu"),
    (r"encoder\.video_centres", r"transformer.vid_mu"),
    (r"encoder\.video_likeness\.(.*)", r"transformer.sim_vid.\1"),
    (r"encoder\.text_likeness\.(.*)", r"transformer.sim_txt.\1"),
    (r"encoder\.anchors", r"query_embed.weight"),
    (r"encoder\.query_content", r"transformer.decoder.span_embed.weight"),
    (r"encoder\.slots\.(norm_.*|mlp\..*)", r"transformer.processer_for_tgt.\1"),
    (r"encoder\.slots\.(q|k|v)(?:uery|ey|alue)\.(.*)", r"transformer.processer_for_tgt.project_\1.\2"),
]

# Official tensors that no computation of ours (or of the official model, as configured) reads.
UNUSED = {
    r"txt_position_embed\..*": "word positions, created but not used unless use_txt_pos",
    r"contrastive_align_projection_(query|txt|vid)\..*": "contrastive alignment, not used or only for logging",
    r"global_rep_token": "UVCOM overwrites it",
    r"txt_proj_linear\..*": "a projection of words that CG-DETR creates and does not use",
}


def official_name(ours: str, conditional: bool) -> Place:
    """Official name of one of our parameters, and which third of it (None: all of it).

    Args:
        ours: a key of our state dict.
        conditional: whether the decoder's attention is conditional (QD-DETR) or dense (Moment-DETR).
    """
    for prefix, official in _LAYERS:
        found = re.fullmatch(rf"{prefix}\.(\d+)\.(.*)", ours)
        if found:
            decoder = official == "transformer.decoder.layers"
            gate = re.fullmatch(r"gate_(cross|self)\.(.*)", found[2])  # EaTR
            if gate:
                name, third = layer_parameter(f"self_attention.{gate[2]}", "dense", decoder=False)
                return f"{official}.{found[1]}.{name.replace('self_attn', f'gate_{gate[1]}_attn')}", third
            kind: Kind = "conditional" if decoder and conditional else "dense"
            name, third = layer_parameter(found[2], kind, decoder=decoder)
            return f"{official}.{found[1]}.{name}", third
    for pattern, replacement in _COMMON:
        name, count = re.subn(f"^{pattern}$", replacement, ours)
        if count:
            return name.replace("input_video_proj", "input_vid_proj").replace("text_proj", "txt_proj"), None
    raise BadCheckpoint(f"no official name is known for parameter {ours!r}")


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
    left = left_over(official, {name for name, _ in wanted.values()}, UNUSED)
    if left:
        raise BadCheckpoint(
            f"the checkpoint holds {left[0]!r} and {len(left) - 1} other tensors that the model has no place for"
        )
    return gather(official, wanted)


def to_official(ours: Mapping[str, Tensor], conditional: bool) -> dict[str, Tensor]:
    """The way back: our parameters (or their gradients) under official names, thirds joined."""
    return scatter(ours, {name: official_name(name, conditional) for name in ours})


def is_conditional(official: Mapping[str, Tensor]) -> bool:
    """Whether an official state dict has DAB-DETR's decoder: its queries are spans, or its layers tell.

    Raises:
        BadCheckpoint: the queries are neither, or there are none.
    """
    queries = official.get("query_embed.weight")
    if queries is None:
        raise BadCheckpoint("this is not a checkpoint of Moment-DETR's family: it has no 'query_embed.weight'")
    return queries.shape[-1] == 2 or "transformer.decoder.layers.0.ca_qcontent_proj.weight" in official
