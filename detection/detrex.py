"""Checkpoints of detrex: DETR, Conditional, Deformable, DAB, DN and DINO, also on deformable attention.

Their layout is renamed to the official one, name by name, so that one converter serves both. What detrex computes in
another way than the official code is given as options. One difference is left: in evaluation its decoders also attend
to padding, so that its answers for a batch of unequal images depend on the batch; ours are those for each image alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from momentdetr.errors import BadCheckpoint

_ENCODER_LAYER = "transformer.encoder.layers.0.attentions.0."

# (pattern of their name, official name); the first that matches counts. Levels of the neck are numbered later.
_TOP = (
    (r"backbone\.stem\.conv1\.norm\.(.*)", r"backbone.0.body.bn1.\1"),
    (r"backbone\.stem\.(conv1\..*)", r"backbone.0.body.\1"),
    (r"backbone\.res(\d)\.(\d+)\.conv(\d)\.norm\.(.*)", r"backbone.0.body.layer\1-.\2.bn\3.\4"),
    (r"backbone\.res(\d)\.(\d+)\.shortcut\.norm\.(.*)", r"backbone.0.body.layer\1-.\2.downsample.1.\3"),
    (r"backbone\.res(\d)\.(\d+)\.shortcut\.(.*)", r"backbone.0.body.layer\1-.\2.downsample.0.\3"),
    (r"backbone\.res(\d)\.(\d+)\.(conv\d\..*)", r"backbone.0.body.layer\1-.\2.\3"),
    (r"backbone\.((?:patch_embed|layers|norm\d)\..*)", r"backbone.0.\1"),  # Swin
    (r"neck\.convs\.(\d+)\.conv\.(.*)", r"input_proj.\1.0.\2"),
    (r"neck\.convs\.(\d+)\.norm\.(.*)", r"input_proj.\1.1.\2"),
    (r"neck\.extra_convs\.(\d+)\.conv\.(.*)", r"input_proj.+\1.0.\2"),
    (r"neck\.extra_convs\.(\d+)\.norm\.(.*)", r"input_proj.+\1.1.\2"),
    (r"(input_proj\..*)", r"\1"),
    (r"query_embed(?:ding)?\.(.*)", r"query_embed.\1"),
    (r"(?:anchor_box|refpoint)_embed\.(.*)", r"refpoint_embed.\1"),
    (r"(tgt_embed\..*)", r"\1"),
    (r"(?:denoising_generator\.)?label_enc(?:oder)?\.(.*)", r"label_enc.\1"),
    (r"transformer\.level_embeds?", r"transformer.level_embed"),
    (r"(transformer\.(?:encoder|decoder))\.post_norm_layer\.(.*)", r"\1.norm.\2"),
    (r"(transformer\.(?!(?:encoder|decoder)\.layers\.).*)", r"\1"),
    (r"((?:class|bbox)_embed\..*)", r"\1"),
)  # fmt: skip
# Within a layer. "{own}" and "{cross}" are the official numbers of its norms, "{attention}" its cross-attention.
_LAYER = (
    (r"attentions\.0\.(?:attn\.)?(in_proj_.*|out_proj\..*)", r"self_attn.\1"),
    (r"attentions\.0\.((?:sampling_offsets|attention_weights|value_proj|output_proj)\..*)", r"self_attn.\1"),
    (r"attentions\.1\.(?:attn\.)?(in_proj_.*|out_proj\..*)", r"{attention}.\1"),
    (r"attentions\.1\.((?:sampling_offsets|attention_weights|value_proj|output_proj)\..*)", r"cross_attn.\1"),
    (r"attentions\.0\.([qk])(?:uery|ey)_(content|pos)_proj\.(.*)", r"sa_\1\2_proj.\3"),
    (r"attentions\.1\.([qk])(?:uery|ey)_(content|pos|pos_sine)_proj\.(.*)", r"ca_\1\2_proj.\3"),
    (r"ffns\.0\.layers\.0\.0\.(.*)", r"linear1.\1"),
    (r"ffns\.0\.layers\.0\.1\.(.*)", r"activation.\1"),
    (r"ffns\.0\.layers\.1\.(.*)", r"linear2.\1"),
    (r"norms\.0\.(.*)", r"norm{own}.\1"),
    (r"norms\.1\.(.*)", r"norm{cross}.\1"),
    (r"norms\.2\.(.*)", r"norm3.\1"),
)
# The criterion's, which training code registers and nothing else reads.
_UNUSED = r"criterion\.empty_weight"


def has_its_names(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of detrex."""
    return any(name.startswith(_ENCODER_LAYER) for name in state)


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of detrex to the official layout.

    Raises:
        BadCheckpoint: a name is not known, or two names mean the same tensor.
    """
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.fullmatch(_UNUSED, name):
            continue
        new = _renamed(name, state)
        if new in official:
            raise BadCheckpoint(f"the checkpoint holds {new!r} twice, once as {name!r}")
        official[new] = tensor
    return _with_own_proposal_head(official)


def _renamed(name: str, state: Mapping[str, Tensor]) -> str:
    layer = re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.*)", name)
    if layer:
        return f"transformer.{layer[1]}.layers.{layer[2]}.{_layer_name(layer[3], layer[1] == 'decoder', state)}"
    for pattern, official in _TOP:
        found = re.fullmatch(pattern, name)
        if found:
            new = found.expand(official)
            new = re.sub(r"layer(\d)-", lambda match: f"layer{int(match[1]) - 1}", new)  # res2 is layer1
            return re.sub(r"input_proj\.\+(\d+)", lambda match: f"input_proj.{_levels(state) + int(match[1])}", new)
    raise BadCheckpoint(f"no official name is known for tensor {name!r} of detrex")


def _levels(state: Mapping[str, Tensor]) -> int:
    """How many levels of the neck come from maps of the backbone."""
    return len({name.split(".")[2] for name in state if name.startswith("neck.convs.")})


def _layer_name(name: str, decoder: bool, state: Mapping[str, Tensor]) -> str:
    deformable = "transformer.decoder.layers.0.attentions.1.sampling_offsets.weight" in state
    dense = "transformer.decoder.layers.0.attentions.1.attn.in_proj_weight" in state
    if name.startswith(("attentions.0.value_proj.", "attentions.1.value_proj.")) and not deformable:
        kind, _, leaf = name.removeprefix("attentions.").partition(".value_proj.")
        return f"{'sc'[int(kind)]}a_v_proj.{leaf}"
    # Deformable DETR numbers its decoder norms by age, not by order.
    words = {
        "own": 2 if deformable and decoder else 1,
        "cross": 1 if deformable and decoder else 2,
        "attention": "multihead_attn" if dense else "cross_attn",
    }
    for pattern, official in _LAYER:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(official.format(**words))
    raise BadCheckpoint(f"no official name is known for {name!r} in a layer of detrex")


def _is_dino(official: Mapping[str, Tensor]) -> bool:
    return "label_enc.weight" in official and "transformer.enc_output.weight" in official


def _with_own_proposal_head(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINO's proposals have a head of their own in the official code, the one behind the layers' in detrex."""
    if not _is_dino(official):
        return official
    last = len({name.split(".")[3] for name in official if name.startswith("transformer.decoder.layers.")})
    renamed = {}
    for name, tensor in official.items():
        own = re.fullmatch(rf"(?:transformer\.decoder\.)?(class|bbox)_embed\.{last}\.(.*)", name)
        renamed[f"transformer.enc_out_{own[1]}_embed.{own[2]}" if own else name] = tensor
    return renamed


def differences(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """What detrex does in another way than the official code, in official words.

    Args:
        official: what `to_official` gave.
    """
    options: dict[str, Any] = {"inverse_sigmoid_eps": 1e-3, "top": 300}  # for all of its systems
    if _is_dino(official):
        heads = {"dec_pred_class_embed_share": False, "dec_pred_bbox_embed_share": False}
        positions = {"pe_temperatureH": 10000.0, "pe_temperatureW": 10000.0, "pe_offset": -0.5}
        return {**options, **heads, **positions}
    if any(".sampling_offsets." in name for name in official):
        return {**options, "cls_loss_coef": 1.0}  # the official Deformable DETR has 2
    return options
