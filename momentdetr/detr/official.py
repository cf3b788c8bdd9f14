"""What official code bases call the parts of our layers, and the way there and back.

Every parameter of ours has one official name; query, key and value of dense attention are three thirds of one official
tensor. A naming is a function from our name to an official one, so the way back is the same table.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

Place = tuple[str, int | None]
"""An official name, and which part of that tensor (None: all of it)."""

Kind = Literal["dense", "conditional", "deformable"]
"""The decoder's cross-attention, which decides what its layers are called."""

_PACKED = {"query": 0, "key": 1, "value": 2}
_DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "out": "output_proj",
}


def layer_parameter(name: str, kind: Kind, *, decoder: bool) -> Place:
    """Official name of a parameter within a layer.

    Args:
        name: behind the layer's index: "self_attention.query.bias".
        kind: of cross-attention; of an encoder's self-attention, dense or deformable.
        decoder: whether it is a decoder's layer.
    """
    for rule in (_deformable, _dense, _conditional):
        found = rule(name, kind, decoder)
        if found is not None:
            return found
    return _rest(name, kind, decoder), None


def _deformable(name: str, kind: Kind, decoder: bool) -> Place | None:
    attention = "cross_attention" if decoder else "self_attention"
    found = re.fullmatch(rf"{attention}\.(offsets|weights|value|out)\.(.*)", name)
    if kind != "deformable" or found is None:
        return None
    return f"{'cross_attn' if decoder else 'self_attn'}.{_DEFORMABLE[found[1]]}.{found[2]}", None


def _dense(name: str, kind: Kind, decoder: bool) -> Place | None:
    found = re.fullmatch(r"(self_attention|cross_attention|attention)\.(query|key|value)\.(weight|bias)", name)
    if found is None or (kind == "conditional" and decoder):
        return None
    official = "multihead_attn" if found[1] == "cross_attention" else "self_attn"
    return f"{official}.in_proj_{found[3]}", _PACKED[found[2]]


def _conditional(name: str, kind: Kind, decoder: bool) -> Place | None:
    found = re.fullmatch(r"(self|cross)_attention\.(query|key|value)(_content|_position|_sine)?\.(.*)", name)
    if kind != "conditional" or not decoder or found is None:
        return None
    what = {"_content": "content", "_position": "pos", "_sine": "pos_sine", None: ""}[found[3]]
    return f"{found[1][0]}a_{found[2][0]}{what}_proj.{found[4]}", None


def _rest(name: str, kind: Kind, decoder: bool) -> str:
    # Deformable DETR numbers its decoder norms by age, not by order: self-attention's is the second.
    own, cross = ("norm2", "norm1") if kind == "deformable" else ("norm1", "norm2")
    cross_out = "multihead_attn" if kind == "dense" else "cross_attn"
    renames = [
        ("cross_attention.out.", f"{cross_out}.out_proj."),
        ("self_attention.out.", "self_attn.out_proj."),
        ("attention.out.", "self_attn.out_proj."),
        ("feed_forward.expand.", "linear1."),
        ("feed_forward.contract.", "linear2."),
        ("norm_attention.", "norm1."),
        ("norm_feed_forward.", "norm3." if decoder else "norm2."),
        ("feed_forward.activation.", "activation."),
        ("norm_self.", f"{own}."),
        ("norm_cross.", f"{cross}."),
    ]
    for ours, official in renames:
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    return name


def gather(official: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Our tensors from official ones.

    Args:
        official: official names -> tensors.
        places: our name -> official name and part.
    """
    parts = Counter(name for name, part in places.values() if part is not None)
    return {
        ours: official[name].clone() if part is None else official[name].chunk(parts[name], _axis(name))[part].clone()
        for ours, (name, part) in places.items()
    }


def scatter(ours: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The way back: parts joined under their official names."""
    joined: dict[str, dict[int | None, Tensor]] = defaultdict(dict)
    for name, tensor in ours.items():
        official, part = places[name]
        joined[official][part] = tensor
    return {
        name: parts[None] if None in parts else torch.cat([parts[i] for i in range(len(parts))], _axis(name))
        for name, parts in joined.items()
    }


def left_over(official: Iterable[str], used: Iterable[str], unused: Iterable[str]) -> list[str]:
    """Official names that nothing of ours takes, but for those that a pattern of `unused` allows."""
    return sorted(
        name for name in set(official) - set(used) if not any(re.fullmatch(pattern, name) for pattern in unused)
    )


def _axis(name: str) -> int:
    """Attention is packed by rows; Deformable DETR's queries hold position and content side by side."""
    return -1 if name == "query_embed.weight" else 0
