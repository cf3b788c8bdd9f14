"""Official checkpoints at full size: the layout must load, and outputs for weights made by a rule must agree."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity import tolerance
from parity.check import System
from parity.comparison import Row, compare_exactly, compare_number, compare_tensor, uncompared
from parity.material import Golden
from safetensors.torch import load_file
from torch import Tensor

EMBEDDINGS = ("query_embed", "tgt_embed", "level_embed")
"""Larger than the others. The goldens' README also names label_enc, but dn_dab_detr_r50, the one record in which it
takes part, was made without it."""


def check(path: Path, system_for: Callable[[dict[str, Any]], System]) -> list[Row]:
    """A row for each recorded output and for the four statistics of each."""
    facts = json.loads(path.read_text())
    system = system_for(facts)
    tensors = path.with_suffix(".safetensors")
    recorded = load_file(tensors) if tensors.is_file() else {}
    run = system.run(golden_of(path, facts, recorded), "float32")
    ours = {name.removeprefix("eval."): value for name, value in run.outputs.items() if name.startswith("eval.")}
    rows = []
    if run.parameters is not None:
        rows.append(compare_exactly("parameters", run.parameters, facts["parameters"]))
    for name in recorded.keys() & ours.keys():
        limit = tolerance.of_tensor(name, recorded[name], "float32", {}, ())
        kept = tuple(slice(0, size) for size in recorded[name].shape)  # of images the first queries and classes
        rows.append(compare_tensor(name, ours[name][kept], recorded[name], limit))
    for name, theirs in facts["output_stats[sum,abs_sum,max,min]"].items():
        rows += (
            _statistics(name, ours[name], theirs) if name in ours else uncompared([f"{name} stats"], system.permitted)
        )
    return rows + uncompared(recorded.keys() - ours.keys(), system.permitted)


def golden_of(path: Path, facts: Mapping[str, Any], recorded: Mapping[str, Tensor]) -> Golden:
    """The pair as a system's folder without losses: made weights; made inputs, where outputs are recorded."""
    tied = facts.get("tied") or []
    config = {**facts, "full_args": facts["args"], "repo": facts.get("repo", ""), "tied_parameters": tied}
    state = {}
    aliases = {name: group[0] for group in tied for name in group}
    for name, (shape, dtype) in facts["keys"].items():
        if dtype.startswith("float"):
            state[name] = made_weight(aliases.get(name, name), shape)
        else:
            state[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    inputs: dict[str, Tensor] = {}
    if recorded:
        inputs = image_inputs(facts["image_sizes"]) if facts.get("image_sizes") else moment_inputs(facts["args"])
    return Golden(path.parent, config, state, inputs, {}, dict(recorded))


def uniform(name: str, shape: list[int]) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on the name only."""
    size = int(np.prod(shape))
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).random(size).reshape(shape)


def made_weight(name: str, shape: list[int]) -> Tensor:
    """A weight by the rule in the goldens' README."""
    u = uniform(name, shape)
    z = 2 * u - 1
    *path, leaf = name.split(".")
    if leaf == "running_var":
        value = 0.5 + u
    elif leaf == "running_mean":
        value = 0.2 * z
    elif len(shape) == 2 and leaf == "weight" and path and path[-1] in EMBEDDINGS:
        value = z
    elif len(shape) >= 2:
        value = z * np.sqrt(3 / np.prod(shape[1:]))
    else:
        value = 0.75 + 0.5 * u if len(shape) == 1 and leaf == "weight" else 0.1 * z
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def image_inputs(sizes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Images of these heights and widths by the same rule, padded to one size."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    images = torch.from_numpy((2 * uniform("images", [len(sizes), 3, height, width]) - 1).astype(np.float32))
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (rows, columns) in enumerate(sizes):
        padding[index, :rows, :columns] = False
    return {"images": images.masked_fill(padding[:, None], 0), "mask": padding}


def moment_inputs(args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Two padded videos and sentences by the same rule."""
    sizes = {"src_vid": (75, args.get("v_feat_dim")), "src_txt": (18, args.get("t_feat_dim"))}
    if args.get("a_feat_dir") is not None:
        sizes["src_aud"] = (75, args.get("a_feat_dim"))
    inputs: dict[str, Tensor] = {}
    for name, (length, width) in sizes.items():
        if width is None:
            continue
        values = torch.from_numpy((2 * uniform(name, [2, length, width]) - 1).astype(np.float32))
        mask = torch.ones(2, length)
        if name == "src_txt":
            mask[0, 11:] = 0
        else:
            mask[1, 60:] = 0
        inputs |= {name: values * mask[..., None], f"{name}_mask": mask}
    return inputs


def _statistics(name: str, ours: Tensor, theirs: list[float]) -> list[Row]:
    """Sums over n elements may differ by n tolerances of one."""
    limit = tolerance.of_tensor(name, ours, "float32", {}, ())
    values = ours.double()
    stats = {
        "sum": (values.sum(), limit * values.numel()),
        "abs_sum": (values.abs().sum(), limit * values.numel()),
        "max": (values.max(), limit),
        "min": (values.min(), limit),
    }
    given = zip(stats.items(), theirs, strict=True)
    return [compare_number(f"{name}.{what}", value, expected, allowed) for (what, (value, allowed)), expected in given]
