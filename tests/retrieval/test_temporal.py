"""Levels of time: their places, and that what is computed again is the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_model import one

from momentdetr.retrieval.stacks import Sizes
from momentdetr.retrieval.temporal import InPieces, Recomputed, temporal_encoder, temporal_levels
from momentdetr.retrieval.types import MomentTargets, VideoText

Make = Callable[..., Any]
SIZES = Sizes(video_dim=4, text_dim=4, width=16, num_heads=2, feed_forward=24, dropout=0.0)


@pytest.mark.parametrize("length", [1, 5, 8, 9])
def test_a_place_is_the_same_time_on_every_level(length: int) -> None:
    """A fraction of the video, taken on a level, is that many clips over the level's stride; batched or alone."""
    torch.manual_seed(0)
    levels = temporal_levels(SIZES, (1, 2, 4), 0)
    mask = torch.arange(9)[None] < torch.tensor([[9], [length]])
    memory = levels(torch.randn(2, 9, 16), mask)
    assert memory.valid_ratios is not None
    assert memory.references is not None
    for level, ((cells,), stride) in enumerate(zip(memory.level_shapes, (1, 2, 4), strict=True)):
        for fraction in (0.0, 0.3, 1.0):
            place = fraction * memory.valid_ratios[1, level, 0] * cells
            assert place.item() == pytest.approx(fraction * length / stride, rel=1e-5)
    own = memory.references[1, :9, 0]
    torch.testing.assert_close(own, (torch.arange(9) + 0.5) / length)


def test_cells_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    levels = temporal_levels(SIZES, (1, 2, 4), 2).eval()
    mask = torch.arange(9)[None] < torch.tensor([[9], [6]])
    clips = torch.randn(2, 9, 16)
    both, alone = levels(clips, mask), levels(clips[1:, :6], mask[1:, :6])
    start = 0
    for (cells,), (fewer,) in zip(both.level_shapes, alone.level_shapes, strict=True):
        here = both.tokens[1, start : start + cells]
        first = sum(n for (n,) in alone.level_shapes[: both.level_shapes.index((cells,))])
        torch.testing.assert_close(here[:fewer], alone.tokens[0, first : first + fewer], atol=1e-5, rtol=0)
        assert not here[fewer:].any()
        start += cells


def test_the_linear_encoder_reaches_all_clips_through_coarse_levels() -> None:
    """A change of the first clip is felt by a far one, and by the global token; padding is not."""
    torch.manual_seed(0)
    from momentdetr.detr.types import Memory

    encoder = temporal_encoder(SIZES, 4).eval()
    tokens = torch.randn(1, 33, 16)
    mask = torch.tensor([[True] * 29 + [False] * 4])
    positions = torch.randn(1, 33, 16)
    before = encoder(Memory(tokens, mask, positions)).tokens
    changed = tokens.clone()
    changed[0, 1] += 1
    moved = (encoder(Memory(changed, mask, positions)).tokens - before).abs().amax(-1)[0]
    assert moved[0] > 1e-4
    assert moved[1] > moved[6] > 0
    assert (moved[1:29] > 1e-7).sum() > 12  # two layers of points on four levels reach much farther than convolutions
    changed = tokens.clone()
    changed[0, 29:] += 5
    unmoved = (encoder(Memory(changed, mask, positions)).tokens - before).abs().amax(-1)[0, :29]
    assert unmoved.max() < 1e-6


def test_what_is_computed_again_is_the_same(make: Make, inputs: VideoText, targets: MomentTargets) -> None:
    """Losses and gradients of `linear_dino` with and without, names of parameters apart."""
    found = []
    for recompute in (True, False):
        options = {"encoder_options": {"levels": 3, "recompute": recompute}, "recompute": recompute}
        model = make("linear_dino", strides=(1, 2), level_layers=1, sizes={"dropout": 0.1}, **options).train()
        torch.manual_seed(1)
        losses = model.loss(inputs, targets)
        losses.total.backward()
        gradients = {re.sub(r"(\.layer)+\.", ".", name): p.grad for name, p in model.named_parameters()}
        found.append((losses.total.detach(), gradients))
    (total, gradients), (plain, expected) = found
    torch.testing.assert_close(total, plain)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_inner_results_are_forgotten() -> None:
    """Of ten activations of a layer, none but its input is kept for the gradient."""
    layer = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(5)])
    kept: dict[str, int] = {}
    for name, module in (("plain", copy.deepcopy(layer)), ("recomputed", Recomputed(copy.deepcopy(layer)))):
        given, count = torch.randn(64, 8, requires_grad=True), [0]

        def pack(tensor: torch.Tensor, count: list[int] = count) -> torch.Tensor:
            count[0] += tensor.shape[:1] == (64,)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module.train()(given).sum()
        kept[name] = count[0]
    assert kept["plain"] >= 9
    assert kept["recomputed"] <= 1


def test_pieces_are_the_whole() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    tokens = torch.randn(2, 11, 4)
    pieces = InPieces(copy.deepcopy(layer), 3)
    layer(tokens).square().sum().backward()
    pieces(tokens).square().sum().backward()
    torch.testing.assert_close(pieces(tokens), layer(tokens))
    for own, expected in zip(pieces.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


def test_qd_detr_with_levels_answers_alike_alone_and_in_a_batch(make: Make, inputs: VideoText) -> None:
    model = make("qd_detr", levels=3)
    batched = model.predict(inputs)
    alone = model.predict(one(inputs, 1, trimmed=True))
    torch.testing.assert_close(batched.spans[1], alone.spans[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.saliency[1, :6], alone.saliency[0], atol=1e-5, rtol=0)
