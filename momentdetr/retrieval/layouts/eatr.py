"""EaTR's official and Lighthouse's names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from momentdetr.retrieval.layouts.family import (
    ALIGNMENT,
    DECODER,
    ENCODER,
    PROJECTIONS,
    UNUSED,
    alignment_config,
    common_config,
    decoder_rows,
)
from momentdetr.retrieval.layouts.layout import Layout, Options, State

_EVENTS = "event_span_embed.layers.0.weight"


def _config(state: State, options: Options) -> dict[str, Any]:
    return {
        **common_config(state, options),
        **alignment_config(state, options),
        "slot_iterations": options.get("num_slot_iter", 3),
        "events": options.get("event_coef", 3.0),
        "official_batch_faults": True,
    }


EATR = Layout(
    name="eatr",
    matches=lambda state: _EVENTS in state or f"transformer.decoder.{_EVENTS}" in state,
    config=_config,
    layers=(ENCODER, replace(DECODER, further={"gate_cross": "gate_cross_attn", "gate_self": "gate_self_attn"})),
    rows=(
        *PROJECTIONS,
        (r"encoder\.saliency\.(.*)", r"saliency_proj.\1"),
        (r"encoder\.first_slots", r"query_embed.weight"),
        (r"encoder\.slots\.(norm_.*|mlp\..*)", r"transformer.processer_for_tgt.\1"),
        (r"encoder\.slots\.(q|k|v)(?:uery|ey|alue)\.(.*)", r"transformer.processer_for_tgt.project_\1.\2"),
        (r"encoder\.event_spans\.(.*)", r"event_span_embed.\1"),
        (r"encoder\.event_norm\.(.*)", r"transformer.decoder.event_norm.\1"),
        *decoder_rows(),
        *ALIGNMENT,
    ),
    unused=UNUSED,
    aliases=(
        (r"transformer\.decoder\.slot_atten\.slots$", "query_embed.weight"),
        (r"transformer\.decoder\.slot_atten\.", "transformer.processer_for_tgt."),
        (r"(transformer\.decoder\.)?moment_span_embed\.", "span_embed."),
        (r"transformer\.decoder\.event_span_embed\.", "event_span_embed."),
    ),
)
