"""How a composition decodes moments: the family's decoders in one dimension, each a row of choices.

| decoder | cross-attention | queries | refinement | denoising | one-to-many heads |
|---|---|---|---|---|---|
| dab | conditional, on clips | learned anchors | look forward twice | - | - |
| dn | conditional, on clips | learned anchors | look forward twice | noised targets | - |
| deformable | deformable | best proposals (pure) | detached | - | - |
| dab_deformable | deformable | learned anchors | detached | - | - |
| dn_deformable | deformable | learned anchors | detached | noised targets | - |
| dino | deformable | best proposals (mixed) | look forward twice | contrastive | - |
| co_deformable | deformable | best proposals (pure) | look forward twice | - | ATSS, Faster R-CNN |
| co_dino | deformable | best proposals (mixed) | look forward twice | contrastive | ATSS, Faster R-CNN |

Any single choice can be changed, which is also how a part is taken away to see what it was good for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from momentdetr.detr.assembly import Sizes, Task, cloned, focal_criterion, focal_head, quality_criterion
from momentdetr.detr.decoder import AnchorGuide, Decoder, FixedGuide, Head, Refinement
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.hybrid import HybridHeads, PositiveQueries
from momentdetr.detr.initialization import init_transformer
from momentdetr.detr.layers import conditional_layers, deformable_layers
from momentdetr.detr.losses import Criterion
from momentdetr.detr.mlp import ACTIVATIONS
from momentdetr.detr.model import Detr
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.proposals import ProposedQueries
from momentdetr.detr.queries import AnchorQueries
from momentdetr.detr.systems_hybrid import Heads, hybrid_heads
from momentdetr.retrieval.composed import SpanGuide, SpanProposals
from momentdetr.retrieval.stacks import LossWeights

Attention = Literal["deformable", "conditional"]
Start = Literal["anchors", "pure", "mixed", "features"]
Noise = Literal["none", "noised", "contrastive"]
_CHOICES = {"attention": Attention, "queries": Start, "denoising": Noise, "refinement": Refinement}

SPANS = Task(num_dims=1, channels=(), num_classes=1)
EPS = 1e-5
"""Of the inverse sigmoid: a clip of a video of a day must not be too short for it."""


@dataclass(frozen=True)
class Decoding:
    """A row of the table.

    Args:
        attention: to the levels of a pyramid ("deformable"), or to all clips ("conditional").
        queries: "anchors", learned; or the best proposals of the encoder, by DINO's names of what is kept of them.
        refinement: see `Decoder`.
        denoising: none; DN-DETR's; or DINO's contrastive groups.
        collaborative: train ATSS and Faster R-CNN heads beside the decoder, and let it borrow what they found
            (Co-DETR).
        shared_heads: all layers predict by one head.
        normed: predict from the normed state of a layer (DAB-DETR, DINO), not from the raw one (Deformable DETR).
        class_loss: "focal", or a name of `QUALITY_LOSSES`.
        anchor_cells: length of a proposal's anchor, in cells of its level.
        groups: of DN-DETR's noised targets.
        budget: about how many contrastive queries to make.
        box_noise: see `Denoising`; None: as published.
    """

    attention: Attention = "deformable"
    queries: Start = "mixed"
    refinement: Refinement = "look_forward_twice"
    denoising: Noise = "none"
    collaborative: bool = False
    shared_heads: bool = False
    normed: bool = True
    class_loss: str = "focal"
    anchor_cells: float = 4.0
    groups: int = 5
    budget: int = 100
    box_noise: float | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ValueError(f"unknown {name} {getattr(self, name)!r}, expected one of {known}")
        deformable, proposed = self.attention == "deformable", self.queries != "anchors"
        if not deformable and (proposed or self.collaborative):
            raise ValueError("proposals and collaborative heads need the levels of deformable attention")
        if self.queries == "pure" and self.denoising != "none":
            raise ValueError("pure queries have positions of their own, noised targets have none: choose mixed queries")

    @property
    def fixed(self) -> bool:
        """Whether queries keep their positions through all layers."""
        return self.queries == "pure"


DECODERS: dict[str, Decoding] = {
    "dab": Decoding("conditional", "anchors", shared_heads=True),
    "dn": Decoding("conditional", "anchors", denoising="noised", shared_heads=True),
    "deformable": Decoding(queries="pure", refinement="detached", normed=False),
    "dab_deformable": Decoding(queries="anchors", refinement="detached", normed=False),
    "dn_deformable": Decoding(queries="anchors", refinement="detached", denoising="noised", normed=False),
    "dino": Decoding(denoising="contrastive", shared_heads=True),
    "co_deformable": Decoding(queries="pure", collaborative=True, normed=False),
    "co_dino": Decoding(denoising="contrastive", collaborative=True, class_loss="quality_focal"),
}


def detector(decoding: Decoding, sizes: Sizes, finest: float) -> Detr:
    """Queries, decoder, and what trains beside them.

    Args:
        finest: clips per cell of the finest level.
    """
    head = focal_head(SPANS, sizes)
    heads = cloned(head, 1 if decoding.shared_heads else sizes.decoder_layers)
    decoder = Decoder(
        layers=_layers(decoding, sizes),
        guide=_guide(decoding, sizes),
        heads=heads,
        norm=nn.LayerNorm(sizes.width) if decoding.normed else None,
        parametrization=CenterSize(EPS),
        refinement=decoding.refinement,
    )
    return Detr(
        queries=_queries(decoding, sizes, head),
        decoder=decoder,
        denoising=_denoising(decoding, sizes),
        hybrid=_hybrid(decoding, sizes, finest) if decoding.collaborative else None,
    )


def span_criterion(decoding: Decoding, weights: LossWeights) -> Criterion:
    """Sigmoid focal or quality-aware loss of one class, L1 and GIoU, matched by the same."""
    options = {
        "class_weight": weights.class_,
        "eps": 1e-6,
        "l1_weight": weights.l1,
        "giou_weight": weights.giou,
        "class_cost": weights.cost_class,
        "l1_cost_weight": weights.cost_l1,
        "giou_cost_weight": weights.cost_giou,
        "auxiliary": weights.auxiliary,
    }
    if decoding.class_loss == "focal":
        return focal_criterion(**options)
    return quality_criterion(loss=decoding.class_loss, **options)


def _layers(decoding: Decoding, sizes: Sizes) -> list[nn.Module]:
    if decoding.attention == "conditional":
        return [*conditional_layers(sizes.decoder(activation=ACTIVATIONS["prelu"]))]
    return [*deformable_layers(sizes.decoder(), sizes.points(SPANS))]


def _guide(decoding: Decoding, sizes: Sizes) -> nn.Module:
    if decoding.fixed:
        return FixedGuide()
    if decoding.attention == "conditional":
        guide = AnchorGuide(1, sizes.width)
    else:
        learned = decoding.queries == "anchors"
        guide = SpanGuide(1, sizes.width, modulated=False, conditional=False, scales_positions=learned)
    init_transformer(guide)
    return guide


def _queries(decoding: Decoding, sizes: Sizes, head: Head) -> nn.Module:
    if decoding.queries == "anchors":
        marked = decoding.denoising == "noised"  # the last channel says so
        deformable = decoding.attention == "deformable"
        return AnchorQueries(
            sizes.num_queries,
            sizes.width,
            2,
            content="learned" if deformable else "empty",
            content_size=sizes.width - marked,
        )
    own = copy.deepcopy(head)
    proposals = SpanProposals(
        sizes.width, classes=own.classes, boxes=own.boxes, cells=decoding.anchor_cells, least=sizes.num_queries
    )
    judged: Literal["all", "chosen"] = "all" if decoding.fixed else "chosen"
    return ProposedQueries(sizes.num_queries, sizes.width, 1, head=proposals, selection=decoding.queries, judged=judged)


def _denoising(decoding: Decoding, sizes: Sizes) -> Denoising | None:
    if decoding.denoising == "none":
        return None
    contrastive = decoding.denoising == "contrastive"
    noise = (1.0 if contrastive else 0.4) if decoding.box_noise is None else decoding.box_noise
    return Denoising(
        1,
        sizes.width,
        groups=None if contrastive else decoding.groups,
        budget=decoding.budget,
        contrastive=contrastive,
        label_noise=0.0,  # there is only one class
        box_noise=noise,
        indicator=not contrastive,
        label_rows=1 if contrastive else 2,
        parametrization=CenterSize(EPS),
    )


def _hybrid(decoding: Decoding, sizes: Sizes, finest: float) -> HybridHeads:
    """Faster R-CNN and ATSS in the measure of videos: fewer regions than images have."""
    measure = Heads(
        stride=finest, hidden=sizes.feed_forward, proposals=200, per_level=1000, anchors=64, regions=64, most=50
    )
    lending = [
        PositiveQueries(
            sizes.width,
            1,
            positions="fixed" if decoding.fixed else "anchors",
            features=decoding.fixed,
            place="vector" if decoding.fixed else "none",
            most=measure.most,
        )
        for _ in range(2)
    ]
    return hybrid_heads(SPANS, sizes, measure, lending, stride=finest)
