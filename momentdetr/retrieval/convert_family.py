"""How the official code bases that grew out of QD-DETR are told apart, and what their presets' own options are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from momentdetr.errors import BadCheckpoint

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
        "cut_videos": options.get("dset_name", "hl") in ("hl", "qvhighlight"),
        "moments": options.get("dset_name") not in ("tvsum", "youtube_uni") or "v_feat_types" in options,
    }


def tr_detr(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "video_text": options.get("VTC_loss_coef", 0.3),
        "clip_text": options.get("CTC_loss_coef", 0.5),
        "moments": options.get("dset_name") != "tvsum" or "v_feat_types" in options,
    }


def uvcom(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_topics": state["transformer.txt_mu"].shape[0],
        "num_clusters": state["transformer.vid_mu"].shape[0],
        "cluster_iterations": options.get("em_iter", 5),
        "slot_size": state["transformer.processer_for_tgt.mlp.layers.0.bias"].shape[0],
        "likeness_size": state["transformer.sim_vid.layers.0.bias"].shape[0],
        "similarity": options.get("sim_loss_coef", 1.0),
        "hard_negatives_from": options.get("neg_choose_epoch", 80),
        # Lighthouse swapped the arguments of torch.linalg.solve, and its weights were trained with that.
        "inverted_walk": "v_feat_types" not in options,
        "moments": options.get("dset_name") != "tvsum" or "v_feat_types" in options,
    }


def eatr(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"slot_iterations": options.get("num_slot_iter", 3), "events": options.get("event_coef", 3.0)}


# preset: a tensor that only its checkpoints have, and its options.
FAMILY: dict[str, tuple[str, Options]] = {
    "cg_detr": ("dummy_rep_token", cg_detr),
    "uvcom": ("transformer.vid_mu", uvcom),
    "eatr": ("event_span_embed.layers.0.weight", eatr),
    "tr_detr": ("fuser.cq_attention.w4C", tr_detr),
}


# UVCOM's and EaTR's names of parts that the rest of the family has too: (pattern, common name).
_RENAMED = (
    (r"CIM\.GKA_Module\.", "transformer.encoder."),
    (r"CIM\.", "transformer."),
    (r"transformer\.decoder\.slot_atten\.slots$", "query_embed.weight"),
    (r"transformer\.decoder\.slot_atten\.", "transformer.processer_for_tgt."),
    (r"(transformer\.decoder\.)?moment_span_embed\.", "span_embed."),
    (r"transformer\.decoder\.event_span_embed\.", "event_span_embed."),
)


def common_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names that the rest of the family has for the same parts; two names of one are joined.

    Raises:
        BadCheckpoint: the two names of one tensor hold different numbers.
    """
    common: dict[str, Tensor] = {}
    for name, tensor in state.items():
        renamed = next((re.sub(f"^{old}", new, name) for old, new in _RENAMED if re.match(old, name)), name)
        if renamed in common and not torch.equal(common[renamed], tensor):
            raise BadCheckpoint(f"{name!r} should be the same tensor as another one of the checkpoint, but is not")
        common[renamed] = tensor
    return common


def family_of(state: Mapping[str, Tensor]) -> str | None:
    """The preset that a state dict belongs to, if it is one of these."""
    return next((preset for preset, (mark, _) in FAMILY.items() if mark in state), None)


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many parts a state dict numbers behind a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
