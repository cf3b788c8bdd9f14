from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from momentdetr.detr.mlp import MLP
from momentdetr.detr.neck import cell_centers, valid_ratios
from momentdetr.detr.positions import box_features
from momentdetr.detr.proposals import ProposalHead, ProposedQueries, by_best_class, by_first_class, token_anchors
from momentdetr.detr.types import Memory

WIDTH, CLASSES, QUERIES = 24, 3, 4


def make_memory(num_dims: int) -> Memory:
    torch.manual_seed(0)
    shapes = [(4, 6, 3)[:num_dims], (2, 3, 2)[:num_dims]]
    masks = [torch.ones(2, *shape, dtype=torch.bool) for shape in shapes]
    for mask in masks:
        mask[1, mask.shape[1] // 2 :] = False
    ratios = torch.stack([valid_ratios(mask) for mask in masks], 1)
    centers = torch.cat([cell_centers(shape, ratios[:, i]) for i, shape in enumerate(shapes)], 1)
    flat = torch.cat([mask.flatten(1) for mask in masks], 1)
    tokens = torch.randn(2, flat.shape[1], WIDTH)
    return Memory(tokens, flat, level_shapes=tuple(shapes), valid_ratios=ratios, references=centers)


def make_queries(num_dims: int, **options: object) -> ProposedQueries:
    torch.manual_seed(1)
    boxes = MLP(WIDTH, WIDTH, 2 * num_dims)
    head = ProposalHead(WIDTH, classes=nn.Linear(WIDTH, CLASSES), boxes=boxes)
    return ProposedQueries(QUERIES, WIDTH, num_dims, head=head, **options)  # type: ignore[arg-type]


def test_anchors_lie_around_their_cells_and_double_level_by_level(num_dims: int) -> None:
    memory = make_memory(num_dims)
    anchors, may_propose = token_anchors(memory, size=0.05, margin=0.01)
    row = 0
    for level, shape in enumerate(memory.level_shapes):
        for cell in itertools.product(*(range(size) for size in shape)):
            valid = [shape[0] // 2, *shape[1:]]  # of the second sample
            center = [(place + 0.5) / size for place, size in zip(reversed(cell), reversed(valid), strict=True)]
            box = [*center, *[0.05 * 2**level] * num_dims]
            if cell[0] < valid[0] and all(0.01 < number < 0.99 for number in box):
                assert may_propose[1, row]
                assert anchors[1, row].sigmoid().tolist() == pytest.approx(box, abs=1e-6)
            else:
                assert not may_propose[1, row]
                assert (anchors[1, row] == math.inf).all()
            row += 1
    assert row == anchors.shape[1]


def test_padding_proposes_nothing_whatever_it_holds(num_dims: int) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims)
    assert memory.mask is not None
    other = memory.with_tokens(memory.tokens + 9 * ~memory.mask[..., None])
    expected, found = queries.head(memory), queries.head(other)
    torch.testing.assert_close(found.logits, expected.logits)
    assert (found.anchors.sigmoid()[~memory.mask] == 1).all()


@pytest.mark.parametrize(("ranking", "score"), [(by_first_class, lambda k: k[0]), (by_best_class, max)])
def test_the_best_tokens_become_queries(num_dims: int, ranking: object, score: object) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims, ranking=ranking)
    said, found = queries.head(memory), queries(memory)
    assert found.anchors is not None
    for sample in range(2):
        scores = [score(row) for row in said.logits[sample].tolist()]  # type: ignore[operator]
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:QUERIES]
        torch.testing.assert_close(found.anchors[sample], said.anchors[sample, best])


def test_mixed_content_is_learned_by_rank_and_anchors_carry_no_gradient(num_dims: int) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims)
    found = queries(memory)
    assert found.positions is None
    assert found.anchors is not None
    assert not found.anchors.requires_grad
    for sample in range(2):
        torch.testing.assert_close(found.content[sample], queries.content)


def test_pure_content_and_positions_are_made_from_the_boxes(num_dims: int) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims, selection="pure", judged="all")
    found = queries(memory)
    assert found.anchors is not None
    assert queries.from_boxes is not None
    assert queries.norm_boxes is not None
    encoded = box_features(found.anchors.sigmoid(), WIDTH // num_dims).flatten(-2)  # natural order
    both = queries.norm_boxes(queries.from_boxes(encoded))
    torch.testing.assert_close(found.positions, both[..., :WIDTH])
    torch.testing.assert_close(found.content, both[..., WIDTH:])


def test_content_may_be_the_tokens_themselves(num_dims: int) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims, selection="features")
    chosen = torch.arange(QUERIES).expand(2, -1)
    found = queries(memory, chosen)
    torch.testing.assert_close(found.content, queries.head(memory).tokens[:, :QUERIES])
    assert not found.content.requires_grad


def test_given_tokens_are_taken_instead_of_the_best(num_dims: int) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims)
    chosen = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    said, found = queries.head(memory), queries(memory, chosen)
    assert found.anchors is not None
    for sample in range(2):
        torch.testing.assert_close(found.anchors[sample], said.anchors[sample, chosen[sample]])


def test_fewer_tokens_than_queries_all_propose(num_dims: int) -> None:
    whole, queries = make_memory(num_dims), make_queries(num_dims)
    assert whole.references is not None
    few = Memory(whole.tokens[:, :3], None, level_shapes=((3,) * 1,), references=whole.references[:, :3])
    found = queries(few)
    assert found.anchors is not None
    assert found.anchors.shape == (2, 3, 2 * num_dims)
    assert found.content.shape == (2, 3, WIDTH)


def test_what_is_judged(num_dims: int) -> None:
    memory = make_memory(num_dims)
    (chosen,) = make_queries(num_dims)(memory).supervisions
    assert chosen.predictions.logits.shape == (2, QUERIES, CLASSES)
    assert chosen.predictions.boxes.requires_grad
    assert not chosen.class_agnostic
    (everything,) = make_queries(num_dims, judged="all", weight=0.5)(memory).supervisions
    assert everything.predictions.boxes.shape == (2, memory.tokens.shape[1], 2 * num_dims)
    assert everything.class_agnostic
    assert everything.weight == 0.5


def test_features_stay_the_content_where_positions_are_made_too(num_dims: int) -> None:
    memory, queries = make_memory(num_dims), make_queries(num_dims, selection="features", positions=True)
    found = queries(memory)
    plain = make_queries(num_dims, selection="features")
    plain.head.load_state_dict(queries.head.state_dict())
    torch.testing.assert_close(found.content, plain(memory).content)
    assert found.positions is not None


def test_each_level_may_have_a_size_of_its_own(num_dims: int) -> None:
    memory = make_memory(num_dims)
    anchors, may_propose = token_anchors(memory, size=(0.2, 0.75), margin=0.01)
    first = math.prod(memory.level_shapes[0])
    for rows, size in ((slice(0, first), 0.2), (slice(first, None), 0.75)):
        sizes = anchors[:, rows].sigmoid()[may_propose[:, rows]][:, num_dims:]
        assert sizes.numel()
        torch.testing.assert_close(sizes, torch.full_like(sizes, size))


def test_quality_ranks_beside_the_class_and_is_judged(num_dims: int) -> None:
    memory = make_memory(num_dims)
    torch.manual_seed(1)
    boxes = MLP(WIDTH, WIDTH, 2 * num_dims)
    parts = {"classes": nn.Linear(WIDTH, 1), "quality": nn.Linear(WIDTH, 1), "boxes": boxes}
    queries = ProposedQueries(9, WIDTH, num_dims, head=ProposalHead(WIDTH, **parts), selection="features")
    proposals = queries.head(memory)
    assert proposals.quality is not None
    supervision = queries(memory).supervisions[0]
    assert supervision.predictions.quality is not None
    for sample in range(2):
        likely = {}
        for token in range(proposals.anchors.shape[1]):
            product = proposals.logits[sample, token, 0].sigmoid() * proposals.quality[sample, token].sigmoid()
            may = bool(proposals.anchors[sample, token].isfinite().all())
            likely[token] = product.item() if may else -math.inf
        best = sorted(likely, key=lambda token: -likely[token])[:9]
        may = [token for token in best if likely[token] > -math.inf]
        said = supervision.predictions
        assert said.quality is not None
        torch.testing.assert_close(said.logits[sample, : len(may)], proposals.logits[sample, may])
        torch.testing.assert_close(said.quality[sample, : len(may)], proposals.quality[sample, may])
        assert (said.boxes[sample, len(may) :] == 1).all()
