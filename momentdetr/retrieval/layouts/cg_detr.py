"""CG-DETR's official and Lighthouse's names."""

from __future__ import annotations

from typing import Any

from momentdetr.retrieval.layouts.family import (
    ALIGNMENT,
    DECODER,
    ENCODER,
    FUSION,
    PROJECTIONS,
    SALIENCY,
    UNUSED,
    alignment_config,
    common_config,
    decoder_rows,
    from_lighthouse,
)
from momentdetr.retrieval.layouts.layout import Layers, Layout, Options, State, count

DUMMIES = Layers(r"encoder\.dummy_encoder\.layers", "txtproj_encoder.layers")
"""FlashVTG has them, too."""


def _config(state: State, options: Options) -> dict[str, Any]:
    return {
        **common_config(state, options),
        **alignment_config(state, options),
        "fusion_layers": count(state, "transformer.t2v_encoder.layers."),
        "dummy_layers": count(state, "txtproj_encoder.layers."),
        "sentence_layers": count(state, "scls_encoder.layers."),
        "moment_layers": count(state, "transformer.mcls_encoder.layers."),
        "num_dummies": state["dummy_rep_token"].shape[0],
        "num_prompts": state["global_rep_token"].shape[0],
        "chosen_prompts": options.get("num_prompts", 1),
        "alignment": options.get("lw_ms_align", 1.0),
        "distillation": options.get("lw_distill", 1.0),
        "attention": options.get("lw_wattn", 1.0),
        "foreign_pairs": not str(options.get("dset_name", "")).startswith("youtube"),
        "cut_videos": options.get("dset_name", "hl") in ("hl", "qvhighlight"),
        "moments": options.get("dset_name") not in ("tvsum", "youtube_uni") or from_lighthouse(options),
        "official_batch_faults": True,
    }


CG_DETR = Layout(
    name="cg_detr",
    matches=lambda state: "dummy_rep_token" in state and "conf_head.convs.0.weight" not in state,
    config=_config,
    layers=(
        ENCODER,
        FUSION,
        DECODER,
        DUMMIES,
        Layers(r"encoder\.sentence_encoder\.layers", "scls_encoder.layers"),
        Layers(r"encoder\.moment_encoder\.layers", "transformer.mcls_encoder.layers"),
    ),
    rows=(
        *PROJECTIONS,
        *SALIENCY,
        (r"encoder\.prompts\.tokens", r"global_rep_token"),
        (r"encoder\.prompts\.position", r"global_rep_pos"),
        (r"encoder\.dummies", r"dummy_rep_token"),
        (r"encoder\.dummy_positions", r"dummy_rep_pos"),
        (r"encoder\.(sent|moment)(?:ence)?_token", r"\1_rep_token"),
        (r"encoder\.(sent|moment)(?:ence)?_position", r"\1_rep_pos"),
        (r"encoder\.token_types\.(.*)", r"token_type_embeddings.\1"),
        *decoder_rows(),
        *ALIGNMENT,
    ),
    unused=UNUSED | {r"txt_proj_linear\..*": "a projection of words that CG-DETR creates and does not use"},
)
