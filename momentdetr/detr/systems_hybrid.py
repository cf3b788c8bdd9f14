"""Co-DETR's rows of the table of systems: those of `systems`, trained with one-to-many heads.

| system | encoder | content | positions and anchors | cross-attention | refinement |
|---|---|---|---|---|---|
| Co-Deformable-DETR | deformable | learned, and positives of heads | proposals | deformable | look forward twice |
| Co-DINO | deformable | as DINO, and positives of heads | as DINO | deformable | look forward twice |

Both run for any number of dimensions. The heads only train: without targets nothing of them is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from momentdetr.detr.assembly import (
    Positions,
    Sizes,
    Task,
    cloned,
    contrastive_denoising,
    focal_criterion,
    focal_head,
    level_neck,
    quality_criterion,
)
from momentdetr.detr.decoder import Decoder, FixedGuide
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.dense_head import AtssHead
from momentdetr.detr.hybrid import HybridHeads, PositiveQueries
from momentdetr.detr.layers import deformable_layers
from momentdetr.detr.model import Detector
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.proposals import ProposalHead, ProposedQueries, by_first_class
from momentdetr.detr.region_proposals import RegionProposals
from momentdetr.detr.roi_head import FasterRcnn, RegionHead
from momentdetr.detr.systems import dino, on_levels


@dataclass(frozen=True)
class Heads:
    """Sizes of the one-to-many heads; the defaults are the paper's.

    Args:
        stride: input cells (pixels, clips) per cell of the finest map; None: the row's own.
        hidden: of the region head's layers.
        bins: per axis of a pooled region.
        proposals: of a sample that are kept.
        per_level: proposals of a level that are looked at.
        anchors: of a sample to train the proposals on.
        regions: of a sample to train the region head on.
        most: positives of a head and sample that the decoder borrows.
        place: what tells the heads' queries apart, see `PositiveQueries`; for Co-Deformable-DETR.
    """

    stride: float | None = None
    hidden: int = 1024
    bins: int = 7
    proposals: int = 1000
    per_level: int = 4000
    anchors: int = 256
    regions: int = 512
    most: int = 300
    place: Literal["vector", "scalar", "none"] = "vector"


def co_deformable_detr(task: Task, sizes: Sizes | None = None, *, heads: Heads | None = None) -> Detector:
    """Co-Deformable-DETR (Zong et al., 2023, arXiv 2211.12860)."""
    sizes, extra = sizes or Sizes(), heads or Heads()
    layers = cloned(focal_head(task, sizes), sizes.decoder_layers + 1)
    own = layers.pop()
    queries = ProposedQueries(
        sizes.num_queries,
        sizes.width,
        task.num_dims,
        head=ProposalHead(sizes.width, classes=own.classes, boxes=own.boxes),
        ranking=by_first_class,
        positions=True,
        judged="all",
    )
    decoder = Decoder(
        layers=deformable_layers(sizes.decoder(), sizes.points(task)),
        guide=FixedGuide(),
        heads=layers,
        norm=None,
        parametrization=CenterSize(1e-5),
        refinement="look_forward_twice",
    )
    lending = [
        PositiveQueries(
            sizes.width, task.num_dims, positions="fixed", features=True, place=extra.place, most=extra.most
        )
        for _ in range(2)
    ]
    return on_levels(
        task,
        sizes,
        None,
        queries=queries,
        decoder=decoder,
        criterion=focal_criterion(class_weight=2.0),
        bias=False,
        hybrid=hybrid_heads(task, sizes, extra, lending, stride=8),
    )


def co_dino(
    task: Task, sizes: Sizes | None = None, *, denoising: Denoising | None = None, heads: Heads | None = None
) -> Detector:
    """Co-DINO (Zong et al., 2023, arXiv 2211.12860): DINO with five levels, quality focal loss and one-to-many heads.

    Args:
        denoising: None: contrastive groups of about a hundred positive queries.
    """
    sizes, extra = sizes or Sizes(num_queries=900, num_levels=5), heads or Heads()
    lending = [
        PositiveQueries(sizes.width, task.num_dims, positions="anchors", features=False, most=extra.most)
        for _ in range(2)
    ]
    base = dino(
        task,
        sizes,
        shared_classes=False,
        shared_boxes=False,
        denoising=denoising or contrastive_denoising(task, sizes, label_rows=task.num_classes),
        hybrid=hybrid_heads(task, sizes, extra, lending, stride=4),
    )
    return Detector(
        neck=level_neck(task, sizes, Positions(20.0), bias=False), detr=base.detr, criterion=quality_criterion()
    )


def hybrid_heads(
    task: Task, sizes: Sizes, heads: Heads, lending: Sequence[PositiveQueries], *, stride: float
) -> HybridHeads:
    """Faster R-CNN and ATSS, on the memory and a coarser level; `stride` where `heads` does not say."""
    size = (task.num_dims, sizes.width)
    regions = RegionProposals(*size, per_level=heads.per_level, number=heads.proposals, rows=heads.anchors)
    judge = RegionHead(*size, task.num_classes, hidden=heads.hidden, bins=heads.bins)
    return HybridHeads(
        *size,
        heads=[
            FasterRcnn(regions=regions, head=judge, rows=heads.regions),
            AtssHead(*size, task.num_classes, sizes.num_levels + 1, group_norm=sizes.group_norm),
        ],
        lending=lending,
        stride=heads.stride or stride,
        group_norm=sizes.group_norm,
    )
