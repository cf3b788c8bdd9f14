"""CLIP models with random weights for tests: in open_clip's and transformers' names, and computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SMALL = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}


def random_state(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights in OpenAI's names: every tensor, biases and norms too, differs from its neighbours and from its start.

    The values are those of half precision, so that a file of either precision gives the same model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = open_clip.CLIP(**config).state_dict()
        return {name: (value + 0.03 * torch.randn(value.shape)).half().float() for name, value in start.items()}


def write_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    """Write a folder as open_clip publishes models."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(text, "utf-8")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    return folder


def openai_marks(config: dict[str, Any]) -> dict[str, Tensor]:
    """What OpenAI's archives hold beside weights."""
    return {
        "input_resolution": torch.tensor(config["vision_cfg"]["image_size"]),
        "context_length": torch.tensor(config["text_cfg"]["context_length"]),
        "vocab_size": torch.tensor(config["text_cfg"]["vocab_size"]),
    }


class _Names(nn.Module):
    """Parameters under given names, to be scripted."""

    def forward(self) -> int:
        return 0


def write_torchscript(path: Path, state: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    """Write a TorchScript archive, as OpenAI published, that holds these tensors."""
    root = _Names()
    for name, value in {**state, **buffers}.items():
        *parents, leaf = name.split(".")
        module: nn.Module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, _Names())
            module = module.get_submodule(parent)
        if name in buffers:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    torch.jit.script(root).save(str(path))


def transformers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename OpenAI's weights for CLIPModel: fused projections split, projections transposed."""
    table = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
        "logit_scale": "logit_scale",
    }
    blocks = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    found = {"visual_projection.weight": state["visual.proj"].T, "text_projection.weight": state["text_projection"].T}
    for name, value in state.items():
        head, _, leaf = name.rpartition(".")
        if name in table:
            found[table[name]] = value
        elif head in table:
            found[f"{table[head]}.{leaf}"] = value
        elif ".resblocks." in f".{name}":
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, _, part = name.split("resblocks.")[1].partition(".")
            block = f"{tower}.encoder.layers.{number}"
            if ".in_proj_" in name:
                kind = name.rsplit("_", 1)[1]
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{block}.self_attn.{letter}_proj.{kind}"] = third
            else:
                inner, _, kind = part.rpartition(".")
                found[f"{block}.{blocks[inner]}.{kind}"] = value
    return {name: value.contiguous() for name, value in found.items()}


def image_by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """CLIP's image tower written out: pictures (N, 3, S, S) -> projected embeddings (N, C)."""
    kernel = state["visual.conv1.weight"]
    x = torch.nn.functional.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = _norm(state, "visual.ln_pre", x)
    x = _blocks(state, "visual.transformer", x, causal=False)
    return _norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def text_by_hand(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """CLIP's text tower written out, up to its last norm: the ids of one query -> (len(ids), C).

    No padding at all: what comes after the end mark cannot matter under a causal mask.
    """
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
    x = _blocks(state, "transformer", x[None], causal=True)
    return _norm(state, "ln_final", x)[0]


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _blocks(state: dict[str, Tensor], tower: str, x: Tensor, *, causal: bool) -> Tensor:
    count = len({name.split("resblocks.")[1].split(".")[0] for name in state if name.startswith(f"{tower}.resblocks.")})
    for number in range(count):
        block = {
            name.removeprefix(f"{tower}.resblocks.{number}."): value
            for name, value in state.items()
            if name.startswith(f"{tower}.resblocks.{number}.")
        }
        x = x + _attention(block, _norm(block, "ln_1", x), causal)
        hidden = _norm(block, "ln_2", x) @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + hidden @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return x


def _attention(block: dict[str, Tensor], x: Tensor, causal: bool) -> Tensor:
    """Heads of 64 channels, as all of OpenAI's models have."""
    length = x.shape[1]
    q, k, v = (x @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]).chunk(3, -1)
    outputs = []
    for start in range(0, x.shape[-1], 64):
        head = slice(start, start + 64)
        scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(64)
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        outputs.append(scores.softmax(-1) @ v[..., head])
    return torch.cat(outputs, -1) @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
