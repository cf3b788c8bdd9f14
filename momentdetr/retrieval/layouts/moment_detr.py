"""Moment-DETR's official and Lighthouse's names."""

from __future__ import annotations

from typing import Any

from momentdetr.retrieval.layouts.family import (
    ALIGNMENT,
    ENCODER,
    PROJECTIONS,
    UNUSED,
    alignment_config,
    common_config,
    decoder_rows,
    is_conditional,
)
from momentdetr.retrieval.layouts.layout import Layers, Layout, Options, State


def _config(state: State, options: Options) -> dict[str, Any]:
    boundary = state["span_embed.layers.2.bias"].shape[0] // 2
    return {
        **common_config(state, options),
        **alignment_config(state, options),
        "pre_norm": bool(options.get("pre_norm", "transformer.encoder.norm.weight" in state)),
        "boundary_clips": boundary if boundary > 1 else 0,
    }


MOMENT_DETR = Layout(
    name="moment_detr",
    matches=lambda state: "query_embed.weight" in state and not is_conditional(state),
    config=_config,
    layers=(ENCODER, Layers(r"head\.decoder\.layers", "transformer.decoder.layers", decoder=True)),
    rows=(
        *PROJECTIONS,
        (r"encoder\.encoder\.norm\.(.*)", r"transformer.encoder.norm.\1"),
        (r"encoder\.saliency\.(.*)", r"saliency_proj.\1"),
        *decoder_rows(),
        *ALIGNMENT,
    ),
    unused=UNUSED,
)
