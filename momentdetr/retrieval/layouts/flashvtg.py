"""FlashVTG's official names."""

from __future__ import annotations

from typing import Any

from momentdetr.retrieval.layouts.cg_detr import DUMMIES
from momentdetr.retrieval.layouts.family import ENCODER, FUSION, PROJECTIONS, SALIENCY, WORD_POSITIONS, common_config
from momentdetr.retrieval.layouts.layout import Layout, Options, State, count
from momentdetr.retrieval.layouts.r2_tuning import PYRAMID


def _config(state: State, options: Options) -> dict[str, Any]:
    named = {"saliency": "lw_saliency", "class_": "lw_cls", "l1": "lw_reg", "saliency_margin": "saliency_margin"}
    kernel = state["class_head.convs.0.weight"]
    return {
        **common_config(state, options, decoder=None),
        "weights": {ours: options[theirs] for ours, theirs in named.items() if theirs in options},
        "num_dummies": state["dummy_rep_token"].shape[0],
        "dummy_layers": count(state, "txtproj_encoder.layers."),
        "fusion_layers": count(state, "transformer.t2v_encoder.layers."),
        "strides": tuple(2**level for level in range(state["coef"].shape[0])),
        "num_convolutions": sum(name.startswith("class_head.convs.") and name.endswith("weight") for name in state),
        "num_linear": count(state, "class_head.fc.layers."),
        "kernel": kernel.shape[-1],
        "contrast": options.get("lw_sal", 0.1),
        "score": options.get("label_loss_coef", 4.0),
        "attention": options.get("lw_wattn", 1.0),
        "official_batch_faults": True,
    }


FLASHVTG = Layout(
    name="flashvtg",
    matches=lambda state: "conf_head.convs.0.weight" in state and "dummy_rep_token" in state,
    config=_config,
    layers=(ENCODER, FUSION, DUMMIES),
    rows=(
        *PROJECTIONS,
        *SALIENCY,
        (r"encoder\.kinds", r"token_type_embeddings.weight"),
        (r"encoder\.dummies", r"dummy_rep_token"),
        (r"encoder\.dummy_positions", r"dummy_rep_pos"),
        (r"encoder\.pooling\.score\.(.*)", r"pooling.att.\1"),
        *PYRAMID,
        (r"head\.classes\.convolutions\.(.*)", r"class_head.convs.\1"),
        (r"head\.classes\.out\.(.*)", r"class_head.fc.\1"),
        (r"head\.confidence\.convolutions\.(.*)", r"conf_head.convs.\1"),
        (r"head\.confidence\.out\.(.*)", r"conf_head.fc.\1"),
        (r"head\.offsets\.hidden\.(.*)", r"coord_head.module.1.\1"),
        (r"head\.offsets\.out\.(.*)", r"coord_head.module.3.\1"),
        (r"head\.scales", r"coef"),
        (r"head\.mixture", r"x"),
    ),
    unused={**WORD_POSITIONS, r"loss\._loss_sal\.scale": "a constant"},
)
