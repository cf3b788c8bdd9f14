"""TaskWeave's official and Lighthouse's names."""

from __future__ import annotations

from typing import Any

from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.layouts.family import (
    FUSION,
    PROJECTIONS,
    WORD_POSITIONS,
    common_config,
    decoder_rows,
    learns_moments,
)
from momentdetr.retrieval.layouts.layout import Layers, Layout, Options, State


def _config(state: State, options: Options) -> dict[str, Any]:
    if options.get("contrastive_align_loss") or options.get("pre_norm"):
        raise BadCheckpoint("TaskWeave with contrastive alignment or pre_norm was never published and is not built")
    layers = ("transformer.t2v_encoder.layers.", "transformer.mr_decoder.layers.")
    hidden = "transformer.t2v_encoder.layers.0.linear1.weight"
    return {
        **common_config(state, options, hidden=hidden, encoder=layers[0], decoder=layers[1]),
        # Lighthouse has an option for the direction. The official code is edited by hand to change it, and neither its
        # weights nor its options tell: what it is released as is taken; whoever knows better edits config.json.
        "direction": "moments_first" if options.get("mr2hd") else "highlights_first",
        "moments": learns_moments(options),
        "official_batch_faults": True,
    }


TASKWEAVE = Layout(
    name="taskweave",
    matches=lambda state: "hd_log_var" in state and "transformer.mr_conv.conv.weight" in state,
    config=_config,
    layers=(
        Layers(r"encoder\.encoder\.layers", "transformer.shared_encoder.layers"),
        FUSION,
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
        *decoder_rows("transformer.mr_decoder"),
    ),
    unused=WORD_POSITIONS,
)
