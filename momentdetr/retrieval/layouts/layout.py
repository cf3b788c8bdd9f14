"""How a system's official state dict is told, read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from momentdetr.detr.official import Kind, Place, gather, layer_parameter, left_over, scatter
from momentdetr.errors import BadCheckpoint
from momentdetr.features.spec import FeatureSpec


@dataclass(frozen=True)
class Layers:
    """A stack of transformer layers: pattern of our prefix, official prefix, and what their attention is."""

    ours: str
    official: str
    kind: Kind = "dense"
    decoder: bool = False


@dataclass(frozen=True)
class Layout:
    """One system's official names.

    Args:
        name: its preset.
        matches: whether an official state dict is of this system.
        config: official state, official options, and loss weights told from them -> the preset's keyword arguments,
            "sizes" and "weights" among them.
        layers: stacks of layers.
        rows: everything else: (pattern of our name, official name); the first that matches counts.
        unused: patterns of official tensors that no computation reads, with the reason.
        spec: official state and options -> the features that it reads; None: told from its input projections.
    """

    name: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    config: Callable[[Mapping[str, Tensor], Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    layers: tuple[Layers, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    spec: Callable[[Mapping[str, Tensor], Mapping[str, Any]], FeatureSpec] | None = None

    def configure(
        self, state: Mapping[str, Tensor], options: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What `presets.build` needs, see `config`.

        Raises:
            BadCheckpoint: a tensor that tells a size is missing, or the options are of no published model.
        """
        try:
            return {"preset": self.name, **self.config(state, options, weights)}
        except KeyError as error:
            raise BadCheckpoint(f"the checkpoint lacks {error}, which a size of the model is told from") from error

    def place(self, ours: str) -> Place:
        """Official name of one of our parameters, and which third of it (None: all of it)."""
        for stack in self.layers:
            found = re.fullmatch(rf"{stack.ours}\.(\d+)\.(.*)", ours)
            if found:
                name, third = layer_parameter(found[2], stack.kind, decoder=stack.decoder)
                return f"{stack.official}.{found[1]}.{name}", third
        for pattern, replacement in self.rows:
            name, count = re.subn(f"^{pattern}$", replacement, ours)
            if count:
                return name.replace("input_video_proj", "input_vid_proj").replace(
                    "input_text_proj", "input_txt_proj"
                ), None
        raise BadCheckpoint(f"no official name is known for parameter {ours!r} of {self.name}")

    def to_ours(self, official: Mapping[str, Tensor], our_names: Iterable[str]) -> dict[str, Tensor]:
        """Rename and split an official state dict, strictly.

        Raises:
            BadCheckpoint: a tensor is missing, or one is left over that is not known to be unused.
        """
        wanted = {name: self.place(name) for name in our_names}
        used = {name for name, _ in wanted.values()}
        missing = sorted(used - set(official))
        if missing:
            raise BadCheckpoint(
                f"the checkpoint lacks {missing[0]!r} and {len(missing) - 1} other tensors that the model needs"
            )
        left = left_over(official, used, self.unused)
        if left:
            raise BadCheckpoint(
                f"the checkpoint holds {left[0]!r} and {len(left) - 1} other tensors that the model has no place for"
            )
        return gather(official, wanted)

    def to_official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back: our parameters (or their gradients) under official names, thirds joined."""
        return scatter(ours, {name: self.place(name) for name in ours})


PROJECTIONS: tuple[tuple[str, str], ...] = (
    (r"encoder\.(video|text)_projection\.norms\.(\d+)\.(.*)", r"input_\1_proj.\2.LayerNorm.\3"),
    (r"encoder\.(video|text)_projection\.linears\.(\d+)\.(.*)", r"input_\1_proj.\2.net.1.\3"),
    (r"encoder\.text_positions\.embedding\.(.*)", r"txt_position_embed.position_embeddings.\1"),
    (r"encoder\.text_positions\.norm\.(.*)", r"txt_position_embed.LayerNorm.\1"),
)
"""What all systems with Moment-DETR's input projections share."""

WORD_POSITIONS = {r"txt_position_embed\..*": "word positions, created but not used unless use_txt_pos"}


def count(state: Iterable[str], prefix: str) -> int:
    """How many modules stand behind a prefix: "transformer.encoder.layers." -> 2."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def common_sizes(
    state: Mapping[str, Tensor], options: Mapping[str, Any], *, hidden: str, encoder: str, decoder: str | None
) -> dict[str, Any]:
    """What `Sizes` wants, of a system with Moment-DETR's input projections.

    Args:
        hidden: official name of a feed-forward network's first weight.
        encoder: prefix of the layers that `encoder_layers` counts.
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
    return sizes
