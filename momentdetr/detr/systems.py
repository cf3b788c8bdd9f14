"""The table of systems: each row is one short function that composes parts and names its paper.

| system | encoder | content | positions and anchors | cross-attention | refinement |
|---|---|---|---|---|---|
| DETR | dense | empty | learned position | dense | none |
| Conditional DETR | dense | empty | learned position -> point | conditional | none |
| Deformable DETR | deformable | learned, or from boxes | learned -> point, or proposals | deformable | none, detached |
| DAB-DETR | dense, scaled positions | empty or patterns | anchors | conditional, modulated | look forward twice |
| DAB-Deformable-DETR | deformable | learned | anchors | deformable | detached |
| DN-DETR, DN-Deformable-DETR | as DAB | label embedding | as DAB, and noised targets | as DAB | as DAB |
| DINO | deformable | learned, by rank | proposals, and contrastive groups | deformable | look forward twice |
| Co-Deformable-DETR | deformable | learned, and positives of heads | proposals | deformable | look forward twice |
| Co-DINO | deformable | as DINO, and positives of heads | as DINO | deformable | look forward twice |

All of them run for any number of dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from momentdetr.detr.assignment import HungarianMatcher, focal_class_cost, giou_cost, l1_cost, softmax_class_cost
from momentdetr.detr.decoder import AnchorGuide, Decoder, FixedGuide, Head, Refinement
from momentdetr.detr.denoising import Denoising
from momentdetr.detr.dense_head import AtssHead
from momentdetr.detr.hybrid import HybridHeads, PositiveQueries
from momentdetr.detr.initialization import init_transformer, prior_bias, zero_last_layer
from momentdetr.detr.layers import (
    Points,
    Stack,
    conditional_layers,
    deformable_encoder,
    deformable_layers,
    dense_encoder,
    dense_layers,
)
from momentdetr.detr.losses import Criterion, cross_entropy, focal, giou_loss, l1, quality_focal
from momentdetr.detr.mlp import MLP
from momentdetr.detr.model import Detector, Detr
from momentdetr.detr.neck import Neck
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.proposals import ProposalHead, ProposedQueries, by_best_class, by_first_class
from momentdetr.detr.queries import AnchorQueries, LearnedQueries, PointQueries
from momentdetr.detr.region_proposals import RegionProposals
from momentdetr.detr.roi_head import FasterRcnn, RegionHead


@dataclass(frozen=True)
class Task:
    """What a system is built for.

    Args:
        num_dims: D.
        channels: of the backbone's feature maps that are used, finest first.
        num_classes: K, without "no object".
    """

    num_dims: int
    channels: tuple[int, ...]
    num_classes: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a system; each row's defaults are its paper's.

    Args:
        width: C.
        num_heads: H.
        feed_forward: hidden size of the feed-forward networks.
        encoder_layers: of them.
        decoder_layers: of them.
        num_queries: Q.
        dropout: of the transformer.
        num_levels: L, of deformable systems.
        num_points: of deformable attention, per head and level.
        group_norm: groups of the norm behind the neck's projections.
    """

    width: int = 256
    num_heads: int = 8
    feed_forward: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_queries: int = 300
    dropout: float = 0.0
    num_levels: int = 4
    num_points: int = 4
    group_norm: int = 32

    def encoder(self, **options: object) -> Stack:
        return self._stack(self.encoder_layers, options)

    def decoder(self, **options: object) -> Stack:
        return self._stack(self.decoder_layers, options)

    def points(self, task: Task) -> Points:
        return Points(task.num_dims, self.num_levels, self.num_points)

    def _stack(self, num_layers: int, options: dict[str, object]) -> Stack:
        stack = Stack(self.width, self.num_heads, self.feed_forward, num_layers, self.dropout)
        return replace(stack, **options)  # type: ignore[arg-type]


def detr(task: Task, sizes: Sizes | None = None, *, pre_norm: bool = False) -> Detector:
    """DETR (Carion et al., 2020, arXiv 2005.12872)."""
    sizes = sizes or Sizes(num_queries=100, dropout=0.1)
    layers = dense_layers(sizes.decoder(pre_norm=pre_norm))
    decoder = Decoder(
        layers=layers,
        guide=FixedGuide(),
        heads=[Head(nn.Linear(sizes.width, task.num_classes + 1), box_head(task, sizes))],
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(1e-5),
    )
    return Detector(
        neck=plain_neck(task, sizes),
        detr=Detr(
            encoder=dense_encoder(sizes.encoder(pre_norm=pre_norm)),
            queries=LearnedQueries(sizes.num_queries, sizes.width),
            decoder=decoder,
        ),
        criterion=softmax_criterion(),
    )


def conditional_detr(task: Task, sizes: Sizes | None = None) -> Detector:
    """Conditional DETR (Meng et al., 2021, arXiv 2108.06152)."""
    sizes = sizes or Sizes(dropout=0.1)
    guide = AnchorGuide(task.num_dims, sizes.width, makes_positions=False, modulated=False)
    to_point = MLP(sizes.width, sizes.width, task.num_dims)
    init_transformer(guide, to_point)
    decoder = Decoder(
        layers=conditional_layers(sizes.decoder()),
        guide=guide,
        heads=[focal_head(task, sizes)],
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(1e-5),
    )
    return Detector(
        neck=plain_neck(task, sizes),
        detr=Detr(
            encoder=dense_encoder(sizes.encoder()),
            queries=PointQueries(sizes.num_queries, sizes.width, to_point=to_point),
            decoder=decoder,
        ),
        criterion=focal_criterion(class_weight=2.0),
    )


def deformable_detr(
    task: Task, sizes: Sizes | None = None, *, refine: bool = False, two_stage: bool = False
) -> Detector:
    """Deformable DETR (Zhu et al., 2021, arXiv 2010.04159); single-scale with one map and `num_levels=1`.

    Args:
        refine: each layer's box is the next one's reference.
        two_stage: queries are the encoder's best proposals.
    """
    sizes = sizes or Sizes(feed_forward=1024, dropout=0.1)
    heads = [focal_head(task, sizes, wide=0.0 if two_stage else -2.0)]
    if refine:
        heads = cloned(heads[0], sizes.decoder_layers + two_stage)
        for head in heads[1:]:
            unbias_sizes(head, task)
    queries: nn.Module
    if two_stage:
        own = heads[-1]
        head = ProposalHead(sizes.width, classes=own.classes, boxes=own.boxes)
        queries = ProposedQueries(
            sizes.num_queries,
            sizes.width,
            task.num_dims,
            head=head,
            ranking=by_first_class,
            selection="pure",
            judged="all",
        )
    else:
        to_point = nn.Linear(sizes.width, task.num_dims)
        nn.init.xavier_uniform_(to_point.weight)
        nn.init.zeros_(to_point.bias)
        queries = PointQueries(sizes.num_queries, sizes.width, to_point=to_point, learned_content=True)
    decoder = Decoder(
        layers=deformable_layers(sizes.decoder(), sizes.points(task)),
        guide=FixedGuide(),
        heads=heads[: sizes.decoder_layers],
        norm=None,
        parametrization=CenterSize(1e-5),
        refinement="detached" if refine else "none",
    )
    return Detector(
        neck=level_neck(task, sizes, offset=-0.5),
        detr=Detr(encoder=deformable_encoder(sizes.encoder(), sizes.points(task)), queries=queries, decoder=decoder),
        criterion=focal_criterion(class_weight=2.0),
    )


def dab_detr(
    task: Task, sizes: Sizes | None = None, *, num_patterns: int = 0, denoising: Denoising | None = None
) -> Detector:
    """DAB-DETR (Liu et al., 2022, arXiv 2201.12329); with `denoising` DN-DETR (Li et al., 2022, arXiv 2203.01305)."""
    sizes = sizes or Sizes()
    guide = AnchorGuide(task.num_dims, sizes.width)
    init_transformer(guide)
    decoder = Decoder(
        layers=conditional_layers(sizes.decoder(activation=nn.PReLU)),
        guide=guide,
        heads=[focal_head(task, sizes)],
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(1e-3),
        refinement="look_forward_twice",
    )
    queries = AnchorQueries(
        sizes.num_queries,
        sizes.width,
        2 * task.num_dims,
        content="patterns" if num_patterns else "empty",
        num_patterns=num_patterns,
    )
    encoder = dense_encoder(sizes.encoder(activation=nn.PReLU), scales_positions=True)
    return Detector(
        neck=plain_neck(task, sizes, temperature=20.0),
        detr=Detr(encoder=encoder, queries=queries, decoder=decoder, denoising=denoising),
        criterion=focal_criterion(class_weight=1.0, eps=1e-6),
    )


def dab_deformable_detr(
    task: Task, sizes: Sizes | None = None, *, num_patterns: int = 0, denoising: Denoising | None = None
) -> Detector:
    """DAB-Deformable-DETR, of the DAB-DETR repository; with `denoising` DN-Deformable-DETR, of DN-DETR's."""
    sizes = sizes or Sizes()
    guide = AnchorGuide(task.num_dims, sizes.width, modulated=False, conditional=False, scales_positions=True)
    init_transformer(guide)
    heads = cloned(focal_head(task, sizes, wide=-2.0), sizes.decoder_layers)
    for head in heads[1:]:
        unbias_sizes(head, task)
    decoder = Decoder(
        layers=deformable_layers(sizes.decoder(), sizes.points(task)),
        guide=guide,
        heads=heads,
        norm=None,
        parametrization=CenterSize(1e-3),
        refinement="detached",
    )
    queries = AnchorQueries(
        sizes.num_queries,
        sizes.width,
        2 * task.num_dims,
        content="learned",
        content_size=sizes.width - (denoising is not None and denoising.indicator),
        num_patterns=num_patterns,
    )
    return Detector(
        neck=level_neck(task, sizes, offset=-0.5),
        detr=Detr(
            encoder=deformable_encoder(sizes.encoder(), sizes.points(task)),
            queries=queries,
            decoder=decoder,
            denoising=denoising,
        ),
        criterion=focal_criterion(class_weight=1.0, eps=1e-6),
    )


def dn_detr(task: Task, sizes: Sizes | None = None, *, groups: int = 5, num_patterns: int = 0) -> Detector:
    """DN-DETR (Li et al., 2022, arXiv 2203.01305)."""
    sizes = sizes or Sizes()
    return dab_detr(
        task, sizes, num_patterns=num_patterns, denoising=Denoising(task.num_classes, sizes.width, groups=groups)
    )


def dn_deformable_detr(task: Task, sizes: Sizes | None = None, *, groups: int = 5) -> Detector:
    """DN-Deformable-DETR (Li et al., 2022, arXiv 2203.01305)."""
    sizes = sizes or Sizes()
    return dab_deformable_detr(task, sizes, denoising=Denoising(task.num_classes, sizes.width, groups=groups))


def dino(
    task: Task,
    sizes: Sizes | None = None,
    *,
    two_stage: bool = True,
    shared_heads: bool = True,
    refinement: Refinement = "look_forward_twice",
    denoising: Denoising | None = None,
    hybrid: HybridHeads | None = None,
) -> Detector:
    """DINO (Zhang et al., 2023, arXiv 2203.03605).

    Args:
        two_stage: anchors are the encoder's best proposals; else they are learned.
        shared_heads: one head for all layers; else one a layer.
        refinement: whether the loss reaches back through the references.
        denoising: None: contrastive groups of about a hundred positive queries.
        hybrid: one-to-many heads beside the decoder, see `co_dino`.
    """
    sizes = sizes or Sizes(num_queries=900)
    if denoising is None:
        denoising = contrastive_denoising(task, sizes)
    guide = AnchorGuide(task.num_dims, sizes.width, modulated=False, conditional=False)
    init_transformer(guide)
    heads = cloned(focal_head(task, sizes), 1 if shared_heads else sizes.decoder_layers)
    queries: nn.Module
    if two_stage:
        own = copy.deepcopy(heads[0])
        head = ProposalHead(sizes.width, classes=own.classes, boxes=own.boxes)
        queries = ProposedQueries(sizes.num_queries, sizes.width, task.num_dims, head=head, ranking=by_best_class)
    else:
        queries = AnchorQueries(sizes.num_queries, sizes.width, 2 * task.num_dims, content="learned")
    decoder = Decoder(
        layers=deformable_layers(sizes.decoder(), sizes.points(task)),
        guide=guide,
        heads=heads,
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(1e-3),
        refinement=refinement,
    )
    return Detector(
        neck=level_neck(task, sizes, temperature=20.0),
        detr=Detr(
            encoder=deformable_encoder(sizes.encoder(), sizes.points(task)),
            queries=queries,
            decoder=decoder,
            denoising=denoising,
            hybrid=hybrid,
        ),
        criterion=focal_criterion(class_weight=1.0, eps=1e-6),
    )


def co_deformable_detr(
    task: Task, sizes: Sizes | None = None, *, stride: float = 8, hybrid: HybridHeads | None = None
) -> Detector:
    """Co-Deformable-DETR (Zong et al., 2023, arXiv 2211.12860).

    Args:
        stride: input cells (pixels, clips) per cell of the finest map.
        hybrid: one-to-many heads; None: the paper's.
    """
    sizes = sizes or Sizes()
    heads = cloned(focal_head(task, sizes), sizes.decoder_layers + 1)
    own = heads.pop()
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
        heads=heads,
        norm=None,
        parametrization=CenterSize(1e-5),
        refinement="look_forward_twice",
    )
    if hybrid is None:
        lending = [
            PositiveQueries(sizes.width, task.num_dims, positions="fixed", features=True, place="scalar")
            for _ in range(2)
        ]
        hybrid = hybrid_heads(task, sizes, lending, stride)
    return Detector(
        neck=level_neck(task, sizes, offset=-0.5, bias=False),
        detr=Detr(
            encoder=deformable_encoder(sizes.encoder(), sizes.points(task)),
            queries=queries,
            decoder=decoder,
            hybrid=hybrid,
        ),
        criterion=focal_criterion(class_weight=2.0),
    )


def co_dino(
    task: Task,
    sizes: Sizes | None = None,
    *,
    stride: float = 4,
    denoising: Denoising | None = None,
    hybrid: HybridHeads | None = None,
) -> Detector:
    """Co-DINO (Zong et al., 2023, arXiv 2211.12860): DINO with five levels, quality focal loss and one-to-many heads.

    Args:
        stride: input cells (pixels, clips) per cell of the finest map.
        denoising: None: contrastive groups of about a hundred positive queries.
        hybrid: one-to-many heads; None: the paper's.
    """
    sizes = sizes or Sizes(num_queries=900, num_levels=5)
    if denoising is None:
        denoising = contrastive_denoising(task, sizes, label_rows=task.num_classes)
    if hybrid is None:
        lending = [PositiveQueries(sizes.width, task.num_dims, positions="anchors", features=False) for _ in range(2)]
        hybrid = hybrid_heads(task, sizes, lending, stride)
    detector = dino(task, sizes, shared_heads=False, denoising=denoising, hybrid=hybrid)
    detector.neck = level_neck(task, sizes, temperature=20.0, bias=False)
    detector.criterion = quality_criterion()
    return detector


def hybrid_heads(
    task: Task,
    sizes: Sizes,
    lending: Sequence[PositiveQueries],
    stride: float,
    *,
    hidden: int = 1024,
    bins: int = 7,
    regions: Mapping[str, int] | None = None,
    rows: int = 512,
) -> HybridHeads:
    """Co-DETR's: Faster R-CNN and ATSS, on the memory and a coarser level.

    Args:
        lending: how each head's positives become queries.
        stride: input cells per cell of the finest map.
        hidden: size of the region head's layers.
        bins: per axis of a pooled region.
        regions: options of `RegionProposals`.
        rows: regions of a sample to train on.
    """
    size = (task.num_dims, sizes.width)
    first = FasterRcnn(
        regions=RegionProposals(*size, **dict(regions or {})),
        head=RegionHead(*size, task.num_classes, hidden=hidden, bins=bins),
        rows=rows,
    )
    second = AtssHead(*size, task.num_classes, sizes.num_levels + 1, group_norm=sizes.group_norm)
    return HybridHeads(*size, heads=[first, second], lending=lending, stride=stride, group_norm=sizes.group_norm)


def contrastive_denoising(task: Task, sizes: Sizes, *, label_rows: int | None = None) -> Denoising:
    """DINO's: groups of about a hundred positive queries, each with a negative one."""
    return Denoising(
        task.num_classes,
        sizes.width,
        groups=None,
        contrastive=True,
        label_noise=0.25,
        box_noise=1.0,
        indicator=False,
        label_rows=label_rows,
    )


def plain_neck(task: Task, sizes: Sizes, *, temperature: float = 10000.0) -> Neck:
    """One level, projected without a norm."""
    return Neck(
        task.num_dims,
        task.channels[-1:],
        sizes.width,
        group_norm=0,
        level_embedding=False,
        temperature=temperature,
    )


def level_neck(
    task: Task, sizes: Sizes, *, temperature: float = 10000.0, offset: float = 0.0, bias: bool = True
) -> Neck:
    """Several levels, each projected and normed."""
    return Neck(
        task.num_dims,
        task.channels[-sizes.num_levels :],
        sizes.width,
        num_levels=sizes.num_levels,
        group_norm=sizes.group_norm,
        temperature=temperature,
        offset=offset,
        bias=bias,
    )


def box_head(task: Task, sizes: Sizes) -> MLP:
    return MLP(sizes.width, sizes.width, sizes.width, 2 * task.num_dims)


def focal_head(task: Task, sizes: Sizes, *, wide: float = 0.0) -> Head:
    """Sigmoid classes that start rare, and boxes that start at their reference, with sizes at logit `wide`."""
    classes, boxes = nn.Linear(sizes.width, task.num_classes), box_head(task, sizes)
    prior_bias(classes)
    zero_last_layer(boxes)
    nn.init.constant_(boxes.layers[-1].bias[task.num_dims :], wide)  # type: ignore[index, arg-type]
    return Head(classes, boxes)


def cloned(head: Head, count: int) -> list[Head]:
    return [copy.deepcopy(head) for _ in range(count)]


def unbias_sizes(head: Head, task: Task) -> None:
    """Deformable DETR's first layer starts from small boxes; the ones after it start from its boxes."""
    assert isinstance(head.boxes, MLP)
    nn.init.zeros_(head.boxes.layers[-1].bias[task.num_dims :])  # type: ignore[index, arg-type]


def softmax_criterion() -> Criterion:
    """DETR's: softmax with "no object", cost and loss weights 1 / 5 / 2."""
    return _criterion(softmax_class_cost, partial(cross_entropy, background_weight=0.1), 1.0, 1.0, 0.0)


def focal_criterion(*, class_weight: float, eps: float = 0.0) -> Criterion:
    """Everyone else's: focal loss, matching cost 2 / 5 / 2, loss weights `class_weight` / 5 / 2."""
    return _criterion(focal_class_cost, focal, 2.0, class_weight, eps)


def quality_criterion() -> Criterion:
    """Co-DINO's: quality focal loss, matching cost 2 / 5 / 2, loss weights 1 / 5 / 2."""
    return _criterion(focal_class_cost, quality_focal, 2.0, 1.0, 0.0)


def _criterion(cost, term, cost_weight: float, class_weight: float, eps: float) -> Criterion:  # type: ignore[no-untyped-def]
    matcher = HungarianMatcher(
        {"class": cost, "l1": l1_cost, "giou": partial(giou_cost, eps=eps)},
        {"class": cost_weight, "l1": 5.0, "giou": 2.0},
    )
    return Criterion(
        matcher=matcher,
        terms={"class": term, "l1": l1, "giou": partial(giou_loss, eps=eps)},
        weights={"class": class_weight, "l1": 5.0, "giou": 2.0},
    )
