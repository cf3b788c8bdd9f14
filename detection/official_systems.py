"""The official code bases: how their checkpoints are recognised, named and configured."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from detection.official_layout import Layout
from momentdetr.errors import BadCheckpoint

State = Mapping[str, Tensor]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Official:
    """How one official code base's checkpoints are read.

    Args:
        layout: their names.
        class_weight: of the classification loss, where the options do not say.
        options: of our row, from state dict and official options.
        denoising: keywords of the groups, or None.
        eps: of IoU and GIoU in losses and costs.
        temperature: of the sine positions, where the options do not say; None: not among its options.
        cost_alpha: whether the matcher's focal cost takes `focal_alpha` (else 0.25).
        scores: how logits become confidences.
        top: answers per image; the option that tells it, or a number.
        offset: of the sine positions, where the options do not say.
        known: options that change what is computed but no tensor's name, and the only value that is known here.
    """

    layout: Callable[[State], Layout]
    class_weight: float = 1.0
    options: Callable[[State, Options], dict[str, Any]] = lambda state, options: {}
    denoising: Callable[[State, Options], dict[str, Any]] | None = None
    eps: float = 0.0
    temperature: float | None = None
    cost_alpha: bool = False
    scores: Literal["softmax", "sigmoid"] = "sigmoid"
    top: str | int = 100
    offset: float = 0.0
    known: Mapping[str, Any] = field(default_factory=lambda: {"batch_norm_type": "FrozenBatchNorm2d"})


_POSITIONS = ((r"detr\.queries\.positions", "query_embed.weight"),)
_ANCHORS = (
    (r"detr\.queries\.anchors", "refpoint_embed.weight"),
    (r"detr\.queries\.content", "tgt_embed.weight"),
    (r"detr\.queries\.patterns", "patterns_embed.weight"),
)
_PROPOSALS = (
    (r"detr\.queries\.content", "transformer.tgt_embed.weight"),
    (r"detr\.queries\.anchors", "transformer.refpoint_embed.weight"),
    (r"detr\.queries\.head\.classes\.(.*)", r"transformer.enc_out_class_embed.\1"),
    (r"detr\.queries\.head\.boxes\.(.*)", r"transformer.enc_out_bbox_embed.\1"),
)


def count_layers(state: State, side: str) -> int:
    return len({name.split(".")[3] for name in state if name.startswith(f"transformer.{side}.layers.")})


def _last_head(state: State) -> tuple[tuple[str, str], ...]:
    """Two-stage code keeps the proposals' head behind those of the decoder's layers."""
    last = count_layers(state, "decoder")
    return (
        (r"detr\.queries\.head\.classes\.(.*)", rf"class_embed.{last}.\1"),
        (r"detr\.queries\.head\.boxes\.(.*)", rf"bbox_embed.{last}.\1"),
    )


def _deformable_layout(state: State) -> Layout:
    names = (
        (r"detr\.queries\.positions", "query_embed.weight#0"),
        (r"detr\.queries\.content", "query_embed.weight#1"),
        (r"detr\.queries\.to_point\.(.*)", r"transformer.reference_points.\1"),
        *_last_head(state),
    )
    return Layout("deformable", "deformable", True, names, heads=True)


def _conditional_layout(state: State) -> Layout:
    point = (r"detr\.queries\.to_point\.(.*)", r"transformer.decoder.ref_point_head.\1")
    return Layout("dense", "conditional", False, (*_POSITIONS, point))


def _dab_layout(state: State) -> Layout:
    names = (_ANCHORS[0], (r"detr\.queries\.patterns", "transformer.patterns.weight"))
    return Layout("dense", "conditional", False, names)


def _dn_dino_layout(state: State) -> Layout:
    names = (_PROPOSALS[0], *_last_head(state))
    return Layout("deformable", "deformable", True, names, heads=True)


def _proposal_weight(options: Options) -> float:
    """Official code weighs the proposals' losses only together with those of earlier layers."""
    return 1.0 if options.get("aux_loss", True) else 0.0


def _deformable(state: State, options: Options) -> dict[str, Any]:
    return {
        **_eps(options, 1e-5),
        "refine": "transformer.decoder.bbox_embed.0.layers.0.weight" in state,
        "two_stage": "transformer.enc_output.weight" in state,
        "proposal_weight": _proposal_weight(options),
    }


def _eps(options: Options, published: float) -> dict[str, Any]:
    """Of the inverse sigmoid; other libraries than the official ones have it otherwise."""
    return {"eps": options.get("inverse_sigmoid_eps", published)}


def _patterns(name: str, state: State) -> dict[str, Any]:
    return {"num_patterns": state[name].shape[0] if name in state else 0}


def _dab(state: State, options: Options) -> dict[str, Any]:
    learned = any(name.endswith("activation.weight") for name in state)
    activation = options.get("transformer_activation", "prelu" if learned else "relu")
    return {**_eps(options, 1e-3), **_patterns("transformer.patterns.weight", state), "activation": activation}


def _dab_deformable(state: State, options: Options) -> dict[str, Any]:
    return _patterns("patterns_embed.weight", state)


def _dn_dino(state: State, options: Options) -> dict[str, Any]:
    forward = options.get("use_lft", True)
    return {
        "refinement": "look_forward_twice" if forward else "detached",
        "proposal_weight": _proposal_weight(options),
    }


def _shared(state: State, what: str) -> bool:
    """Whether official code repeats one head for all layers."""
    names = [name for name in state if re.match(rf"{what}\.0\.", name)]
    layers = range(1, count_layers(state, "decoder"))
    return all(torch.equal(state[name], state[name.replace(".0.", f".{i}.", 1)]) for name in names for i in layers)


def _dino(state: State, options: Options) -> dict[str, Any]:
    proposed = "transformer.enc_output.weight" in state
    return {
        "two_stage": proposed,
        "learned_content": options.get("embed_init_tgt", "transformer.tgt_embed.weight" in state) or not proposed,
        "shared_classes": options.get("dec_pred_class_embed_share", _shared(state, "class_embed")),
        "shared_boxes": options.get("dec_pred_bbox_embed_share", _shared(state, "bbox_embed")),
        "refinement": "detached" if options.get("use_detached_boxes_dec_out") else "look_forward_twice",
        "activation": options.get("transformer_activation", "relu"),
        "proposal_weight": options.get("interm_loss_coef", 1.0),
    }


def _groups(state: State, options: Options) -> dict[str, Any]:
    """DN-DETR's: from a hundred on, `scalar` is a number of queries, below it one of groups."""
    scalar = options.get("scalar", 5)
    return {
        "groups": None if scalar >= 100 else max(1, scalar),
        "budget": scalar,
        "label_noise": options.get("label_noise_scale", 0.2),
        "box_noise": options.get("box_noise_scale", 0.4),
    }


def _paired(state: State, options: Options) -> dict[str, Any]:
    return {**_groups(state, options), "paired": bool(options.get("contrastive", True)), "unknown": False}


def _contrastive(state: State, options: Options) -> dict[str, Any]:
    """DINO's: below fifty, `dn_number` is half of a number of groups; from fifty on a budget of queries.

    Without `use_dn` the official code still makes one group, and leaves its losses out of the sum.
    """
    used = options.get("use_dn", True)
    number = options.get("dn_number", 100) if used else 0
    return {
        "groups": max(1, 2 * number) if number < 50 else None,
        "budget": number,
        "contrastive": True,
        "label_noise": options.get("dn_label_noise_ratio", 0.5) * 0.5,
        "box_noise": options.get("dn_box_noise_scale", 1.0),
        "indicator": False,
        "label_rows": state["label_enc.weight"].shape[0],
        "weight": float(used),
    }


OFFICIAL: dict[str, Official] = {
    "detr": Official(
        lambda state: Layout("dense", "dense", False, _POSITIONS),
        options=lambda state, options: {
            "pre_norm": options.get("pre_norm", "transformer.encoder.norm.weight" in state)
        },
        scores="softmax",
    ),
    "conditional_detr": Official(
        _conditional_layout, class_weight=2.0, options=lambda state, options: _eps(options, 1e-5)
    ),
    "deformable_detr": Official(_deformable_layout, class_weight=2.0, options=_deformable, offset=-0.5),
    "dab_detr": Official(_dab_layout, options=_dab, eps=1e-6, temperature=20.0, cost_alpha=True, top="num_select"),
    "dab_deformable_detr": Official(
        lambda state: Layout("deformable", "deformable", True, _ANCHORS, heads=True),
        options=_dab_deformable,
        eps=1e-6,
        offset=-0.5,
    ),
    "dn_detr": Official(
        _dab_layout, options=_dab, denoising=_groups, eps=1e-6, temperature=20.0, cost_alpha=True, top="num_select"
    ),
    "dn_deformable_detr": Official(
        lambda state: Layout("deformable", "deformable", True, _ANCHORS, heads=True),
        options=_dab_deformable,
        denoising=_groups,
        eps=1e-6,
        offset=-0.5,
    ),
    "dn_dino": Official(_dn_dino_layout, options=_dn_dino, denoising=_paired, eps=1e-6, offset=-0.5, top="num_results"),
    "dino": Official(
        lambda state: Layout("deformable", "deformable", True, _PROPOSALS, heads=True),
        options=_dino,
        denoising=_contrastive,
        eps=1e-6,
        temperature=20.0,
        cost_alpha=True,
        top="num_select",
        known={
            "batch_norm_type": "FrozenBatchNorm2d",
            "decoder_layer_noise": False,
            "decoder_module_seq": ["sa", "ca", "ffn"],
            "decoder_sa_type": "sa",
            "matcher_type": "HungarianMatcher",
            "no_interm_box_loss": False,
            "use_deformable_box_attn": False,
        },
    ),
}


def system_of(state: State) -> str:
    """Tell the system from the names of an official state dict.

    Raises:
        BadCheckpoint: none of the known ones.
    """
    deformable = any("sampling_offsets" in name for name in state)
    denoising = "label_enc.weight" in state
    proposals = "transformer.enc_output.weight" in state
    if deformable:
        if "transformer.enc_out_class_embed.weight" in state or "transformer.refpoint_embed.weight" in state:
            return "dino"
        if "refpoint_embed.weight" in state:
            return "dn_deformable_detr" if denoising else "dab_deformable_detr"
        if denoising and proposals:
            return "dn_dino"
        if "transformer.reference_points.weight" in state or proposals:
            return "deformable_detr"
    elif "refpoint_embed.weight" in state:
        return "dn_detr" if denoising else "dab_detr"
    elif "transformer.decoder.layers.0.ca_qcontent_proj.weight" in state:
        return "conditional_detr"
    elif "query_embed.weight" in state and "transformer.decoder.layers.0.multihead_attn.in_proj_weight" in state:
        return "detr"
    raise BadCheckpoint(
        "this is not a checkpoint of a known system of the family; expected one of " + ", ".join(OFFICIAL)
    )
