"""UVCOM's official and Lighthouse's names."""

from __future__ import annotations

from typing import Any

from momentdetr.retrieval.layouts.family import (
    ALIGNMENT,
    DECODER,
    ENCODER,
    FUSION,
    GLOBAL_TOKEN,
    PROJECTIONS,
    SALIENCY,
    UNUSED,
    alignment_config,
    common_config,
    decoder_rows,
    from_lighthouse,
    learns_moments,
)
from momentdetr.retrieval.layouts.layout import Layers, Layout, Options, State


def _config(state: State, options: Options) -> dict[str, Any]:
    return {
        **common_config(state, options),
        **alignment_config(state, options),
        "num_topics": state["transformer.txt_mu"].shape[0],
        "num_clusters": state["transformer.vid_mu"].shape[0],
        "cluster_iterations": options.get("em_iter", 5),
        "slot_size": state["transformer.processer_for_tgt.mlp.layers.0.bias"].shape[0],
        "likeness_size": state["transformer.sim_vid.layers.0.bias"].shape[0],
        "similarity": options.get("sim_loss_coef", 1.0),
        "hard_negatives_from": options.get("neg_choose_epoch", 80),
        # Lighthouse swapped the arguments of torch.linalg.solve, and its weights were trained with that.
        "inverted_walk": not from_lighthouse(options),
        "moments": learns_moments(options),
        "official_batch_faults": True,
    }


UVCOM = Layout(
    name="uvcom",
    matches=lambda state: "CIM.vid_mu" in state or "transformer.vid_mu" in state,
    config=_config,
    layers=(ENCODER, FUSION, DECODER, Layers(r"encoder\.words_fusion", "transformer.v2t_encoder.layers")),
    rows=(
        *PROJECTIONS,
        *SALIENCY,
        *GLOBAL_TOKEN,
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
        *decoder_rows(),
        *ALIGNMENT,
    ),
    unused=UNUSED | {r"global_rep_token": "UVCOM overwrites it"},
    aliases=((r"CIM\.GKA_Module\.", "transformer.encoder."), (r"CIM\.", "transformer.")),
)
