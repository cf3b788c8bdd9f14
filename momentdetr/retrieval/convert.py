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
from momentdetr.retrieval.layouts.family import from_lighthouse
from momentdetr.retrieval.layouts.table import layout_of
from momentdetr.retrieval.model import MomentRetriever
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
    config = layout.configure(state, options)
    model = build(config)
    ours = layout.to_ours(state, model.state_dict().keys())
    load_strictly(model, ours)
    about = {"system": layout.name, "layout": "lighthouse" if from_lighthouse(options) else "official"}
    return Conversion(config, ours, (layout.spec or _spec)(state, options), about)


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
