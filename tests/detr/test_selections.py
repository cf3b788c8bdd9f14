"""Every way to make queries serves every decoder, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from momentdetr.detr import systems
from momentdetr.detr.assembly import Sizes, Task, box_head
from momentdetr.detr.model import Detector
from momentdetr.detr.proposals import ProposalHead, ProposedQueries
from momentdetr.detr.queries import AnchorQueries, PointQueries
from momentdetr.detr.types import Targets

CLASSES, QUERIES = 3, 4
SIZES = Sizes(
    width=24,
    num_heads=2,
    feed_forward=16,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=QUERIES,
    num_levels=2,
    num_points=2,
    group_norm=4,
)
DECODERS: dict[str, Callable[[Task, Sizes], Detector]] = {
    "dense": systems.detr,
    "conditional": systems.dab_detr,
    "deformable": systems.dab_deformable_detr,
}


def make_queries(selection: str, decoder: str, task: Task) -> nn.Module:
    if selection == "static" and decoder == "dense":
        return PointQueries(QUERIES, SIZES.width, to_point=nn.Linear(SIZES.width, task.num_dims))
    if selection == "static":
        return AnchorQueries(QUERIES, SIZES.width, 2 * task.num_dims, content="learned")
    classes = nn.Linear(SIZES.width, CLASSES + (decoder == "dense"))  # the softmax system has "no object" too
    head = ProposalHead(SIZES.width, classes=classes, boxes=box_head(task, SIZES))
    return ProposedQueries(
        QUERIES,
        SIZES.width,
        task.num_dims,
        head=head,
        selection=selection,  # type: ignore[arg-type]
        # The dense decoder has no guide that makes positions of anchors.
        positions=True if decoder == "dense" else None,
    )


def make_inputs(num_dims: int) -> tuple[list[Tensor], Tensor, Targets]:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 5, *(size,) * num_dims, generator=generator) for size in (8, 4)]
    boxes = torch.rand(2, 2, 2 * num_dims, generator=generator) * 0.4 + 0.3
    return (
        maps,
        torch.ones(2, *(16,) * num_dims).bool(),
        Targets(torch.tensor([[0, 1], [2, 2]]), boxes, boxes[..., 0] > 0),
    )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("selection", ["static", "mixed", "pure", "features"])
def test_queries_of_any_kind_are_decoded_and_trained(selection: str, decoder: str, num_dims: int) -> None:
    torch.manual_seed(0)
    task = Task(num_dims, (5, 5), CLASSES)
    detector = DECODERS[decoder](task, SIZES)
    detector.detr.queries = make_queries(selection, decoder, task)
    with torch.no_grad():  # heads that start at zero hide what lies behind them
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    maps, mask, targets = make_inputs(num_dims)
    output = detector(maps, mask, targets)
    assert output.last.boxes.shape == (2, QUERIES, 2 * num_dims)
    assert ("proposals" in [found.name for found in output.supervisions]) == (selection != "static")
    detector.criterion(output, targets).total.backward()
    silent = [n for n, p in detector.detr.queries.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
