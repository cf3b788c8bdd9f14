"""TR-DETR's official and Lighthouse's names."""

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
    learns_moments,
)
from momentdetr.retrieval.layouts.layout import Layout, Options, State


def _config(state: State, options: Options) -> dict[str, Any]:
    return {
        **common_config(state, options),
        **alignment_config(state, options),
        "video_text": options.get("VTC_loss_coef", 0.3),
        "clip_text": options.get("CTC_loss_coef", 0.5),
        "moments": learns_moments(options),
        "official_batch_faults": True,
    }


TR_DETR = Layout(
    name="tr_detr",
    matches=lambda state: "fuser.cq_attention.w4C" in state,
    config=_config,
    layers=(ENCODER, FUSION, DECODER),
    rows=(
        *PROJECTIONS,
        *SALIENCY,
        *GLOBAL_TOKEN,
        (r"encoder\.mixer\.clip_weight", r"fuser.cq_attention.w4C"),
        (r"encoder\.mixer\.word_weight", r"fuser.cq_attention.w4Q"),
        (r"encoder\.mixer\.product_weight", r"fuser.cq_attention.w4mlu"),
        (r"encoder\.mixer\.attended\.(.*)", r"fuser.cq_attention.cqa_linear.conv1d.\1"),
        (r"encoder\.mixer\.pool_weight", r"fuser.cq_concat.weighted_pool.weight"),
        (r"encoder\.mixer\.summed\.(.*)", r"fuser.cq_concat.conv1d.conv1d.\1"),
        (r"encoder\.gru\.(.*)", r"gru_extractor.gru.\1"),
        *decoder_rows(),
        *ALIGNMENT,
    ),
    unused=UNUSED,
)
