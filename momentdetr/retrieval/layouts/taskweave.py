"""TaskWeave's official and Lighthouse's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.layouts.layout import PROJECTIONS, WORD_POSITIONS, Layers, Layout, common_sizes


def _config(state: Mapping[str, Tensor], options: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("contrastive_align_loss") or options.get("pre_norm"):
        raise BadCheckpoint("TaskWeave with contrastive alignment or pre_norm was never published and is not built")
    layers = ("transformer.t2v_encoder.layers.", "transformer.mr_decoder.layers.")
    hidden = "transformer.t2v_encoder.layers.0.linear1.weight"
    config: dict[str, Any] = {
        "sizes": common_sizes(state, options, hidden=hidden, encoder=layers[0], decoder=layers[1]),
        "weights": dict(weights),
        # Lighthouse has an option for the direction. The official code is edited by hand to change it, and neither its
        # weights nor its options tell: what it is released as is taken; whoever knows better edits config.json.
        "direction": "moments_first" if options.get("mr2hd") else "highlights_first",
        "moments": options.get("dset_name") != "tvsum" or "v_feat_types" in options,
        "official_batch_faults": True,
    }
    if options.get("use_txt_pos"):
        config["text_positions"] = state["txt_position_embed.position_embeddings.weight"].shape[0]
    return config


TASKWEAVE = Layout(
    name="taskweave",
    matches=lambda state: "hd_log_var" in state and "transformer.mr_conv.conv.weight" in state,
    config=_config,
    layers=(
        Layers(r"encoder\.encoder\.layers", "transformer.shared_encoder.layers"),
        Layers(r"encoder\.fusion", "transformer.t2v_encoder.layers"),
        Layers(r"head\.decoder\.layers", "transformer.mr_decoder.layers", "conditional", decoder=True),
    ),
    rows=(
        *PROJECTIONS,
        (r"encoder\.moments\.(.*)", r"transformer.mr_linear.\1"),
        (r"encoder\.highlights\.(.*)", r"transformer.hd_linear.\1"),
        (r"encoder\.moment_convolution\.(.*)", r"transformer.mr_conv.conv.\1"),
        (r"encoder\.moment_norm\.(.*)", r"transformer.mr_norm.\1"),
        (r"encoder\.moment_gate\.(.*)", r"transformer.mr_proj.\1"),
        (r"encoder\.saliency_clip\.(.*)", r"saliency_proj_linear.\1"),
        (r"encoder\.saliency_local\.(.*)", r"saliency_proj_local.\1"),
        (r"encoder\.saliency\.(.*)", r"output_saliency.\1"),
        (r"balance\.moments", r"mr_log_var"),
        (r"balance\.highlights", r"hd_log_var"),
        (r"head\.queries\.anchors", r"query_embed.weight"),
        (r"head\.decoder\.norm\.(.*)", r"transformer.mr_decoder.norm.\1"),
        (r"head\.decoder\.heads\.0\.classes\.(.*)", r"class_embed.\1"),
        (r"head\.decoder\.heads\.0\.boxes\.(.*)", r"span_embed.\1"),
        (r"head\.decoder\.refine_heads\.0\.(.*)", r"transformer.mr_decoder.bbox_embed.\1"),
        (r"head\.decoder\.guide\.to_positions\.(.*)", r"transformer.mr_decoder.ref_point_head.\1"),
        (r"head\.decoder\.guide\.query_scale\.(.*)", r"transformer.mr_decoder.query_scale.\1"),
        (r"head\.decoder\.guide\.wanted_size\.(.*)", r"transformer.mr_decoder.ref_anchor_head.\1"),
    ),
    unused=WORD_POSITIONS,
)
