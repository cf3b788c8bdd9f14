"""What the official code bases that grew out of Moment-DETR's have in common: names of parts, sizes and weights."""

from __future__ import annotations

from typing import Any

from momentdetr.retrieval.layouts.layout import Layers, Options, State, count

PROJECTIONS: tuple[tuple[str, str], ...] = (
    (r"encoder\.(video|text)_projection\.norms\.(\d+)\.(.*)", r"input_\1_proj.\2.LayerNorm.\3"),
    (r"encoder\.(video|text)_projection\.linears\.(\d+)\.(.*)", r"input_\1_proj.\2.net.1.\3"),
    (r"encoder\.text_positions\.embedding\.(.*)", r"txt_position_embed.position_embeddings.\1"),
    (r"encoder\.text_positions\.norm\.(.*)", r"txt_position_embed.LayerNorm.\1"),
)

ALIGNMENT: tuple[tuple[str, str], ...] = (
    (r"align\.query\.(.*)", r"contrastive_align_projection_query.\1"),
    (r"align\.text\.(.*)", r"contrastive_align_projection_txt.\1"),
)

SALIENCY: tuple[tuple[str, str], ...] = (
    (r"encoder\.saliency_clip\.(.*)", r"saliency_proj1.\1"),
    (r"encoder\.saliency_global\.(.*)", r"saliency_proj2.\1"),
)
"""From QD-DETR on."""

GLOBAL_TOKEN: tuple[tuple[str, str], ...] = (
    (r"encoder\.global_token", r"global_rep_token"),
    (r"encoder\.global_position", r"global_rep_pos"),
)
"""Which QD-DETR's saliency is measured by."""


def decoder_rows(prefix: str = "transformer.decoder") -> tuple[tuple[str, str], ...]:
    """Queries, and what stands around the decoder's layers.

    Args:
        prefix: of the official decoder.
    """
    return (
        (r"head\.queries\.(?:positions|anchors)", r"query_embed.weight"),
        (r"head\.decoder\.norm\.(.*)", rf"{prefix}.norm.\1"),
        (r"head\.decoder\.heads\.0\.classes\.(.*)", r"class_embed.\1"),
        (r"head\.decoder\.heads\.0\.boxes\.(.*)", r"span_embed.\1"),
        (r"head\.decoder\.refine_heads\.0\.(.*)", rf"{prefix}.bbox_embed.\1"),
        (r"head\.decoder\.guide\.to_positions\.(.*)", rf"{prefix}.ref_point_head.\1"),
        (r"head\.decoder\.guide\.query_scale\.(.*)", rf"{prefix}.query_scale.\1"),
        (r"head\.decoder\.guide\.wanted_size\.(.*)", rf"{prefix}.ref_anchor_head.\1"),
    )


ENCODER = Layers(r"encoder\.encoder\.layers", "transformer.encoder.layers")
FUSION = Layers(r"encoder\.fusion", "transformer.t2v_encoder.layers")
DECODER = Layers(r"head\.decoder\.layers", "transformer.decoder.layers", "conditional", decoder=True)

WORD_POSITIONS = {r"txt_position_embed\..*": "word positions, created but not used unless use_txt_pos"}
UNUSED = WORD_POSITIONS | {
    r"contrastive_align_projection_(query|txt|vid)\..*": "contrastive alignment, not used or only for logging"
}


def common_config(
    state: State,
    options: Options,
    *,
    hidden: str = "transformer.encoder.layers.0.linear1.weight",
    encoder: str = "transformer.encoder.layers.",
    decoder: str | None = "transformer.decoder.layers.",
) -> dict[str, Any]:
    """Sizes, loss weights and word positions of a system with Moment-DETR's input projections.

    Args:
        state: official names -> tensors.
        options: that it was trained with.
        hidden: official name of a feed-forward network's first weight.
        encoder: prefix of the layers that `Sizes.encoder_layers` counts.
        decoder: prefix of the decoder's layers, or None.
    """
    sizes = {
        "video_dim": state["input_vid_proj.0.net.1.weight"].shape[1],
        "text_dim": state["input_txt_proj.0.net.1.weight"].shape[1],
        "width": state["input_vid_proj.0.net.1.weight"].shape[0],
        "num_heads": options.get("nheads", 8),
        "feed_forward": state[hidden].shape[0],
        "encoder_layers": count(state, encoder),
        "dropout": options.get("dropout", 0.1),
        "input_layers": count(state, "input_vid_proj."),
        "input_dropout": options.get("input_dropout", 0.5),
    }
    if decoder is not None:
        sizes |= {"decoder_layers": count(state, decoder), "num_queries": state["query_embed.weight"].shape[0]}
    config: dict[str, Any] = {"sizes": sizes, "weights": _loss_weights(options)}
    if options.get("use_txt_pos"):
        config["text_positions"] = state["txt_position_embed.position_embeddings.weight"].shape[0]
    return config


def alignment_config(state: State, options: Options) -> dict[str, Any]:
    """The contrastive alignment, if it was trained with one."""
    if not options.get("contrastive_align_loss", False):
        return {}
    size = state["contrastive_align_projection_query.bias"].shape[0]
    return {"alignment_size": size, "temperature": options.get("temperature", 0.07)}


def learns_moments(options: Options) -> bool:
    """Lighthouse trains TVSum with the matcher; only the official code leaves moments out."""
    return options.get("dset_name") != "tvsum" or from_lighthouse(options)


def from_lighthouse(options: Options) -> bool:
    """Whether Lighthouse wrote the options: only it names its features."""
    return "v_feat_types" in options


def is_conditional(state: State) -> bool:
    """Whether it has DAB-DETR's decoder: its queries are spans, or its layers tell."""
    queries = state.get("query_embed.weight")
    spans = queries is not None and queries.shape[-1] == 2
    return spans or "transformer.decoder.layers.0.ca_qcontent_proj.weight" in state


def _loss_weights(options: Options) -> dict[str, Any]:
    names = {
        "l1": "span_loss_coef",
        "giou": "giou_loss_coef",
        "class_": "label_loss_coef",
        "saliency": "lw_saliency",
        "align": "contrastive_align_loss_coef",
        "background": "eos_coef",
        "saliency_margin": "saliency_margin",
        "cost_l1": "set_cost_span",
        "cost_giou": "set_cost_giou",
        "cost_class": "set_cost_class",
        "auxiliary": "aux_loss",
    }
    return {ours: options[official] for ours, official in names.items() if official in options}
