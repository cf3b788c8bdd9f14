"""Official and Lighthouse checkpoints to ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentdetr.errors import BadCheckpoint
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream
from momentdetr.pickled import plain_options, read_checkpoint
from momentdetr.retrieval.convert_family import FAMILY, common_names, family_of
from momentdetr.retrieval.layouts.table import layout_of
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.official_layout import is_conditional, to_ours
from momentdetr.retrieval.presets import build
from momentdetr.strict import load_strictly

# OpenAI's own preprocessing, which the official CLIP features were made with.
_OPENAI = Preprocessing(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic")
_CLIP_MODEL = "open_clip:ViT-B-32-quickgelu"


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Args:
        config: what `presets.build` needs.
        state: our state dict.
        spec: the features that the model was trained on.
        about: where it came from, for people.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    spec: FeatureSpec
    about: dict[str, Any]

    def model(self) -> MomentRetriever:
        """The model with its weights, in evaluation mode."""
        model = build(self.config)
        load_strictly(model, self.state)
        return model.eval()


def convert(path: str | Path) -> Conversion:
    """Convert an official or Lighthouse checkpoint file.

    Raises:
        BadCheckpoint: not readable, not of a known system, or not completely understood.
    """
    path = Path(path)
    content = read_checkpoint(path)
    state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadCheckpoint(f"{path} has no state dict under 'model'; its keys are {sorted(map(str, content))[:8]}")
    try:
        converted = convert_state(state, plain_options(content))
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    return replace(converted, about={"source": path.name, **converted.about})


def convert_state(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Convert an official state dict.

    Args:
        state: official names -> tensors.
        options: the options that it was trained with, official names; what is missing is told from the shapes or
            takes the published value.

    Raises:
        BadCheckpoint: an unknown system, a missing or left-over tensor, a wrong shape, or NaN.
    """
    layout = layout_of(state)
    if layout is None:
        state = common_names(state)
        config = _config(state, options)
        model = build(config)
        ours = to_ours(state, model.state_dict().keys())
    else:
        config = layout.configure(state, options, _weights(options))
        model = build(config)
        ours = layout.to_ours(state, model.state_dict().keys())
    load_strictly(model, ours)
    lighthouse = "v_feat_types" in options
    about = {"system": config["preset"], "layout": "lighthouse" if lighthouse else "official"}
    spec = _spec if layout is None or layout.spec is None else layout.spec
    return Conversion(config, ours, spec(state, options), about)


def permute_streams(state: Mapping[str, Tensor], dims: Sequence[int], order: Sequence[int]) -> dict[str, Tensor]:
    """Reorder the video streams that an official state dict expects, e.g. Lighthouse's [clip, slowfast].

    Args:
        state: official names -> tensors.
        dims: length of each stream in the present order; what follows them (temporal endpoints) stays last.
        order: for each new place, the index of the stream that moves there.

    Returns:
        A state dict that gives the same answers for streams in the new order.
    """
    starts = [sum(dims[:i]) for i in range(len(dims))]
    columns = [column for i in order for column in range(starts[i], starts[i] + dims[i])]
    size = state["input_vid_proj.0.LayerNorm.weight"].shape[0]
    index = torch.tensor([*columns, *range(sum(dims), size)])
    moved = dict(state)
    for name in ("LayerNorm.weight", "LayerNorm.bias", "net.1.weight"):
        key = f"input_vid_proj.0.{name}"
        moved[key] = state[key].index_select(-1, index)
    return moved


def _config(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    conditional = is_conditional(state)
    if (
        conditional
        and family_of(state) is None
        and ("transformer.t2v_encoder.layers.0.linear1.weight" not in state or "saliency_proj1.weight" not in state)
    ):
        raise BadCheckpoint("this checkpoint has span queries, but not QD-DETR's text-to-video encoder: unknown system")
    boundary = state["span_embed.layers.2.bias"].shape[0] // 2
    family = family_of(state)
    config: dict[str, Any] = {
        "preset": family or ("qd_detr" if conditional else "moment_detr"),
        "sizes": _sizes(state, options),
        "weights": _weights(options),
    }
    if options.get("use_txt_pos"):
        config["text_positions"] = state["txt_position_embed.position_embeddings.weight"].shape[0]
    if options.get("contrastive_align_loss", False):
        config["alignment_size"] = state["contrastive_align_projection_query.bias"].shape[0]
        config["temperature"] = options.get("temperature", 0.07)
    if family is not None:
        return config | {"official_batch_faults": True} | FAMILY[family][1](state, options)
    if conditional:
        if options.get("pre_norm"):
            raise BadCheckpoint(
                "QD-DETR with pre_norm does not run in the official code; this checkpoint is not one of it"
            )
        # Official weights were trained with these faults, and answer as published only with them.
        config["official_batch_faults"] = True
        # Lighthouse trains TVSum with the matcher; only the official code leaves moments out.
        config["moments"] = options.get("dset_name") != "tvsum" or "v_feat_types" in options
    else:
        config["pre_norm"] = bool(options.get("pre_norm", "transformer.encoder.norm.weight" in state))
        config["boundary_clips"] = boundary if boundary > 1 else 0
    return config


def _sizes(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    num_queries = state["query_embed.weight"].shape[0]
    width = state["class_embed.weight"].shape[1]
    return {
        "video_dim": state["input_vid_proj.0.net.1.weight"].shape[1],
        "text_dim": state["input_txt_proj.0.net.1.weight"].shape[1],
        "width": width,
        "num_heads": options.get("nheads", 8),
        "feed_forward": state["transformer.encoder.layers.0.linear1.weight"].shape[0],
        "encoder_layers": count("transformer.encoder.layers."),
        "decoder_layers": count("transformer.decoder.layers."),
        "num_queries": num_queries,
        "dropout": options.get("dropout", 0.1),
        "input_layers": count("input_vid_proj."),
        "input_dropout": options.get("input_dropout", 0.5),
    }


def _weights(options: Mapping[str, Any]) -> dict[str, Any]:
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


def _spec(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> FeatureSpec:
    size = state["input_vid_proj.0.net.1.weight"].shape[1]
    tef = "tef" in str(options.get("ctx_mode", "video_tef"))
    text_dim = state["input_txt_proj.0.net.1.weight"].shape[1]
    return FeatureSpec(
        video=_streams(size - 2 * tef, options),
        text=Stream("clip_text", text_dim, _CLIP_MODEL if text_dim == 512 else "official"),
        clip_length_s=float(options.get("clip_length", 2)),
        normalize="none" if options.get("no_norm_vfeat") else "l2",
        tef=tef,
        max_clips=int(options.get("max_v_l", 75)),
        max_words=int(options.get("max_q_l", 32)),
    )


def _streams(size: int, options: Mapping[str, Any]) -> tuple[Stream, ...]:
    """The streams that make up a clip's vector, told from its length and the options; order as trained."""
    clip = Stream("clip", 512, _CLIP_MODEL, None, _OPENAI)
    slowfast = Stream("slowfast", 2304, "official")
    if size == clip.dim:
        return (clip,)
    if size == clip.dim + slowfast.dim:
        # Lighthouse names its features "clip_slowfast" and concatenates in that order; official folders come first.
        return (clip, slowfast) if str(options.get("v_feat_types", "")).startswith("clip") else (slowfast, clip)
    return (Stream("video", size, "official"),)
