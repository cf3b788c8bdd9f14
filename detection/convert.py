"""Official checkpoints of the image detectors to ours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detection import convert_co_detr, detrex, hf
from detection.backbone import Backbone
from detection.backbone_names import describe_backbone, official_backbone_name
from detection.labels import class_names
from detection.model import ImageDetector
from detection.official_layout import MASKS, WRAPPED, Layout, place, to_ours
from detection.official_systems import OFFICIAL, Official, Options, State, count_layers, system_of
from detection.presets import build
from momentdetr.errors import BadCheckpoint
from momentdetr.pickled import plain_options, read_checkpoint
from momentdetr.strict import load_strictly

# Official options that must be whole numbers, and those that must be numbers.
COUNTS = frozenset({"nheads", "num_queries", "dec_n_points", "enc_n_points", "num_select", "dn_number", "scalar"})
NUMBERS = frozenset(
    {
        *("dropout", "eos_coef", "focal_alpha", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef"),
        *("set_cost_class", "set_cost_bbox", "set_cost_giou", "interm_loss_coef", "label_noise_scale"),
        *("box_noise_scale", "dn_label_noise_ratio", "dn_box_noise_scale", "pe_temperatureH", "pe_temperatureW"),
    }
)


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Args:
        config: what `presets.build` needs.
        state: our state dict.
        labels: name of each class; None where a slot stands for nothing.
        about: where it came from, for people; `left_out` lists official tensors that have no place here.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    labels: tuple[str | None, ...]
    about: dict[str, Any]

    @property
    def system(self) -> str:
        return self.config["system"]

    def model(self, backbone: Backbone | None = None) -> ImageDetector:
        """The detector with its weights, in evaluation mode."""
        model = build(self.config, backbone)
        load_strictly(model, self.state)
        return model.eval()


def convert(path: str | Path, *, system: str | None = None, options: Options | None = None) -> Conversion:
    """Convert a checkpoint.

    Args:
        path: a `.pth` of one of the official repositories or of detrex, or a folder of transformers.
        system: name of the system, where the tensors' names do not tell it.
        options: official options that the file does not hold, or that count more than those that it holds.

    Raises:
        BadCheckpoint: not readable, not of a known system, or not completely understood.
    """
    path = Path(path)
    if path.is_dir():
        return _convert_folder(path, system, options or {})
    content = read_checkpoint(path)
    state = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadCheckpoint(f"{path} has no state dict under 'model'; its keys are {sorted(map(str, content))[:8]}")
    converted = convert_state(state, {**plain_options(content), **(options or {})}, system=system)
    return replace(converted, about={"source": path.name, **converted.about})


def _convert_folder(folder: Path, system: str | None, options: Options) -> Conversion:
    """A folder of transformers."""
    state, config = hf.read_folder(folder)
    system = system or hf.SYSTEMS.get(config.get("model_type", ""))
    converted = convert_state(state, {**hf.options_of(config), **options}, system=system)
    labels = hf.labels_of(config, converted.config["num_classes"])
    return replace(converted, labels=labels, about={"source": folder.name, **converted.about})


def convert_state(
    state: State, options: Options, *, system: str | None = None, backbone: Backbone | None = None
) -> Conversion:
    """Convert an official state dict.

    Args:
        state: official names, or those of detrex or transformers, -> tensors.
        options: what it was trained with, official names; what is missing takes the published value.
        system: name of the system; None: told from the names.
        backbone: giving the maps that the system uses, with torchvision's or timm's names; None: told from the names.

    Raises:
        BadCheckpoint: an unknown system, or a tensor that is missing, left over or misshapen.
    """
    _refuse_odd_options(options)
    _refuse_stumps(state)
    if convert_co_detr.is_co_detr(state):
        converted = _convert_co_detr(state, options, backbone)
        if system not in (None, converted.system):
            raise BadCheckpoint(f"this is a checkpoint of {converted.system}, not of {system!r}")
        return converted
    for layout, module in (("detrex", detrex), ("transformers", hf)):
        if module.has_its_names(state):
            official = module.to_official(state)
            given = {**module.differences(official), **options}
            converted = convert_state(official, given, system=system, backbone=backbone)
            return replace(converted, about={**converted.about, "layout": layout})
    state, left_out = _without_masks(state)
    system = system or system_of(state)
    if system not in OFFICIAL:
        if system in convert_co_detr.SYSTEMS:
            raise BadCheckpoint(f"this is not a checkpoint of {system}: it lacks the names of Co-DETR's repository")
        known = ", ".join((*OFFICIAL, *convert_co_detr.SYSTEMS))
        raise BadCheckpoint(f"no converter for system {system!r}; known are {known}")
    code_base = OFFICIAL[system]
    try:
        config = describe(system, state, options)
        if backbone is None:
            config["backbone"] = describe_backbone(state, options, len(config["channels"]))
    except KeyError as error:
        raise BadCheckpoint(f"this is not a checkpoint of {system}: it lacks {error}") from error
    try:
        model = build(config, backbone)
    except ValueError as error:
        raise BadCheckpoint(f"this is not a complete checkpoint of {system}: {error}") from error
    backbone_names, official_layout = _backbone_names(config, backbone), code_base.layout(state)
    ours = to_ours(state, model.state_dict().keys(), official_layout, backbone_names)
    _refuse_misshapen(state, ours, model.state_dict(), official_layout, backbone_names)
    load_strictly(model, ours)
    about = {"layout": "official", **({"left_out": left_out} if left_out else {})}
    return Conversion(config, ours, class_names(config["num_classes"]), about)


def _convert_co_detr(state: State, options: Options, backbone: Backbone | None) -> Conversion:
    """Co-DETR's checkpoints have mmdetection's names throughout."""
    config = convert_co_detr.describe(state, options)
    if backbone is None:
        usual = {f"backbone.0.body.{name.removeprefix('backbone.')}": value for name, value in state.items()}
        config["backbone"] = describe_backbone(usual, options, len(config["channels"]))
    model = build(config, backbone)
    ours = convert_co_detr.to_ours(state, model.state_dict().keys(), config)
    load_strictly(model, ours)
    return Conversion(config, ours, class_names(config["num_classes"]), {"layout": "official"})


def _refuse_misshapen(state: State, ours: State, wanted: State, layout: Layout, backbone: Callable[[str], str]) -> None:
    """Name a tensor of another shape than the model's by what the checkpoint calls it."""
    for name, tensor in ours.items():
        if tensor.shape != wanted[name].shape:
            official, _ = place(name.removeprefix("detector."), layout, backbone)
            raise BadCheckpoint(
                f"{official!r} is {tuple(state[official].shape)}, which makes our {name!r} {tuple(tensor.shape)}; "
                f"the other tensors and the options ask for {tuple(wanted[name].shape)}"
            )


def _refuse_stumps(state: State) -> None:
    """Sizes are read from tensors that must not be empty, nor single numbers."""
    for name, tensor in state.items():
        if tensor.numel() == 0 or (tensor.dim() == 0 and name.endswith(("weight", "bias"))):
            raise BadCheckpoint(f"{name!r} is {tuple(tensor.shape)}, no tensor of a model; the file is damaged")


def _refuse_odd_options(options: Options) -> None:
    """A count or a weight that is something else would only show when the model is used."""
    for name in COUNTS & options.keys():
        least = 0 if name in ("dn_number", "scalar") else 1  # groups of denoising queries may be none
        if not isinstance(options[name], int) or options[name] < least:
            raise BadCheckpoint(f"option {name} is {options[name]!r}, expected a whole number from {least} on")
    for name in NUMBERS & options.keys():
        if not isinstance(options[name], int | float) or not math.isfinite(options[name]):
            raise BadCheckpoint(f"option {name} is {options[name]!r}, expected a number")


def _backbone_names(config: Mapping[str, Any], backbone: Backbone | None) -> Callable[[str], str]:
    maps = config["backbone"]["maps"] if backbone is None else range(4 - len(backbone.channels), 4)
    return lambda name: official_backbone_name(name, maps)


def _without_masks(state: State) -> tuple[State, list[str]]:
    """Unwrap panoptic DETR's detector; the heads for masks are left out, by name."""
    if not any(name.startswith(f"{WRAPPED}transformer.") for name in state):
        return state, []
    left_out = sorted(name for name in state if any(re.fullmatch(pattern, name) for pattern in MASKS))
    kept = {name.removeprefix(WRAPPED): value for name, value in state.items() if name not in left_out}
    return kept, left_out


def describe(system: str, state: State, options: Options) -> dict[str, Any]:
    """What `presets.build` needs, but for the backbone."""
    official = OFFICIAL[system]
    for name, value in official.known.items():
        if options.get(name, value) != value:
            raise BadCheckpoint(f"the checkpoint was trained with {name}={options[name]!r}; known here is {value!r}")
    projections = sorted(name for name in state if re.fullmatch(r"input_proj\.(\d+\.0\.)?weight", name))
    head = "class_embed.0.bias" if "class_embed.0.bias" in state else "class_embed.bias"
    top = official.top if isinstance(official.top, int) else options.get(official.top, 300)
    top = options.get("top", top)
    config = {
        "system": system,
        "num_classes": state[head].shape[0] - (official.scores == "softmax"),
        "channels": [state[name].shape[1] for name in projections if state[name].shape[-1] == 1],
        "sizes": _sizes(state, options),
        "positions": _positions(official, state, options),
        "options": official.options(state, options),
        "losses": _losses(official, options),
        "scores": official.scores,
        "top": top,
    }
    if official.denoising is not None:
        config["denoising"] = official.denoising(state, options)
    return config


def _sizes(state: State, options: Options) -> dict[str, Any]:
    width, heads = state["transformer.encoder.layers.0.norm1.weight"].shape[0], options.get("nheads", 8)
    if width % heads:
        raise BadCheckpoint(f"the checkpoint is {width} wide, which {heads} heads (option nheads) cannot divide")
    queries = ("query_embed", "refpoint_embed", "transformer.tgt_embed", "transformer.refpoint_embed")
    found = (state[f"{name}.weight"].shape[0] for name in queries if f"{name}.weight" in state)
    levels = len({name.split(".")[1] for name in state if re.fullmatch(r"input_proj\.\d+\.0\.weight", name)})
    return {
        "width": width,
        "num_heads": heads,
        "feed_forward": state["transformer.encoder.layers.0.linear1.weight"].shape[0],
        "encoder_layers": count_layers(state, "encoder"),
        "decoder_layers": count_layers(state, "decoder"),
        "num_queries": next(found, options.get("num_queries", 300)),
        "dropout": options.get("dropout", 0.0),
        "num_levels": levels or 1,
        "num_points": options.get("dec_n_points", 4),
        "encoder_points": options.get("enc_n_points", 4),
    }


def _positions(official: Official, state: State, options: Options) -> dict[str, Any]:
    temperature: Any = 10000.0
    if official.temperature is not None:
        axes = ("pe_temperatureH", "pe_temperatureW")
        temperature = tuple(float(options.get(axis, official.temperature)) for axis in axes)
    learned = "backbone.1.row_embed.weight" in state
    return {"temperature": temperature, "offset": options.get("pe_offset", official.offset), "learned": learned}


def _losses(official: Official, options: Options) -> dict[str, Any]:
    """Loss and matching weights as the checkpoint was trained with."""
    losses: dict[str, Any] = {
        "l1_weight": options.get("bbox_loss_coef", 5.0),
        "giou_weight": options.get("giou_loss_coef", 2.0),
        "l1_cost_weight": options.get("set_cost_bbox", 5.0),
        "giou_cost_weight": options.get("set_cost_giou", 2.0),
        "auxiliary": bool(options.get("aux_loss", True)),
    }
    if official.scores == "softmax":
        return {
            **losses,
            "class_cost": options.get("set_cost_class", 1.0),
            "background": options.get("eos_coef", 0.1),
        }
    alpha = options.get("focal_alpha", 0.25)
    return {
        **losses,
        "class_weight": options.get("cls_loss_coef", official.class_weight),
        "class_cost": options.get("set_cost_class", 2.0),
        "eps": official.eps,
        "alpha": alpha,
        "cost_alpha": alpha if official.cost_alpha else 0.25,
    }
