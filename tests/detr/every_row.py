"""Every row of the tables of systems, small, and targets for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from momentdetr.detr import systems, systems_hybrid
from momentdetr.detr.assembly import Positions, Sizes, Task
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.model import Detector
from momentdetr.detr.systems_hybrid import Heads
from momentdetr.detr.types import Targets

CLASSES = 3
CHANNELS = (5, 7)
"""Of the two maps that rows are made for, finest first."""
SIZES = Sizes(
    width=24,
    num_heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=6,
    num_levels=3,
    num_points=2,
    group_norm=4,
)
ONE_LEVEL = replace(SIZES, num_levels=1)
HEADS = Heads(stride=2, hidden=16, bins=2, proposals=20, per_level=50, anchors=16, regions=12)


def contrastive(task: Task, groups: int = 2) -> Denoising:
    return Denoising(task.num_classes, SIZES.width, groups=groups, contrastive=True, indicator=False)


ROWS: dict[str, Callable[[Task], Detector]] = {
    "detr": lambda task: systems.detr(task, SIZES),
    "detr, pre-norm": lambda task: systems.detr(task, SIZES, pre_norm=True),
    "detr, learned positions": lambda task: systems.detr(task, SIZES, positions=Positions(learned=True)),
    "conditional_detr": lambda task: systems.conditional_detr(task, SIZES),
    "deformable_detr": lambda task: systems.deformable_detr(task, SIZES),
    "deformable_detr, single-scale": lambda task: systems.deformable_detr(task, ONE_LEVEL),
    "deformable_detr, refine": lambda task: systems.deformable_detr(task, SIZES, refine=True),
    "deformable_detr, two-stage": lambda task: systems.deformable_detr(task, SIZES, refine=True, two_stage=True),
    "dab_detr": lambda task: systems.dab_detr(task, SIZES),
    "dab_detr, patterns": lambda task: systems.dab_detr(task, SIZES, num_patterns=2),
    "dab_deformable_detr": lambda task: systems.dab_deformable_detr(task, SIZES),
    "dab_deformable_detr, patterns": lambda task: systems.dab_deformable_detr(task, SIZES, num_patterns=2),
    "dn_detr": lambda task: systems.dn_detr(task, SIZES, groups=2),
    "dn_detr, patterns": lambda task: systems.dn_detr(task, SIZES, groups=2, num_patterns=2),
    "dn_deformable_detr": lambda task: systems.dn_deformable_detr(task, SIZES, groups=2),
    "dn_dino": lambda task: systems.dn_dino(task, SIZES),
    "dino": lambda task: systems.dino(task, SIZES, denoising=contrastive(task)),
    "dino, unshared": lambda task: systems.dino(
        task, SIZES, shared_classes=False, shared_boxes=False, denoising=contrastive(task)
    ),
    "dino, one-stage": lambda task: systems.dino(task, SIZES, two_stage=False, denoising=contrastive(task)),
    "dino, tokens": lambda task: systems.dino(task, SIZES, learned_content=False, denoising=contrastive(task)),
}
HYBRID_ROWS: dict[str, Callable[[Task], Detector]] = {
    "co_deformable_detr": lambda task: systems_hybrid.co_deformable_detr(task, SIZES, heads=HEADS),
    "co_dino": lambda task: systems_hybrid.co_dino(task, SIZES, heads=HEADS, denoising=contrastive(task)),
}
EVERY_ROW = ROWS | HYBRID_ROWS


def build(row: str, num_dims: int) -> Detector:
    """A row with random weights, in training mode."""
    torch.manual_seed(0)
    detector = EVERY_ROW[row](Task(num_dims, CHANNELS, CLASSES))
    with torch.no_grad():  # heads that start at zero hide what lies behind them
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


def make_targets(num_dims: int, counts: tuple[int, ...] = (2, 1), *, room: int = 0) -> Targets:
    """So many targets a sample, with room for at least so many."""
    generator = torch.Generator().manual_seed(6)
    mask = torch.arange(max(room, *counts)) < torch.tensor(counts)[:, None]
    boxes = torch.rand(*mask.shape, 2 * num_dims, generator=generator) * 0.4 + 0.3
    return Targets(torch.randint(0, CLASSES, mask.shape, generator=generator), boxes, mask)
