"""Deformable attention in operations that other engines know, for export to ONNX.

program = torch.export.export(model, example)
torch.onnx.export(for_onnx(program), f="model.onnx", opset_version=20)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from momentdetr.detr.kernels.operator import levels_of


def for_onnx(program: ExportedProgram) -> ExportedProgram:
    """The same program with every deformable attention written as one GridSample a level."""
    return program.run_decompositions({torch.ops.momentdetr.deformable_attention.default: grid_sample_form})


def grid_sample_form(
    value: Tensor, sizes: Sequence[int], references: Tensor | None, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The custom operation of `operator.attention_op`, D = 1 and 2, by grid_sample; a line is an image of one row.

    Coordinates are float32 fractions of a level, as these engines want them, and so less exact on very long sequences.
    """
    num_dims, points = offsets.shape[-1], offsets.shape[4]
    shapes, locations = levels_of(sizes, num_dims), offsets.float()
    weights = logits
    if references is not None:
        weights = logits.float().flatten(-2).softmax(-1).view(logits.shape)
        references = references.float()
        if references.shape[-1] > num_dims:
            scale = references[:, :, None, :, None, num_dims:] * (0.5 / points)
        else:
            natural = torch.tensor([shape[::-1] for shape in shapes], dtype=torch.float32, device=value.device)
            scale = 1 / natural[:, None]
        locations = references[:, :, None, :, None, :num_dims] + locations * scale
    if num_dims == 1:
        locations = torch.cat([locations, torch.full_like(locations, 0.5)], -1)
    total, start = torch.zeros((), device=value.device), 0
    for level, shape in enumerate(shapes):
        image = (1, *shape) if num_dims == 1 else shape
        rows = value[:, start : start + math.prod(shape)].float().permute(0, 2, 3, 1)  # (B, H, C, cells)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (B * H, Q, P, 2)
        sampled = F.grid_sample(rows.flatten(0, 1).unflatten(-1, image), grid, align_corners=False)  # (B * H, C, Q, P)
        weight = weights[:, :, :, level].float().transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (sampled * weight).sum(-1)  # (B * H, C, Q)
        start += math.prod(shape)
    return total.unflatten(0, (value.shape[0], -1)).permute(0, 3, 1, 2).to(value.dtype)
