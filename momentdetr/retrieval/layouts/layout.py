"""How a system's official state dict is told, read and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from momentdetr.detr.official import Kind, Place, gather, layer_parameter, left_over, scatter
from momentdetr.errors import BadCheckpoint
from momentdetr.features.spec import FeatureSpec

State = Mapping[str, Tensor]
"""Official names -> tensors."""

Options = Mapping[str, Any]
"""The options that a model was trained with, under their official names."""


@dataclass(frozen=True)
class Layers:
    """A stack of transformer layers.

    Args:
        ours: pattern of our prefix.
        official: official prefix.
        kind: of attention, see `layer_parameter`.
        decoder: whether they are a decoder's.
        further: further dense attentions within a layer: our name -> official name.
    """

    ours: str
    official: str
    kind: Kind = "dense"
    decoder: bool = False
    further: Mapping[str, str] = field(default_factory=dict)

    def place(self, ours: str) -> Place | None:
        """Official name of one of our parameters, and which third of it (None: all of it); None: not of this stack."""
        found = re.fullmatch(rf"{self.ours}\.(\d+)\.(([^.]+)\.(.*))", ours)
        if found is None:
            return None
        if found[3] in self.further:
            name, third = layer_parameter(f"self_attention.{found[4]}", "dense", decoder=False)
            name = f"{self.further[found[3]]}.{name.removeprefix('self_attn.')}"
        else:
            name, third = layer_parameter(found[2], self.kind, decoder=self.decoder)
        return f"{self.official}.{found[1]}.{name}", third


@dataclass(frozen=True)
class Layout:
    """One system's official names.

    Args:
        name: its preset.
        matches: whether an official state dict is of this system.
        config: official state and options -> the preset's keyword arguments, "sizes" and "weights" among them.
        layers: stacks of layers.
        rows: everything else: (pattern of our name, official name); the first that matches counts.
        unused: patterns of official tensors that no computation reads, with the reason.
        aliases: (pattern of an official name, the name that the rest of the family has for the same part), applied
            before anything else reads the state; two names of one tensor are joined.
        spec: official state and options -> the features that it reads; None: told from its input projections.
    """

    name: str
    matches: Callable[[State], bool]
    config: Callable[[State, Options], dict[str, Any]]
    layers: tuple[Layers, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()
    spec: Callable[[State, Options], FeatureSpec] | None = None

    def common_names(self, state: State) -> dict[str, Tensor]:
        """The state dict without aliases.

        Raises:
            BadCheckpoint: the two names of one tensor hold different numbers.
        """
        common: dict[str, Tensor] = {}
        for name, tensor in state.items():
            renamed = next((re.sub(f"^{old}", new, name) for old, new in self.aliases if re.match(old, name)), name)
            if renamed in common and not torch.equal(common[renamed], tensor):
                raise BadCheckpoint(f"{name!r} should be the same tensor as another one of the checkpoint, but is not")
            common[renamed] = tensor
        return common

    def configure(self, state: State, options: Options) -> dict[str, Any]:
        """What `presets.build` needs, see `config`.

        Raises:
            BadCheckpoint: a tensor that tells a size is missing, or the options are of no published model.
        """
        try:
            return {"preset": self.name, **self.config(self.common_names(state), options)}
        except KeyError as error:
            raise BadCheckpoint(f"the checkpoint lacks {error}, which a size of the model is told from") from error

    def place(self, ours: str) -> Place:
        """Official name of one of our parameters, and which third of it (None: all of it)."""
        for stack in self.layers:
            place = stack.place(ours)
            if place is not None:
                return place
        for pattern, replacement in self.rows:
            name, count = re.subn(f"^{pattern}$", replacement, ours)
            if count:
                name = name.replace("input_video_proj", "input_vid_proj").replace("input_text_proj", "input_txt_proj")
                return name, None
        raise BadCheckpoint(f"no official name is known for parameter {ours!r} of {self.name}")

    def to_ours(self, official: State, our_names: Iterable[str]) -> dict[str, Tensor]:
        """Rename and split an official state dict, strictly.

        Raises:
            BadCheckpoint: a tensor is missing, or one is left over that is not known to be unused.
        """
        official = self.common_names(official)
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

    def to_official(self, ours: State) -> dict[str, Tensor]:
        """The way back: our parameters (or their gradients) under official names, thirds joined."""
        return scatter(ours, {name: self.place(name) for name in ours})


def count(state: Iterable[str], prefix: str) -> int:
    """How many modules stand behind a prefix: "transformer.encoder.layers." -> 2."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
