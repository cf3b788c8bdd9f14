"""How the official code bases that grew out of QD-DETR are told apart, and what their presets' own options are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Options = Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]]
"""The options of a preset, from an official state dict and the options that it was trained with."""


def cg_detr(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
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
        "moments": options.get("dset_name") not in ("tvsum", "youtube_uni") or "v_feat_types" in options,
    }


def tr_detr(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "video_text": options.get("VTC_loss_coef", 0.3),
        "clip_text": options.get("CTC_loss_coef", 0.5),
        "moments": options.get("dset_name") != "tvsum" or "v_feat_types" in options,
    }


# preset: a tensor that only its checkpoints have, and its options.
FAMILY: dict[str, tuple[str, Options]] = {
    "cg_detr": ("dummy_rep_token", cg_detr),
    "tr_detr": ("fuser.cq_attention.w4C", tr_detr),
}


def family_of(state: Mapping[str, Tensor]) -> str | None:
    """The preset that a state dict belongs to, if it is one of these."""
    return next((preset for preset, (mark, _) in FAMILY.items() if mark in state), None)


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many parts a state dict numbers behind a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
