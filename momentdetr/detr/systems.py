"""The table of systems: each row is one short function that composes parts and names its paper.

| system | encoder | content | positions and anchors | cross-attention | refinement |
|---|---|---|---|---|---|
| DETR | dense | empty | learned position | dense | none |
| Conditional DETR | dense | empty | learned position -> point | conditional | none |
| Deformable DETR | deformable | learned or from boxes | learned -> point, or proposals | deformable | none, detached |
| DAB-DETR | dense, scaled positions | empty or patterns | anchors | conditional, modulated | look forward twice |
| DAB-Deformable-DETR | deformable | learned | anchors | deformable | detached |
| DN-DETR, DN-Deformable-DETR | as DAB | label embedding | as DAB, and noised targets | as DAB | as DAB |
| DN-DETR's DINO-like variant | deformable | learned, by rank | proposals, and paired groups | deformable | any |
| DINO | deformable | learned, by rank | proposals, and contrastive groups | deformable | look forward twice |

Co-DETR's rows, which train with further heads, stand in `systems_hybrid`. All run for any number of dimensions.
"""

from __future__ import annotations

import copy

from torch import nn

from momentdetr.detr.assembly import (
    Positions,
    Sizes,
    Task,
    box_head,
    cloned,
    contrastive_denoising,
    focal_criterion,
    focal_head,
    level_neck,
    plain_neck,
    softmax_criterion,
    unbias_sizes,
)
from momentdetr.detr.decoder import AnchorGuide, Decoder, FixedGuide, Head, Refinement
from momentdetr.detr.denoising import Denoising, PairedDenoising
from momentdetr.detr.hybrid import HybridHeads
from momentdetr.detr.initialization import init_transformer
from momentdetr.detr.layers import (
    conditional_layers,
    deformable_encoder,
    deformable_layers,
    dense_encoder,
    dense_layers,
)
from momentdetr.detr.losses import Criterion
from momentdetr.detr.mlp import ACTIVATIONS, MLP
from momentdetr.detr.model import Detector, Detr
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.proposals import ProposalHead, ProposedQueries, by_best_class, by_first_class
from momentdetr.detr.queries import AnchorQueries, LearnedQueries, PointQueries


def on_levels(
    task: Task,
    sizes: Sizes,
    positions: Positions | None,
    *,
    queries: nn.Module,
    decoder: Decoder,
    criterion: Criterion,
    activation: str = "relu",
    bias: bool = True,
    **others: nn.Module | None,
) -> Detector:
    """What all systems on deformable attention share: several levels, and an encoder on them.

    Args:
        positions: None: Deformable DETR's.
        activation: of the encoder's feed-forward networks.
        bias: of the neck's projections.
        others: further parts of `Detr`.
    """
    encoder = deformable_encoder(sizes.encoder(activation=ACTIVATIONS[activation]), sizes.points_of_encoder(task))
    return Detector(
        neck=level_neck(task, sizes, positions or Positions(offset=-0.5), bias=bias),
        detr=Detr(encoder=encoder, queries=queries, decoder=decoder, **others),  # type: ignore[arg-type]
        criterion=criterion,
    )


def detr(
    task: Task, sizes: Sizes | None = None, *, pre_norm: bool = False, positions: Positions | None = None
) -> Detector:
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
        neck=plain_neck(task, sizes, positions),
        detr=Detr(
            encoder=dense_encoder(sizes.encoder(pre_norm=pre_norm)),
            queries=LearnedQueries(sizes.num_queries, sizes.width),
            decoder=decoder,
        ),
        criterion=softmax_criterion(),
    )


def conditional_detr(
    task: Task, sizes: Sizes | None = None, *, positions: Positions | None = None, eps: float = 1e-5
) -> Detector:
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
        parametrization=CenterSize(eps),
    )
    return Detector(
        neck=plain_neck(task, sizes, positions),
        detr=Detr(
            encoder=dense_encoder(sizes.encoder()),
            queries=PointQueries(sizes.num_queries, sizes.width, to_point=to_point),
            decoder=decoder,
        ),
        criterion=focal_criterion(class_weight=2.0),
    )


def deformable_detr(
    task: Task,
    sizes: Sizes | None = None,
    *,
    refine: bool = False,
    two_stage: bool = False,
    positions: Positions | None = None,
    proposal_weight: float = 1.0,
    eps: float = 1e-5,
) -> Detector:
    """Deformable DETR (Zhu et al., 2021, arXiv 2010.04159); single-scale with one map and `num_levels=1`.

    Args:
        refine: each layer's box is the next one's reference.
        two_stage: queries are the encoder's best proposals; needs `refine`.
        proposal_weight: of the proposals' losses.
        eps: of the inverse sigmoid; detrex has 1e-3.
    """
    sizes = sizes or Sizes(feed_forward=1024, dropout=0.1)
    heads = [focal_head(task, sizes, wide=0.0 if two_stage else -2.0)]
    if two_stage and not refine:
        raise ValueError("two_stage proposes boxes with a head of its own, which refine=True makes")
    if refine:
        heads = cloned(heads[0], sizes.decoder_layers + two_stage)
        for head in heads[1:]:
            unbias_sizes(head, task)
    queries: nn.Module
    if two_stage:
        own = heads[-1]
        proposals = ProposalHead(sizes.width, classes=own.classes, boxes=own.boxes)
        queries = ProposedQueries(
            sizes.num_queries,
            sizes.width,
            task.num_dims,
            head=proposals,
            ranking=by_first_class,
            selection="pure",
            judged="all",
            weight=proposal_weight,
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
        parametrization=CenterSize(eps),
        refinement="detached" if refine else "none",
    )
    criterion = focal_criterion(class_weight=2.0)
    return on_levels(task, sizes, positions, queries=queries, decoder=decoder, criterion=criterion)


def dab_detr(
    task: Task,
    sizes: Sizes | None = None,
    *,
    num_patterns: int = 0,
    denoising: Denoising | None = None,
    activation: str = "prelu",
    positions: Positions | None = None,
    eps: float = 1e-3,
) -> Detector:
    """DAB-DETR (Liu et al., 2022, arXiv 2201.12329); with `denoising` DN-DETR (Li et al., 2022, arXiv 2203.01305)."""
    sizes = sizes or Sizes()
    guide = AnchorGuide(task.num_dims, sizes.width)
    init_transformer(guide)
    decoder = Decoder(
        layers=conditional_layers(sizes.decoder(activation=ACTIVATIONS[activation])),
        guide=guide,
        heads=[focal_head(task, sizes)],
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(eps),
        refinement="look_forward_twice",
    )
    queries = AnchorQueries(sizes.num_queries, sizes.width, 2 * task.num_dims, num_patterns=num_patterns)
    encoder = dense_encoder(sizes.encoder(activation=ACTIVATIONS[activation]), scales_positions=True)
    return Detector(
        neck=plain_neck(task, sizes, positions or Positions(temperature=20.0)),
        detr=Detr(encoder=encoder, queries=queries, decoder=decoder, denoising=denoising),
        criterion=focal_criterion(class_weight=1.0, eps=1e-6),
    )


def dab_deformable_detr(
    task: Task,
    sizes: Sizes | None = None,
    *,
    num_patterns: int = 0,
    denoising: Denoising | None = None,
    refinement: Refinement = "detached",
    positions: Positions | None = None,
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
        refinement=refinement,
    )
    queries = AnchorQueries(
        sizes.num_queries,
        sizes.width,
        2 * task.num_dims,
        content="learned",
        content_size=sizes.width - (denoising is not None and denoising.indicator),
        num_patterns=num_patterns,
    )
    criterion = focal_criterion(class_weight=1.0, eps=1e-6)
    return on_levels(task, sizes, positions, queries=queries, decoder=decoder, criterion=criterion, denoising=denoising)


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


def dn_dino(
    task: Task,
    sizes: Sizes | None = None,
    *,
    refinement: Refinement = "look_forward_twice",
    denoising: Denoising | None = None,
    positions: Positions | None = None,
    proposal_weight: float = 1.0,
) -> Detector:
    """DN-DETR's DINO-like variant, of the DN-DETR repository: DN-Deformable-DETR with the encoder's proposals.

    Args:
        refinement: whether the loss reaches back through the references.
        denoising: None: five paired groups.
        proposal_weight: of the proposals' losses.
    """
    sizes = sizes or Sizes()
    if denoising is None:
        denoising = PairedDenoising(task.num_classes, sizes.width, unknown=False)
    guide = AnchorGuide(task.num_dims, sizes.width, modulated=False, conditional=False, scales_positions=True)
    init_transformer(guide)
    heads = cloned(focal_head(task, sizes), sizes.decoder_layers + 1)
    decoder = Decoder(
        layers=deformable_layers(sizes.decoder(), sizes.points(task)),
        guide=guide,
        heads=heads[:-1],
        norm=None,
        parametrization=CenterSize(1e-3),
        refinement=refinement,
    )
    queries = ProposedQueries(
        sizes.num_queries,
        sizes.width,
        task.num_dims,
        head=ProposalHead(sizes.width, classes=heads[-1].classes, boxes=heads[-1].boxes),
        ranking=by_first_class,
        judged="all",
        weight=proposal_weight,
    )
    criterion = focal_criterion(class_weight=1.0, eps=1e-6)
    return on_levels(task, sizes, positions, queries=queries, decoder=decoder, criterion=criterion, denoising=denoising)


def dino(
    task: Task,
    sizes: Sizes | None = None,
    *,
    two_stage: bool = True,
    learned_content: bool = True,
    shared_classes: bool = True,
    shared_boxes: bool = True,
    refinement: Refinement = "look_forward_twice",
    denoising: Denoising | None = None,
    hybrid: HybridHeads | None = None,
    activation: str = "relu",
    positions: Positions | None = None,
    proposal_weight: float = 1.0,
) -> Detector:
    """DINO (Zhang et al., 2023, arXiv 2203.03605).

    Args:
        two_stage: anchors are the encoder's best proposals; else they are learned.
        learned_content: of proposed queries; else it is the proposing tokens.
        shared_classes: one classifier for all layers; else one a layer.
        shared_boxes: one box head for all layers; else one a layer.
        refinement: whether the loss reaches back through the references.
        denoising: None: contrastive groups of about a hundred positive queries.
        hybrid: one-to-many heads beside the decoder, see `systems_hybrid`.
        activation: between the two layers of a feed-forward network.
        proposal_weight: of the proposals' losses.
    """
    sizes = sizes or Sizes(num_queries=900)
    if denoising is None:
        denoising = contrastive_denoising(task, sizes)
    guide = AnchorGuide(task.num_dims, sizes.width, modulated=False, conditional=False)
    init_transformer(guide)
    count = 1 if shared_classes and shared_boxes else sizes.decoder_layers
    heads = cloned(focal_head(task, sizes), count, shared_classes=shared_classes, shared_boxes=shared_boxes)
    queries: nn.Module
    if two_stage:
        own = copy.deepcopy(heads[0])
        head = ProposalHead(sizes.width, classes=own.classes, boxes=own.boxes)
        queries = ProposedQueries(
            sizes.num_queries,
            sizes.width,
            task.num_dims,
            head=head,
            ranking=by_best_class,
            selection="mixed" if learned_content else "features",
            weight=proposal_weight,
        )
    else:
        queries = AnchorQueries(sizes.num_queries, sizes.width, 2 * task.num_dims, content="learned")
    decoder = Decoder(
        layers=deformable_layers(sizes.decoder(activation=ACTIVATIONS[activation]), sizes.points(task)),
        guide=guide,
        heads=heads,
        norm=nn.LayerNorm(sizes.width),
        parametrization=CenterSize(1e-3),
        refinement=refinement,
    )
    return on_levels(
        task,
        sizes,
        positions or Positions(temperature=20.0),
        queries=queries,
        decoder=decoder,
        criterion=focal_criterion(class_weight=1.0, eps=1e-6),
        activation=activation,
        denoising=denoising,
        hybrid=hybrid,
    )
