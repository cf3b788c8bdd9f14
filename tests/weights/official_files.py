"""Files as their authors publish them, at full size, filled with random numbers.

Names and shapes are those of the models that the papers' authors released for CLIP features alone (`QVHighlights`,
512 + 2 numbers a clip); `test_official_files.py` compares them with recorded lists where such are given.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, out_dim: int, in_dim: int) -> Shapes:
    return {f"{name}.weight": (out_dim, in_dim), f"{name}.bias": (out_dim,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _mlp(name: str, *dims: int) -> Shapes:
    shapes: Shapes = {}
    for i, (in_dim, out_dim) in enumerate(itertools.pairwise(dims)):
        shapes |= _linear(f"{name}.layers.{i}", out_dim, in_dim)
    return shapes


def _attention(name: str) -> Shapes:
    packed: Shapes = {f"{name}.in_proj_weight": (768, 256), f"{name}.in_proj_bias": (768,)}
    return packed | _linear(f"{name}.out_proj", 256, 256)


def _feed_forward(name: str) -> Shapes:
    return _linear(f"{name}.linear1", 1024, 256) | _linear(f"{name}.linear2", 256, 1024)


def _encoder_layer(name: str, prelu: bool) -> Shapes:
    shapes = _attention(f"{name}.self_attn") | _feed_forward(name)
    shapes |= _norm(f"{name}.norm1", 256) | _norm(f"{name}.norm2", 256)
    return shapes | ({f"{name}.activation.weight": (1,)} if prelu else {})


def _heads(query_dim: int) -> Shapes:
    shapes: Shapes = {"txt_position_embed.position_embeddings.weight": (32, 256), "query_embed.weight": (10, query_dim)}
    shapes |= _norm("txt_position_embed.LayerNorm", 256)
    shapes |= _mlp("span_embed", 256, 256, 256, 2) | _linear("class_embed", 2, 256)
    for stream, dim in (("txt", 512), ("vid", 514)):
        for i, in_dim in enumerate((dim, 256)):
            name = f"input_{stream}_proj.{i}"
            shapes |= _norm(f"{name}.LayerNorm", in_dim) | _linear(f"{name}.net.1", 256, in_dim)
    return shapes


def moment_detr_shapes() -> Shapes:
    """Moment-DETR on CLIP features: 4,228,873 numbers."""
    shapes = _heads(256) | _linear("saliency_proj", 1, 256) | _norm("transformer.decoder.norm", 256)
    for i in range(2):
        shapes |= _encoder_layer(f"transformer.encoder.layers.{i}", prelu=False)
        layer = f"transformer.decoder.layers.{i}"
        shapes |= _attention(f"{layer}.self_attn") | _attention(f"{layer}.multihead_attn") | _feed_forward(layer)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{layer}.{norm}", 256)
    return shapes


def qd_detr_shapes() -> Shapes:
    """QD-DETR on CLIP features: 6,991,141 numbers."""
    shapes: Shapes = {"global_rep_token": (256,), "global_rep_pos": (256,)}
    shapes |= _heads(2) | _linear("saliency_proj1", 256, 256) | _linear("saliency_proj2", 256, 256)
    for i in range(2):
        for encoder in ("t2v_encoder", "encoder"):
            shapes |= _encoder_layer(f"transformer.{encoder}.layers.{i}", prelu=True)
        shapes |= _conditional_layer(f"transformer.decoder.layers.{i}", first=i == 0)
    shapes |= _norm("transformer.decoder.norm", 256)
    shapes |= _mlp("transformer.decoder.query_scale", 256, 256, 256)
    shapes |= _mlp("transformer.decoder.ref_point_head", 256, 256, 256)
    shapes |= _mlp("transformer.decoder.bbox_embed", 256, 256, 256, 2)
    return shapes | _mlp("transformer.decoder.ref_anchor_head", 256, 256, 1)


def _conditional_layer(layer: str, first: bool) -> Shapes:
    shapes: Shapes = {f"{layer}.activation.weight": (1,)}
    shapes |= _linear(f"{layer}.self_attn.out_proj", 256, 256) | _linear(f"{layer}.cross_attn.out_proj", 256, 256)
    for part in ("qcontent", "qpos", "kcontent", "kpos", "v"):
        shapes |= _linear(f"{layer}.sa_{part}_proj", 256, 256)
        if part != "qpos" or first:  # later layers take no position into the query of cross-attention
            shapes |= _linear(f"{layer}.ca_{part}_proj", 256, 256)
    shapes |= _linear(f"{layer}.ca_qpos_sine_proj", 256, 256) | _feed_forward(layer)
    return shapes | _norm(f"{layer}.norm1", 256) | _norm(f"{layer}.norm2", 256) | _norm(f"{layer}.norm3", 256)


def random_state(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Numbers of a size that keeps activations finite: matrices by their width, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        norm = name.endswith("weight") and len(shape) == 1
        state[name] = 1 + 0.1 * noise if norm else noise / max(shape[-1], 1) ** 0.5
    return state


# The options that shape the model, as the authors' option files have them.
OPTIONS: dict[str, Any] = {
    "dset_name": "hl",
    "max_q_l": 32,
    "max_v_l": 75,
    "clip_length": 2,
    "no_norm_vfeat": False,
    "no_norm_tfeat": False,
    "v_feat_dirs": ["features/clip_features"],
    "t_feat_dir": "features/clip_text_features/",
    "v_feat_dim": 514,
    "t_feat_dim": 512,
    "ctx_mode": "video_tef",
    "position_embedding": "sine",
    "enc_layers": 2,
    "dec_layers": 2,
    "dim_feedforward": 1024,
    "hidden_dim": 256,
    "input_dropout": 0.5,
    "dropout": 0.1,
    "use_txt_pos": False,
    "nheads": 8,
    "num_queries": 10,
    "pre_norm": False,
    "n_input_proj": 2,
    "contrastive_hdim": 64,
    "temperature": 0.07,
    "saliency_margin": 0.2,
    "aux_loss": True,
    "span_loss_type": "l1",
    "contrastive_align_loss": False,
    "max_windows": 5,
    "lr": 1e-4,
    "lr_drop": 400,
    "wd": 1e-4,
}


def write_official(path: Path, state: dict[str, Tensor], **options: Any) -> None:
    """What the authors' training scripts write: weights, optimizer, schedule, epoch and options in one pickle."""
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 400)
    torch.save(
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "epoch": 42,
            "opt": argparse.Namespace(**(OPTIONS | options)),
        },
        path,
    )


def write_lighthouse(path: Path, state: dict[str, Tensor], **options: Any) -> None:
    """What Lighthouse writes: weights, and options in a class of a package that need not be installed to read them."""
    module = types.ModuleType("easydict")
    easydict = type("EasyDict", (dict,), {"__module__": "easydict"})
    module.EasyDict = easydict  # type: ignore[attr-defined]
    present = sys.modules.get("easydict")
    sys.modules["easydict"] = module
    try:
        torch.save({"model": state, "opt": easydict(OPTIONS | {"v_feat_types": "clip"} | options)}, path)
    finally:
        del sys.modules["easydict"]
        if present is not None:
            sys.modules["easydict"] = present


def write_clip(path: Path, model_name: str) -> None:
    """A full-size model of open_clip with its own random start, as safetensors."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(model_name, pretrained=None)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
