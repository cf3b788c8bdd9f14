"""BAM-DETR's official names."""

from __future__ import annotations

from typing import Any

from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.layouts.family import (
    ENCODER,
    FUSION,
    GLOBAL_TOKEN,
    PROJECTIONS,
    SALIENCY,
    WORD_POSITIONS,
    common_config,
)
from momentdetr.retrieval.layouts.layout import Layers, Layout, Options, State


def _config(state: State, options: Options) -> dict[str, Any]:
    if options.get("pre_norm") or options.get("span_loss_type", "l1") != "l1":
        raise BadCheckpoint("BAM-DETR with pre_norm or without regressed spans does not run in the official code")
    quality = "quality_pred.layers.0.weight" in state
    fused = "transformer.t2v_encoder.layers."
    return {
        **common_config(state, options, hidden=f"{fused}0.linear1.weight", encoder=fused),
        "quality": options.get("quality_loss_coef", 2.0) if quality else 0.0,
        "boundary": options.get("boundary_loss_coef", 1.0) if quality else 0.0,  # one switch for both
        "moments": options.get("dset_name") != "tvsum",
        "official_batch_faults": True,
    }


_BOUNDARY = r"transformer.decoder.boundary_layers.\1.\2"
_OURS = r"head\.boundary_layers\.(\d+)\.(\d+)"

BAM_DETR = Layout(
    name="bam_detr",
    matches=lambda state: "transformer.decoder.boundary_conv_left.0.weight" in state,
    config=_config,
    layers=(
        ENCODER,
        FUSION,
        Layers(r"head\.layers", "transformer.decoder.layers", "conditional", decoder=True),
    ),
    rows=(
        *PROJECTIONS,
        *SALIENCY,
        *GLOBAL_TOKEN,
        (r"encoder\.start_tower\.convolutions\.0\.(.*)", r"transformer.decoder.boundary_conv_left.0.\1"),
        (r"encoder\.start_tower\.convolutions\.1\.(.*)", r"transformer.decoder.boundary_conv_left.2.\1"),
        (r"encoder\.start_tower\.convolutions\.2\.(.*)", r"transformer.decoder.boundary_conv_left.4.\1"),
        (r"encoder\.end_tower\.convolutions\.0\.(.*)", r"transformer.decoder.boundary_conv_right.0.\1"),
        (r"encoder\.end_tower\.convolutions\.1\.(.*)", r"transformer.decoder.boundary_conv_right.2.\1"),
        (r"encoder\.end_tower\.convolutions\.2\.(.*)", r"transformer.decoder.boundary_conv_right.4.\1"),
        (r"head\.anchors", r"query_embed.weight"),
        (r"head\.content", r"transformer.tgt_embed.weight"),
        (r"head\.classes\.(.*)", r"class_embed.\1"),
        (r"head\.moves\.(.*)", r"span_embed.\1"),
        (r"head\.quality\.(.*)", r"quality_pred.\1"),
        (r"head\.guide\.to_positions\.(.*)", r"transformer.decoder.ref_point_head.\1"),
        (r"head\.guide\.query_scale\.(.*)", r"transformer.decoder.query_scale.0.\1"),
        (r"head\.guide\.wanted_size\.(.*)", r"transformer.decoder.ref_anchor_head.\1"),
        (rf"{_OURS}\.attention\.weights\.(.*)", rf"{_BOUNDARY}.boundary_deformation.point_weights.\3"),
        (rf"{_OURS}\.attention\.offsets\.(.*)", rf"{_BOUNDARY}.boundary_deformation.point_offsets.\3"),
        (rf"{_OURS}\.attention\.value\.(.*)", rf"{_BOUNDARY}.boundary_deformation.value_proj.\3"),
        (rf"{_OURS}\.attention\.out\.(.*)", rf"{_BOUNDARY}.boundary_deformation.output_proj.\3"),
        (rf"{_OURS}\.norm_attention\.(.*)", rf"{_BOUNDARY}.norm2.\3"),
        (rf"{_OURS}\.norm_feed_forward\.(.*)", rf"{_BOUNDARY}.norm3.\3"),
        (rf"{_OURS}\.feed_forward\.expand\.(.*)", rf"{_BOUNDARY}.linear1.\3"),
        (rf"{_OURS}\.feed_forward\.contract\.(.*)", rf"{_BOUNDARY}.linear2.\3"),
        (rf"{_OURS}\.feed_forward\.activation\.(.*)", rf"{_BOUNDARY}.activation.\3"),
    ),
    unused={
        **WORD_POSITIONS,
        r"transformer\.decoder\.bbox_embed\..*": "other names of span_embed",
        r"transformer\.saliency_proj[12]\..*": "other names of saliency_proj1 and saliency_proj2",
        r"transformer\.txt_encoder\..*": "encodes the words for a token that nothing reads",
        r"global_rep_(token|pos)_txt": "the token of that encoder",
        r"transformer\.decoder\.query_scale\.[12]\..*": "would scale encodings of boundaries that nothing reads",
        r"transformer\.decoder\.ref_point_head_boundary\..*": "never called",
        r"transformer\.decoder\.boundary_layers\.\d+\.\d+\.norm1\..*": "never called",
    },
)
