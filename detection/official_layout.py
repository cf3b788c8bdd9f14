"""Official state dicts of the image detectors: their names for our parameters, and the names that they repeat."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentdetr.detr.official import Kind, Place, gather, layer_parameter, left_over
from momentdetr.errors import BadCheckpoint


@dataclass(frozen=True)
class Layout:
    """What distinguishes one official code base's names from another's.

    Args:
        encoder: kind of the encoder's attention.
        decoder: kind of the decoder's cross-attention.
        layered: whether each level has its projection (`input_proj.l.0`), or there is one (`input_proj`).
        names: (pattern of our name, official name), before the common ones.
        heads: official heads are numbered; False: one shared head without a number.
    """

    encoder: Kind
    decoder: Kind
    layered: bool
    names: tuple[tuple[str, str], ...] = ()
    heads: bool = False


_COMMON = (
    (r"neck\.positions\.tables\.0", r"backbone.1.row_embed.weight"),
    (r"neck\.positions\.tables\.1", r"backbone.1.col_embed.weight"),
    (r"detr\.encoder\.norm\.(.*)", r"transformer.encoder.norm.\1"),
    (r"detr\.encoder\.position_scale\.(.*)", r"transformer.encoder.query_scale.\1"),
    (r"detr\.decoder\.norm\.(.*)", r"transformer.decoder.norm.\1"),
    (r"detr\.decoder\.guide\.to_positions\.(.*)", r"transformer.decoder.ref_point_head.\1"),
    (r"detr\.decoder\.guide\.query_scale\.(.*)", r"transformer.decoder.query_scale.\1"),
    (r"detr\.decoder\.guide\.wanted_size\.(.*)", r"transformer.decoder.ref_anchor_head.\1"),
    (r"detr\.queries\.head\.project\.(.*)", r"transformer.enc_output.\1"),
    (r"detr\.queries\.head\.norm\.(.*)", r"transformer.enc_output_norm.\1"),
    (r"detr\.queries\.from_boxes\.(.*)", r"transformer.pos_trans.\1"),
    (r"detr\.queries\.norm_boxes\.(.*)", r"transformer.pos_trans_norm.\1"),
    (r"detr\.denoising\.labels\.(.*)", r"label_enc.\1"),
    (r"neck\.level_embedding", r"transformer.level_embed"),
    (r"neck\.projections\.(\d+)\.(.*)", r"input_proj.\1.\2"),
    (r"detr\.decoder\.heads\.(\d+)\.classes\.(.*)", r"class_embed.\1.\2"),
    (r"detr\.decoder\.heads\.(\d+)\.boxes\.(.*)", r"bbox_embed.\1.\2"),
)
_ONE_LEVEL = ((r"neck\.projections\.0\.0\.(.*)", r"input_proj.\1"),)
_ONE_HEAD = (
    (r"detr\.decoder\.heads\.0\.classes\.(.*)", r"class_embed.\1"),
    (r"detr\.decoder\.heads\.0\.boxes\.(.*)", r"bbox_embed.\1"),
)

# Official tensors that nothing reads: counters of batch norms, what classifiers leave, tables made from sizes.
UNUSED = (
    r".*num_batches_tracked",
    r"backbone\.0\.body\.fc\..*",
    r"backbone\.0\..*relative_position_index",
    r"backbone\.0\..*attn_mask",
)
# Panoptic DETR (`masks`) wraps the detector and adds heads for masks, which are not ours.
WRAPPED = "detr."
MASKS = (r"bbox_attention\..*", r"mask_head\..*")


def place(name: str, layout: Layout, backbone: Callable[[str], str]) -> Place:
    """Official name of one of our parameters ("backbone." or without "detector.")."""
    if name.startswith("backbone."):
        return f"backbone.0.{backbone(name.removeprefix('backbone.'))}", None
    found = re.fullmatch(r"detr\.(encoder|decoder)\.layers\.(\d+)\.(.*)", name)
    if found:
        decoder = found[1] == "decoder"
        kind = layout.decoder if decoder else layout.encoder
        official, part = layer_parameter(found[3], kind, decoder=decoder)
        return f"transformer.{found[1]}.layers.{found[2]}.{official}", part
    rules = (*layout.names, *(() if layout.layered else _ONE_LEVEL), *(() if layout.heads else _ONE_HEAD), *_COMMON)
    for pattern, official in rules:
        new, count = re.subn(f"^{pattern}$", official, name)
        if count:
            new, _, part_text = new.partition("#")
            return new, int(part_text) if part_text else None
    raise BadCheckpoint(f"no official name is known for parameter {name!r}")


def to_ours(
    official: Mapping[str, Tensor], names: Iterable[str], layout: Layout, backbone: Callable[[str], str]
) -> dict[str, Tensor]:
    """Rename and split an official state dict, strictly.

    Args:
        official: official names -> tensors.
        names: keys that our model wants.
        layout: of the code base.
        backbone: names of the backbone's parameters, behind "backbone.", to official ones, behind "backbone.0.".

    Raises:
        BadCheckpoint: a tensor is missing, or one is left over, or one that should repeat another differs.
    """
    places = {name: place(name.removeprefix("detector."), layout, backbone) for name in names}
    used = {official_name for official_name, _ in places.values()}
    missing = sorted(used - set(official))
    if missing:
        raise BadCheckpoint(f"the checkpoint lacks {some(missing)} of this system")
    repeats = {name: repeated(name, used) for name in left_over(official, used, UNUSED)}
    left = [name for name, original in repeats.items() if original is None]
    if left:
        raise BadCheckpoint(f"the checkpoint holds {some(left)}, and this system has no place for that")
    for name, original in repeats.items():
        assert original is not None
        if not torch.equal(official[name], official[original]):
            raise BadCheckpoint(f"{name!r} should repeat {original!r}, but they differ; the checkpoint is not official")
    return gather(official, places)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    listed = ", ".join(map(repr, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def repeated(name: str, used: set[str]) -> str | None:
    """The official name that another one repeats, because official code shares its heads; None: it repeats nothing."""
    plain = re.sub(r"^transformer\.decoder\.(class_embed|bbox_embed)\.", r"\1.", name)
    first = re.sub(r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0.", plain)
    found = (candidate for candidate in (plain, first) if candidate != name and candidate in used)
    return next(found, None)
