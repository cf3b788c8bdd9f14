"""Official checkpoints of the image detectors to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detection.backbone import Backbone
from detection.model import ImageDetector
from detection.official_layout import Layout, to_ours
from momentdetr.detr import systems
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.model import Detector
from momentdetr.detr.systems import Sizes, Task
from momentdetr.errors import BadCheckpoint

_NUMBERED = r"\d+\..*"
_DECODER_ALIASES = (
    rf"transformer\.decoder\.(class|bbox)_embed\.{_NUMBERED}",
    r"transformer\.decoder\.(class|bbox)_embed\..*",
)

_DETR_QUERIES = ((r"detr\.queries\.positions", "query_embed.weight"),)
_SPLIT_QUERIES = (
    (r"detr\.queries\.positions", "query_embed.weight#0"),
    (r"detr\.queries\.content", "query_embed.weight#1"),
    (r"detr\.queries\.to_point\.(.*)", r"transformer.reference_points.\1"),
)
_ANCHORS = (
    (r"detr\.queries\.anchors", "refpoint_embed.weight"),
    (r"detr\.queries\.content", "transformer.patterns.weight"),
)
_DINO_QUERIES = (
    (r"detr\.queries\.content", "transformer.tgt_embed.weight"),
    (r"detr\.queries\.anchors", "transformer.refpoint_embed.weight"),
    (r"detr\.queries\.head\.classes\.(.*)", r"transformer.enc_out_class_embed.\1"),
    (r"detr\.queries\.head\.boxes\.(.*)", r"transformer.enc_out_bbox_embed.\1"),
)


@dataclass(frozen=True)
class Official:
    """How one official code base's checkpoints are read.

    Args:
        name: of the system.
        layout: its names.
        build: (task, sizes, state, options) -> Detector.
        scores: how its logits become confidences.
        top: answers per image.
    """

    name: str
    layout: Layout
    build: Callable[[Task, Sizes, Mapping[str, Tensor], Mapping[str, Any]], Detector]
    scores: Any = "sigmoid"
    top: int = 100


def _pre_norm(options: Mapping[str, Any]) -> bool:
    return bool(options.get("pre_norm", False))


def _denoising(task: Task, sizes: Sizes, options: Mapping[str, Any]) -> Denoising:
    """DN-DETR's."""
    return Denoising(
        task.num_classes,
        sizes.width,
        groups=options.get("scalar", 5),
        label_noise=options.get("label_noise_scale", 0.2),
        box_noise=options.get("box_noise_scale", 0.4),
    )


def _contrastive(task: Task, sizes: Sizes, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> Denoising:
    """DINO's: below fifty, `dn_number` is half of a number of groups; from fifty on a budget of queries."""
    number = options.get("dn_number", 100)
    return Denoising(
        task.num_classes,
        sizes.width,
        groups=2 * number if 2 * number < 100 else None,
        budget=number,
        contrastive=True,
        label_noise=options.get("dn_label_noise_ratio", 0.5) * 0.5,
        box_noise=options.get("dn_box_noise_scale", 1.0),
        indicator=False,
        label_rows=state["label_enc.weight"].shape[0],
    )


def _build_deformable(task: Task, sizes: Sizes, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> Detector:
    return systems.deformable_detr(
        task,
        sizes,
        refine=options.get("with_box_refine", "transformer.decoder.bbox_embed.0.layers.0.weight" in state),
        two_stage="transformer.enc_output.weight" in state,
    )


def _build_dino(task: Task, sizes: Sizes, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> Detector:
    return systems.dino(
        task,
        sizes,
        two_stage="transformer.enc_output.weight" in state,
        shared_heads=options.get("dec_pred_bbox_embed_share", True),
        refinement="detached" if options.get("use_detached_boxes_dec_out") else "look_forward_twice",
        denoising=_contrastive(task, sizes, state, options),
    )


def _patterns(state: Mapping[str, Tensor]) -> int:
    return state["transformer.patterns.weight"].shape[0] if "transformer.patterns.weight" in state else 0


OFFICIAL = {
    "detr": Official(
        "detr",
        Layout("dense", "dense", False, _DETR_QUERIES),
        lambda task, sizes, state, options: systems.detr(task, sizes, pre_norm=_pre_norm(options)),
        scores="softmax",
    ),
    "conditional_detr": Official(
        "conditional_detr",
        Layout(
            "dense",
            "conditional",
            False,
            (*_DETR_QUERIES, (r"detr\.queries\.to_point\.(.*)", r"transformer.decoder.ref_point_head.\1")),
        ),
        lambda task, sizes, state, options: systems.conditional_detr(task, sizes),
    ),
    "deformable_detr": Official(
        "deformable_detr", Layout("deformable", "deformable", True, _SPLIT_QUERIES, heads=True), _build_deformable
    ),
    "dab_detr": Official(
        "dab_detr",
        Layout("dense", "conditional", False, _ANCHORS),
        lambda task, sizes, state, options: systems.dab_detr(task, sizes, num_patterns=_patterns(state)),
        top=300,
    ),
    "dn_detr": Official(
        "dn_detr",
        Layout("dense", "conditional", False, _ANCHORS),
        lambda task, sizes, state, options: systems.dab_detr(
            task, sizes, num_patterns=_patterns(state), denoising=_denoising(task, sizes, options)
        ),
        top=300,
    ),
    "dab_deformable_detr": Official(
        "dab_deformable_detr",
        Layout(
            "deformable",
            "deformable",
            True,
            ((r"detr\.queries\.anchors", "refpoint_embed.weight"), (r"detr\.queries\.content", "tgt_embed.weight")),
            heads=True,
        ),
        lambda task, sizes, state, options: systems.dab_deformable_detr(task, sizes),
        top=300,
    ),
    "dn_deformable_detr": Official(
        "dn_deformable_detr",
        Layout(
            "deformable",
            "deformable",
            True,
            ((r"detr\.queries\.anchors", "refpoint_embed.weight"), (r"detr\.queries\.content", "tgt_embed.weight")),
            heads=True,
        ),
        lambda task, sizes, state, options: systems.dab_deformable_detr(
            task, sizes, denoising=_denoising(task, sizes, options)
        ),
        top=300,
    ),
    "dino": Official("dino", Layout("deformable", "deformable", True, _DINO_QUERIES, heads=True), _build_dino, top=300),
}


def system_of(state: Mapping[str, Tensor]) -> str:
    """Tell the system from the names and shapes of an official state dict.

    Raises:
        BadCheckpoint: none of the known ones.
    """
    deformable = any("sampling_offsets" in name for name in state)
    denoising = "label_enc.weight" in state
    if deformable:
        if "transformer.tgt_embed.weight" in state:
            return "dino"
        if "refpoint_embed.weight" in state:
            return "dn_deformable_detr" if denoising else "dab_deformable_detr"
        if "transformer.reference_points.weight" in state or "transformer.pos_trans.weight" in state:
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


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint: a model to be filled, and its state dict."""

    system: str
    model: ImageDetector
    state: dict[str, Tensor]


def convert_state(state: Mapping[str, Tensor], options: Mapping[str, Any], body: nn.Module) -> Conversion:
    """Convert an official state dict.

    Args:
        state: official names -> tensors.
        options: what it was trained with, official names; what is missing takes the published value.
        body: the backbone, giving the maps that the system uses.

    Raises:
        BadCheckpoint: an unknown system, or a tensor that is missing, left over or misshapen.
    """
    system = system_of(state)
    official = OFFICIAL[system]
    sizes, task = _sizes(state, options, official.layout), _task(state, official)
    detector = official.build(task, sizes, state, options)
    _reweight(detector, options)
    model = ImageDetector(
        Backbone(body, task.channels), detector, scores=official.scores, top=options.get("num_select", official.top)
    )
    ours = to_ours(state, model.state_dict().keys(), official.layout, _aliases(state, model))
    for name, value in model.state_dict().items():
        if ours[name].shape != value.shape:
            raise BadCheckpoint(f"tensor {name!r} is {tuple(ours[name].shape)}, the model expects {tuple(value.shape)}")
    return Conversion(system, model, ours)


def _aliases(state: Mapping[str, Tensor], model: ImageDetector) -> tuple[str, ...]:
    """Names under which official code repeats its heads."""
    heads = len(model.detector.detr.decoder.heads)
    repeated = tuple(rf"(class|bbox)_embed\.{i}\..*" for i in range(heads, 20)) if heads == 1 else ()
    return (*_DECODER_ALIASES, *repeated)


def _task(state: Mapping[str, Tensor], official: Official) -> Task:
    classes = next(state[name].shape[0] for name in ("class_embed.bias", "class_embed.0.bias") if name in state)
    projections = sorted(name for name in state if re.fullmatch(r"input_proj\.(\d+\.0\.)?weight", name))
    channels = tuple(state[name].shape[1] for name in projections if state[name].shape[-1] == 1)
    return Task(2, channels, classes - (official.scores == "softmax"))


def _sizes(state: Mapping[str, Tensor], options: Mapping[str, Any], layout: Layout) -> Sizes:
    def count(side: str) -> int:
        return len({name.split(".")[3] for name in state if name.startswith(f"transformer.{side}.layers.")})

    queries = next(
        (
            state[name].shape[0]
            for name in ("query_embed.weight", "refpoint_embed.weight", "transformer.refpoint_embed.weight")
            if name in state
        ),
        options.get("num_queries", 300),
    )
    if "transformer.tgt_embed.weight" in state:
        queries = state["transformer.tgt_embed.weight"].shape[0]
    levels = len({name.split(".")[1] for name in state if re.fullmatch(r"input_proj\.\d+\.0\.weight", name)})
    return Sizes(
        width=state["transformer.encoder.layers.0.norm1.weight"].shape[0],
        num_heads=options.get("nheads", 8),
        feed_forward=state["transformer.encoder.layers.0.linear1.weight"].shape[0],
        encoder_layers=count("encoder"),
        decoder_layers=count("decoder"),
        num_queries=queries,
        dropout=options.get("dropout", 0.0),
        num_levels=levels or 1,
        num_points=options.get("dec_n_points", 4),
    )


def _reweight(detector: Detector, options: Mapping[str, Any]) -> None:
    """Loss and matching weights as the checkpoint was trained with."""
    criterion = detector.criterion
    for name, loss in (("class", "cls_loss_coef"), ("l1", "bbox_loss_coef"), ("giou", "giou_loss_coef")):
        criterion.weights[name] = options.get(loss, criterion.weights[name])
    for name, cost in (("class", "set_cost_class"), ("l1", "set_cost_bbox"), ("giou", "set_cost_giou")):
        criterion.matcher.weights[name] = options.get(cost, criterion.matcher.weights[name])  # type: ignore[attr-defined]
