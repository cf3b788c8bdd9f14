"""QD-DETR's official and Lighthouse's names."""

from __future__ import annotations

from typing import Any

from momentdetr.errors import BadCheckpoint
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
    is_conditional,
    learns_moments,
)
from momentdetr.retrieval.layouts.layout import Layout, Options, State


def _config(state: State, options: Options) -> dict[str, Any]:
    if options.get("pre_norm"):
        raise BadCheckpoint("QD-DETR with pre_norm does not run in the official code; this checkpoint is not one of it")
    return {
        **common_config(state, options),
        **alignment_config(state, options),
        "moments": learns_moments(options),
        # Official weights were trained with these faults, and answer as published only with them.
        "official_batch_faults": True,
    }


def _matches(state: State) -> bool:
    fused = "transformer.t2v_encoder.layers.0.linear1.weight" in state and "saliency_proj1.weight" in state
    return fused and "query_embed.weight" in state and is_conditional(state)


QD_DETR = Layout(
    name="qd_detr",
    matches=_matches,
    config=_config,
    layers=(ENCODER, FUSION, DECODER),
    rows=(
        *PROJECTIONS,
        *SALIENCY,
        *GLOBAL_TOKEN,
        *decoder_rows(),
        *ALIGNMENT,
    ),
    unused=UNUSED,
)
