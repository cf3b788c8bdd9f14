from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from momentdetr.detr.assignment import HungarianMatcher, giou_cost, l1_cost, softmax_class_cost
from momentdetr.detr.attention import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    CrossAttention,
    SelfAttention,
)
from momentdetr.detr.boxes import inverse_sigmoid, iou, to_corners
from momentdetr.detr.decoder import AnchorGuide, Decoder, DecoderLayer, FixedGuide, Head
from momentdetr.detr.losses import Criterion, cross_entropy, giou_loss, l1, matched, matched_targets
from momentdetr.detr.mlp import MLP, FeedForward
from momentdetr.detr.model import Detr
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.queries import AnchorQueries, LearnedQueries, PointQueries
from momentdetr.detr.types import Memory, Queries, Targets

WIDTH, HEADS, QUERIES, LAYERS = 24, 4, 4, 2


def make_memory(num_dims: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Memory:
    shape = (4, 3, 2)[:num_dims]
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(batch, *shape, dtype=torch.bool)
    mask[-1, -1:] = False  # the last sample is smaller along the first axis
    tokens = torch.randn(batch, math.prod(shape), WIDTH, generator=generator, dtype=dtype)
    positions = grid_positions(mask, WIDTH).flatten(1, -2).to(dtype)
    return Memory(tokens, mask.flatten(1), positions, level_shapes=(shape,))


def make_detector(kind: str, num_dims: int, refinement: str = "look_forward_twice") -> Detr:
    torch.manual_seed(0)
    conditional = kind != "dense"

    def layer(index: int) -> DecoderLayer:
        return DecoderLayer(
            self_attention=(ConditionalSelfAttention if conditional else SelfAttention)(WIDTH, HEADS),
            cross_attention=ConditionalCrossAttention(WIDTH, HEADS, adds_positions=index == 0)
            if conditional
            else CrossAttention(WIDTH, HEADS),
            feed_forward=FeedForward(WIDTH, 32),
            width=WIDTH,
        )

    queries: nn.Module
    guide: nn.Module
    if kind == "dense":
        queries, guide = LearnedQueries(QUERIES, WIDTH), FixedGuide()
    elif kind == "point":
        queries = PointQueries(QUERIES, WIDTH, to_point=MLP(WIDTH, WIDTH, num_dims))
        guide = AnchorGuide(num_dims, WIDTH, makes_positions=False, modulated=False)
    else:
        queries = AnchorQueries(QUERIES, WIDTH, 2 * num_dims)
        guide = AnchorGuide(num_dims, WIDTH, attends_with="box" if kind == "box" else "center")
    decoder = Decoder(
        layers=[layer(i) for i in range(LAYERS)],
        guide=guide,
        heads=[Head(nn.Linear(WIDTH, 3), MLP(WIDTH, WIDTH, 2 * num_dims))],
        norm=nn.LayerNorm(WIDTH),
        parametrization=CenterSize(1e-3),
        refinement=refinement if kind in ("anchor", "box") else "none",  # type: ignore[arg-type]
    )
    return Detr(queries=queries, decoder=decoder)


KINDS = ["dense", "point", "anchor", "box"]

# What cannot learn in the first step: a key's bias shifts all scores of a softmax alike; and the first self-attention
# mixes contents that are all zero, so every mixture is the same and nothing before it, nor its value's weight, matters.
SILENT = re.compile(r".*key(_content|_position)?\.bias|0\.self_attention\.((query|key).*|value\.weight)")


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_ranges(kind: str, num_dims: int) -> None:
    output = make_detector(kind, num_dims)(make_memory(num_dims))
    assert len(output.layers) == LAYERS
    assert output.hidden.shape == (LAYERS, 2, QUERIES, WIDTH)
    for predictions in output.layers:
        assert predictions.logits.shape == (2, QUERIES, 3)
        assert predictions.boxes.shape == (2, QUERIES, 2 * num_dims)
        assert ((predictions.boxes >= 0) & (predictions.boxes <= 1)).all()
    assert len(output.references) == (0 if kind == "dense" else LAYERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_s_answer_does_not_depend_on_its_batch(kind: str, num_dims: int) -> None:
    detector, memory = make_detector(kind, num_dims).double(), make_memory(num_dims, dtype=torch.float64)
    batched = detector(memory).last
    assert memory.mask is not None
    assert memory.positions is not None
    for sample in range(2):
        keep = memory.mask[sample]
        alone = detector(
            Memory(memory.tokens[sample : sample + 1, keep], None, memory.positions[sample : sample + 1, keep])
        ).last
        torch.testing.assert_close(batched.boxes[sample], alone.boxes[0])
        torch.testing.assert_close(batched.logits[sample], alone.logits[0])


@pytest.mark.parametrize("kind", KINDS)
def test_it_overfits_and_every_parameter_learns(kind: str, num_dims: int) -> None:
    detector, memory = make_detector(kind, num_dims), make_memory(num_dims)
    boxes = torch.rand(2, 2, 2 * num_dims, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    targets = Targets(torch.tensor([[0, 1], [1, 0]]), boxes, torch.tensor([[True, True], [True, False]]))
    weights = {"class": 1.0, "l1": 5.0, "giou": 2.0}
    criterion = Criterion(
        matcher=HungarianMatcher({"class": softmax_class_cost, "l1": l1_cost, "giou": giou_cost}, weights),
        terms={"class": cross_entropy, "l1": l1, "giou": giou_loss},
        weights=weights,
    )
    criterion(detector(memory), targets).total.backward()
    silent = {name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 1e-7}
    assert all(SILENT.fullmatch(name.removeprefix("decoder.layers.")) for name in silent), silent

    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    for step in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 160)
        optimizer.zero_grad()
        found = criterion(detector(memory), targets)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    last, who = detector(memory).last, found.assignments[""]
    overlap, _ = iou(to_corners(matched(last.boxes, who)), to_corners(matched_targets(boxes, who)))
    assert overlap.min() > 0.75
    assert matched(last.logits, who).argmax(-1).tolist() == matched_targets(targets.labels, who).tolist()


def test_anchor_guide_encodes_centers_reversed_then_sizes(num_dims: int) -> None:
    torch.manual_seed(0)
    guide = AnchorGuide(num_dims, WIDTH, modulated=True).double()
    references = torch.rand(1, 2, 2 * num_dims, dtype=torch.float64) * 0.8 + 0.1
    content = torch.randn(1, 2, WIDTH, dtype=torch.float64)
    guidance = guide(content, references, Queries(content, anchors=references), Memory(content), 1)
    features = WIDTH // num_dims

    def encoded(value: float) -> list[float]:
        angles = [value * 2 * math.pi / 10000 ** (2 * (i // 2) / features) for i in range(features)]
        return [math.sin(a) if i % 2 == 0 else math.cos(a) for i, a in enumerate(angles)]

    axes = list(range(num_dims))
    for query in range(2):
        numbers = references[0, query].tolist()
        order = [*reversed(axes), *(num_dims + axis for axis in axes)]
        whole = torch.tensor([x for i in order for x in encoded(numbers[i])], dtype=torch.float64)
        assert guide.to_positions is not None
        torch.testing.assert_close(guidance.positions[0, query], guide.to_positions(whole), atol=1e-5, rtol=0)

        assert guide.wanted_size is not None
        wanted = guide.wanted_size(content[0, query]).sigmoid().tolist()
        scale = guide.query_scale(content[0, query]).unflatten(0, (num_dims, features))
        for place, axis in enumerate(reversed(axes)):
            expected = torch.tensor(encoded(numbers[axis]), dtype=torch.float64) * scale[place]
            expected = expected * wanted[axis] / numbers[num_dims + axis]
            found = guidance.sine[0, query].unflatten(0, (num_dims, features))[place]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def references_of(refinement: str, num_dims: int) -> tuple[Detr, list[Tensor], Tensor]:
    detector = make_detector("anchor", num_dims, refinement).double()
    output = detector(make_memory(num_dims, dtype=torch.float64))
    return detector, list(output.references), output.layers[-1].boxes


def test_references_move_by_the_un_normed_content(num_dims: int) -> None:
    """The next reference is the refine head on the layer's raw output; the prediction is it on the normed one."""
    detector = make_detector("anchor", num_dims).double()
    memory = make_memory(num_dims, dtype=torch.float64)
    output = detector(memory)
    decoder, queries = detector.decoder, detector.queries(memory)
    reference = queries.anchors.sigmoid()
    content = decoder.layers[0](queries.content, decoder.guide(queries.content, reference, queries, memory, 0), memory)
    head = decoder.heads[0].boxes
    moved = (head(content) + inverse_sigmoid(reference, 1e-3)).sigmoid()
    said = (head(decoder.norm(content)) + inverse_sigmoid(reference, 1e-3)).sigmoid()
    torch.testing.assert_close(output.references[1], moved)
    torch.testing.assert_close(output.layers[0].boxes, said)


@pytest.mark.parametrize(("refinement", "reaches"), [("detached", False), ("look_forward_twice", True)])
def test_only_looking_forward_twice_lets_the_loss_reach_back(refinement: str, reaches: bool, num_dims: int) -> None:
    detector, references, last = references_of(refinement, num_dims)
    assert references[1].requires_grad is reaches
    (gradient,) = torch.autograd.grad(last.sum(), detector.queries.anchors, allow_unused=True)
    # Through layer 0's content the anchors are always reached; through the reference only when it is attached.
    assert gradient is not None


def test_points_lend_only_their_centers(num_dims: int) -> None:
    parametrization = CenterSize(1e-5)
    delta, point = torch.randn(3, 2 * num_dims), torch.rand(3, num_dims)
    found = parametrization.refine(delta, point)
    torch.testing.assert_close(found[:, :num_dims], (delta[:, :num_dims] + torch.logit(point)).sigmoid())
    torch.testing.assert_close(found[:, num_dims:], delta[:, num_dims:].sigmoid())


def test_encode_and_to_boxes_are_inverse(num_dims: int) -> None:
    boxes = torch.rand(4, 2 * num_dims, dtype=torch.float64) * 0.9 + 0.05
    parametrization = CenterSize(1e-5)
    torch.testing.assert_close(parametrization.to_boxes(parametrization.encode(boxes)), boxes)


def test_references_stay_in_float32_in_half_precision() -> None:
    detector = make_detector("anchor", 1)
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(make_memory(1))
    assert output.last.boxes.dtype == torch.float32
    assert all(reference.dtype == torch.float32 for reference in output.references)


def test_a_width_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        AnchorGuide(3, 32)
