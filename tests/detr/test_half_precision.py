"""Every row under bfloat16 autocast: references, matching, areas and losses stay in float32."""

from __future__ import annotations

import pytest
import torch
from every_row import EVERY_ROW, build, make_targets
from test_bad_input import make_inputs
from torch import Tensor

from momentdetr.detr import boxes
from momentdetr.detr.assignment import HungarianMatcher
from momentdetr.detr.deformable import DeformableAttention
from momentdetr.detr.diagnostics import sampling, watch

every_row = pytest.mark.parametrize("row", EVERY_ROW)


@every_row
def test_what_must_be_exact_stays_in_float32(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, (maps, mask), targets = build(row, 2), make_inputs(2), make_targets(2)
    seen: dict[str, set[torch.dtype]] = {"areas": set(), "costs": set(), "linear": set()}
    volume = boxes.volume

    def watched_volume(corners: Tensor) -> Tensor:
        seen["areas"].add(corners.dtype)
        return volume(corners)

    monkeypatch.setattr(boxes, "volume", watched_volume)
    matcher = detector.criterion.matcher
    assert isinstance(matcher, HungarianMatcher)

    def watched(cost):  # type: ignore[no-untyped-def]
        def compute(*args: Tensor) -> Tensor:
            value = cost(*args)
            seen["costs"].add(value.dtype)
            return value

        return compute

    matcher.costs = {name: watched(cost) for name, cost in matcher.costs.items()}
    feed_forward = detector.detr.decoder.layers[0].feed_forward  # type: ignore[union-attr]
    feed_forward.expand.register_forward_hook(lambda module, args, output: seen["linear"].add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(maps, mask, targets, generator=torch.Generator().manual_seed(1))
        losses = detector.criterion(output, targets)
    losses.total.backward()
    assert seen == {"areas": {torch.float32}, "costs": {torch.float32}, "linear": {torch.bfloat16}}
    exact = [said.boxes for said in output.layers] + [*output.references, losses.total, *losses.terms.values()]
    assert {values.dtype for values in exact} == {torch.float32}
    assert all(value.isfinite() for value in losses.terms.values())
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


# Where the encoder proposes, rounding changes who is chosen, and with it the order of all answers.
FIXED = [row for row in EVERY_ROW if build(row, 1).detr.queries.__class__.__name__ != "ProposedQueries"]


@pytest.mark.parametrize("row", FIXED)
def test_answers_are_those_of_float32_but_for_rounding(row: str) -> None:
    detector, (maps, mask) = build(row, 2).eval(), make_inputs(2)
    with torch.no_grad():
        exact = detector(maps, mask).last
        with torch.autocast("cpu", torch.bfloat16):
            rounded = detector(maps, mask).last
    torch.testing.assert_close(rounded.boxes, exact.boxes, atol=0.02, rtol=0)
    torch.testing.assert_close(rounded.logits.float(), exact.logits, atol=0.1, rtol=0.05)


def test_deformable_attention_places_its_points_in_float32() -> None:
    detector, (maps, mask) = build("deformable_detr, refine", 2).eval(), make_inputs(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), watch(detector.detr.decoder) as glances:
        detector(maps, mask)
        assert all(isinstance(glance.attention, DeformableAttention) for glance in glances)
        assert {sampling(glance).locations.dtype for glance in glances} == {torch.float32}
